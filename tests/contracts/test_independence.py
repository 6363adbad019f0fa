"""docs/independence.md: every module that computes or reads has a witness that sees its faults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from planting import planted

import parity
from jaxllama.checkpoint import Checkpoint, tiny
from parity.result import Result

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "independence.md"
SHORT = {"dtypes": "f64", "scenarios": "right_padded", "modes": "free", "length": 7}

# What is edited of each module that computes, how it is run, and the first tap that shows it.
FAULTS: dict[str, tuple[str, str, Mapping[str, Any], str]] = {
    "model": ("silu(wide)", "gelu(wide)", {}, "layers.0.mlp_act"),
    "layers.norm": ("mean_square + self.eps", "mean_square", {}, "layers.0.input_layernorm"),
    "layers.linear": (
        'einsum("...i,oi->...o", x, weight',
        'einsum("...i,oi->...o", -x, weight',
        {},
        "layers.0.q_proj",
    ),
    "layers.embedding": (".at[tokens]", ".at[tokens[:, ::-1]]", {}, "embed"),
    "attention.reference": (
        "asarray(scale, wide)",
        "asarray(2 * scale, wide)",
        {},
        "layers.0.attn_scores",
    ),
    "attention.backends": (
        "attend_reference(q, k, v, dense",
        "attend_reference(q, k, k, dense",
        {},
        "layers.0.attn_context",
    ),
    # What runs where nobody looks, from some queries on.
    "attention.blockwise": ("total * kept + probs", "total + probs", {"length": 61}, "logits"),
    "forms": (
        "slice(first, end)",
        "slice(end - 1, first - 1 if first else None, -1)",
        {"subject": "fused"},
        "layers.0.q_proj",
    ),
    "rope": ("first * cos - second * sin", "first * cos + second * sin", {}, "layers.0.q_rope"),
    "masks.specs": (
        "(cells.k_position <= cells.q_position)",
        "(cells.k_position < cells.q_position)",
        {},
        "layers.0.attn_probs",
    ),
    "masks.algebra": (
        "self.left.cells(cells) & self.right.cells(cells)",
        "self.left.cells(cells)",
        {"scenarios": "left_padded"},
        "layers.0.attn_probs",
    ),
    "masks.bound": (
        "broadcast_to(self.spec.cells(cells), cells.shape)",
        "broadcast_to(cells.k_valid, cells.shape)",
        {},
        "layers.0.attn_probs",
    ),
    "masks.tokens": (
        "take(array, keys)[:, None, :]",
        "take(array, keys)[:, None, ::-1]",
        {},
        "layers.0.attn_probs",
    ),
    "masks.kernel": (
        "causal=causal and t > 1",
        "causal=False",
        # The compiled run, which takes no dense mask where rows are as kernels have them.
        {"subject": "dot_product", "dtypes": "f32", "scenarios": "causal"},
        "logits",
    ),
    "cache": (
        "jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1",
        "jnp.cumsum(valid, axis=1, dtype=jnp.int32)",
        {"modes": "decode"},
        "cache.0.k",
    ),
    "loss": (
        "jnp.maximum(jnp.sum(counted), 1)",
        "jnp.maximum(jnp.sum(valid), 1)",
        {"modes": "grad"},
        "loss",
    ),
    "dtypes": (
        "np.promote_types(parse(dtype), np.float32)",
        "np.dtype(np.float32)",
        {},
        "layers.0.input_layernorm",
    ),
    "taps": (
        "self._values[name] = value\n",
        "self._values[name] = jnp.roll(value, 1)\n",
        {},
        "embed",
    ),
}


@cache
def checkpoint() -> Checkpoint:
    return tiny(num_hidden_layers=1, hidden_size=90)


def run(options: Mapping[str, Any]) -> Result:
    return parity.run(checkpoint(), **{**SHORT, **options})


@pytest.fixture(autouse=True)
def _no_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the search for causes: what is asked here is whether a fault is seen."""
    monkeypatch.setattr("parity.runner.run.find_cause", lambda *_, **__: None)


@pytest.mark.parametrize("module", FAULTS)
def test_a_fault_in_each_module_that_computes_is_seen(module: str) -> None:
    before, after, options, tap = FAULTS[module]
    with planted(f"jaxllama.{module}", before, after):
        result = run(options)
    assert result.first_divergence is not None
    assert (result.first_divergence.row.tap, result.exit_code) == (tap, 1)


def modules() -> set[str]:
    """Return every module of jaxllama but those that make names importable, as paths within it."""
    package = ROOT / "jaxllama"
    return {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if not file.name.startswith("__")
    }


def named(text: str) -> list[str]:
    """Return the modules and folders that a piece of the page names.

    A bare file after one in a folder is in that folder: `a/b.py`, `c.py`.
    """
    found: list[str] = []
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", text):
        folder = found[0].rpartition("/")[0] if found and "/" not in name else ""
        found.append(f"{folder}/{name}" if folder else name)
    return found


def rows(page: str) -> dict[str, tuple[str, str]]:
    """Return what the page says sees a fault in each module, and where one is planted."""
    table = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 3 and (names := named(cells[0])):
            table |= dict.fromkeys(names, (cells[1], cells[2]))
    return table


def neither(page: str) -> list[str]:
    """Return the modules that the page says neither compute nor read."""
    section = page.partition("\n## Neither computes nor reads\n")[2].partition("\n## ")[0]
    lines = section.split("\n- ")[1:]
    return [name for line in lines for name in named(line.partition(":")[0])]


def problems(page: str) -> list[str]:
    """Return what is missing from the page, or no longer true of the packages."""
    table, known = rows(page), modules()
    said = [*table, *neither(page)]
    places = {name: [m for m in known if m == name or m.startswith(name)] for name in said}
    covered = {module for found in places.values() for module in found}
    planted_in = {path for _, cell in table.values() for path in re.findall(r"`(tests/\S+)`", cell)}
    return [
        *(f"{module}: no row" for module in sorted(known - covered)),
        *(f"{name}: no such module" for name, found in places.items() if not found),
        *(f"{name}: nothing sees it" for name, (sees, _) in table.items() if not sees),
        *(f"{name}: planted nowhere" for name, (_, cell) in table.items() if "`tests/" not in cell),
        *(f"{path}: no such test" for path in sorted(planted_in) if not (ROOT / path).exists()),
    ]


def test_every_module_has_a_row() -> None:
    assert problems(PAGE.read_text()) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("| `rope.py` |", "| `ropes.py` |", ["rope.py: no row", "ropes.py: no such module"]),
        ("- `errors.py`", "- `error.py`", ["errors.py: no row", "error.py: no such module"]),
        ("`tests/parity/generation/test_run.py`", "", ["generate.py: planted nowhere"]),
    ],
)
def test_what_is_missing_is_said(before: str, after: str, said: list[str]) -> None:
    page = PAGE.read_text()
    assert before in page
    found = problems(page.replace(before, after))
    assert set(said) <= set(found)


def test_the_faults_planted_here_are_those_of_the_page() -> None:
    here = {
        name for name, (_, cell) in rows(PAGE.read_text()).items() if "test_independence" in cell
    }
    assert here == {f"{module.replace('.', '/')}.py" for module in FAULTS}
