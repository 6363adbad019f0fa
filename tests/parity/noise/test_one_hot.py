"""The precision of products is found whatever K is, and full precision never is blamed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

import parity
from jaxllama.checkpoint import Checkpoint, tiny
from parity.comparison.tolerance import PROBE_LIMIT
from parity.diagnose.describe import describe_precision
from parity.lockstep.setup import summed_taps
from parity.noise.one_hot import notes, probe_products
from parity.result import TapResult
from parity.scenarios import scenario
from parity.subjects.torch_reference.subject import TorchReference

Tensor = torch.Tensor


def _bfloat16(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def _tf32(a: Tensor, b: Tensor) -> Tensor:
    def rounded(x: Tensor) -> Tensor:
        return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    return rounded(a) @ rounded(b)


def _three(a: Tensor, b: Tensor) -> Tensor:
    a1, b1 = _bfloat16(a), _bfloat16(b)
    a2, b2 = _bfloat16(a - a1), _bfloat16(b - b1)
    return a1 @ b1 + (a1 @ b2 + a2 @ b1)


NARROW: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tfloat32": _tf32,
    "bfloat16": lambda a, b: _bfloat16(a) @ _bfloat16(b),
    "bfloat16_3x": _three,
}


# Units of roundoff that they are off by, at the least: docs/noise.md.
LEAST = {"tfloat32": 10_000, "bfloat16": 100_000, "bfloat16_3x": 300}


class Narrow(TorchReference):
    """The reference with float32 products of K terms that keep fewer bits; others are its own."""

    def __init__(self, checkpoint: Checkpoint, product: str, terms: int) -> None:
        super().__init__(checkpoint, dtype="f32")
        self._product, self._terms = NARROW[product], terms

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        if a.dtype == torch.float32 and a.shape[-1] == self._terms:
            return self._product(a, b)
        return super().matmul(a, b)


def _probe(checkpoint: Checkpoint, subject: TorchReference) -> list[TapResult]:
    inputs = scenario("left_padded", lambda t: list(t.encode()), checkpoint.config, length=23)
    summed = summed_taps(TorchReference(checkpoint, dtype="f64"))
    return probe_products(subject, inputs, summed, checkpoint.config)


@pytest.mark.parametrize("terms", [128, 576, 1536, 4096])
@pytest.mark.parametrize("product", NARROW)
def test_narrow_products_are_found_and_named_at_any_length(product: str, terms: int) -> None:
    checkpoint = tiny(num_hidden_layers=1, intermediate_size=terms)
    rows = _probe(checkpoint, Narrow(checkpoint, product, terms))
    failed = [row for row in rows if not row.passed]
    assert [row.tap for row in failed] == ["layers.0.down_proj"]
    assert failed[0].rho > LEAST[product]
    cause = describe_precision(failed[0])
    assert (cause.id, cause.effective) == ("matmul-precision", product)
    assert cause.confirmed


@pytest.mark.parametrize("variant", ["eager", "reordered", "doubled"])
def test_float32_products_round_once(variant: str) -> None:
    checkpoint = tiny(num_hidden_layers=2)
    rows = _probe(checkpoint, TorchReference(checkpoint, dtype="f32", variant=variant))  # type: ignore[arg-type]
    assert len(rows) == 2 * 9 + 1
    assert max(row.rho for row in rows) < PROBE_LIMIT / 1.5


def test_a_run_is_divergent_by_its_probe_alone() -> None:
    """Three bfloat16 products in one layer's sum of 1536 terms: the isolated figure may pass."""
    checkpoint = tiny(num_hidden_layers=1, intermediate_size=1536)
    result = parity.run(
        checkpoint,
        dtypes="f32",
        scenarios="causal",
        length=23,
        subject=lambda model, dtype: Narrow(checkpoint, "bfloat16_3x", 1536),
    )
    assert result.verdict == "divergent"
    assert result.first_divergence is not None
    assert result.first_divergence.row.tap == "layers.0.down_proj"
    assert result.cause is not None
    assert result.cause.effective == "bfloat16_3x"


def test_a_run_that_cannot_probe_says_so() -> None:
    result = parity.run("tiny", dtypes="f32", scenarios="causal", length=7, modes="free")
    assert any("not probed" in note for note in result.notes)
    result = parity.run("tiny", dtypes="f32", scenarios="causal", length=7)
    assert not any("not probed" in note for note in result.notes)
    assert sum(row.mode == "probe" for row in result.rows) > 40


class OneHeadShort(TorchReference):
    def linear(self, x: Tensor, name: str) -> Tensor:
        y = super().linear(x, name)
        return y[..., : -self.config.head_dim] if name.endswith("v_proj") else y

    def kv_head_of_query(self) -> Tensor:
        return super().kv_head_of_query().clamp(max=self.config.num_key_value_heads - 2)


def test_a_product_of_another_shape_is_a_finding_and_no_crash() -> None:
    checkpoint = tiny(num_hidden_layers=1)
    result = parity.run(
        checkpoint,
        dtypes="f32",
        scenarios="causal",
        length=7,
        subject=lambda model, dtype: OneHeadShort(checkpoint, dtype=dtype),
    )
    assert result.verdict == "divergent"
    assert not any(row.mode == "probe" for row in result.rows)


@pytest.mark.parametrize("rho", [float("nan"), float("inf")])
def test_a_product_that_is_no_number_has_no_precision(rho: float) -> None:
    checkpoint = tiny(num_hidden_layers=1)
    failed = dataclasses.replace(
        _probe(checkpoint, TorchReference(checkpoint, dtype="f32"))[0],
        rho=rho,
        facts={"as_tfloat32": rho, "as_bfloat16": rho},
    )
    assert not describe_precision(failed).confirmed


def test_products_that_are_not_named_are_said_not_to_be_probed() -> None:
    rows = _probe(tiny(num_hidden_layers=1), TorchReference(tiny(num_hidden_layers=1), dtype="f32"))
    assert notes(rows, ["f32"]) == []
    some = [row for row in rows if not row.tap.endswith("up_proj")]
    (note,) = notes(some, ["f32"])
    assert "not probed: up_proj; " in note


def test_what_is_not_shown_was_not_given_and_blames_nobody() -> None:
    class Run:
        def __init__(self, run: Any) -> None:
            self.run = run

        def step(self, force: Any = None) -> Any:
            hidden = {n: x for n, x in (force or {}).items() if not n.endswith("attn_context")}
            shown = self.run.step(hidden or None)
            return {n: x for n, x in shown.items() if not n.endswith("attn_context")}

    class Hiding(TorchReference):
        def start(self, inputs: Any) -> Any:
            return Run(super().start(inputs))

    checkpoint = tiny(num_hidden_layers=1)
    probed = {row.tap: row.passed for row in _probe(checkpoint, Hiding(checkpoint, dtype="f32"))}
    assert probed["layers.0.q_proj"] and all(probed.values())
    assert not any(name.endswith("o_proj") for name in probed)
