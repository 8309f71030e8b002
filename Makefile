# Two commands set everything up: `make demo` and `make test`. Both may be run again at any time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8501
ARGS ?=

.PHONY: demo test quick check soak programs clean

demo: $(VENV)/.demo-installed  ## build the demo lake (once) and open the app; ARGS=--no-serve builds only
	$(BIN)/lakeloop quickstart --lake demo-lake/solar.lake --port $(PORT) $(ARGS)

# One thread a process: three test at once, and threads that wait for each other would spin on two cores.
# A process takes file after file, longest first: what the tests of a file share is made once.
# Hundreds of processes are started, which would compile what they import without bytecode files.
TEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test: check  ## linters, types, and every test in its short form
	$(TEST) $(ARGS)

quick: $(VENV)/.dev-installed  ## without tests that start processes, train, or repeat themselves: within a minute
	$(TEST) -m "not soak and not slow" $(ARGS)

check: $(VENV)/.dev-installed programs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(VENV)/.dev-installed programs  ## the long forms; counts and dates stand in docs/benchmarks.md
	$(BIN)/python -m pytest -m soak $(ARGS)

programs:
	@command -v chromium >/dev/null || sh .ci/install chromium chromium fonts-dejavu-core
	@command -v strace >/dev/null || sh .ci/install strace strace

clean:
	rm -rf $(VENV) demo-lake

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lakeloop needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --upgrade pip

# torch first and by its pin: a range would let another package pull a newer one with it.
$(VENV)/.torch-installed: constraints.txt | $(BIN)/pip
	$(BIN)/pip install -qq $$(grep -E '^torch==' constraints.txt)
	@touch $@

$(VENV)/.%-installed: pyproject.toml constraints.txt $(VENV)/.torch-installed
	$(BIN)/pip install -qq -c constraints.txt -e '.[$*]'
	@touch $@
