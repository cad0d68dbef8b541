# demo, test, fuzz, lint, docs, bench, wheel-test: each sets up .venv by itself.
PYTHON ?= python3
PRESET ?= emoji
CASES ?= 5000
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test fuzz lint format docs docs-serve wheel-test bench clean
.DELETE_ON_ERROR: # a .venv that could not be finished, as where Python lacks its venv module, is set up again

demo: $(VENV)/installed  ## train, generate and report on emoji
	$(BIN)/ldmae run $(PRESET)

test: $(VENV)/installed-dev  ## the whole test suite; slow tests are listed at the end
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		--durations 10 --durations-min 30

fuzz: $(VENV)/installed-dev  ## damaged inputs of every kind, CASES of them
	OMP_NUM_THREADS=1 FUZZ_CASES=$(CASES) $(BIN)/python -m pytest tests/fuzz

lint: $(VENV)/installed-dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/installed-dev  ## the site, into site/; a broken link or anchor fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean --quiet

docs-serve: $(VENV)/installed-dev  ## the site on http://127.0.0.1:8000, rebuilt at each change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

wheel-test: $(VENV)/installed-dev  ## build the wheel, look into it, use it in an environment of its own
	$(BIN)/python .ci/check_wheel.py

bench: $(VENV)/installed  ## speed, each figure a ratio to a plain baseline of the same run
	for script in startup attention models sampling latents memory_reuse metrics threads; do $(BIN)/python benchmarks/$$script.py || exit 1; done

clean:
	rm -rf $(VENV) build dist site

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ldmae needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
