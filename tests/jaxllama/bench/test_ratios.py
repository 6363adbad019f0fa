"""What is made of seconds, from figures made by hand."""

from __future__ import annotations

import pytest
from bench_results import PREFILL, measured, result

from jaxllama.bench.floors import floor_work, prefill_flops, products
from jaxllama.bench.measures import Measure, measures, prompt_of
from jaxllama.bench.ratios import Spread, fastest, paired, speed_ratios, speeds, spread
from jaxllama.bench.result import same_tokens
from jaxllama.config import LlamaConfig
from jaxllama.quantisation import step_bytes

CONFIG = LlamaConfig(
    vocab_size=61,
    hidden_size=40,
    intermediate_size=56,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    rms_norm_eps=1e-5,
    rope_theta=500_000.0,
    rope_scaling=None,
    tie_word_embeddings=False,
    max_position_embeddings=1024,
)
NARROW = Measure("prefill", "bf16", 1, 512)
DECODE = Measure("decode", "f32", 8, 128, 32)


def test_a_median_lies_between_its_quartiles() -> None:
    assert spread([9.0, 1.0, 2.0, 4.0]) == Spread(3.0, 1.75, 5.25, 4)
    assert spread([2.0]) == Spread(2.0, 2.0, 2.0, 1)


def test_speed_is_tokens_of_all_rows_over_seconds() -> None:
    assert DECODE.tokens == 256 and PREFILL.tokens == 512
    assert speeds([2.0, 4.0], DECODE.tokens) == Spread(96.0, 80.0, 112.0, 2)


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that is twice as slow in one round is so for all: no ratio moves."""
    assert paired([2.0, 4.0, 2.0], [1.0, 2.0, 1.0]) == Spread(2.0, 2.0, 2.0, 3)
    with pytest.raises(ValueError, match="shorter"):
        paired([2.0, 4.0], [1.0])


SECONDS = {
    "prefill_512": {
        "jaxllama": [1.0, 2.0, 1.0],
        "eager": [2.0, 4.0, 2.0],
        "sdpa": [1.5, 3.0, 1.5],
        "compiled": [1.7, 2.9, 1.7],
        "floor": [0.8, 1.6, 0.8],
    },
    "prefill_512_bf16": {
        "jaxllama": [0.5, 1.0, 2.0],
        "sdpa": [0.5, 1.0, 1.0],
        "f32": [1.0, 2.0, 1.0],
    },
    "decode_b8": {"eager": [1.0, 1.0, 1.0]},
}


def test_the_names_and_values_of_ratios() -> None:
    found = speed_ratios([PREFILL, NARROW, DECODE], SECONDS)
    assert {name: ratio.median for name, ratio in found.items()} == {
        "prefill_512_vs_eager": 2.0,
        "prefill_512_vs_sdpa": 1.5,
        "prefill_512_vs_compiled": 1.7,
        "prefill_512_vs_best_torch": 1.5,
        "prefill_512_vs_floor": 0.8,
        "prefill_512_bf16_vs_sdpa": 1.0,
        "prefill_512_bf16_vs_best_torch": 1.0,
        "prefill_512_bf16_vs_f32": 2.0,
    }
    assert found["prefill_512_bf16_vs_f32"] == Spread(2.0, 1.25, 2.0, 3)


def test_the_fastest_is_by_the_median() -> None:
    taken = {"eager": [1.0, 1.0, 9.0], "sdpa": [2.0, 0.1, 2.0], "tunix": [0.1, 0.1, 0.1]}
    assert fastest(taken, ("eager", "sdpa", "compiled")) == "eager"
    assert fastest({}, ("eager",)) is None


def test_the_least_work_of_a_model() -> None:
    assert products(CONFIG) == [(40, 100), (60, 40), (40, 112), (56, 40)]
    layer = 40 * 100 + 60 * 40 + 40 * 112 + 56 * 40
    assert step_bytes(CONFIG, "f32") == 4 * (3 * layer + 40 * 61)
    assert step_bytes(CONFIG, "bf16") * 2 == step_bytes(CONFIG, "f32")
    # Keys seen by 5 queries: 1 + 2 + 3 + 4 + 5, once for scores and once for values.
    assert prefill_flops(CONFIG, 5) == 2 * (3 * (5 * layer + 2 * 15 * 60) + 40 * 61)
    assert floor_work(CONFIG, PREFILL) == prefill_flops(CONFIG, 512)
    assert floor_work(CONFIG, DECODE) == 32 * step_bytes(CONFIG, "f32")


def test_what_is_measured_and_in_which_order() -> None:
    wanted = measures([128, 512, 2048], [1, 8], ["f32", "bf16"], 32)
    assert [one.name for one in wanted] == [
        *("prefill_512", "decode_b1", "decode_b8", "prefill_128", "prefill_2048"),
        *("prefill_512_bf16", "decode_b1_bf16", "decode_b8_bf16", "prefill_128_bf16"),
    ]
    assert [one.name for one in measures([2048], [1], ["bf16"], 4)] == [
        "decode_b1_bf16",
        "prefill_2048_bf16",
    ]


def test_prompts_are_the_same_for_all() -> None:
    rows = prompt_of(DECODE, 61)
    assert rows == prompt_of(DECODE, 61) and len(rows) == 8 and len({*map(tuple, rows)}) == 8
    assert all(len(row) == 128 and min(row) >= 0 and max(row) < 61 for row in rows)


def test_other_tokens_count_from_the_first_other_one_on() -> None:
    assert same_tokens([[1, 2, 3]], [[1, 2, 3]]) == (3, 3)
    assert same_tokens([[1, 2, 3]], [[1, 5, 3]]) == (1, 3)


def test_what_is_measured_once_has_ratios_too() -> None:
    found = result(measured("jaxllama", 1.0), measured("eager", 2.0)).ratios()
    assert {name: ratio.median for name, ratio in found.items()} == {
        "prefill_512_vs_eager": 2.0,
        "prefill_512_vs_best_torch": 2.0,
        "load_memory_vs_weights": 1.0,
        "peak_memory_vs_weights": 0.5,
        "peak_memory_vs_eager": 1.0,
        "first_token_vs_eager": 6 / 5,
        "compile_prefill_512_vs_eager": 1.0,
    }


def test_who_writes_other_tokens_is_told() -> None:
    ours = measured("jaxllama", 1.0)
    assert result(ours, measured("eager", 2.0)).notes() == []
    (said,) = result(ours, measured("eager", 2.0, tokens=8)).notes()
    assert said == "prefill_512: eager writes 0 of 1 tokens as we"


def test_what_others_did_meanwhile_is_told_where_it_counts() -> None:
    assert result(idle_share=0.01).notes() == []
    assert "used 40% of a processor" in result(idle_share=0.4).notes()[0]
