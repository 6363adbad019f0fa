"""What each mode of a run is given, once it is known that memory holds all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError, argument
from parity.generation import compare as generated
from parity.generation.exchanges import CONTINUED, LEAST_PROMPT, PROMPT
from parity.inputs import Inputs
from parity.runner import gradients, room, step
from parity.runner.plan import Plan
from parity.scenarios import Prompt, Tokenizer, scenario, shape

# Prompts of several lengths.
_PROMPTS = "right_padded"


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
