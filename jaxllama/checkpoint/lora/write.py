"""Write LoRA factors as PEFT saves an adapter: adapter_config.json and adapter_model.safetensors.

Beside them lies a manifest, as beside a checkpoint. Which modules are adapted, and their ranks,
follow from the factors, so that the two files agree.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.dtypes import is_float
from jaxllama.checkpoint.hf.safetensors_file import build_header
from jaxllama.checkpoint.layout import Layout, Piece, byte_size, store_as_is
from jaxllama.checkpoint.lora.contents import WEIGHTS
from jaxllama.checkpoint.lora.settings import CONFIG
from jaxllama.checkpoint.manifest import digest
from jaxllama.checkpoint.names import EMBEDDING, HEAD, expected_tensors
from jaxllama.checkpoint.replaced import check_replaced
from jaxllama.checkpoint.samples import in_memory
from jaxllama.checkpoint.staging import refuse_links
from jaxllama.checkpoint.stream import FileSink, run
from jaxllama.concrete import host_values
from jaxllama.config import LlamaConfig
from jaxllama.dtypes import parse
from jaxllama.errors import InputError, join_problems

Pair = tuple[np.ndarray, np.ndarray]


def save_lora(
    factors: Mapping[str, Sequence[Any]],
    config: LlamaConfig,
    directory: str | os.PathLike[str],
    *,
    alpha: float,
    rslora: bool = False,
    base: str | None = None,
    dtype: DTypeLike | None = None,
    overwrite: bool = False,
) -> Path:
    """Write LoRA factors as an adapter that PEFT loads, and `jaxllama convert --lora` merges.

    Args:
        factors: (A [r, in], B [out, r]) by the canonical name of the weight to which alpha / r B A
            is added, such as `model.layers.0.self_attn.q_proj.weight`. With `{i}` for the layer's
            number the factors of all layers, stacked: (A [L, r, in], B [L, out, r]). Of the
            embedding, whose transpose B A is, A is [r, V] and B is [D, r].
        config: of the model they were trained on.
        directory: to write.
        alpha: what B A is multiplied with, before it is divided by the rank.
        rslora: whether it is divided by the root of the rank instead.
        base: name or path of the model they were trained on, for PEFT's `AutoPeftModel`.
        dtype: to cast the factors to; each keeps its own if not given.
        overwrite: whether an adapter at the directory is replaced; nothing else is.

    Returns:
        The directory.

    Raises:
        InputError: factors that do not fit the model, or are being traced.
        CheckpointError: a factor is NaN or infinite, or the directory exists or cannot be written.

    Source: `get_peft_model_state_dict` and `LoraConfig` of PEFT 0.21.
    """
    target, wanted = Path(directory), None if dtype is None else parse(dtype)
    refuse_links(target)

    def check() -> None:
        if overwrite:
            check_replaced(target, adapter=True)

    check()
    pairs = dict(_one_a_weight(factors))
    problems = _problems(pairs, config)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        problems.append(f"alpha {alpha!r}: expected a finite number")
    if problems or not pairs:
        raise InputError(join_problems("LoRA factors", problems or ["there are none"]))
    tensors = {
        _stored_name(name, which): values
        for name, pair in pairs.items()
        for which, values in zip("AB", pair, strict=True)
    }
    content = _settings(pairs, config, alpha=alpha, rslora=rslora, base=base)
    dtypes = {name: wanted or values.dtype for name, values in tensors.items()}
    _write(
        in_memory(config, tensors, title="LoRA factors"),
        dtypes,
        content,
        target,
        overwrite=overwrite,
        check=check,
    )
    return target


def _one_a_weight(factors: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, Pair]]:
    """Yield the factors of each weight, those of all layers taken apart."""
    for name, pair in factors.items():
        if len(pair) != 2:
            raise InputError(f"{name}: {len(pair)} factors, expected two, A and B")
        found = host_values(*pair)
        if found is None:
            raise InputError(
                f"{name}: its factors are being traced (jit, grad, vmap) or lie on other hosts; "
                "save them outside of the transformed function, from one host"
            )
        a, b = found
        if "{i}" not in name:
            yield name, (a, b)
            continue
        if a.ndim != 3 or b.ndim != 3 or len(a) != len(b):
            raise InputError(
                f"{name}: A of shape {a.shape} and B of shape {b.shape}; for all layers these are "
                "(L, r, in) and (L, out, r)"
            )
        for layer in range(len(a)):
            yield name.replace("{i}", str(layer)), (a[layer], b[layer])


def _problems(pairs: Mapping[str, Pair], config: LlamaConfig) -> list[str]:
    """Return what keeps factors from being the model's."""
    shapes = dict(expected_tensors(config))
    problems = []
    for name, (a, b) in pairs.items():
        shape = shapes.get(name, ())
        if config.tie_word_embeddings and name in (HEAD, EMBEDDING):
            problems.append(
                f"{name}: head and embedding are tied in this model and would move together; "
                "leave them out"
            )
        elif len(shape) != 2:
            what = "no matrix" if shape else "no weight"
            problems.append(f"{name}: {what} of this model; expected such as {_example(shapes)}")
        elif not (is_float(a.dtype) and is_float(b.dtype)):
            problems.append(f"{name}: dtypes {a.dtype} and {b.dtype}, expected floats")
        else:
            problems += _misshapen(name, a.shape, b.shape, shape)
    return problems


def _misshapen(
    name: str, a: tuple[int, ...], b: tuple[int, ...], shape: tuple[int, ...]
) -> list[str]:
    rows, columns = shape[::-1] if name == EMBEDDING else shape
    rank = a[0] if len(a) == 2 else 0
    if rank >= 1 and (a, b) == ((rank, columns), (rows, rank)):
        return []
    wanted = f"(r, {columns}) and ({rows}, r)"
    return [f"{name}: A of shape {a} and B of shape {b}, expected {wanted}"]


def _example(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return next(name for name, shape in shapes.items() if name != EMBEDDING and len(shape) == 2)


def _stored_name(name: str, which: str) -> str:
    """Return PEFT's name of a factor: under its wrapper, and of an embedding a bare parameter."""
    module = f"base_model.model.{_module(name)}"
    return (
        f"{module}.lora_embedding_{which}" if name == EMBEDDING else f"{module}.lora_{which}.weight"
    )


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _settings(
    pairs: Mapping[str, Pair], config: LlamaConfig, *, alpha: float, rslora: bool, base: str | None
) -> dict[str, Any]:
    """Return adapter_config.json: of the ranks the most frequent is `r`, others have patterns."""
    ranks = {_module(name): a.shape[0] for name, (a, _) in pairs.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else float(alpha),
        "target_modules": _targets(list(ranks), config),
        "rank_pattern": {module: one for module, one in ranks.items() if one != rank},
        "alpha_pattern": {},
        "use_rslora": bool(rslora),
        "use_dora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "inference_mode": True,
    }


def _targets(modules: list[str], config: LlamaConfig) -> list[str]:
    """Return the last part of names where all modules of that name are adapted, else full ones."""
    every = [_module(name) for name, shape in expected_tensors(config) if len(shape) == 2]
    adapted, targets = set(modules), set()
    for module in modules:
        end = module.rpartition(".")[2]
        whole = all(one in adapted for one in every if one.rpartition(".")[2] == end)
        targets.add(end if whole else module)
    return sorted(targets)


def _write(
    factors: Checkpoint,
    dtypes: Mapping[str, np.dtype],
    content: Mapping[str, Any],
    target: Path,
    *,
    overwrite: bool,
    check: Callable[[], None],
) -> None:
    shapes = {name: info.shape for name, info in factors.tensors.items()}
    head, length = build_header({name: (dtypes[name], shape) for name, shape in shapes.items()})
    layout, at = Layout(), len(head)
    layout.add_file(WEIGHTS, [(0, head)], length)
    for name, shape in shapes.items():
        layout.pieces[name] = [Piece(WEIGHTS, at, store_as_is)]
        at += byte_size(shape, dtypes[name])
    layout.small[CONFIG] = json.dumps(content, indent=2).encode()
    digests = [digest(factors.read(name)) for name in shapes]
    run(
        factors,
        dtypes,
        lambda files: FileSink(layout, files),
        target,
        {"lora": dict(content), "dtypes": [d.name for d in dtypes.values()], "of": digests},
        {".": target},
        overwrite=overwrite,
        check=check,
        hf_config=content,
    )
