"""A subject taken through texts, a stage at a time, each layer measured and forgotten.

Shapes: B batch, T tokens, S = T keys, N heads, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxllama.errors import InputError
from parity.comparison.quality import token_loss
from parity.health.figures import ModelFigures, summarise_layer
from parity.health.metrics.attention import Rollout
from parity.health.metrics.gradients import GradientFigures, gradient_figures
from parity.health.metrics.layer import LayerFigures, layer_figures
from parity.health.pictures import KeptPictures
from parity.health.rule import find_all
from parity.inputs import Inputs
from parity.options import Progress
from parity.subjects.base import Arrays, Subject, require_gradients

# Tokens that gradients are taken of: a layer's are those of all its maps at once.
GRADIENT_TOKENS = 512
# Of so many tokens every rule judges; heads are flagged whatever the text's length.
_ENOUGH_TOKENS = 64
# Told of every layer's weights while they are alive: layer, row, weights [N, T, S], visible [T, S].
Watcher = Callable[[int, int, np.ndarray, np.ndarray], None]


@dataclass
class Measured:
    """Figures of all rows.

    Attributes:
        rows: of each row those of each layer.
        losses: of each row the mean cross-entropy; NaN where logits are not shown.
        pictures: what was kept of maps.
    """

    rows: list[list[LayerFigures]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    pictures: KeptPictures = field(default_factory=KeptPictures)


class NotFinite(Exception):
    """A pass ended in NaN or infinity.

    Args:
        tap: where it shows first.
        where: row and token.
    """

    def __init__(self, tap: str, where: str) -> None:
        super().__init__(f"{tap} is not finite at {where}")
        self.tap, self.where = tap, where


def measure(
    subject: Subject,
    batches: Sequence[Inputs],
    visible: Sequence[np.ndarray],
    layers: int,
    *,
    watch: Watcher | None = None,
    progress: Progress | None = None,
    what: str = "measuring",
) -> Measured:
    """Measure a subject on batches.

    Args:
        subject: what runs.
        batches: what it runs on.
        visible: of each batch, what its queries may see [B, T, S].
        layers: L.
        watch: told of all maps.
        progress: told how far it is.
        what: is done, for `progress`.

    Raises:
        NotFinite: a state, a weight or a logit is none.
        InputError: the subject shows neither attention weights nor states.
    """
    found = Measured()
    for number, (inputs, seen) in enumerate(zip(batches, visible, strict=True)):
        run, rows = subject.start(inputs), range(len(inputs.tokens))
        rollouts, first = [Rollout() for _ in rows], len(found.rows)
        found.rows += [[] for _ in rows]
        run.step()
        for layer in range(layers):
            prefix = f"layers.{layer}."
            taps = {name.removeprefix(prefix): value for name, value in run.step().items()}
            _check_finite(prefix, taps, inputs)
            for row in rows:
                one = layer_figures(taps, row, seen[row], inputs.valid[row], rollouts[row])
                if one.heads is None and one.states is None:
                    raise InputError(
                        f"subject {subject.name}: shows neither attn_probs nor input and output of "
                        "layers, of which figures are made; name them (parity/subjects/README.md)"
                    )
                found.rows[first + row].append(one)
                if one.heads is not None:
                    shown = layer, first + row, taps["attn_probs"][row], seen[row]
                    found.pictures.add(*shown, _flagged(one, subject.dtype))
                    if watch is not None:
                        watch(*shown)
                    del shown
            del taps  # before the next layer's are made
            if progress is not None:
                progress(what, number * layers + layer + 1, len(batches) * layers)
        taps = dict(run.step())
        _check_finite("", taps, inputs)
        found.losses += [_loss(taps, inputs, row) for row in rows]
        del taps
    return found


def _flagged(one: LayerFigures, dtype: str) -> list[tuple[int, tuple[str, ...]]]:
    """Return the heads that rules which look at one layer find something in, the gravest first."""
    alone = ModelFigures(
        layers=[summarise_layer([one])],
        gradients=None,
        dtype=dtype,
        tokens=_ENOUGH_TOKENS,
        spectra={},
        loss=float("nan"),
        chance=float("nan"),
        token=lambda row, at: str(at),
    )
    by_head: dict[int, list[str]] = {}
    for finding in find_all(alone):
        for head in finding.heads:
            by_head.setdefault(head, []).append(finding.rule)
    return [(head, tuple(rules)) for head, rules in by_head.items()]


def _check_finite(prefix: str, taps: Mapping[str, np.ndarray], inputs: Inputs) -> None:
    """Refuse states, weights and logits that are no numbers; pads may hold what they will."""
    for name in ("attn_probs", "output", "logits"):
        if name not in taps:
            continue
        value = taps[name]
        with np.errstate(invalid="ignore"):  # infinities of both signs are none either
            bad = ~np.isfinite(value.sum(axis=-1, dtype=np.float64))
        if bad.ndim == 3:
            bad = bad.any(axis=1)
        bad &= inputs.valid
        if bad.any():
            row, token = np.argwhere(bad)[0]
            raise NotFinite(prefix + name, f"row {row}, token {token}")


def _loss(taps: Arrays, inputs: Inputs, row: int) -> float:
    """Return the mean cross-entropy of a row's tokens but the first, in nats."""
    valid = inputs.valid[row]
    if "logits" not in taps or valid.sum() < 2:
        return float("nan")
    pairs = zip(taps["logits"][row][valid][:-1], inputs.tokens[row][valid][1:], strict=True)
    return float(np.mean([token_loss(logits, int(target)) for logits, target in pairs]))


def can_differentiate(subject: Subject) -> bool:
    """Return whether a subject shows gradients."""
    return hasattr(subject, "start_grad")


def measure_gradients(
    subject: Subject, inputs: Inputs, layers: int, heads: int, key_heads: int
) -> tuple[list[GradientFigures], int]:
    """Measure the gradients of a batch's first row, and say of how many tokens.

    Args:
        subject: which shows gradients.
        inputs: whose first row's beginning is taken.
        layers: L.
        heads: N.
        key_heads: K.
    """
    count = min(int(inputs.valid[0].sum()), GRADIENT_TOKENS)
    start = int(inputs.valid[0].argmax())
    columns = slice(start, start + count)
    cut = Inputs(
        inputs.name,
        inputs.tokens[:1, columns],
        inputs.positions[:1, columns],
        inputs.valid[:1, columns],
        inputs.mask[:1, columns, columns],
        segments=None if inputs.segments is None else inputs.segments[:1, columns],
        window=inputs.window,
    )
    run = require_gradients(subject).start_grad(cut)
    run.step()
    found = []
    for layer in reversed(range(layers)):
        prefix = f"grad.model.layers.{layer}."
        named = {
            name.removesuffix(".weight").rpartition(".")[2]: value
            for name, value in run.step().items()
            if name.startswith(prefix)
        }
        found.append(gradient_figures(named, heads, key_heads))
    return found[::-1], count
