"""The measured precision of matrix products, against products whose precision is known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from witnesses import small

import parity
from jaxllama.errors import InputError
from parity.runner.precision import effective_matmul_precision
from parity.subjects.jaxllama.run import JaxRun


def rounded(x: Any, bits: int) -> np.ndarray:
    """Return float64 numbers with `bits` significant bits."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits)


def exact(dtype: str) -> Any:
    return lambda a, b: (np.float64(a) @ np.float64(b)).astype(dtype)


def test_numpy_keeps_all_it_is_given() -> None:
    assert effective_matmul_precision("float32", exact("float32")) == "float32"
    assert effective_matmul_precision("float64", exact("float64")) == "float64"
    assert effective_matmul_precision("bfloat16", exact("float32")) == "bfloat16"


@pytest.mark.parametrize(
    ("bits", "name"), [(8, "bfloat16"), (11, "tfloat32"), (16, "bfloat16_3x"), (13, "13 bits")]
)
@pytest.mark.parametrize("side", ["both", "left", "right"])
def test_rounded_factors_are_named(bits: int, name: str, side: str) -> None:
    def product(a: Any, b: Any) -> np.ndarray:
        left = a if side == "right" else rounded(a, bits)
        right = b if side == "left" else rounded(b, bits)
        return np.float64(left) @ np.float64(right)

    assert effective_matmul_precision("float32", product) == name


def test_three_bfloat16_products_are_not_taken_for_float32() -> None:
    def product(a: Any, b: Any) -> np.ndarray:
        def split(x: Any) -> tuple[np.ndarray, np.ndarray]:
            high = np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)
            return high, (x - high).astype(ml_dtypes.bfloat16).astype(np.float64)

        (ah, al), (bh, bl) = split(np.float64(a)), split(np.float64(b))
        return ah @ bh + ah @ bl + al @ bh

    # A remainder may need a bit less than its worst: 16 or 17 bits survive in every number tried.
    assert effective_matmul_precision("float32", product) in ("bfloat16_3x", "17 bits")


def test_a_narrow_accumulator_is_named() -> None:
    def product(a: Any, b: Any) -> np.ndarray:
        return rounded(np.float64(a) @ np.float64(b), 11)

    assert effective_matmul_precision("float32", product) == "tfloat32"


def test_jax_on_cpu_computes_in_what_it_is_given_whatever_is_asked() -> None:
    with jax.default_device(jax.devices("cpu")[0]):
        assert effective_matmul_precision("float32") == "float32"
        assert effective_matmul_precision("float64") == "float64"
        with jax.default_matmul_precision("bfloat16"):
            assert effective_matmul_precision("float32") == "float32"


def test_bfloat16_factors_in_jax_itself_are_named() -> None:
    """Negative control on a real backend: what a TPU does by default, done by hand."""

    def product(a: Any, b: Any) -> jax.Array:
        narrow = (a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))
        return jnp.matmul(*narrow, preferred_element_type=jnp.float32)

    with jax.default_device(jax.devices("cpu")[0]):
        assert effective_matmul_precision("float32", jax.jit(product)) == "bfloat16"


def test_a_run_at_the_default_precision_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the products are the same; that they are asked for otherwise is seen as they run."""
    asked: set[str] = set()
    step = JaxRun.step

    def watched(self: JaxRun, force: Any = None) -> Any:
        asked.add(str(jax.config.jax_default_matmul_precision))
        return step(self, force)

    monkeypatch.setattr(JaxRun, "step", watched)
    options: dict[str, Any] = {"dtypes": "f32", "modes": "free", "scenarios": "causal", "length": 9}
    result = parity.run(small(), precision="default", **options)
    assert asked == {"default"}
    assert result.verdict == "equal" and result.subject == "jaxllama-default-precision"
    assert result.environment["matmul_precision"]["in_force"] == "default"
    assert "precision='default'" in result.command
    asked.clear()
    plain = parity.run(small(), **options)
    assert asked == {"highest"} and plain.subject == "jaxllama"
    assert "precision" not in plain.command


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "low"}, "expected one of highest, high, default"),
        ({"precision": "default", "subject": "hf"}, "another sets its own"),
        (
            {"precision": "default", "stream": True},
            "streams and quantised models run at the highest",
        ),
        ({"precision": "default", "quant": "int8"}, "another sets its own"),
    ],
)
def test_a_precision_that_would_not_be_had_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match="precision") as refused:
        parity.run("tiny", **options)
    assert said in str(refused.value)
