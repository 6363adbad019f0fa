"""LoRA adapters as PEFT writes them, of NumPy alone, and what a merge of them is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from jaxllama.checkpoint import Checkpoint

RANK, ALPHA = 3, 6


def write_adapter(
    directory: Path, base: Checkpoint, modules: Sequence[str], **settings: Any
) -> dict[str, np.ndarray]:
    """Write an adapter of random factors; return the products B A by weight.

    Args:
        directory: to make.
        base: whose weights say the shapes; `lm_head` has the embedding's.
        modules: which are adapted, by name.
        settings: other fields of adapter_config.json.
    """
    directory.mkdir(parents=True)
    rng, factors, products = np.random.default_rng(11), {}, {}
    for module in modules:
        stored = "model.embed_tokens" if module == "lm_head" else module
        rows, columns = base.tensors[f"{stored}.weight"].shape
        a = rng.standard_normal((RANK, columns)).astype(np.float32)
        b = rng.standard_normal((rows, RANK)).astype(np.float32)
        at = f"base_model.model.{module}"
        factors |= {f"{at}.lora_A.weight": a, f"{at}.lora_B.weight": b}
        products[f"{module}.weight"] = b @ a
    safetensors.numpy.save_file(factors, directory / "adapter_model.safetensors")
    config: Mapping[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "somebody/base",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "bias": "none",
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "init_lora_weights": True,
        "peft_version": "0.21.2",
    } | settings
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2))
    return products
