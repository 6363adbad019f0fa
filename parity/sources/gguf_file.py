"""GGUF files, by the `gguf` package's own reader and dequantiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from parity.sources.config import Scaling, SourceConfig, end_tokens, token_or_none
from parity.sources.names import EMBEDDING, HEAD, gguf_name, in_halves, rotated_heads
from parity.sources.source import Source

_PLAIN = {
    gguf.GGMLQuantizationType.F64: np.float64,
    gguf.GGMLQuantizationType.F32: np.float32,
    gguf.GGMLQuantizationType.F16: np.float16,
    gguf.GGMLQuantizationType.BF16: ml_dtypes.bfloat16,
}
# Bytes of float32 dequantised at once: that makes several temporaries of the size.
_BLOCK_BYTES = 1 << 26
_FIELDS = {
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
}
_OPTIONAL = {
    "max_position_embeddings": "llama.context_length",
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
_HEAD_DIMS = (
    "llama.attention.key_length",
    "llama.attention.value_length",
    "llama.rope.dimension_count",
)
_ENDS = tuple(f"tokenizer.ggml.{end}_token_id" for end in ("eos", "eot", "eom"))
# llama.cpp writes no more than the divisors; these are Meta's constants, and jaxllama's own keys.
_LOW = ("jaxllama.rope.scaling.low_freq_factor", 1.0)
_HIGH = ("jaxllama.rope.scaling.high_freq_factor", 4.0)
_CONTEXT = ("llama.rope.scaling.original_context_length", 8192)
# Writers compute in float32.
_AS_WRITTEN = 1e-5


def open_gguf(path: Path) -> Source:
    """Open a GGUF file, or any part of a model that is split into several."""
    parts = _parts(path)
    readers = [gguf.GGUFReader(part) for part in parts]
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    holder = {
        tensor.name: part.name
        for part, reader in zip(parts, readers, strict=True)
        for tensor in reader.tensors
    }
    values = {
        name: _value(found.contents())
        for name, found in readers[0].fields.items()
        if name.startswith(("llama.", "jaxllama.")) or name.endswith("_token_id")
    }
    stated = _config(parts[0].name, values, tensors)
    # llama.cpp takes norms in float32 alone; jaxllama writes down what they were before.
    narrowed = dict(str(item).split("=") for item in values.get("jaxllama.widened", []))

    def read(name: str) -> np.ndarray:
        at = gguf_name(name)
        weight = _read(tensors[at])
        heads = rotated_heads(name, stated)
        if heads is not None:
            weight = in_halves(weight, heads)
        return weight.astype(narrowed[at]) if at in narrowed else weight

    return Source(
        path=path,
        format="gguf",
        stated=stated,
        hf_config=stated.to_hf(),
        reader=read,
        place=lambda name: f"{holder.get(gguf_name(name), path.name)}: {gguf_name(name)}",
    )


def _parts(path: Path) -> list[Path]:
    """Return all files of a model, that with its keys first.

    Source: `llama_split_path` of llama.cpp, which names parts `NAME-00001-of-00003.gguf`.
    """
    name, of, count = path.stem.rpartition("-of-")
    if not of or not count.isdecimal() or not name[-5:].isdecimal():
        return [path]
    return [path.with_name(f"{name[:-5]}{i + 1:05}-of-{count}.gguf") for i in range(int(count))]


def _read(tensor: Any) -> np.ndarray:
    """Return a tensor as stored, or as the float32 that it dequantises to."""
    shape = tuple(int(length) for length in reversed(tensor.shape))
    if tensor.tensor_type in _PLAIN:
        return tensor.data.view(_PLAIN[tensor.tensor_type]).reshape(shape).copy()
    result = np.empty(shape, np.float32)
    step = max(1, _BLOCK_BYTES // (4 * math.prod(shape[1:])))
    for i in range(0, len(result), step):
        result[i : i + step] = gguf.dequantize(tensor.data[i : i + step], tensor.tensor_type)
    return result


def _value(content: Any) -> Any:
    """Return a float as its author wrote it: the fewest digits that give the stored float32."""
    if not isinstance(content, float):
        return content
    for digits in range(1, 10):
        if np.float32(written := float(f"{content:.{digits}g}")) == np.float32(content):
            return written
    return content


def _config(file: str, values: Mapping[str, Any], tensors: Mapping[str, Any]) -> SourceConfig:
    """Read a file's keys.

    Source: `gguf/constants.py` and `llama-model.cpp` of llama.cpp; the divisors of `rope_freqs` are
    those that `convert_hf_to_gguf.py` writes.
    """
    keys = {**_FIELDS, **_OPTIONAL}
    keys |= {"rms_norm_eps": "llama.attention.layer_norm_rms_epsilon"}
    keys |= {"rope_theta": "llama.rope.freq_base"}
    fields: dict[str, Any] = {name: values[key] for name, key in _FIELDS.items()}
    optional: dict[str, Any] = {
        name: token_or_none(values.get(key)) for name, key in _OPTIONAL.items()
    }
    head_dim_key = next((key for key in _HEAD_DIMS if key in values), None)
    head_dim = (
        fields["hidden_size"] // fields["num_attention_heads"]
        if head_dim_key is None
        else values[head_dim_key]
    )
    keys["head_dim"] = head_dim_key or f"{_FIELDS['hidden_size']} / head_count"
    rows = int(tensors[gguf_name(EMBEDDING)].shape[1])
    keys["vocab_size"] = "llama.vocab_size" if "llama.vocab_size" in values else "token_embd.weight"
    own_ends = values.get("jaxllama.eos_token_ids")
    ends = own_ends or list(dict.fromkeys(values[key] for key in _ENDS if key in values))
    keys["eos_token_ids"] = "jaxllama.eos_token_ids" if own_ends else ", ".join(_ENDS)
    keys["tie_word_embeddings"] = "output.weight"
    theta = float(values["llama.rope.freq_base"])
    freqs = tensors.get("rope_freqs.weight")
    keys["rope_scaling"] = "llama.rope.scaling.*" if freqs is None else "rope_freqs.weight"
    scaling = _linear(values) if freqs is None else _llama3(_read(freqs), theta, head_dim, values)
    return SourceConfig(
        vocab_size=values.get("llama.vocab_size", rows),
        **fields,
        head_dim=head_dim,
        rms_norm_eps=float(values["llama.attention.layer_norm_rms_epsilon"]),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=gguf_name(HEAD) not in tensors,
        eos_token_ids=end_tokens(list(ends)),
        **optional,
        where={name: f"{file}: {key}" for name, key in keys.items()},
    )


def _linear(values: Mapping[str, Any]) -> Scaling | None:
    old = values.get("llama.rope.scale_linear", 0)
    factor = values.get("llama.rope.scaling.factor", old)
    stated = values.get("llama.rope.scaling.type", "linear")
    # Without a type a factor means linear scaling, and 0 and 1 none.
    implied = "llama.rope.scaling.type" not in values and factor in (0, 1)
    return None if stated == "none" or implied else Scaling(kind="linear", factor=float(factor))


def _llama3(
    divisors: np.ndarray, theta: float, head_dim: int, values: Mapping[str, Any]
) -> Scaling | None:
    """Return the scaling whose divisors of the frequencies [H/2] these are."""
    if np.all(divisors == 1):
        return None
    low, high, context = (values.get(key, usual) for key, usual in (_LOW, _HIGH, _CONTEXT))
    frequencies = theta ** (-2.0 * np.arange(head_dim // 2) / head_dim)
    wavelengths = 2 * math.pi / frequencies
    smooth = (context / wavelengths - low) / (high - low)
    slow, kept = wavelengths > context / low, wavelengths < context / high

    def gives(factor: float) -> bool:
        blended = 1 / ((1 - smooth) / factor + smooth)
        made = np.where(slow, factor, np.where(kept, 1.0, blended))
        return bool(np.allclose(made, divisors, rtol=_AS_WRITTEN, atol=0))

    if slow.any():
        factor = _value(float(divisors[slow][0]))
    else:  # the slowest is blended: undone, which loses digits, and the roundest number taken
        exact = (1 - smooth[-1]) / (1 / float(divisors[-1]) - smooth[-1])
        rounded = (round(exact, digits) for digits in range(5))
        factor = next((f for f in rounded if f >= 1 and gives(f)), _value(exact))
    if not gives(factor):
        raise ValueError(f"rope_freqs.weight is not llama3's for any factor; tried {factor:g}")
    return Scaling(
        kind="llama3",
        factor=float(factor),
        low_freq_factor=float(low),
        high_freq_factor=float(high),
        original_max_position_embeddings=context,
    )
