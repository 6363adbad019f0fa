"""N01: NaN in a hidden slot reaches the output."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.lint.attentions import resolve
from parity.lint.findings import Finding, places
from parity.lint.probe_cases import Probed, cases
from parity.lint.probes import run
from parity.lint.rule import CannotCheck, Rule

RULE = Rule(
    id="N01",
    name="NaN in hidden values reaches the output",
    severity="warning",
    checks=(
        "Outputs when K and V are NaN in slots that no query sees, against outputs when they are"
        " not; not for attentions whose caller promises finite slots."
    ),
    why=(
        "A weight of exactly 0 times NaN is NaN, so memory that was never written poisons every"
        " row, though the mask hides it."
    ),
    example="cache = jnp.empty(shape)  # and a mask for the slots not yet written",
    remedy="fill unwritten slots with finite numbers, as KVCache does, or zero hidden values",
    sources=("pytorch#101967",),
    kind="dynamic",
)


def check(probed: Probed) -> Iterator[Finding]:
    """Fire where a hidden NaN changes a visible row."""
    if probed.finite_only:
        raise CannotCheck("its caller promises finite values (unwritten cache slots hold zeros)")
    for case in cases():
        unseen = ~np.asarray(case.mask.any(1))  # [B, S]
        poison = np.where(unseen[:, :, None, None], np.float32(np.nan), np.float32(0))
        try:
            before = run(probed, case.q, case.k, case.v, case.mask)
            after = run(probed, case.q, case.k + poison, case.v + poison, case.mask)
        except Exception as error:  # K01 reports attentions that fail
            raise CannotCheck(f"it fails: {type(error).__name__}") from error
        wrong = (before != after).any(-1) & case.live[:, :, None]
        if wrong.any():
            yield RULE.finding(
                f"on `{case.name}` NaN in slots that nothing sees reaches the output",
                "NaN" if np.isnan(after[wrong]).any() else "another output",
                "no change",
                where=places(wrong, ("row", "query", "head")),
            )
            return


def mutant() -> Probed:
    """The plain function: 0 times NaN is NaN."""
    return resolve("jax")


def twin() -> Probed:
    """The same, with hidden keys and values set to zero first."""

    def zeroed(q: Any, k: Any, v: Any, mask: Any) -> Any:
        seen = mask.any(1)[:, :, None, None]
        k, v = (jnp.where(seen, a, jnp.zeros_like(a)) for a in (k, v))
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])

    return Probed("zeroed", jax.jit(zeroed))
