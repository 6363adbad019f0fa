"""What a run is asked for and given, and in words what of it was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from jaxllama.checkpoint import Checkpoint
from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError, argument
from parity.generation import compare as generated
from parity.generation.exchanges import CONTINUED, LEAST_PROMPT, PROMPT
from parity.inputs import Inputs
from parity.options import Overrides, choose, choose_dtypes, override_texts
from parity.result import MODE_WORDS, TapResult, modes_not_run
from parity.runner import gradients, room, step
from parity.runner.mitigations import MITIGATIONS
from parity.scenarios import RAGGED, SCENARIOS, Prompt, Tokenizer, scenario, shape
from parity.subjects import select
from parity.subjects.base import Subject
from parity.subjects.takes import nothing_taken, takes_of
from parity.taps import GRAD_TAPS, expected_names, gradient_names
from parity.tokens import compare as tokens

MODES = tuple(MODE_WORDS)
FORWARD_MODES = ("free", "isolated", "decode")
# What users run, but for training and writing: these are asked for. Each as far as the subject is
# able.
DEFAULT_MODES = FORWARD_MODES
# Prompts of several lengths.
_PROMPTS = "right_padded"


@dataclass(frozen=True)
class Plan:
    """What to run, checked.

    Attributes:
        usual: no modes were asked for: those of `DEFAULT_MODES` that the subject is able to.
        mitigations: of training, each of which the mode `step` judges beside the plain step.
    """

    reference: tuple[str, ...]
    dtypes: tuple[str, ...]
    modes: tuple[str, ...]
    scenarios: tuple[str, ...]
    overrides: tuple[str, ...]
    usual: bool
    mitigations: tuple[str, ...] = ()

    @property
    def forward_scenarios(self) -> tuple[str, ...]:
        """What is run forwards."""
        return self.scenarios if set(self.modes) & set(FORWARD_MODES) else ()

    @property
    def decode_scenarios(self) -> tuple[str, ...]:
        """What is run through caches: all if asked for, else one, for each call's shape is
        compiled anew.
        """
        if "decode" not in self.modes:
            return ()
        ragged = [name for name in RAGGED if name in self.scenarios]
        return tuple(ragged[:1]) if self.usual else self.scenarios

    @property
    def grad_scenarios(self) -> tuple[str, ...]:
        """What is differentiated."""
        return gradients.scenarios_for(self.scenarios) if "grad" in self.modes else ()

    @property
    def runs_model(self) -> bool:
        """Whether taps of the model are compared."""
        return bool({*self.modes} - {generated.MODE, step.MODE, tokens.MODE})

    def shows(self, kind: str) -> bool:
        """Return whether its modes are about a kind of tap."""
        return "grad" in self.modes if kind in GRAD_TAPS else bool(self.forward_scenarios)


def make_plan(
    reference: str | Sequence[str],
    dtypes: str | Sequence[str],
    modes: str | Sequence[str] | None,
    scenarios: str | Sequence[str],
    overrides: Overrides,
    mitigations: str | Sequence[str] = (),
) -> Plan:
    """Return what options ask for; see `parity.run` for them.

    Raises:
        InputError: one of them is none.
    """
    plan = Plan(
        reference=choose("reference", reference, select.WITNESSES),
        dtypes=choose_dtypes(dtypes),
        modes=choose("modes", DEFAULT_MODES if modes is None else modes, MODES),
        scenarios=choose("scenarios", scenarios, SCENARIOS),
        overrides=override_texts(overrides),
        usual=modes is None,
        mitigations=choose("mitigations", mitigations, MITIGATIONS) if mitigations else (),
    )
    if plan.mitigations and step.MODE not in plan.modes:
        raise InputError(
            f"{argument('mitigations', ','.join(plan.mitigations))}: judged in mode {step.MODE}; "
            f"add {argument('modes', step.MODE)}"
        )
    if "grad" in plan.modes:
        gradients.lanes_for(plan.dtypes)
    return plan


@dataclass(frozen=True)
class RunInputs:
    """The inputs of a run; nothing for modes that are not asked for.

    Attributes:
        forward: what is run forwards.
        differentiated: what is run backwards.
        step: what a step of training is taken on.
        prompts: what `generate` is given, a ragged batch.
    """

    forward: list[Inputs]
    differentiated: list[Inputs]
    step: Inputs | None
    prompts: Inputs | None


def make_inputs(
    plan: Plan,
    config: LlamaConfig,
    encode: Tokenizer,
    prompt: Prompt | None,
    length: int | None,
    specials: Sequence[int],
    *,
    streamed: bool = False,
) -> RunInputs:
    """Return what a plan's modes are run on.

    Args:
        plan: what is run.
        config: of the checkpoint.
        encode: text to token ids.
        prompt: text or token ids in place of the built-in text.
        length: tokens per row in place of each scenario's own.
        specials: ids that text never has.
        streamed: one layer is held at a time.

    Raises:
        InputError: memory does not hold one of them, which is told before any is built; or what is
            asked for cannot be built.
    """
    longest = _longest_prompt(plan, config, length)
    measured = partial(shape, tokenizer=encode, config=config, prompt=prompt)
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    forward = [measured(name, length=length) for name in plan.forward_scenarios]
    decoded = [one for one in forward if one.name in plan.decode_scenarios]
    passes = room.forward_maps(plan.modes, plan.dtypes, streamed=streamed)
    room.check_room(forward, heads, maps=passes)
    room.check_room(decoded, heads, maps=room.DECODE_MAPS)
    for name in plan.grad_scenarios:
        room.check_room([measured(name, length=length)], heads, maps=room.grad_maps(layers))
    trained = [step.SCENARIO] if step.MODE in plan.modes else []
    steps = [measured(name, length=length) for name in trained]
    room.check_room(steps, heads, maps=room.step_maps(layers))
    if longest is not None:
        prompts = [measured(_PROMPTS, length=longest)]
        room.check_room(prompts, heads, maps=room.GENERATE_MAPS)

    build = partial(scenario, tokenizer=encode, config=config, prompt=prompt)
    found = RunInputs(
        [build(name, length=length, specials=specials) for name in plan.forward_scenarios],
        [build(name, length=length, specials=specials) for name in plan.grad_scenarios],
        next((build(name, length=length, specials=specials) for name in trained), None),
        None if longest is None else replace(build(_PROMPTS, length=longest), name="prompts"),
    )
    gradients.check_inputs([*found.differentiated, *([] if found.step is None else [found.step])])
    return found


def _longest_prompt(plan: Plan, config: LlamaConfig, length: int | None) -> int | None:
    """Return the tokens of the longest prompt of `generate`; None if that is not asked for."""
    if generated.MODE not in plan.modes:
        return None
    longest = PROMPT if length is None else length
    if longest < LEAST_PROMPT:
        raise InputError(
            f"{argument('length', length)} with mode generate: expected at least {LEAST_PROMPT}, "
            "for the shortest of its three prompts has a third of that and needs two tokens"
        )
    for problem in config.context_problems(
        longest + CONTINUED, f"mode generate, prompts of {longest}", "leave out that mode"
    ):
        raise InputError(problem)
    return longest


def taken_by(
    plan: Plan, subject: Subject, inputs: list[Inputs], differentiated: list[Inputs]
) -> tuple[Plan, list[Inputs], list[Inputs], dict[str, str]]:
    """Return what is run of a plan, its scenarios, and why others are not, by name.

    What is differentiated by default falls back on the shortest that is run forwards.

    Raises:
        InputError: nothing that was asked for is taken.
    """
    takes = takes_of(subject)
    inputs, refused = takes.sort(inputs)
    backwards, more = takes.sort(differentiated)
    if differentiated and not backwards and inputs:
        backwards = [min(inputs, key=lambda one: one.tokens.size)]
    refused |= more
    if not (inputs or backwards):
        raise nothing_taken(subject, refused)
    names = {one.name for one in (*inputs, *backwards)}
    kept = tuple(name for name in plan.scenarios if name in names) or tuple(names)
    return (replace(plan, scenarios=kept) if refused else plan), inputs, backwards, refused


def expected_taps(plan: Plan, rows: Sequence[TapResult], config: LlamaConfig) -> int:
    """Return how many different taps the modes are about that were run."""
    layers, names = config.num_hidden_layers, []
    if plan.forward_scenarios:
        names += expected_names(layers, cache=any(row.mode == "decode" for row in rows))
    if plan.grad_scenarios:
        names += gradient_names(layers, tied=config.tie_word_embeddings)
    return len(names)


def left_out(
    plan: Plan, rows: Sequence[TapResult], unseen: int = 0, refused: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Return what of all that could be run was not, in words, and why if it was to be.

    Args:
        plan: what was asked for.
        rows: what was run.
        unseen: how many rows of the embedding no run has looked at.
        refused: scenarios that were asked for and the subject does not take, and why.
    """
    why = {}
    if "isolated" in plan.modes:
        why["isolated"] = "the subject takes no values"
    if plan.decode_scenarios:
        why["decode"] = "the subject shows no cache"
    run = {row.scenario for row in rows}
    cached = {row.scenario for row in rows if row.mode == "decode"}
    beside = [name for name in SCENARIOS if name in run - cached] if cached else []
    why_not = refused or {}
    left = [
        f"{name} ({why_not[name]})" if name in why_not else name
        for name in SCENARIOS
        if name not in run
    ]
    scenarios = f"scenario{'s' * (len(left) > 1)} {', '.join(left)}"
    decodes = [f"decode of {', '.join(beside)}"] if beside else []
    rest = [f"{unseen} rows of the embedding"] if unseen else []
    return (*modes_not_run(rows, why), *decodes, *([scenarios] if left else []), *rest)


def checkpoint_facts(checkpoint: Checkpoint, config: LlamaConfig, plan: Plan) -> dict[str, Any]:
    """Return what a result says of its checkpoint and the subject's configuration."""
    return {
        "path": str(checkpoint.path) if checkpoint.path else None,
        "format": checkpoint.format,
        "bytes": checkpoint.nbytes,
        "dtypes": sorted({info.dtype.name for info in checkpoint.tensors.values()}),
        "config": asdict(checkpoint.config),
        "overrides": list(plan.overrides),
        "subject_config": asdict(config),
    }
