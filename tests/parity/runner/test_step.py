"""`parity run --mode step`: one AdamW step against PyTorch's, and wrong ones that it finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax
import pytest
from witnesses import small

import parity
from jaxllama.errors import InputError
from jaxllama.train import optimiser
from jaxllama.train.config import OptimiserSettings

Made = Callable[..., Any]


def run(**options: Any) -> parity.Result:
    given = {"modes": "step", "dtypes": "f64", "length": 12} | options
    return parity.run(small((8, 2)), **given)


def test_a_step_equals_pytorchs() -> None:
    result = run()
    assert result.verdict == "equal" and result.exit_code == 0
    names = {row.tap for row in result.rows}
    assert {"step.lm_head.weight", "step.model.norm.weight"} <= names
    assert len(names) == result.expected
    (witness,) = result.witnesses
    assert witness.witness == "torch.optim.AdamW" and 0 < witness.subject_gap < 1e-8


def chain(
    s: OptimiserSettings, adam: Any = None, decay: Any = optimiser._decayed, *, first: bool = False
) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(s.beta1, s.beta2, s.eps) if adam is None else adam
    parts = [adam, optax.add_decayed_weights(s.weight_decay, decay)]
    return optax.chain(
        *(reversed(parts) if first else parts), optax.scale_by_learning_rate(s.learning_rate)
    )


WRONG: dict[str, tuple[Made, str | None]] = {
    "none": (lambda s, **_: chain(s), None),
    "epsilon in the root": (
        lambda s, **_: chain(s, optax.scale_by_adam(s.beta1, s.beta2, 0.0, s.eps)),
        "step.lm_head.weight",
    ),
    "decay in the gradients": (lambda s, **_: chain(s, first=True), "step.lm_head.weight"),
    "norms decayed": (lambda s, **_: chain(s, decay=None), "step.model.norm.weight"),
    "no bias correction": (
        lambda s, **_: chain(s, optax.scale_by_rms(s.beta2, s.eps)),
        "step.lm_head.weight",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_step_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, first = WRONG[name]
    monkeypatch.setattr(optimiser, "make_optimiser", make)
    result = run()
    found = result.first_divergence
    assert (None if found is None else found.row.tap) == first
    if found is not None:
        assert result.exit_code == 1 and found.kind == "step"
        assert "moved otherwise" in found.row.problems[0]


def test_what_is_not_trained_here_is_refused_or_left_out() -> None:
    with pytest.raises(InputError, match="does not train the subject torch"):
        run(subject="torch")
    assert run().verdict == "equal"
    result = run(subject="torch", modes="free,step")
    assert {row.mode for row in result.rows} == {"free"}
