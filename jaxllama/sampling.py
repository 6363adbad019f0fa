"""From logits to a token: repetition penalty, temperature, top-k, top-p, min-p, in that order.

The order and the meaning of every setting are those of transformers, so that settings carry over.
One thing is stricter: where equal logits straddle the edge of top-k or top-p, the lower token id
stays, so top-k keeps exactly k tokens and top-p the smallest set there is.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxllama.errors import InputError, argument, join_problems


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. The default is greedy: the most likely token, every time.

    Args:
        temperature: divides the logits; 0 is greedy, 1 samples from the model's own distribution.
        top_k: keep the k most likely tokens; None keeps all.
        top_p: keep the smallest set of most likely tokens that holds this much probability, in
            (0, 1]; 1 keeps all.
        min_p: keep tokens at least this fraction as likely as the most likely one, in [0, 1);
            0 keeps all.
        repetition_penalty: makes tokens of the prompt and of the text so far less likely above
            1, more likely below; 1 leaves them alone. Works with greedy too.

    Raises:
        InputError: a value out of its range, or a filter beside greedy, which would ignore it.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        problems = [
            f"{argument(name, value)}: expected {expected}"
            for name, value, good, expected in self._ranges()
            if not good
        ]
        ignored = [n for n in ("top_k", "top_p", "min_p") if getattr(self, n) != _default(n)]
        if not problems and self.greedy and ignored:
            named = ", ".join(map(argument, ignored))
            problems.append(
                f"{named} would change nothing, since temperature 0 always takes the "
                "most likely token; give a temperature above 0, such as 1.0, or leave them out"
            )
        if problems:
            raise InputError(join_problems("sampling", problems))

    def _ranges(self) -> list[tuple[str, Any, bool, str]]:
        t, k, p, m, r = dataclasses.astuple(self)
        above = f"a finite number from {LEAST:g} on"
        return [
            ("temperature", t, _real(t) and (t == 0 or t >= LEAST), f"0 (greedy) or {above}"),
            (
                "top_k",
                k,
                k is None or _whole(k) and k >= 1,
                "an integer of at least 1, or none (keeps all)",
            ),
            ("top_p", p, _real(p) and LEAST <= p <= 1, f"from {LEAST:g} up to 1 (keeps all)"),
            ("min_p", m, _real(m) and 0 <= m < 1, "a number from 0 (keeps all) to below 1"),
            ("repetition_penalty", r, _real(r) and r >= LEAST, f"{above} (1: none)"),
        ]

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0

    @property
    def penalises(self) -> bool:
        """Whether tokens seen so far must be kept account of."""
        return self.repetition_penalty != 1

    @property
    def active(self) -> frozenset[str]:
        """Names of the settings that do something.

        They alone decide the compiled program: their values are arguments of it, so trying other
        values compiles nothing anew.
        """
        names = [f.name for f in dataclasses.fields(self)]
        return frozenset(n for n in names if getattr(self, n) != _default(n))

    def values(self) -> dict[str, Float[Array, ""] | Int[Array, ""]]:
        """Return the active settings' values as arrays."""
        real = jnp.result_type(float)  # float64 where that is enabled
        return {
            name: jax.device_put(np.int32(min(value, MOST_KEPT)))
            if name == "top_k"
            else jax.device_put(np.asarray(value, real))
            for name in sorted(self.active)
            if (value := getattr(self, name)) is not None
        }


# Below this a float32 divisor loses digits, then becomes 0, and what was asked for its opposite.
LEAST = 1e-12
# No vocabulary is larger; what is kept is counted in int32.
MOST_KEPT = 2**31 - 1


def _default(name: str) -> Any:
    return Sampling.__dataclass_fields__[name].default


def _real(value: object) -> bool:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return good and math.isfinite(value)  # type: ignore[arg-type]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


GREEDY = Sampling()


def choose(
    logits: Float[Array, "B V"],
    keys: Key[Array, " B"],
    values: dict[str, Array],
    seen: Bool[Array, "B V"] | None = None,
) -> Int[Array, " B"]:
    """Return each row's next token.

    A row's draw depends on its own key and logits alone, never on its neighbours.

    Args:
        logits: the model's, unchanged.
        keys: one random key per row; not used when greedy.
        values: `Sampling.values()`; what is not in it is off, and no temperature means greedy.
        seen: True for the tokens that a repetition penalty applies to.
    """
    if "repetition_penalty" in values:
        assert seen is not None
        logits = penalise(logits, seen, values["repetition_penalty"])
    if "temperature" not in values:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept = filter_logits(logits / values["temperature"].astype(logits.dtype), values)
    return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)


def filter_logits(logits: Float[Array, "B V"], values: dict[str, Array]) -> Float[Array, "B V"]:
    """Return logits with -inf for what top-k, then top-p, then min-p cut away.

    Each filter judges what the ones before it have left.
    """
    if "top_k" in values or "top_p" in values:
        order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
        if "top_k" in values:
            logits = top_k(logits, order, values["top_k"])
        if "top_p" in values:
            # Cutting the lowest logits has left the order of the others as it was.
            logits = top_p(logits, order, values["top_p"])
    if "min_p" in values:
        logits = min_p(logits, values["min_p"])
    return logits


def penalise(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float[Array, ""]
) -> Float[Array, "B V"]:
    """Divide the positive logits of seen tokens by `penalty`, multiply the negative ones.

    Source: Keskar et al. 2019 (CTRL, arXiv 1909.05858), section 4.1; the treatment of negative
    logits, where dividing would reward, is that of transformers.
    """
    penalty = penalty.astype(logits.dtype)
    penalised = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(seen, penalised, logits)


def top_k(
    logits: Float[Array, "B V"], order: Int[Array, "B V"], k: Int[Array, ""]
) -> Float[Array, "B V"]:
    """Keep the k highest logits, all if there are no more than k.

    Source: Fan, Lewis and Dauphin 2018 (arXiv 1805.04833), section 5.
    """
    last = jnp.minimum(k, logits.shape[-1]) - 1
    return _keep_to_rank(logits, order, jnp.broadcast_to(last, logits.shape[:1]))


def top_p(
    logits: Float[Array, "B V"], order: Int[Array, "B V"], p: Float[Array, ""]
) -> Float[Array, "B V"]:
    """Keep the fewest most likely tokens whose probabilities sum to at least p.

    A token stays while those before it fall short of p, so the one that reaches p stays too and
    the most likely token always does.

    Source: Holtzman et al. 2020 (arXiv 1904.09751), equation 2.
    """
    probs = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    # Shifted, not cumsum - probs: subtracting would round, and move the edge.
    before = jnp.pad(jnp.cumsum(probs, axis=-1)[:, :-1], ((0, 0), (1, 0)))
    last = (before < p.astype(probs.dtype)).sum(axis=-1) - 1
    return _keep_to_rank(logits, order, last)


def min_p(logits: Float[Array, "B V"], p: Float[Array, ""]) -> Float[Array, "B V"]:
    """Keep tokens whose probability is at least p times the highest one.

    Source: Nguyen et al. 2024 (arXiv 2407.01082), section 3; the normaliser cancels, so the
    logits are compared directly.
    """
    floor = logits.max(axis=-1, keepdims=True) + jnp.log(p.astype(logits.dtype))
    return jnp.where(logits >= floor, logits, -jnp.inf)


def _keep_to_rank(
    logits: Float[Array, "B V"], order: Int[Array, "B V"], last: Int[Array, " B"]
) -> Float[Array, "B V"]:
    """Keep the tokens of ranks 0 to `last`, without a scatter.

    The order is stable, so equal logits rank by token id: comparing (logit, id) with the last
    kept pair decides membership.
    """
    edge_id = jnp.take_along_axis(order, last[:, None], axis=-1)
    edge = jnp.take_along_axis(logits, edge_id, axis=-1)
    ids = jnp.arange(logits.shape[-1], dtype=order.dtype)[None, :]
    return jnp.where((logits > edge) | (logits == edge) & (ids <= edge_id), logits, -jnp.inf)
