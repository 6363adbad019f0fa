"""`parity.check_health`: a model measured by itself, layer by layer and head by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxllama.checkpoint import Checkpoint, open_checkpoint
from jaxllama.errors import InputError, argument
from jaxllama.masks import Mask
from parity.health.baseline import HealthComparison, find_changes, place_of
from parity.health.figures import LayerSummary, ModelFigures, summarise_layer
from parity.health.groups import (
    GroupComparison,
    NamedMass,
    check_groups,
    compare_groups,
    find_words,
    group_figures,
)
from parity.health.measure import (
    Measured,
    NotFinite,
    can_differentiate,
    measure,
    measure_gradients,
    out_of_range,
)
from parity.health.metrics.gradients import GradientFigures
from parity.health.report import HealthReport
from parity.health.rule import HealthFinding, find_all
from parity.health.texts import TextRows, batches, given_rows
from parity.health.weights import check_finite_weights, weight_spectra
from parity.inputs import Inputs
from parity.options import LANES, Dtypes, Progress
from parity.runner import environment
from parity.runner.prompt import token_texts
from parity.runner.room import check_room
from parity.scenarios import Shape
from parity.subjects import select
from parity.subjects.base import Subject
from parity.subjects.jaxllama.run import tokens_of
from parity.subjects.traces import TraceSubject

CAUSAL = "causal() & padding()"


@dataclass(frozen=True)
class _Prepared:
    """What is to be measured, all of it checked.

    Attributes:
        inputs: batches.
        visible: what queries of each may see.
        texts: what each token of each row reads as.
        text: where the rows are from.
        first, second: rows of the two groups; the second is empty without one.
        notes: remarks.
    """

    inputs: list[Inputs]
    visible: list[np.ndarray]
    texts: list[list[str]]
    text: str
    first: list[int]
    second: list[int]
    notes: list[str]


@dataclass(frozen=True)
class _Pass:
    """One model, measured."""

    layers: list[LayerSummary]
    gradients: list[GradientFigures] | None
    gradient_tokens: int
    measured: Measured
    findings: list[HealthFinding]
    loss: float
    spectra: dict[str, float]
    notes: list[str]


def check_health(
    checkpoint: str | Path | Checkpoint = "tiny",
    *,
    text: str | Path | None = None,
    subject: select.SubjectSpec = "jaxllama",
    dtype: Dtypes = None,
    length: int | None = None,
    mask: Mask | None = None,
    gradients: bool = True,
    baseline: str | Path | Checkpoint | None = None,
    against: str | Path | None = None,
    paired: bool = False,
    words: Sequence[str] = (),
    progress: Progress | None = None,
) -> HealthReport:
    """Measure a model's attention, states and gradients, and say what is wrong with them.

    Maps of one layer are alive at a time.

    Args:
        checkpoint: a directory or file of any format, `tiny`, `smollm2`, or an open checkpoint.
        text: a file of one text, or `.jsonl` with one a line; the built-in text if None.
        subject: what runs, as for `parity.run`. A captured trace has inputs of its own.
        dtype: `f64`, `f32` or `bf16`; float32, or the one that the subject has.
        length: most tokens of a text; 512 if None.
        mask: what queries may see, in place of all that is not later and no pad. The model is run
            as ever: what it looks at beyond this is leakage.
        gradients: whether they are taken, of the first text's first 512 tokens.
        baseline: another checkpoint of one shape, measured on the same tokens.
        against: a second file of texts, to compare the first with.
        paired: whether its lines belong to those of the first, one to one.
        words: tokens whose weight is compared between the two.
        progress: called with what is under way, steps done and steps in all.

    Raises:
        JaxLlamaError: the checkpoint, a text or an option is bad; nothing was measured.
    """
    if (paired or words) and against is None:
        named = argument("paired", True) if paired else argument("token", words[0])
        raise InputError(f"{named}: compares two groups of texts; give {argument('against')} too")
    resolved = select.resolve_subject(subject)
    lane = _lane(resolved, dtype)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        opened, label = _opened(checkpoint)
        base, base_label = (None, "") if baseline is None else _opened(baseline)
        if base is not None:
            _check_alike(opened, base, base_label)
        traced = isinstance(resolved, Mapping) and isinstance(resolved[lane], TraceSubject)
        prepared = _prepare(
            opened, resolved, lane, text=text, length=length, mask=mask, against=against,
            paired=paired,
        )  # fmt: skip
        masses = NamedMass(find_words(prepared.texts, words)) if words else None
        made = select.subject_factory(resolved, opened, opened.config)(lane)
        found = _measure(made, opened, label, prepared, gradients, masses, progress, "measuring")
        comparison = None
        if base is not None:
            if traced or isinstance(resolved, Mapping):
                resolved = select.resolve_subject("jaxllama")
            other = select.subject_factory(resolved, base, base.config)(lane)
            then = _measure(
                other, base, base_label, prepared, gradients, None, progress, "measuring baseline"
            )
            comparison = _compare(found, then, base_label)
        groups = None
        if against is not None:
            groups = _groups(found, prepared, masses, str(against), paired, words)
        facts = environment.describe()
    ordered = found.findings
    if comparison is not None:
        ordered = [*comparison.new, *(one for one in ordered if one not in comparison.new)]
    config = opened.config
    return HealthReport(
        findings=ordered,
        layers=found.layers,
        gradients=found.gradients,
        gradient_tokens=found.gradient_tokens,
        checkpoint=label,
        subject=made.name,
        dtype=lane,
        text=prepared.text,
        rows=[int(n) for one in prepared.inputs for n in one.valid.sum(axis=1)],
        mask=CAUSAL if mask is None else str(mask),
        loss=found.loss,
        chance=float(np.log(config.vocab_size)),
        spectra=found.spectra,
        comparison=comparison,
        groups=groups,
        notes=[*prepared.notes, *found.notes],
        environment=facts,
        texts=prepared.texts,
        pictures=found.measured.pictures,
    )


def _opened(checkpoint: str | Path | Checkpoint) -> tuple[Checkpoint, str]:
    opened = open_checkpoint(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
    return opened, opened.label if isinstance(checkpoint, Checkpoint) else str(checkpoint)


def _lane(resolved: select.Resolved, dtype: Dtypes) -> str:
    """Return the one dtype to run in."""
    if dtype is None:
        held = list(resolved) if isinstance(resolved, Mapping) else list(LANES)
        dtype = "f32" if "f32" in held else held[0]
    lanes = select.dtypes_of(resolved, dtype)
    if len(lanes) != 1:
        raise InputError(f"{argument('dtype', ','.join(lanes))}: one dtype is measured at a time")
    return lanes[0]


def _check_alike(opened: Checkpoint, base: Checkpoint, label: str) -> None:
    """Refuse a baseline whose layers, heads or vocabulary are others."""
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    apart = [
        f"{name} {getattr(base.config, name)}, here {getattr(opened.config, name)}"
        for name in names
        if getattr(base.config, name) != getattr(opened.config, name)
    ]
    if apart:
        raise InputError(
            f"baseline {label}: {'; '.join(apart)}; give an earlier state of the same model"
        )


def _prepare(
    opened: Checkpoint,
    resolved: select.Resolved,
    lane: str,
    *,
    text: str | Path | None,
    length: int | None,
    mask: Mask | None,
    against: str | Path | None,
    paired: bool,
) -> _Prepared:
    """Return what is to be run; nothing has been loaded so far."""
    ready = resolved[lane] if isinstance(resolved, Mapping) else None
    first: list[int] = []
    second: list[int] = []
    if isinstance(ready, TraceSubject):
        given = {"text": text, "length": length, "against": against}
        beside = [argument(name) for name, value in given.items() if value is not None]
        if beside:
            raise InputError(
                f"subject {ready.name}: a captured trace has texts of its own; leave out "
                f"{', '.join(beside)}"
            )
        inputs = _of_trace(ready, opened)
        source, notes = "the captured trace", [note for one in inputs for note in one.notes]
    else:
        one = given_rows(None if text is None else Path(text), opened, length)
        rows, notes = list(one.rows), _text_notes(one)
        first = list(range(len(rows)))
        if against is not None:
            other = given_rows(Path(against), opened, length)
            check_groups(len(rows), len(other.rows), paired=paired, second_path=Path(against))
            notes += _text_notes(other)
            # One text is run once, whichever group it is in: its figures are then equal.
            places = {row: at for at, row in reversed([*enumerate(rows)])}
            for row in other.rows:
                if row not in places:
                    places[row] = len(rows)
                    rows.append(row)
                second.append(places[row])
        config = opened.config
        _check_room(rows, config.num_attention_heads)
        inputs = batches(rows, config.num_attention_heads, config.pad_token_id)
        source = one.source
    return _Prepared(
        inputs=inputs,
        visible=[_visible(one, mask) for one in inputs],
        texts=[row for one in inputs for row in token_texts(opened, one.tokens)],
        text=source,
        first=first,
        second=second,
        notes=notes,
    )


def _text_notes(rows: TextRows) -> list[str]:
    if not rows.truncated:
        return []
    most = max(map(len, rows.rows))
    count = f" of {rows.truncated} texts" if rows.truncated > 1 else ""
    return [f"{rows.source}: the first {most} tokens{count} were taken ({argument('length')})"]


def _check_room(rows: Sequence[Sequence[int]], heads: int) -> None:
    check_room([Shape("text", 1, max(map(len, rows)))], heads, maps=2)


def _of_trace(trace: TraceSubject, opened: Checkpoint) -> list[Inputs]:
    inputs = trace.forward_inputs()
    if not inputs:
        raise InputError(f"subject {trace.name}: no forward pass was captured; capture mode free")
    layers = opened.config.num_hidden_layers
    if trace.layers != layers:
        raise InputError(
            f"subject {trace.name}: a trace of {trace.layers} layers, and {opened.label} has "
            f"{layers}; give the checkpoint that it is of"
        )
    return inputs


def _visible(inputs: Inputs, mask: Mask | None) -> np.ndarray:
    """Return what a batch's queries may see; rows of pads are empty."""
    if mask is None:
        return inputs.mask
    tokens = tokens_of(inputs, slice(None))
    seen = np.array(mask.bind(tokens, tokens, empty_row="zero").to_bool())
    seen = np.broadcast_to(seen, inputs.mask.shape) & inputs.valid[:, :, None]
    return np.ascontiguousarray(seen)


def _measure(
    subject: Subject,
    opened: Checkpoint,
    label: str,
    prepared: _Prepared,
    gradients: bool,
    named: NamedMass | None,
    progress: Progress | None,
    what: str,
) -> _Pass:
    config = opened.config
    layers, notes = config.num_hidden_layers, []
    try:
        measured = measure(
            subject,
            prepared.inputs,
            prepared.visible,
            layers,
            watch=named,
            progress=progress,
            what=what,
        )
    except NotFinite as error:
        check_finite_weights(opened, label)
        raise out_of_range(subject.dtype, error) from None
    of_gradients, counted = None, 0
    if gradients and can_differentiate(subject):
        heads = config.num_attention_heads, config.num_key_value_heads
        of_gradients, counted = measure_gradients(subject, prepared.inputs[0], layers, *heads)
    elif gradients:
        notes.append(f"{subject.name} shows no gradients")
    absent = sorted({"layers.attn_probs", "layers.attn_scores"} & set(subject.absent))
    if absent:
        notes.append(f"{subject.name} does not show {', '.join(absent)}")
    summaries = [summarise_layer([row[i] for row in measured.rows]) for i in range(layers)]
    losses = [loss for loss in measured.losses if np.isfinite(loss)]
    loss = float(np.mean(losses)) if losses else float("nan")
    spectra = weight_spectra(opened)
    figures = ModelFigures(
        layers=summaries,
        gradients=of_gradients,
        dtype=subject.dtype,
        tokens=max(int(one.valid.sum(axis=1).max()) for one in prepared.inputs),
        spectra=spectra,
        loss=loss,
        chance=float(np.log(config.vocab_size)),
        token=lambda row, at: _token(prepared.texts, row, at),
    )
    found = find_all(figures)
    return _Pass(summaries, of_gradients, counted, measured, found, loss, spectra, notes)


def _token(texts: Sequence[Sequence[str]], row: int, at: int) -> str:
    if not (0 <= row < len(texts) and 0 <= at < len(texts[row])):
        return str(at)
    return f"{at} “{texts[row][at]}”"


def _compare(found: _Pass, base: _Pass, label: str) -> HealthComparison:
    here, there = ({place_of(f) for f in one.findings} for one in (found, base))
    return HealthComparison(
        label=label,
        new=[one for one in found.findings if place_of(one) not in there],
        gone=[one for one in base.findings if place_of(one) not in here],
        changes=find_changes(found.layers, found.gradients, base.layers, base.gradients),
        loss=base.loss,
    )


def _groups(
    found: _Pass,
    prepared: _Prepared,
    named: NamedMass | None,
    against: str,
    paired: bool,
    words: Sequence[str],
) -> GroupComparison:
    figures: dict[str, Any] = group_figures(found.measured.rows, named)
    lengths = [int(n) for one in prepared.inputs for n in one.valid.sum(axis=1)]
    return compare_groups(
        figures,
        prepared.first,
        prepared.second,
        paired=paired,
        sources=(prepared.text, against),
        lengths=lengths,
        words=words,
    )
