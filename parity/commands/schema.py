"""`parity schema`: the JSON Schema of what a command writes with `--json`."""

from __future__ import annotations

from typing import Annotated

import typer

from jaxllama.errors import InputError, meant


def schema_command(
    name: Annotated[
        str | None,
        typer.Argument(help="Which document, such as result or health; all are listed without."),
    ] = None,
) -> None:
    """Print the JSON Schema of a document that --json writes."""
    typer.echo(schema_text(name), nl=name is None)


def schema_text(name: str | None) -> str:
    """Return a document's schema, or the list of documents.

    Raises:
        InputError: no such document.
    """
    from parity.schema.documents import kinds
    from parity.schema.pages import text

    found = kinds()
    if name is None:
        return "\n".join(f"{k.name:8} {k.version!s:4} {k.command}" for k in found.values())
    if name not in found:
        start = f"schema {name!r}: no such document; "
        raise InputError(start + (meant(name, found).rstrip() or f"there are {', '.join(found)}"))
    return text(found[name].schema())
