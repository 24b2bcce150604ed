# Needed beforehand: make, and Python 3.11 with its venv module and pip. `make` lists the targets.

# python3 where that is 3.11, else python3.11; any other: make PYTHON=/path/to/python3.11
PYTHON ?= $(shell python3 -c 'import sys; print("python3" if sys.version_info[:2] == (3, 11) else "python3.11")' 2>/dev/null || echo python3.11)
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
RUN := .venv/bin/python
PIP := -m pip --disable-pip-version-check
PYTEST := $(RUN) -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint test-slow test-browser test-bazel test-clients test-cluster benchmarks api \
        format protos constraints clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 22

setup: .venv/installed ## make .venv with the pinned requirements

# The stamp is newer than the pins it was made from, so nothing is installed twice.
.venv/installed: requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "tfmacer needs Python 3.11, and '$(PYTHON)' is not: $$($(PYTHON) --version 2>&1 | head -1)." >&2; \
	  echo "Name one: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing the pinned requirements into .venv: TensorFlow is large, this takes minutes."
	@$(RUN) $(PIP) install --quiet -r requirements.txt -r requirements-dev.txt -c constraints.txt
	@touch $@

demo: setup ## train, certify, report, export, serve and ask, on real digits, in minutes
	$(RUN) -m tfmacer.demo

# Two processes share the tests, module by module. ROOM=guarantee, or a path, runs only those tests.
TESTS = $(if $(ROOM),$(or $(wildcard tests/$(ROOM) tests/*/$(ROOM)),$(wildcard $(ROOM)),\
  $(error ROOM=$(ROOM) is neither a package with tests nor a path)))

test: setup ## all tests but those of the five targets below; ROOM=guarantee: of one package
	$(PYTEST) -n 2 --dist=loadscope $(TESTS)

lint: setup ## ruff and strict mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test-slow: setup ## the tests that take minutes
	$(PYTEST) --run=slow -m slow

test-browser: setup ## the tests of pages in a headless Chromium; installs Debian's
	command -v chromium chromedriver >/dev/null || \
	  { $(SUDO) apt-get update && $(SUDO) apt-get install -y chromium chromium-driver; }
	$(PYTEST) --run=browser -m browser

test-bazel: setup ## BUILD, as Bazel reads it; installs Debian's bazel-bootstrap
	command -v bazel >/dev/null || \
	  { $(SUDO) apt-get update && $(SUDO) apt-get install -y --no-install-recommends bazel-bootstrap; }
	$(PYTEST) --run=bazel -m bazel

test-clients: setup .venv-clients/installed .venv-clients-min/installed ## other people's TensorFlow Serving clients, in environments of their own
	$(PYTEST) --run=clients -m clients

test-cluster: setup ## certification and training over hosts of which some are lost; needs root and ip
	$(PYTEST) --run=cluster -m cluster

.venv-clients/installed: Makefile
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python $(PIP) install --quiet ovmsclient==2023.1 \
	  -c requirements.txt -c constraints.txt
	@touch $@

# This client's generated code stops working with protobuf 4 and NumPy 2.
.venv-clients-min/installed: Makefile
	$(PYTHON) -m venv .venv-clients-min
	.venv-clients-min/bin/python $(PIP) install --quiet \
	  min-tfs-client==1.0.2 protobuf==3.20.3 numpy==1.26.4 grpcio==1.85.1
	@touch $@

benchmarks: setup .venv-bench/installed ## draws and training steps, against the bare network and others
	$(RUN) -m benchmarks.throughput --network=lenet --variants=tfmacer,bare,art,torch
	$(RUN) -m benchmarks.throughput --network=resnet20 --turns=3 --variants=tfmacer,bare
	$(RUN) -m benchmarks.training --network=lenet --turns=7 --variants=tfmacer,bare,art,torch
	$(RUN) -m benchmarks.training --network=resnet20 --steps=4 --variants=tfmacer,bare,torch

.venv-bench/installed: benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python $(PIP) install --quiet -r benchmarks/requirements.txt
	@touch $@

API := build/api
# A package brings its modules, but for tfmacer, which names what it offers.
MODULES = tfmacer $(filter-out %__init__ %demo,$(patsubst %.py,%,$(wildcard tfmacer/*.py))) \
  $(patsubst %/__init__.py,%,$(wildcard tfmacer/*/__init__.py)) export serving

api: setup ## the API reference, from the docstrings, into build/api
	TF_CPP_MIN_LOG_LEVEL=3 $(RUN) -m pdoc --math --docformat google --no-show-source \
	  --output-directory $(API) $(subst /,.,$(MODULES)) '!serving.certification_pb2.*' '!tfmacer.wire.serving_pb2.*'

format: setup ## ruff, writing
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

protos: setup ## the Python stubs of every .proto, with types
	@for proto in $$(find tfmacer serving -name '*.proto' | LC_ALL=C sort); do \
	  if grep -q '^service ' $$proto; then grpc="--grpc_python_out=. --mypy_grpc_out=."; else grpc=; fi; \
	  echo $$proto; PATH=".venv/bin:$$PATH" $(RUN) -m grpc_tools.protoc -I. \
	    --python_out=. --mypy_out=. $$grpc $$proto || exit 1; done

# After a pin was changed: what the pinned packages bring along, for the next setup.
constraints: setup ## constraints.txt, from what .venv holds; of both, what the sidecar's image needs
	@$(RUN) $(PIP) list --format=freeze --exclude pip > .venv/freeze
	@{ echo "# What requirements.txt and requirements-dev.txt bring along: \`make constraints\`."; \
	  awk -F '[= ]+' 'function key(name) { gsub(/[-_.]+/, "-", name); return tolower(name) } \
	    FILENAME != ".venv/freeze" { pinned[key($$1)]; next } !(key($$1) in pinned)' \
	    requirements.txt requirements-dev.txt .venv/freeze; } > constraints.txt
	@$(RUN) tests/project/sidecar_requirements.py
	@touch .venv/installed

clean: ## remove what make made, but for runs/
	rm -rf .venv .venv-* build dist .build *.egg-info \
	  .pytest_cache .mypy_cache .ruff_cache .hypothesis bazel-*
	find tfmacer export serving benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
