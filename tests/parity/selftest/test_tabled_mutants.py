"""Mutants of what writes, of tokenizers and of readers: caught or not, and tabled by what did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from planting import planted

from jaxllama.errors import InputError
from parity.selftest.mutants.examine import MutantResult, forms_of, summary_of, tabled
from parity.selftest.mutants.forms import Form, OriginalForms, differences, original_forms
from parity.selftest.mutants.population import SHARES, Population, examine_population, sample_of
from parity.selftest.mutants.reach import is_reached
from parity.selftest.mutants.reading import write_files
from parity.selftest.mutants.rules import GROUPS, MODULES, Mutant, mutants_of
from parity.selftest.mutants.tokenizing import write_tokenizers
from parity.tokens.texts import corpus

# Of each group what is tried, so that a test is cheap.
TRIED = {
    "writing": ("float64", "other prompts and settings"),
    "tokens": ("json", "bare"),
    "reading": ("hf", "meta-one"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("files")
    write_tokenizers(made)
    write_files(made)
    return made


@pytest.fixture(autouse=True)
def _few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out most texts: tracing which lines run takes a minute for all of them."""
    for module in ("parity.tokens.compare", "parity.selftest.mutants.tokenizing"):
        monkeypatch.setattr(f"{module}.corpus", lambda specials: corpus(specials)[::9])


_seen: dict[str, OriginalForms] = {}


def tried(group: str, folder: Path) -> tuple[Sequence[Form], OriginalForms]:
    forms = [form for form in forms_of(group, folder) if form.name in TRIED[group]]
    if group not in _seen:
        _seen[group] = original_forms(forms)
    return forms, _seen[group]


def reached_most(module: str, original: OriginalForms) -> Mutant:
    """Return a mutant whose lines run in as many forms as possible: it stands for the planted."""

    def forms(mutant: Mutant) -> int:
        return sum(is_reached(mutant, one.lines) for one in original.seen.values())

    return max(mutants_of(module), key=forms)


def planted_result(group: str, folder: Path, edit: tuple[str, str, str]) -> MutantResult:
    """Return what is found of an edit: a module, a piece of its source, and what replaces it."""
    forms, original = tried(group, folder)
    module, before, after = edit
    mutant = reached_most(module, original)
    assert mutant.group == group
    with planted(module, before, after, compiled=False):
        return tabled(mutant, original, forms)[0]


CAUGHT = {
    "writing": (
        ("jaxllama.generate", "np.where(past_end, np.int32(-1)", "np.where(past_end, np.int32(0)"),
        "generate generated.rows",
    ),
    "tokens": (
        (
            "jaxllama.tokenizer.json_file",
            "encode_special_tokens = not specials",
            "encode_special_tokens = True",
        ),
        "tokens tokens.ids",
    ),
    "reading": (
        (
            "jaxllama.checkpoint.hf.read",
            "lambda name: read_tensor(*stored[name])",
            "lambda name: -read_tensor(*stored[name])",
        ),
        "reading tensor",
    ),
}
EQUIVALENT = {
    "writing": ("jaxllama.request", "tuple(int(i) for i in ids)", "tuple(i for i in ids)"),
    "tokens": ("jaxllama.text", "if token in self._special or", "if token in {*self._special} or"),
    "reading": ("jaxllama.checkpoint.names", "return name, None", "return str(name), None"),
}
# Wrong where no run looks: where seven tokens are written, and in a text that begins with ids
# 5 and 12.

UNSEEN = {
    "writing": (
        "jaxllama.generate",
        "logprobs = np.where(past_end, 0, logprobs[:, :width])",
        "logprobs = np.where(past_end, 0, logprobs[:, :width] + (width == 7))",
    ),
    "tokens": (
        "jaxllama.tokenizer.tokenizer",
        "ids = [i for i in ids if i not in special]",
        "ids = [i for i in ids if i not in special][: None if ids[:2] != [5, 12] else 1]",
    ),
}


@pytest.mark.parametrize("group", CAUGHT)
def test_a_mutant_is_caught_and_tabled(group: str, folder: Path) -> None:
    edit, caught_by = CAUGHT[group]
    found = planted_result(group, folder, edit)
    assert found.detected and found.placed and not found.equivalent, found
    assert (found.caught_by, found.explained) == (caught_by, "")


@pytest.mark.parametrize("group", EQUIVALENT)
def test_what_changes_nothing_raises_no_alarm(group: str, folder: Path) -> None:
    found = planted_result(group, folder, EQUIVALENT[group])
    assert found.equivalent and not found.detected and found.caught_by == "", found


@pytest.mark.parametrize("group", UNSEEN)
def test_what_no_run_looks_at_is_undetected(group: str, folder: Path) -> None:
    found = planted_result(group, folder, UNSEEN[group])
    assert not found.equivalent and not found.detected and found.expected, found
    assert not Population(0, "", 1, 1, [found]).passed


def test_a_reader_that_no_run_is_made_of_is_undetected(folder: Path) -> None:
    """What no usual file shows is run by whoever has the other; without that run nobody sees."""
    edit = (
        "jaxllama.checkpoint.meta.directory",
        "return half_split(result, heads)",
        "return result",
    )
    forms, original = tried("reading", folder)
    mutant = reached_most(edit[0], original)
    with planted(*edit, compiled=False):
        found = tabled(mutant, original, forms)[0]
        blind = [replace(form, run=None) for form in forms]
        missed = tabled(mutant, original, blind)[0]
    tensor = "model.layers.0.self_attn.q_proj.weight"
    assert found.detected and found.placed and found.found[0] == tensor
    assert not missed.detected and not missed.equivalent
    assert missed.expected[1] == "meta-one"


def test_the_unchanged_code_must_pass(folder: Path) -> None:
    (form, _), _ = tried("tokens", folder)
    edit = CAUGHT["tokens"][0]
    with planted(*edit, compiled=False), pytest.raises(RuntimeError, match=r"json, first tokens"):
        original_forms([form])


def test_what_differs_is_named() -> None:
    one = {"a": [1], "b": (1, "x"), "c": None}
    assert differences(one, dict(one)) == []
    assert differences(one, one | {"b": (2, "x"), "d": 1}) == ["b", "d"]
    assert differences(one, {**one, "a": (1,)}) == ["a"]


def _mutants(group: str, count: int) -> list[Mutant]:
    module = GROUPS[group][0]
    return [Mutant(module, "f", i, "name", i, "a", "b", (i, i)) for i in range(count)]


def test_a_sample_has_of_every_group() -> None:
    reached = {group: _mutants(group, 100) for group in GROUPS}
    sample = sample_of(reached, 45, 0)
    counts = {group: sum(m.group == group for m in sample) for group in GROUPS}
    assert counts == {"model": 30, "writing": 5, "tokens": 5, "reading": 5}
    assert sum(SHARES[g] for g in GROUPS if g != "model") * 3 == sum(SHARES.values())
    # A larger sample begins with the smaller; what a group has not comes of the others.
    assert sample_of(reached, 60, 0)[:45] == sample and sample_of(reached, 45, 1) != sample
    few = sample_of({"model": _mutants("model", 3), "tokens": _mutants("tokens", 9)}, 99, 0)
    assert len(few) == len({*few}) == 12
    assert len({*MODULES}) == len(MODULES)


def test_figures_have_a_row_a_group() -> None:
    rows = [
        MutantResult(_mutants("tokens", 1)[0], "crash"),
        MutantResult(
            _mutants("reading", 1)[0],
            "judged",
            detected=True,
            found=("config.rope_theta", "0", "", "reading", ""),
            expected=("config.rope_theta", "0"),
        ),
    ]
    document = Population(0, "", 9, 9, rows).to_dict()
    assert [row["caught_by"] for row in document["mutants"]] == [
        "crash",
        "reading config.rope_theta",
    ]
    assert [row["group"] for row in document["mutants"]] == ["tokens", "reading"]
    groups = document["summary"]["groups"]
    assert [*groups] == [*GROUPS] and groups["reading"] == summary_of(rows[1:])
    assert groups["tokens"]["caught_by"] == {"crash": 1}
    assert Population(0, "", 9, 9, rows).passed


def test_metas_package_is_asked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(kind: str) -> None:
        raise InputError(f"{kind}: not installed")

    monkeypatch.setattr("parity.selftest.mutants.population.require_package", missing)
    with pytest.raises(InputError, match=r"tokenizer\.model: not installed"):
        examine_population(1, 0, groups=("tokens",), progress=lambda *_: None)
