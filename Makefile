# The two commands of the README. Everything else is a nox session: `.venv/bin/nox -l`.
.DEFAULT_GOAL := help
.PHONY: help demo test slurm-up slurm-down clean

PYTHON ?= python3
ARGS ?=
NOX := .venv/bin/nox
UV_PIN := $(shell sed -n 's/.*"\(uv==[^"]*\)".*/\1/p' pyproject.toml)

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1 - \2/p' Makefile

demo: $(NOX) ## train on real digits; make demo ARGS="optimizer.lr=3e-4" changes a key
	@$(NOX) -s demo -- $(ARGS)

test: $(NOX) ## run every check that CI runs; ARGS are passed to nox
	@$(NOX) $(ARGS)

slurm-up: ## start a Slurm cluster in containers, to play with
	@$(PYTHON) tests-integration/slurm/cluster.py up

slurm-down: ## take it down
	@$(PYTHON) tests-integration/slurm/cluster.py down

clean: ## remove what the checks made, but no experiment
	rm -rf .venv .nox .ci/log .mypy_cache .pytest_cache .ruff_cache .hypothesis

# pip brings only uv, which checks the hashes of the rest against the lock.
$(NOX): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet "$(UV_PIN)"
	.venv/bin/uv pip install --quiet --python .venv --constraints requirements.lock --group nox
	@touch $@
