# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
TABLE ?= ssr_t1
SCALE ?= short
DATA ?= data

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint bench reproduce-tables head-to-head clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "prunekit needs Python 3.10 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

install: $(STAMP)  ## create .venv and install prunekit into it

demo: $(STAMP)  ## prune LeNet on bundled digits through all stages (about a minute)
	$(BIN)/prunekit run experiment=demo

test: $(STAMP)  ## the tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m 'not slow'

test-all: $(STAMP)  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto

lint: $(STAMP)  ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(STAMP)  ## speed, as ratios inside one run
	$(BIN)/python scripts/bench.py
	$(BIN)/python scripts/bench_similarity.py
	$(BIN)/python scripts/bench_lasso.py
	$(BIN)/python scripts/bench_report.py

reproduce-tables: $(STAMP)  ## measured beside published: TABLE=ssr_t1|every|any file of scripts/published|... SCALE=smoke|short|paper DATA=folder
	$(BIN)/python scripts/reproduce_tables.py --table $(TABLE) --scale $(SCALE) --data $(DATA)

head-to-head: $(STAMP)  ## all methods for equal epochs: ResNet-20, then LeNet; SCALE=smoke|short|gpu DATA=folder
	$(BIN)/python scripts/reproduce_tables.py --table head_to_head --scale $(SCALE) --data $(DATA)
	$(if $(filter gpu,$(SCALE)),,$(BIN)/python scripts/reproduce_tables.py --table head_to_head_lenet --scale $(SCALE) --data $(DATA))

clean:  ## remove the environment, caches and builds; outputs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
