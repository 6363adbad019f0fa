"""Llama 3, top-down: attention, MLP, decoder layer, model.

Shapes, here and throughout: B batch, T query tokens, S key slots, N query heads, K kv heads,
H head dim, D model dim, F mlp dim, V vocabulary, L layers.

Attributes carry the names of Hugging Face checkpoints and weights their orientation [out, in],
so that loading is a stack over layers and nothing else. Arithmetic happens in `dtype`; norms,
rotations, softmax and logits in at least float32 - and in float64 when that is the dtype.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxllama.attention import Backend, attend, check_backend, fastest_backend
from jaxllama.cache import KVCache
from jaxllama.concrete import host_values
from jaxllama.config import LlamaConfig
from jaxllama.dtypes import at_least_float32, checked_float
from jaxllama.errors import InputError, join_problems
from jaxllama.forms import Form, checked_form
from jaxllama.layers import Embedding, FusedLinear, Linear, RMSNorm
from jaxllama.layers.linear import product
from jaxllama.masks import BoundMask
from jaxllama.rope import apply_rope, inv_freq, rope_cos_sin
from jaxllama.sharding import MeshLike, ModelSharding, gathered, placed
from jaxllama.taps import Tapper, Values, untapped

if TYPE_CHECKING:
    from jaxllama.checkpoint import Checkpoint, Conversion
    from jaxllama.generate import Generation, Prompts
    from jaxllama.sampling import Sampling


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: LlamaConfig, *, fused: bool, param_dtype: DTypeLike, rngs: nnx.Rngs):
        D, H = config.hidden_size, config.head_dim
        N, K = config.num_attention_heads, config.num_key_value_heads
        if fused:
            sizes = (N * H, K * H, K * H)
            self.qkv_proj = FusedLinear(D, sizes, param_dtype=param_dtype, rngs=rngs)
        else:
            self.q_proj = Linear(D, N * H, param_dtype=param_dtype, rngs=rngs)
            self.k_proj = Linear(D, K * H, param_dtype=param_dtype, rngs=rngs)
            self.v_proj = Linear(D, K * H, param_dtype=param_dtype, rngs=rngs)
        self.o_proj = Linear(N * H, D, param_dtype=param_dtype, rngs=rngs)
        self.head_dim, self.fused = H, fused

    def _projected(self, x: Float[Array, "B T D"]) -> Sequence[Float[Array, "B T _"]]:
        """Return queries, keys and values, all heads of each side by side."""
        if self.fused:
            return self.qkv_proj(x)
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos_sin: tuple[Array, Array],
        mask: Bool[Array, "B T S"] | BoundMask,
        cache: KVCache | None,
        index: Int[Array, ""] | int,
        backend: Backend,
        tap: Tapper,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        B, T, _ = x.shape
        q, k, v = (heads.reshape(B, T, -1, self.head_dim) for heads in self._projected(x))
        q, k, v = tap("q_proj", q), tap("k_proj", k), tap("v_proj", v)
        q = tap("q_rope", apply_rope(q, *cos_sin))
        k = tap("k_rope", apply_rope(k, *cos_sin))
        if cache is not None:
            cache = cache.write(index, k, v)
            k, v = cache.of_layer(index)
            k, v = tap("cache.k", k).astype(q.dtype), tap("cache.v", v).astype(q.dtype)
        scale = self.head_dim**-0.5
        context = attend(q, k, v, mask, scale=scale, backend=backend, tap=tap)
        return tap("o_proj", self.o_proj(context.reshape(B, T, -1))), cache


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Source: Shazeer 2020 (arXiv 2002.05202)."""

    def __init__(self, config: LlamaConfig, *, fused: bool, param_dtype: DTypeLike, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        if fused:
            self.gate_up_proj = FusedLinear(D, (F, F), param_dtype=param_dtype, rngs=rngs)
        else:
            self.gate_proj = Linear(D, F, param_dtype=param_dtype, rngs=rngs)
            self.up_proj = Linear(D, F, param_dtype=param_dtype, rngs=rngs)
        self.down_proj = Linear(F, D, param_dtype=param_dtype, rngs=rngs)
        self.fused = fused

    def __call__(self, x: Float[Array, "B T D"], tap: Tapper) -> Float[Array, "B T D"]:
        gate, up = self.gate_up_proj(x) if self.fused else (self.gate_proj(x), self.up_proj(x))
        gate, up = tap("gate_proj", gate), tap("up_proj", up)
        # In bfloat16 x * sigmoid(x) would round twice where PyTorch's silu rounds once.
        wide = gate.astype(at_least_float32(x.dtype))
        hidden = tap("mlp_act", jax.nn.silu(wide).astype(x.dtype) * up)
        return tap("down_proj", self.down_proj(hidden))


class DecoderLayer(nnx.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(
        self, config: LlamaConfig, *, fused: bool = False, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        D, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(D, eps, param_dtype=param_dtype)
        self.self_attn = Attention(config, fused=fused, param_dtype=param_dtype, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(D, eps, param_dtype=param_dtype)
        self.mlp = MLP(config, fused=fused, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        cos_sin: tuple[Array, Array],
        mask: Bool[Array, "B T S"] | BoundMask,
        cache: KVCache | None = None,
        index: Int[Array, ""] | int = 0,
        backend: Backend = "xla",
        tap: Tapper = untapped,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        x = tap("input", x)
        normed = tap("input_layernorm", self.input_layernorm(x))
        attended, cache = self.self_attn(normed, cos_sin, mask, cache, index, backend, tap)
        x = tap("post_attention", x + attended)
        normed = tap("post_attention_layernorm", self.post_attention_layernorm(x))
        return tap("output", x + self.mlp(normed, tap)), cache


class Llama(nnx.Module):
    """A Llama 3 text model.

    `layers` is one `DecoderLayer` whose weights carry a leading layer axis, or a list of them,
    by the model's form (`jaxllama.forms`); `layer(i)` gives one in any. `quant` says how weights
    were rounded when it was loaded (`jaxllama.quantisation`), None if they were not. With `remat`
    set, a backward pass computes each stacked layer again and keeps its input alone.

    Args:
        config: the checkpoint's numbers.
        dtype: of activations and of the arithmetic.
        param_dtype: of the stored weights; `dtype` if not given.
        backend: the attention implementation, see `jaxllama.attention`.
        form: how layers are held; stacked has one array for each of a checkpoint's names.
        sharding: where parameters and activations lie on a mesh of devices.
        rngs: source of random weights. `load_model` fills in a checkpoint's instead.

    Raises:
        InputError: a dtype that is no float or that JAX is not set to, no such form, or a backend
            that cannot serve it on this machine.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike | None = None,
        backend: Backend = "xla",
        form: Form = "stacked",
        sharding: ModelSharding | None = None,
        rngs: nnx.Rngs,
    ):
        self.dtype = checked_float(dtype)
        param_dtype = checked_float(dtype if param_dtype is None else param_dtype, "param_dtype")
        check_backend(backend, self.dtype, config.head_dim, on_mesh=sharding is not None)
        V, D = config.vocab_size, config.hidden_size
        self.config = config
        self.backend: Backend = backend
        self.sharding = sharding
        self.quant: str | None = None
        self.remat = False
        self.form = checked_form(form, config)
        self.embed_tokens = Embedding(V, D, param_dtype=param_dtype, rngs=rngs)

        def layer(rngs: nnx.Rngs) -> DecoderLayer:
            fused = self.form == "fused"
            return DecoderLayer(config, fused=fused, param_dtype=param_dtype, rngs=rngs)

        self.layers: DecoderLayer | nnx.List[DecoderLayer]
        if self.form == "stacked":
            split = nnx.split_rngs(splits=config.num_hidden_layers)
            self.layers = split(nnx.vmap(layer, in_axes=0, out_axes=0))(rngs)
        else:
            self.layers = nnx.List([layer(rngs) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(D, config.rms_norm_eps, param_dtype=param_dtype)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(D, V, param_dtype=param_dtype, rngs=rngs)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path | Checkpoint,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike | None = None,
        backend: Backend = "xla",
        form: Form | None = None,
        quant: str | None = None,
        mesh: MeshLike | None = None,
    ) -> Llama:
        """Load a checkpoint of any format known to `jaxllama.checkpoint`.

        Args:
            checkpoint: opened, or what `open_checkpoint` takes.
            dtype: of activations and arithmetic.
            param_dtype: of the weights; `dtype` if not given.
            backend: the attention implementation, see `jaxllama.attention`.
            form: how layers are held, see `jaxllama.forms`; the fastest here if not given. Give
                `stacked` to train, or to change parameters by their names.
            quant: `int8`, `int4` or `int4:GROUP`: weights of products rounded to so many bits,
                see `jaxllama.quantisation`.
            mesh: devices to lay it out on, `tensor=4,data=2` or a mesh of JAX's with axes of these
                names, see `jaxllama.sharding`. Of safetensors and Orbax each device's parts are
                read, and nothing else.

        Raises:
            CheckpointError: it cannot be read, or its tensors contradict its configuration.
            InputError: a dtype, backend, form, quantisation or mesh that cannot be had here.
        """
        from jaxllama.checkpoint import load_model, open_checkpoint

        opened = open_checkpoint(checkpoint)
        check_backend(
            backend, checked_float(dtype), opened.config.head_dim, on_mesh=mesh is not None
        )
        form = checked_form(form, opened.config, mesh is not None)
        model = load_model(
            opened, dtype=dtype, param_dtype=param_dtype, form=form, quant=quant, mesh=mesh
        )
        model.backend = backend
        return model

    def save_pretrained(
        self,
        target: str | os.PathLike[str],
        *,
        format: str = "hf",
        dtype: DTypeLike | None = None,
        shards: int | None = None,
        tokenizer: str | os.PathLike[str] | Checkpoint | None = None,
        overwrite: bool = False,
    ) -> Conversion:
        """Write the model as a checkpoint, whole or not at all; see `jaxllama.convert`.

        Tokenizer, chat template and generation settings are those it was loaded with. A model that
        was split and merged has forgotten them. On devices of several hosts it is written as Orbax,
        by all of them, and nothing is replaced.

        Args:
            target: directory to write; for GGUF also a file whose name ends in `.gguf`.
            format: `hf`, `meta`, `orbax` or `gguf`.
            dtype: of the weights as written; each parameter's own if not given.
            shards: number of weights files (hf), or model-parallel degree (meta).
            tokenizer: a checkpoint whose tokenizer, template and settings are written beside it.
            overwrite: whether a checkpoint at the target is replaced; nothing else is.

        Raises:
            CheckpointError: a weight is NaN or infinite, or the target exists or cannot be written.
            ConfigError, InputError: the format cannot express the model, no such option, or the
                model is being traced.
        """
        from jaxllama import checkpoint

        carried = None if tokenizer is None else checkpoint.open_checkpoint(tokenizer)
        made = checkpoint.from_model(self, tokenizer=carried)
        if format == "orbax" and jax.process_count() > 1:
            if overwrite or shards is not None:
                raise InputError(
                    "overwrite and shards: several hosts write a new directory, each its own part; "
                    "leave both out"
                )
            return checkpoint.save_from_hosts(self, Path(target), made, dtype)
        return checkpoint.convert(
            made, target, to=format, dtype=dtype, shards=shards, overwrite=overwrite
        )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T S"] | BoundMask,
        cache: KVCache | None = None,
        tap: Tapper = untapped,
    ) -> tuple[Float[Array, "B T V"], KVCache | None]:
        """Run the model on tokens, and on what a cache remembers.

        Args:
            tokens: token ids.
            positions: rotary positions in tokens; a left-padded row counts from its first real
                token.
            mask: what each token may see, S = T without a cache and its capacity with one.
            cache: extended for these tokens by `KVCache.extend`.
            tap: see `jaxllama.taps`.

        Returns:
            Logits in at least float32, and the filled cache (None if none was given), ready to be
            extended for the next call.

        Raises:
            InputError: shapes that do not fit together, or a token id outside the vocabulary
                (inside `jit`, where nothing can be raised, its row's logits are NaN).
        """
        x, cache = self.hidden(tokens, positions=positions, mask=mask, cache=cache, tap=tap)
        return self.head(x, tap=tap), cache

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T S"] | BoundMask,
        cache: KVCache | None = None,
        tap: Tapper = untapped,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Return the residual stream after the last layer, which `head` turns into logits.

        Generation wants the logits of one token per row: those of a whole prompt of 8192 tokens
        would take 4 GB a row with Llama 3's vocabulary. Arguments and errors as for a call.
        """
        self._check(tokens, positions, cache)
        tap = placed(tap, self.sharding)
        x, cos_sin, mask = self.embed(tokens, positions, mask, tap=tap)
        as_asked = self.sharding is not None or tap.watched
        backend = self.backend
        if not as_asked:
            backend = fastest_backend(backend, mask, x, self.config.head_dim)

        def run(
            layer: DecoderLayer, index: Array | int, x: Array, cache: KVCache | None, forced: Values
        ) -> tuple[tuple[Array, KVCache | None], Values]:
            layer_tap, layer = tap.inner(forced), gathered(layer, self.sharding)
            out = layer(x, cos_sin, mask, cache, index, backend, layer_tap)
            return out, layer_tap.recorded()

        forced = tap.forced_layers()
        if isinstance(self.layers, DecoderLayer):
            cache = None if cache is None else cache.stacked()
            graph, weights = nnx.split(self.layers)

            def scanned(carry: tuple[Array, KVCache | None], at: Any) -> Any:
                return run(nnx.merge(graph, at[0]), at[1], *carry, at[2])

            (x, cache), stacked = jax.lax.scan(
                jax.checkpoint(scanned, prevent_cse=False) if self.remat else scanned,
                (x, cache),
                (weights, jnp.arange(self.config.num_hidden_layers), forced),
            )
            tap.add_layers(stacked)
        else:
            for index, layer in enumerate(self.layers):
                own = {name: value[index] for name, value in forced.items()}
                (x, cache), values = run(layer, index, x, cache, own)
                tap.add_layer(index, values)
        return x, None if cache is None else cache.settle().on_mesh(self.sharding)

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        eos_ids: Sequence[int] | None = None,
        seed: int | Sequence[int] = 0,
        cache: KVCache | None = None,
        cache_dtype: DTypeLike | None = None,
    ) -> Generation:
        """Continue each prompt of token ids, greedily by default; see `jaxllama.generate`."""
        from jaxllama.generate import generate

        return generate(
            self,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            eos_ids=eos_ids,
            seed=seed,
            cache=cache,
            cache_dtype=cache_dtype,
        )

    def _check(self, tokens: Array, positions: Array, cache: KVCache | None) -> None:
        problems = []
        if tokens.shape != positions.shape:
            problems.append(f"tokens {tokens.shape}, positions {positions.shape}: both are (B, T)")
        if (ids := host_values(tokens)) and ids[0].size:
            low, high, last = ids[0].min(), ids[0].max(), self.config.vocab_size - 1
            if low < 0 or high > last:
                problems.append(
                    f"token ids {low} to {high}: the vocabulary is 0 to {last}; use the "
                    "checkpoint's own tokenizer"
                )
        if problems:
            raise InputError(join_problems("model inputs", problems))
        if cache is not None:
            cache.check_fits(self.config, tokens.shape)

    def embed(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T S"] | BoundMask,
        *,
        tap: Tapper = untapped,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array], Bool[Array, "B T S"] | BoundMask]:
        """Return what the first layer needs: embeddings, cos and sin of the positions, the mask."""
        wide = at_least_float32(self.dtype)
        tap = placed(tap, self.sharding)
        frequencies = tap("rope.inv_freq", jnp.asarray(inv_freq(self.config), wide))
        positions = tap("positions", positions)
        if tap.watched:
            dense = mask.to_bool() if isinstance(mask, BoundMask) else mask
            # Recording must not change what runs: only a forced mask takes the bound one's place.
            if (seen := tap("mask", dense)) is not dense:
                mask = seen
        table = gathered(self.embed_tokens, self.sharding, "embed_tokens")
        x = tap("embed", table(tokens, self.dtype))
        return x, rope_cos_sin(frequencies, positions, self.dtype), mask

    def layer(self, index: Int[Array, ""] | int) -> DecoderLayer:
        """Return layer `index` (from 0) as a module of its own.

        Raises:
            InputError: no such layer: indexing an array past its end would give the last one.
        """
        last = self.config.num_hidden_layers - 1
        if (known := host_values(index)) and not 0 <= known[0] <= last:
            raise InputError(f"layer {index}: expected 0 to {last}")
        if isinstance(self.layers, DecoderLayer):
            graph, weights = nnx.split(self.layers)
            return nnx.merge(graph, jax.tree.map(lambda stacked: stacked[index], weights))
        if not known:
            raise InputError(
                f"layer {index}: a number that is being traced picks no layer of the form "
                f'{self.form}, which has each apart; load the model with form="stacked"'
            )
        return self.layers[int(known[0])]

    def head(self, x: Float[Array, "B T D"], *, tap: Tapper = untapped) -> Float[Array, "B T V"]:
        """Return the logits of a residual stream: final norm, then (tied) output projection."""
        tap = placed(tap, self.sharding)
        x = tap("norm", self.norm(x))
        head = gathered(self.lm_head or self.embed_tokens, self.sharding, "lm_head")
        wide = at_least_float32(self.dtype)
        return tap("logits", product(x, head.weight[...], wide))
