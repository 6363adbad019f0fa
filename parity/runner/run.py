"""`parity.run`: the same weights through JAX and PyTorch, compared tap by tap."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
from numpy.typing import DTypeLike

from jaxllama.checkpoint import Checkpoint, open_checkpoint
from jaxllama.errors import InputError, argument
from jaxllama.train.config import LoraSettings
from parity.comparison import tolerance
from parity.diagnose.casts import LANE, cast_notes
from parity.diagnose.search import EXPLAINED, SECONDS, find_cause, refine_difference
from parity.generation import compare as generated
from parity.generation import run as generation
from parity.generation.exchanges import prompt_rows
from parity.inputs import Inputs, batch_alike, decode_chunks, inputs_facts, join_inputs
from parity.locate import first_divergence, reading_divergence
from parity.lockstep import timing
from parity.lockstep.comparator import PassResult
from parity.lockstep.setup import MakeVariants, own_variants
from parity.lockstep.shared import SharedPasses
from parity.noise import one_hot
from parity.options import Dtypes, Overrides, Progress, apply_overrides
from parity.result import CauseReport, Divergence, Reading, Result, TapResult
from parity.runner import environment, forward, gradients, step, vocabulary
from parity.runner.again import describe_again
from parity.runner.lora_step import compare_lora_step, lora_settings
from parity.runner.plan import (
    Plan,
    checkpoint_facts,
    expected_taps,
    left_out,
    make_inputs,
    make_plan,
    taken_by,
)
from parity.runner.precision import HIGHEST, check_precision
from parity.runner.prompt import encoder, special_ids, token_texts
from parity.runner.quality import run_quality
from parity.runner.readings import as_read, compare_readings, explain_reading, second_reading
from parity.scenarios import DEFAULT_SCENARIOS, Prompt
from parity.subjects import select
from parity.subjects.base import (
    CheckpointLike,
    Subject,
    can_decode,
    require_gradients,
    unshown_names,
)
from parity.subjects.jaxllama import streamed
from parity.subjects.meta import package
from parity.tokens import compare as tokens

jax.monitoring.register_event_duration_secs_listener(timing.on_event)


def run(
    checkpoint: str | Path | Checkpoint = "tiny",
    *,
    reference: str | Sequence[str] = "torch",
    dtypes: Dtypes = None,
    modes: str | Sequence[str] | None = None,
    scenarios: str | Sequence[str] = DEFAULT_SCENARIOS,
    overrides: Overrides = (),
    prompt: Prompt | None = None,
    length: int | None = None,
    progress: Progress | None = None,
    subject: select.SubjectSpec = "jaxllama",
    mesh: str | None = None,
    precision: str = HIGHEST,
    stream: bool = False,
    seconds: float = SECONDS,
    quant: str | None = None,
    cache_dtype: DTypeLike | None = None,
    lora: LoraSettings | str | Path | None = None,
    mitigations: str | Sequence[str] = (),
    shared: SharedPasses | None = None,
) -> Result:
    """Judge the JAX model against PyTorch on one checkpoint.

    The file is read twice: by jaxllama for the subject, by parity's own reader for the reference
    and the witnesses. Where the two do not take the same from it, that is the first divergence.

    Args:
        checkpoint: a directory or file of any format, `tiny`, `smollm2`, or an open checkpoint,
            which all run on as it is.
        reference: `torch` (our eager reference), `hf`, `meta`, several of them, or `all`. The
            float64 reference and the noise are our reference's in any case.
        dtypes: of `f64`, `f32`, `bf16`; by default all that the subject has. float64 decides
            meaning, the others rounding.
        modes: `free`, `isolated` (each operator on the reference's inputs), `decode` (through
            caches), `grad` (the loss and its gradients; of the scenarios in
            `parity.runner.gradients.SCENARIOS` unless others are given), `step` (parameters after a
            step of AdamW, in float64), `generate` (what
            `jaxllama.generate` writes, token by token), `tokens` (the tokenizer and chat template,
            against another implementation's). By default the first three, as far as the subject is
            able to, caches with one ragged scenario alone.
        scenarios: names of `parity.scenarios.SCENARIOS`, or `all`.
        overrides: changes to the subject's configuration alone, `FIELD=VALUE`, or the
            values by field: `{"rope_theta": 1e6, "rope_scaling": {"factor": 32}}`.
        prompt: text or token ids in place of the built-in text.
        length: tokens per row in place of each scenario's own.
        progress: called with what is under way, stages done and stages in all.
        subject: the implementation under judgement: a subject of one dtype, several by dtype, a
            function that makes one of the loaded model or the checkpoint and a dtype, or a name: an
            attention backend, `hf`, one that a package publishes, a directory of traces,
            `module:name`. See parity/subjects/README.md.
        mesh: devices that the JAX model is laid out on, `tensor=4,data=2`; see `jaxllama.sharding`.
        precision: of the JAX model's products, of `parity.runner.precision.PRECISIONS`: what users
            get who ask for nothing is `default`, and on GPUs and TPUs narrower than it says.
        stream: hold one layer of each side at a time, for checkpoints larger than memory; in
            `f32` and `bf16` unless `dtypes` says otherwise.
        seconds: of a processor, for the cause of a divergence.
        quant: `int8`, `int4` or `int4:GROUP`: measure the model with its weights rounded so. The
            verdict is `quality`, which is about how much is lost and never about equality.
        cache_dtype: `int8`: run it through a cache that is rounded so, measured likewise.
        lora: settings of `jaxllama.train`, or the file of a training that has them: mode `step` is
            of two steps of these factors alone, and of the weights beside them, which stay.
        mitigations: of training, of `parity.runner.mitigations.MITIGATIONS`, or `all`: each is one
            more step that the mode `step` judges.
        shared: what references have computed in earlier runs, and keep for later ones.

    Returns:
        The result; `.verdict`, `.first_divergence`, `.exit_code`.

    Raises:
        JaxLlamaError: the checkpoint, the prompt or an option is bad; nothing was judged.
    """
    if not 0 < seconds < float("inf"):
        raise InputError(f"{argument('seconds', seconds)}: expected a number above 0")
    if quant is not None or cache_dtype is not None:
        lora_settings(lora, ())  # nothing of fewer bits is trained
        if mitigations:
            raise InputError(
                f"{argument('mitigations', mitigations)}: no rounded model is trained; leave it out"
            )
        check_precision(precision, ours=False)
        return run_quality(
            checkpoint,
            quant=quant,
            cache_dtype=cache_dtype,
            reference=reference,
            dtypes=dtypes,
            modes=modes,
            scenarios=scenarios,
            overrides=overrides,
            prompt=prompt,
            length=length,
            progress=progress,
            subject=subject,
            mesh=mesh,
            stream=stream,
            seconds=seconds,
        )
    resolved = select.resolve_subject(subject, mesh)
    check_precision(precision, ours=isinstance(resolved, select.Named) and not stream)
    if stream:
        resolved = select.FromCheckpoint(streamed.Streamed)
        dtypes = streamed.DTYPES if dtypes is None else dtypes
        modes = streamed.MODES if modes is None else modes
    lanes = select.dtypes_of(resolved, dtypes)
    plan = asked = make_plan(reference, lanes, modes, scenarios, overrides, mitigations)
    factors = lora_settings(lora, plan.modes)
    if stream:
        streamed.check_options(subject, plan.modes, plan.reference, mesh)
    began = time.perf_counter()
    timer = timing.Timer()
    with jax.enable_x64(True), jax.default_matmul_precision(precision):
        opened = open_checkpoint(checkpoint)
        config = apply_overrides(opened.config, plan.overrides)
        laid_out = resolved.sharding(config) if isinstance(resolved, select.Named) else None
        source = second_reading(checkpoint, opened)
        # What is given ready-made has read its weights by means of its own.
        ready_made = isinstance(resolved, Mapping)
        reading = None
        if source is not None and not ready_made:
            weights = plan.modes != (tokens.MODE,)
            reading = compare_readings(opened, source, weights=weights)
        truth: CheckpointLike = opened if source is None else source
        _check_witnesses(plan, truth)
        other = None
        if tokens.MODE in plan.modes:  # told before hours of other modes
            other = tokens.find_other(opened, alone=plan.modes == (tokens.MODE,))
        encode, encoding_notes = encoder(opened, prompt)

        given = make_inputs(
            plan, truth.config, encode, prompt, length, special_ids(opened), streamed=stream
        )
        inputs, differentiated, prompts = given.forward, given.differentiated, given.prompts
        make = select.subject_factory(resolved, opened, config)
        refused: dict[str, str] = {}
        if plan.runs_model and not (isinstance(subject, str) and subject in select.NAMES):
            plan, inputs, differentiated, refused = taken_by(
                plan, make(plan.dtypes[0]), inputs, differentiated
            )
        variants = own_variants if shared is None else shared.variants
        passes, timed = _compare(
            plan, truth, make, inputs, differentiated, prompts, progress, timer, variants
        )
        rest = None
        if {"free", "isolated"} & {*plan.modes}:
            widest = min(plan.dtypes, key=lambda lane: tolerance.UNIT_ROUNDOFF[lane])
            rest = vocabulary.compare_vocabulary(truth, make(widest), inputs)
            passes.append(rest.found)
        found = PassResult.join(passes, plan.dtypes)
        if given.step is not None:
            passes = _step(plan, opened, truth, make, factors, given.step)
            found = PassResult.join([found, *passes])
        if other is not None:  # after the rest: they are sorted by dtype, and these have none
            found = PassResult.join([found, tokens.compare_tokens(opened, other)])
        rows = found.rows
        rows_only = [] if rest is None or rest.inputs is None else [rest.inputs]
        shown = list({i.name: i for i in (*inputs, *differentiated, *rows_only)}.values())
        first, cause = _explain(rows, reading, shown, opened, truth, make, seconds)
        casts = [] if first is not None else _casts(plan, make, inputs, truth)
        facts = environment.describe(precision)
        sample = make(plan.dtypes[0])
    result = Result(
        rows=rows,
        witnesses=found.witnesses,
        expected=expected_taps(plan, rows, config)
        + step.count_names(rows)
        + len(generated.names_for(rows))
        + len(tokens.names_for(rows)),
        not_run=left_out(plan, rows, 0 if rest is None else rest.unseen, refused),
        absent=tuple(sorted(kind for kind in sample.absent if plan.shows(kind))),
        unmatched=tuple(sorted(found.unmatched)),
        first_divergence=first,
        cause=cause,
        reading=reading,
        inputs=[inputs_facts(i) for i in (*shown, *([] if prompts is None else [prompts]))],
        tolerance=tolerance.facts(plan.dtypes),
        environment=facts,
        checkpoint=checkpoint_facts(opened, config, plan),
        command=describe_again(
            checkpoint,
            asked,
            prompt=prompt,
            length=length,
            subject=subject,
            mesh=mesh,
            precision=precision,
            stream=stream,
            seconds=seconds,
            lora=lora,
        ),
        subject=sample.name + ("" if precision == HIGHEST else f"-{precision}-precision"),
        notes=[
            *(f"{i.name}: {note}" for i in shown for note in i.notes),
            *opened.notes,
            *encoding_notes,
            *([] if laid_out is None else laid_out.notes),
            *getattr(sample, "notes", ()),
            *unshown_names(sample, found.unmatched),
            *([streamed.NOTE] if stream else ()),
            *(one_hot.notes(rows, plan.dtypes) if plan.runs_model else ()),
            *casts,
            *(gradients.notes_for(plan.dtypes, plan.reference) if differentiated else ()),
            *(generation.notes(rows, sample) if generated.MODE in plan.modes else ()),
            *(tokens.notes(rows, opened) if tokens.MODE in plan.modes else ()),
        ],
        timing={**timed, **timer.seconds(), **timing.totals(began)},
        snapshots=found.snapshots,
        texts={i.name: token_texts(opened, i.tokens) for i in shown},
    )
    if not result.rows:
        raise InputError("no tap was compared: the subject produced none under a canonical name")
    return result


def _explain(
    rows: Sequence[TapResult],
    reading: Reading | None,
    inputs: Sequence[Inputs],
    opened: Checkpoint,
    truth: CheckpointLike,
    make: select.SubjectFactory,
    seconds: float,
) -> tuple[Divergence | None, CauseReport | None]:
    """Return where a run diverges first, and why: what was read otherwise comes first."""
    first, misread = first_divergence(rows), reading_divergence(reading)
    cause = None
    if first is not None:
        # By what jaxllama read the subject may be right.
        checkpoint = truth if misread is None else as_read(opened)
        cause = find_cause(
            first,
            rows,
            inputs,
            checkpoint,
            make,
            decode_chunks,
            seconds,
            same_checkpoint=misread is None,
        )
    if reading is None or misread is None:
        return None if first is None else refine_difference(first, cause), cause
    row = None if first is None else first.row
    tried = row is None or row.mode in EXPLAINED
    return misread, explain_reading(reading, row, tried=tried, beside=cause)


def _casts(
    plan: Plan, make: select.SubjectFactory, inputs: Sequence[Inputs], checkpoint: CheckpointLike
) -> list[str]:
    """Return what is to be said of the casts of a subject without a divergence."""
    if "isolated" not in plan.modes or LANE not in plan.dtypes:
        return []
    smallest = min(batch_alike(inputs), key=lambda parts: sum(one.tokens.size for one in parts))
    try:
        return cast_notes(make(LANE), join_inputs(smallest), checkpoint)
    except Exception as error:  # a subject need not take made-up values, and the verdict stands
        return [f"how the subject casts was not looked at: {type(error).__name__}: {error}"]


def _step(
    plan: Plan,
    opened: Checkpoint,
    truth: CheckpointLike,
    make: select.SubjectFactory,
    factors: LoraSettings | None,
    inputs: Inputs,
) -> list[PassResult]:
    """Return what a step of training showed; nothing of a subject that is not trained here."""
    subject = make(step.LANE)
    if not step.check_subject(subject, alone=plan.modes == (step.MODE,)):
        return []
    if factors is not None:
        return [compare_lora_step(truth, opened, subject, inputs, factors)]
    return [step.compare_step(truth, subject, inputs, plan.mitigations)]


def _check_witnesses(plan: Plan, checkpoint: CheckpointLike) -> None:
    """Refuse a witness that is not installed or cannot express the model, before any work."""
    if "hf" in plan.reference:
        importlib.import_module("parity.subjects.hf.subject")
    if "meta" in plan.reference:
        package.reference_package()
        package.check_config(checkpoint.config)


def _compare(
    plan: Plan,
    checkpoint: CheckpointLike,
    make: select.SubjectFactory,
    inputs: Sequence[Inputs],
    differentiated: Sequence[Inputs],
    prompts: Inputs | None,
    progress: Progress | None,
    timer: timing.Timer,
    variants: MakeVariants,
) -> tuple[list[PassResult], dict[str, float]]:
    layers = checkpoint.config.num_hidden_layers
    grad_lanes = gradients.lanes_for(plan.dtypes) if differentiated else ()
    total = (layers + 2) * len(differentiated)
    done = 0

    def report(what: str) -> None:
        nonlocal done
        done = min(done + 1, total)  # runs made again in doubt are not planned for
        if progress is not None:
            progress(what, done, total)

    found: list[PassResult] = []
    seconds: dict[str, float] = {}
    if inputs:
        began = time.perf_counter()
        subjects = {lane: make(lane) for lane in plan.dtypes}
        for lane in grad_lanes:  # told before hours of other modes
            require_gradients(subjects[lane])
        passes = forward.passes_of(plan.modes, inputs, _decoded(plan, subjects.values()))
        total += forward.count_stages(passes, layers)
        total += generation.count_steps(subjects) if prompts is not None else 0
        found += forward.compare_forward(
            checkpoint, subjects, plan.reference, passes, report, timer, variants
        )
        del subjects
        seconds["forward_s"] = time.perf_counter() - began
    if grad_lanes:
        began = time.perf_counter()
        subjects = {lane: make(lane) for lane in grad_lanes}
        found += gradients.compare_gradients(
            checkpoint, subjects, plan.reference, differentiated, report, timer, variants
        )
        seconds["grad_s"] = time.perf_counter() - began
    if prompts is not None:
        began = time.perf_counter()
        subjects = {lane: make(lane) for lane in plan.dtypes}
        generation.check_subjects(subjects, alone=plan.modes == (generated.MODE,))
        total += generation.count_steps(subjects) if not inputs else 0
        found.append(
            generation.compare_generation(checkpoint, subjects, prompt_rows(prompts), report)
        )
        seconds["generate_s"] = time.perf_counter() - began
    return found, seconds


def _decoded(plan: Plan, subjects: Iterable[Subject]) -> list[str]:
    """Return what is run through caches: by default nothing where a subject has none."""
    judged = list(subjects)
    return [
        name
        for name in plan.decode_scenarios
        if not plan.usual or all(can_decode(subject, name) for subject in judged)
    ]
