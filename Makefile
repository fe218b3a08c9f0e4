# Every target sets up .venv from pyproject.toml when it is missing or older than pyproject.toml.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TORCH_VENV := .venv-torch
PROTOS := $(wildcard protos/*.proto)
PROTOC  = $(BIN)/python -m grpc_tools.protoc -Iprime_dht/pb=protos --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy

.DEFAULT_GOAL := help
.PHONY: help setup demo run test simulate chaos check bench bench-peers robustness unixfs-fixture bitswap-interop torch-interop protos clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "prime_dht needs Python 3.11 or newer; choose one with make PYTHON=...")'
	@echo "setting up $(VENV) (once; a minute or two)"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

setup: $(STAMP)  ## Create .venv and install prime_dht and everything its development needs

demo: $(STAMP)  ## Train a model, store it in five node processes, kill two, read it back
	@$(BIN)/python examples/demo.py

run: $(STAMP)  ## Run a node in the foreground, data in ./data; ARGS="--peer ..." for more options
	@exec $(BIN)/prime-dht run --data-dir ./data $(ARGS)

# Tests start some two hundred processes, each of which would compile the package anew where no bytecode is written.
test: export PYTHONDONTWRITEBYTECODE :=
# One more at a time than cores: every one of them now and then waits for a process, a disk or a clock.
test: $(STAMP)  ## Run the tests, on all cores up to four
	@$(BIN)/python -m pytest --dist worksteal \
	--numprocesses $$($(BIN)/python -c 'import os; print(min(os.cpu_count() or 1, 4) + 1)')

simulate: $(STAMP)  ## Simulate swarms under faults: SEEDS=100 of them from FIRST=0 on, JOBS=2 at a time; LOGS=<folder>
	@$(BIN)/python -m tests.simulation --first $(or $(FIRST),0) --seeds $(or $(SEEDS),100) --jobs $(or $(JOBS),2) \
	$(if $(LOGS),--logs $(LOGS))

chaos: export PYTHONDONTWRITEBYTECODE :=
chaos: $(STAMP)  ## Try node processes with kills and cuts on a bad network: MINUTES=10 NODES=20; SEED=<a number>
	@$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),10) --nodes $(or $(NODES),20) $(if $(SEED),--seed $(SEED))

check: $(STAMP)  ## Lint, format, types, layers, and whether generated code is up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	$(PROTOC) --python_out=$$tmp --mypy_out=quiet:$$tmp $(PROTOS) && \
	for file in $$tmp/prime_dht/pb/*; do cmp "$$file" prime_dht/pb/$$(basename $$file) \
	|| { echo "prime_dht/pb is not what protos/ generates: run make protos"; exit 1; }; done

bench: $(STAMP)  ## Measure: tables here, JSON in ./bench
	@$(BIN)/python -m tests.bench

bench-peers: $(STAMP)  ## Measure the same on kademlia, OpenDHT and hivemind, in ./.venv-peers (up to 6 GB)
	@$(BIN)/python -m tests.bench.peers

robustness: $(STAMP)  ## Train with bad members under each rule of aggregation; a table of accuracies
	@$(BIN)/python -m tests.bench.robustness

unixfs-fixture:  ## Make the table of CIDs that ipfs-unixfs-importer gives anew; needs node and npm
	cd tests/interop/unixfs && npm install --no-package-lock --no-audit --no-fund --silent && \
	node make_fixture.mjs > fixture.tmp && mv fixture.tmp unixfs_v1_2025.json

bitswap-interop: $(STAMP)  ## Let Helia, from npm, fetch blocks from a node; needs node and npm
	@cd tests/interop/bitswap && npm install --no-package-lock --no-audit --no-fund --ignore-scripts --silent
	@$(BIN)/python tests/interop/bitswap/check.py

torch-interop: $(STAMP)  ## Keep PyTorch's checkpoints on a swarm; PyTorch goes to ./.venv-torch (up to 6 GB); TORCH_PIP=<options of pip>
	@test -e $(TORCH_VENV)/.installed || { echo "installing PyTorch into $(TORCH_VENV) (once; its build for the CPU will do)" && \
	$(PYTHON) -m venv --clear $(TORCH_VENV) && \
	$(TORCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH_PIP) torch numpy && \
	$(TORCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,fsspec,ml]' && \
	touch $(TORCH_VENV)/.installed; } || echo "skipped: pip cannot install PyTorch, for the reason above"
	@if test -e $(TORCH_VENV)/.installed; then \
	$(TORCH_VENV)/bin/python -W ignore::UserWarning tests/interop/checkpoints/check.py; fi

protos: $(STAMP)  ## Generate prime_dht/pb from protos/
	$(PROTOC) --python_out=. --mypy_out=quiet:. $(PROTOS)

clean:  ## Remove .venv, caches and bench results; never ./data
	rm -rf $(VENV) $(TORCH_VENV) .venv-peers bench dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
