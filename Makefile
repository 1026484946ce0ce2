# All there is to do with a checkout; `make` alone lists it. Each command does its own set-up (scripts/).
#
#   PYTHON=python3.12     use that Python (3.11 or newer) instead of the newest one found
#   SYSTEM_PACKAGES=no    never install packages of the system; otherwise root does, and says so
#   PYTEST_ARGS="-k sasl" more options for pytest

PYTHON ?=
SYSTEM_PACKAGES ?=
PYTEST_ARGS ?=
export PYTHON SYSTEM_PACKAGES

BIN = .venv/bin
COVERED = kdbus_core/names.py,kdbus_core/matches.py,kdbus_core/bloom_index.py,kdbus_core/policy.py,$\
          kdbus_core/quota.py,kdbus_core/pool.py,kdbus_core/replies.py
PYTEST = $(BIN)/python -m pytest -n auto --dist worksteal

.DEFAULT_GOAL = help
.PHONY: help run test split lint cover soak deep fuzz bench clean

help: ## list these commands
	@sed -n -e '/^[a-z]*:.*## /{' -e 's/:.*## /          /' -e 's/^\(.\{8\}\) */  make \1/p' -e '}' Makefile

run: ## start a private bus, let real clients talk on it; with a terminal, leave a shell on it
	@scripts/set-up.sh run
	@$(BIN)/busproxy run --native -- $(BIN)/python scripts/try_bus.py

test: lint ## lint, then run all tests on the real clients they need
	@$(BIN)/python scripts/client_programs.py
	$(PYTEST) $(PYTEST_ARGS) </dev/null

lint: ## check style, types and layers
	@scripts/set-up.sh test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

cover: ## measure which branches of the broker its tests take; names, matches, policy, quota, pool, replies: all
	@scripts/set-up.sh test
	$(PYTEST) --cov=kdbus_core --cov-branch --cov-report=term-missing:skip-covered tests/unit/kdbus_core tests/kdbus \
		$(PYTEST_ARGS) </dev/null
	$(BIN)/python -m coverage report --fail-under=100 --include='$(COVERED)'

split: ## the tests with real clients, on the proxy in front of a broker of its own
	@scripts/set-up.sh test
	@$(BIN)/python scripts/client_programs.py
	BUSPROXY_TEST_CORE=1 $(PYTEST) tests/clients $(PYTEST_ARGS) </dev/null

soak: ## two hundred clients at once for a minute
	@scripts/set-up.sh test
	@$(BIN)/python scripts/client_programs.py
	BUSPROXY_SOAK=1 $(BIN)/python -m pytest tests/clients/test_many_clients.py $(PYTEST_ARGS) </dev/null

deep: ## let the broker's state machines and random commands run for half an hour
	@scripts/set-up.sh test
	BUSPROXY_EXPLORE=1 KDBUS_MACHINE_EXAMPLES=4000 KDBUS_FUZZ_EXAMPLES=4000 $(BIN)/python -m pytest --timeout 3600 \
		tests/property/test_kdbus_machine.py tests/property/test_handle_fuzz.py $(PYTEST_ARGS) </dev/null

fuzz: ## feed the wire codec, the handshake and the broker's commands with broken input
	@scripts/set-up.sh fuzz
	$(BIN)/python -m tests.fuzz.fuzz_wire
	$(BIN)/python -m tests.fuzz.fuzz_handle
	$(BIN)/python -m tests.fuzz.fuzz_remarshal
	$(BIN)/python -m tests.fuzz.fuzz_native

bench: ## measure the installed buses side by side, and the broker alone, in about a minute
	@scripts/set-up.sh run
	$(BIN)/python -m bench --quick
	$(BIN)/python -m bench.broker --quick

clean: ## remove the environment and everything that was made
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
