"""Hugging Face's generation_config.json: where a text begins and ends, and how it is chosen.

`generate` takes how tokens are chosen from its arguments alone; what the file says of it is noted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxllama.config_formats.fields import FieldTable, Only, is_one_of, token_ids

_IDS = frozenset(["bos_token_id", "eos_token_id", "pad_token_id"])
_USE = {"eos_token_id": " for the ends of a text"}
_OFF = (None, False)
# Settings that choose other tokens than plain greedy search, unless they hold one of these values.
_SETTINGS: dict[str, tuple[Any, ...]] = {
    "do_sample": _OFF,
    "temperature": (None, 1, 0),
    "top_k": (None, 0, 50),
    "top_p": (None, 1),
    "min_p": (None, 0),
    "typical_p": (None, 1),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
    "repetition_penalty": (None, 1),
    "encoder_repetition_penalty": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "diversity_penalty": (None, 0),
    "penalty_alpha": (None, 0),
    "guidance_scale": (None, 1),
    "bad_words_ids": (None, []),
    "force_words_ids": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None, {}, []),
    "exponential_decay_length_penalty": (None,),
    "stop_strings": (None, []),
    "watermarking_config": (None,),
}
# Limits of length, how beams are kept, what is returned, and how it is computed.
# fmt: off
_HARMLESS = frozenset([
    "_from_model_config", "assistant_confidence_threshold", "assistant_early_exit",
    "assistant_lookbehind", "cache_config", "cache_implementation", "chat_format",
    "compile_config", "decoder_start_token_id", "disable_compile", "early_stopping",
    "is_assistant", "length_penalty", "low_memory", "max_length", "max_matching_ngram_size",
    "max_new_tokens", "max_time", "max_window_size", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_logits", "output_scores", "prefill_chunk_size",
    "prompt_lookup_num_tokens", "remove_invalid_values", "renormalize_logits",
    "return_dict_in_generate", "target_lookbehind", "token_healing", "transformers_version",
    "use_cache", "use_model_defaults", "max_context_size",
])
# fmt: on
_TABLE = FieldTable(
    read=frozenset({*_IDS, *_SETTINGS}),
    harmless=_HARMLESS,
    only={"dola_layers": Only((None,), "contrastive decoding")},
    could="choose other tokens",
)


def read_generation(
    content: Mapping[str, Any], vocab_size: int, stated: Mapping[str, Sequence[int | None]]
) -> tuple[list[str], list[str]]:
    """Look at a generation_config.json.

    Args:
        content: the parsed file.
        vocab_size: ids of the model are below it.
        stated: ids that the model's configuration states, by field, which this file's go before.

    Returns:
        Notes: what is read otherwise than it stands, left, or not obeyed; and problems: ids that
        are none.
    """
    notes: list[str] = []
    ids = {
        name: token_ids(name, content.get(name), notes)
        for name in ("bos_token_id", "pad_token_id", "eos_token_id")
    }
    problems = [
        f"{name} {value!r}, expected a token id in 0..{vocab_size - 1}; correct or remove it"
        for name, values in ids.items()
        for value in values
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size
    ]
    for name, values in ids.items() if not problems else ():
        others = [other for other in stated.get(name, ()) if other is not None]
        if values and others and set(values) != set(others):
            notes.append(
                f"{name} {list(values)} is taken{_USE.get(name, '')}, {others} of the "
                "configuration is left"
            )
    unlike = {
        name: content[name]
        for name, usual in _SETTINGS.items()
        if name in content and not is_one_of(content[name], usual)
    }
    if unlike:
        said = ", ".join(f"{name} {value!r}"[:60] for name, value in list(unlike.items())[:8])
        notes.append(f"not obeyed, as generation takes its settings from its arguments: {said}")
    notes += [f"not obeyed: {line}" for line in _TABLE.harmful(content) + _TABLE.unknown(content)]
    return notes, problems
