"""What weights are quantised by, in every format: one idea of it, and what to do about it.

Block encodings that GGUF readers dequantise are no part of this: those are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from reprlib import repr  # of bounded length
from typing import Any

_FLOATS_TAKEN = (
    "take the float checkpoint that it was made of, which its model card names as the base model"
)


def _by_transformers(loading: str) -> str:
    """Return what to run: without its last argument, saving writes quantised weights again."""
    return (
        f"run `AutoModelForCausalLM.from_pretrained(DIRECTORY{loading}."
        f"save_pretrained(OUT, save_original_format=False)` of transformers, or {_FLOATS_TAKEN}"
    )


def _by_config(name: str) -> str:
    return _by_transformers(f", quantization_config={name}(dequantize=True))")


_BY_LLAMA_CPP = (
    f"run `python convert_hf_to_gguf.py DIRECTORY --outtype bf16` of llama.cpp, or {_FLOATS_TAKEN}"
)
# Of weights that a number each, or one a row, is to be multiplied with, as FBGEMM's kernels do.
_BY_HAND = (
    f"{_FLOATS_TAKEN}; no public tool writes floats of it, but each weight times its weight_scale "
    "is that float"
)


@dataclass(frozen=True)
class Method:
    """A way to quantise weights.

    Attributes:
        name: whose it is, before "quantised weights".
        how: to get floats again.
        parts: what it stores beside a layer's packed weights, after the layer's name.
    """

    name: str
    how: str
    parts: tuple[str, ...] = ()


_MLX = Method(
    "MLX's",
    "run `mlx_lm.convert --hf-path DIRECTORY --dequantize`, or " + _FLOATS_TAKEN,
    ("scales", "biases"),
)
_GPTQ = Method(
    "GPTQ's or AWQ's",
    _BY_LLAMA_CPP.replace("run", "where it is GPTQ's, run", 1),
    ("qweight", "qzeros", "g_idx"),
)
_BITSANDBYTES = Method(
    "bitsandbytes'",
    _by_transformers(").dequantize()"),
    (
        *("absmax", "quant_map", "nested_absmax", "nested_quant_map", "SCB", "weight_format"),
        *("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4"),
    ),
)
_COMPRESSED = Method(
    "compressed-tensors'",
    _by_config("CompressedTensorsConfig"),
    ("weight_packed", "weight_shape", "weight_zero_point", "weight_g_idx", "input_zero_point"),
)
_FP8 = Method("FP8", _by_config("FineGrainedFP8Config"), ("weight_scale_inv", "activation_scale"))
# Of several libraries; the weights' dtype says to what they are quantised.
_SCALED = Method(
    "",
    _FLOATS_TAKEN,
    ("weight_scale", "weight_scale_2", "input_scale", "input_scale_ub", "output_scale"),
)
_META = Method("Meta's QLoRA or SpinQuant", _FLOATS_TAKEN, ("adaptor.A.weight", "adaptor.B.weight"))
_OTHER = Method("", _FLOATS_TAKEN, ("W_q", "codebooks", "codes", "SVh", "Qidxs", "qscales"))
_METHODS = (_META, _GPTQ, _BITSANDBYTES, _COMPRESSED, _FP8, _SCALED, _MLX, _OTHER)
# Of a cache in FP8: the weights are whole without them.
_CACHE_PARTS = ("k_scale", "v_scale", "q_scale", "prob_output_scale", "kv_scale")
_BY_NAME = {
    "gptq": replace(_GPTQ, name="GPTQ's", how=_BY_LLAMA_CPP),
    "awq": replace(_GPTQ, name="AWQ's", how=_FLOATS_TAKEN),
    "bitsandbytes": _BITSANDBYTES,
    "bitsandbytes_4bit": _BITSANDBYTES,
    "bitsandbytes_8bit": _BITSANDBYTES,
    "compressed-tensors": _COMPRESSED,
    "fp8": _FP8,
    "fbgemm_fp8": Method("FBGEMM's FP8", _BY_HAND),
    "modelopt": Method("ModelOpt's", _BY_LLAMA_CPP.replace("run", "where it is FP8, run", 1)),
}
# Fields of config.json and params.json that say so.
FIELDS = (
    "quantization_config",
    "quantization",
    "compression_config",
    "quantization_args",
    "lora_args",
)


def quantised_fields(content: Mapping[str, Any]) -> list[str]:
    """Return one line about the fields that say that the weights are quantised, or none."""
    found = {n: content[n] for n in FIELDS if content.get(n) not in (None, {}, False)}
    if not found:
        return []
    name, value = next(iter(found.items()))
    method = _of_field(name, value)
    others = "".join(f", and so does {other}" for other in list(found)[1:])
    return [
        f"{name} {repr(value)} means {_weights(method)}{others}; dequantise the checkpoint first: "
        f"{method.how} (where its weights are floats already, remove the field)"
    ]


def _of_field(name: str, value: Any) -> Method:
    if name in ("quantization_args", "lora_args"):
        return _META
    if name == "compression_config":
        return _COMPRESSED
    stated = value.get("quant_method") if isinstance(value, dict) else None
    if isinstance(stated, str):
        return _BY_NAME.get(stated, Method(f"{stated[:40]}'s", _FLOATS_TAKEN))
    return _MLX if name == "quantization" else _OTHER


def _weights(method: Method) -> str:
    return f"{method.name} quantised weights".strip()


def is_part(name: str) -> bool:
    """Whether a stored tensor is what quantisation leaves beside a layer's weights."""
    return _method_of(name) is not None


def quantised_tensors(
    parts: Iterable[str],
    floats: Iterable[str],
    *,
    narrow: Mapping[str, str] | None = None,
    metas: bool = False,
) -> tuple[list[str], list[str]]:
    """Tell quantised weights from what was left beside float ones.

    Args:
        parts: names of the stored tensors that `is_part` says yes to, of those in FP8, and of
            what is stored of layers without weights or with integers for these.
        floats: names of the tensors that are stored as floats.
        narrow: dtypes of the tensors that are not, by name.
        metas: whether the names are Meta's, whose scales are called like MLX's.

    Returns:
        One line of refusal or none; one note or none, where every weight is whole without them.
    """
    whole, decisive, parts = set(floats), [], list(parts)
    for name in parts:
        method = _method_of(name)
        if method is None or (
            method is not _CACHE and f"{_layer_of(name, method)}.weight" not in whole
        ):
            decisive.append((name, method))
    if decisive:
        # MLX's names are others' too; of parts that no method is known to have the name says least.
        name, known = min(decisive, key=lambda found: (found[1] is None, found[1] is _MLX))
        method = _META if metas and known is _MLX else known or _SCALED
        if method is _SCALED:
            layer = _layer_of(name, method) if is_part(name) else name.removesuffix(".weight")
            stored = (narrow or {}).get(f"{layer}.weight", "")
            name_of = "FP8" if "float8" in stored else stored.upper()
            scaled = name_of in ("FP8", "INT8") and f"{layer}.weight_scale" in parts
            how = _BY_HAND if scaled else method.how
            method = replace(method, name=name_of, how=how)
        return [
            f"{len(decisive)} tensors, such as {name}, mean {_weights(method)}; dequantise the "
            f"checkpoint first: {method.how}"
        ], []
    if not parts:
        return [], []
    return [], [
        f"{len(parts)} tensors that quantisation leaves, such as {parts[0]}, are not read: the "
        "weights are floats"
    ]


_CACHE = Method("", "", _CACHE_PARTS)


def _method_of(name: str) -> Method | None:
    for method in (*_METHODS, _CACHE):
        if name.endswith(tuple(f".{part}" for part in method.parts)):
            return method
    return None


def _layer_of(name: str, method: Method) -> str:
    part = next(part for part in method.parts if name.endswith(f".{part}"))
    return name.removesuffix(f".{part}").removesuffix(".weight")
