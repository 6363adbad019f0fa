"""`parity run --mode step --lora`: two steps of factors against PyTorch's, and wrong ones found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import trainings
from witnesses import small

import parity
from jaxllama.checkpoint.lora import save_lora
from jaxllama.errors import InputError
from jaxllama.train import lora
from jaxllama.train.config import LoraSettings
from parity.runner.lora_step import _wrongly_begun

CHECKPOINT = small((8, 2))
SETTINGS = LoraSettings(rank=3, alpha=6, targets=("q_proj", "down_proj"))
Q = "model.layers.0.self_attn.q_proj"


def run(settings: Any = SETTINGS, **options: Any) -> parity.Result:
    given = {"modes": "step", "dtypes": "f64", "length": 12, "lora": settings} | options
    return parity.run(CHECKPOINT, **given)


def test_two_steps_of_factors_equal_pytorchs(tmp_path: Path) -> None:
    given = trainings.settings(tmp_path, lora={"rank": 2, "rslora": True})
    (tmp_path / "c.toml").write_text(trainings.toml(given))
    result = run(tmp_path / "c.toml")
    assert result.verdict == "equal" and result.exit_code == 0
    names = {row.tap for row in result.rows}
    assert {f"step.{Q}.lora_A.weight", f"step.{Q}.lora_B.weight", f"step.{Q}.weight"} <= names
    assert len(names) == result.expected == 2 * 2 * 3 + len(CHECKPOINT.tensors)
    (witness,) = result.witnesses
    assert witness.witness == "torch.optim.AdamW of LoRA" and 0 < witness.subject_gap < 1e-8
    assert "lora=" in result.command


def test_an_adapter_is_read_by_each_side(tmp_path: Path) -> None:
    rng, factors = np.random.default_rng(0), {}
    for layer in range(CHECKPOINT.config.num_hidden_layers):
        for rank, kind in ((2, "mlp.up_proj"), (3, "self_attn.v_proj")):
            name = f"model.layers.{layer}.{kind}.weight"
            rows, columns = CHECKPOINT.tensors[name].shape
            factors[name] = (rng.normal(size=(rank, columns)), 0.01 * rng.normal(size=(rows, rank)))
    save_lora(factors, CHECKPOINT.config, tmp_path / "a", alpha=5)
    result = run(LoraSettings(adapter=str(tmp_path / "a")))
    assert result.verdict == "equal" and 0 < result.witnesses[0].subject_gap < 1e-8


Adapt = Callable[..., lora.Adaptation]


def scaled(adapt: Adapt, *given: Any) -> lora.Adaptation:
    made = adapt(*given)
    wrong = {n: x * (3 if n.endswith("scale") else 1) for n, x in made.frozen.items()}
    return replace(made, frozen=wrong)  # alpha for alpha / r


def swapped(adapt: Adapt, *given: Any) -> lora.Adaptation:
    made, factors = adapt(*given), {}
    for name, values in made.factors.items():
        drawn = np.random.default_rng(0).uniform(-0.1, 0.1, values.shape)
        factors[name] = jnp.asarray(0 * drawn if name.endswith("A") else drawn)
    return replace(made, factors=factors)


def thawed(adapt: Adapt, *given: Any) -> lora.Adaptation:
    made, name = adapt(*given), "layers.self_attn.q_proj.weight"
    frozen = {n: x for n, x in made.frozen.items() if n != name}
    return replace(made, factors=made.factors | {name: made.frozen[name]}, frozen=frozen)


WRONG = {
    scaled: (f"step.{Q}.lora_A.weight", "moved otherwise"),
    swapped: (f"step.{Q}.lora_A.weight", "begins with numbers"),
    thawed: (f"step.{Q}.weight", "numbers moved, though factors alone are trained"),
}


@pytest.mark.parametrize("fault", WRONG, ids=lambda fault: fault.__name__)
def test_a_wrong_training_is_found(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = lora.adapt
    monkeypatch.setattr(lora, "adapt", lambda *given: fault(right, *given))
    result = run()
    tap, said = WRONG[fault]
    failed = {row.tap: row.problems for row in result.rows if row.problems}
    assert result.exit_code == 1 and said in " ".join(failed[tap])
    if fault is thawed:
        assert not any("lora" not in name and "q_proj" not in name for name in failed)


def test_a_beginning_that_is_not_pefts_is_found() -> None:
    drawn = np.random.default_rng(0).uniform(-1, 1, (8, 400)) / 20
    name = f"{Q}.lora_A.weight"
    assert not _wrongly_begun(name, drawn)
    # Of a smaller or larger gain, or a normal distribution's.
    for wrong in (0.8 * drawn, 1.01 * drawn, np.random.default_rng(0).normal(size=(8, 400)) / 20):
        assert "begins with numbers up to" in _wrongly_begun(name, wrong)[0]
    assert _wrongly_begun(f"{Q}.lora_B.weight", drawn) == ["does not begin with zeros"]


def test_what_has_no_step_of_factors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mode step takes it, which is not asked for"):
        run(modes="free")
    assert run(modes="free,step").verdict == "equal"
    with pytest.raises(InputError, match="mode step takes it"):
        run(modes=None, quant="int8")
    (tmp_path / "c.toml").write_text(trainings.toml(trainings.settings(tmp_path)))
    with pytest.raises(InputError, match=r"has no section \[lora\]"):
        run(tmp_path / "c.toml")
