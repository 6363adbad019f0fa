from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from jaxllama.checkpoint.samples import TINY
from jaxllama.errors import InputError
from parity.inputs import Inputs, batch_alike, join_inputs, visible_keys
from parity.scenarios import DEFAULT_SCENARIOS, LONG_POSITION_STARTS, SCENARIOS, scenario
from parity.texts import prose


def encode(text: str) -> list[int]:
    return list(text.encode())


def build(name: str, **options: Any) -> Inputs:
    return scenario(name, encode, TINY, **options)


@pytest.mark.parametrize("name", SCENARIOS)
def test_masks_hold_for_every_pair(name: str) -> None:
    inputs = build(name, length=19)
    B, T = inputs.tokens.shape
    for b in range(B):
        for q in range(T):
            for k in range(T):
                same = inputs.segments is None or inputs.segments[b, q] == inputs.segments[b, k]
                near = inputs.window is None or q - k < inputs.window
                both = inputs.valid[b, q] and inputs.valid[b, k]
                assert inputs.mask[b, q, k] == (k <= q and both and same and near)


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("length", [None, 19, 3, 1])
def test_positions_count_real_tokens(name: str, length: int | None) -> None:
    inputs = build(name, length=length)
    for b in range(len(inputs.tokens)):
        counts: dict[int, int] = {}
        for column in np.flatnonzero(inputs.valid[b]):
            document = 0 if inputs.segments is None else int(inputs.segments[b, column])
            start = LONG_POSITION_STARTS[b] if name == "long_positions" else 0
            assert inputs.positions[b, column] == start + counts.get(document, 0)
            counts[document] = counts.get(document, 0) + 1
        assert counts
    assert not inputs.positions[~inputs.valid].any()


@pytest.mark.parametrize("name", SCENARIOS)
def test_shapes_dtypes_and_sizes(name: str) -> None:
    inputs = build(name)
    B, T = inputs.tokens.shape
    assert B != T
    assert T not in dataclasses.astuple(TINY)
    assert inputs.tokens.dtype == inputs.positions.dtype == np.int32
    assert inputs.valid.dtype == inputs.mask.dtype == np.bool_
    assert inputs.mask.shape == (B, T, T)
    assert inputs.tokens.min() >= 0
    assert inputs.tokens.max() < TINY.vocab_size
    assert len({row.tobytes() for row in inputs.tokens}) == B  # rows differ


def test_each_scenario_is_what_its_name_says() -> None:
    causal = build("causal")
    assert causal.tokens.shape[1] >= 500
    assert causal.valid.all()
    assert build("long_positions").positions.min() > 8192
    assert len(set(build("long_positions").positions[:, 0])) > 1
    right, left = build("right_padded"), build("left_padded")
    assert right.valid[:, 0].all()
    assert not right.valid[1:, -1].any()
    assert left.valid[:, -1].all()
    assert not left.valid[1:, 0].any()
    assert len(set(left.valid.sum(axis=1))) == 3
    packed = build("packed")
    assert packed.segments is not None
    assert packed.segments.max() == 2
    assert not packed.valid.all()
    windowed = build("windowed")
    assert windowed.window is not None
    assert windowed.tokens.shape[1] % windowed.window
    mixed = build("mixed_lengths")
    assert mixed.valid[:, 0].all()
    assert mixed.valid[:, -1].all()
    assert not mixed.valid.all()
    assert DEFAULT_SCENARIOS == ("causal", "long_positions", "right_padded", "left_padded")


def test_pads_hold_the_pad_token_and_are_known_by_validity_alone() -> None:
    inputs = build("right_padded")
    assert (inputs.tokens[~inputs.valid] == TINY.pad_token_id).all()
    unnamed = scenario("right_padded", encode, TINY.replace(pad_token_id=None))
    assert (unnamed.tokens[~unnamed.valid] == 0).all()
    zeros = build("right_padded", prompt=[0, 0, 0, 0])  # ids equal to a pad's are still tokens
    assert zeros.valid[0].all()


def test_running_text_has_special_tokens_and_the_ends_of_the_vocabulary() -> None:
    ends = {TINY.bos_token_id, *TINY.eos_token_ids, 0, TINY.vocab_size - 1}
    many = range(256, 264)
    marked = build("causal", specials=many).tokens[0]
    assert {*ends, *many} <= {*marked.tolist()}
    plain = np.array([*prose().encode()])[: marked.size]
    assert (marked != plain).sum() == len({*ends, *many})
    # Where there is little room, the most telling; of too many, some from all of them.
    assert {256, 263} <= {*build("causal", length=23, specials=many).tokens[0].tolist()}
    crowded = build("causal", length=80, specials=range(100, 200)).tokens[0].tolist()
    assert {256, 263, 257, 0, 100, 199} <= {*crowded}
    assert not {*ends} & {*build("causal", prompt=[5, 6], length=99).tokens[0].tolist()}


def test_prompts_of_the_user() -> None:
    assert build("causal", prompt="Hello").tokens.tolist() == [encode("Hello")]
    assert build("causal", prompt=[5, 6, 7]).tokens.tolist() == [[5, 6, 7]]
    assert build("causal", prompt=[5, 6, 7], length=5).tokens.tolist() == [[5, 6, 7, 5, 6]]
    one = build("left_padded", prompt=[9])
    assert one.tokens.shape == (3, 1)
    assert one.valid.all()

    class Encoding:
        ids = (3, 4)

    class Tokenizer:
        def encode(self, text: str) -> Encoding:
            return Encoding()

    assert scenario("causal", Tokenizer(), TINY, prompt="x").tokens.tolist() == [[3, 4]]


@pytest.mark.ill_typed
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [1, 2, 264, 999]}, r"token id 264 at index 2 .* vocabulary of 264 ids"),
        ({"prompt": [1, -1]}, r"token id -1 at index 1"),
        ({"prompt": [1.5]}, "expected one row of integers"),
        ({"prompt": [[1], [2]]}, "expected one row of integers"),
        ({"length": 0}, "length 0, expected at least 1"),
    ],
)
def test_bad_prompts_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("causal", **options)


def test_an_empty_text_is_refused_whatever_the_tokenizer_puts_before_it() -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        scenario("causal", lambda text: [1, *encode(text)], TINY, prompt="")


def test_an_unknown_scenario_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"scenario 'casual': expected one of causal, "):
        build("casual")


def test_more_than_the_context_is_refused_and_the_default_cut() -> None:
    short = TINY.replace(max_position_embeddings=16)
    said = r"length: 17 tokens, and .* states a context of 16 .*; give at most length=16"
    with pytest.raises(InputError, match=said):
        scenario("causal", encode, short, length=17)
    with pytest.raises(
        InputError, match=r"prompt: 17 tokens, .*; shorten the prompt, or cut it by"
    ):
        scenario("causal", encode, short, prompt=[1] * 17)
    for given in ({}, {"length": 16}, {"prompt": [1] * 17, "length": 16}):
        made = scenario("causal", encode, short, **given)
        assert (made.tokens.shape, made.notes) == ((1, 16), ())
    # Far positions are what this one is for.
    (note,) = scenario("long_positions", encode, short).notes
    assert note.startswith("positions reach 20026, past the stated context of 16 tokens")


def test_the_digest_moves_with_everything_a_model_is_given() -> None:
    inputs = build("packed", length=19)
    assert inputs.digest() == build("packed", length=19).digest()
    digests = {inputs.digest()}
    for name in ("tokens", "positions", "valid", "mask"):
        array = getattr(inputs, name).copy()
        array[0, 0] = ~array[0, 0] if array.dtype == bool else array[0, 0] + 1
        digests.add(dataclasses.replace(inputs, **{name: array}).digest())
    assert len(digests) == 5


def test_a_wrong_mask_would_be_noticed() -> None:
    valid = np.array([[True, True, False], [False, True, True]])
    assert visible_keys(valid)[0].tolist() == [
        [True, False, False],
        [True, True, False],
        [False] * 3,
    ]
    assert visible_keys(valid)[1].tolist() == [
        [False] * 3,
        [False, True, False],
        [False, True, True],
    ]
    assert visible_keys(valid, window=1)[1].tolist() == np.diag([False, True, True]).tolist()
    assert visible_keys(valid, segments=np.array([[0, 1, 1]] * 2))[0].sum() == 2


def test_the_text_is_long_and_varied() -> None:
    text = prose()
    assert len(text.split()) >= 700
    assert "1024" in text
    assert "def " in text
    assert not text.isascii()


def test_scenarios_of_one_length_and_rule_share_a_batch() -> None:
    groups = batch_alike([build(name) for name in SCENARIOS])
    names = [[one.name for one in group] for group in groups]
    ragged = ["long_positions", "right_padded", "left_padded", "mixed_lengths"]
    assert names == [["causal"], ragged, ["packed"], ["windowed"]]
    same = batch_alike([build(name, length=17) for name in SCENARIOS])
    assert [[one.name for one in group] for group in same] == names  # one row stays alone
    batch = join_inputs(groups[1])
    start = 0
    for part in groups[1]:
        rows = slice(start, start + len(part.tokens))
        for field in ("tokens", "positions", "valid", "mask"):
            assert np.array_equal(getattr(batch, field)[rows], getattr(part, field))
        start = rows.stop
    assert start == len(batch.tokens) and batch.segments is None and batch.window is None
    assert join_inputs(groups[2]) is groups[2][0]
    with pytest.raises(AssertionError, match="windowed"):
        join_inputs([groups[1][0], groups[3][0]])
