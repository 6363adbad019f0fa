"""The report on a terminal: the verdict first, and nothing a reader needs left out."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from records import result, row, witness_row
from rich.console import Console
from terminals import terminal_lines

from parity.comparison.extent import Extent
from parity.report.terminal import MOST_LAYERS, show
from parity.report.wording import place, summary
from parity.result import CauseReport, NamedCause, Result, Suspect
from parity.taps import LAYER_TAPS


def shown(found: Result, width: int = 200, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(found, console, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def diverged(**changes: Any) -> Result:
    rows = [
        row("rope.inv_freq", failed=True),
        row("layers.0.q_proj"),
        row("layers.0.q_rope", failed=True, problems=("a [bracketed] problem",)),
        row("logits", failed=True, facts={"kl_max": 0.25, "top1_flips": 3.0}),
    ]
    return result(rows, **changes)


def test_the_first_line_is_the_verdict() -> None:
    lines = shown(result([row("embed"), row("logits")])).splitlines()
    assert lines[0] == "equal: 2 taps in f64 against torch"


def test_a_divergence_is_placed_measured_and_explained() -> None:
    lines = shown(diverged()).splitlines()
    assert lines[0].startswith("divergent: 4 taps in f64 against torch; first divergence ")
    assert lines[0].endswith("layers.0.q_rope (meaning)")
    assert lines[1] == "first divergence: layers.0.q_rope (f64, scenario causal, free)"
    text = "\n".join(lines)
    assert "1e+06 times the noise, limit 32" in text
    assert "worst at row 0, token 3, feature 5: 1.5, reference 1.25" in text
    assert "a [bracketed] problem" in text
    assert "origin: it or what it was given: nothing was run" in text
    assert "flagged: rope.inv_freq" in text
    assert lines[-1] == "again: parity run tiny"


def test_a_single_element_beyond_its_limit_is_said() -> None:
    text = shown(result([row("layers.0.q_proj", peak_rho=80.0), row("logits")]))
    assert text.startswith("divergent")
    assert "largest element: 80 times the noise, limit 64" in text
    assert "80^" in text
    clean = shown(result([row("layers.0.q_proj", peak_rho=60.0)]))
    assert clean.startswith("equal") and "largest element:" not in clean


@pytest.mark.parametrize(
    ("heads", "of_heads", "said"),
    [
        ((), 0, "3 of 10 tokens, from row 1, token 4 on"),
        ((5,), 9, "3 of 10 tokens, from row 1, token 4 on; head 5 of 9"),
        ((0, 1), 2, "3 of 10 tokens, from row 1, token 4 on; all 2 heads"),
        (tuple(range(9)), 12, "token 4 on; heads 0, 1, 2, 3, 4, 5, 6, 7, ... of 12"),
    ],
)
def test_how_far_a_failure_spreads(heads: tuple[int, ...], of_heads: int, said: str) -> None:
    found = Extent(3, 10, {"B": 1, "T": 4}, heads, of_heads)
    assert said in shown(result([row("layers.0.q_rope", failed=True, extent=found)]))


def test_the_logits_line_has_divergence_shift_and_flips() -> None:
    facts = {"kl_max": 0.25, "shift": 1.5, "top1_flips": 3.0, "unexplained_flips": 1.0}
    text = shown(result([row("logits", facts=facts)]))
    assert "logits: f64 KL 2.5e-01, shift 1.5e+00, 3 top-1 flips, 1 beyond rounding" in text


def test_flips_are_put_down_to_rounding_only_where_the_logits_passed() -> None:
    facts = {"top1_flips": 3.0, "unexplained_flips": 0.0}
    passed = shown(result([row("logits", facts=facts)]))
    assert "3 top-1 flips, within what rounding explains at this dtype\n" in passed
    failed = shown(result([row("logits", failed=True, facts=facts)]))
    assert ", 3 top-1 flips\n" in failed
    assert ", 0 top-1 flips\n" in shown(result([row("logits", facts={"top1_flips": 0.0})]))


def test_a_cause_is_shown_with_its_evidence() -> None:
    cause = CauseReport(
        id="rope-theta",
        title="",
        summary="theta 1e6, config 5e5",
        confirmed=True,
        evidence=["1.2 -> 3e-7"],
        remedy="Read the config.",
        others=[NamedCause("rope-sign", "", "backwards")],
    )
    text = shown(diverged(cause=cause))
    assert "\ncause: theta 1e6, config 5e5\nand: backwards\n  1.2 -> 3e-7\n" in text
    assert "  remedy: Read the config.\n  more: parity explain rope-theta\n" in text
    suspects = [Suspect("rope-twice", "rotated twice", 0.1)]
    open_case = shown(diverged(cause=replace(cause, confirmed=False, suspects=suspects)))
    assert "\ncause, unconfirmed: theta 1e6, config 5e5\n" in open_case
    assert "  suspect: rope-twice (rotated twice), leaves 1.0e-01\n" in open_case


def test_why_a_run_is_inconclusive() -> None:
    found = result(
        [row("embed")],
        unmatched=tuple(f"layers.{i}.odd" for i in range(9)),
        witnesses=[
            witness_row(),
            witness_row(witness="hf", rho=77.0, worst_tap="norm", problems=("norm: shape",)),
            witness_row(witness="meta", unmatched=("logits",)),
        ],
    )
    text = shown(found)
    assert text.startswith("inconclusive")
    assert "witnesses disagree: hf (f64, causal) is 77 times the noise" in text
    assert "norm: shape" in text
    assert "unmatched taps of the subject: layers.0.odd" in text and "and 3 more" in text
    assert "unmatched taps of meta: logits" in text


def test_a_divergence_is_said_first_and_in_the_same_line_what_is_open() -> None:
    found = diverged(
        unmatched=("layers.1.up_proj",),
        witnesses=[
            witness_row(),
            witness_row(witness="hf", lane="bf16", rho=77.0),
            witness_row(witness="meta", unmatched=("logits",)),
        ],
    )
    text = shown(found)
    line = text.splitlines()[0]
    assert line.startswith("divergent: ") and "; first divergence " in line
    assert line.endswith("; 1 tap unmatched; unmatched taps of meta; witnesses disagree: hf")
    assert "unmatched taps of the subject: layers.1.up_proj" in text
    assert "witnesses disagree: hf (bf16, causal) is 77 times the noise" in text
    assert "unmatched" not in shown(diverged()).splitlines()[0]


def test_a_decoding_step_is_named() -> None:
    text = shown(result([row("layers.0.q_rope", failed=True, mode="decode", step=4)]))
    assert "(f64, scenario causal, decode step 4)" in text


def test_the_grid_marks_what_failed_without_colour_too() -> None:
    rows = [row(f"layers.{i}.{name}") for i in range(3) for name in ("q_proj", "mlp_act")]
    grid = shown(result(rows)).split("log10 rho")[1]
    assert "!" not in grid
    rows.append(row("layers.1.o_proj", failed=True))
    assert shown(result(rows)).split("log10 rho")[1].count("!6") == 1


@pytest.mark.parametrize("width", [80, 60, 200])
def test_the_name_of_a_tap_is_whole_however_narrow_the_terminal(width: int) -> None:
    name = "layers.12.post_attention_layernorm"
    found = result([row(name, scenario="long_positions", mode="production", peak_rho=12.0)])
    table = shown(found, width=width).split("subject against")[1].split("witnesses")[0]
    assert max(map(len, table.splitlines())) <= width
    cells = table.split("\u2500 \n")[1].splitlines()
    left = cells[0].index("layers")
    assert "".join(line[left:].strip() for line in cells) == name
    assert ("5.0e-16" in table) == (width == 200)


def test_the_grid_fits_a_terminal_of_80_columns() -> None:
    rows = [row(f"layers.{i}.{name}", failed=i > 20) for i in range(30) for name in LAYER_TAPS]
    grid = shown(result(rows), width=80).split("log10 rho")[1]
    heading = next(line for line in grid.splitlines() if "ln1" in line)
    assert heading.split()[0] == "layer" and len(set(heading.split())) == 1 + len(LAYER_TAPS)
    assert "…" not in grid
    assert "29" in [line.split()[0] for line in grid.splitlines() if line.split()]


@pytest.mark.parametrize("rho", [0.0, math.inf, math.nan])
def test_figures_that_are_no_numbers_are_still_printed(rho: float) -> None:
    assert "log10 rho" in shown(result([row("layers.0.q_proj", rho=rho)]))


def test_deep_models_say_what_is_folded() -> None:
    layers = MOST_LAYERS + 5
    text = shown(result([row(f"layers.{i}.q_proj") for i in range(layers)]))
    assert f"and {layers - MOST_LAYERS} more layers" in text


def test_a_failure_deep_down_is_on_the_grid() -> None:
    layers = MOST_LAYERS + 30
    rows = [row(f"layers.{i}.q_proj", failed=i == 60) for i in range(layers)]
    grid = shown(result(rows)).split("log10 rho")[1]
    found = {int(number) for number in re.findall(r"^\W\s+(\d+)\s", grid, re.MULTILINE)}
    assert len(found) == MOST_LAYERS and 60 in found and 0 not in found


def test_coverage_is_always_stated() -> None:
    text = shown(result([row("embed")], absent=("layers.attn_probs",)))
    assert "coverage: 1 of 42 taps compared, none unmatched" in text
    assert "declared absent: layers.attn_probs" in text


def test_the_environment_names_the_precision_of_matmuls() -> None:
    assert "float32 matmuls float32 as run, tf32 by default; jax 1.2.3" in shown(
        result([row("embed")])
    )


def test_the_machine_is_named_below_the_verdict() -> None:
    found = result([row("embed")])
    assert "machine" not in shown(found)
    found.environment["machine"] = {"line": "some processor; XLA AVX2"}
    assert shown(found).splitlines()[1] == "machine: some processor; XLA AVX2"
    assert "machine: some processor; XLA AVX2" in summary(found)
    found.environment["reference"] = {"machine": {"line": "some processor; XLA AVX2"}}
    assert "reference's machine" not in shown(found)
    found.environment["reference"] = {"machine": {"line": "another"}}
    assert shown(found).splitlines()[2] == "reference's machine: another"


def test_places_are_named_in_words() -> None:
    worst = row("layers.0.attn_probs", failed=True).worst
    assert worst is not None
    worst.index.clear()
    worst.index.update({"B": 0, "N": 5, "T": 203, "S": 17})
    assert place(row("layers.0.attn_probs", worst=worst)) == "row 0, head 5, query 203, key 17"


def on_terminal(found: Result, width: int, height: int, **options: Any) -> list[str]:
    return terminal_lines(lambda console: show(found, console, **options), width, height)


def test_quiet_is_verdict_place_cause_and_command() -> None:
    cause = CauseReport("rope-theta", "theta", "theta is not the config's", confirmed=True)
    lines = shown(diverged(cause=cause), quiet=True).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "divergent",
        "first divergence",
        "cause",
        "again",
    ]
    assert "1e+06 times the noise, limit 32, worst at row 0, token 3, feature 5" in lines[1]
    assert shown(result([row("embed")]), quiet=True).splitlines() == [
        "equal: 1 taps in f64 against torch",
        "again: parity run tiny",
    ]
    assert len(shown(result([row("embed")])).splitlines()) > 4


def test_the_verdict_is_last_too_where_it_has_left_the_screen() -> None:
    verdict = "equal: 1 taps in f64 against torch"
    low, high = (on_terminal(result([row("embed")]), 120, height) for height in (5, 500))
    assert low[0] == low[-1] == high[0] == verdict
    assert high[-1].startswith("again: ")
    # A pipe has no screen.
    assert shown(result([row("embed")])).splitlines()[-1].startswith("again: ")


@pytest.mark.parametrize("width", [40, 60, 100])
def test_nothing_is_clipped_or_broken_in_a_narrow_terminal(width: int) -> None:
    rows = [
        row(f"layers.{layer}.{name}", failed=layer == 1) for layer in (0, 1) for name in LAYER_TAPS
    ]
    found = result([*rows, row("logits")], witnesses=[witness_row()])
    lines = on_terminal(found, width, 500)
    copied = [line for line in lines if line.startswith("again: ")]
    assert max(len(line) for line in lines if line not in copied) <= width
    text = " ".join(line.strip() for line in lines)
    assert "…" not in text
    assert "1e+06" in text and "layers.1.input" in "".join(line.strip() for line in lines)
    # Words are whole: what a wide terminal says in its first lines is said here.
    for line in on_terminal(found, 400, 500)[:3]:
        assert line.strip() in text
