"""`parity run --mode step --mitigation`: each equals PyTorch's, and wrong ones are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from witnesses import GQA, MHA, small

import parity
from jaxllama.errors import InputError
from jaxllama.train import mitigation, step, weights
from jaxllama.train.config import MitigationSettings
from parity.runner import step as judged
from parity.runner.mitigations import MITIGATIONS, cases_of
from parity.subjects.torch_reference.mitigated import MitigatedReference
from parity.subjects.torch_reference.subject import TorchReference

DROPOUTS = "attention_dropout", "residual_dropout"


def verdicts(names: tuple[str, ...], heads: tuple[int, int] = GQA) -> dict[str, bool]:
    """Return whether each mitigation's step is equal."""
    checkpoint = small(heads)
    result = parity.run(checkpoint, modes="step", dtypes="f64", length=12, mitigations=names)
    assert result.expected == len({row.tap for row in result.rows})
    return {
        name: not any(row.problems for row in result.rows if row.tap.startswith(f"step.{name}."))
        for name in names
    }


@pytest.fixture(autouse=True)
def no_plain_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """`test_step.py` has that."""
    monkeypatch.setattr(judged, "cases_of", lambda names: cases_of(names)[1:])


def test_each_step_equals_pytorchs() -> None:
    assert verdicts(MITIGATIONS) == dict.fromkeys(MITIGATIONS, True)


def test_heads_with_keys_of_their_own_are_clipped_in_both() -> None:
    assert verdicts(("qk_clip",), MHA) == {"qk_clip": True}


def test_without_it_on_one_side_each_diverges(monkeypatch: pytest.MonkeyPatch) -> None:
    twin: dict[str, Callable[..., Any]] = {
        "drop": lambda self, value, tap, share: value,
        "head_norm": lambda self, heads, weight: heads + 0 * weight,
        "cap": lambda self, value, cap: value,
        "clip": lambda self, weights, tau: None,
        "loss": TorchReference.loss,
    }
    for name, method in twin.items():
        monkeypatch.setattr(MitigatedReference, name, method)
    assert verdicts(MITIGATIONS) == dict.fromkeys(MITIGATIONS, False)


def unscaled(value: jax.Array, key: jax.Array, share: float) -> jax.Array:
    drawn = jax.random.bits(jax.random.wrap_key_data(key, impl="threefry2x32"), value.shape)
    return jnp.where(drawn >= round(share * 2**32), value, jnp.zeros_like(value))


def before_the_scale(value: jax.Array, cap: float | None) -> jax.Array:
    scale = 20**-0.5 if value.ndim == 4 else 0.5
    return CAPPED(value / scale, cap) * scale


def at_99(settings: MitigationSettings, *rest: Any) -> Any:
    tau = settings.qk_clip
    return FACTORS(replace(settings, qk_clip=None if tau is None else 0.99 * tau), *rest)


def over_all_heads(heads: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    whole = heads.reshape(*heads.shape[:2], 1, -1)
    rms = jnp.sqrt(jnp.square(whole).mean(-1, keepdims=True) + eps)
    return heads / rms * weight[None, None, None]


CAPPED, FACTORS, KEY = mitigation.capped, mitigation.clip_factors, mitigation.dropout_key


def test_wrong_scales_caps_norms_and_thresholds_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mitigation, "dropped", unscaled)
    monkeypatch.setattr(mitigation, "capped", before_the_scale)
    monkeypatch.setattr(mitigation, "normed", over_all_heads)
    monkeypatch.setattr(step, "clip_factors", at_99)
    wrong = dict.fromkeys(MITIGATIONS, False)
    assert verdicts(MITIGATIONS) == wrong | {"z_loss": True}


def shared_alike(settings: MitigationSettings, config: Any, largest: Any) -> Any:
    """QK-clip with a root from the queries, and none from the keys that several of them share."""
    return {name: jnp.sqrt(one) for name, one in FACTORS(settings, config, largest).items()}


def test_wrong_keys_weights_and_shares_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "dropout_key", lambda settings, step, part: KEY(settings, 0, part))
    monkeypatch.setattr(step, "clip_factors", shared_alike)
    q, k = weights.QK_NORMS.values()
    monkeypatch.setattr(mitigation, "QK_NORMS", {"q_proj": k, "k_proj": q})
    names = (*DROPOUTS, "qk_norm", "qk_clip")
    assert verdicts(names) == dict.fromkeys(names, False)


def test_a_seed_of_masks_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged, "kept_by", lambda s: KEPT_BY(replace(s, seed=s.seed + 1)))
    assert verdicts(("residual_dropout",)) == {"residual_dropout": False}


KEPT_BY = judged.kept_by


def test_what_cannot_be_judged_is_refused() -> None:
    checkpoint = small(GQA)
    with pytest.raises(InputError, match="judged in mode step; add modes='step'"):
        parity.run(checkpoint, modes="free", mitigations="qk_norm")
    with pytest.raises(InputError, match="expected one or more of attention_dropout"):
        parity.run(checkpoint, modes="step", mitigations="qk_nrom")
    with pytest.raises(InputError, match="no rounded model is trained"):
        parity.run(checkpoint, quant="int8", mitigations="qk_norm")
    with pytest.raises(InputError, match=r"score_cap: attention backend 'blockwise' shows no"):
        parity.run(
            checkpoint,
            modes="step",
            dtypes="f64",
            length=12,
            subject="blockwise",
            mitigations="score_cap",
        )
    assert torch.is_grad_enabled()
