"""How a command's process ends: no error and no lost reader looks like a verdict."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from jaxllama.command_line.process import command

# What stands for a command's module.
_MODULE = """
import atexit, multiprocessing, os, signal, sys
atexit.register(print, "taken down")
lock = multiprocessing.get_context("spawn").Lock()  # which the system holds
what = sys.argv[1]
if what == "import":
    os.kill(os.getpid(), signal.SIGINT)
if what == "missing":
    import a_package_that_nobody_has

def main():
    print("said")
    if what == "closed":
        sys.stdout.flush()
        sys.stdout = None
        raise SystemExit(130)
    if what == "much":
        for _ in range(100_000):
            print("said")
        os.write(2, b"all")
        raise SystemExit(3)
    if what == "opens":
        with open(sys.argv[2], "w") as file:
            os.write(1, b"from C")
            os.write(2, b"from C")
            file.write("own")
        raise SystemExit(1)
    if what == "letters":
        print("\\u2500\\udc80")
        raise SystemExit(1)
    if what.startswith("raise "):
        exec(what)
    raise SystemExit(int(what))
"""
# The command, and what Python does without it.
_OURS = "from jaxllama.command_line.process import command; command('said')()"
_PLAIN = "import said; said.main()"


@pytest.fixture
def ended(tmp_path: Path):
    """Return a function that runs the module as a command, under a shell's redirections."""
    (tmp_path / "said.py").write_text(_MODULE)
    handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"

    def run(what: str, shell: str = "", *, program: str = _OURS) -> tuple[int, str, str]:
        line = f'"$0" -c "$1" "$2" "$3" {shell}'
        words = [sys.executable, handler + program, what, str(tmp_path / "file")]
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line, *words],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}"},
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize(
    ("what", "code", "out", "err"),
    [
        ("130", 130, "said\n", ""),
        ("2", 2, "said\ntaken down\n", ""),
        ("0", 0, "said\ntaken down\n", ""),
        ("closed", 130, "said\n", ""),
        ("import", 130, "", "interrupted; nothing was written\n"),
    ],
)
def test_an_interrupted_command_ends_at_once(
    ended, what: str, code: int, out: str, err: str
) -> None:
    assert ended(what) == (code, out, err)


@pytest.mark.parametrize(
    "raised",
    [
        "KeyError()",
        "AssertionError",
        "RecursionError('deep')",
        "EOFError",
        "BrokenPipeError(32, 'of a worker')",
        "OSError(28, 'No space left on device')",
        "MemoryError",
        "BaseException",
        "SystemExit('left')",
    ],
)
def test_no_exception_ends_in_a_verdicts_code(ended, raised: str) -> None:
    code, out, err = ended(f"raise {raised}")
    assert (code, out) == (4, "said\ntaken down\n")
    assert err.startswith("said: ") and err.count("\n") == 1
    code, _, err = ended(f"raise {raised}", "--debug")
    assert code == 4 and (err.startswith("Traceback") or "SystemExit" in raised)
    assert ended(f"raise {raised}", program=_PLAIN)[0] == 1


def test_a_package_that_is_missing_is_bad_input(ended) -> None:
    said = "needs the package a_package_that_nobody_has, which is not installed: pip install"
    code, _, err = ended("missing")
    assert code == 2 and said in err and err.count("\n") == 1
    assert ended("missing", program=_PLAIN)[0] == 1


@pytest.mark.parametrize("shell", ["| head -1", "| true"])
def test_a_reader_who_leaves_changes_nothing(ended, shell: str) -> None:
    code, _, err = ended("much", shell)
    assert (code, err) == (3, "all")
    code, _, err = ended("much", shell, program=_PLAIN)
    assert code != 3 and "BrokenPipe" in err


def test_nor_does_one_of_both_streams(ended) -> None:
    assert ended("3", "2>&1 | true") == (3, "", "")
    assert ended("raise KeyError", "2>&1 | true") == (4, "", "")


@pytest.mark.parametrize("shell", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_was_closed_is_not_taken_for_a_file(
    ended, tmp_path: Path, shell: str
) -> None:
    assert ended("opens", shell)[0] == 1
    assert (tmp_path / "file").read_text() == "own"


def test_otherwise_it_would_be(ended, tmp_path: Path) -> None:
    ended("opens", ">&-", program=_PLAIN)
    assert (tmp_path / "file").read_text() != "own"


@pytest.mark.parametrize("what", ["0", "1", "3", "much"])
def test_what_standard_output_lacks_is_no_verdict(ended, what: str) -> None:
    code, _, err = ended(what, "> /dev/full")
    assert code == 4
    assert "said: standard output: No space left on device; what it holds is incomplete\n" in err
    assert ended("1", "2> /dev/full")[0] == 1


def test_letters_that_a_terminal_lacks_are_replaced(ended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii:strict")
    assert ended("letters") == (1, "said\n?\\udc80\ntaken down\n", "")
    assert "UnicodeEncodeError" in ended("letters", program=_PLAIN)[2]


@pytest.mark.parametrize("name", ["jaxllama", "parity"])
def test_the_installed_commands_end_so(name: str) -> None:
    (found,) = entry_points(group="console_scripts", name=name)
    assert found.load().__qualname__ == command("x").__qualname__


@pytest.mark.parametrize("program", ["jaxllama", "parity"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bar"], "No such option: --bar ({} --help)"),
        (["inf", "x"], "No such command 'inf'"),
        (["{verb}"], "Missing argument '"),
        (["{verb}", "--zz"], "No such option: --zz ({} {verb} --help)"),
    ],
)
def test_misuse_is_one_line_as_other_errors_are(program: str, words: list[str], said: str) -> None:
    verb = {"jaxllama": "info", "parity": "probe"}[program]
    words = [word.format(verb=verb) for word in words]
    done = subprocess.run([sys.executable, "-m", program, *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    told = done.stderr.replace("python -m ", "")
    assert told.startswith(f"{program}: {said.format(program, verb=verb)}")


@pytest.mark.parametrize("program", ["jaxllama", "parity"])
def test_without_words_the_help_is_shown(program: str) -> None:
    done = subprocess.run([sys.executable, "-m", program], capture_output=True, text=True)
    assert done.returncode == 2 and "Exit codes:" in done.stdout + done.stderr
