"""Tables of meanings: harmless, harmless with a value, harmful, unknown."""

from __future__ import annotations

from typing import Any

import pytest

from jaxllama.config_formats.fields import FieldTable, Only, is_one_of, token_id, token_ids
from jaxllama.config_formats.generation import read_generation
from jaxllama.config_formats.gguf import tokenizer_problems
from jaxllama.config_formats.quantised import quantised_fields, quantised_tensors

TABLE = FieldTable(
    read=frozenset(["width"]),
    harmless=frozenset(["author"]),
    harmless_under=("own.",),
    only={
        "act": Only(("silu",), "another activation", aliases=("swish",), required=True),
        "bias": Only((None, False), "biases", "train without"),
    },
)
SOUND: dict[str, Any] = {"act": "silu", "width": 7, "author": [1], "own.x": 2, "bias": None}


def test_what_is_known_is_passed():
    assert not TABLE.harmful(SOUND) and not TABLE.unknown(SOUND) and not TABLE.aliased(SOUND)
    assert not TABLE.unknown({"anything": None})


def test_harmful_and_lacking():
    assert TABLE.harmful({"bias": 0, "act": "silu"}) == [
        "bias 0 means biases, which is not supported; train without"
    ]
    assert TABLE.harmful({}) == ["act is missing, expected 'silu'"]


def test_aliases_are_passed_and_said():
    assert not TABLE.harmful({"act": "swish"})
    for act in ("SiLU", "silu ", "Swish"):
        assert not TABLE.harmful(SOUND | {"act": act})
        assert TABLE.aliased({"act": act})[0].startswith(f"act {act!r} is read as 'silu'")
    assert not TABLE.aliased({"act": "silu"}) and TABLE.harmful(SOUND | {"act": "gelu"})
    assert TABLE.aliased({"act": "swish"}) == [
        "act 'swish' is read as 'silu', of which it is another name"
    ]


def test_unknown_fields_are_one_line():
    (one,) = TABLE.unknown(SOUND | {"x": 1})
    assert one.startswith("x 1 is not a known field and could change the numbers; remove it")
    (many,) = TABLE.unknown({f"x{i}": i for i in range(30)})
    assert many.startswith("30 fields are not known") and "x7 7 and 22 more; remove" in many


def test_true_is_not_one():
    assert is_one_of(1, (1.0,)) and not is_one_of(True, (1,)) and not is_one_of(0, (False,))


@pytest.mark.parametrize("absent", [-1, 2**32 - 1, 2**64 - 1, -100, 2**32 - 100, "none", "", []])
def test_no_token_in_every_width(absent: object):
    notes: list[str] = []
    assert token_id("pad", absent, notes) is None and notes == [
        f"pad {absent!r} is read as no such token"
    ]
    assert token_ids("eos", [3, absent, None], notes) == (3,)
    assert [token_id("pad", kept, []) for kept in (0, -2, "x", True, None)] == [
        0,
        -2,
        "x",
        True,
        None,
    ]


def test_generation_settings():
    usual = {"do_sample": False, "temperature": 1.0, "top_k": 50, "max_length": 20}
    assert read_generation(usual | {"eos_token_id": [5, 4]}, 10, {"eos_token_id": (4, 5)}) == (
        [],
        [],
    )
    given = {"eos_token_id": 5, "temperature": 0.6, "magic": 1, "bos_token_id": 2}
    notes, problems = read_generation(given, 10, {"eos_token_id": (4,), "bos_token_id": (3,)})
    assert [n.split(":")[0] for n in notes] == [
        "bos_token_id [2] is taken, [3] of the configuration is left",
        "eos_token_id [5] is taken for the ends of a text, [4] of the configuration is left",
        "not obeyed, as generation takes its settings from its arguments",
        "not obeyed",
    ]
    assert "temperature 0.6" in notes[2] and "magic 1" in notes[3] and not problems
    for wrong in (10, "x", 1.5, True):
        assert read_generation({"eos_token_id": wrong}, 10, {})[1] == [
            f"eos_token_id {wrong!r}, expected a token id in 0..9; correct or remove it"
        ]


def test_keys_of_a_gguf_tokenizer():
    sound = {"tokenizer.ggml.pre": "x", "tokenizer.ggml.scores": [1.0], "general.pre": 1}
    assert tokenizer_problems(sound | {"tokenizer.ggml.add_eos_token": False}) == []
    assert "an end of text" in tokenizer_problems({"tokenizer.ggml.add_eos_token": True})[0]
    assert "could change the tokens" in tokenizer_problems({"tokenizer.ggml.per": "x"})[0]


def test_quantised_tensors_and_what_is_left_of_them():
    floats = ["a.weight", "b.weight"]
    assert quantised_tensors([], floats) == ([], [])
    refused, noted = quantised_tensors(["a.weight_scale", "b.k_scale"], floats)
    assert not refused and "2 tensors that quantisation leaves" in noted[0]
    refused, noted = quantised_tensors(["a.weight_scale", "c.weight_scale"], floats)
    assert refused[0].startswith("1 tensors, such as c.weight_scale, mean quantised") and not noted
    for dtype, name in (("int8", "INT8"), ("float8_e4m3fn", "FP8")):
        (said,), _ = quantised_tensors(["c.weight_scale"], floats, narrow={"c.weight": dtype})
        assert f"mean {name} quantised weights" in said and "FineGrained" not in said
    (said,), _ = quantised_tensors(["c.weight_scale_inv"], floats)
    assert "FineGrainedFP8Config" in said
    for method, how in {
        "fbgemm_fp8": "each weight times its weight_scale",
        "modelopt": "where it is FP8, run `python convert_hf_to_gguf.py",
        "gptq": "run `python convert_hf_to_gguf.py",
        "awq": "take the float checkpoint",
        "eetq": "take the float checkpoint",
    }.items():
        (said,) = quantised_fields({"quantization_config": {"quant_method": method}})
        assert how in said and "as the base model" in said and "FineGrained" not in said
    (said,), _ = quantised_tensors(["c.scales", "c.qweight"], floats)
    assert "GPTQ's or AWQ's" in said
    assert not quantised_fields({"quantization_config": None, "quantization": {}})
    (both,) = quantised_fields({"quantization": {"bits": 4}, "quantization_config": {"bits": 4}})
    assert "and so does quantization" in both
