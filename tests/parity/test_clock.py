"""Where the seconds of a run go."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from witnesses import small

import parity
from parity import clock
from parity.report.terminal import _cost_line


def test_what_is_compiled_is_counted_apart() -> None:
    clock.restart()
    with clock.counted("work"):
        time.sleep(0.02)
        clock.on_event("/jax/core/compile/backend_compile_duration", 5.0)
        clock.on_event("/jax/other", 7.0)
    taken = clock.taken()
    assert taken["compiling_s"] == 5.0 and -5 < taken["work_s"] < -4
    clock.restart()
    assert clock.taken() == {}


def test_threads_add_up_and_what_has_no_name_counts_nothing() -> None:
    def work(what: str | None) -> None:
        with clock.counted(what):
            time.sleep(0.01)

    clock.restart()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, ["a", "a", None]))
    assert set(clock.taken()) == {"a_s", "compiling_s"} and clock.taken()["a_s"] >= 0.02


def test_a_run_says_what_showing_and_comparing_cost() -> None:
    result = parity.run(small(), dtypes="f32", scenarios="causal", length=9, modes="free")
    timing = result.timing
    assert timing["compiling_s"] > 0 and timing["comparing_s"] > 0
    assert 0 < timing["bare_s"] < timing["total_s"]
    assert 0 < timing["subject_free_s"] < timing["total_s"]
    assert _cost_line(timing).startswith("cost: forward passes")
