# Everything that a developer does here. Each target sets up .venv first (once; after that it costs nothing).
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
PORT ?= 8000
BIN := .venv/bin
# Tiny models run faster on one OpenMP thread than on two that compete; nothing is fetched from a model hub.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export VLLM_NO_USAGE_STATS ?= 1
# The tests start hundreds of processes: without bytecode on disk each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

# Two files at a time: half of their time the tests wait.
FAST = $(BIN)/pytest -n 2 --dist loadfile --durations=20 -m "not engine and not slow"

.PHONY: help setup demo test lint format types check faults docs image-check evaluate bench bench-training pins clean distclean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup:  ## create .venv with everything in it (PYTHON=... picks the interpreter)
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) scripts/setup.py

demo: setup  ## train if needed, serve on 127.0.0.1:8000 (PORT=...), show one improvement (DEMO_EXIT=1: then stop)
	@$(BIN)/python scripts/demo.py --port $(PORT) $(if $(filter 1,$(DEMO_EXIT)),--exit)

test: setup lint types  ## lint, types, and every test, real engine included
	$(FAST)
	$(BIN)/pytest --durations=20 -m "engine or slow"

lint: setup  ## ruff: rules and formatting of imports
	$(BIN)/ruff check .

format: setup  ## let ruff mend what it can
	$(BIN)/ruff check --fix .

types: setup  ## mypy, strict
	$(BIN)/mypy

check: lint types  ## lint, types and the fast tests
	$(FAST)

faults: setup  ## the fault tests in full (about half an hour), and the table of docs/reliability.md from their figures
	rm -rf runs/faults
	@failed=0; PIT_FAULTS=full $(BIN)/pytest -s $$(grep -rl "import.*\bsay\b" tests --include='test_*.py') || failed=1; \
	  $(BIN)/python scripts/reliability.py; exit $$failed

docs: setup  ## write what is made from the code: docs/configuration.md, api.md, cli.md, deploy/grafana
	@$(BIN)/python scripts/configuration.py
	@$(BIN)/python scripts/reference.py
	@$(BIN)/python -m scripts.dashboards

image-check: setup  ## build and run images in a chroot, without a container engine (IMAGES="gateway cpu"; root, debootstrap)
	$(BIN)/python -m tests.deploy.image_check $(IMAGES)

evaluate: setup  ## evaluate the checkpoints of the demo with its gold scorer
	$(BIN)/pit-train evaluate training/configs/demo.yaml

bench: setup  ## the load bench: the server against its peers and its bars (BENCH="gateway race" picks; peers: first time 1 GB)
	$(BIN)/python -m tests.load $(BENCH)

bench-training: setup  ## training stages beside plain TRL: tokens a second, memory (about ten minutes)
	$(BIN)/python scripts/bench_training.py

pins: setup  ## write constraints.txt from what .venv holds
	@scripts/pins.sh

clean:  ## remove caches and build outputs; keeps .venv and runs/
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find app training tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## also remove .venv, .bench (the peers) and runs/ (the trained checkpoints)
	rm -rf .venv .bench runs
