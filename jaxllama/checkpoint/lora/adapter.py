"""An adapter's two files taken together: which weights have factors, and what scales them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxllama import files
from jaxllama.checkpoint.base import Checkpoint
from jaxllama.checkpoint.checks import value_problems
from jaxllama.checkpoint.hf.safetensors_file import read_tensor
from jaxllama.checkpoint.lora.contents import Contents, Factors, read_contents
from jaxllama.checkpoint.lora.manifest import check_adapter_if_told
from jaxllama.checkpoint.lora.matching import by_pattern
from jaxllama.checkpoint.lora.settings import CONFIG, AdapterSettings, read_settings
from jaxllama.errors import CheckpointError, join_problems


@dataclass(frozen=True)
class Adapter:
    """What an adapter adds to a checkpoint.

    Attributes:
        settings: of adapter_config.json.
        contents: of adapter_model.safetensors.
        factors: those that count, by canonical name of the weight.
        alphas: what each product is multiplied with, before it is divided by the rank.
        named: weights of all modules that the configuration is for.
    """

    settings: AdapterSettings
    contents: Contents
    factors: Mapping[str, Factors]
    alphas: Mapping[str, float]
    named: Sequence[str]

    def scale(self, name: str) -> float:
        """Return what a product is multiplied with: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        return scale_of(self.alphas[name], self.factors[name].rank, rslora=self.settings.rslora)

    def pair(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return A and B of a weight.

        Raises:
            CheckpointError: they hold NaN or infinity.
        """
        found = self.factors[name]
        a, b = (read_tensor(self.contents.file, slot) for slot in (found.a, found.b))
        refuse_values(self.contents, f"{name}.lora_A", a)
        refuse_values(self.contents, f"{name}.lora_B", b)
        return a, b


def open_adapter(checkpoint: Checkpoint, adapter: Path) -> Adapter:
    """Read what an adapter is, its values not yet.

    Args:
        checkpoint: what it was trained on.
        adapter: directory with adapter_config.json and adapter_model.safetensors.

    Raises:
        CheckpointError: it is damaged, of a kind not supported, does not fit, or is not as the
            manifest beside it says, where there is one.
    """
    check_adapter_if_told(adapter)
    config = files.inside(adapter, CONFIG)
    settings = read_settings(files.read_json(config), str(config))
    contents = read_contents(checkpoint, adapter)
    used = {
        name: factors
        for name, factors in contents.factors.items()
        if settings.targets.has(module_of(name))
    }
    named = [
        name
        for name, info in checkpoint.tensors.items()
        if len(info.shape) == 2 and settings.targets.has(module_of(name))
    ]
    problems = [] if named else [f"{CONFIG} names no module of this model"]
    problems += _wrong_ranks(used, settings)
    if problems:
        raise CheckpointError(join_problems(str(adapter), problems))
    alphas = {
        name: float(by_pattern(settings.alphas, module_of(name), settings.alpha)) for name in used
    }
    return Adapter(settings, contents, used, alphas, named)


def scale_of(alpha: float, rank: int, *, rslora: bool) -> float:
    """Return what B A is multiplied with.

    Source: PEFT's `LoraLayer`; for rsLoRA, Kalajdzievski 2023 (arXiv 2312.03732).
    """
    return alpha / (rank**0.5 if rslora else rank)


def module_of(name: str) -> str:
    """Return the module that a weight is of."""
    return name.removesuffix(".weight")


def refuse_values(contents: Contents, name: str, values: np.ndarray) -> None:
    """Refuse NaN and infinity.

    Raises:
        CheckpointError: there is one.
    """
    if bad := value_problems(name, values):
        raise CheckpointError(join_problems(str(contents.file), bad))


def _wrong_ranks(used: Mapping[str, Factors], settings: AdapterSettings) -> list[str]:
    wrong = [
        f"{name}: lora_A has rank {factors.rank}, {CONFIG} says {stated}"
        for name, factors in used.items()
        if (stated := by_pattern(settings.ranks, module_of(name), settings.rank)) != factors.rank
    ]
    more = f"; so do {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return [f"{wrong[0]}{more}; put it into r or rank_pattern"] if wrong else []
