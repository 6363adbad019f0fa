"""Other machines imitated: they compute otherwise and honestly. None alarms; the unfair does."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from rich.console import Console

from parity.result import TapResult
from parity.selftest.calibration import Figure
from parity.selftest.clean_runs import CleanTask, calibration_runs, clean_runs
from parity.selftest.harness import Harness, Outcome
from parity.selftest.machines.catalogue import LONG, MACHINES, QUICK, UNFAIR, WORKLOADS, Workload
from parity.selftest.machines.library import SCATTERED, UPWARDS, Library
from parity.selftest.machines.subject import ImitatedMachine, Machine
from parity.selftest.machines.sums import (
    ORDERS,
    PAIRWISE,
    REVERSED,
    SERIAL,
    SummationOrder,
    blocks,
    product,
)
from parity.selftest.report import show
from parity.selftest.results import CleanResult, SelftestResult
from parity.selftest.run import perform
from parity.subjects.torch_reference.subject import TorchReference
from parity.taps import split_name

HALF_ULP = 2.0**-24  # of 1 in float32


def names(machines: dict[str, Machine]) -> list[str]:
    return list(machines)


def summed(terms: list[float], order: SummationOrder, *, fused: bool = False) -> float:
    row = torch.tensor([terms])
    return product(row, torch.ones(len(terms), 1), order, fused=fused).item()


def seen(judged: Outcome, mode: str, quantity: str) -> Figure:
    (found,) = (f for f in judged.figures if (f.mode, f.quantity) == (mode, quantity))
    return found


@cache
def harness(model: str, lane: str) -> Harness:
    return Harness(model, lane)


# Sums.


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
@pytest.mark.parametrize("K", [1, 2, 3, 7, 64, 65, 139])
def test_every_order_adds_every_term_once(order: SummationOrder, fused: bool, K: int) -> None:
    """Whole numbers below 2^24 add up exactly in any order."""
    assert sorted(k for chain in order.chains(K) for k in chain) == list(range(K))
    rng = np.random.default_rng(K)
    a, b = (torch.tensor(rng.integers(-9, 10, s), dtype=torch.float32) for s in ((5, K), (K, 3)))
    assert torch.equal(product(a, b, order, fused=fused), (a.double() @ b.double()).float())


def test_orders_are_what_they_say() -> None:
    terms = [1.0, *[HALF_ULP] * 3]  # each alone is lost beside 1, a tie to even
    assert summed(terms, SERIAL) == 1.0
    assert summed(terms, REVERSED) == 1 + 2 * 2 * HALF_ULP  # 1 + 3 * 2^-24, a tie to even
    assert summed([1.0, 0.0, HALF_ULP, HALF_ULP], PAIRWISE) == 1 + 2 * HALF_ULP
    assert summed([1.0, 0.0, HALF_ULP, HALF_ULP], blocks(2)) == 1 + 2 * HALF_ULP
    assert summed([1.0, 0.0, HALF_ULP, HALF_ULP], blocks(3)) == 1.0


@pytest.mark.parametrize("fused", [False, True])
def test_no_two_orders_are_one(fused: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = (torch.tensor(rng.standard_normal(s), dtype=torch.float32) for s in ((5, 139), (139, 7)))
    found = {tuple(product(a, b, order, fused=fused).flatten().tolist()) for order in ORDERS}
    assert len(found) == len(ORDERS)


def test_a_fused_multiplication_is_not_rounded() -> None:
    x = 1 + 2.0**-20  # whose square has 2^-40 at its end
    a, b = torch.tensor([[1.0, x]]), torch.tensor([[-1.0], [x]])
    assert product(a, b, SERIAL, fused=True).item() == np.float32(x * x - 1)
    assert product(a, b, SERIAL, fused=False).item() == np.float32(np.float32(x * x) - 1)


def test_products_of_many_tiles_and_batches_are_those_of_one() -> None:
    rng = np.random.default_rng(0)
    a, b = (torch.tensor(rng.standard_normal(s), dtype=torch.float32) for s in ((61, 9), (9, 1201)))
    whole = product(a, b, SERIAL, fused=False)
    alone = [
        product(a[i : i + 1], b[:, j : j + 1], SERIAL, fused=False) for i, j in ((0, 0), (60, 1200))
    ]
    assert [whole[0, 0], whole[60, 1200]] == [one.item() for one in alone]
    stacked = product(a.view(1, 61, 9).expand(2, 61, 9), b.expand(2, 9, 1201), SERIAL, fused=False)
    assert torch.equal(stacked, whole.expand(2, 61, 1201))


# Elementary functions.


@pytest.mark.parametrize("library", [SCATTERED, UPWARDS], ids=lambda library: library.name)
@pytest.mark.parametrize("function", ["exp", "rsqrt", "cos", "sin", "logistic"])
def test_another_library_is_off_by_one_or_two_ulp(library: Library, function: str) -> None:
    x = torch.linspace(0.01, 7, 5003)
    found = getattr(library, function)(x)
    rounded = getattr(torch, {"logistic": "sigmoid"}.get(function, function))(x.double()).float()
    off = (found.view(torch.int32) - rounded.view(torch.int32)).abs()
    assert set(off.tolist()) == ({2} if library.upwards else {1, 2})
    assert torch.equal(found, getattr(library, function)(x))  # the same each time


def test_another_library_is_exact_where_any_is() -> None:
    zero = torch.zeros(1)
    for library in (SCATTERED, UPWARDS):
        assert [library.exp(zero).item(), library.cos(zero).item()] == [1.0, 1.0]
        assert library.sin(zero).item() == 0.0
        assert library.exp(torch.tensor([-np.inf, -200.0])).tolist() == [0.0, 0.0]


# Machines.


@pytest.mark.parametrize("lane", ["f32", "bf16"])
def test_every_machine_gives_other_bits(lane: str) -> None:
    """In what it shows, and in each operator that it replaces, save one machine: this one.

    PyTorch on a processor with AVX-512 sums products of up to 139 terms serially and fused. What
    machines change of a norm is lost where that is rounded to bfloat16, in all 24 of them.
    """
    lost = {"norm"} if lane == "bf16" else set()
    at = harness("massive", lane)
    inputs, layers = at.inputs("causal@67"), at.checkpoint.config.num_hidden_layers
    reference = TorchReference(at.checkpoint, dtype=lane).start(inputs)
    plain = [reference.step() for _ in range(layers + 2)]
    this = []
    for name, machine in MACHINES.items():
        subject = ImitatedMachine(at.checkpoint, lane, machine)
        run = subject.start(inputs)
        ours = [run.step() for _ in range(layers + 2)]
        pairs = [(own[n], other[n]) for own, other in zip(ours, plain, strict=True) for n in own]
        assert any(not np.array_equal(mine, theirs) for mine, theirs in pairs), name
        shown = {split_name(n)[0] for stage in ours for n in stage}
        assert {split_name(n)[0] for stage in plain for n in stage} == shown | subject.absent
        assert subject.changed <= machine.replaces
        this += [name] if machine.replaces - subject.changed - lost else []
    assert len(this) <= 1, this


def test_a_machine_without_effect_is_no_pass() -> None:
    judged = harness("base", "f32").check_imitated(Machine("this one"), "causal", "free")
    assert judged.verdict == "no effect"
    run = CleanResult("this one", "base", "causal", "f32", "free", "no effect")
    assert run.alarm and not SelftestResult(clean=[run]).passed


def quick_matrix() -> list[tuple[str, Workload, str]]:
    """Every machine on each kind of terms, fused ones on half of them; one kind in bfloat16 too."""
    found = []
    for turn, (name, machine) in enumerate(MACHINES.items()):
        own = LONG[1:] if machine.keys else QUICK[turn % 2 : 4 : 2] if machine.fused else QUICK[:4]
        found += [(name, place, "f32") for place in own]
        found.append((name, own[turn % len(own)], "bf16"))
    return [*found, *((n, LONG[1], "f32") for n in ("summed serially", "summed reversed, fused"))]


@pytest.mark.parametrize(
    ("name", "place", "lane"),
    quick_matrix(),
    ids=lambda v: v.model if isinstance(v, Workload) else v,
)
def test_no_imitated_machine_alarms(name: str, place: Workload, lane: str) -> None:
    judged = harness(place.model, lane).check_imitated(MACHINES[name], place.scenario, "free")
    row = judged.first and judged.first.row
    assert judged.verdict == "equal", row
    assert all(figure.seen <= figure.limit for figure in judged.figures)


@pytest.mark.parametrize(
    ("model", "scenario"), [("one_layer", "repeated@1900"), ("smollm2", "causal@5")]
)
def test_no_imitated_machine_alarms_on_many_equal_terms_and_trained_weights(
    model: str, scenario: str
) -> None:
    """One order of each, for time; `parity selftest --calibrate` runs all."""
    alone = Harness(model, "f32")  # gigabytes, which no later test is to keep
    judged = alone.check_imitated(MACHINES["summed serially"], scenario, "free")
    assert judged.verdict == "equal", judged.first
    assert all(figure.seen <= figure.limit for figure in judged.figures)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("summed serially", "base"),
        ("summed in two threads' halves, fused", "halves"),
        ("another library's functions", "massive"),
        ("summed in 8 lanes", "alternating"),
    ],
)
def test_no_imitated_machine_alarms_through_a_cache(name: str, model: str) -> None:
    judged = harness(model, "f32").check_imitated(MACHINES[name], "mixed_lengths", "decode")
    assert judged.verdict == "equal", judged.first


def test_lanes_come_near_an_alarm_through_a_cache_where_no_run_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control: what cancels forwards and backwards does not in lanes.

    How near is a matter of this processor's noise: 26.0 times it, limit 24, with AVX-512.
    """
    machine, place = MACHINES["summed in 8 lanes"], ("mixed_lengths", "decode")
    sure = harness("alternating", "f32").check_imitated(machine, *place)
    monkeypatch.setattr("parity.lockstep.rerun.in_doubt", lambda rows, lane: False)
    once = harness("alternating", "f32").check_imitated(machine, *place)
    assert seen(once, "decode", "peak").seen > 2 * seen(sure, "decode", "peak").seen


@pytest.mark.parametrize("place", QUICK, ids=lambda place: place.model)
@pytest.mark.parametrize("name", names(UNFAIR))
def test_an_unfair_control_alarms(name: str, place: Workload) -> None:
    judged = harness(place.model, "f32").check_imitated(UNFAIR[name], place.scenario, "free")
    assert judged.verdict == "divergent"
    isolated = seen(judged, "isolated", "rho")
    assert isolated.seen > 100 * isolated.limit


def test_noise_beside_fused_attention_is_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given no scores: the noise of what follows is a chain's, and stays its own."""
    judged: list[list[TapResult]] = []

    def kept(rows: list[TapResult]) -> tuple[Figure, ...]:
        judged.append(rows)
        return ()

    monkeypatch.setattr("parity.selftest.harness.figures", kept)

    def isolated(at: Harness, name: str) -> list[TapResult]:
        at.check_imitated(MACHINES[name], "left_padded", "free")
        return [row for row in judged[-1] if row.mode == "isolated"]

    usual, fused = "summed in 8 lanes", "online softmax, 64 keys"
    one, other = Harness("base", "f32"), Harness("base", "f32")
    chained = [row for row in isolated(one, fused) if row.chained]
    assert {split_name(row.tap)[0] for row in chained} == {"layers.attn_context"}
    assert {row.limit for row in chained} == {16.0}
    assert isolated(one, usual) == isolated(other, usual)


class OneTermLost(ImitatedMachine):
    """It sums serially, and forgets the last term of long sums."""

    def _product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        K = a.shape[-1] - (a.shape[-1] > 1000)
        return super()._product(a[..., :K], b[..., :K, :])


class WrongEps(ImitatedMachine):
    """Its norms divide by n - 1."""

    def _sum(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        found, n = super()._sum(left, right), left.shape[-1]
        return found * n / (n - 1) if n == self.config.hidden_size else found


@pytest.mark.parametrize(
    ("wrong", "tap"), [(OneTermLost, "layers.0.down_proj"), (WrongEps, "layers.0.input_layernorm")]
)
@pytest.mark.parametrize("model", ["massive", "smooth", "halves"])
def test_a_wrong_operator_alarms_whatever_the_order(
    wrong: type[ImitatedMachine], tap: str, model: str
) -> None:
    at = harness(model, "f32")
    subject = wrong(at.checkpoint, "f32", MACHINES["summed serially"])
    judged = at.check(subject, "causal", "free")
    assert judged.verdict == "divergent"
    assert judged.first is not None and judged.first.row.tap == tap


def test_machines_are_for_narrow_dtypes() -> None:
    with pytest.raises(ValueError, match="f32 and bf16"):
        ImitatedMachine(harness("base", "f32").checkpoint, "f64", MACHINES["summed serially"])


# In the selftest.


def test_a_selftest_runs_every_machine_and_the_unfair_one() -> None:
    runs = list(clean_runs())
    assert len(set(runs)) == len(runs)
    assert {run.kind for run in runs} >= {*MACHINES, *UNFAIR}
    assert {(run.model, run.scenario) for run in runs if run.kind in MACHINES} == {
        (place.model, place.scenario) for place in WORKLOADS
    }
    quick = list(clean_runs(quick=True))
    assert {run.kind for run in quick} >= set(UNFAIR) and "smollm2" not in {r.model for r in quick}
    assert len([run for run in quick if run.kind in MACHINES]) >= 3


def test_a_calibration_runs_every_machine_everywhere() -> None:
    runs = [run for run in calibration_runs((101, 102)) if run.kind in MACHINES | UNFAIR]
    unfair = [run for run in runs if run.kind in UNFAIR]
    assert {(run.model, run.lane, run.fair) for run in unfair} == {
        (f"{place.model}@101", "f32", False) for place in QUICK
    }
    runs = [run for run in runs if run.kind in MACHINES]
    assert len(runs) == len(MACHINES) * sum(len(place.lanes) for place in WORKLOADS)
    assert {run.model for run in runs} == {
        p.model if p.model == "smollm2" else f"{p.model}@101" for p in WORKLOADS
    }


def test_an_unfair_control_that_is_not_heard_fails_the_selftest() -> None:
    heard = perform(CleanTask(next(iter(UNFAIR)), "massive", "causal", "f32", "free"))
    assert isinstance(heard, CleanResult) and heard.verdict == "divergent"
    assert not heard.alarm and SelftestResult(clean=[heard]).passed
    silent = SelftestResult(clean=[replace(heard, verdict="equal")])
    assert not silent.passed and silent.summary()["unheard"] == 1
    out = io.StringIO()
    show(silent, Console(file=out, width=80))
    assert "NO ALARM: partial sums in bfloat16 [massive causal f32 free]: equal" in out.getvalue()


def test_machines_stand_in_tables_of_their_own() -> None:
    def figure(mode: str, quantity: str, seen: float, limit: float) -> Figure:
        return Figure(mode, quantity, seen, limit, "layers.0.down_proj")

    shown = (
        figure("isolated", "rho", 2.5, 4.0),
        figure("isolated", "peak", 7.03, 6.0),
        figure("free", "rho", 3.3, 16.0),
        figure("free", "peak", 5.4, 24.0),
        figure("chained", "rho", 0.553, 16.0),
        figure("chained", "peak", 10.47, 24.0),
    )
    runs = [
        CleanResult(kind, "smooth@101", "causal", "f32", "free", "equal", figures=shown)
        for kind in MACHINES
    ]
    matrix, out = SelftestResult(clean=runs), io.StringIO()
    show(matrix, Console(file=out, width=80))
    text = out.getvalue()
    assert "smooth@101 causal f32: smooth weights with an offset" in text
    assert "of 4 6" in text and "of 16 24" in text and "…" not in text
    assert all(kind in text for kind in MACHINES) and text.count("2.5 7.0") == len(MACHINES)
    assert matrix.ranges == []
    saved = matrix.to_dict()["machines"]
    assert len(saved) == 6 * len(MACHINES) and saved[1]["seen"] == 7.03


@pytest.mark.parametrize(("verdict", "heard"), [("divergent", 1), ("equal", 0)])
def test_a_calibration_shows_what_must_alarm(verdict: str, heard: int) -> None:
    loud = Figure("isolated", "rho", 4321.5, 4.0, "layers.0.down_proj")
    (kind,) = UNFAIR
    run = CleanResult(
        kind, "smooth@101", "causal", "f32", "free", verdict, figures=(loud,), fair=False
    )
    matrix, out = SelftestResult(clean=[run]), io.StringIO()
    show(matrix, Console(file=out, width=80))
    said = out.getvalue()
    assert said.startswith(f"0 false alarms in 0 clean runs; {heard} of 1 unfair controls alarm\n")
    assert re.search(rf"{kind}: must alarm +4321.5 *\n", said)
    assert ("NO ALARM" in said) == (not matrix.passed) == (not heard)
    (saved,) = matrix.to_dict()["machines"]
    assert not saved["fair"] and saved["seen"] == 4321.5
