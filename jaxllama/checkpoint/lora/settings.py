"""adapter_config.json, by what each of its fields means for a merge.

Source: `LoraConfig` in PEFT 0.21's `tuners/lora/config.py`, and what its `LoraLayer` does with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from jaxllama.checkpoint.lora.matching import Targets, check_expressions
from jaxllama.config_formats.fields import FieldTable, Only, is_one_of
from jaxllama.errors import CheckpointError, join_problems

CONFIG = "adapter_config.json"
_NONE: tuple[Any, ...] = (None, False, [], {})
_PLAIN = "merge it with PEFT (merge_and_unload) and convert the result"
# Initialisations that take what they put into the factors out of the base: the factors fit what was
# left. Others start from factors that add nothing, or that training moved with the base in place.
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_KEPT_BASE = ("gaussian", "eva", "orthogonal", "mica")
# fmt: off
_HARMLESS = frozenset([
    # Of training, or of how the first factors were made, once it is known that the base was kept.
    "lora_dropout", "corda_config", "eva_config", "loftq_config", "lora_ga_config",
    "qalora_group_size", "velora_config", "megatron_core", "runtime_config",
    # Llama's projections have no biases to train, and lie the same way round whatever this says.
    "bias", "fan_in_fan_out",
    # Where it came from.
    "auto_mapping", "base_model_class", "base_model_name_or_path", "inference_mode",
    "parent_library", "peft_version", "revision", "task_type", "unsloth_fixed",
])
# fmt: on
_TABLE = FieldTable(
    read=frozenset(
        [
            "alpha_pattern",
            "exclude_modules",
            "init_lora_weights",
            "layers_pattern",
            "layers_to_transform",
            "lora_alpha",
            "modules_to_save",
            "r",
            "rank_pattern",
            "target_modules",
            "use_rslora",
        ]
    ),
    harmless=_HARMLESS,
    only={
        "peft_type": Only(("LORA",), "factors of another kind than LoRA's", _PLAIN, required=True),
        "use_dora": Only(_NONE, "DoRA, which scales each row of the sum", _PLAIN),
        "kasa_config": Only(_NONE, "KaSA, which takes singular values from the base", _PLAIN),
        "monteclora_config": Only(_NONE, "MonteCLoRA, which samples its factors"),
        "use_qalora": Only(_NONE, "QALoRA, whose factors are of groups of inputs"),
        "use_bdlora": Only(_NONE, "BD-LoRA, whose factors are blocks on a diagonal", _PLAIN),
        "arrow_config": Only(_NONE, "Arrow, which chooses among adapters for each token"),
        "alora_invocation_tokens": Only(
            _NONE, "aLoRA, whose factors count after certain tokens alone; no weights are its like"
        ),
        "lora_bias": Only(_NONE, "biases beside the factors, which Llama has no place for"),
        "trainable_token_indices": Only(_NONE, "trained rows of the embedding", _PLAIN),
        "target_parameters": Only(_NONE, "factors of parameters by name, as of experts", _PLAIN),
        "layer_replication": Only(_NONE, "a base with layers repeated", _PLAIN),
        "megatron_config": Only(_NONE, "layers of Megatron, in shards"),
        "ensure_weight_tying": Only(_NONE, "factors that embedding and head share", _PLAIN),
    },
)  # fmt: skip


def unsupported(name: str) -> str:
    """Return what a field means that is not merged, where the tensors say it and not the field."""
    rule = _TABLE.only[name]
    remedy = f"; {rule.remedy}" if rule.remedy else ""
    return f"{rule.means}, which is not supported{remedy}"


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """What of adapter_config.json a merge depends on.

    Attributes:
        targets: which modules are adapted, and which stored whole.
        rank: of the factors, where no pattern says otherwise.
        alpha: what the product is multiplied with, before it is divided by the rank.
        ranks: ranks by regular expression of a module's name.
        alphas: alphas, likewise.
        rslora: whether it is divided by the root of the rank.
    """

    targets: Targets
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rslora: bool


def read_settings(content: Mapping[str, Any], source: str) -> AdapterSettings:
    """Read adapter_config.json.

    Args:
        content: the parsed file.
        source: what to call it in an error.

    Raises:
        CheckpointError: every field that means what cannot be merged, and what is not understood.
    """
    harmful = _TABLE.harmful(content) + _initialisation(content.get("init_lora_weights"))
    if harmful:
        # Of another kind of adapter, other fields would be unknown by dozens.
        unknown = _TABLE.unknown(content) if content.get("peft_type") == "LORA" else []
        raise CheckpointError(join_problems(source, harmful + unknown))
    problems = _ill_typed(content) + _TABLE.unknown(content)
    if problems:
        raise CheckpointError(join_problems(source, problems))
    layers, containers = content.get("layers_to_transform"), content.get("layers_pattern")
    targets = Targets(
        modules=_names(content.get("target_modules")),
        excluded=_names(content.get("exclude_modules")) or (),
        saved=content.get("modules_to_save") or (),
        layers=[layers] if isinstance(layers, int) else layers or None,
        containers=[containers] if isinstance(containers, str) else containers or (),
    )
    ranks, alphas = (content.get(name) or {} for name in ("rank_pattern", "alpha_pattern"))
    whole = [one for one in (targets.modules, targets.excluded) if isinstance(one, str)]
    check_expressions([*ranks, *alphas, *targets.saved, *targets.containers, *whole], source)
    return AdapterSettings(
        targets=targets,
        rank=content["r"],
        alpha=content["lora_alpha"],
        ranks=ranks,
        alphas=alphas,
        rslora=bool(content.get("use_rslora")),
    )


def _names(stated: Any) -> str | Sequence[str] | None:
    """Return names as they are; `all-linear` is what PEFT calls every projection of every layer."""
    if isinstance(stated, str) and stated.lower() == "all-linear":
        return r"(.*\.)?layers\..*_proj"
    return stated


def _initialisation(stated: Any) -> list[str]:
    """Say whether the factors fit another base than the one they are named after."""
    if isinstance(stated, bool) or stated is None:
        return []
    kind = str(stated).lower()
    if kind in _KEPT_BASE:
        return []
    if any(kind == name or kind.startswith(f"{name}_niter_") for name in _CHANGED_BASE):
        return [
            f"init_lora_weights {stated!r} means that training began by taking the first factors "
            "out of the base, so that these fit what was left and not the base itself; convert the "
            "adapter where it was trained, by PEFT's save_pretrained("
            "path_initial_model_for_weight_conversion=...), or merge it there"
        ]
    return [
        f"init_lora_weights {stated!r} is not known and could mean another base; expected true, "
        f"false, {', '.join(_KEPT_BASE)}"
    ]


def _ill_typed(content: Mapping[str, Any]) -> list[str]:
    """Say which fields hold what they cannot."""

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)

    def is_rank(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0

    def is_texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)

    def is_text_or_texts(value: Any) -> bool:
        return isinstance(value, str) or is_texts(value)

    def is_layers(value: Any) -> bool:
        listed = value if isinstance(value, list) else [value]
        return all(isinstance(one, int) and not isinstance(one, bool) for one in listed)

    def is_numbers(value: Any) -> bool:
        return isinstance(value, dict) and all(map(is_number, value.values()))

    def is_ranks(value: Any) -> bool:
        return isinstance(value, dict) and all(map(is_rank, value.values()))

    expected = {
        "r": (is_rank, "a number of at least 1"),
        "lora_alpha": (is_number, "a number"),
        "rank_pattern": (is_ranks, "an object of ranks"),
        "alpha_pattern": (is_numbers, "an object of numbers"),
        "target_modules": (is_text_or_texts, "a text or a list of texts"),
        "exclude_modules": (is_text_or_texts, "a text or a list of texts"),
        "modules_to_save": (is_texts, "a list of texts"),
        "layers_to_transform": (is_layers, "a number or a list of them"),
        "layers_pattern": (is_text_or_texts, "a text or a list of texts"),
        "use_rslora": (lambda value: is_one_of(value, (True, False)), "true or false"),
    }
    problems = []
    for name, (fits, what) in expected.items():
        value = content.get(name)
        if value is None and name in ("r", "lora_alpha"):
            problems.append(f"{name} is missing, expected {what}")
        elif value is not None and not fits(value):
            problems.append(f"{name} {value!r:.60} is not {what}")
    by_layer = [name for name in ("layers_to_transform", "layers_pattern") if content.get(name)]
    if isinstance(content.get("target_modules"), str) and by_layer:
        problems.append(
            f"{by_layer[0]} has no meaning where target_modules is one expression; PEFT refuses "
            "them together"
        )
    return problems
