"""Faults of masks as they are built.

Shapes: B batch, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllama import masks
from jaxllama import model as llama
from jaxllama.masks import Mask
from parity.inputs import Inputs
from parity.selftest.fault import Fault, Moment, Patches, everywhere
from parity.selftest.faults.rope import moved_positions
from parity.subjects.jaxllama import run

MASK = ("mask",)
Wrong = Callable[[np.ndarray, Inputs], np.ndarray]


def faults() -> list[Fault]:
    """Return the injections of this family."""
    return [*_causality(), *_padding(), *_windows_and_documents()]


def masked(wrong: Callable[[jax.Array, Moment], jax.Array]) -> Patches:
    """Return patches that give the model another mask [B T S]."""

    def patches(moment: Moment) -> Any:
        embed = llama.Llama.embed

        def embed_masked(self: Any, tokens: Any, positions: Any, mask: Any, **options: Any) -> Any:
            return embed(self, tokens, positions, wrong(mask, moment), **options)

        return [(llama.Llama, "embed", embed_masked)]

    return patches


def built(wrong: Wrong) -> Patches:
    """Return patches that put a mask made of the scenario's own in the place of the model's."""
    return masked(lambda mask, m: jnp.asarray(wrong(np.asarray(mask), m.inputs)))


def specified(wrong: Callable[[Inputs], Mask]) -> Patches:
    """Return patches that ask `jaxllama.masks` for something else."""
    return everywhere((run, "mask_spec", wrong))


def _fault(
    family: str, kind: str, variant: str, patches: Patches, cause: str, **more: Any
) -> Fault:
    expected = more.pop("expected", "layers.0.attn_probs")
    return Fault(
        family, kind, variant, expected, cause, patches=patches, **({"flagged": MASK} | more)
    )


def _both_real(inputs: Inputs) -> np.ndarray:
    return inputs.valid[:, :, None] & inputs.valid[:, None, :]


def _causality() -> list[Fault]:
    def shifted(by: int) -> Wrong:
        return lambda mask, i: np.tril(np.ones_like(mask), by) & _both_real(i)

    found = [
        _fault(
            "M1",
            "no causal mask",
            scenario,
            specified(lambda inputs: masks.padding()),
            "mask-not-causal",
            scenario=scenario,
        )
        for scenario in ("causal", "right_padded", "left_padded")
    ]
    found += [
        _fault("M1", "strictly lower mask", "self hidden", built(shifted(-1)), "mask-strict"),
        _fault(
            "M1", "causal mask off by one", "next token seen", built(shifted(1)), "mask-off-by-one"
        ),
        _fault(
            "M1",
            "strictly lower mask",
            "right_padded",
            built(shifted(-1)),
            "mask-strict",
            scenario="right_padded",
        ),
        _fault("M2", "polarity inverted", "causal", built(lambda m, i: ~m), "mask-inverted"),
        _fault(
            "M2",
            "polarity inverted",
            "left_padded",
            built(lambda m, i: ~m),
            "mask-inverted",
            scenario="left_padded",
        ),
        _fault(
            "M12",
            "queries and keys exchanged",
            "transposed",
            built(lambda m, i: m.swapaxes(1, 2).copy()),
            "mask-transposed",
        ),
        _fault(
            "M12",
            "first key hidden",
            "from all others",
            built(lambda m, i: m & ~(np.arange(m.shape[2]) == 0) | np.eye(m.shape[1], dtype=bool)),
            "mask-key-hidden",
        ),
        _fault(
            "M12",
            "prefix open in both directions",
            "5 tokens",
            specified(lambda i: (masks.causal() | masks.prefix(5)) & masks.padding()),
            "mask-prefix",
        ),
        _fault(
            "M12",
            "attention in blocks",
            "8 tokens",
            specified(lambda i: masks.causal() & masks.padding() & masks.chunked(8)),
            "mask-chunked",
        ),
        _fault(
            "M8",
            "causal mask aligned top left",
            "cached prompt",
            masked(_top_left),
            "mask-top-left",
            mode="decode",
            step=1,
        ),
        _fault(
            "M8",
            "causal mask aligned top left",
            "mixed lengths",
            masked(_top_left),
            "mask-top-left",
            mode="decode",
            step=1,
            scenario="mixed_lengths",
        ),
    ]
    return found


def _top_left(mask: jax.Array, moment: Moment) -> jax.Array:
    """Count queries from 0 in every call, as `tril` of a rectangle does."""
    T, S = mask.shape[1:]
    triangle = jnp.arange(S)[None, :] <= jnp.arange(T)[:, None]
    cache = moment.run._cache
    assert cache is not None
    return triangle[None] & cache.tokens().valid[:, None, :]


def _padding() -> list[Fault]:
    def ignoring(scenario: str) -> Fault:
        return _fault(
            "M5",
            "padding ignored",
            scenario,
            specified(lambda i: masks.causal(align="top_left")),
            "mask-padding-ignored",
            scenario=scenario,
        )

    def causal(mask: np.ndarray) -> np.ndarray:
        return np.tril(np.ones_like(mask))

    def unhidden(mask: np.ndarray, inputs: Inputs) -> np.ndarray:
        """Built for rows padded on the right, before a shared step moved them to the right."""
        lengths = inputs.valid.sum(1)
        old = np.arange(mask.shape[2])[None, :] < lengths[:, None]
        return causal(mask) & old[:, None, :]

    def neighbours(mask: np.ndarray, inputs: Inputs) -> np.ndarray:
        return causal(mask) & np.roll(inputs.valid, 1, axis=0)[:, None, :]

    return [
        ignoring("left_padded"),
        ignoring("mixed_lengths"),
        _fault(
            "M4",
            "padding mask on the query axis",
            "left_padded",
            built(lambda m, i: causal(m) & i.valid[:, :, None]),
            "mask-padding-ignored",
            scenario="left_padded",
        ),
        _fault(
            "M4",
            "padding mask on the query axis",
            "mixed_lengths",
            built(lambda m, i: causal(m) & i.valid[:, :, None]),
            "mask-padding-ignored",
            scenario="mixed_lengths",
        ),
        _fault(
            "M11",
            "mask built before a shared padding step",
            "left_padded",
            built(unhidden),
            "mask-padding-moved",
            scenario="left_padded",
        ),
        _fault(
            "M13",
            "another row's padding mask",
            "left_padded",
            built(neighbours),
            "mask-row-exchanged",
            scenario="left_padded",
        ),
    ]


def _windows_and_documents() -> list[Fault]:
    def window(by: int) -> Callable[[Inputs], Mask]:
        def spec(inputs: Inputs) -> Mask:
            assert inputs.window is not None
            return masks.causal() & masks.padding() & masks.window(inputs.window + by)

        return spec

    def whole(inputs: Inputs) -> Mask:
        return masks.causal(align="top_left") & masks.padding()

    found = [
        _fault(
            "M9",
            "window off by one",
            f"{by:+d}",
            specified(window(by)),
            "mask-window",
            scenario="windowed",
        )
        for by in (-1, 1)
    ]
    found.append(
        _fault(
            "M9", "window ignored", "all keys", specified(whole), "mask-window", scenario="windowed"
        )
    )
    leaking = _fault(
        "M10",
        "packed documents see each other",
        "mask alone",
        specified(whole),
        "mask-segments",
        scenario="packed",
    )
    found.append(leaking)
    running = moved_positions(lambda p, m: jnp.asarray(m.inputs.valid.cumsum(1) - 1, p.dtype))
    found.append(
        _fault(
            "M10",
            "positions of packed documents not reset",
            "positions alone",
            running,
            "position-segments",
            scenario="packed",
            expected="layers.0.q_rope",
            flagged=("positions",),
        )
    )
    spec = specified(whole)
    found.append(
        replace(
            leaking,
            kind="one document made of the packed ones",
            variant="mask and positions",
            patches=lambda m: [*spec(m), *running(m)],
            expected="layers.0.q_rope",
            flagged=("positions", "mask"),
            cause="position-segments",
        )
    )
    return found
