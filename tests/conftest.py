"""Strict flags for every test: float64 on, no silent promotion or broadcasting, typed shapes.

The shape annotations of `jaxllama` and `parity` are checked at run time here, and here alone, by
the `--jaxtyping-packages` option in pyproject.toml and `support/shape_check.py`.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

# No test leaves this machine: set before anything imports the library that reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import jaxtyping
import pytest
from heap import keep_freed_memory
from hurry import compile_in_a_hurry
from hypothesis import HealthCheck, settings
from jax._src import compilation_cache as of_jax
from near_ties import pytest_terminal_summary  # noqa: F401 (a hook)

from jaxllama import compilation_cache
from jaxllama.memory import free_bytes

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Thousands of tests and their modules are made here and stay: no collection need look at them.
gc.disable()

keep_freed_memory()

# As the commands do: processes of one run, and files of one process, compile the same programs.
compilation_cache.turn_on()

# A shell that starts pytest in its background has it ignore interrupts, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The most that a process of tests was seen to hold.
_A_WORKER = 6e9


def pytest_xdist_auto_num_workers() -> int:
    """Return one process more than there are processors, where there is memory for so many.

    A tenth of the tests' time is waiting: for processes that they start, for limits to pass.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return cores + 1 if (free_bytes() or 0) > (cores + 1) * _A_WORKER else cores


# Derandomised: a red run is red again, for everybody. No deadline: the first example compiles.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _annotations_unchecked_for_ill_typed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let a test marked `ill_typed` through to the checks that users of the package meet."""
    ill_typed = request.node.get_closest_marker("ill_typed") is not None
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", before or ill_typed)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.hookimpl(tryfirst=True)  # before fixtures, which compile, too
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have XLA leave most optimisations out of programs, which run once here.

    Not where a test is marked `optimised`: what users run is judged there, as compiled for them.
    """
    compile_in_a_hurry(item.get_closest_marker("optimised") is None)


@pytest.fixture
def kept_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return where `compilation_cache.turn_on()` keeps programs: a folder of one test alone."""
    monkeypatch.delenv(compilation_cache.NO_CACHE, raising=False)
    monkeypatch.setenv("JAXLLAMA_CACHE", str(tmp_path))
    names = "jax_persistent_cache_min_compile_time_secs", "jax_compilation_cache_dir"
    before, values = of_jax._cache, {name: getattr(jax.config, name) for name in names}
    of_jax.reset_cache()
    yield tmp_path / "compiled"
    for name, value in values.items():
        jax.config.update(name, value)
    of_jax.reset_cache()
    of_jax._cache = before


def _why_none(platform: str) -> str | None:
    """Return why tests marked `gpu` or `tpu` cannot run here, None if they can."""
    try:
        jax.devices(platform)
    except RuntimeError as error:
        return f"JAX finds no {platform.upper()}: {error}"
    return None


def pytest_collection_finish() -> None:
    """Collect garbage from here on, and only look at what tests make.

    A run of `parity` collects it once by itself, which took half a second each time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
    gc.enable()


# A look at all objects takes half a second; what they hold between two may be as much.
_MOST_GROWTH = 1 << 30
_PAGE = os.sysconf("SC_PAGE_SIZE")
_resident = 0


def pytest_runtest_teardown() -> None:
    """Collect garbage once a process has grown: runs on small models leave that to others."""
    global _resident
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    if int(statm.read_text().split()[1]) * _PAGE - _resident > _MOST_GROWTH:
        gc.collect()
        _resident = int(statm.read_text().split()[1]) * _PAGE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` or `tpu` where there is none, and say why."""
    for platform in ("gpu", "tpu"):
        marked = [item for item in items if item.get_closest_marker(platform)]
        reason = _why_none(platform) if marked else None
        for item in marked:
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
