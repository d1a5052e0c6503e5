# Every target sets up what it needs. Variables: PYTHON (3.11 or newer), VENV, ARGS (passed on), PIP_FLAGS (passed to
# pip install, for instance to choose another build of torch); of release, ORG, DATA and DRY_RUN.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PIP_FLAGS ?=

BIN := $(VENV)/bin
# Made last, so an interrupted installation is done again; older than its prerequisites when they change.
RECIPES_STAMP := $(VENV)/.installed-recipes
STAMP := $(VENV)/.installed
SPACE_VENV ?= .venv-space
SPACE_STAMP := $(SPACE_VENV)/.installed
PLAIN_VENV ?= .venv-plain
PLAIN_STAMP := $(PLAIN_VENV)/.installed

.PHONY: help quickstart release test test-slow gpu mutations test-plain test-space demo serve lint format clean

help: ## Show this list
	@echo "usage: make TARGET [ARGS=\"...\"] [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(RECIPES_STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: $(PYTHON) not found. Python 3.11 or newer is needed: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is $$("$(PYTHON)" --version 2>&1); 3.11 or newer is needed: make PYTHON=python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)" || { \
	  echo "error: could not create $(VENV); on Debian and Ubuntu the python3-venv package is needed" >&2; exit 1; }
	"$(BIN)/python" -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[recipes]"
	@touch "$@"

# Beyond what a user needs: 1.3 GB, most of it Triton.
$(STAMP): $(RECIPES_STAMP)
	"$(BIN)/python" -m pip install $(PIP_FLAGS) -c constraints.txt -e ".[recipes,onnx,test,dev]"
	@touch "$@"

quickstart: $(RECIPES_STAMP) ## Pretrain a small model on generated speckle images (CPU, minutes) and print where the results are
	"$(BIN)/accelerate" launch --quiet --config_file recipes/configs/accelerate/cpu.yaml \
	  recipes/pretrain.py --config recipes/configs/quickstart.yaml $(ARGS)

# Told before anything is installed.
ifneq ($(filter release,$(MAKECMDGOALS)),)
ifeq ($(and $(ORG),$(DATA)),)
$(error ORG and DATA are needed: make release ORG=name-on-the-Hub DATA=folder-with-a-folder-per-corpus [DRY_RUN=1])
endif
endif

release: $(RECIPES_STAMP) ## Prepare, train and publish: ORG=NAME DATA=FOLDER (DRY_RUN=1: only check, and show the plan)
	"$(BIN)/python" recipes/release.py --org "$(ORG)" --data_dir "$(DATA)" \
	  $(if $(filter-out 0 false,$(DRY_RUN)),--dry_run true) $(ARGS)

test: $(STAMP) ## Run the fast tests in two processes (ARGS="-k texture -n 0" and the like are passed to pytest)
	"$(BIN)/python" -m pytest -n 2 -m "not slow and not gpu" $(ARGS)

test-slow: $(STAMP) ## Run the slow tests (minutes)
	"$(BIN)/python" -m pytest -m "slow and not gpu" $(ARGS)

# JSON: where the results go. Where the environment cannot be made, the script runs by itself: see its docstring.
JSON ?= gpu.json
gpu: $(STAMP) ## Test and measure everything that needs a GPU, in minutes (ARGS="--train data/busi" trains too)
	"$(BIN)/python" recipes/benchmarks/gpu.py --json "$(JSON)" $(ARGS)

mutations: $(STAMP) ## Break the code on purpose, edit by edit, and see that the tests notice (tens of minutes)
	"$(BIN)/python" tests/try_mutations.py $(ARGS)

# What somebody has who only opens a published model: not this package, no recipes, no torchvision.
$(PLAIN_STAMP): constraints.txt
	"$(PYTHON)" -m venv "$(PLAIN_VENV)"
	"$(PLAIN_VENV)/bin/python" -m pip install $(PIP_FLAGS) -c constraints.txt torch transformers pillow
	@touch "$@"

test-plain: $(STAMP) $(PLAIN_STAMP) ## Open published models where only torch, transformers and pillow are installed
	PLAIN_PYTHON="$(abspath $(PLAIN_VENV))/bin/python" "$(BIN)/python" -m pytest -m plain \
	  tests/test_publish.py tests/test_hub_code.py $(ARGS)

# The demo has its own environment: gradio and the recipes want different releases of pillow.
$(SPACE_STAMP): hub_cards/space/requirements.txt hub_cards/space/constraints.txt
	"$(PYTHON)" -m venv "$(SPACE_VENV)"
	"$(SPACE_VENV)/bin/python" -m pip install $(PIP_FLAGS) -c hub_cards/space/constraints.txt \
	  -r hub_cards/space/requirements.txt
	@touch "$@"

demo: $(SPACE_STAMP) ## Start the demo on the quickstart's model (ARGS="--model ORG/NAME or folder")
	PYTHONPATH=.:recipes "$(SPACE_VENV)/bin/python" hub_cards/space/app.py $(ARGS)

serve: $(SPACE_STAMP) ## Answer as the Hub's image-classification task does (ARGS="--model path/to/classifier")
	PYTHONPATH=.:recipes "$(SPACE_VENV)/bin/python" hub_cards/space/app.py --serve true $(ARGS)

test-space: $(STAMP) $(SPACE_STAMP) ## Test the demo and the server in their own environment
	"$(BIN)/python" -m pytest -m "slow" tests/test_space.py $(ARGS)

lint: $(STAMP) ## Check code and formatting with ruff, change nothing
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .

format: $(STAMP) ## Fix what ruff can fix and format the code
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

clean: ## Remove caches and build products (keeps the virtual environment, runs and data)
	rm -rf .pytest_cache .ruff_cache build dist *.egg-info
	find modeling_glcm_mae recipes tests -type d -name __pycache__ -prune -exec rm -rf {} +
