"""Options that several verbs share, for Typer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[Path | None, typer.Option("--json", help="Write the whole result here.")]
JsonOrStdout = Annotated[
    Path | None, typer.Option("--json", help="Write the report here; - for stdout.")
]
Html = Annotated[
    Path | None, typer.Option("--html", help="Write a report of one offline page here.")
]
Junit = Annotated[
    Path | None, typer.Option("--junit", help="Write JUnit XML here, for a CI's test view.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Verdict, place, cause and the command again: nothing else.")
]
Scenario = Annotated[
    list[str] | None, typer.Option(help="Scenario to run; repeatable, commas allowed, or all.")
]
Override = Annotated[
    list[str] | None, typer.Option(help="FIELD=VALUE: change the subject's configuration alone.")
]
Prompt = Annotated[str | None, typer.Option(help="Text in place of the built-in one.")]
Length = Annotated[int | None, typer.Option(help="Tokens per row.")]
Mesh = Annotated[
    str | None,
    typer.Option(help="Devices to lay the JAX model out on: tensor=4,data=2; also fsdp."),
]
Hosts = Annotated[
    str | None, typer.Option(help="Join the run's other processes: auto, or HOST:PORT,INDEX/COUNT.")
]


def is_stdout(path: Path | None) -> bool:
    """Return whether a path that was given is `-`."""
    return str(path) == "-"
