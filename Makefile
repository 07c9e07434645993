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
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

# The pages' generator advertises its successor otherwise.
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test check fast docs dist browser clean

demo: $(READY)
	$(BIN)/mha2gqa demo demo

test: $(READY) browser
	$(MAKE) check

check: $(READY) docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

fast: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m pytest $(FAST)

# A link that leads nowhere fails; not with --quiet, which hides warnings from the count of --strict, too.
docs: $(READY)
	$(BIN)/mkdocs build

dist: $(READY)
	$(BIN)/hatchling build

browser:
	@{ command -v chromium && command -v chromedriver; } >/dev/null || { $(SUDO) apt-get update -qq && \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium chromium-driver; }

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo dist site
