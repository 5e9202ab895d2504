# Everything here sets up its own environment first: Python 3.11 or newer and make are all that must be there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 3000
WORKERS ?= 3
export SV_PIPELINE_HOME ?= $(CURDIR)/.sv_pipeline
export DAGSTER_HOME ?= $(CURDIR)/.dagster_home
export DAGSTER_DISABLE_TELEMETRY := 1

QUICK = HYPOTHESIS_PROFILE=quick $(BIN)/python -m pytest -n 2 --dist loadgroup -k "not bigtable" \
	sv_pipeline_tests/test_*.py sv_pipeline_tests/algorithms sv_pipeline_tests/table sv_pipeline_tests/graph

.PHONY: help install demo ui check coverage test lint format docs clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Make the environment (.venv) with the locked versions

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(DAGSTER_HOME)/dagster.yaml: instance/dagster.yaml
	@mkdir -p $(DAGSTER_HOME) && cp $< $@

demo: install $(DAGSTER_HOME)/dagster.yaml ## Build, verify and picture a graph; SOURCE=path takes your own volume
	@$(BIN)/sv-pipeline demo $(if $(SOURCE),"$(SOURCE)") $(if $(RESOLUTION),--resolution $(RESOLUTION))

ui: install $(DAGSTER_HOME)/dagster.yaml ## Open the Dagster UI on http://127.0.0.1:3000
	@mkdir -p $(SV_PIPELINE_HOME)
	$(BIN)/dg dev -w workspace.yaml -h $(HOST) -p $(PORT)

check: install ## What to run before each commit: formatting, types, pure algorithms, SQLite; about a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(QUICK)

coverage: install ## How much of the product the tests of `make check` reach, file by file
	$(QUICK) --cov=sv_pipeline --cov-report=term:skip-covered

test: install ## Run all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

lint: install $(DAGSTER_HOME)/dagster.yaml ## ruff, ruff format, mypy, dg check defs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/dg check defs

format: install ## Format the code
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

docs: install ## Build the reference of the Python API into build/docs
	$(BIN)/python -m pdoc --docformat numpy -o build/docs sv_pipeline sv_pipeline.proofreading sv_pipeline.edits \
		sv_pipeline.recovery sv_pipeline.config sv_pipeline.errors sv_pipeline.registry sv_pipeline.table sv_pipeline.testing

clean: ## Remove the environment and the demo's data
	rm -rf $(VENV) .sv_pipeline .dagster_home demo
