"""The guard of compile time and memory: what has fallen is said, what is missing too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
KEPT = {"memory": {"measured": 1.0, "least": 0.8}, "compile": {"measured": 2.0, "least": 1.0}}


@pytest.fixture(scope="module")
def guard() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        import bench_guard

        yield bench_guard
    sys.modules.pop("bench_guard", None)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"memory": 0.8, "compile": 9.0, "other": 0.0}, []),
        ({"memory": 0.79, "compile": 1.5}, ["memory: 0.79, at least 0.80 expected, 1.00 when"]),
        ({"memory": float("nan"), "compile": 1.5}, ["memory: nan"]),
        ({"compile": 0.5}, ["memory: not measured", "compile: 0.50, at least 1.00"]),
    ],
)
def test_what_has_fallen_is_said(
    guard: ModuleType, found: dict[str, float], said: list[str]
) -> None:
    lines = guard.fallen(found, KEPT)
    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))


def test_a_second_start_is_held_to_the_first_in_one_cache(
    guard: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds, places = iter([6.0, 2.0]), []

    def used_by(command: list[str], environment: dict[str, str]) -> SimpleNamespace:
        assert guard.NO_CACHE not in environment and "generate" in command
        places.append(environment["JAXLLAMA_CACHE"])
        return SimpleNamespace(ru_utime=next(seconds), ru_stime=0.0)

    monkeypatch.setenv(guard.NO_CACHE, "1")
    monkeypatch.setattr(guard, "open_checkpoint", lambda *_, **__: SimpleNamespace(path="here"))
    monkeypatch.setattr(guard, "used_by", used_by)
    assert guard.second_start() == 3.0
    assert len(places) == 2 and len({*places}) == 1


def test_what_is_kept_allows_for_what_was_measured(guard: ModuleType) -> None:
    kept = json.loads(guard.KEPT.read_text())
    assert len(kept) >= 3
    assert guard.fallen({name: one["measured"] for name, one in kept.items()}, kept) == []
    assert len(guard.fallen(dict.fromkeys(kept, 0.0), kept)) == len(kept)


def test_the_memory_is_the_commands_own(guard: ModuleType) -> None:
    """Asked of a small process: the system counts what started a process as the process's own."""
    codes = "pass", "held = bytearray(b'x') * 600_000_000; raise SystemExit(1)"
    ask = "import sys, bench_guard as g\n" + "".join(
        f"print(g.most_memory([sys.executable, '-c', {code!r}]))\n" for code in codes
    )
    done = subprocess.run([sys.executable, "-c", ask], cwd=SCRIPTS, capture_output=True, text=True)
    little, much = map(int, done.stdout.split())
    assert little < 3e8 < 6e8 < much < 9e8
    with pytest.raises(subprocess.CalledProcessError, match="status 4"):
        guard.most_memory([sys.executable, "-c", "raise SystemExit(4)"])
