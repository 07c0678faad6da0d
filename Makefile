# Every command of the project; each does what it needs first. `make` alone lists them.
SHELL := /bin/bash
PYTHON := .venv/bin/python
# test files that run at once: they wait more than they compute
JOBS ?= 3
.DEFAULT_GOAL := help
.PHONY: help setup run test lint audit demo bench lock

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile

setup: ## install everything that a gateway needs (CELLBLOCK_PREFIX=/srv/cellblock for the kernels)
	@scripts/setup

run: ## set up and start a gateway (HOST=127.0.0.1 PORT=8888 STATE=directory)
	@scripts/run

test: ## set up and run all tests (ARGS="-k name" for pytest, JOBS=3)
	@scripts/setup --test
	@$(PYTHON) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: ## set up and check style, types, layers and spelling
	@scripts/setup --lint
	.venv/bin/ruff check gateway tests scripts benchmarks
	.venv/bin/ruff format --check gateway tests scripts benchmarks
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/codespell

audit: ## look for secrets in tracked files and known vulnerabilities of what is locked
	@scripts/setup --lint
	@$(PYTHON) scripts/audit.py

demo: ## run the example notebooks through a gateway of their own
	@scripts/demo

bench: ## measure against the incumbents, 30 minutes (QUICK=1 for 3; ONLY="trips output", PUBLISH=1)
	@scripts/setup
	@$(PYTHON) benchmarks/environments.py
	@.venv-bench/client/bin/python -m benchmarks $(if $(QUICK),--quick) $(if $(DISTURBED),--disturbed) \
		$(if $(PUBLISH),--publish) $(if $(SEED),--seed $(SEED)) $(if $(NAME),--name $(NAME)) \
		$(foreach name,$(ONLY),--only $(name))

lock: ## pin all requirements afresh, by pip's resolver
	@scripts/setup
	@$(PYTHON) scripts/lock.py
