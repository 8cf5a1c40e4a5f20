# Everything a developer or CI runs. `make` alone tells what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo run check test matrix soak hostile fuzz mutate bench format lock clean

help: ## what there is
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/.runtime ## the main job once, on this machine, told step by step
	@$(BIN)/python -m demo

run: $(VENV)/.runtime ## start the gateway on this machine, with its data in ./.pushgate
	@$(BIN)/pushgate serve --data .pushgate

check: $(VENV)/.dev ## ruff, mypy strict, import directions: seconds
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

# Three at a time, also on two cores: mostly a test waits, for git, a broker, a time that the gateway leaves.
# Each of the three has a PostgreSQL and a RabbitMQ of its own. PYTEST="-n 0 -s" is one at a time, and talks.
test: $(VENV)/.dev ## every test; installs RabbitMQ from Debian when it is missing
	@tests/require-programs
	@$(BIN)/python -m pytest --numprocesses 3 --dist worksteal $(PYTEST)

# A clone, a virtual environment and an ordinary user for each, below build/matrix.
# MATRIX="3.11.2 3.13" chooses; PYTEST="tests/cli/test_keys.py" runs less.
matrix: $(BIN)/python ## the tests with every supported Python on this machine, from a fresh clone
	@tests/require-programs
	@$(BIN)/python -m tests.matrix $(PYTEST)

soak: $(VENV)/.dev ## a thousand kills under load, and thousands of branch histories: half an hour
	@tests/require-programs
	@SOAK_ROUNDS=1000 SOAK_HISTORIES=1000 $(BIN)/python -m pytest tests/system/test_kills.py tests/store/test_moves.py -s $(PYTEST)

# MODULE=gateway/intake/body.py; ARGS="--sample 40" for some of the mutants, or the tests that are to find them.
mutate: $(VENV)/.mutate ## change one MODULE in many ways, and see that its tests notice: up to an hour
	@tests/require-programs
	@$(BIN)/python -m tests.mutation $(MODULE) $(ARGS)

# In a file system namespace of its own, in which anybody may mount the small disk that is to be full.
hostile: $(VENV)/.dev ## attacks beside pushes that must go on: ten minutes, or HOSTILE_SECONDS=120
	@tests/require-programs
	@space="unshare --user --map-root-user --mount"; [ "$$(id -u)" != 0 ] || space="unshare --mount"; \
	  $$space true 2>/dev/null || space=; $$space $(BIN)/python -m tests.hostile

fuzz: $(VENV)/.dev ## ten minutes of coverage-guided fuzzing: findings are in build/fuzz
	@$(BIN)/python -m tests.fuzz --seconds 600

bench: $(VENV)/.dev ## what it costs, as ratios: build/bench.json
	@$(BIN)/python -m bench

format: $(VENV)/.dev ## let ruff write the layout
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

lock: $(VENV)/.dev ## pin what pyproject.toml asks for, with hashes
	@$(PIP) install uv
	@for group in build dev mutate; do \
	  $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	    --custom-compile-command "make lock" --python-version 3.11 --upgrade \
	    $$(test $$group = mutate && echo --constraint requirements/dev.txt) \
	    --group $$group pyproject.toml --output-file requirements/$$group.txt; done

clean: ## remove what make made
	@rm -rf $(VENV) .pushgate build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(BIN)/python:
	@./bootstrap "$(PYTHON)" "$(VENV)"

$(VENV)/.runtime: $(BIN)/python requirements/build.txt pyproject.toml
	@echo "Installing what Pushgate runs on ..."
	@$(PIP) install --require-hashes --requirement requirements/build.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.txt
	@echo "Installing what the tests and checks need ..."
	@$(PIP) install --require-hashes --requirement requirements/dev.txt
	@touch $@

$(VENV)/.mutate: $(VENV)/.dev requirements/mutate.txt
	@$(PIP) install --require-hashes --requirement requirements/mutate.txt
	@touch $@
