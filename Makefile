# make lab ARGS='--fail drain --seconds 60'     options go through ARGS
# make sim SEED=17                              one seed again

.DEFAULT_GOAL := help
.PHONY: help setup lab test test-deep bench check sim docs format

PYTHON_VENV := .venv/bin/python

help:
	@echo "make setup       .venv with everything, and what this machine can do"
	@echo "make lab         a cluster on this machine; its firewall is killed, its connections live  [ARGS=...]"
	@echo "make test        what has to hold for a change (20 minutes)"
	@echo "make test-deep   the same questions, asked for hours"
	@echo "make bench       how fast it is here  [ARGS=...]"
	@echo "make check       format, lint, types, direction of imports"
	@echo "make sim         the simulated cluster  [SEED=n] [ARGS=...]"
	@echo "make docs        write the generated pages of docs/ again"

setup:
	@sh scripts/setup.sh

lab: setup
	@$(PYTHON_VENV) -m everwall warm
	@$(PYTHON_VENV) -m everwall lab $(ARGS)

test:
	@sh scripts/test.sh

test-deep: setup
	@sh scripts/test_deep.sh

bench: setup
	@$(PYTHON_VENV) -m everwall warm
	@$(PYTHON_VENV) -m bench $(ARGS)

sim: setup
	@$(PYTHON_VENV) -m everwall warm
	@$(PYTHON_VENV) -m everwall.sim $(if $(SEED),--seed $(SEED)) $(ARGS)

check: setup
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@$(PYTHON_VENV) -m pytest -q tests/test_imports.py tests/test_tidy.py

docs: setup
	@$(PYTHON_VENV) scripts/write_docs.py

format: setup
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .
