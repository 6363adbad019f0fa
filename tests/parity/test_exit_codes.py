"""What `parity`'s exit codes mean: a verdict's are no one else's, and no report's fate hides it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import result, row

from jaxllama.errors import InputError
from parity import cli
from parity.commands import names
from parity.lint import case, linter
from parity.report import html_file, json_file
from parity.report.outputs import after_verdict, write_report
from parity.subjects.dry_run import NamesReport

ROOT = Path(__file__).parents[2]
RUN = ["run", "tiny", "--dtype", "f64", "--scenario", "causal", "--length", "7"]
KINDS = ("json", "html", "junit")


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs the command in this process: its code, output and errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["parity", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, captured.out, captured.err

    return call


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch):
    """Return a function that sets what every run ends in: a result, or what it raises."""

    def ends_in(outcome: Any) -> None:
        def run(*_: object, **__: object) -> Any:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr("parity.runner.run.run", run)

    return ends_in


EQUAL, DIVERGENT = result([row("embed")]), result([row("embed", failed=True)])


# Verdicts and reports


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outcome", "verdict"), [(EQUAL, "equal"), (DIVERGENT, "divergent")])
def test_a_full_disk_swallows_no_verdict(
    parity, judged, tmp_path: Path, kind: str, outcome: Any, verdict: str
) -> None:
    judged(outcome)
    others = {k: tmp_path / k for k in KINDS if k != kind}
    options = [word for k, path in others.items() for word in (f"--{k}", str(path))]
    code, out, err = parity(*RUN, f"--{kind}", "/dev/full", *options)
    assert code == 5 and out.startswith(f"{verdict}: ")
    assert err == (
        "parity: the verdict printed above stands, but /dev/full: cannot be written: "
        "No space left on device\n"
    )
    assert all(path.stat().st_size for path in others.values())
    code, _, err = parity(*RUN, f"--{kind}", str(tmp_path / kind))
    assert (code, err) == ({"equal": 0, "divergent": 1}[verdict], "")


def test_the_verdict_is_out_before_a_report_is_begun(
    parity, judged, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(json_file, "write", lambda *_: seen.append(capsys.readouterr().out))
    judged(EQUAL)
    assert parity(*RUN, "--json", "x.json")[0] == 0
    assert seen[0].startswith("equal: ")


def test_nothing_of_the_verdict_waits_for_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "said"
    with path.open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        print("equal")
        assert path.read_text() == ""
        with after_verdict():
            assert path.read_text() == "equal\n"


def test_a_directory_that_goes_away_takes_no_other_report_along(
    parity, judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    def run(*_: object, **__: object) -> Any:
        folder.rmdir()
        return EQUAL

    monkeypatch.setattr("parity.runner.run.run", run)
    code, out, err = parity(
        *RUN,
        "--json",
        str(folder / "a"),
        "--junit",
        str(folder / "c"),
        "--html",
        str(tmp_path / "b"),
    )
    assert code == 5 and out.startswith("equal: ")
    assert "reports: 2 problems" in err and err.count("No such file or directory") == 2
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize(
    "fault", [KeyError(), MemoryError(), UnicodeEncodeError("a", "", 0, 1, "")]
)
def test_a_report_that_cannot_be_drawn(
    parity, judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def page(_: object) -> str:
        raise fault

    monkeypatch.setattr(html_file, "page", page)
    judged(DIVERGENT)
    path = tmp_path / "x.html"
    code, out, err = parity(*RUN, "--html", str(path))
    assert code == 5 and out.startswith("divergent: ")
    assert "a report failed: " in err and type(fault).__name__ in err and err.count("\n") == 1
    assert not path.exists()
    assert "Traceback" in parity("--debug", *RUN, "--html", str(path))[2]
    with pytest.raises(type(fault)):  # Python's exceptions stay what they are
        write_report(DIVERGENT, html=path)


def test_in_python_a_report_that_cannot_be_written_is_bad_input() -> None:
    with pytest.raises(InputError, match="No space left") as raised:
        write_report(EQUAL, json="/dev/full")
    assert type(raised.value) is InputError


def test_a_report_piped_to_who_has_enough_is_no_failure(parity, judged, tmp_path: Path) -> None:
    judged(EQUAL)
    ends = os.pipe()
    os.close(ends[0])
    try:
        assert parity(*RUN, "--json", f"/dev/fd/{ends[1]}")[0] == 0
    finally:
        os.close(ends[1])


@pytest.mark.parametrize("option", ["--json", "--sarif"])
@pytest.mark.parametrize(("use", "code"), [("bool", 0), ("additive", 1)])
def test_so_it_is_of_findings(
    parity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, use: str, code: int
) -> None:
    np.save(tmp_path / "mask.npy", np.tril(np.ones((1, 1, 6, 6), bool if code == 0 else float)))
    lint = "lint", str(tmp_path / "mask.npy"), "--use", use
    found, said, _ = parity(*lint, option, str(tmp_path / "x"))
    assert found == code, said
    found, out, err = parity(*lint, option, "/dev/full")
    assert (found, out) == (5, said) and "No space left" in err
    monkeypatch.setattr(linter, "lint", lambda _: 1 / 0)
    assert parity(*lint)[0] == 4


@pytest.mark.parametrize("faulty", [False, True])
def test_so_it_is_of_names(
    parity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faulty: bool
) -> None:
    said = NamesReport("x", "f32", "causal", (), ("norm",) * faulty, (), (), False, False, ())
    monkeypatch.setattr(names, "look", lambda *_: said)
    code, printed, _ = parity("names", "tiny", "--json", str(tmp_path / "x"))
    assert code == faulty and (tmp_path / "x").stat().st_size
    code, out, err = parity("names", "tiny", "--json", "/dev/full")
    assert (code, out) == (5, printed) and "No space left" in err


def test_a_list_is_no_verdict(parity) -> None:
    code, out, err = parity("taps", "--json", "/dev/full")
    assert (
        code == 2
        and out
        and err == "parity: /dev/full: cannot be written: No space left on device\n"
    )


# Errors


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize(
    "error",
    [
        KeyError(),
        AssertionError("a\nb"),
        RecursionError(),
        EOFError(),
        BrokenPipeError(32, "Broken pipe"),
        OSError(28, "No space left on device"),
        MemoryError("of an array"),
        SystemExit(1),
        SystemExit(0),
    ],
    ids=repr,
)
def test_no_error_is_a_verdict(parity, judged, error: BaseException, place: str) -> None:
    judged(error)
    code, out, err = parity(*RUN)
    assert (code, out) == (4, "") and err.startswith("parity: ") and err.count("\n") == 1
    words = ["--debug", *RUN] if place == "before" else [*RUN, "--debug"]
    code, _, err = parity(*words)
    assert code == 4 and "Traceback" in err and err.splitlines()[-1].startswith("parity: ")


def test_without_an_error_debug_shows_nothing(parity, judged) -> None:
    judged(DIVERGENT)
    assert (parity(*RUN)) == (parity("--debug", *RUN)) == parity(*RUN, "--debug")
    code, out, err = parity(*RUN, "--prompt", "--debug")
    assert (code, err) == (1, ""), out  # the text of a prompt


def test_bad_usage_stays_2(parity) -> None:
    for words in (["--debug"], ["--debug", "fly"], ["run", "--nonsense"], ["run", "a", "b"]):
        assert parity(*words)[0] == 2
    code, _, err = parity("--debug", "run", "nowhere")
    assert code == 2 and "Traceback" in err


# Memory


@pytest.mark.parametrize(
    "words",
    [
        [*RUN[:-1], "131000"],
        ["run", "tiny", "--mode", "grad", "--length", "131000"],
        ["run", "tiny", "--mode", "decode", "--scenario", "all", "--length", "131000"],
        ["run", "tiny", "--stream", "--length", "131000"],
        ["run", "tiny", "--mode", "step", "--length", "131000"],
        ["run", "tiny", "--mode", "generate", "--length", "131000"],
        ["names", "tiny", "--length", "131000"],
        ["capture", "tiny", "--length", "131000", "-o"],
    ],
    ids=" ".join,
)
def test_a_length_beyond_memory_is_refused_before_anything_is_built(
    parity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    def built(*_: object, **__: object) -> None:
        raise AssertionError("something was allocated")

    for module in ("parity.runner.plan", "parity.runner.capture", "parity.scenarios"):
        monkeypatch.setattr(f"{module}.scenario", built)
    words = [*words, str(tmp_path / "out")] if words[-1] == "-o" else words
    code, out, err = parity(*words)
    assert (code, out) == (2, "") and err.count("\n") == 1
    for said in ("131000 tokens per row", "of this machine's memory", "give --length"):
        assert said in err
    assert os.listdir(tmp_path) == []
    assert parity(*(word.replace("131000", "7") for word in words))[0] == 4  # it is built


@pytest.mark.parametrize("queries", ["200000", "100000000"])
def test_so_are_a_specs_queries(parity, monkeypatch: pytest.MonkeyPatch, queries: str) -> None:
    monkeypatch.setattr(case, "free_bytes", lambda: 7 * 30_000**2)
    code, out, err = parity("lint", "causal()", "--queries", queries)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert f"--queries {queries}: tables of" in err and "give at most 30000 queries" in err


# Real processes


def command(program: str, *words: str, before: str = "pass") -> list[str]:
    code = f"{before}; from {program}.__main__ import script; script()"
    return [sys.executable, "-c", f"import sys; sys.argv[0] = {program!r}; {code}", *words]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("saved")
    write_report(DIVERGENT, json=folder / "result.json")
    np.save(folder / "mask.npy", np.tril(np.ones((1, 1, 6, 6))))
    return {"RESULT": str(folder / "result.json"), "MASK": str(folder / "mask.npy")}


@pytest.mark.parametrize(
    ("program", "words", "code"),
    [
        ("parity", ["recheck", "RESULT"], 1),
        ("parity", ["lint", "MASK", "--use", "additive"], 1),
        ("parity", ["explain", "M01"], 0),
        ("parity", ["--help"], 0),
        ("parity", [*RUN, "--override", "rope_theta=1e6"], 1),
        ("jaxllama", ["info", "tiny"], 0),
        ("jaxllama", ["generate", "tiny", "a", "--max-tokens", "9"], 0),
        ("jaxllama", ["info", "nowhere"], 2),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_a_closed_pipe_gives_the_verdicts_own_code(
    program: str, words: list[str], code: int, saved: dict[str, str]
) -> None:
    words = [saved.get(word, word) for word in words]
    read, write = os.pipe()
    os.close(read)  # no write at all succeeds
    try:
        done = subprocess.run(
            command(program, *words), stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    finally:
        os.close(write)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == (code == 2)


@pytest.mark.parametrize(
    ("program", "package", "words"),
    [
        ("parity", "torch", RUN),
        ("parity", "torch", ["capture", "tiny", "--subject", "torch", "-o", "nowhere/x"]),
        ("parity", "torch", ["selftest", "--quick"]),
        ("parity", "transformers", [*RUN, "--reference", "hf"]),
        ("parity", "PIL", [*RUN, "--html", "page.html"]),
        ("parity", "fairscale", [*RUN, "--reference", "meta"]),
        ("jaxllama", "jax", ["info", "tiny"]),
        ("parity", "jax", ["lint", "causal"]),
    ],
)
def test_a_missing_package_is_bad_input(
    program: str, package: str, words: list[str], tmp_path: Path
) -> None:
    hidden = f"sys.path.insert(0, {str(ROOT)!r}); sys.modules[{package!r}] = None"
    done = subprocess.run(
        command(program, *words, before=hidden), capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert f"needs the package {package}" in done.stderr
    assert "which is not installed: pip install" in done.stderr
    assert done.stderr.count("\n") == 1
