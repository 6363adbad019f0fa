"""The import rules: checked by import-linter on the sources, and by what an import really loads."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WITNESSES = {"torch", "transformers", "llama_models", "fairscale"}


def lint_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of a pyproject.toml on the packages beside it."""
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command"
    return subprocess.run(
        [sys.executable, "-c", f"{code}; lint_imports_command(['--no-cache'])"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


def test_contracts_hold():
    outcome = lint_imports(ROOT)
    assert outcome.returncode == 0, outcome.stdout
    assert "0 broken" in outcome.stdout


def test_planted_imports_break_each_contract(tmp_path: Path):
    for package in ("jaxllama", "parity"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    planted = {
        "jaxllama/rope.py": "def _planted() -> None:\n    import torch\n",
        "jaxllama/text.py": "def _planted() -> None:\n    import huggingface_hub\n",
        "jaxllama/cache.py": "from jaxllama import attention\n",
        "parity/comparison/tap.py": "from parity.taps import jax\n",
        "parity/taps.py": "import jax\n",
        "jaxllama/unplaced.py": "",
        "parity/comparison/reference.py": "def _planted():\n    from parity import runner\n",
        "parity/nowhere.py": "",
        "parity/health/metrics/states.py": "def _late():\n    import jax\n",
        "parity/diagnose/solve.py": "from jaxllama import rope\n",
        "parity/diagnose/describe.py": "from jaxllama import checkpoint\n",
        "parity/sources/names.py": "def _late():\n    from jaxllama.checkpoint import names\n",
        "parity/sources/hf.py": "from jaxllama.config_formats import hf\n",
        "parity/subjects/torch_reference/run.py": "import jaxllama.checkpoint.open\n",
        "parity/generation/sampler.py": "from jaxllama import sampling\n",
    }
    for name, line in planted.items():
        with (tmp_path / name).open("a") as file:
            file.write("\n" + line)
    outcome = lint_imports(tmp_path)
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    assert "0 kept, 6 broken" in outcome.stdout
    for said in (
        "jaxllama.rope -> torch",
        "jaxllama.text -> huggingface_hub",
        "parity.diagnose.solve -> jaxllama.rope",
        "parity.diagnose.describe -> jaxllama.checkpoint",
        "parity.sources.names -> jaxllama.checkpoint.names",
        "parity.sources.hf -> jaxllama.config_formats.hf",
        "parity.subjects.torch_reference.run -> jaxllama.checkpoint.open",
        "parity.generation.sampler -> jaxllama.sampling",
        "jaxllama.cache -> jaxllama.attention",
        "parity.taps -> jax",
        "parity.health.metrics.states -> jax",
        "unplaced",
        "parity.comparison.reference -> parity.runner",
        "nowhere",
    ):
        assert said in outcome.stdout, outcome.stdout


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules in sys.modules of a new interpreter after running `code`."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(
        subprocess.run(
            [sys.executable, "-c", f"{code}\n{report}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    )


def every_module_of(package: str) -> str:
    """Return code that imports all of a package."""
    return f"""
import importlib, pkgutil, {package}
for module in pkgutil.walk_packages({package}.__path__, "{package}."):
    importlib.import_module(module.name)
"""


def test_no_module_of_jaxllama_loads_torch():
    loaded = loaded_by(every_module_of("jaxllama"))
    assert {"jaxllama", "flax"} <= loaded
    assert not loaded & (WITNESSES | {"parity"})


def test_the_core_of_parity_loads_numpy_alone():
    code = every_module_of("parity.comparison") + every_module_of("parity.health.metrics")
    rules = "from parity.health.rule import catalogue; catalogue()"
    loaded = loaded_by(f"{code}\nimport parity.taps, parity.locate\n{rules}")
    assert {"parity", "numpy"} <= loaded
    assert not loaded & (WITNESSES | {"jax", "flax", "jaxllama"})


READERS = ("jaxllama.checkpoint", "jaxllama.config_formats", "jaxllama.tokenizer")


def readers_loaded_by(code: str) -> list[str]:
    """Return which of jaxllama's reading modules a new interpreter has loaded after `code`."""
    report = f"import sys; print(*(name for name in sys.modules if name.startswith({READERS})))"
    return subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


def test_parity_reads_without_jaxllamas_readers():
    assert not readers_loaded_by(every_module_of("parity.sources"))
    assert readers_loaded_by("import parity.runner.readings")


def test_the_command_lines_answer_before_frameworks_are_loaded():
    loaded = loaded_by("import parity.cli, jaxllama.cli")
    assert not loaded & (WITNESSES | {"jax", "flax"})


def test_a_module_that_loads_torch_is_seen():
    assert "torch" in loaded_by("import parity.subjects.torch_reference.subject")


# Distributions whose import name is not theirs.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "llama_models": "llama-models",
    "orbax": "orbax-checkpoint",
    "rouge_score": "rouge-score",
}


def imported_distributions(package: Path, *, without: str = " ") -> set[str]:
    """Return the third-party distributions that the sources below `package` import anywhere.

    Args:
        package: a folder.
        without: a folder's name below it that is left out.
    """
    names = set()
    for source in (one for one in package.rglob("*.py") if without not in one.parts):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
    ours = {"jaxllama", "parity", *sys.stdlib_module_names}
    return {DISTRIBUTIONS.get(name, name) for name in names - ours}


def declared(*extras: str) -> set[str]:
    requirements = list(PROJECT["dependencies"])
    for extra in extras:
        requirements += PROJECT["optional-dependencies"][extra]
    return {re.split(r"[\[<>=]", requirement)[0] for requirement in requirements}


def test_every_import_is_a_declared_dependency(tmp_path: Path):
    assert imported_distributions(ROOT / "jaxllama") <= declared("hub", "train", "eval") | {
        "torch",
        "transformers",
    }
    # Published Llamas have each an environment of its own, `scripts/field/NAME.txt`.
    ours = imported_distributions(ROOT / "parity", without="peers")
    assert ours <= declared("parity", "meta", "quality") | {"pytest"}  # which loads the plugin
    assert "litgpt" in imported_distributions(ROOT / "parity") - ours
    (tmp_path / "extra.py").write_text("def late():\n    from pandas.core import frame\n")
    assert imported_distributions(tmp_path) == {"pandas"}


def test_every_declared_dependency_is_imported():
    imported = imported_distributions(ROOT / "jaxllama")
    assert declared() - imported == set()
    imported |= imported_distributions(ROOT / "parity")
    assert declared("hub", "parity", "meta", "train", "eval") - imported == set()
    assert {"numpy", "pandas"} - imported == {"pandas"}
