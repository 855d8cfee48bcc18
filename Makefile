# Two commands are enough on a fresh machine: make demo, make test. The rest is for those who change the code.
#   make test ARGS="-k embedded -x -n 0"      make demo ARGS=--serve      make PYTHON=/usr/bin/python3.12 test

.DEFAULT_GOAL := help
.PHONY: help demo docs-cli test test-browser test-chaos test-django6 test-pgbouncer test-failover test-model test-sick check format bench bench-soak bench-ui bench-pinned bench-peers chaos lock docs-screenshots vendor clean

ARGS ?=
PYTHON ?=
SECONDS ?=
SEED ?=
TRIALS ?= 3
BIN := .venv/bin
STAMP := .venv/installed
CODE := $(wildcard pgworkflows pytest_pgworkflows.py tests examples bench)
MIGRATIONS := $(wildcard migrations/*.sql)

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | \
		while IFS='|' read -r name what; do printf '%-20s %s\n' "$$name" "$$what"; done

demo: $(STAMP) ## run the sign-up example end to end (ARGS=--serve keeps it up for a browser)
	@$(BIN)/python -m examples.signup $(ARGS)

test: $(STAMP) ## run the test suite on an embedded PostgreSQL, or on PGWORKFLOWS_TEST_URL
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadfile $(ARGS)

test-model: $(STAMP) ## check a thousand random histories against the model of statuses, and more of the replay's (three quarters of an hour)
	@MODEL_EXAMPLES=$${MODEL_EXAMPLES:-1000} $(BIN)/python -m pytest tests/test_model.py tests/test_replay_model.py --timeout 0 $(ARGS)

test-sick: $(STAMP) ## run the tests that take longest: a server that panics, one that never answers (needs root)
	@$(BIN)/python -m pytest -m sick $(ARGS)

test-chaos: $(STAMP) ## a short storm, broken engines that it has to notice, interrupted demos (two minutes; the long form: make chaos)
	@$(BIN)/python -m pytest -m chaos $(ARGS)

test-browser: $(STAMP) ## look at pages in a real Chromium (Debian's package chromium); screenshots/ has what they looked like
	@$(BIN)/python -m pytest -m browser --numprocesses 2 --dist loadfile --timeout 300 $(ARGS)

test-django6: ## run the Django tests on Django 6 (the first Python from 3.12 on that is found, or PYTHON=)
	@scripts/django6 "$(PYTHON)" $(ARGS)

test-pgbouncer: $(STAMP) ## run the test suite through PgBouncer in transaction mode (Debian's package pgbouncer)
	@PATH="$$PATH:/usr/sbin" command -v pgbouncer >/dev/null || \
		{ echo "pgbouncer is not installed: on Debian, apt-get install pgbouncer" >&2; exit 1; }
	@PGWORKFLOWS_TEST_POOLER=pgbouncer $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

test-failover: $(STAMP) ## kill a primary under load and go on with its synchronous standby (TRIALS=3)
	@TRIALS=$(TRIALS) $(BIN)/python -m pytest tests/failover.py --timeout 600 $(ARGS)

check: $(STAMP) ## format, lint, types and migrations, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict $(CODE)
	$(BIN)/pyright $(CODE)
	$(if $(MIGRATIONS),$(BIN)/squawk $(MIGRATIONS),@echo "no migrations yet")

format: $(STAMP) ## put the code in shape, mending what ruff can mend
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(STAMP) ## measure speed in under three minutes (ARGS="backlog waiting" for the heavy scenarios)
	@$(BIN)/python -m bench $(ARGS)

bench-soak: $(STAMP) ## measure a worker's memory over 100,000 runs
	@$(BIN)/python -m bench soak $(ARGS)

bench-ui: $(STAMP) ## measure the dashboard's pages over a million runs (five minutes; ARGS="--size 100000")
	@$(BIN)/python -m bench ui $(ARGS)

bench-pinned: $(STAMP) ## measure claims while another session keeps a snapshot for ten minutes (SECONDS=600)
	@$(BIN)/python -m bench pinned --size $(or $(SECONDS),600) $(ARGS)

bench-peers: $(STAMP) ## measure the same work through other systems too (five minutes; ARGS=--quick: one)
	@$(BIN)/python -m bench.peers $(ARGS)

chaos: $(STAMP) ## break everything for five minutes, and prove that nothing was lost or done twice (SECONDS=300 SEED=7)
	@$(BIN)/python -m tests.chaos --seconds $(or $(SECONDS),300) $(if $(SEED),--seed $(SEED)) $(ARGS)

docs-cli: $(STAMP) ## run the sessions of docs/cli.md again, and write the help of every command there (ARGS=--reference: only that)
	@$(BIN)/python scripts/docs_cli.py $(ARGS)

lock: ## pin the newest allowed development dependencies in requirements-dev.lock
	@scripts/lock "$(or $(PYTHON),python3)"

docs-screenshots: $(STAMP) ## draw the pictures of docs/dashboard.md again (needs Chromium)
	@$(BIN)/python tests/screenshots.py

vendor: ## fetch the dashboard's styles and scripts of others again, through npm, and compare their hashes
	@scripts/vendor

clean: ## remove the environment, caches and builds (never a data directory)
	rm -rf .venv .venv-django6 .venv-peers bench/peers/node_modules build dist screenshots .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml requirements-dev.lock scripts/environment
	@PYTHON="$(PYTHON)" scripts/environment
	@touch $@
