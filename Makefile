# Everything a person needs. Each command sets up what it needs in .venv.
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= models.toml

.PHONY: help run test test-gpu test-clients test-appliance deb check format setup setup-dev bench chaos lock edge-guide clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## ?/\t/' | expand -t 15

run: setup       ## run the daemon on models.toml (CONFIG=FILE for another)
	$(BIN)/edged serve --config $(CONFIG)

test: setup-dev  ## every test that needs no GPU and no root (ARGS="-k name" for some)
	$(BIN)/python -m pytest $(ARGS)

test-clients: setup-dev ## foreign SDKs and suites, Python and Node, against a running daemon (ARGS="-k litellm")
	$(BIN)/python -m pytest -o verbosity_subtests=1 tests/clients/foreign $(ARGS)

deb:             ## dist/edged_VERSION_ARCH.deb (the first one compiles llama.cpp for any CPU: 16 minutes on two cores)
	packaging/make-deb dist

test-appliance: setup-dev ## build the package, boot Debian 12 and 13, install, upgrade, purge (root)
	$(BIN)/python -m pytest -rsP --timeout 900 tests/appliance $(ARGS)

check: setup-dev ## format, lint, types, import table, documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py tests/test_docs.py

format: setup-dev ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-gpu:        ## what only an NVIDIA GPU can show, and its benchmark (WHEELS=DIR without network; see tests/gpu/run)
	WHEELS="$(WHEELS)" LMDEPLOY_PYTHON="$(LMDEPLOY_PYTHON)" MODEL="$(MODEL)" PYTHON="$(PYTHON)" tests/gpu/run

bench: setup-dev ## benchmarks beside llama.cpp's own servers, built from the installed sdist (ARGS="--pairs 5")
	$(BIN)/python -m tests.bench $(ARGS)

chaos: setup-dev ## ten minutes of faults under traffic; its rules, and the report (ARGS="--seconds 60")
	$(BIN)/python -m tests.chaos --report docs/reliability.md $(ARGS)

edge-guide:      ## train the built-in model again and write its GGUF (about two hours on a core)
	$(or $(PYTHON),python3) -m venv .venv-train
	.venv-train/bin/pip install --quiet --requirement packaging/edge-guide/requirements.txt
	.venv-train/bin/python packaging/edge-guide/build.py

setup:
	@PYTHON="$(PYTHON)" packaging/setup-venv $(VENV) requirements.lock

setup-dev:
	@PYTHON="$(PYTHON)" packaging/setup-venv $(VENV) requirements-dev.lock

lock:            ## pin anew what pyproject.toml admits
	packaging/make-lock

clean:           ## remove what make made (not caches outside this folder)
	rm -rf $(VENV) .venv-train .venv-gpu build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
