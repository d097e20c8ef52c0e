# Two commands do all set-up: `make demo` and `make test`. The work is in `sam2-backend`; this file only makes the environment.
PYTHON ?= python3
# On Linux without a GPU, PyPI's plain torch brings gigabytes of CUDA; a CPU build can be named here.
TORCH ?= torch==2.13.0
BIN := .venv/bin
SOURCES := backend sam2_backend tests benchmarks checkpoints

.PHONY: demo up doctor test whole parts check audit unit acceptance chaos eval-demo clean

demo: .venv/run.stamp ## Redis, a worker, the web tier and a real Label Studio with a connected project
	@exec $(BIN)/sam2-backend demo

up: .venv/run.stamp ## the same without Label Studio
	@exec $(BIN)/sam2-backend up

doctor: .venv/run.stamp
	@$(BIN)/sam2-backend doctor

test: check audit .venv/dev.stamp ## everything that CI runs; both halves mostly wait, so they run at a time
	@$(MAKE) --no-print-directory --jobs=2 whole parts

whole: .venv/dev.stamp
	$(BIN)/pytest -q tests/acceptance tests/chaos

parts: .venv/dev.stamp
	$(BIN)/pytest -q tests --ignore=tests/acceptance --ignore=tests/chaos

check: .venv/dev.stamp
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: .venv/dev.stamp ## advisories against the versions that the tests and the containers run with
	$(BIN)/python tests/audit.py

unit: .venv/dev.stamp
	$(BIN)/pytest -q tests/unit tests/docs

acceptance: .venv/dev.stamp ## the real Label Studio in a real browser; screenshots in tests/acceptance/screenshots
	$(BIN)/pytest -q tests/acceptance

chaos: .venv/dev.stamp ## every fault several times, under 200 clicks and 50 background jobs each (a quarter of an hour; `make test` has the short form)
	CHAOS=full $(BIN)/pytest -q tests/chaos

# Where checkpoints/train_demo cached its raw material; where it did not, the command says how.
WORK ?= .tmp/train-demo
eval-demo: .venv/dev.stamp ## the held-out figures of the checkpoint that ships, with fixed seeds (five minutes of one core)
	$(BIN)/python -m checkpoints.train_demo.report --work "$(WORK)"

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, not " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip

.venv/run.stamp: .venv/bin/python pyproject.toml
	@echo "installing torch and the rest (a few minutes the first time)"
	$(BIN)/pip install --progress-bar on -q "$(TORCH)"
	$(BIN)/pip install --progress-bar on -q -e ".[all]"
	@touch $@

.venv/dev.stamp: .venv/run.stamp tests/constraints.txt
	$(BIN)/pip install -q -c tests/constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info
