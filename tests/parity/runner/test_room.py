"""Whether a length fits memory is asked for the batch that is really held."""

from __future__ import annotations

import re

import pytest

from jaxllama import memory
from jaxllama.checkpoint.samples import TINY
from jaxllama.errors import InputError
from jaxllama.memory import free_bytes
from parity.inputs import batch_alike
from parity.runner import room
from parity.runner.plan import make_inputs, make_plan
from parity.runner.room import check_room
from parity.scenarios import SCENARIOS, Shape, scenario, shape

HEADS, MAPS = 6, 4


def encode(text: str) -> list[int]:
    return list(text.encode())


def shapes(*names: str, length: int = 1000):
    config = TINY.replace(max_position_embeddings=10**9)
    return [shape(name, encode, config, length=length) for name in names]


def test_a_shape_is_that_of_what_is_built() -> None:
    for options in ({}, {"length": 19}, {"prompt": "thirteen signs"}):
        built = [scenario(name, encode, TINY, **options) for name in SCENARIOS]
        told = [shape(name, encode, TINY, **options) for name in SCENARIOS]
        assert [one.tokens.shape for one in built] == [(s.rows, s.length) for s in told]
        together = [[one.name for one in group] for group in batch_alike(built)]
        keys = list(dict.fromkeys(s.batch for s in told))
        assert together == [[s.name for s in told if s.batch == key] for key in keys]


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (["causal"], 1),
        (["packed"], 3),
        (["causal", "right_padded"], 3),
        (["causal", "packed"], 3),
        (["windowed", "packed"], 3),
    ],
)
def test_the_last_byte_that_fits_is_let_through(names: list[str], rows: int) -> None:
    needed = MAPS * rows * HEADS * 1000**2 * 8
    check_room(shapes(*names), HEADS, maps=MAPS, free=needed)
    with pytest.raises(InputError) as refused:
        check_room(shapes(*names), HEADS, maps=MAPS, free=needed - 1)
    assert "give length=999 or less" in str(refused.value)


def test_the_length_that_is_named_fits_and_the_next_does_not() -> None:
    free = 7_654_321_000
    with pytest.raises(InputError) as refused:
        check_room(shapes("causal", length=10**8), HEADS, maps=MAPS, free=free)
    assert "take at least 1.92 EB, and 7.65 GB of this machine's memory are free" in str(
        refused.value
    )
    fits = int(re.findall(r"length=(\d+)", str(refused.value))[0])
    check_room(shapes("causal", length=fits), HEADS, maps=MAPS, free=free)
    with pytest.raises(InputError):
        check_room(shapes("causal", length=fits + 1), HEADS, maps=MAPS, free=free)


def told(monkeypatch: pytest.MonkeyPatch, modes: str, lanes: str) -> dict[str, float]:
    """Return by scenarios the most maps that a run is taken to hold."""
    found: dict[str, float] = {}

    def noted(measured: list[Shape], heads: int, *, maps: float) -> None:
        if measured:
            names = " ".join(one.name for one in measured)
            found[names] = max(maps, found.get(names, 0))

    monkeypatch.setattr(room, "check_room", noted)
    plan = make_plan("torch", lanes, modes, "causal,packed", ())
    make_inputs(plan, TINY, encode, None, 13, ())
    return found


@pytest.mark.parametrize(
    ("modes", "lanes", "maps"),
    [
        ("free", "f32", {"causal packed": 4.5}),
        ("free", "f64,f32", {"causal packed": 5.9}),
        ("free,decode", "f32", {"causal packed": 6.6}),
        ("free,isolated,decode", "f32", {"causal packed": 7.9}),
        ("free,isolated", "all", {"causal packed": 10.0}),
        ("grad", "f64", dict.fromkeys(("causal", "packed"), 4.0 * TINY.num_hidden_layers)),
        ("step", "f64", {"packed": 1.8 * TINY.num_hidden_layers}),
        ("generate", "f64", {"right_padded": 6.0}),
    ],
)
def test_a_mode_is_held_to_what_it_was_measured_to_hold(
    monkeypatch: pytest.MonkeyPatch, modes: str, lanes: str, maps: dict[str, float]
) -> None:
    assert told(monkeypatch, modes, lanes) == pytest.approx(maps)


def test_what_cannot_be_told_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_bytes()
    assert free is not None and 10**8 < free < 10**15
    monkeypatch.setattr(memory, "_of_groups", lambda: [1000])
    assert free_bytes() == 1000  # a container's limit, where it is the lower one
    monkeypatch.setattr(memory, "_of_machine", lambda: None)
    monkeypatch.setattr(memory, "_of_groups", list)
    assert free_bytes() is None
    check_room(shapes("causal", length=10**8), HEADS, maps=MAPS)
