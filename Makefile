# Everything runs from a virtual environment that is built once and remade when pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.built

.PHONY: setup race demo test nightly torture lint check clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	@# Compiled on all cores; that some files in there are for other Pythons is no error.
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	@touch $@

race: $(STAMP)  ## grid, random and Bayesian search on real training, one device minute each
	$(BIN)/python scripts/tune.py

demo: $(STAMP)  ## the page, with races on landscapes
	$(BIN)/python scripts/page.py

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

nightly: $(STAMP)  ## the tests, with those that are too long to be run each time
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --nightly

torture: $(STAMP)  ## the promises, put to the test for hours; writes benchmarks/torture.json
	$(BIN)/python scripts/torture.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

clean:
	rm -rf .venv build ./*.egg-info .mypy_cache .ruff_cache .pytest_cache
