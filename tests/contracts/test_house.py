"""The layout of the packages: names of the field, folders one can take in, no circle of imports."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("jaxllama", "parity")
# Words that stood for things the field has names for: comparator, witness, participants, snapshot,
# reference.
PRIVATE = re.compile(r"judge|testimon|lineup|exhibit|hear|gold", re.IGNORECASE)
MOST_MODULES = 20
# One file a cause and a rule: these folders are catalogues.
CATALOGUES = re.compile(r"parity/(diagnose/causes/\w+|lint/rules)")


def names_in(tree: ast.AST) -> Iterator[str]:
    """Yield the names of all classes and functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def private_names(root: Path) -> list[str]:
    """Return modules, classes and functions named in words that only this project used."""
    found = []
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            place = file.relative_to(root)
            found += [str(part) for part in (place.parent, place.stem) if PRIVATE.search(str(part))]
            names = names_in(ast.parse(file.read_text()))
            found += [f"{place}: {name}" for name in names if PRIVATE.search(name)]
    return found


def test_names_are_the_fields() -> None:
    assert not private_names(ROOT)


@pytest.mark.parametrize("name", ["_judge", "Testimony", "line_up_lineup", "is_gold", "hear"])
def test_a_private_name_is_found(name: str, tmp_path: Path) -> None:
    (tmp_path / "parity").mkdir()
    (tmp_path / "parity" / "a.py").write_text(f"class Head:\n    def {name}(self): ...\n")
    assert private_names(tmp_path) == [f"parity/a.py: {name}"]


# The same operator in two frameworks.
MIRRORED = {"Linear"}


def classes_named_twice(root: Path) -> list[str]:
    """Return the names that stand for two classes: a word has one meaning."""
    found = Counter(
        node.name
        for package in PACKAGES
        for file in (root / package).rglob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
    )
    return sorted(name for name, times in found.items() if times > 1)


def test_a_class_has_a_name_of_its_own() -> None:
    assert classes_named_twice(ROOT) == sorted(MIRRORED)


def test_a_name_of_two_classes_is_found(tmp_path: Path) -> None:
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text(f"class Reading: ...\nclass Of_{package}: ...\n")
    assert classes_named_twice(tmp_path) == ["Reading"]


def test_a_folder_can_be_taken_in() -> None:
    beside = Counter(
        str(file.parent.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        if not file.name.startswith("__")
    )
    crowded = {
        folder: count
        for folder, count in beside.items()
        if count > MOST_MODULES and not CATALOGUES.fullmatch(folder)
    }
    assert not crowded


def imported(file: Path, root: Path) -> Iterator[str]:
    """Yield the modules of these packages that a file imports when it is itself imported."""

    def at_once(body: list[ast.stmt]) -> Iterator[tuple[str, ...]]:
        for node in body:
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield (*(node.module or "").split("."), alias.name)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    yield tuple(alias.name.split("."))
            elif isinstance(node, ast.Try):
                yield from at_once(node.body)

    for parts in at_once(ast.parse(file.read_text()).body):
        for known in (parts, parts[:-1]):
            path = root.joinpath(*known)
            if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
                yield ".".join(known)
                break


def graph(root: Path) -> dict[str, set[str]]:
    """Return which modules each one imports at once."""
    found = {}
    for package in PACKAGES:
        for file in (root / package).rglob("*.py"):
            place = file.relative_to(root).with_suffix("")
            parts = place.parent.parts if place.name == "__init__" else place.parts
            name = ".".join(parts)
            # A package is loaded before what is in it, whoever asks.
            found[name] = set(imported(file, root)) - {name.rpartition(".")[0]}
    return found


def test_no_circle_at_module_level() -> None:
    assert len([*TopologicalSorter(graph(ROOT)).static_order()]) > 200


@pytest.mark.parametrize(
    "line", ["from parity import a", "import parity.a", "from parity.a import x"]
)
@pytest.mark.parametrize("own", [True, False])
def test_a_circle_is_found(line: str, own: bool, tmp_path: Path) -> None:
    (tmp_path / "parity").mkdir()
    (tmp_path / "parity" / "a.py").write_text(line if own else "from parity.b import y")
    (tmp_path / "parity" / "b.py").write_text("" if own else line)
    with pytest.raises(CycleError):
        TopologicalSorter(graph(tmp_path)).prepare()


def rows_of_the_map(readme: str) -> dict[str, int]:
    """Return in which row of a README's table each file and folder stands."""
    rows = [line.split("|")[1] for line in readme.splitlines() if line.startswith("| `")]
    return {
        name.rstrip("/").removesuffix(".py"): number
        for number, row in enumerate(rows)
        for name in re.findall(r"`([^`]+)`", row)
    }


def against_the_map(package: str, rows: dict[str, int]) -> list[str]:
    """Return what has no row, and what imports from further down, at module level."""
    imports = {
        (module.split(".")[1], other.split(".")[1])
        for module, others in graph(ROOT).items()
        for other in others
        if module.startswith(f"{package}.") and other.startswith(f"{package}.")
    }
    tops = {name for pair in imports for name in pair} - {"__main__"}
    return sorted(
        [f"{name} has no row" for name in tops - set(rows)]
        + [f"{a} imports {b}" for a, b in imports if rows.get(a, 99) < rows.get(b, 0)]
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_goes_the_way_of_imports(package: str) -> None:
    rows = rows_of_the_map((ROOT / package / "README.md").read_text())
    assert against_the_map(package, rows) == []
    rows["taps"] = 99
    assert any(said.endswith("imports taps") for said in against_the_map(package, rows))
    del rows["cli"]
    assert "cli has no row" in against_the_map(package, rows)
