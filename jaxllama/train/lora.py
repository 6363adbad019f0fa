"""LoRA: factors beside projections that stay as they are; PEFT's files in and out.

Shapes: L layers, r rank, i input features, o output features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxllama.checkpoint import Checkpoint
from jaxllama.checkpoint.lora import open_adapter, save_lora, scale_of
from jaxllama.checkpoint.names import TABLE
from jaxllama.dtypes import at_least_float32
from jaxllama.errors import InputError, join_problems
from jaxllama.sharding import ModelSharding
from jaxllama.sharding.hosts import host_array, is_first, meet
from jaxllama.sharding.rules import PARAMETERS, Names
from jaxllama.train.config import PROJECTIONS, LoraSettings
from jaxllama.train.weights import FACTOR_A, FACTOR_B, SCALE, Weights

_ENTRIES = {entry.path[2]: entry for entry in TABLE if entry.layered and len(entry.shape) == 2}


@dataclass(frozen=True)
class Adaptation:
    """A model of which factors alone are trained.

    Attributes:
        factors: what is trained: A [L, r, i] and B [L, o, r] by path, such as
            `layers.self_attn.q_proj.lora_A`.
        frozen: what is not: the model's own weights, and what scales each product of factors.
        alpha: what a product is multiplied with, before it is divided by the rank.
        rslora: whether it is divided by the root of the rank instead.
    """

    factors: Weights
    frozen: Weights
    alpha: float
    rslora: bool

    def note(self) -> str:
        """Return how much is trained."""
        trained = sum(x.size for x in self.factors.values())
        held = sum(x.nbytes for x in self.factors.values())
        whole = sum(x.size for name, x in self.frozen.items() if not name.endswith(SCALE))
        wide = sum(x.nbytes for name, x in self.frozen.items() if not name.endswith(SCALE))
        return (
            f"LoRA: {trained:,} numbers are trained beside {whole:,}; the optimiser's means take "
            f"{2 * held:,} bytes, of all weights they would take {2 * wide:,}"
        )


def adapt(
    settings: LoraSettings,
    weights: Weights,
    checkpoint: Checkpoint,
    sharding: ModelSharding | None = None,
) -> Adaptation:
    """Put factors beside a model's projections: new ones, which add nothing yet, or an adapter's.

    As in PEFT, A is uniform within 1 / sqrt(i) (He et al. 2015, arXiv 1502.01852, with a = sqrt(5)
    as in PyTorch's linear layers), and B zeros. Both have at least float32, whatever the weights.

    Args:
        settings: which, and how large.
        weights: of a stacked model.
        checkpoint: that they are of.
        sharding: where they lie.

    Raises:
        CheckpointError: the adapter cannot be read, or does not fit the model.
        InputError: the adapter is none that can be trained on here.
    """
    wide = at_least_float32(next(iter(weights.values())).dtype)
    if settings.adapter is None:
        pairs = _new(settings, weights, wide, sharding)
        alpha, rslora = settings.alpha_or_usual, settings.rslora
    else:
        pairs, alpha, rslora = _of_adapter(Path(settings.adapter), checkpoint, wide, sharding)
    factors: Weights = {}
    frozen = dict(weights)
    for kind, (a, b) in pairs.items():
        module = _module(kind)
        factors[module + FACTOR_A], factors[module + FACTOR_B] = a, b
        scale = np.full(len(a), scale_of(alpha, a.shape[1], rslora=rslora), wide)
        frozen[module + SCALE] = _laid(sharding, (), scale)
    return Adaptation(factors, frozen, alpha, rslora)


def save_factors(
    adaptation: Adaptation,
    factors: Weights,
    checkpoint: Checkpoint,
    target: Path,
    *,
    base: str,
    overwrite: bool,
) -> Path:
    """Write trained factors as PEFT's files, from the first of several processes.

    Args:
        adaptation: what the training began with.
        factors: as they are now.
        checkpoint: of the model.
        target: directory.
        base: what adapter_config.json calls the model.
        overwrite: whether an adapter there is replaced.

    Raises:
        CheckpointError: a factor is NaN or infinite, or the directory cannot be written.
    """
    pairs = {}
    for kind, entry in _ENTRIES.items():
        names = [_module(kind) + part for part in (FACTOR_A, FACTOR_B)]
        if names[0] in factors:
            pairs[entry.hf] = [host_array(factors[name]) for name in names]
    if is_first():
        save_lora(
            pairs,
            checkpoint.config,
            target,
            alpha=adaptation.alpha,
            rslora=adaptation.rslora,
            base=base,
            overwrite=overwrite,
        )
    meet("the adapter is written")
    return target


def relative_update(
    before: Weights, after: Weights, frozen: Weights, module: str
) -> Float[Array, " L"]:
    """Return how far a step moves W + scale B A, over the norm of W, without multiplying it out.

    B' A' - B A is [B' - B, B] [A'; A' - A], whose norm is that of two matrices [2 r, 2 r].

    Args:
        before: factors before the step.
        after: those after it.
        frozen: what is not trained.
        module: such as `layers.self_attn.q_proj.`, with its dot.
    """
    a, b = before[module + FACTOR_A], before[module + FACTOR_B]
    a_after, b_after = after[module + FACTOR_A], after[module + FACTOR_B]
    left = jnp.concatenate([b_after - b, b], axis=2)
    right = jnp.concatenate([a_after, a_after - a], axis=1)
    products = partial(jnp.einsum, precision="highest")
    square = (products("lor,los->lrs", left, left) * products("lri,lsi->lrs", right, right)).sum(
        (1, 2)
    )
    whole = jnp.square(frozen[module + "weight"].astype(square.dtype)).sum(axis=(1, 2))
    moved = jnp.sqrt(jnp.maximum(square, jnp.zeros_like(square)))
    return frozen[module + SCALE] * moved / jnp.sqrt(whole)


def _module(kind: str) -> str:
    return ".".join(_ENTRIES[kind].path[:-1]) + "."


Pairs = dict[str, tuple[jax.Array, jax.Array]]


def _new(
    settings: LoraSettings, weights: Weights, dtype: np.dtype, sharding: ModelSharding | None
) -> Pairs:
    key, rank, pairs = jax.random.key(settings.seed), settings.rank_or_usual, {}
    for kind in settings.targets_or_usual:
        layers, rows, columns = weights[_module(kind) + "weight"].shape
        own = jax.random.fold_in(key, PROJECTIONS.index(kind))
        most = columns**-0.5
        a = jax.random.uniform(own, (layers, rank, columns), dtype, -most, most)
        pairs[kind] = _pair(sharding, kind, np.asarray(a), np.zeros((layers, rows, rank), dtype))
    return pairs


def _of_adapter(
    path: Path, checkpoint: Checkpoint, dtype: np.dtype, sharding: ModelSharding | None
) -> tuple[Pairs, float, bool]:
    """Return an adapter's factors, its alpha, and whether it is rsLoRA's."""
    adapter, layers = open_adapter(checkpoint, path), checkpoint.config.num_hidden_layers
    names = {kind: [entry.name("hf", i) for i in range(layers)] for kind, entry in _ENTRIES.items()}
    there = {kind: [n for n in every if n in adapter.factors] for kind, every in names.items()}
    known = {name for found in there.values() for name in found}
    problems = [
        f"{name}: projections of layers are trained here, and nothing else"
        for name in (*adapter.factors, *adapter.contents.whole)
        if name not in known
    ]
    for kind, found in there.items():
        if found and len(found) < layers:
            problems.append(f"{kind}: factors of {len(found)} layers, expected all {layers}")
        if len(ranks := sorted({adapter.factors[name].rank for name in found})) > 1:
            problems.append(f"{kind}: ranks {', '.join(map(str, ranks))}, expected one in all")
    alphas = {*adapter.alphas.values()}
    if len(alphas) > 1:
        said = ", ".join(f"{alpha:g}" for alpha in sorted(alphas))
        problems.append(f"alphas {said}: expected one for all")
    if problems:
        raise InputError(join_problems(f"{path}: cannot be trained on", problems[:20]))
    pairs = {}
    for kind in (kind for kind, found in there.items() if found):
        read = zip(*(adapter.pair(name) for name in there[kind]), strict=True)
        a, b = (np.stack(part).astype(dtype) for part in read)
        pairs[kind] = _pair(sharding, kind, a, b)
    return pairs, alphas.pop(), adapter.settings.rslora


def _pair(
    sharding: ModelSharding | None, kind: str, a: np.ndarray, b: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """Lay factors out as their weight is, along what they share with it."""
    rows, columns = PARAMETERS[kind]
    return _laid(sharding, (None, None, columns), a), _laid(sharding, (None, rows, None), b)


def _laid(sharding: ModelSharding | None, names: Names, values: np.ndarray) -> jax.Array:
    if sharding is None:
        return jax.device_put(values)
    where = sharding.of(names, values.shape)
    return jax.make_array_from_callback(values.shape, where, lambda index: values[index])
