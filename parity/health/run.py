"""`parity.check_health`: a model measured by itself, layer by layer and head by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxllama.checkpoint import Checkpoint, open_checkpoint
from jaxllama.errors import InputError, argument
from jaxllama.masks import Mask
from parity.health.baseline import HealthComparison, find_changes, gone_from, new_among
from parity.health.groups import (
    GroupComparison,
    NamedMass,
    compare_groups,
    find_words,
    group_figures,
)
from parity.health.model_pass import ModelPass, measure_model
from parity.health.prepare import PreparedTexts, prepare_texts, prepare_trace
from parity.health.report import HealthReport
from parity.options import LANES, Dtypes, Progress
from parity.runner import environment
from parity.subjects import select
from parity.subjects.traces import TraceSubject

CAUSAL = "causal() & padding()"


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
    token: Sequence[str] = (),
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
        token: texts of tokens whose weight is compared between the two.
        progress: called with what is under way, steps done and steps in all.

    Raises:
        JaxLlamaError: the checkpoint, a text or an option is bad; nothing was measured.
    """
    if (paired or token) and against is None:
        named = argument("paired", True) if paired else argument("token", token[0])
        raise InputError(f"{named}: compares two groups of texts; give {argument('against')} too")
    resolved = select.resolve_subject(subject)
    lane = _lane(resolved, dtype)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        opened, label = _opened(checkpoint)
        base = None if baseline is None else _opened(baseline)
        if base is not None:
            _check_alike(opened, *base)
        ready = resolved[lane] if isinstance(resolved, Mapping) else None
        if isinstance(ready, TraceSubject):
            prepared = prepare_trace(opened, ready, mask, text=text, length=length, against=against)
        else:
            prepared = prepare_texts(
                opened, text=text, length=length, mask=mask, against=against, paired=paired
            )
        masses = NamedMass(find_words(prepared.texts, token)) if token else None
        made = select.subject_factory(resolved, opened, opened.config)(lane)
        found = measure_model(
            made,
            opened,
            label,
            prepared,
            gradients=gradients,
            watch=masses,
            progress=progress,
            what="measuring",
        )
        comparison = None
        if base is not None:
            comparison = _against_baseline(
                found, base, prepared, resolved, lane, gradients=gradients, progress=progress
            )
        facts = environment.describe()
    groups = None
    if against is not None:
        groups = _groups(found, prepared, masses, str(against), paired, token)
    new = [] if comparison is None else comparison.new
    return HealthReport(
        findings=[*new, *(one for one in found.findings if one not in new)],
        layers=found.layers,
        gradients=found.gradients,
        gradient_tokens=found.gradient_tokens,
        checkpoint=label,
        subject=made.name,
        dtype=lane,
        text=prepared.text,
        rows=prepared.lengths,
        mask=CAUSAL if mask is None else str(mask),
        loss=found.loss,
        chance=float(np.log(opened.config.vocab_size)),
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


def _against_baseline(
    found: ModelPass,
    baseline: tuple[Checkpoint, str],
    prepared: PreparedTexts,
    resolved: select.Resolved,
    lane: str,
    *,
    gradients: bool,
    progress: Progress | None,
) -> HealthComparison:
    """Measure the baseline on the same tokens, by the same subject if that reads checkpoints."""
    base, label = baseline
    if isinstance(resolved, Mapping):  # ready-made, or a trace: it has weights of its own
        resolved = select.resolve_subject("jaxllama")
    subject = select.subject_factory(resolved, base, base.config)(lane)
    then = measure_model(
        subject,
        base,
        label,
        prepared,
        gradients=gradients,
        watch=None,
        progress=progress,
        what="measuring baseline",
    )
    return _compare(found, then, label)


def _compare(found: ModelPass, base: ModelPass, label: str) -> HealthComparison:
    return HealthComparison(
        label=label,
        new=new_among(found.findings, base.findings),
        gone=gone_from(found.findings, base.findings),
        changes=find_changes(found.layers, found.gradients, base.layers, base.gradients),
        loss=base.loss,
    )


def _groups(
    found: ModelPass,
    prepared: PreparedTexts,
    named: NamedMass | None,
    against: str,
    paired: bool,
    words: Sequence[str],
) -> GroupComparison:
    figures = group_figures(found.measured.rows, named)
    return compare_groups(
        figures,
        prepared.first,
        prepared.second,
        paired=paired,
        sources=(prepared.text, against),
        lengths=prepared.lengths,
        words=words,
    )
