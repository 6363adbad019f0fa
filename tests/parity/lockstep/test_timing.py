"""Where the seconds of a run go."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import jax
import pytest
from witnesses import small

import parity
from jaxllama import compilation_cache
from parity.lockstep.timing import Timer, on_event
from parity.report.environment import PASSES, cost_line


def test_what_is_compiled_is_counted_apart() -> None:
    timer = Timer()
    with timer.measure("work"):
        time.sleep(0.02)
        on_event("/jax/core/compile/backend_compile_duration", 5.0)
        on_event("/jax/other", 7.0)
    taken = timer.seconds()
    assert taken["compiling_s"] == 5.0 and -5 < taken["work_s"] < -4
    assert Timer().seconds() == {}


def test_threads_add_up_and_what_has_no_name_counts_nothing() -> None:
    def work(what: str | None) -> None:
        with timer.measure(what):
            time.sleep(0.01)

    timer = Timer()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, ["a", "a", None]))
    assert set(timer.seconds()) == {"a_s", "compiling_s"} and timer.seconds()["a_s"] >= 0.02


@pytest.mark.parametrize(
    ("modes", "shown", "bare"),
    [
        ("grad", {"grad"}, {"grad"}),
        ("isolated", {"isolated"}, set()),
        ("free,grad", {"free", "grad"}, {"free", "grad"}),
    ],
)
def test_a_run_says_what_each_mode_cost(modes: str, shown: set[str], bare: set[str]) -> None:
    result = parity.run(small(), dtypes="f32", scenarios="causal", length=9, modes=modes)
    timing = result.timing
    assert timing["compiling_s"] > 0 and timing["comparing_s"] > 0
    passes = {f"subject_{mode}_s" for mode in shown} | {f"bare_{mode}_s" for mode in bare}
    assert passes == {key for key in timing if key.startswith(("subject_", "bare_"))}
    assert all(0 < timing[key] < timing["total_s"] for key in passes)
    said = [words for mode, words in PASSES.items() if f"{words} " in cost_line(timing)]
    assert said == [words for mode, words in PASSES.items() if mode in shown]


def test_programs_kept_from_before_cost_less_and_change_no_figure(kept_programs: Path) -> None:
    compilation_cache.turn_on()
    seen, files = [], []
    for _ in range(2):
        jax.clear_caches()
        seen.append(parity.run(small(), dtypes="f32", scenarios="causal", length=9))
        files.append(set(kept_programs.glob("*/*")))
    assert files[0] and files[0] == files[1]
    cold, warm = seen
    assert 0 < warm.timing["compiling_s"] < cold.timing["compiling_s"]
    for timing in (cold.timing, warm.timing):
        passes = [timing[key] for key in timing if key.startswith(("subject_", "bare_"))]
        # No second is counted twice: of what was read back, its compiling seconds long ago are not.
        assert min(passes) > 0 and sum(passes) + timing["compiling_s"] < timing["total_s"]
    assert [asdict(row) for row in cold.rows] == [asdict(row) for row in warm.rows]


def test_a_mode_is_set_against_its_own_run_without_taps() -> None:
    timing = {"bare_free_s": 1.0, "subject_free_s": 2.0, "subject_decode_s": 3.0, "total_s": 9.0}
    timing |= {"bare_grad_s": 4.0, "subject_grad_s": 5.0, "comparing_s": 6.0, "compiling_s": 7.0}
    assert cost_line(timing) == (
        "cost: forward passes 1.0 s as users run them, 2.0 s with taps; "
        "through caches 3.0 s with taps; gradients 4.0 s as users run them, 5.0 s with taps; "
        "comparing 6.0 s of a processor; compiling 7.0 s, not in these"
    )
    assert cost_line({"subject_s": 1.0}) == ""  # judged again, nothing was run
