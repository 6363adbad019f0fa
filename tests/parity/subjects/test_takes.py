"""What a subject declares to take: what it does not is said, and hides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from witnesses import LAYERS, inputs_for, small

import parity
from jaxllama.errors import InputError
from parity.inputs import Inputs
from parity.report.wording import summary
from parity.result import Result
from parity.scenarios import SCENARIOS
from parity.subjects import Takes, from_callable
from parity.subjects.base import Subject
from parity.subjects.torch_reference.subject import TorchReference

CHECKPOINT = small()
CONFIG = CHECKPOINT.config
NAMES = {
    "q{i}": "layers.{i}.q_rope",
    "probs{i}": "layers.{i}.attn_probs",
    "block{i}": "layers.{i}.output",
    "scores": "logits",
}


def counting(takes: Takes | None = None, theta: float = CONFIG.rope_theta) -> Subject:
    """Return a subject that counts positions in columns, whatever it is given."""

    def shown(inputs: Inputs) -> dict[str, Any]:
        columns = np.broadcast_to(np.arange(inputs.tokens.shape[1]), inputs.tokens.shape)
        own = Inputs(
            inputs.name, inputs.tokens, columns.astype(np.int32), inputs.valid, inputs.mask
        )
        config = CONFIG.replace(rope_theta=theta)
        run = TorchReference(CHECKPOINT, dtype="f32", config=config).start(own)
        taps: dict[str, Any] = {}
        for _ in range(LAYERS + 2):
            taps |= run.step()
        kinds = {"q": "q_rope", "probs": "attn_probs", "block": "output"}
        of_layers = {
            f"{own}{i}": taps[f"layers.{i}.{tap}"]
            for own, tap in kinds.items()
            for i in range(LAYERS)
        }
        return of_layers | {"scores": taps["logits"]}

    return from_callable(shown, names=NAMES, config=CONFIG, takes=takes)


def judged(subject: Subject, **options: Any) -> Result:
    return parity.run(CHECKPOINT, subject=subject, **({"length": 11, "modes": "free"} | options))


def test_positions_in_columns_are_given_to_both_sides() -> None:
    undeclared = judged(counting(), scenarios="left_padded", seconds=0.1)
    assert undeclared.first_divergence is not None
    assert undeclared.first_divergence.row.tap == "layers.0.q_rope"
    result = judged(counting(Takes(positions="columns")), scenarios="all")
    assert result.verdict == "equal"
    assert {row.scenario for row in result.rows} == {*SCENARIOS} - {"long_positions"}
    line = summary(result)[1]
    assert line.startswith("not run: ")
    assert "long_positions (the subject counts columns and takes no positions)" in line
    assert any(n.startswith("left_padded: positions are counted in columns") for n in result.notes)
    assert not any(note.startswith("causal: positions") for note in result.notes)


def test_what_is_not_taken_hides_no_divergence() -> None:
    takes = Takes(masks=(), positions="columns")
    result = judged(counting(takes, theta=1e4))
    assert (result.verdict, result.exit_code) == ("divergent", 1)
    assert {row.scenario for row in result.rows} == {"causal", "right_padded"}
    assert "left_padded (the subject takes no mask that hides pads before" in summary(result)[1]
    assert "--scenario" not in result.command and "scenarios" not in result.command


@pytest.mark.parametrize(
    ("takes", "taken"),
    [
        (Takes(), set(SCENARIOS)),
        (Takes(masks=()), {"causal", "long_positions", "right_padded"}),
        (Takes(masks=("padding",)), {*SCENARIOS} - {"packed", "windowed"}),
        (Takes(masks=("packed",), positions="rows"), {"causal", "right_padded"}),
        (Takes(positions="rows"), {*SCENARIOS} - {"packed", "long_positions"}),
        (Takes(positions="columns"), {*SCENARIOS} - {"long_positions"}),
        (Takes(scenarios=("packed", "causal")), {"packed", "causal"}),
    ],
)
def test_which_scenarios_are_taken(takes: Takes, taken: set[str]) -> None:
    inputs = [inputs_for(CHECKPOINT, name, 11) for name in SCENARIOS]
    kept, refused = takes.sort(inputs)
    assert {one.name for one in kept} == taken == {*SCENARIOS} - set(refused)


def test_a_captures_positions_are_not_counted_anew() -> None:
    inputs = [inputs_for(CHECKPOINT, name, 11) for name in SCENARIOS]
    kept, _ = Takes(positions="columns").sort(inputs, recount=False)
    assert [one.name for one in kept] == ["causal", "right_padded", "windowed"]
    assert all(
        one is there for one, there in zip(kept, (inputs[0], inputs[2], inputs[5]), strict=True)
    )


def test_the_cache_is_tried_on_what_is_left_and_gradients_too() -> None:
    class Narrow(TorchReference):
        takes = Takes(masks=())

    result = parity.run(
        CHECKPOINT, subject=Narrow(CHECKPOINT, dtype="f32"), length=9, modes="free,decode,grad"
    )
    assert result.verdict == "equal"
    ran = {(row.mode, row.scenario) for row in result.rows}
    assert ("decode", "right_padded") in ran and ("decode", "left_padded") not in ran
    assert {scenario for mode, scenario in ran if mode == "grad"} == {"causal"}
    assert any("packed (the subject takes no mask" in said for said in result.not_run)


def test_nothing_that_is_asked_for_is_taken() -> None:
    with pytest.raises(InputError, match=r"takes none of them .*documents.*widen its takes="):
        judged(counting(Takes(masks=())), scenarios="packed")


def test_a_capture_says_what_it_lacks(tmp_path: Path) -> None:
    options: dict[str, Any] = {"scenarios": "causal,left_padded", "length": 9}
    takes = Takes(masks=())
    parity.capture(CHECKPOINT, tmp_path / "ours", subject=counting(takes), **options)
    parity.capture(CHECKPOINT, tmp_path / "theirs", subject="torch", dtypes="f64,f32", **options)
    result = parity.compare(tmp_path / "ours", tmp_path / "theirs")
    assert result.verdict == "equal"
    assert any(
        "left_padded is not captured: the subject takes no mask" in s for s in result.not_run
    )
    wrong = counting(takes, theta=1e4)
    parity.capture(CHECKPOINT, tmp_path / "wrong", subject=wrong, **options)
    assert parity.compare(tmp_path / "wrong", tmp_path / "theirs").verdict == "divergent"
    with pytest.raises(InputError, match="takes none of them"):
        parity.capture(CHECKPOINT, tmp_path / "none", subject=wrong, scenarios="packed", length=9)


@pytest.mark.ill_typed
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"masks": ("paddings",)}, "did you mean padding"),
        ({"positions": "column"}, "did you mean columns"),
        ({"scenarios": ("packd",)}, "did you mean packed"),
        ({"scenarios": ()}, "run on nothing"),
    ],
)
def test_unknown_words(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Takes(**options)
