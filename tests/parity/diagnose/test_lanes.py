"""A cause that is in one dtype alone is said to be; one that others' noise hides is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from planting import planted
from witnesses import inputs_for, small

from parity.diagnose.lanes import narrower
from parity.diagnose.mutated_reference import MutatedReference
from parity.diagnose.recording import record
from parity.result import Result
from parity.runner import run
from parity.subjects.torch_reference.subject import TorchReference
from parity.taps import CACHE_TAPS, flow_key, split_name

ROWS = "return rows(table, jnp.nan)"
CHECKPOINT = small()


class Hotter(TorchReference):
    """Scores carry a factor in some dtypes."""

    factors: dict[str, float]

    def scale(self) -> float:
        # What runs beside, to give the noise, is not of this class.
        return super().scale() * self.factors.get(self.dtype, 1.0)


def judged(**factors: float) -> Result:
    class Subject(Hotter):
        pass

    Subject.factors = factors
    subjects = {lane: Subject(CHECKPOINT, dtype=lane) for lane in ("f64", "f32", "bf16")}
    for one in subjects.values():
        one.name = "hotter"
    options: dict[str, Any] = {"modes": "free", "scenarios": "right_padded", "length": 11}
    return run.run(CHECKPOINT, subject=subjects, prompt=range(1, 40), **options)


def test_a_cause_in_bfloat16_alone_is_said_to_be_there() -> None:
    result = judged(bf16=2.0)
    assert result.cause is not None and result.cause.confirmed
    assert result.cause.summary.endswith("; in bf16 alone")
    assert "float64 and float32" in result.cause.evidence[-1]


def test_a_cause_in_all_dtypes_is_said_of_none() -> None:
    result = judged(f64=2.0, f32=2.0, bf16=2.0)
    assert result.cause is not None and result.cause.confirmed
    assert "alone" not in result.cause.summary


def test_what_noise_hides_in_other_dtypes_is_not_said_to_be_in_one_alone() -> None:
    faint = 1 + 1e-10
    result = judged(f64=faint, f32=faint, bf16=faint)
    assert result.cause is not None and result.cause.confirmed
    assert {row.lane for row in result.rows if not row.passed} == {"f64"}
    assert "alone" not in result.cause.summary


def test_a_subject_that_goes_on_in_a_narrower_dtype_is_said_to() -> None:
    with planted(
        "jaxllama.layers.embedding",
        "return rows(table, jnp.nan).astype(dtype)",
        "return rows(table, jnp.nan)",
    ):
        found = run.run(CHECKPOINT, dtypes="f64", modes="free", scenarios="right_padded", length=11)
    assert found.cause is not None and found.cause.confirmed
    assert found.cause.id == "value-rounded"
    assert "embed is float32 in a run in float64, and what is computed of it" in found.cause.summary


def test_what_else_is_wrong_in_a_narrower_dtype_is_no_matter_of_it() -> None:
    uncast = planted(
        "jaxllama.layers.embedding",
        "return rows(table, jnp.nan).astype(dtype)",
        "return rows(table, jnp.nan)",
    )
    negative = planted("jaxllama.model", "x + attended", "x - attended")
    with uncast, negative:
        found = run.run(CHECKPOINT, dtypes="f64", modes="free", scenarios="right_padded", length=11)
    assert found.cause is not None
    assert "in a run in float64" not in found.cause.summary


def test_a_cache_of_a_narrower_dtype_is_one_and_nothing_goes_on_in_it() -> None:
    made = 'dtype = checked_cache_dtype(dtype, "KVCache.empty: dtype")'
    with planted("jaxllama.cache", made, "dtype = jnp.dtype(jnp.float32)"):
        found = run.run(
            CHECKPOINT, dtypes="f64", modes="decode", scenarios="right_padded", length=11
        )
    assert found.cause is not None and found.cause.confirmed
    assert found.cause.id == "cache-dtype"
    assert "(keys and values cached in float32)" in found.cause.summary


@pytest.mark.parametrize("from_the_cache_on", [True, False])
def test_what_goes_on_in_the_caches_dtype_is_the_caches_fault(from_the_cache_on: bool) -> None:
    subject, inputs = TorchReference(CHECKPOINT), inputs_for(CHECKPOINT, "causal", 11)
    recording = record(subject, inputs, [8, 2, 1], CHECKPOINT.config.num_hidden_layers)

    def shown(tap: str, value: np.ndarray) -> np.ndarray:
        narrow = split_name(tap)[0] in CACHE_TAPS
        if from_the_cache_on:
            narrow |= flow_key(tap) > flow_key("cache.0.k")
        return value.astype(np.float32) if narrow else value

    stages = [{tap: shown(tap, x) for tap, x in stage.items()} for stage in recording.stages]
    found = narrower(replace(recording, stages=stages), MutatedReference(CHECKPOINT), inputs)
    if not from_the_cache_on:  # left to the trial of what the cache holds
        assert found is None
        return
    assert found is not None and found.id == "cache-dtype"
    assert "cache.0.k is float32 in a run in float64, and what is computed" in found.summary
