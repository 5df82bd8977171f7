# One command each: set up, see it work, check everything.
#   make setup   .venv with .venv/bin/urushi, once; quick when nothing changed
#   make demo    the whole job on the embedded booru and the tiny model (WORKSPACE=folder)
#   make test    format, lint, types, import contracts, tests
#   make drill   the long kill and fault drills
#   make core    the core's tests as if Prefect were not installed
#   make bench   what is promised of speed, measured; BENCH=--quick for a smoke run

PYTHON ?= python3
WORKSPACE ?= demo-workspace
BIN := .venv/bin
ROOMS := urushi flows pipeline merge demo tests benchmarks

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup demo test drill core bench clean

setup: .venv/.set-up

.venv/.set-up: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "urushi needs Python 3.11 or later; name one: make setup PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/urushi demo --workspace $(WORKSPACE)

test: setup
	$(BIN)/ruff format --check $(ROOMS)
	$(BIN)/ruff check $(ROOMS)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -m "not drill" --numprocesses 2 --dist loadfile --no-loadscope-reorder

drill: setup
	$(BIN)/pytest -m drill

core: setup
	PYTHONPATH=tests/without_prefect $(BIN)/pytest -m "not drill and not prefect" --ignore=tests/flows \
	  --numprocesses 2 --dist loadfile --no-loadscope-reorder

bench: setup
	for name in caption flows lora train merge download store rounds resize cache; do $(BIN)/python benchmarks/$$name.py $(BENCH) || exit 1; done

clean:
	rm -rf .venv build demo-workspace *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find $(ROOMS) -name __pycache__ -type d -prune -exec rm -rf {} +
