# demo, test, lint, bench: each sets up .venv by itself.
PYTHON ?= python3
PRESET ?= emoji
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format bench clean
.DELETE_ON_ERROR: # a .venv that could not be finished, as where Python lacks its venv module, is begun anew

demo: $(VENV)/installed  ## train, generate and report on pictures that lie in a package
	$(BIN)/ldmae run $(PRESET)

test: $(VENV)/installed-dev  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/installed-dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed  ## speed, each figure a ratio to a plain baseline of the same run
	for script in attention models latents memory_reuse; do $(BIN)/python benchmarks/$$script.py || exit 1; done

clean:
	rm -rf $(VENV) build dist

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ldmae needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
