"""The pytest plugin, as other projects meet it: in pytest processes of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jaxllama.checkpoint.samples import tiny
from parity.inputs import Inputs
from parity.lockstep import shared
from parity.pytest_plugin import report_name
from parity.scenarios import scenario

ROOT = Path(__file__).parents[2]
SUITE = """
    import pytest

    SMALL = dict(dtypes="f64", scenarios="causal", length=7, modes="free")
    pytestmark = pytest.mark.parity("tiny", **SMALL)
    WRONG = {"rope_theta": 1e6}

    def test_passes(parity):
        assert parity().verdict == "equal"

    def test_fails(parity):
        parity(overrides=WRONG)

    @pytest.mark.parity(expect="divergent", overrides=WRONG)
    def test_control(parity):
        parity()
        assert parity(expect=None).verdict == "divergent"

    @pytest.mark.parametrize("text", ["a/b", "a b"])
    def test_named(parity, text):
        parity()

    def test_bad_input(parity):
        parity("/nowhere")

    def test_bad_option(parity):
        parity(dtype="f64")

    def test_computed_once(parity):
        for _ in range(2):
            parity()
        passes = parity._shared
        print(f"passes: {passes.computed} computed, {passes.replayed} replayed")
        assert False
"""


@dataclass(frozen=True)
class Session:
    code: int
    out: str
    folder: Path

    def section(self, test: str) -> str:
        """Return what is said of a failed test."""
        return re.split(r"\n_{3,} ", self.out.partition(f"_ {test} _")[2])[0]


def run_pytest(folder: Path, *words: str, suite: str = SUITE) -> Session:
    """Run a suite as another project would, with the entry point of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = folder / "installed" / "parity_under_test-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parity-under-test\nVersion: 1\n")
    points = project["entry-points"]["pytest11"]
    lines = "\n".join(f"{name} = {target}" for name, target in points.items())
    (info / "entry_points.txt").write_text(f"[pytest11]\n{lines}\n")
    (folder / "test_port.py").write_text(textwrap.dedent(suite))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--strict-markers", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{info.parent}{os.pathsep}{ROOT}", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    return Session(ran.returncode, ran.stdout + ran.stderr, folder)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("one")
    page = (ROOT / "parity/report/README.md").read_text()
    (shown,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (folder / "test_readme.py").write_text(shown.replace("length=32", "length=7"))
    return run_pytest(folder, "--parity-html", "reports", "--parity-json", "reports/json")


def test_verdicts_are_those_of_tests(session: Session) -> None:
    assert session.code == 1, session.out
    assert "4 failed, 6 passed" in session.out
    failed = sorted(set(re.findall(r"^FAILED test_port.py::(\w+)", session.out, re.MULTILINE)))
    assert failed == ["test_bad_input", "test_bad_option", "test_computed_once", "test_fails"]


def test_a_failure_is_short(session: Session) -> None:
    said = [
        line[2:].strip() for line in session.section("test_fails").splitlines() if line[:1] == "E"
    ]
    assert [line.split(":")[0] for line in said] == [
        "AssertionError",
        "first divergence",
        "cause",
        "again",
        "report",
        "report",
    ]
    assert "layers.0.q_rope" in said[1] and "theta" in said[2]
    assert Path(said[4].removeprefix("report: ")).read_text().startswith("<!doctype html")
    assert len(session.section("test_fails").splitlines()) < 20


def test_bad_input_shows_no_frames_of_ours(session: Session) -> None:
    said = session.section("test_bad_input")
    assert "/nowhere: does not exist" in said and "runner" not in said
    assert "no option 'dtype' of parity.run; did you mean dtypes?" in session.section(
        "test_bad_option"
    )


def test_the_reference_is_computed_once_a_session(session: Session) -> None:
    """Of the nine calls of the suite that get so far: the reference and float32's two variants."""
    assert "passes: 3 computed, 21 replayed" in session.out


def test_reports_have_names_of_their_own(session: Session) -> None:
    pages = {path.stem for path in (session.folder / "reports").glob("*.html")}
    documents = {path.stem for path in (session.folder / "reports" / "json").glob("*.json")}
    assert pages == documents and len(pages) == 10
    control = [path for path in documents if "control" in path]
    assert len(control) == 2 and sum(path.endswith("-2") for path in control) == 1
    found = json.loads((session.folder / "reports" / "json" / f"{control[0]}.json").read_text())
    assert found["verdict"] == "divergent"
    assert report_name("a.py::test[x/y]", 1) != report_name("a.py::test[x y]", 1)


def test_several_processes_write_the_same_reports(session: Session, tmp_path: Path) -> None:
    ran = run_pytest(tmp_path, "-n", "2", "--parity-html", "reports", "-k", "not computed")
    assert "3 failed, 4 passed" in ran.out, ran.out
    written = {path.name for path in (tmp_path / "reports").iterdir()}
    one = {path.name for path in (session.folder / "reports").glob("*.html")}
    assert written == {name for name in one if name[:9] == "test_port" and "computed" not in name}


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = run_pytest(tmp_path, "--parity-html", "file", suite="def test(): ...")
    assert ran.code == 4
    assert "--parity-html" in ran.out and "no directory can be made there" in ran.out


def test_other_projects_pay_nothing(tmp_path: Path) -> None:
    """Beside the plugin itself no module is loaded that pytest does not load without it."""
    suite = """
        import sys

        def test_of_something_else():
            print("loaded:", *sorted(sys.modules))
    """
    loaded = {}
    for words in ((), ("-p", "no:parity")):
        folder = tmp_path / f"{len(words)}"
        ran = run_pytest(folder, "-s", *words, suite=suite)
        assert ran.code == 0, ran.out
        loaded[words] = {*re.findall(r"^.*loaded: (.*)$", ran.out, re.MULTILINE)[0].split()}
    with_it, without = loaded.values()
    assert with_it - without == {"parity", "parity.pytest_plugin"}


def small_inputs(length: int) -> Inputs:
    return scenario("causal", tiny().tokenizer().encode, tiny().config, length=length)


@pytest.mark.parametrize("most", [1 << 30, 1 << 10])
def test_what_is_replayed_is_what_was_computed(most: int) -> None:
    passes, inputs = shared.SharedPasses(most), small_inputs(5)
    stages = range(tiny().config.num_hidden_layers + 2)

    def taps() -> list[dict[str, np.ndarray]]:
        run = passes.variants(tiny())("f64", "eager").start(inputs)
        return [run.step() for _ in stages]

    first, second = taps(), taps()
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    # What there is no room for is computed anew.
    assert (passes.computed, passes.replayed) == ((1, 1) if most > 1 << 20 else (2, 0))


def test_a_pass_that_was_broken_off_is_computed_anew() -> None:
    passes, inputs = shared.SharedPasses(), small_inputs(5)
    passes.variants(tiny())("f64", "eager").start(inputs).step()
    passes.variants(tiny())("f64", "eager").start(inputs).step()
    assert (passes.computed, passes.replayed) == (2, 0)


def test_the_oldest_make_room() -> None:
    passes = shared.SharedPasses(100)
    for name in "ab":
        passes.keep((name,), [{"x": np.zeros(8)}])
    assert passes.find(("a",)) is None and passes.find(("b",)) is not None


def test_other_weights_are_other_passes() -> None:
    passes, inputs, other = shared.SharedPasses(), small_inputs(5), tiny()
    name = "model.norm.weight"
    changed = other.read(name).copy()
    changed[0] += 1

    class Changed:
        path, format, config = None, "memory", other.config
        hf_config, tensors = other.hf_config, other.tensors

        def read(self, asked: str) -> np.ndarray:
            return changed if asked == name else other.read(asked)

    for checkpoint in (tiny(), Changed()):
        run = passes.variants(checkpoint)("f64", "eager").start(inputs)
        for _ in range(other.config.num_hidden_layers + 2):
            run.step()
    assert (passes.computed, passes.replayed) == (2, 0)
