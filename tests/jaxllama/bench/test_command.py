"""`jaxllama bench` as it is typed: what it prints and writes, refuses, and leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jaxllama.bench import request, run
from jaxllama.bench.process import PeerLostError, PeerProcess
from jaxllama.bench.variants import VARIANTS, Variant
from jaxllama.checkpoint import convert, tiny
from jaxllama.cli import main

SHORT = ["--rounds", "1", "--new-tokens", "2", "--prompt", "16", "--batch", "1", "--quiet"]


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["bench", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, out, err


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that Tunix's model can express, too."""
    path = tmp_path_factory.mktemp("bench") / "plain"
    made = tiny(rope_scaling=None, num_hidden_layers=1, tie_word_embeddings=True)
    convert(made, path, to="hf")
    return path


def test_all_of_it_side_by_side(
    capsys: pytest.CaptureFixture[str], plain: Path, tmp_path: Path
) -> None:
    to = ["--json", str(tmp_path / "b.json"), "--html", str(tmp_path / "b.html")]
    who = ["--variants", "jaxllama,eager,tunix,floor", "--dtype", "f32"]
    code, out, err = bench(capsys, str(plain), *SHORT, *who, *to)
    assert (code, err) == (0, "")
    assert "prefill_16_vs_eager" in out and "decode_b1_vs_floor" in out
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["schema_version"] == 1
    # The same weights: all write what we write, and nothing else is to be said.
    assert found["notes"] == [] and len(found["variants"]) == 4
    written = {t["variant"]: t["tokens"] for t in found["timings"] if t["measure"] == "decode_b1"}
    assert len(written["jaxllama"][0]) == 8 + 2
    assert written["jaxllama"] == written["eager"] == written["tunix"]
    assert {t["variant"]: len(t["seconds"]) for t in found["timings"]} == dict.fromkeys(written, 1)
    assert set(found["ratios"]["prefill_16_vs_tunix"]) == {"median", "low", "high", "rounds"}
    ours = found["variants"][0]
    assert ours["peak_bytes"] >= ours["loaded_bytes"] >= ours["imported_bytes"] > 10**7
    assert ours["first_token_seconds"] > ours["start_seconds"] > 0
    page = (tmp_path / "b.html").read_text()
    assert 'role="img" aria-label="Prefill of 16 tokens, f32: ' in page and "://" not in page


def test_who_is_not_there_or_fails_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = Variant("eager", "", "nothing", (("no_such_package", "pip install it"),))
    monkeypatch.setitem(VARIANTS, "eager", lacking)
    # `tiny` scales its rotations, which Tunix's Llama 3 does not.
    who = ["--variants", "jaxllama,eager,tunix", "--dtype", "f32"]
    code, out, _ = bench(capsys, "tiny", *SHORT, *who)
    said = " ".join(out.split())
    assert code == 0
    assert "eager (f32): not installed: no_such_package; pip install it" in said
    assert "tunix (f32): failed: InputError: Tunix's Llama 3 has no rotary scaling" in said
    assert "_vs_" not in said.partition("of a floor, the share")[2].partition("note")[0]


def test_our_own_failure_is_the_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VARIANTS, "jaxllama", Variant("jaxllama", "", "no_such_peer"))
    code, out, _ = bench(capsys, "tiny", *SHORT, "--variants", "jaxllama", "--dtype", "f32")
    assert code == 4 and "note: jaxllama (f32): failed: ModuleNotFoundError: No module" in out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--variants", "eagre"], "--variants eagre: did you mean eager? expected one or more of"),
        (["--dtype", "f16"], "--dtype f16: expected one or more of f32, bf16"),
        (["--dtype", "x"], "--dtype x: expected one or more of f32, bf16"),
        (["--prompt", "0"], "--prompt 0: expected whole numbers from 1 to 1048576"),
        (["--prompt", "9" * 30], "expected whole numbers from 1 to 1048576"),
        (["--batch", "1,x"], "--batch 1,x: expected whole numbers"),
        (["--rounds", "0"], "--rounds 0: expected a whole number from 1 to 1048576"),
        (["--new-tokens", "9999999"], "--new-tokens 9999999: expected a whole number from 1 to"),
        (["--seconds", "nan"], "--seconds nan: expected more than 0"),
        (["--threads", "100000"], "--threads 100000: expected 1 to "),
        (
            ["--prompt", "131072"],
            "prefill_131072: 131073 tokens, and the configuration states a context of 131072 "
            "(max_position_embeddings); lower --prompt, or raise",
        ),
        (["--json", "/no/such/place"], "/no/such/place: no directory /no/such; make it first"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PeerProcess", None)
    code, out, err = bench(capsys, "tiny", *given)
    assert (code, out) == (2, "")
    assert said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "free", "said"),
    [
        ([], 10**9, "2 variants take about 1.01 GB together, and 1 GB of this machine's memory"),
        (["--batch", "1000000"], 10**10, "and 10 GB of this machine's memory"),  # of its cache
    ],
)
def test_too_little_memory_is_said_before_it_is_used(
    more: list[str],
    free: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "PeerProcess", None)
    monkeypatch.setattr(request, "free_bytes", lambda: free)
    code, _, err = bench(capsys, "tiny", "--variants", "jaxllama,floor", *more)
    assert code == 2 and said in err
    assert "give fewer --variants, or a smaller --batch or --prompt" in err


def test_all_that_is_wrong_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = bench(capsys, "tiny", "--rounds", "0", "--dtype", "f8")
    assert code == 2 and "2 problems" in err and "--rounds 0" in err and "--dtype f8" in err


def test_a_process_that_is_killed_is_lost_with_a_reason(tmp_path: Path) -> None:
    process = PeerProcess(1, tmp_path)
    try:
        os.kill(process._process.pid, signal.SIGKILL)
        with pytest.raises(PeerLostError, match=r"its process ended \(code -9\)"):
            process.ask({"ask": "run"})
    finally:
        process.end()


def test_an_error_and_the_last_words_come_back(tmp_path: Path) -> None:
    process = PeerProcess(1, tmp_path)
    try:
        with pytest.raises(PeerLostError, match=r"^CheckpointError: .*does not exist"):
            process.ask(
                {"ask": "open", "module": "ours", "variant": "", "dtype": "f32"}
                | {"checkpoint": str(tmp_path / "none")}
            )
        os.kill(process._process.pid, signal.SIGSTOP)  # it cannot answer, however fast it is
        with pytest.raises(PeerLostError, match="no answer after 0 s"):
            process.ask({"ask": "open"}, patience=0.0)
    finally:
        process.end()


def test_measures_that_time_does_not_reach_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "PeerProcess", None)  # nothing is loaded either
    code, out, _ = bench(capsys, "tiny", *SHORT, "--seconds", "1e-9")
    said = " ".join(out.split())
    assert code == 0 and "decode_b1_bf16: not run: no time left after 1e-09 s (--seconds)" in said


def test_slow_measures_keep_five_rounds_but_for_long_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that has an aim has as many rounds as the aim is said of."""
    said: list[str] = []
    monkeypatch.setattr(run, "MEASURE_SECONDS", -1.0)
    monkeypatch.setattr(run.Session, "open_all", lambda self, dtype: None)
    opened = tiny(max_position_embeddings=4096)
    asked = request.check_request(
        "tiny",
        opened,
        prompt="512,2048",
        batch="1,8",
        dtype="f32",
        variants="jaxllama",
        rounds=7,
        new_tokens=16,
        threads=1,
        seconds=77,
    )
    run.bench(asked, opened, said.append)
    rounds = {line.split(":")[0]: int(line.split()[1]) for line in said}
    assert rounds == {"prefill_512": 5, "decode_b1": 5, "decode_b8": 5, "prefill_2048": 3}
    assert asked.command.endswith("--rounds 7 --new-tokens 16 --threads 1 --seconds 77")


def started(*more: str) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a long run in a process of its own; return it once its processes have loaded."""
    # A shell may have told its background jobs to ignore the signal.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from jaxllama.__main__ import script; script()"
    )
    words = ["bench", "tiny", *SHORT[:-1], "--variants", "jaxllama,floor", "--dtype", "f32", *more]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: Any = process.stderr
    assert any("floor f32: loaded" in line for line in lines)
    return process, children(process.pid)


def children(parent: int) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[1]) == parent and words[0] != "Z":
            found.append(int(place.parent.name))
    return found


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_nothing_is_left_running(sent: signal.Signals, code: int) -> None:
    process, workers = started()
    assert len(workers) == 2
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert ("interrupted; nothing was written" in err) == (sent == signal.SIGINT)
    until = time.monotonic() + 60
    while alive(workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert alive(workers) == []


def test_the_script_is_the_command() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "scripts/bench.py", "--rounds", "0", "tiny"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stderr.startswith("jaxllama: bench: --rounds 0")
