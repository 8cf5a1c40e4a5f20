# Everything that a developer or CI runs. `make` without a target lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IMAGE ?= pushgate
CONTAINERS ?= docker
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Container images often set it. Without compiled modules, each `pushgate` of the tests takes a third of a second longer.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo run check test picture matrix soak hostile fuzz mutate bench documents image sbom format lock clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.runtime ## one push from the webhook to the verdict on it, on this machine, explained step by step
	@$(BIN)/python -m demo

run: $(VENV)/.runtime ## run the gateway on this machine, with its data in ./.pushgate
	@$(BIN)/pushgate serve --data .pushgate

check: $(VENV)/.dev ## ruff, mypy strict, import directions: half a minute
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# Three tests at a time, even on two cores, because a test mostly waits: for git, for a broker, for a delay.
# Each of the three has a PostgreSQL and a RabbitMQ of its own. PYTEST="-n 0 -s" runs one at a time, with output.
test: $(VENV)/.dev ## run every test; installs RabbitMQ, PostgreSQL, Chromium and other programs from Debian
	@tests/require-programs
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(PYTEST)

picture: $(VENV)/.dev ## take the picture of the dashboard in the README again: docs/dashboard.png
	@tests/require-programs
	@PICTURE=1 $(BIN)/python -m pytest -n 0 tests/dashboard/test_picture.py

# For each Python: a clone, a virtual environment and an ordinary user, below build/matrix.
# MATRIX="3.11.2 3.13" selects versions; PYTEST="tests/cli/test_keys.py" selects tests.
matrix: $(BIN)/python ## run the tests with every supported Python on this machine, each from a fresh clone
	@tests/require-programs
	@$(BIN)/python -m tests.matrix $(PYTEST)

soak: $(VENV)/.dev ## kill the gateway 1,300 times under load, and try thousands of branch histories: half an hour
	@tests/require-programs
	@SOAK_ROUNDS=1000 SOAK_HISTORIES=1000 $(BIN)/python -m pytest tests/system/test_kills.py tests/store/test_moves.py -s $(PYTEST)
	@SOAK_ROUNDS=300 $(BIN)/python -m pytest tests/system/test_kills_of_reports.py -s $(PYTEST)

# MODULE=gateway/intake/body.py selects the module; ARGS is "--sample 40" for some of the mutants, or the tests to run.
mutate: $(VENV)/.mutate ## change one MODULE in many ways, and report changes that its tests miss: up to an hour
	@tests/require-programs
	@$(BIN)/python -m tests.mutation $(MODULE) $(ARGS)

# Runs in a mount namespace of its own, in which any user may mount the small disk that the attack fills.
hostile: $(VENV)/.dev ## attack the gateway while pushes must go on: ten minutes, or HOSTILE_SECONDS=120
	@tests/require-programs
	@space="unshare --user --map-root-user --mount"; [ "$$(id -u)" != 0 ] || space="unshare --mount"; \
	  $$space true 2>/dev/null || space=; $$space $(BIN)/python -m tests.hostile

fuzz: $(VENV)/.dev ## fuzz for ten minutes, guided by coverage, and the API for five; findings are in build/fuzz
	@$(BIN)/python -m tests.fuzz --seconds 600
	@$(BIN)/python -m tests.fuzz.api --seconds 300

# `make bench relay webhook` runs the named benchmarks; without a name, all of them, in under 15 minutes.
ifeq (bench,$(firstword $(MAKECMDGOALS)))
BENCHES := $(wordlist 2,$(words $(MAKECMDGOALS)),$(MAKECMDGOALS))
.PHONY: $(BENCHES)
$(BENCHES): bench
	@:
endif

bench: $(VENV)/.dev ## measure costs relative to a reference operation (bench NAME: one); results are in build/bench.json
	@$(BIN)/python -m bench $(BENCHES)

documents: $(VENV)/.dev ## write what is made from the code in docs/: references, OpenAPI, AsyncAPI, JSON Schemas
	@$(BIN)/python -m testing.documents

# IMAGE=REGISTRY/pushgate:0.1.0 selects the image, here and below, CONTAINERS=podman the program that runs it.
image: $(VENV)/.dev ## prove that an image runs read-only, as any user and without rights: first docker build --tag pushgate .
	@CONTAINERS="$(CONTAINERS)" $(BIN)/python -m tests.image $(IMAGE)

sbom: $(VENV)/.dev ## write the SBOM of an image, in CycloneDX: build/sbom.json
	@mkdir -p build
	@$(CONTAINERS) run --rm --interactive --network none --entrypoint python $(IMAGE) - <docker/inventory.py >build/inventory.json
	@$(BIN)/python -m testing.sbom <build/inventory.json >build/sbom.json

format: $(VENV)/.dev ## fix and format the code with ruff
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

lock: $(VENV)/.dev ## pin the dependencies of pyproject.toml, with hashes
	@$(PIP) install uv
	@for group in build dev mutate; do \
	  $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	    --custom-compile-command "make lock" --python-version 3.11 --upgrade \
	    $$(test $$group = mutate && echo --constraint requirements/dev.txt) \
	    --group $$group --extra otlp pyproject.toml --output-file requirements/$$group.txt; done

clean: ## remove what make created
	@rm -rf $(VENV) .pushgate build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(BIN)/python:
	@./bootstrap "$(PYTHON)" "$(VENV)"

$(VENV)/.runtime: $(BIN)/python requirements/build.txt pyproject.toml
	@echo "Installing the dependencies of Pushgate ..."
	@$(PIP) install --require-hashes --requirement requirements/build.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.txt
	@echo "Installing the dependencies of tests and checks ..."
	@# Most of their modules are never imported: Python compiles those that are.
	@$(PIP) install --no-compile --require-hashes --requirement requirements/dev.txt
	@touch $@

$(VENV)/.mutate: $(VENV)/.dev requirements/mutate.txt
	@$(PIP) install --require-hashes --requirement requirements/mutate.txt
	@touch $@
