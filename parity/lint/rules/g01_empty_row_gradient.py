"""G01: NaN gradients from a row that sees nothing."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.lint.attentions import resolve
from parity.lint.findings import Finding, places
from parity.lint.probe_cases import Probed, cases
from parity.lint.probes import gradients
from parity.lint.rule import CannotCheck, Rule

RULE = Rule(
    id="G01",
    name="NaN gradient of an empty row",
    severity="error",
    checks="Gradients by q, k and v of a batch with a row that sees nothing: they must be finite.",
    why=(
        "A softmax over -inf alone is NaN. A `where` around it hides that in the output, not in the"
        " gradient, where 0 times NaN is NaN again: one padding row and the whole step is lost."
    ),
    example="jnp.where(live, jax.nn.softmax(scores + bias), 0)  # bias -inf in a whole row",
    remedy="select before the softmax with a finite fill: where(seen, scores, finfo.min)",
    sources=("pytorch#41508",),
    kind="dynamic",
)


def check(probed: Probed) -> Iterator[Finding]:
    """Fire where a gradient is not finite."""
    case = cases()[-1]
    try:
        found = gradients(probed, case)
    except Exception as error:  # foreign code may be no JAX at all
        name = type(error.__cause__ or error).__name__
        raise CannotCheck(f"JAX cannot differentiate it: {name}") from error
    for name, gradient in found.items():
        wrong = ~np.isfinite(gradient.astype(np.float64))
        if wrong.any():
            axes = ("row", "query" if name == "q" else "key", "head")
            yield RULE.finding(
                f"the gradient by {name} is not finite where a row sees nothing",
                "NaN" if np.isnan(gradient.astype(np.float64)).any() else "infinity",
                "finite numbers",
                where=places(np.asarray(wrong.any(-1)), axes),
            )


def mutant() -> Probed:
    """An additive -inf, with a `where` around the softmax."""

    def additive(q: Any, k: Any, v: Any, mask: Any) -> Any:
        k, v = (jnp.repeat(a, q.shape[2] // a.shape[2], axis=2) for a in (k, v))
        scores = jnp.einsum("btnh,bsnh->bnts", q, k) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(scores + jnp.where(mask, 0.0, -jnp.inf)[:, None], axis=-1)
        weights = jnp.where(mask.any(-1)[:, None, :, None], weights, 0.0)
        return jnp.einsum("bnts,bsnh->btnh", weights, v)

    return Probed("additive -inf", jax.jit(additive))


def twin() -> Probed:
    """The reference backend."""
    return resolve("xla")
