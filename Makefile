# Everything happens in .venv, made once from pinned packages; delete it (or run `make clean`) to make it anew.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The pin is read from constraints.txt: a looser request for torch pulls gigabytes of CUDA packages.
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: prepare train test check lint format picture templates test-trainers bench bench-peers torture test-gpu bench-gpu clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev,bench]'
	touch $@

prepare: $(STAMP)
	$(BIN)/premask prepare data/samples/* --tokenizer data/tokenizer --out build/sample --fresh
	$(BIN)/premask view build/sample --pack 0

# Several threads on matrices as small as these wait for each other most of the time.
train: export OMP_NUM_THREADS = 1
train: $(STAMP)
	$(BIN)/premask prepare data/samples/* --tokenizer data/tokenizer --out build/train-data --max-length 512 \
		--set validation=0.15 --fresh --quiet
	$(BIN)/python data/make_model.py build/tiny-llama
	rm -rf build/train-run
	$(BIN)/premask train --config data/train.yaml

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

# The function that mask="unsloth" restates, of a package that wants a GPU when it is imported whole; it goes into a
# folder of its own, beside the environment.
test-trainers: $(STAMP)
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target build/unsloth-zoo unsloth-zoo==2026.10.9
	PYTHONPATH=build/unsloth-zoo $(BIN)/python -m pytest -m slow tests/trainers

picture: $(STAMP)
	$(BIN)/python data/make_picture.py

templates: $(STAMP)
	$(BIN)/python tests/mask/table.py
	$(BIN)/python tests/mask/drop_in_table.py

# `make bench QUICK=--quick` takes a tenth of the data, once.
bench: $(STAMP)
	$(BIN)/python tests/bench/end_to_end.py $(QUICK)
	$(BIN)/python tests/bench/packing.py $(QUICK)
	$(BIN)/python tests/bench/memory.py $(QUICK)
	$(BIN)/python tests/bench/search.py
	$(BIN)/python tests/bench/loading.py
	$(BIN)/python tests/bench/drop_in.py

# Axolotl, which `make bench` runs beside the others where it is there. Its masks need none of the packages for GPUs that
# it asks for, and take the transformers and datasets of the environment; it goes into a folder of its own as well.
bench-peers: $(STAMP)
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target build/axolotl \
		axolotl==0.19.0 addict==2.4.0 colorama==0.4.6

# On a machine with a GPU, with the python there that has torch for CUDA and triton: make test-gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python
ON_GPU := TRITON_INTERPRET=0 PYTHONPATH=pipeline:kernels $(GPU_PYTHON)

test-gpu:
	$(ON_GPU) -m pytest -m gpu tests/kernels/test_masked_loss_gpu.py

# `make bench-gpu SHAPES="--shapes Llama-3-8B"` measures one head; the results gather in tests/bench/results.
bench-gpu:
	$(ON_GPU) tests/bench/gpu.py --sweep $(SHAPES)

torture: $(STAMP)
	$(BIN)/python tests/torture/torture.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
