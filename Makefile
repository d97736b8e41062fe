# Each target sets up .venv by itself. PYTHON=… chooses the interpreter it is made with.
# One that runs and has the right version: a version manager's stand-in may do neither.
SUITABLE := import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for name in python3.11 python3.12 python3.10 python3; do \
	$$name -c '$(SUITABLE)' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
PACKAGING := pyproject.toml setup.py constraints.txt
# One thread per test process: gloo tests start several, and two pytest workers share the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test test-gpu lint clean

demo: $(VENV)/.installed
	$(BIN)/longrope demo --run-dir runs/demo

test: $(VENV)/.installed-dev
	status=0; \
	$(PYTEST) -n 2 tests/unit || status=1; \
	$(PYTEST) tests/distributed tests/e2e || status=1; \
	exit $$status

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "no Python 3.10 to 3.12 found; give one with PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# Python compiles what is imported, once; compiling all of torch first takes longer than the rest of the installation.
$(VENV)/.installed: $(PACKAGING) | $(BIN)/pip
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(PACKAGING) | $(BIN)/pip
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.installed
