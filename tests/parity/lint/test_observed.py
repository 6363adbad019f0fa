"""The masks that running models really hand to their attention, and what the rules say of them."""

from __future__ import annotations

import json

import jax
import numpy as np
import observed_models
import pytest
import torch

from jaxllama.errors import InputError
from parity.lint import lint
from parity.lint.observed.call import AttentionCall
from parity.lint.observed.observe import group, observe
from parity.lint.reading import read

VALID = np.array(observed_models.VALID, bool)
CAUSAL = np.tri(6, dtype=bool)[None, None]
PADDED = CAUSAL & VALID[:, None, None, :]


def watched(name: str):
    (mask,) = observe(f"observed_models:{name}")
    return mask


@pytest.mark.parametrize(
    ("name", "function", "turns", "heads", "intended"),
    [
        ("transformers_sdpa", "scaled_dot_product_attention in PyTorch", (0, 1), 4, PADDED),
        ("transformers_eager", "softmax in PyTorch", (0, 1), 4, PADDED),
        ("transformers_without_mask", "scaled_dot_product_attention in PyTorch", (0, 1), 4, CAUSAL),
        ("multihead", "torch.nn.MultiheadAttention", (0,), 4, PADDED),
        ("ours", "jax.nn.softmax", (0, 1, 2, 3, 4), 6, PADDED),
        ("ours_by_kernel", "jax.nn.dot_product_attention", (0, 1, 2, 3, 4), 6, PADDED),
        ("flax_in_jit", "jax.nn.dot_product_attention", (0,), 4, CAUSAL),
        (
            "by_name",
            "jax.nn.dot_product_attention",
            (0,),
            4,
            CAUSAL & ~np.tri(6, k=-3, dtype=bool) & (np.arange(6) < [[[[4]]], [[[6]]]]),
        ),
    ],
)
def test_what_an_attention_gets_is_seen(name, function, turns, heads, intended):
    mask = watched(name)
    assert (mask.call.function, mask.turns, mask.call.heads) == (function, turns, heads)
    assert mask.call.scores_dtype == "f32"
    seen = read(mask.call.mask, None).seen
    real = np.broadcast_to(intended.any(-1, keepdims=True), (2, 1, 6, 6))
    np.testing.assert_array_equal(
        np.broadcast_to(seen, real.shape)[real], np.broadcast_to(intended, real.shape)[real]
    )


def rules(name: str, **facts) -> set[str]:
    found = [lint(mask.call.case(**facts)) for mask in observe(f"observed_models:{name}")]
    return {finding.rule for report in found for finding in report.findings}


@pytest.mark.parametrize(
    "name",
    [
        "transformers_eager",
        "multihead",
        "ours",
        "folded_sdpa",
        "bfloat16_sdpa",
        "added_to_scores",
        "softmax_with_where",
    ],
)
def test_sound_ones_are_clean_though_nothing_is_said_of_their_tokens(name):
    assert rules(name, empty_row="zero") == set()


@pytest.mark.parametrize(
    ("name", "facts", "rule"),
    [
        ("leaking_in_jit", {}, "M07"),
        ("causal_at_the_top_left", {}, "C04"),
        ("softmax_imported_by_name", {}, "M07"),
        ("transformers_without_mask", {"valid": VALID}, "M09"),
        ("multihead_with_validity_for_padding", {"valid": VALID}, "M09"),
    ],
)
def test_faults_are_found(name, facts, rule):
    assert rule in rules(name, **facts)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("failing", "it raised RuntimeError: no such weights .observed_models.py:"),
        ("without_attention", "no attention was seen"),
        ("router_of_experts", "no attention was seen"),
        ("banned_tokens", "no attention was seen"),
        ("leaving", "it raised SystemExit: 3"),
        ("in_vmap", "inside vmap, grad, remat or a compiled call"),
        ("with_an_argument", "which it does not take"),
        ("VALID", "a list, expected a function"),
        ("nowhere", "has no attribute 'nowhere'"),
    ],
)
def test_what_cannot_be_watched_is_refused(name, said):
    with pytest.raises(InputError, match=said):
        observe(f"observed_models:{name}")


def test_rows_and_heads_in_one_axis_are_told_apart_where_rows_are_known():
    assert rules("folded_sdpa", valid=VALID, empty_row="zero") == set()
    assert rules("folded_sdpa", valid=np.ones_like(VALID), empty_row="zero") == {"M07"}


def test_a_mask_keeps_its_dtype():
    assert watched("bfloat16_sdpa").call.mask.dtype.name == "bfloat16"


def test_everything_is_put_back(capsys):
    before = jax.nn.softmax, jax.nn.dot_product_attention, jax.config.jax_disable_jit
    fast = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(InputError):
        observe("observed_models:failing")
    assert before == (jax.nn.softmax, jax.nn.dot_product_attention, jax.config.jax_disable_jit)
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_slots_of_a_cache_are_not_taken_for_tokens():
    decode = AttentionCall("f", np.arange(8)[None, None, None] < 5, 2, "f32")
    assert lint(decode.case()).findings == []
    assert lint(decode.case(past=4)).findings == []
    assert {f.rule for f in lint(decode.case(past=3)).findings} == {"C02"}
    grown = AttentionCall("f", np.arange(8)[None, None, None] != 3, 2, "f32")
    assert "C01" in lint(grown.case()).checked


def test_calls_with_one_mask_are_one():
    one, other = (AttentionCall("f", np.full((1, 1, 2, 2), x), 1, "f32") for x in (True, False))
    first, second = group([one, other, one, one])
    assert (first.turns, second.turns) == ((0, 2, 3), (1,))
    assert (first.name, second.name) == ("calls 0, 2, 3 of f", "call 1 of f")


def test_the_command(run_lint, tmp_path):
    valid = json.dumps(observed_models.VALID)
    out, sarif = tmp_path / "lint.json", tmp_path / "lint.sarif"
    place = "observed_models:transformers_without_mask"
    result = run_lint("--from", place, "--valid", valid, "--json", out, "--sarif", sarif)
    assert result.exit_code == 1
    assert result.output.startswith(f"faulty: 1 mask of {place}")
    said = json.loads(out.read_text())
    assert (said["from"], said["verdict"], len(said["masks"])) == (place, "faulty", 1)
    assert said["masks"][0]["mask"] == "calls 0 to 1 of scaled_dot_product_attention in PyTorch"
    (found,) = json.loads(sarif.read_text())["runs"][0]["results"]
    assert found["ruleId"] == "M09"


@pytest.mark.parametrize("arguments", [(), ("causal()", "--from", "observed_models:ours")])
def test_either_a_mask_or_a_model(run_lint, arguments):
    result = run_lint(*arguments)
    assert isinstance(result.exception, InputError)
    assert "give either a mask" in str(result.exception)
