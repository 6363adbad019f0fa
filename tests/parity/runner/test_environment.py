"""What a report says of where it was made."""

from __future__ import annotations

import jax
import pytest

from parity.runner import environment


def test_the_default_precision_is_found_out_from_within_a_run_at_highest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where JAX multiplies in TF32 by default, a run at "highest" must still say so."""

    def in_force() -> str:
        return str(jax.config.jax_default_matmul_precision)

    monkeypatch.setattr(environment, "effective_matmul_precision", in_force)
    with jax.default_matmul_precision("highest"):
        found = environment.describe()["matmul_precision"]
        assert in_force() == "highest"
    assert found == {
        "in_force": "highest",
        "float32_at_highest": "highest",
        "float32_at_default": "default",
    }


def test_versions_of_what_is_missing_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("jax", "no-such-package"))
    assert environment.describe()["versions"] == {"jax": jax.__version__, "no-such-package": None}
