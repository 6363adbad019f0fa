"""`parity selftest` on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from jaxllama import compilation_cache
from jaxllama.command_line.console import SafeConsole
from jaxllama.command_line.interrupt import on_interrupt
from jaxllama.errors import InputError
from jaxllama.files.output import check_writable, write_text
from parity.commands.progress import progress_bar
from parity.options import choose
from parity.report.outputs import after_verdict

# Each process holds a model and its references: up to 4 GB with SmolLM2's.
MOST_JOBS = 4
SEEDS = "101,102"


@on_interrupt()
def selftest_command(
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the whole matrix here.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One injection of each family, a few clean runs.")
    ] = False,
    family: Annotated[
        str | None, typer.Option(help="Only these families of faults: R3,M1.")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Clean runs on fresh models alone: seen, limit, headroom."
        ),
    ] = False,
    seeds: Annotated[
        str | None, typer.Option(help="Of --calibrate's fresh models; 101,102 if not given.")
    ] = None,
    mutants: Annotated[
        int | None,
        typer.Option(
            min=1, help="Edit jaxllama's source in this many ways, one at a time, instead."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of --mutants: which of all edits; 0 if not given.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Of --mutants: only these of model,writing,tokens,reading.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one a core, at most 4.")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="The sums, and what was missed or a false alarm.")
    ] = False,
) -> None:
    """Inject every catalogued fault; print detected, located, named, false alarms."""
    from parity.selftest.faults import catalogue
    from parity.selftest.report import show
    from parity.selftest.run import SelftestPlan, selftest

    families = [word.strip() for word in (family or "").split(",") if word.strip()]
    known = dict.fromkeys(fault.family for fault in catalogue())
    if unknown := [word for word in families if word not in known]:
        raise InputError(f"--family {','.join(unknown)}: expected some of {', '.join(known)}")
    try:
        fresh = tuple(int(word) for word in (seeds or SEEDS).split(","))
    except ValueError:
        raise InputError(f"--seeds {seeds}: expected whole numbers with commas") from None
    if seeds is not None and not calibrate:
        raise InputError(f"--seeds {seeds}: only --calibrate makes models; add it, or leave it out")
    if calibrate and (quick or families):
        raise InputError("--calibrate: runs no injections; leave out --quick and --family")
    if mutants is not None and (quick or families or calibrate):
        raise InputError("--mutants: injects no listed fault; leave out the other choices")
    if seed is not None and mutants is None:
        raise InputError(f"--seed {seed}: only --mutants takes one; add it, or leave it out")
    if group is not None and mutants is None:
        raise InputError(f"--group {group}: only --mutants takes one; add it, or leave it out")
    if json_path is not None:
        check_writable(json_path)
    processes = jobs or min(os.cpu_count() or 1, MOST_JOBS)
    if mutants is not None:
        raise typer.Exit(_mutants(mutants, seed or 0, group, processes, json_path, quiet=quiet))
    compilation_cache.turn_on()
    with progress_bar() as progress:
        matrix = selftest(
            SelftestPlan(quick=quick, families=tuple(families), seeds=fresh if calibrate else ()),
            jobs=processes,
            progress=progress,
        )
    show(matrix, SafeConsole(), quiet=quiet)
    if json_path is not None:
        with after_verdict():
            write_text(json_path, json.dumps(matrix.to_dict(), indent=1) + "\n")
    raise typer.Exit(0 if matrix.passed else 1)


def _mutants(
    count: int, seed: int, group: str | None, jobs: int, path: Path | None, *, quiet: bool
) -> int:
    """Examine mutants, print what was found, and return the exit code."""
    from parity.selftest.mutants.population import examine_population
    from parity.selftest.mutants.report import show
    from parity.selftest.mutants.rules import GROUPS

    groups = choose("--group", "all" if group is None else group, tuple(GROUPS))
    with progress_bar() as progress:
        found = examine_population(
            count, seed, groups=groups, jobs=jobs, path=path, progress=progress
        )
    show(found, SafeConsole(), quiet=quiet)
    return 0 if found.passed else 1
