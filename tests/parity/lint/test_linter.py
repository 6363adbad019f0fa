"""What is checked is said, consequences are explained, and scenarios of real use stay clean."""

import numpy as np
import pytest

from jaxllama.errors import InputError, on_the_command_line
from jaxllama.masks import causal, padding, prefix, segments, window
from jaxllama.presets import preset
from parity.lint import Case, catalogue, lint, lookup
from parity.lint.report import in_lines
from parity.lint.samples import LEFT_PADDED, additive, cached, left_padded, packed, tril
from parity.scenarios import scenario


def rules(case):
    return {finding.rule for finding in lint(case).findings}


def test_every_rule_is_checked_or_said_not_to_be():
    report = lint(left_padded())
    static = {i for i, file in catalogue().items() if file.rule.kind == "static"}
    assert set(report.checked) | set(report.unchecked) == static
    assert not set(report.checked) & set(report.unchecked)
    assert report.unchecked["S01"] == ["segments"]


def test_an_inverted_mask_is_said_once():
    case = left_padded()
    report = lint(case.replace(mask=~case.mask))
    assert [f.rule for f in report.findings] == ["M02"]
    assert report.explained["M07"] == report.explained["M09"] == "M02"


def test_errors_come_before_warnings():
    mask = additive(np.ones((5, 5), bool), -np.inf, shown=1.5)
    severities = [f.severity for f in lint(Case(mask=mask[None, None])).findings]
    assert severities == ["error", "warning"]


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (tril(below=1), {"M07", "M05"}),
        (np.tri(5, k=1, dtype=bool), {"M07"}),
        (tril().T, {"M07"}),
        (~tril(), {"M02"}),
    ],
)
def test_common_wrong_triangles(wrong, expected):
    assert rules(Case(mask=wrong[None, None])) == expected


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_fills_per_dtype(dtype):
    def fired(fill, scores):
        mask = additive(tril(), fill, dtype=np.float64)
        return "M04" in rules(Case(mask=mask[None, None], scores_dtype=scores))

    name = np.dtype(dtype).name
    assert not fired(float(np.finfo(dtype).min), name)
    assert not fired(-np.inf, name)
    assert fired(-1e9, "f16")
    assert not fired(-1e9, "bf16")
    assert fired(float(np.finfo(np.float32).min), "bf16")  # rounds up to infinity
    assert fired(-300.0, name)
    assert not fired(-305.0, name)


def test_a_strong_fill_is_weak_for_larger_scores():
    mask = additive(tril(), -1e4)[None, None]
    assert rules(Case(mask=mask)) == set()
    assert rules(Case(mask=mask, score_limit=5000)) == {"M04"}


def test_minus_infinity_beside_a_finite_fill():
    mask = additive(tril(), -np.inf)
    mask[4, 0] = np.finfo(np.float32).min
    (found,) = lint(Case(mask=mask[None, None])).findings
    assert found.rule == "M06"
    assert "mixed" in found.what


def test_empty_rows_by_policy():
    case = left_padded(empty_row=None)
    (found,) = lint(case).findings
    assert (found.rule, found.severity, found.count) == ("M05", "warning", 2)
    assert rules(case.replace(empty_row="error")) == set()
    nothing = left_padded(mask=np.zeros((2, 1, 5, 5), bool), empty_row="zero")
    assert rules(nothing) == {"M07"}  # a policy for empty rows excuses no missing key


def test_three_axes_need_a_declared_layout():
    seen = tril()[None] & LEFT_PADDED[:, None, :]
    case = left_padded(mask=seen)
    assert rules(case) == {"M08"}
    assert rules(case.replace(layout="bts")) == set()
    assert rules(left_padded(mask=np.repeat(tril()[None], 3, 0), heads=3)) == {"M09"}


def test_batch_and_heads_exchanged():
    seen = np.repeat((tril()[None] & LEFT_PADDED[:, None, :])[None], 3, 0)
    (found,) = lint(left_padded(mask=seen, heads=3)).findings
    assert found.rule == "M08"
    assert "(2 or 1, 3 or 1, 5, 5)" in found.expected
    assert rules(left_padded(mask=seen.swapaxes(0, 1), heads=3)) == set()


def test_padding_on_the_query_axis():
    seen = tril()[None] & LEFT_PADDED[:, :, None]
    (found,) = lint(left_padded(mask=seen[:, None])).findings
    assert found.rule == "M08"
    assert (found.place.row, found.place.key, found.count) == (0, 0, 2)


def test_one_wrong_head_is_named():
    seen = np.repeat(left_padded().mask, 3, 1)
    seen[1, 2, 3, 4] = True
    (found,) = lint(left_padded(mask=seen, heads=3)).findings
    assert (found.rule, str(found.place)) == ("M07", "row 1, head 2, query 3, key 4")


def test_padding_told_from_the_end_id():
    ids = np.array([[11, 12, 13, 2, 2], [14, 15, 16, 17, 2]])
    mask = tril()[None, None] & (ids != 2)[:, None, None, :]
    case = Case(mask=mask, ids=ids, pad_id=2, eos_ids=(2,), empty_row="zero", intended=None)
    (found,) = lint(case).findings
    assert (found.rule, found.severity) == ("T01", "warning")  # it may be padding alone
    assert rules(case.replace(pad_id=0)) == set()
    labels = np.where(ids == 2, -100, ids)
    said = [f.what for f in lint(case.replace(labels=labels)).findings if f.severity == "error"]
    assert said == ["no label is an end id"]


def test_decode_off_by_one_and_unwritten_slots():
    early = cached()
    seen = np.zeros((1, 1, 1, 7), bool)
    seen[..., :4] = True
    one = early.replace(mask=seen, past=3)
    assert rules(one) == set()
    late = seen & (np.arange(7) != 3)
    assert rules(one.replace(mask=late)) == {"C01", "M07"}
    assert rules(one.replace(mask=np.ones_like(seen))) == {"C02"}


def test_a_square_mask_with_a_cache():
    report = lint(Case(mask=tril(4)[None, None], past=3))
    assert [f.rule for f in report.findings] == ["C03"]
    assert "past 3 + 4" in report.findings[0].expected


def test_a_causal_flag_needs_its_alignment():
    case = Case(mask=tril(2, 5)[None, None], past=3, is_causal=True)
    assert rules(case) == {"C04"}
    assert rules(Case(mask=tril()[None, None], is_causal=True)) == set()  # T == S: no question


def test_windows_off_by_one_either_way():
    def banded(width):
        return Case(mask=(tril() & ~tril(below=width))[None, None], window=3)

    assert rules(banded(3)) == set()
    assert rules(banded(4)) == {"W01"}
    (narrow,) = lint(banded(2)).findings
    assert (narrow.rule, narrow.actual, narrow.expected) == ("W01", "2 keys", "3")


@pytest.mark.parametrize(
    ("rule", "limits"),
    [
        ((causal() & window(3)) | prefix(2), ["window(3)"]),
        (prefix(2) | (segments() & window(3) & causal()), ["segments()", "window(3)"]),
        ((causal() | prefix(2)) & window(3), []),
        ((causal() & window(3)) | (prefix(2) & window(3)), []),
        ((causal() & segments()) | (prefix(2) & segments()), []),
    ],
)
def test_an_or_that_loses_a_limit(rule, limits):
    case = Case(spec=rule, intended=rule, segments=np.zeros((1, 5), np.int64))
    found = [f for f in lint(case).findings if f.rule == "W02"]
    assert [f.what.split(" does")[0] for f in found] == limits


def test_specs_are_linted_like_arrays():
    valid = LEFT_PADDED
    assert rules(Case(spec=causal(), valid=valid, empty_row="zero")) == {"M09"}
    assert rules(Case(spec=causal() & padding(), valid=valid, empty_row="zero")) == set()


def test_packed_rows_with_restarting_positions_are_clean():
    assert rules(packed()) == set()
    assert rules(packed(positions=np.tile(np.arange(5), (2, 1)))) == {"P01"}


def test_positions_may_start_elsewhere_if_said():
    positions = np.arange(8209, 8214)[None]
    case = Case(mask=tril()[None, None], positions=positions)
    assert rules(case) == {"P01"}
    assert rules(case.replace(first_position=8209)) == set()


def test_random_correct_masks_raise_no_alarm():
    rng = np.random.default_rng(3)
    for _ in range(40):
        batch, t = rng.integers(1, 5), rng.integers(1, 9)
        pads = rng.integers(0, t, batch)
        index = np.arange(t)
        valid = (index >= pads[:, None]) if rng.random() < 0.5 else (index < t - pads[:, None])
        width = int(rng.integers(1, 6)) if rng.random() < 0.5 else None
        seen = (index[:, None] >= index) & valid[:, None, :]
        if width:
            seen = seen & (index[:, None] - index < width)
        mask = seen[:, None] if rng.random() < 0.5 else additive(seen, -1e4)[:, None]
        case = Case(
            mask=mask,
            valid=valid,
            positions=np.maximum(valid.cumsum(1) - 1, 0),
            window=width,
            empty_row="zero",
        )
        assert lint(case).findings == []


@pytest.mark.parametrize("name", ["causal", "left_padded", "right_padded", "packed", "windowed"])
def test_the_scenarios_own_masks_are_clean(name):
    inputs = scenario(name, None, preset("llama-3.1-8b"), length=13, prompt=range(100, 150))
    case = Case(
        mask=inputs.mask[:, None],
        ids=inputs.tokens,
        positions=inputs.positions,
        valid=inputs.valid,
        segments=inputs.segments,
        window=inputs.window,
        empty_row="zero",
    )
    assert lint(case).findings == []
    ahead = case.replace(mask=inputs.mask[:, None] | np.eye(13, k=1, dtype=bool))
    assert rules(ahead)


def test_a_stated_rule_is_compared_cell_by_cell():
    rng = np.random.default_rng(11)
    rule = causal() & padding() & window(3)
    right = left_padded(intended=rule)
    right = right.replace(mask=right.expected)
    assert rules(right) == set()
    live = np.argwhere(LEFT_PADDED[:, :, None] & LEFT_PADDED[:, None, :])
    for row, query, key in live[rng.permutation(len(live))[:25]]:
        mask = right.mask.copy()
        mask[row, 0, query, key] ^= True
        report = lint(right.replace(mask=mask))
        assert report.errors, (row, query, key)
        assert all((f.place.row, f.place.query) == (row, query) for f in report.findings)


def test_what_another_rule_names_is_not_said_again():
    report = lint(Case(mask=np.ones((1, 1, 5, 5), bool), intended=causal()))
    assert [f.rule for f in report.findings] == ["M07"]
    assert report.explained == {"M11": "M07"}


def test_nan_and_infinity_in_visible_cells_are_errors():
    mask = additive(tril(), -np.inf)
    mask[3, 1] = np.nan
    (found,) = lint(Case(mask=mask[None, None])).findings
    assert (found.rule, found.severity, found.actual) == ("M10", "error", "nan")


def test_facts_must_fit_the_mask():
    with pytest.raises(InputError, match=r"valid: 6 tokens a row, expected T = 5, S = 5"):
        left_padded(valid=np.ones((2, 6), bool))
    with pytest.raises(InputError, match="nothing in it"):
        Case(mask=np.ones((1, 1, 0, 0), bool))


def test_nothing_that_is_given_makes_it_fail():
    """Random arrays, ranks and facts: a report or one clear error, never a traceback."""
    rng = np.random.default_rng(0)
    reports = 0
    for _ in range(250):
        b, t, s = rng.integers(1, 4), rng.integers(1, 6), rng.integers(1, 8)
        shapes = [(t, s), (b, s), (b, t, s), (b, 1, t, s), (1, 1, t, s), (b, 3, t, s), (3, b, t, s)]
        seen = rng.random(shapes[rng.integers(len(shapes))]) < 0.6
        kinds = [seen, seen.astype(int), seen.astype(np.float32), np.where(seen, 0, -np.inf)]

        sizes = (b, (t, s)[rng.integers(2)])

        def some(low, high, sizes=sizes):
            return rng.integers(low, high, sizes) if rng.random() < 0.4 else None

        try:
            case = Case(
                mask=kinds[rng.integers(len(kinds))],
                intended=[None, "default", causal() & window(2)][rng.integers(3)],
                use=[None, "bool", "additive"][rng.integers(3)],
                ids=some(0, 5),
                positions=some(0, 9),
                segments=some(0, 2),
                valid=some(0, 2),
                past=[None, int(rng.integers(6))][rng.integers(2)],
                capacity=[None, 7][rng.integers(2)],
                pad_id=0,
                eos_ids=[(), (0,)][rng.integers(2)],
                scores_dtype=[None, "bf16"][rng.integers(2)],
                is_causal=bool(rng.integers(2)),
            )
            report = lint(case)
        except InputError:
            continue
        assert next(in_lines(report, case, "random")).startswith(report.to_json()["verdict"])
        reports += 1
    assert reports > 150


def test_bad_cases_name_every_problem():
    with pytest.raises(InputError) as caught:
        Case(mask=np.ones(5, bool), ids=np.ones((2, 5)), valid=np.ones((3, 5)), spec=causal())
    for said in ("either a mask array or a spec", "one batch size", "two to four axes"):
        assert said in str(caught.value)
    with pytest.raises(InputError, match="a spec needs tokens"):
        Case(spec=causal())
    with pytest.raises(InputError, match="expected one of"):
        lint(Case(mask=additive(tril(), -np.inf)[None, None], scores_dtype="int8"))
    with pytest.raises(InputError, match=r"'X99'.*M01"):
        lookup("X99")


def test_arguments_are_said_as_the_asker_writes_them() -> None:
    everything = Case(mask=np.ones((1, 4, 4), bool))
    (ours,), (theirs,) = (lint(everything, *w).findings for w in ((), (on_the_command_line,)))
    assert ours.remedy.endswith("say so with intended")
    assert theirs.remedy.endswith("say so with --expect")
    assert ["a rule stated with intended"] in lint(everything).unchecked.values()
