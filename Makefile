PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count())")

.PHONY: bench test quality chaos throughput lint clean

# The main job: every method on the default tasks, a leaderboard here and in results/runs/default.
bench: $(STAMP)
	$(BIN)/python -m bench.run --jobs $(JOBS)

# Lint, types and the fast tests. One thread a process: as many processes as cores are at work.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The slow tests: the bars that every method must reach, every cell of the papers' suites at full
# budget, faults of every kind.
quality: $(STAMP)
	BENCH_FULL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m slow

# A sweep of 60 cells whose workers and runner are killed, and whose disk fills up.
chaos: $(STAMP)
	$(BIN)/python -m tests.chaos --cells 60 --kills 5

# 200 small cells in one process, in two workers and through dask: ratios and overheads.
throughput: $(STAMP)
	$(BIN)/python -m tests.throughput --cells 200

# A new environment only when pyproject.toml is newer than the last one.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
