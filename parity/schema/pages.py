"""The folder `docs/schema`: each kind's schema under its version, and a page that lists them.

Run `python -m parity.schema.pages docs/schema` after a change of a document.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jaxllama.errors import InputError
from parity.schema.annotations import Schema, shape
from parity.schema.documents import DocumentKind, kinds

_TOP = """# JSON documents

Made by `python -m parity.schema.pages docs/schema`; `parity schema NAME` prints a schema for
the version that is installed (JSON Schema, draft 2020-12). Every document says its own as
`schema_version`.

| document | version | written by | schema |
|---|---|---|---|
"""
_POLICY = """
## What a version promises

- What is written under a version stays: names, types and meanings.
- A property or a value of an enumeration that is added raises the minor version (of a version
  without one, the version): who reads a document has to pass over properties that it does not
  know. One that goes, or changes its type or its meaning, raises the major version, and is told
  of in CHANGELOG.md as CONTRIBUTING.md says of deprecations.
- `environment`, `machine`, `inputs`, `tolerance`, `timing`, `checkpoint`, `subject`, `analysis`
  and `facts` are there for people: they are objects, and their properties may change.
- JSON has no NaN and no infinity: a `result` says them as `"nan"`, `"inf"`, `"-inf"`, a
  `health` and a `quality` as `null`.
- The schema of a version that was published is kept in this folder, and is not changed: where a
  document's schema has changed and its version has not, this command refuses to write it.
"""


def file_name(kind: DocumentKind) -> str:
    """Return the name of a kind's schema in the folder."""
    return f"{kind.name}-{kind.version}.json"


def page() -> str:
    """Return the page."""
    rows = [
        f"| {one.name} | {one.version} | `{one.command}` | [{file_name(one)}]({file_name(one)}) |\n"
        for one in kinds().values()
    ]
    return _TOP + "".join(rows) + _POLICY


def text(schema: Schema) -> str:
    """Return a schema as it is printed and kept."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def changed(folder: Path) -> list[str]:
    """Return what is to be said of kinds whose schema is not the one kept under their version."""
    return [
        f"{path}: {one.name} documents have changed, and are still version {one.version}: "
        f"raise SCHEMA_VERSION (what a version promises: {folder / 'README.md'}); "
        "of a version that was never published delete the file"
        for one in kinds().values()
        if (path := folder / file_name(one)).exists()
        and shape(json.loads(path.read_text("utf-8"))) != shape(one.schema())
    ]


def write(folder: Path) -> None:
    """Write the page and the schemas.

    Raises:
        InputError: a document has changed, and its version has not.
    """
    if said := changed(folder):
        raise InputError("; ".join(said))
    folder.mkdir(parents=True, exist_ok=True)
    for one in kinds().values():
        (folder / file_name(one)).write_text(text(one.schema()), "utf-8")
    (folder / "README.md").write_text(page(), "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
