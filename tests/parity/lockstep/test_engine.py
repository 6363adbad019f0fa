"""Walking implementations side by side: who is judged, and by whose noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from records import LAYERS, Scripted, scripted_inputs

from parity.locate import first_divergence
from parity.lockstep.comparator import PassResult
from parity.lockstep.engine import run_lockstep
from parity.lockstep.participants import Participant, Role
from parity.result import TapResult
from parity.subjects.base import Arrays
from parity.taps import AXES, expected_names

SUBJECT, NOISE, WITNESS, NOISE_F32 = (
    frozenset({role}) for role in (Role.SUBJECT, Role.NOISE, Role.WITNESS, Role.NOISE_F32)
)
MODES = ("free", "isolated")
# Noise of an honest implementation in units far above the floor, so that the variants decide.
TINY = 1e-9


def walked(
    subject: Scripted, *others: tuple[Scripted, frozenset[str]], modes: tuple[str, ...] = ("free",)
) -> PassResult:
    return walk_with(Scripted("reference"), subject, *others, modes=modes)


def walk_with(
    reference: Scripted,
    subject: Scripted,
    *others: tuple[Scripted, frozenset[str]],
    modes: tuple[str, ...] = ("free",),
) -> PassResult:
    participants = [Participant(one, roles, MODES) for one, roles in ((subject, SUBJECT), *others)]
    return run_lockstep({"f64": participants}, [scripted_inputs()], reference, modes, LAYERS)


def by_tap(record: PassResult, mode: str = "free") -> dict[str, TapResult]:
    return {row.tap: row for row in record.rows if row.mode == mode}


def changing(name: str, amount: float = 1e-3) -> Any:
    def change(taps: Arrays) -> None:
        if name in taps:
            taps[name] = taps[name] + amount

    return change


def test_every_tap_is_judged_in_every_mode() -> None:
    record = walked(Scripted("s"), modes=("free", "isolated"))
    assert list(by_tap(record)) == expected_names(LAYERS) == list(by_tap(record, "isolated"))
    assert all(row.passed for row in record.rows)
    assert not record.unmatched and not record.witnesses


def test_noise_is_that_of_the_variants() -> None:
    noisy = Scripted("noisy", noise=TINY, seed=1)
    alone = by_tap(walked(noisy))
    assert not alone["embed"].passed
    beside = by_tap(walked(noisy, (Scripted("v", noise=TINY, seed=2), NOISE)))
    assert beside["embed"].passed and 0.2 < beside["embed"].rho < 5
    assert 1e-10 < beside["embed"].noise < 1e-8
    faulty = Scripted("faulty", noise=TINY, seed=1, change=changing("layers.1.v_proj", 1e-6))
    judged = by_tap(walked(faulty, (Scripted("v", noise=TINY, seed=2), NOISE)))
    assert [name for name, row in judged.items() if not row.passed] == ["layers.1.v_proj"]


def test_isolated_parties_are_given_the_references_values() -> None:
    subject = Scripted("s")
    walked(subject, modes=("free", "isolated"))
    forces = [force for force in subject.forces if force is not None]
    assert len(forces) == LAYERS + 2 and len(subject.forces) == 2 * (LAYERS + 2)
    assert list(forces[1]) == [n for n in expected_names(LAYERS) if n.startswith("layers.0.")]


def test_a_subject_that_cannot_be_forced_is_run_free_alone() -> None:
    record = walked(Scripted("s", can_force=False), modes=("free", "isolated"))
    assert {row.mode for row in record.rows} == {"free"}


def test_a_wrong_shape_is_a_finding_in_both_modes() -> None:
    def transpose(taps: Arrays) -> None:
        if "layers.0.k_proj" in taps:
            taps["layers.0.k_proj"] = np.swapaxes(taps["layers.0.k_proj"], 2, 3)
        if "layers.0.attn_scores" in taps:
            taps["layers.0.attn_scores"] = taps["layers.0.attn_scores"][:, :1]

    subject = Scripted("s", change=transpose)
    record = walked(subject, modes=("free", "isolated"))
    for mode in ("free", "isolated"):
        row = by_tap(record, mode)["layers.0.k_proj"]
        assert not row.passed and "shape (2, 5, 6, 2)" in row.problems[0]
    # Forcing it would end the run instead of reporting it.
    assert all("layers.0.k_proj" not in force for force in subject.forces if force is not None)
    first = first_divergence(record.rows)
    assert first is not None and first.row.tap == "layers.0.k_proj"


def test_a_tap_that_is_missing_or_unknown_is_unmatched_unless_declared() -> None:
    def rename(taps: Arrays) -> None:
        if "layers.1.up_proj" in taps:
            taps["layers.1.upper"] = taps.pop("layers.1.up_proj")

    record = walked(Scripted("s", change=rename))
    assert record.unmatched == {"layers.1.up_proj", "layers.1.upper"}
    silent = Scripted("s", absent=frozenset({"layers.attn_scores", "layers.attn_probs"}))
    record = walked(silent)
    assert not record.unmatched
    assert len(by_tap(record)) == len(expected_names(LAYERS)) - 2 * LAYERS


def test_a_wrong_witness_is_found_out() -> None:
    honest, wrong = Scripted("honest"), Scripted("wrong", change=changing("layers.1.q_proj"))
    record = walked(Scripted("s"), (honest, WITNESS), (wrong, WITNESS))
    rows = {row.witness: row for row in record.witnesses}
    assert rows["honest"].agrees and rows["honest"].rho == 0
    assert rows["honest"].compared == len(expected_names(LAYERS))
    assert not rows["wrong"].agrees
    assert rows["wrong"].worst_tap == "layers.1.q_proj" and rows["wrong"].rho > 1e6
    assert all(row.passed for row in record.rows)  # the subject is not blamed for it


def test_a_witness_with_unmatched_taps_says_so() -> None:
    def drop(taps: Arrays) -> None:
        taps.pop("norm", None)

    record = walked(Scripted("s"), (Scripted("w", change=drop), WITNESS))
    assert record.witnesses[0].unmatched == ("norm",)
    assert record.witnesses[0].compared == len(expected_names(LAYERS)) - 1


def test_probabilities_that_the_scores_do_not_explain() -> None:
    """Within the noise of the variants, and still caught: equal scores give equal weights."""

    def shift_weight(taps: Arrays) -> None:
        for name, value in taps.items():
            if name == "layers.1.attn_probs":
                moved = value.copy()
                moved[0, 1, 3, :2] += [1e-8, -1e-8]
                taps[name] = moved

    noisy = Scripted("v", change=changing("layers.1.attn_probs", 0.0))
    record = walked(Scripted("s", change=shift_weight), (noisy, NOISE))
    row = by_tap(record)["layers.1.attn_probs"]
    assert any("total variation" in problem for problem in row.problems)
    assert not any(by_tap(record)["layers.0.attn_probs"].problems)


@pytest.mark.parametrize(("size", "explained"), [(1e-10, True), (1e-2, False)])
def test_a_changed_prediction_needs_a_margin_that_noise_can_cross(
    size: float, explained: bool
) -> None:
    def near_tie(amount: float) -> Any:
        def change(taps: Arrays) -> None:
            if "logits" in taps:
                taps["logits"] = taps["logits"].copy()
                best = taps["logits"][0, 2].max()
                taps["logits"][0, 2, 4] = best + amount

        return change

    reference = Scripted("reference", change=near_tie(-size / 2))
    subject = Scripted("s", change=near_tie(+size / 2))
    variant = Scripted("v", noise=TINY, seed=3, change=near_tie(-size / 2))
    record = walk_with(reference, subject, (variant, NOISE))
    row = by_tap(record)["logits"]
    assert row.facts["top1_flips"] == 1
    assert any("top-1" in problem for problem in row.problems) is not explained
    assert row.passed is explained


def test_production_is_judged_by_its_logits_under_its_own_mode() -> None:
    production = Scripted("p", absent=frozenset(AXES) - {"logits"})
    participants = [
        Participant(Scripted("s"), SUBJECT, MODES),
        Participant(production, frozenset({Role.PRODUCTION}), ("free",)),
    ]
    record = run_lockstep(
        {"f64": participants}, [scripted_inputs()], Scripted("reference"), MODES, LAYERS
    )
    assert {row.mode for row in record.rows} == {"free", "isolated", "production"}
    assert (
        len([row for row in record.rows if row.mode == "production" and row.tap == "logits"]) == 1
    )


def test_flips_are_judged_token_by_token() -> None:
    """A noisy token elsewhere excuses no flip here."""

    def ties(here: float, there: float) -> Any:
        def change(taps: Arrays) -> None:
            if "logits" in taps:
                taps["logits"] = taps["logits"].copy()
                taps["logits"][0, 2, 4] = taps["logits"][0, 2].max() + here
                taps["logits"][1, 1, 3] += there

        return change

    reference = Scripted("reference", change=ties(-5e-4, 0.0))
    subject = Scripted("s", change=ties(+5e-4, 0.0))
    elsewhere = Scripted("v", change=ties(-5e-4, 1.0))
    steady = [Scripted(f"v{i}", change=ties(-5e-4, 0.0)) for i in range(3)]
    row = by_tap(walk_with(reference, subject, *((v, NOISE) for v in steady)))["logits"]
    assert row.facts["unexplained_flips"] == 1
    row = by_tap(walk_with(reference, subject, (elsewhere, NOISE)))["logits"]
    assert row.facts["top1_flips"] == 1


@pytest.mark.parametrize(("factor", "passed"), [(1.0, True), (0.99, False)])
def test_weights_must_add_up(factor: float, passed: bool) -> None:
    def change(taps: Arrays) -> None:
        if "layers.1.attn_probs" in taps:
            taps["layers.1.attn_probs"] = taps["layers.1.attn_probs"] * factor

    row = by_tap(walked(Scripted("s", change=change)))["layers.1.attn_probs"]
    assert any("add up" in problem for problem in row.problems) is not passed
    assert row.passed is passed


def test_production_may_not_lose_its_logits() -> None:
    mute = Scripted("p", absent=frozenset(AXES) - {"logits"}, change=lambda taps: taps.clear())
    participants = [
        Participant(Scripted("s"), SUBJECT, MODES),
        Participant(mute, frozenset({Role.PRODUCTION}), ("free",)),
    ]
    record = run_lockstep(
        {"f64": participants}, [scripted_inputs()], Scripted("reference"), ("free",), LAYERS
    )
    assert record.unmatched == {"logits"}


def test_a_row_says_which_dtype_its_array_had() -> None:
    def narrow(taps: Arrays) -> None:
        if "embed" in taps:
            taps["embed"] = taps["embed"].astype(np.float32)

    rows = by_tap(walked(Scripted("s", change=narrow)))
    assert rows["embed"].dtype == "float32" and rows["norm"].dtype == "float64"


def test_scenarios_that_share_a_batch_are_judged_apart() -> None:
    def change(taps: Arrays) -> None:
        if "layers.1.v_proj" in taps:
            taps["layers.1.v_proj"] = taps["layers.1.v_proj"].copy()
            taps["layers.1.v_proj"][3, 2] += 1e-3

    parts = [scripted_inputs(), replace(scripted_inputs(), name="second")]
    participants = [Participant(Scripted("s", change=change), SUBJECT, MODES)]
    record = run_lockstep({"f64": participants}, parts, Scripted("reference"), ("free",), LAYERS)
    assert len(record.rows) == 2 * len(expected_names(LAYERS))
    (failed,) = (row for row in record.rows if not row.passed)
    assert (failed.tap, failed.scenario) == ("layers.1.v_proj", "second")
    assert failed.worst is not None and failed.worst.index["B"] == 1


def test_a_batch_of_another_size_is_a_finding_in_every_scenario() -> None:
    def halve(taps: Arrays) -> None:
        if "norm" in taps:
            taps["norm"] = taps["norm"][:1]

    parts = [scripted_inputs(), replace(scripted_inputs(), name="second")]
    participants = [Participant(Scripted("s", change=halve), SUBJECT, MODES)]
    record = run_lockstep({"f64": participants}, parts, Scripted("reference"), ("free",), LAYERS)
    failed = {row.scenario: row.problems[0] for row in record.rows if not row.passed}
    assert failed.keys() == {"scripted", "second"}
    assert "shape (1, 5, 7), the reference has (2, 5, 7)" in failed["second"]


def test_a_run_at_several_dtypes_is_run_once_and_judged_in_each() -> None:
    reference, shared = Scripted("reference"), Scripted("r", noise=TINY, seed=1)
    participants = {
        "f64": [
            Participant(Scripted("a"), SUBJECT, MODES),
            Participant(shared, NOISE_F32, ("free",)),
        ],
        "f32": [
            Participant(Scripted("b"), SUBJECT, MODES),
            Participant(shared, NOISE | WITNESS, ("free",)),
        ],
    }
    record = run_lockstep(participants, [scripted_inputs()], reference, ("free",), LAYERS)
    assert len(shared.forces) == len(reference.forces) == LAYERS + 2
    assert {row.lane for row in record.rows} == {"f64", "f32"}
    assert [row.lane for row in record.witnesses] == ["f32"]


def test_float64_borrows_noise_from_float32_scaled_by_the_roundoffs() -> None:
    name, noise = "layers.0.o_proj", 1e-3
    narrow = Scripted("r", noise=noise, seed=1)
    record = walked(Scripted("s"), (narrow, NOISE_F32))
    ours = by_tap(walked(Scripted("s"), (narrow, NOISE)))[name].noise
    assert by_tap(record)[name].noise == pytest.approx(ours * 2.0**-29, rel=1e-6)


@pytest.mark.parametrize("role", ["interior", "variant"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_run_that_overflowed_excuses_nothing(role: str, value: float) -> None:
    name = "layers.0.o_proj"

    def overflow(taps: Arrays) -> None:
        if name in taps:
            taps[name] = taps[name].copy()
            taps[name].flat[0] = value

    broken = Scripted("r", noise=TINY, change=overflow)
    record = walked(Scripted("s", change=changing(name)), (broken, frozenset({role})))
    assert not by_tap(record)[name].passed
    clean = walked(Scripted("s"), (broken, frozenset({role})))
    assert by_tap(clean)[name].passed


def test_comparing_in_the_background_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    change = changing("layers.1.up_proj")
    near = walked(Scripted("s", change=change), (Scripted("w"), NOISE | WITNESS))
    for module in ("parity.lockstep.threads", "parity.lockstep.engine"):
        monkeypatch.setattr(f"{module}.ENOUGH_ELEMENTS", 1)
    far = walked(Scripted("s", change=change), (Scripted("w"), NOISE | WITNESS))
    assert near.rows == far.rows and near.witnesses == far.witnesses
    assert [row.tap for row in far.rows if not row.passed] == ["layers.1.up_proj"]
