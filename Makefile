# make demo: the whole method on a real model and a real benchmark.  make test: everything CI runs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
OLDEST ?= .venv-oldest
BIN := $(VENV)/bin

# Files that begin with an underscore, or lie in such a folder, are parts of recipes.
RECIPES := $(shell find recipes -name '*.yaml' -not -path '*/_*')

.PHONY: demo test test-fast test-reliability test-oldest audit lint clean

demo: $(VENV)/installed
	$(BIN)/flexora fetch demo
	$(BIN)/flexora run --config recipes/demo.yaml

test: lint
	$(BIN)/flexora fetch demo
	echo $(RECIPES) | xargs -n 33 -P 2 $(BIN)/flexora validate
	$(BIN)/pytest --durations=10

# The tests that need no packaged model.
test-fast: $(VENV)/installed
	$(BIN)/pytest -m "not slow"

# At full size: kills of both phases (make test does 3 of each), random selections, recipes and rows (20), and the
# outer steps over which a search's memory must stay flat (200).
test-reliability: export FLEXORA_KILLS = $(KILLS)
test-reliability: export FLEXORA_EXAMPLES = $(EXAMPLES)
test-reliability: export FLEXORA_SOAK = $(SOAK)
test-reliability: KILLS ?= 25
test-reliability: EXAMPLES ?= 2000
test-reliability: SOAK ?= 2000
test-reliability: $(VENV)/installed
	$(BIN)/pytest tests/reliability --durations=10

# The fast tests with the oldest versions that pyproject.toml allows, in an environment of its own, made anew.
# TORCH says where uv finds torch.
test-oldest: export FLEXORA_OLDEST = 1
test-oldest: TORCH ?= --torch-backend cpu
test-oldest:
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/pip install --disable-pip-version-check -q uv
	$(OLDEST)/bin/uv pip install --python $(OLDEST)/bin/python --resolution lowest-direct $(TORCH) -e '.[dev]'
	$(OLDEST)/bin/pytest -m "not slow"

# Known vulnerabilities of the tested versions. It asks an advisory service, so it is no part of make test.
# --strict: a version that the service does not know is an error; without it, it passes as sound.
audit: $(VENV)/installed
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt pip-audit
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip || \
		{ echo "make audit: versions in constraints.txt are vulnerable or could not be checked; see above" >&2; exit 1; }

lint: $(VENV)/installed
	$(BIN)/ruff check flexora tests
	$(BIN)/ruff format --check flexora tests
	$(BIN)/mypy

# Both files decide what is installed; the mark is made last, so that a broken install is done again.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("flexora needs Python 3.11 or newer: make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build dist
