"""tokenizer_config.json and special_tokens_map.json, by what each of their fields does to tokens.

tokenizer.json says how text becomes tokens; these files name special ones and hold the chat
template. What else they hold is settings of classes in transformers, most of which do nothing where
there is a tokenizer.json, and a few of which would give other tokens or another text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxllama.config_formats.fields import FieldTable, Only
from jaxllama.errors import CheckpointError, join_problems

_ROLES = frozenset(
    ["bos_token", "cls_token", "eos_token", "mask_token", "pad_token", "sep_token", "unk_token"]
)
_LISTS = frozenset(["additional_special_tokens", "extra_special_tokens"])
# fmt: off
_HARMLESS = frozenset([
    # Of classes that read other files, or put a bos where tokenizer.json puts none: transformers 5
    # leaves them where there is a tokenizer.json, and a bos that differs is noted.
    "add_bos_token", "add_eos_token", "add_prefix_space", "errors", "legacy", "merges_file",
    "sp_model_kwargs", "spaces_between_special_tokens", "spm_file", "tokenizer_file", "use_fast",
    "vocab_file", "from_slow", "do_lower_case", "strip_accents", "tokenize_chinese_chars",
    "trim_offsets", "use_default_system_prompt",
    # Not done to byte pairs, whatever it says.
    "clean_up_tokenization_spaces",
    # For batches and trainers, which state their own here.
    "max_len", "max_length", "model_input_names", "model_max_length", "pad_to_multiple_of",
    "pad_token_type_id", "padding", "padding_side", "return_token_type_ids", "stride",
    "truncation", "truncation_side", "truncation_strategy",
    # The texts of these tokens are read.
    "bos_token_id", "eos_token_id", "pad_token_id",
    # Where it came from, and what reads answers.
    "_commit_hash", "auto_map", "backend", "cache_dir", "device_map", "files_loaded", "init_inputs",
    "is_local", "local_files_only", "name_or_path", "processor_class", "response_schema",
    "response_template", "revision", "special_tokens_map_file", "token", "tokenizer_class",
    "transformers_version", "trust_remote_code", "unsloth_fixed", "use_auth_token", "verbose",
])
# fmt: on
_SETTINGS = FieldTable(
    read=_ROLES | _LISTS | {"added_tokens_decoder", "chat_control_tokens", "chat_template"},
    harmless=_HARMLESS,
    only={
        "split_special_tokens": Only(
            (None, False), "special tokens in a text, a chat's own too, read as plain text"
        ),
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": Only(
            (None, False), "spaces taken out of what is decoded"
        ),
        "fix_mistral_regex": Only((None, False), "another rule of where text is cut"),
        "fast_tokenizer_files": Only(
            (None, [], ["tokenizer.json"]), "a tokenizer.json of another name"
        ),
    },
    could="change the tokens",
)
_MAP = FieldTable(read=_ROLES | _LISTS, could="change the tokens")


def check_settings(settings: Mapping[str, Any], source: str) -> None:
    """Refuse settings of tokenizer_config.json that would give other tokens, or might.

    Raises:
        CheckpointError: those, the harmful ones first.
    """
    _check(_SETTINGS, settings, source)
    listed = settings.get("chat_control_tokens")
    if listed is not None and not (
        isinstance(listed, list) and all(isinstance(text, str) for text in listed)
    ):
        raise CheckpointError(
            f"{source}: chat_control_tokens is {listed!r:.60}, expected a list of texts"
        )


def check_map(stated: Mapping[str, Any], source: str) -> None:
    """Refuse what special_tokens_map.json holds besides tokens; raises as `check_settings`."""
    _check(_MAP, stated, source)


def _check(table: FieldTable, content: Mapping[str, Any], source: str) -> None:
    # `image_token` and the like are special tokens of a model's own.
    stated = {
        name: value
        for name, value in content.items()
        if not (name.endswith("_token") and isinstance(value, str | Mapping))
    }
    if problems := [*table.harmful(stated), *table.unknown(stated)]:
        raise CheckpointError(join_problems(source, problems))
