"""`parity.run(quant=...)`: what a model has lost that is rounded on purpose.

The float64 reference runs beside it, a stage at a time; nothing is judged, and no verdict but
`quality` comes of it: a quantised model is another model than the checkpoint's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jax
from numpy.typing import DTypeLike

from jaxllama.checkpoint import Checkpoint, open_checkpoint
from jaxllama.config import LlamaConfig
from jaxllama.errors import InputError, argument
from jaxllama.quantisation import checked_cache_dtype, checked_quant, weights_bytes
from jaxllama.quantisation.choice import parse_quant
from parity.comparison.quality import QualityFigures, QualityMeter, QualityReport
from parity.comparison.reference import ReferenceTap
from parity.inputs import Inputs, batch_alike, inputs_facts, join_inputs
from parity.lockstep import timing
from parity.options import (
    Dtypes,
    Overrides,
    Progress,
    apply_overrides,
    checked_length,
    choose_dtypes,
)
from parity.result import Result
from parity.runner import environment
from parity.runner.again import describe_again
from parity.runner.plan import Plan, checkpoint_facts, make_plan
from parity.runner.prompt import encoder, token_texts
from parity.runner.readings import compare_readings, second_reading
from parity.runner.room import QUALITY_MAPS, check_room
from parity.scenarios import DEFAULT_LENGTHS, DEFAULT_SCENARIOS, Prompt, scenario, shape
from parity.subjects import select
from parity.subjects.base import Run, Subject
from parity.subjects.jaxllama.subject import JaxLlama
from parity.subjects.torch_reference.loss import successors
from parity.subjects.torch_reference.subject import TorchReference
from parity.texts import prose

MODES = ("free", "isolated")
# What users run; in float64 rounding of weights alone is left, in bfloat16 its own is added.
DTYPES = ("f32",)
# The others have the same text with pads.
SCENARIO = "causal"


def run_quality(
    checkpoint: str | Path | Checkpoint,
    *,
    quant: str | None,
    cache_dtype: DTypeLike | None,
    reference: str | Sequence[str],
    dtypes: Dtypes,
    modes: str | Sequence[str] | None,
    scenarios: str | Sequence[str],
    overrides: Overrides,
    prompt: Prompt | None,
    length: int | None,
    progress: Progress | None,
    subject: select.SubjectSpec,
    mesh: str | None,
    stream: bool,
    seconds: float,
) -> Result:
    """Measure a quantised model; arguments and errors as of `parity.run`."""
    began = time.perf_counter()
    plan = make_plan(
        reference,
        choose_dtypes(DTYPES if dtypes is None else dtypes),
        MODES if modes is None else modes,
        SCENARIO if scenarios == DEFAULT_SCENARIOS else scenarios,
        overrides,
    )
    plan = replace(plan, usual=modes is None)
    named = _checked(plan, subject, mesh, quant, stream)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        held = None
        if cache_dtype is not None:
            held = checked_cache_dtype(cache_dtype, argument("cache_dtype"))
        opened = open_checkpoint(checkpoint)
        config = apply_overrides(opened.config, plan.overrides)
        chosen = checked_quant(quant, config)
        named.sharding(config)
        source = second_reading(checkpoint, opened)
        reading = None if source is None else compare_readings(opened, source)
        if reading is not None and reading.differences:
            raise InputError(
                f"{reading.differences[0].said}: what is read otherwise would count as lost by "
                f"rounding; leave out {argument('quant')} to see all of it"
            )
        truth = opened if source is None else source
        encode, notes = encoder(opened, prompt)
        text: Prompt = prose() if prompt is None else prompt
        tokens = length
        if prompt is None:
            tokens = checked_length(length, DEFAULT_LENGTHS[SCENARIO], config)
        shapes = [shape(n, encode, config, prompt=text, length=tokens) for n in plan.scenarios]
        check_room(shapes, config.num_attention_heads, maps=QUALITY_MAPS)
        inputs = [scenario(n, encode, config, prompt=text, length=tokens) for n in plan.scenarios]
        named = replace(named, name=_name(named, quant), cache_dtype=held)
        make = select.subject_factory(named, opened, config, quant=quant)
        subjects: dict[str, Subject] = {lane: make(lane) for lane in plan.dtypes}
        lanes = measure(
            TorchReference(truth, dtype="f64"), subjects, inputs, truth.config, progress
        )
        facts = environment.describe()
    return Result(
        rows=[],
        witnesses=[],
        expected=0,
        absent=(),
        unmatched=(),
        first_divergence=None,
        reading=reading,
        inputs=[inputs_facts(one) for one in inputs],
        tolerance={},
        environment=facts,
        checkpoint=checkpoint_facts(opened, config, plan),
        command=describe_again(
            checkpoint,
            plan,
            prompt=prompt,
            length=length,
            subject=subject,
            mesh=mesh,
            stream=False,
            seconds=seconds,
            quant=quant,
            cache_dtype=None if held is None else held.name,
        ),
        subject=named.name,
        notes=[*opened.notes, *notes],
        timing=timing.totals(began),
        texts={one.name: token_texts(opened, one.tokens) for one in inputs},
        quality=QualityReport(
            quant=None if chosen is None else chosen.name,
            cache_dtype=None if held is None else held.name,
            weights_bytes=weights_bytes(config, dtype="bf16", quant=chosen),
            bf16_bytes=weights_bytes(config, dtype="bf16"),
            lanes=tuple(lanes),
        ),
    )


def measure(
    reference: Subject,
    subjects: Mapping[str, Subject],
    inputs: Sequence[Inputs],
    config: LlamaConfig,
    progress: Progress | None = None,
) -> list[QualityFigures]:
    """Run models beside the reference, stage by stage, and return the figures of each.

    Args:
        reference: in float64.
        subjects: the models, by dtype.
        inputs: scenarios.
        config: the reference's.
        progress: as of `parity.run`.
    """
    meters = {lane: QualityMeter(lane) for lane in subjects}
    last, done = config.num_hidden_layers + 1, 0
    stages = (last + 1) * len(batch_alike(inputs))
    for group in batch_alike(inputs):
        joined = join_inputs(group)
        pairs = successors(joined)
        of_reference = reference.start(joined)
        runs = {lane: (_start(one, joined), _start(one, joined)) for lane, one in subjects.items()}
        for stage in range(last + 1):
            truth = {
                name: ReferenceTap(name, value, joined.valid, joined.mask)
                for name, value in of_reference.step().items()
            }
            layer = stage - 1
            given = f"layers.{layer}.input"
            for lane, (free, isolated) in runs.items():
                shown = free.step()
                force = {given: truth[given].array} if given in truth else None
                # The head has nothing to be given that the last layer has not.
                alone = isolated.step(force) if stage < last else {}
                if stage == last:
                    meters[lane].add_logits(truth["logits"], shown["logits"], pairs)
                elif stage:
                    name = f"layers.{layer}.output"
                    meters[lane].add_layer(layer, truth[name], shown[name], alone[name])
            done += 1
            if progress is not None:
                progress(joined.name, done, stages)
    return [meter.figures() for meter in meters.values()]


def _start(subject: Subject, inputs: Inputs) -> Run:
    """Begin a pass, through a cache where the model is to have one: all tokens in one call."""
    if isinstance(subject, JaxLlama) and subject.cache_dtype is not None:
        return subject.start_decode(inputs, [inputs.tokens.shape[1]])
    return subject.start(inputs)


def _checked(
    plan: Plan, subject: select.SubjectSpec, mesh: str | None, quant: str | None, stream: bool
) -> select.Named:
    """Return what is to be quantised, once it is known that no other option stands against it."""
    asked = argument("quant") if quant is not None else argument("cache_dtype")
    if quant is not None:
        parse_quant(quant)
    if refused := [mode for mode in plan.modes if mode not in MODES]:
        raise InputError(
            f"{asked} with {argument('modes', ','.join(refused))}: expected {', '.join(MODES)}; "
            "what is rounded on purpose is measured, not judged"
        )
    if plan.reference != ("torch",):
        raise InputError(
            f"{asked} with {argument('reference', ','.join(plan.reference))}: expected torch, the "
            "float64 reference that is measured against"
        )
    if stream:
        raise InputError(
            f"{asked} with {argument('stream')}: a quantised model is loaded whole; leave out "
            f"{argument('stream')}"
        )
    named = select.resolve_subject(subject)
    if not isinstance(named, select.Named):
        said = subject if isinstance(subject, str) else type(subject).__name__
        known = ", ".join(("jaxllama", *select.BACKENDS, *select.FORMS))
        raise InputError(
            f"{asked} with {argument('subject', said)}: only this project's model is quantised "
            f"here; expected one of {known}"
        )
    return named if mesh is None else select.on_mesh(named, mesh)


def _name(named: select.Named, quant: str | None) -> str:
    return named.name if quant is None else f"{named.name}-{quant}"
