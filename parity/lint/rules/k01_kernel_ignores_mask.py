"""K01: the kernel obeys another mask than it was given."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from parity.lint.attentions import resolve, ways
from parity.lint.findings import Finding, places
from parity.lint.probe_cases import ProbeCase, Probed, cases
from parity.lint.probes import diagnose, identity_probe, perturbation_probe
from parity.lint.rule import Rule

RULE = Rule(
    id="K01",
    name="kernel obeys another mask",
    severity="error",
    checks=(
        "The weights an attention really uses, read off with slices of the identity for V, and the"
        " keys its outputs depend on, found by changing one at a time, against the mask given; for"
        " causal, padded, windowed, packed, cached and decoding inputs."
    ),
    why=(
        "A fused kernel shows no weights, so a mask that is inverted, misaligned or read along"
        " other axes is seen nowhere but in a slightly worse model."
    ),
    example="jax.nn.dot_product_attention(q, k, v, is_causal=True)  # T = 1, S = 8",
    remedy="give the kernel a [B, 1, T, S] bool mask, or arguments that mean the same",
    sources=("jax#39576", "maxtext#878", "transformers#41966"),
    kind="dynamic",
)


def check(probed: Probed) -> Iterator[Finding]:
    """Fire for each case whose mask is not the one obeyed."""
    for case in cases():
        for name, mask in ways(probed, case):
            finding = _question(probed, case, name, mask)
            if finding is not None:
                yield finding


def _question(probed: Probed, case: ProbeCase, name: str, mask: Any) -> Finding | None:
    try:
        weights = identity_probe(probed, case, mask)
    except Exception as error:  # whatever a foreign attention raises is the finding
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:400] if str(error) else ''}"
        return RULE.finding(f"the attention fails on `{name}`", reason, "an output")
    given = np.broadcast_to(case.mask[:, None], weights.shape)
    live = np.broadcast_to(case.live[:, None, :, None], weights.shape)
    obeyed = (weights != 0) | np.isnan(weights)
    if not ((obeyed != given) & live).any():
        obeyed = np.where(live, perturbation_probe(probed, case, mask), obeyed)
    wrong = (obeyed != given) & live
    if wrong.any():
        where = places(wrong)
        row, head, query, key = np.argwhere(wrong)[0]
        seen = obeyed[row, head, query, key]
        return RULE.finding(
            f"on `{name}` it obeys {diagnose(obeyed, case) or 'another mask'}",
            "seen" if seen else "hidden",
            "hidden" if seen else "seen",
            where=where,
        )
    empty = obeyed & case.empty[:, None, :, None]
    if empty.any():
        what = "NaN" if np.isnan(weights[empty]).any() else f"weights of {weights[empty].max():.2g}"
        return RULE.finding(
            f"on `{name}` a query that sees nothing gets a mean of hidden values",
            what,
            "exact zeros, or a declared policy",
            remedy="zero such rows after the kernel, as jaxllama.attention does",
            where=places(empty.any(-1), ("row", "head", "query")),
            severity="warning",
        )
    return None


def mutant() -> Probed:
    """A causal flag, whose triangle starts at the top left."""

    def top_left(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], is_causal=True)

    return Probed("top-left", jax.jit(top_left))


def twin() -> Probed:
    """The reference backend."""
    return resolve("xla")
