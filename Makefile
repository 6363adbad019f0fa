# Every target sets up .venv by itself, with the versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS := $(VENV)/.docs
TOOLS := .venv-tools/.ready

.PHONY: help setup package browser machines mutants fuzz parity bench guard test lint types docs clean

help:
	@echo 'make parity   compare jaxllama with PyTorch, layer by layer, on SmolLM2-135M'
	@echo 'make test     run the tests (ARGS="-k rope" is passed on to pytest)'
	@echo 'make guard    compile time and memory, held to ratios that are kept'
	@echo 'make bench    how fast the model is, beside transformers, Tunix and what the machine could do'
	@echo 'make machines the comparison under some settings of other machines, on a small model'
	@echo 'make mutants  edits of the source of jaxllama, which the comparison has to find and explain'
	@echo 'make fuzz     files of every kind spoilt, and read: nothing crashes, hangs or passes for sound'
	@echo 'make browser  install Chromium, which tests of the report need, where none is'
	@echo 'make package  build the package, install it bare with the oldest and newest dependencies, run its examples'
	@echo 'make docs     build the documentation site into build/docs, to be opened without a network'
	@echo 'make lint     check style and formatting'
	@echo 'make types    check types'
	@echo 'make clean    remove .venv and caches'

setup: $(READY)

parity: $(READY)
	$(BIN)/python scripts/fetch_smollm2.py
	$(BIN)/parity run smollm2 --reference all

# Some 9 minutes; on a machine that does nothing else. ARGS="--quick" takes one or two.
bench: $(READY)
	$(BIN)/python scripts/fetch_smollm2.py
	$(BIN)/jaxllama bench smollm2 $(ARGS)

# Compile time and memory by ratios, held to those of docs/performance-guard.json.
guard: $(READY)
	$(BIN)/python scripts/fetch_smollm2.py
	$(BIN)/python scripts/bench_guard.py

# A part; scripts/machine_matrix.py without --quick runs the rest.
machines: $(READY)
	$(BIN)/python scripts/machine_matrix.py --quick

# 40 of them, a third of them of what writes, tokenizers and readers; parity selftest --mutants N --seed S takes others.
mutants: $(READY)
	$(BIN)/parity selftest --mutants 40 --seed 0

# 2,770 tries; scripts/fuzz.py --seed S takes others, --family NAME those of one kind of file.
fuzz: $(READY)
	$(BIN)/python scripts/fuzz.py

# Without a browser the report's tests fail and say so; all others run. Most of the time is compiling,
# one core a process. In their own order, files of few and long tests are not the last.
test: $(READY)
	-@$(MAKE) --no-print-directory browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# The report is tested in a real browser; with root's rights on Debian or Ubuntu it is installed.
browser:
	@if PYTHONPATH=tests/support $(PYTHON) -c 'import browser, sys; sys.exit(not browser.find_browser())'; then :; \
	elif command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; \
	else echo 'make browser: install Chromium or Chrome, or set BROWSER_PATH to one' >&2; exit 1; fi

# Wheel and sdist, in environments of their own; bills of materials go to build/sbom. The matrix: noxfile.py.
package: $(TOOLS)
	.venv-tools/bin/python scripts/check_package.py --python $(PYTHON) \
	  --constraints ci/oldest.txt ci/newest.txt --sbom build/sbom $(ARGS)

$(TOOLS): ci/tools.txt
	$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python -m pip install --quiet --requirement ci/tools.txt
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(READY)
	$(BIN)/mypy

# Warnings are errors, and so are links that lead nowhere and pages that fetch anything.
docs: $(DOCS)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/build_docs.py $(ARGS)

# Sphinx and its theme, 60 MB that nothing else needs.
$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed, this is " + sys.version.split()[0] + "; say PYTHON=python3.12 or another to make")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[parity,meta,quality,train,dev]'
	@# A model that a test judges; its framework's other dependencies are not needed.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps google-tunix
	@touch $@

clean:
	rm -rf $(VENV) .venv-tools .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
