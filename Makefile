# Everything builds .venv itself: `make demo` and `make test` are all that a fresh machine needs.
PYTHON ?= python3
BIN := .venv/bin
# torch stands in the one pip command with everything else, pinned: a range that admits a newer one takes
# several GB of CUDA packages.
EXTRAS := torch,export,server,images,dev
# Half of the tests wait for processes, so three files are run at a time; tests/conftest.py says which.
WORKERS ?= -n 3 --dist loadfile

# What devices run on: one environment each, that holds its extra of this checkout and nothing else.
RUNTIMES := torch onnx tflite

# What is compiled where it is imported is kept: tests start hundreds of interpreters.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install runtimes demo test test-long check format bench clean

install: .venv/installed

# Compiled where it is imported: most of torch never is, and that is half of an installation's time.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

runtimes: $(RUNTIMES:%=.runtimes/%/installed)

# Not compiled ahead either, as above.
.runtimes/%/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .runtimes/$*
	.runtimes/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[$*]'
	touch $@

demo: install
	$(BIN)/trellis demo $(DEMO)

# Each worker calculates on one thread: together they have the processors, and threads that wait would spin.
test test-long: export OMP_NUM_THREADS = 1

test: install runtimes
	$(BIN)/python -m pytest -m 'not long' $(WORKERS) $(TESTS)

test-long: install runtimes
	$(BIN)/python -m pytest -m long $(WORKERS) $(TESTS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python benchmarks/front.py
	$(BIN)/python benchmarks/round_overhead.py --rounds 5
	$(BIN)/python benchmarks/footprint.py
	$(BIN)/python benchmarks/recovery.py --repeats 3
	$(BIN)/python benchmarks/hierarchy.py --devices 10,50 --rounds 5
	$(BIN)/python benchmarks/runtimes.py --repeats 1
	$(BIN)/python benchmarks/quantization.py

clean:
	rm -rf .venv .runtimes build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
