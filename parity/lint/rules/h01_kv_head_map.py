"""H01: query heads that use the wrong kv head."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from parity.lint.attentions import resolve
from parity.lint.findings import Finding, Place
from parity.lint.probe_cases import Probed, cases
from parity.lint.probes import head_map
from parity.lint.rule import CannotCheck, Rule

RULE = Rule(
    id="H01",
    name="wrong kv head",
    severity="error",
    checks=(
        "Which query heads move when one kv head is changed: head n must move with kv head"
        " n // G alone, G query heads to each."
    ),
    why=(
        "Tiling kv heads where they should be repeated has the right shape and pairs most query"
        " heads with keys they were not trained on."
    ),
    example="k = jnp.tile(k, (1, 1, G, 1))  # head n gets kv head n % K",
    remedy="repeat each kv head G times in a row: jnp.repeat(k, G, axis=2)",
    sources=("axlearn#842",),
    kind="dynamic",
)


def check(probed: Probed) -> Iterator[Finding]:
    """Fire where the head map is not n // G."""
    case = cases()[0]
    try:
        used = head_map(probed, case)
    except Exception as error:  # K01 reports attentions that fail
        raise CannotCheck(f"it fails: {type(error).__name__}") from error
    group = case.q.shape[2] // case.k.shape[2]
    wrong = [head for head, kv_heads in enumerate(used) if kv_heads != [head // group]]
    if wrong:
        found = used[wrong[0]]
        yield RULE.finding(
            "a query head uses another kv head",
            f"kv head {', '.join(map(str, found))}" if found else "no kv head",
            f"kv head {wrong[0] // group} = {wrong[0]} // {group}",
            where=(Place(head=wrong[0]), len(wrong)),
        )


def mutant() -> Probed:
    """Tiled kv heads."""

    def tiled(q: Any, k: Any, v: Any, mask: Any) -> Any:
        k, v = (jnp.tile(a, (1, 1, q.shape[2] // a.shape[2], 1)) for a in (k, v))
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])

    return Probed("tiled", jax.jit(tiled))


def twin() -> Probed:
    """The reference backend."""
    return resolve("xla")
