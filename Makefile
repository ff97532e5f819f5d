# Everything happens in .venv, made once from pinned packages; delete it (or run `make clean`) to make it anew.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The pin is read from constraints.txt: a looser request for torch pulls gigabytes of CUDA packages.
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: prepare test check lint format picture templates bench torture clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

prepare: $(STAMP)
	$(BIN)/premask prepare data/samples/* --tokenizer data/tokenizer --out build/sample --fresh
	$(BIN)/premask view build/sample --pack 0

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

check: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

picture: $(STAMP)
	$(BIN)/python data/make_picture.py

templates: $(STAMP)
	$(BIN)/python tests/mask/table.py

bench: $(STAMP)
	$(BIN)/python tests/bench/packing.py
	$(BIN)/python tests/bench/search.py

torture: $(STAMP)
	$(BIN)/python tests/torture/torture.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
