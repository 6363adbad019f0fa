"""`parity taps` and `parity names`: what can be shown, and what a subject shows."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from terminals import unreadable
from typer.testing import CliRunner
from witnesses import LAYERS, inputs_for, small

from jaxllama.command_line.layout import say
from parity.cli import app
from parity.commands.names import _names_lines, _taps_lines
from parity.report.wording import summary
from parity.runner import run
from parity.subjects import from_callable
from parity.subjects.base import Subject
from parity.subjects.dry_run import dry_run
from parity.subjects.torch_reference.subject import TorchReference
from parity.taps import (
    AXES,
    GRAD_TAPS,
    LETTERS,
    MEANINGS,
    layout_hint,
    layouts_like,
    meaning_of,
    template_of,
)

CHECKPOINT = small()
CONFIG = CHECKPOINT.config


def parity(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.output


def test_every_tap_has_a_meaning_and_its_letters_too() -> None:
    assert set(MEANINGS) == {kind for kind in AXES if kind not in GRAD_TAPS} | {"loss"}
    assert set("".join(AXES.values())) == set(LETTERS)
    assert "scaled, before the mask" in meaning_of("layers.attn_scores")
    assert meaning_of("grad.norm") == "gradient of the loss by norm"


def test_taps_are_listed() -> None:
    code, text = parity("taps")
    assert code == 0 and "H  features of a head" in text
    for kind in AXES:
        assert f"{template_of(kind)} " in text
    code, text = parity("taps", "--json", "-")
    rows = json.loads(text)["taps"]
    assert code == 0 and len(rows) == len(AXES) and "shown" not in rows[0]


def test_taps_of_a_subject() -> None:
    code, text = parity("taps", "--subject", "dot_product", "--json", "-")
    document = json.loads(text)
    hidden = [row["name"] for row in document["taps"] if not row["shown"]]
    assert code == 0 and hidden[:2] == ["layers.{i}.attn_scores", "layers.{i}.attn_probs"]
    code, text = parity("taps", "--subject", "dot_product")
    assert "- layers.{i}.attn_scores" in text and "+ layers.{i}.q_proj" in text


def test_names_of_a_subject(tmp_path: Path) -> None:
    code, text = parity("names", "tiny", "--subject", "dot_product", "--json", str(tmp_path / "n"))
    assert code == 0
    assert text.startswith("jaxllama-dot_product in f32, causal: shows 24 kinds of taps")
    assert "layers.{i}.q_proj (0 to 4)  BTNH [1, 8, 6, 16]  float32" in text
    assert "declared absent: layers.{i}.attn_scores, layers.{i}.attn_probs" in text
    document = json.loads((tmp_path / "n").read_text())
    assert document["faulty"] is False and document["silent"] == []
    assert {one["tap"] for one in document["shown"]} >= {"cache.{i}.k", "logits"}


def adapted(leave_out: str = "", *, flat: bool = False, scale: float = 1.0) -> Subject:
    def shown(inputs: Any) -> dict[str, Any]:
        run = TorchReference(CHECKPOINT, dtype="f32").start(inputs)
        taps: dict[str, Any] = {}
        for _ in range(LAYERS + 2):
            taps |= run.step()
        found = {f"block{i}": taps[f"layers.{i}.output"] for i in range(LAYERS)}
        if flat:
            found = {name: value.reshape(-1, value.shape[-1]) for name, value in found.items()}
        found = {name: scale * value for name, value in found.items()}
        found["scores"] = taps["logits"]
        return {name: value for name, value in found.items() if name != leave_out}

    names = {"block{i}": "layers.{i}.output", "scores": "logits"}
    return from_callable(shown, names=names, config=CONFIG)


def test_a_dry_run_tells_places_and_what_is_missing() -> None:
    inputs = inputs_for(CHECKPOINT, "causal", 5)
    report = dry_run(adapted(), inputs, CONFIG)
    assert [(one.tap, one.place, one.layers) for one in report.shown] == [
        ("layers.{i}.output", "block{i}", (0, 1, 2)),
        ("logits", "scores", ()),
    ]
    assert not report.faulty and "layers.{i}.q_proj" in report.absent
    assert not (report.cache or report.gradients)
    lost = dry_run(adapted("block1"), inputs, CONFIG)
    assert lost.faulty and lost.silent == ("layers.1.output",)
    assert lost.shown[0].layers == (0, 2)
    assert "block{i} (layers.{i}.output, layers 1)" in lost.notes[0]
    bent = dry_run(adapted(flat=True), inputs_for(CHECKPOINT, "right_padded", 5), CONFIG)
    assert bent.faulty and bent.shown[0].expected == (3, 5, 96)
    assert bent.shown[0].shape == (15, 96)
    said = next(line for line in _names_lines(bent) if "(15, 96)" in line or "[15, 96]" in line)
    assert 'expected [3, 5, 96] (if it is the same laid out otherwise, declare axes="(BT)D"' in said


def test_a_run_says_what_to_declare_and_no_error_that_nobody_measured() -> None:
    options = {"scenarios": "right_padded", "length": 9, "modes": "free", "seconds": 0.1}
    result = run.run(CHECKPOINT, subject=adapted(flat=True), **options)
    said = "\n".join(summary(result))
    assert 'declare axes="(BT)D" in its Tap' in said and "  error " not in said
    # A subject that is wrong, and not laid out otherwise, is told its error and no layout.
    said = "\n".join(summary(run.run(CHECKPOINT, subject=adapted(scale=2.0), **options)))
    assert "  error " in said and "declare axes" not in said


def test_of_a_weights_gradient_no_layout_is_offered() -> None:
    assert layouts_like((7, 5), "OI", (5, 7)) == ["IO"]
    assert layout_hint((7, 5), "OI", (5, 7)) == "" != layout_hint((7, 5), "VD", (5, 7))


@pytest.mark.parametrize(
    ("shape", "axes", "sizes", "fits"),
    [
        ((2, 9, 32), "BTNH", (2, 9, 4, 8), ["BT(NH)"]),
        ((2, 4, 9, 8), "BTNH", (2, 9, 4, 8), ["BNTH"]),
        ((18, 32), "BTNH", (2, 9, 4, 8), ["(BT)(NH)"]),
        ((2, 9, 8, 4), "BTNH", (2, 9, 4, 8), ["BTHN"]),
        # Sizes that do not tell axes apart.
        ((4, 4, 8), "BTH", (4, 4, 8), ["BTH", "TBH"]),
        ((2, 9, 33), "BTNH", (2, 9, 4, 8), []),
        ((2, 9, 4, 8, 1), "BTNH", (2, 9, 4, 8), []),
        ((9,), "BT", (2, 9), []),
    ],
)
def test_layouts_of_another_shape_are_found(
    shape: tuple[int, ...], axes: str, sizes: tuple[int, ...], fits: list[str]
) -> None:
    assert layouts_like(shape, axes, sizes) == fits


def test_a_terminal_of_40_columns_shows_all_of_it() -> None:
    rows = json.loads(parity("taps", "--subject", "dot_product", "--json", "-")[1])["taps"]
    report = dry_run(adapted(flat=True), inputs_for(CHECKPOINT, "right_padded", 5), CONFIG)
    assert unreadable(lambda c: say(c, _taps_lines(rows, "dot_product", c.width))) == []
    assert unreadable(lambda c: say(c, _names_lines(report))) == []


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "\n".join([
        "from parity.subjects import Takes, from_callable",
        "def of(checkpoint, dtype, **more):",
        "    return from_callable(lambda i: {}, names={'scores': 'logits'},",
        "                         config=checkpoint.config, dtype=dtype, **more)",
        "def mute(checkpoint, dtype): return of(checkpoint, dtype)",
        "def narrow(checkpoint, dtype):",
        "    return of(checkpoint, dtype, takes=Takes(masks=()))",
    ])  # fmt: skip
    (tmp_path / "planted_names.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    status, text = parity("names", "tiny", "--subject", "planted_names:mute")
    assert status == 1 and "named and never shown: logits" in text
    assert "note: names that never showed: scores (logits)" in text
    status, text = parity(
        "names", "tiny", "--subject", "planted_names:narrow", "--scenario", "packed"
    )
    assert status == 2 and "takes none of them" in text
    status, text = parity("names", "tiny", "--subject", "planted_nams:mute")
    assert status == 2 and "\n" not in text.strip()
