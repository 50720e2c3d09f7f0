# SPDX-License-Identifier: GPL-3.0-or-later
#
# make demo, make test: everything else is a part of those. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

TOP := $(CURDIR)
VENV := $(or $(WFPATCH_VENV),$(TOP)/.venv)
PYTHON := $(VENV)/bin/python
PYTEST := $(PYTHON) -m pytest
export WFPATCH_CACHE ?= /var/cache/wfpatch
export PATH := $(VENV)/bin:$(PATH)
# A test's processes inherit these; what a developer has set for himself is not theirs.
unexport PYTHONPATH PYTHONHOME ANSIBLE_CONFIG

# The order is that of the least surprise: what is quick and names its fault comes first.
# The builder rebuilds packages meanwhile: it has nothing to do with what the others place and start.
TEST_SUITES := @test-builder lint test-gates test-setup test-dkms test-unit test-engine test-floor \
    test-integration test-fleet

.PHONY: help
help: ## Say what the targets do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what is needed: Debian packages, a virtual environment
	@setup/environment

.PHONY: applier
applier: setup ## Pack the applier into one file, dist/wfpatch
	@$(PYTHON) setup/pack_applier.py

.PHONY: collection
collection: applier ## Place this checkout as the collection wfpatch.fleet; print the collections path
	@setup/collection

.PHONY: artifact
artifact: setup ## Build the collection's archive for ansible-galaxy, dist/wfpatch-fleet-VERSION.tar.gz
	@setup/artifact

.PHONY: documents
documents: setup ## The reference of modules, plugins and roles as HTML, .work/documents/index.html
	@setup/documents

.PHONY: demo
demo: collection ## Live-patch redis and memcached on three SSH hosts under load, and judge it
	@demo/run

.PHONY: test
test: ## All suites: gates, unit, builder, engine, integration and fleet tests; one verdict
	@setup/suites $(TEST_SUITES)

.PHONY: test-fresh
test-fresh: setup ## Prove the set-up of demo and test in a new minimal Debian root
	@setup/fresh

.PHONY: lint
lint: setup applier ## Style, types, warnings, licences, documents, sanity: the gates
	@$(PYTHON) setup/lint

.PHONY: test-gates
test-gates: setup ## Each gate sees a planted fault
	@$(PYTEST) tests/gates

.PHONY: test-setup
test-setup: setup ## The archive, the packed applier, the placed collection
	@$(PYTEST) tests/setup

.PHONY: test-dkms
test-dkms: setup ## The kernel service built, signed and removed by Debian's DKMS, in a root
	@$(PYTEST) tests/dkms

.PHONY: test-builder
test-builder: setup ## The builder on small C programs, and on packages rebuilt once per machine
	@timeout --signal KILL 2400 $(PYTEST) tests/builder

.PHONY: test-engine
test-engine: setup applier ## The applier on real ELF files and processes
	@$(PYTEST) tests/engine

.PHONY: test-floor
test-floor: setup ## The applier's tests on the oldest Python and C library that hosts have
	@setup/floor

.PHONY: test-unit
test-unit: setup applier ## The collection's plugins, by ansible-test units of both ansible-cores
	@setup/ansible_test units --local --python 3.11 --color no
	oldest=$$(setup/oldest_controller)
	WFPATCH_VENV=$$oldest setup/ansible_test units --local --python 3.11 --color no

.PHONY: test-newest
test-newest: setup applier ## Units by the newest ansible-core, in a Debian 13 root
	@newest=$$(setup/newest_controller)
	WFPATCH_VENV=$$newest setup/ansible_test units --local --python 3.13 --color no

.PHONY: test-newest-fleet
test-newest-fleet: collection ## Playbooks on SSH hosts by the newest ansible-core
	@export WFPATCH_CONTROLLER=$$(setup/newest_controller)
	$(PYTEST) -m 'slow or not slow' $(addprefix tests/fleet/test_,operation.py installation.py live_progress.py)

.PHONY: test-integration
test-integration: setup applier ## The collection's modules on this machine, by ansible-test integration
	@setup/ansible_test integration --local --python 3.11 --color no

.PHONY: test-fleet
test-fleet: collection ## Playbooks on SSH hosts in namespaces, with real services under load
	@$(PYTEST) tests/compliance tests/fleet $(wildcard tests/apps tests/load)

# Emulated machines on a slow host: no test is begun after so many seconds, and those left are named. 0: all.
export VM_SECONDS ?= 0
VM_PYTEST := $(PYTEST) --durations 10 --begin-within $(VM_SECONDS)

.PHONY: test-vm
test-vm: collection ## The kernel service in virtual machines with Debian 12's kernel
	@setup/virtual_machines
	setup/suites @test-vm-host test-vm-service

# Its two parts side by side: a host that is set up keeps one processor busy.
.PHONY: test-vm-host
test-vm-host:
	@$(VM_PYTEST) tests/vm/test_kernel_service.py

.PHONY: test-vm-service
test-vm-service:
	@$(VM_PYTEST) $(addprefix tests/vm/test_, rig.py selftest.py services.py engine.py)

.PHONY: test-kernels
test-kernels: collection ## The kernel service: built for all kernels, and all its tests on each of them
	@setup/virtual_machines
	kmod/check
	$(PYTEST) -m 'slow or not slow' --timeout 7200 tests/vm --kernels 5.10,6.1,6.12,newest

.PHONY: test-soak
test-soak: collection ## The suites' slow tests: long loops, kills, stress
	@$(PYTEST) -m slow --timeout 3600 tests/engine tests/dkms $(wildcard tests/builder tests/apps tests/load) tests/compliance tests/fleet

.PHONY: bench
bench: collection ## Latency, gaps and costs, quiet and while patching
	@benchmarks/run

.PHONY: bench-fleet
bench-fleet: collection ## What a run costs over 1, 10 and 100 hosts, against a ping
	@benchmarks/fleet

.PHONY: clean
clean: ## Remove what was made in the checkout; the cache stays
	rm -rf -- dist .work .mypy_cache .ruff_cache .pytest_cache tests/output
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0r rm -rf --
