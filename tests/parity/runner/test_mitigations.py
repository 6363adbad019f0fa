"""`parity run --mode step --mitigation`: each equals PyTorch's, and a difference is found.

What differs in these tests is the twin: jaxllama's step is compiled once for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from witnesses import GQA, MHA, small

import parity
from jaxllama.errors import InputError
from parity.runner import mitigations as cases
from parity.runner import step as judged
from parity.runner.mitigations import MITIGATIONS, cases_of, kept_by
from parity.subjects.torch_reference import mitigated
from parity.subjects.torch_reference.mitigated import MitigatedReference
from parity.subjects.torch_reference.subject import TorchReference

DROPOUTS = "attention_dropout", "residual_dropout"
by_jaxllama = judged._by_jaxllama


@pytest.fixture(scope="module")
def steps() -> dict[Any, Any]:
    """jaxllama's steps so far."""
    return {}


@pytest.fixture(autouse=True)
def once_and_no_plain_step(steps: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def step(subject: Any, inputs: Any, case: Any) -> Any:
        known = case, subject.name, subject.model.config
        if known not in steps:
            steps[known] = by_jaxllama(subject, inputs, case)
        return steps[known]

    monkeypatch.setattr(judged, "_by_jaxllama", step)
    monkeypatch.setattr(judged, "cases_of", lambda names: cases_of(names)[1:])


def equal(names: tuple[str, ...], heads: tuple[int, int] = GQA) -> set[str]:
    """Return the mitigations whose step is PyTorch's."""
    checkpoint = small(heads)
    result = parity.run(checkpoint, modes="step", dtypes="f64", length=12, mitigations=names)
    assert result.expected == len({row.tap for row in result.rows})
    wrong = {row.tap.split(".")[1] for row in result.rows if row.problems}
    assert result.exit_code == bool(wrong)
    return {*names} - wrong


def test_each_step_equals_pytorchs() -> None:
    assert equal(MITIGATIONS) == {*MITIGATIONS}


def test_heads_with_keys_of_their_own_are_clipped_in_both() -> None:
    assert equal(("qk_clip",), MHA) == {"qk_clip"}


def test_against_pytorch_without_it_each_diverges(monkeypatch: pytest.MonkeyPatch) -> None:
    without: dict[str, Callable[..., Any]] = {
        "drop": lambda self, value, tap, share: value,
        "head_norm": lambda self, heads, weight: heads + 0 * weight,
        "cap": lambda self, value, cap: value,
        "clip": lambda self, weights, tau: None,
        "clip_gradients": lambda self, gradients, most: None,
        "loss": TorchReference.loss,
    }
    for name, method in without.items():
        monkeypatch.setattr(MitigatedReference, name, method)
    assert equal(MITIGATIONS) == set()


def not_scaled_up(self: Any, value: torch.Tensor, tap: str, share: float) -> torch.Tensor:
    return DROP(self, value, tap, share) * (1 - share)


def capped_before_the_scale(self: Any, value: torch.Tensor, cap: float | None) -> torch.Tensor:
    scale = self.scale() if value.ndim == 4 else 1
    return CAP(self, value / scale, cap) * scale


def clipped_at_99(self: Any, weights: Any, tau: float) -> None:
    CLIP(self, weights, 0.99 * tau)


def clipped_each_by_itself(self: Any, gradients: Any, most: float) -> None:
    for gradient in gradients:
        CLIP_GRADIENTS(self, [gradient], most)


def over_all_heads(self: Any, heads: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    mean = heads.square().mean((-1, -2), keepdim=True)
    return heads * torch.rsqrt(mean + self.config.rms_norm_eps) * weight


def clipped_by_roots(self: Any, weights: Any, tau: float) -> None:
    """As of heads that share no keys: half of the factor would be wanting."""
    self.largest = {i: (x * tau).sqrt().where(x > tau, x) for i, x in self.largest.items()}
    CLIP(self, weights, tau)


DROP, CAP, CLIP = (getattr(MitigatedReference, name) for name in ("drop", "cap", "clip"))
CLIP_GRADIENTS = MitigatedReference.clip_gradients
WRONG = {
    "not scaled up": ("drop", not_scaled_up, DROPOUTS),
    "cap before the scale": ("cap", capped_before_the_scale, ("score_cap",)),
    "tau 99 %": ("clip", clipped_at_99, ("qk_clip",)),
    "clip by roots": ("clip", clipped_by_roots, ("qk_clip",)),
    "clip each gradient": ("clip_gradients", clipped_each_by_itself, ("clip",)),
    "norm over all heads": ("head_norm", over_all_heads, ("qk_norm",)),
}


@pytest.mark.parametrize("name", WRONG)
def test_done_otherwise_it_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, wrong, names = WRONG[name]
    monkeypatch.setattr(MitigatedReference, method, wrong)
    assert equal(names) == set()


def test_other_keys_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_another_seed(settings: Any) -> Any:
        return kept_by(replace(settings, seed=settings.seed + 1))

    def of_another_layer(settings: Any) -> Any:
        kept = kept_by(settings)
        return lambda layer, tap, shape: kept(0, tap, shape)

    set_in = partial(monkeypatch.setattr, judged, "kept_by")
    for other in (of_another_seed, of_another_layer):
        set_in(other)
        assert equal(DROPOUTS) == set()
    set_in(kept_by)
    assert equal(DROPOUTS) == {*DROPOUTS}
    with monkeypatch.context() as folds:  # attention's mask alone is drawn as before
        folds.setitem(cases._FOLDS, "o_proj", 2)
        assert equal(DROPOUTS) == {"attention_dropout"}
    monkeypatch.setattr(cases, "STEPS_BEFORE", 0)
    assert equal(DROPOUTS) == set()


def test_norms_exchanged_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mitigated, "_NORMS", {"q_proj": "k_norm", "k_proj": "q_norm"})
    assert equal(("qk_norm",)) == set()


def test_what_cannot_be_judged_is_refused() -> None:
    checkpoint = small(GQA)
    with pytest.raises(InputError, match="judged in mode step; add modes='step'"):
        parity.run(checkpoint, modes="free", mitigations="qk_norm")
    with pytest.raises(InputError, match="expected one or more of attention_dropout"):
        parity.run(checkpoint, modes="step", mitigations="qk_nrom")
    with pytest.raises(InputError, match="no rounded model is trained"):
        parity.run(checkpoint, quant="int8", mitigations="qk_norm")
    fused = {"modes": "step", "dtypes": "f64", "length": 12, "subject": "blockwise"}
    with pytest.raises(InputError, match=r"score_cap: attention backend 'blockwise' shows no"):
        parity.run(checkpoint, mitigations="score_cap", **fused)
