# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
TABLE ?= ssr_t1
SCALE ?= short
DATA ?= data
# other faults come first after every commit
SEED ?= $(shell git rev-list --count HEAD 2>/dev/null || echo 0)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto
# the tests of arithmetic; their results differ in the last bits from processor to processor
AGAIN := -m 'not slow' --hypothesis-profile=few
NUMBERS := tests/property $(patsubst %,tests/unit/test_%.py, \
	bias_compensation channel_selection criteria equivalence distillation graph_lasso hinge hinge_solver hrank \
	low_rank patterns penalties pruning recalibrate reconstruction refitted_cut refitted_inputs \
	refitted_kinds readings refit_error merge strength regression remove_block similarity slimming \
	solvers surgery targets threshold training tree_lasso whole_groups inputs preserved)

.DEFAULT_GOAL := help
.PHONY: help install demo test numbers faults campaign test-all lint bench reproduce-tables head-to-head clean

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

test: $(STAMP)  ## the tests, without the slow ones and the faults
	$(PYTEST) -m 'not slow' --ignore=tests/faults

numbers: $(STAMP)  ## the tests of numbers again, as an old processor computes
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(PYTEST) $(AGAIN) $(NUMBERS)

faults: $(STAMP)  ## tests of runs that are killed and files that are damaged, and 3 minutes of the campaign
	$(PYTEST) -m 'not slow' tests/faults
	$(BIN)/python -m scripts.faults --minutes 3 --seed $(SEED) --anew --out build/faults/some.csv

campaign: $(STAMP)  ## the whole fault campaign, half an hour: docs/results/faults.csv, docs/reliability.md
	$(BIN)/python -m scripts.faults

test-all: $(STAMP)  ## all tests, and those of numbers as two older processors compute
	$(PYTEST)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) $(AGAIN) $(NUMBERS)
	$(MAKE) numbers

lint: $(STAMP)  ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

bench: $(STAMP)  ## speed, as ratios inside one run
	$(BIN)/python -m scripts.bench

reproduce-tables: $(STAMP)  ## measured beside published: TABLE=ssr_t1|experiments|all|any of scripts/reproduce/tables SCALE=smoke|short|paper DATA=folder
	$(BIN)/python -m scripts.reproduce --table $(TABLE) --scale $(SCALE) --data $(DATA)

head-to-head: $(STAMP)  ## all methods for equal epochs: ResNet-20, then LeNet; SCALE=smoke|short|gpu DATA=folder
	$(BIN)/python -m scripts.reproduce --table head_to_head --scale $(SCALE) --data $(DATA)
	$(if $(filter gpu,$(SCALE)),,$(BIN)/python -m scripts.reproduce --table head_to_head_lenet --scale $(SCALE) --data $(DATA))

clean:  ## remove the environment, caches and builds; outputs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
