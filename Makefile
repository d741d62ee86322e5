# Needs only python3 >= 3.11 with venv, and make. Everything is installed into .venv from the project's own files.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find tickerplant feeds subscribers config -type f -not -path '*/__pycache__/*' 2>/dev/null)
ARGS ?=
# Processes that the tests are divided among, whole files to each; 0: all in one. Many tests wait most of the time.
JOBS ?= 3

.PHONY: help install demo test coverage lint types bench soak network fuzz seeds million storebench querybench deadbench questdb clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## install the package and its tools into .venv

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.dependencies: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt '.[daemon,dev]'
	@touch $@

# The package itself is installed as a wheel, not editable, so that tests see what users get.
$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES) README.md LICENSE
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall .
	@touch $@

demo: $(VENV)/.installed ## simulated exchange, plant and live view; ARGS='--for 10s' prints a summary instead
	@$(BIN)/tickerplant demo $(ARGS)

test: $(VENV)/.installed ## run the tests against the installed package; ARGS goes to pytest, JOBS=0 is one process
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

coverage: $(VENV)/.installed ## which lines of the installed package tests reach in their own process; ARGS='tests/core' for some
	$(BIN)/coverage erase
	$(BIN)/coverage run $(BIN)/pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(VENV)/.installed types ## ruff (format and rules), import contracts, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(VENV)/.installed ## mypy, strict
	$(BIN)/mypy

bench: $(VENV)/.installed ## messages per second and latency percentiles beside a reference of the same run
	@$(BIN)/tickerplant bench $(ARGS)

soak: $(VENV)/.installed ## ten minutes of simulated flow with every fault; ARGS='--for 30s' is the short run
	@$(BIN)/python tests/soak/soak.py $(ARGS)

network: $(VENV)/.installed ## two hosts and every kind of bad network between them, five rounds of two minutes; needs root
	@$(BIN)/python tests/network/network.py $(ARGS)

fuzz: $(VENV)/.installed ## a million frames, datagrams and requests each of garbage
	@$(BIN)/python tests/fuzz/fuzz.py $(ARGS)

storebench: $(VENV)/.installed ## rows a second into a real QuestDB, and the time from datagram to queryable row
	@$(BIN)/python -m tickerplant.bench.store_rate $(ARGS)

querybench: $(VENV)/.installed ## how long questions to a real QuestDB with twelve million rows take
	@$(BIN)/python -m tickerplant.bench.query_times $(ARGS)

deadbench: $(VENV)/.installed ## the plant's latency while the store's database answers, is dead, and hangs
	@$(BIN)/python -m tickerplant.bench.dead_database $(ARGS)

million: $(VENV)/.installed ## a million messages into a real QuestDB, then compared; ARGS="--server-kills 3 --store-kills 2"
	@$(BIN)/python tests/store/million.py $(ARGS)

questdb: $(VENV)/.installed ## a QuestDB server of one's own, fetched with Maven; Ctrl-C ends it
	@$(BIN)/python -m tickerplant.store.local_server

seeds: $(VENV)/.installed ## the subscriber on hundreds of bad networks, on a virtual clock; a failure names its seed
	@$(BIN)/pytest tests/subscriber/test_seeded_network.py --seeds 200 $(ARGS)

clean: ## remove what make made
	rm -rf $(VENV) .questdb build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
