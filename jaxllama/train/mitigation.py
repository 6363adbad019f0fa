"""What is done against training that diverges, inside the model's pass and after the step.

The model stays as it is: a tap changes values on their way. Which key, which formula and whose:
docs/train.md.

Shapes: A parts of a batch, B rows, T queries, S keys, N query heads, K kv heads, H head dim,
L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt32

from jaxllama.config import LlamaConfig
from jaxllama.dtypes import checked_float
from jaxllama.errors import InputError
from jaxllama.health.figures import largest_logit
from jaxllama.layers import RMSNorm
from jaxllama.model import Llama
from jaxllama.taps import Tapper, Values, untapped
from jaxllama.train.config import MitigationSettings
from jaxllama.train.weights import QK_NORMS, Weights

# What is dropped, by the setting that says how much of it; numbered for the keys of their masks.
_SITES = {
    "attn_probs": (0, "attention_dropout"),
    "o_proj": (1, "residual_dropout"),
    "down_proj": (2, "residual_dropout"),
}
# Said, or a setting of JAX's would change the masks of a run that is gone on with.
_GENERATOR = "threefry2x32"
_KEY, _LARGEST = "mitigation.key", "mitigation.largest"
_PRODUCTS = ("layers.self_attn.q_proj.weight", "layers.self_attn.k_proj.weight")


def mitigated(
    settings: MitigationSettings,
    model: Llama,
    weights: Weights,
    *,
    key: UInt32[Array, "2"] | None = None,
    shown: Bool[Array, "B T T"] | None = None,
    tap: Tapper = untapped,
) -> Tapper:
    """Return the tap that a model is trained, or looked at, with.

    Args:
        settings: what is done.
        model: whose pass it is for.
        weights: what is trained, QK-norm's among them.
        key: of the masks of dropout, see `dropout_key`; None where nothing is to be dropped.
        shown: keys that count for a query, for QK-clip to know the largest logits.
        tap: sees the values as they were changed.

    Raises:
        InputError: an attention backend that shows no scores, where they are needed, or weights
            that QK-clip cannot scale.
    """
    if settings == MitigationSettings():
        return tap
    if (needed := settings.of_scores) and model.backend != "xla":
        raise InputError(
            f"[mitigation] {', '.join(needed)}: attention backend {model.backend!r} shows no "
            "scores; use xla"
        )
    layers = model.config.num_hidden_layers
    layered: dict[str, Array] = {n: weights[n] for n in QK_NORMS.values() if n in weights}
    if key is not None and settings.drops:
        layered[_KEY] = jax.vmap(_folded, in_axes=(None, 0))(key, jnp.arange(layers))
    if settings.qk_clip is None:
        shown = None
    elif shown is not None and not {*_PRODUCTS} <= weights.keys():
        raise InputError(
            f"[mitigation] qk_clip scales {' and '.join(_PRODUCTS)}, which are not among the "
            f"weights trained here (form {model.form}); train them, stacked"
        )
    return Mitigated(settings, tap, layered, model.config.rms_norm_eps, shown)


class Mitigated(Tapper):
    """Changes values on their way, and hands them to another tap; see `mitigated`.

    Args:
        settings: what is done.
        tap: sees the values as they were changed.
        layered: keys and norms' weights, of all layers; in a layer, its own.
        eps: of the norms.
        shown: as for `mitigated`.

    Attributes:
        largest: logits of each head [L N], once the layers have run; None if not asked for.
    """

    def __init__(
        self,
        settings: MitigationSettings,
        tap: Tapper,
        layered: Mapping[str, Array],
        eps: float,
        shown: Bool[Array, "B T T"] | None,
    ) -> None:
        self._settings, self._tap, self._layered = settings, tap, dict(layered)
        self._eps, self._shown = eps, shown
        self._seen: Values = {}
        self.watched = tap.watched or bool(settings.of_scores)
        self.largest: Float[Array, "L N"] | None = None

    def __call__(self, name: str, value: Array) -> Array:
        return self._tap(name, self._changed(name, value))

    def _changed(self, name: str, value: Array) -> Array:
        if name in QK_NORMS and (weight := self._layered.get(QK_NORMS[name])) is not None:
            return normed(value, weight, self._eps)
        if name == "attn_scores":
            if self._shown is not None:  # before a cap, which would hide what is to be clipped
                self._seen[_LARGEST] = jnp.nanmax(largest_logit(value, self._shown), axis=0)
            return capped(value, self._settings.score_cap)
        if name == "logits":
            return capped(value, self._settings.logit_cap)
        if name in _SITES and _KEY in self._layered:
            number, setting = _SITES[name]
            share = getattr(self._settings, setting)
            return dropped(value, _folded(self._layered[_KEY], number), share) if share else value
        return value

    def inner(self, forced: Mapping[str, Array]) -> Tapper:
        own = {name: forced[name] for name in self._layered}
        rest = {name: value for name, value in forced.items() if name not in own}
        return Mitigated(self._settings, self._tap.inner(rest), own, self._eps, self._shown)

    def forced_layers(self) -> dict[str, Array]:
        return self._tap.forced_layers() | self._layered

    def recorded(self) -> Values:
        return self._tap.recorded() | self._seen

    def add_layers(self, stacked: Values) -> None:
        self.largest = stacked.get(_LARGEST)
        self._tap.add_layers({n: value for n, value in stacked.items() if n != _LARGEST})

    def add_layer(self, index: int, values: Values) -> None:
        self._tap.add_layer(index, values)  # no largest logits: QK-clip needs stacked layers


def dropout_key(
    settings: MitigationSettings, step: Int[Array, ""] | int, part: Int[Array, ""] | int
) -> UInt32[Array, "2"]:
    """Return the key of all masks of one part of a step's batch: of no state but these numbers.

    A layer's key is folded from it by the layer's number, that of `attn_probs`, `o_proj` and
    `down_proj` from the layer's by 0, 1 and 2.

    Args:
        settings: has the seed.
        step: how many steps were made before.
        part: of the batch, from 0.
    """
    seed = jax.random.key_data(jax.random.key(settings.seed, impl=_GENERATOR))
    return _folded(_folded(seed, step), part)


def _folded(key: UInt32[Array, "2"], number: Int[Array, ""] | int) -> UInt32[Array, "2"]:
    wrapped = jax.random.wrap_key_data(key, impl=_GENERATOR)
    return jax.random.key_data(jax.random.fold_in(wrapped, number))


def dropped(
    value: Float[Array, "..."], key: UInt32[Array, "2"], share: float
) -> Float[Array, "..."]:
    """Return values of which a share is zero, the rest scaled up to the same mean.

    Whole numbers are drawn and not fractions, so that the mask is one and the same whatever the
    dtype, and on any mesh.

    Source: Srivastava et al. 2014 (JMLR 15).
    """
    drawn = jax.random.bits(jax.random.wrap_key_data(key, impl=_GENERATOR), value.shape, jnp.uint32)
    kept = drawn >= jnp.uint32(round(share * 2**32))
    return jnp.where(kept, value / jnp.asarray(1 - share, value.dtype), jnp.zeros_like(value))


def normed(
    heads: Float[Array, "B T N H"], weight: Float[Array, " H"], eps: float
) -> Float[Array, "B T N H"]:
    """Return each head of each token over its root mean square, by one weight for all heads.

    Source: Henry et al. 2020 (arXiv 2010.04245); in this form Qwen3 (arXiv 2505.09388).
    """
    norm = RMSNorm(len(weight), eps, param_dtype=weight.dtype)
    norm.weight[...] = weight
    return jax.vmap(norm, in_axes=2, out_axes=2)(heads)


def capped(value: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """Return what grows like `value` near 0 and never beyond the cap.

    Source: Gemma 2 2024 (arXiv 2408.00118), section 2.
    """
    if cap is None:
        return value
    limit = jnp.asarray(cap, value.dtype)
    return limit * jnp.tanh(value / limit)


def clip_factors(
    settings: MitigationSettings, config: LlamaConfig, largest: Float[Array, "L N"] | None
) -> Weights:
    """Return what QK-clip multiplies weights by after the step: rows of the heads beyond it.

    A head whose largest logit is m > tau gets tau / m on its logits: half of it, as a root, from
    the queries' weights and half from the keys'. Where a kv head serves several query heads the
    keys' are left alone, or heads that need no clipping would be clipped too, and the queries'
    take all of it; as Kimi K2 does with the rotary keys that all of its heads share.

    Source: Kimi K2 2025 (arXiv 2507.20534), algorithm 1.
    """
    if settings.qk_clip is None or largest is None:
        return {}
    tau = jnp.asarray(settings.qk_clip, largest.dtype)
    # A head that saw nothing has NaN, which is not above.
    whole = jnp.where(largest > tau, tau / largest, jnp.ones_like(largest))
    shared = config.num_key_value_heads < config.num_attention_heads
    factors = (whole,) if shared else (jnp.sqrt(whole),) * 2
    return {
        name: jnp.repeat(factor, config.head_dim, axis=1)[:, :, None]
        for name, factor in zip(_PRODUCTS, factors, strict=False)
    }


def added_weights(
    settings: MitigationSettings, config: LlamaConfig, dtype: DTypeLike
) -> dict[str, Shaped[np.ndarray, "L H"]]:
    """Return the weights that training adds to the model's own, as they begin."""
    shape = config.num_hidden_layers, config.head_dim
    named: Any = QK_NORMS.values() if settings.qk_norm else ()
    return {name: np.ones(shape, checked_float(dtype)) for name in named}
