"""The catalogue of faults: complete, distinct, and apart from what has to recognise them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from parity.selftest.benign import controls
from parity.selftest.clean_runs import clean_runs
from parity.selftest.faults import catalogue
from parity.selftest.models import checkpoint
from parity.selftest.run import SelftestPlan
from parity.subjects.jaxllama.grad import loss_of
from parity.taps import CACHE_TAPS, expected_names, gradient_names

CATALOGUE = catalogue()
PUBLISHED = {
    *(f"R{n}" for n in range(1, 11)),
    *(f"N{n}" for n in range(1, 6)),
    *(f"G{n}" for n in range(1, 3)),
    *(f"M{n}" for n in range(1, 12)),
    *(f"C{n}" for n in range(1, 7)),
    *(f"W{n}" for n in range(1, 7)),
}


def test_every_published_fault_is_injected() -> None:
    assert {fault.family for fault in CATALOGUE} >= PUBLISHED


def test_kinds_and_injections_suffice() -> None:
    assert len({(fault.family, fault.kind) for fault in CATALOGUE}) >= 45
    assert len(CATALOGUE) >= 150
    lanes = Counter(fault.lane for fault in CATALOGUE)
    assert lanes.keys() == {"f64", "f32", "bf16"} and min(lanes.values()) >= 25
    trained = {fault.lane for fault in CATALOGUE if fault.model == "smollm2"}
    assert trained == {"f64", "f32", "bf16"}


def test_no_two_injections_are_alike() -> None:
    assert [name for name, n in Counter(fault.id for fault in CATALOGUE).items() if n > 1] == []


def test_an_injection_expects_a_tap_there_is_and_changes_something() -> None:
    for fault in CATALOGUE:
        trained = fault.model == "smollm2"
        config = None if trained else checkpoint(fault.model).config
        layers = 30 if config is None else config.num_hidden_layers
        if fault.mode == "grad":
            tied = config is None or config.tie_word_embeddings
            names = gradient_names(layers, tied=tied)
        else:
            names = expected_names(layers, cache=fault.decodes)
        assert fault.expected in names, fault.id
        changed = fault.patches, fault.weights, fault.config, fault.setup, fault.loss is not loss_of
        assert any(changed), fault.id
        assert fault.cause, fault.id
        assert fault.decodes or fault.step == 0, fault.id


def test_controls_expect_nothing() -> None:
    assert all(not fault.expected and not fault.cause for fault in controls())
    assert {fault.kind for fault in controls()} >= {
        "centred unembedding",
        "near-tied top-1",
        "attention sinks",
    }


def test_clean_runs_suffice() -> None:
    runs = list(clean_runs())
    assert len(runs) >= 200
    assert {run.lane for run in runs} == {"f64", "f32", "bf16"}
    assert {"clean twin", "compiled", "fused attention"} <= {run.kind for run in runs}
    assert 0 < len(list(clean_runs(quick=True))) < 50


def test_the_quick_ones_are_one_of_each_family() -> None:
    families = [fault.family for fault in SelftestPlan(quick=True).faults()]
    assert len(families) == len(set(families)) and set(families) >= PUBLISHED
    assert {fault.family for fault in SelftestPlan(families=("R3", "M1")).faults()} == {"R3", "M1"}


def test_faults_share_no_code_with_what_must_recognise_them() -> None:
    """Otherwise the figures would be a tautology: neither side imports the other."""
    root = Path(sys.modules["parity"].__file__ or "").parent
    faults = [root / "selftest" / "fault.py", *(root / "selftest" / "faults").glob("*.py")]
    assert len(faults) > 10
    for source in faults:
        assert not {name for name in imported(source) if re.match(r"parity\.(causes|ident)", name)}
    for source in [*(root / "causes").rglob("*.py"), *root.glob("identif*.py")]:
        assert not {name for name in imported(source) if name.startswith("parity.selftest")}


def imported(source: Path) -> set[str]:
    """Return the modules a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_model_has_no_switches_for_faults() -> None:
    code = "import jaxllama, sys; print('parity' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
    assert set(CACHE_TAPS) == {"cache.k", "cache.v"}
