# Every habit is a target; plain `make` lists them.
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.ready
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup demo up down logs status token test chaos check format migrate migration bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Lyceum needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing what uv.lock names into .venv ..."
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check "uv>=0.9"
	@$(PY) -m uv sync --frozen --quiet --inexact
	@touch $(STAMP)

setup: $(STAMP)  ## make .venv with everything that is locked

demo: $(STAMP)  ## the whole story on real content [content=PATH]
	@$(PY) -m deploy.demo $(if $(content),--content "$(content)")

up: $(STAMP)  ## start everything in the background
	@$(PY) -m deploy up

down: $(STAMP)  ## stop what up started; data is kept
	@$(PY) -m deploy down

logs: $(STAMP)  ## follow the logs [name=web]
	@$(PY) -m deploy logs $(name)

status: $(STAMP)  ## each process: pid, memory, readiness
	@$(PY) -m deploy status

token: $(STAMP)  ## print a token: user=ada [staff=1] [superuser=1] [email=...]
	@$(PY) -m deploy token --user "$(user)" $(if $(staff),--staff) $(if $(superuser),--superuser) $(if $(email),--email "$(email)")

test: $(STAMP)  ## all tests [args="-k outbox"]
	@$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(args)

chaos: $(STAMP)  ## a longer chaos run
	@CHAOS_TASKS=10000 CHAOS_KILLS=24 CHAOS_SECONDS=120 $(PY) -m pytest -q -s --timeout 600 tests/dispatcher/test_chaos.py

check: $(STAMP)  ## format, lint, types, import rules, migrations
	@.venv/bin/ruff format --check --quiet . && .venv/bin/ruff check --quiet .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@$(PY) -m deploy.proxy --check
	@$(PY) -m shared.migrations check

format: $(STAMP)  ## format and fix what can be fixed
	@.venv/bin/ruff check --fix --quiet . ; .venv/bin/ruff format --quiet .

migrate: $(STAMP)  ## bring the running databases to the newest schema
	@$(PY) -m deploy migrate

migration: $(STAMP)  ## write a migration: s=libraries m="add tags"
	@$(PY) -m shared.migrations make "$(s)" "$(m)"

bench: $(STAMP)  ## measure ourselves [peers=1] [name=dispatcher] [args="--tasks 5000"]
	@$(if $(peers),$(PY) -m uv sync --frozen --quiet --inexact --group peers)
	@$(PY) -m benchmarks$(if $(name),.$(name)) $(args)

clean:  ## stop everything, remove data and caches
	@test ! -x $(PY) || $(PY) -m deploy clean
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
