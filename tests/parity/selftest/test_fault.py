"""The machinery of injection: patches in the right place, memory of references, crashes counted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import pytest
from records import Scripted, scripted_inputs

from jaxllama import model as llama
from parity.selftest import run as runner
from parity.selftest.cached_reference import CachedReference
from parity.selftest.fault import Fault, FaultySubject, in_layer, nth_calls
from parity.selftest.harness import Outcome, harnesses
from parity.selftest.models import checkpoint


def test_the_nth_call_alone_is_wrong() -> None:
    function = nth_calls(lambda: "right", lambda: "wrong", 1, 3)
    assert [function() for _ in range(5)] == ["right", "wrong", "right", "wrong", "right"]


def test_patches_are_in_force_in_their_layer_alone() -> None:
    seen: list[int | None] = []
    original = llama.apply_rope

    def spy(*arguments: Any) -> jax.Array:
        return original(*arguments)

    def patches(moment: Any) -> list[Any]:
        seen.append(moment.layer)
        return [(llama, "apply_rope", spy)]

    fault = Fault("X", "spy", "", "", patches=in_layer(1, patches))
    subject = FaultySubject(checkpoint("base"), "f64", fault)
    run = subject.start(harnesses().harness("base", "f64").inputs("causal"))
    for _ in range(5):
        run.step()
        assert llama.apply_rope is original
    assert seen == [1]


def test_weights_and_configuration_are_changed_for_the_subject_alone() -> None:
    source = checkpoint("base")
    name = "model.norm.weight"
    before = source.read(name).copy()

    def double(weights: dict[str, np.ndarray]) -> None:
        weights[name] *= 2

    fault = Fault(
        "X", "both", "", "", weights=double, config=lambda config: config.replace(rope_theta=7.0)
    )
    model = FaultySubject(source, "f64", fault).model
    np.testing.assert_array_equal(np.asarray(model.norm.weight[...]), 2 * before)
    assert model.config.rope_theta == 7.0
    np.testing.assert_array_equal(source.read(name), before)
    assert source.config.rope_theta == 5e5


def test_a_reference_is_asked_once_and_remembers() -> None:
    subject = Scripted("s")
    cached = CachedReference(subject)  # type: ignore[arg-type]
    inputs = scripted_inputs()
    passes = [cached.start(inputs) for _ in range(2)]
    first, second = ([run.step() for _ in range(4)] for run in passes)
    assert len(subject.forces) == 4
    assert all(a is b for a, b in zip(first, second, strict=True))
    # Forced and free are remembered apart.
    cached.start(inputs).step({})
    assert len(subject.forces) == 5


@pytest.fixture
def one_fault(monkeypatch: pytest.MonkeyPatch) -> Fault:
    fault = Fault("X9", "of a test", "", "logits", "c")
    monkeypatch.setattr(runner, "catalogue", lambda: [fault])
    return fault


def test_a_crash_is_a_miss_with_its_reason(
    one_fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> Outcome:
        raise ValueError("no such weight")

    monkeypatch.setattr(type(harnesses().of(one_fault)), "check_fault", crash)
    matrix = runner.selftest(runner.SelftestPlan(families=("X9",)))
    assert matrix.summary()["detected"] == 0
    assert matrix.misses[0].error == "ValueError: no such weight"


def test_processes_share_the_work_and_lose_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def threads(jobs: int, **options: object) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1)

    monkeypatch.setattr(runner, "BATCH", 2)
    monkeypatch.setattr(runner, "ProcessPoolExecutor", threads)
    plan = runner.SelftestPlan(families=("E1", "R10"))
    matrix = runner.selftest(plan, jobs=2)
    assert [row.id for row in matrix.injections] == [task.id for task in plan.tasks()]
    assert all(row.located for row in matrix.injections)


def test_a_process_that_dies_leaves_misses(
    one_fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault exists in this process alone, so that the other one fails."""
    matrix = runner.selftest(runner.SelftestPlan(families=("X9",)), jobs=2)
    assert [row.id for row in matrix.misses] == [one_fault.id]
    assert "IndexError" in matrix.misses[0].error


def test_a_fault_that_changes_nothing_is_a_miss_not_a_success(one_fault: Fault) -> None:
    """The selftest's own negative control."""
    matrix = runner.selftest(runner.SelftestPlan(families=("X9",)))
    assert matrix.injections[0].verdict == "equal"
    assert not matrix.passed and matrix.misses[0].id == one_fault.id
