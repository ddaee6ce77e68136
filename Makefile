# The verbs of the project. `make help` lists them; needed are Python 3.11+, make and git, nothing else.
# Kept to GNU make 3.81 and a POSIX shell, which is what macOS ships.

.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV := .venv

# What a target does depends on the variables documented in `make help` alone: settings that lie about in the
# environment stay outside. DF_TEST_* are the tests' own knobs.
unexport $(filter-out DF_TEST_%,$(filter DF_% AWS_%,$(.VARIABLES)))
IGNORED := $(strip $(sort $(filter-out DF_TEST_%,$(filter DF_%,$(.VARIABLES)))) $(wildcard .env))
ifneq ($(IGNORED),)
$(warning make ignores $(IGNORED): `$(VENV)/bin/dreamforge up` is what takes settings)
endif
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV

# $(value …) keeps a `$` in a prompt as it was typed; the recipes read these as shell variables, so that quotes
# survive too.
override PROMPT := $(value PROMPT)
override COUNT := $(value COUNT)
override SCALE := $(value SCALE)
override SIZE := $(value SIZE)
override PORT := $(value PORT)
override BASE := $(value BASE)
override STEPS := $(value STEPS)
export PROMPT COUNT SCALE SIZE PORT BASE STEPS

export PIP_DISABLE_PIP_VERSION_CHECK := 1

PY := $(VENV)/bin/python
# Twice the cores of a small machine: half of a test's time is waiting for other processes. A file stays in one process,
# since its tests share services; the long ones come first, as they lie.
PARALLEL := -n 4 --dist loadfile --no-loadscope-reorder
EAGER := tests/http tests/flow/test_m5_*.py
NEWEST := tests
SOURCES := api artifacts dreamforge eventstore model_registry orchestrator projections runners scripts tests

.PHONY: help install demo up up-fake test test-chaos test-images test-gan test-eager test-pooled test-newest test-pythons test-openai bench bench-quick bench-snapshot bench-rebuild bench-images chaos contract fuzz lock openapi e2e-m4 lint fmt type layers check mutants fixes simulate clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  make demo PROMPT=\"a knight's castle\" COUNT=4 SCALE=2|4 SIZE=512|640x384"
	@echo "  make up PORT=8001"
	@echo "  make e2e-m4 BASE=http://127.0.0.1:8001"
	@echo "  make simulate STEPS=10000000"
	@echo "  make install PYTHON=python3.12"
	@echo "  make test-pythons PYTHONS=\"3.12 3.13\""
	@echo "  make test-newest NEWEST=tests/unit"
	@echo "  make test ARGS=\"-k 'chain or seeds' -x\""

install: $(VENV)/.installed ## Create .venv and install the service into it
	@echo "Installed: $(VENV)/bin/dreamforge --help"

demo: $(VENV)/.installed ## Run one chained job on an embedded stack and show what comes out (in demo-output/)
	@$(PY) -m dreamforge.demo --prompt="$$PROMPT" --count="$$COUNT" --scale="$$SCALE" --size="$$SIZE"

up: up-fake ## Start everything on this machine; the same as up-fake as long as no engine has a model

up-fake: $(VENV)/.installed ## Start database, object store, API and workers, which paint with the fake engine
	@DF_FAKE_RUNNER=1 $(PY) -m dreamforge --no-env-file up --port="$$PORT"

test: $(VENV)/.installed-dev ## Run the tests, but for those that kill, freeze and crowd
	@$(PY) -m pytest $(PARALLEL) --ignore=tests/chaos $(ARGS)

test-chaos: $(VENV)/.installed-dev ## Run the tests that kill, freeze and crowd processes
	@$(PY) -m pytest tests/chaos $(PARALLEL) $(ARGS)

test-images: .venv-images/.ready ## Run the tests with torch and diffusers, in an environment of their own (gigabytes; TORCH=torch==2.14.0)
	@OMP_NUM_THREADS=1 .venv-images/bin/python -m pytest tests/images $(ARGS)

test-gan: .venv-gan/.ready ## Run the tests with spandrel and torchvision, likewise
	@OMP_NUM_THREADS=1 .venv-gan/bin/python -m pytest tests/gan $(ARGS)

test-eager: $(VENV)/.installed-dev ## Run the HTTP suite once more on one process that answers a job when it has ended
	@DF_CELERY_EAGER=true DF_FAKE_RUNNER=1 $(PY) -m pytest $(EAGER) $(PARALLEL) \
		--ignore=tests/http/test_schemathesis.py --ignore=tests/http/test_browser.py $(ARGS)

test-pooled: $(VENV)/.installed-dev ## Run the store and HTTP suites through PgBouncer in transaction mode, without LISTEN
	@DF_TEST_POOLER=pgbouncer DF_TEST_LISTEN=off $(PY) -m pytest tests/store tests/http $(PARALLEL) \
		--ignore=tests/http/test_schemathesis.py --ignore=tests/http/test_browser.py $(ARGS)

test-newest: .venv-newest/.ready ## Run the tests with the newest versions that pyproject.toml admits, in an environment of their own
	@.venv-newest/bin/python -m pytest $(PARALLEL) $(NEWEST) $(ARGS)

test-pythons: $(VENV)/.installed-dev ## Run the unit tests on each of Python 3.11, 3.12 and 3.13 that is installed
	@MAKE="$(MAKE)" scripts/pythons.sh $(VENV) $(ARGS)

test-openai: .venv-openai/.ready ## Run the tests of /openai/v1 with the oldest supported version of the openai package
	@DF_TEST_OPENAI_PYTHON=$(CURDIR)/.venv-openai/bin/python $(PY) -m pytest tests/http/test_openai.py $(ARGS)

bench: .venv-bench/.ready ## Compare with PgQueuer, Procrastinate, DBOS, Celery, bare HTTP and SSE, in turns (about three hours; ARGS="--output FILE")
	@.venv-bench/bin/python -m tests.bench $(ARGS)

bench-quick: .venv-bench/.ready ## The same with fewer jobs and rounds (under five minutes)
	@.venv-bench/bin/python -m tests.bench --quick $(ARGS)

bench-snapshot: $(VENV)/.installed ## Hold an old snapshot for half an hour, and compare the rates with and without (MINUTES=30)
	@$(PY) scripts/held_snapshot.py --minutes="$${MINUTES:-30}"

bench-rebuild: $(VENV)/.installed-dev ## Rebuild a million events' read model while more arrive, and check it (minutes; EVENTS=1000000)
	@$(PY) scripts/rebuild_live.py --events="$${EVENTS:-1000000}"

bench-images: .venv-images/.ready ## Compare images a second through the service with a bare loop's (ARGS="--model sdxl --side 1024")
	@PYTHONPATH=. .venv-images/bin/python scripts/images_rate.py $(ARGS)

chaos: $(VENV)/.installed-dev ## Break everything in turn and at once under thousands of jobs, judge (hours; JOBS=2000 ONLY= RESTART=1)
	@$(PY) scripts/chaos.py --jobs="$${JOBS:-2000}" --only="$$ONLY" $${RESTART:+--restart}

contract: $(VENV)/.installed-dev ## Hold the API against its OpenAPI document, with 200 examples an operation (minutes)
	@DF_TEST_EXAMPLES=200 $(PY) -m pytest --timeout=0 tests/http/test_schemathesis.py $(ARGS)

fuzz: $(VENV)/.installed-dev ## Send the API 20,000 malformed and hostile requests
	@DF_TEST_HOSTILE=20000 $(PY) -m pytest -s --timeout=0 tests/http/test_hostile.py $(ARGS)

lock: $(VENV)/.installed-dev ## Write the hashed requirement files from pyproject.toml (UPGRADE=1: the newest versions)
	@$(PY) scripts/lock.py --uv=$(VENV)/bin/uv $${UPGRADE:+--upgrade}

openapi: $(VENV)/.installed-dev ## Write docs/openapi/openapi.v1.json from the code; a test keeps the two equal
	@$(PY) -m api.openapi > docs/openapi/openapi.v1.json

e2e-m4: $(VENV)/.installed ## Validate from outside a stack that is started for it, or the service at BASE
	@$(PY) scripts/e2e.py --base="$$BASE"

lint: $(VENV)/.installed-dev ## Check style and formatting
	@$(PY) -m ruff check $(SOURCES)
	@$(PY) -m ruff format --check $(SOURCES)

fmt: $(VENV)/.installed-dev ## Format the code and repair what can be repaired
	@$(PY) -m ruff check --fix-only $(SOURCES)
	@$(PY) -m ruff format $(SOURCES)

type: $(VENV)/.installed-dev ## Check the types
	@$(PY) -m mypy
	@$(PY) -m mypy scripts

layers: $(VENV)/.installed-dev ## Check who imports whom
	@$(VENV)/bin/lint-imports --no-logo

mutants: $(VENV)/.installed-dev ## Break each invariant on purpose, and see the test that protects it fail (minutes)
	@$(PY) scripts/mutants.py $(ARGS)

fixes: $(VENV)/.installed-dev ## Take back each fix of a reported fault, and see the test that came with it fail (long; ARGS=04)
	@$(PY) scripts/fixes.py $(ARGS)

simulate: $(VENV)/.installed-dev ## Simulate a million steps of the protocol under faults, or STEPS (a minute)
	@$(PY) -m tests.simulation --steps="$${STEPS:-1000000}"

check: lint type layers ## Everything that can be checked without running the code

clean: ## Remove all that make made (.dreamforge, your data, stays)
	@rm -rf $(VENV) .venv-* .demo demo-output build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment of the interpreter PYTHON; else by uv where there is one, else of the first Python on the PATH
# that is new enough.
$(PY):
	@rm -rf $(VENV)
	@if [ -n "$$PYTHON" ]; then exec "$$PYTHON" -m venv $(VENV); fi; \
	if command -v uv >/dev/null 2>&1; then \
		uv venv --quiet --seed --python '>=3.11' $(VENV); exit; \
	fi; \
	for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
		if ! "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
			echo "$$python cannot create virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; \
		fi; \
		"$$python" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; \
		exit 0; \
	done; \
	echo "No Python 3.11 or newer found on the PATH. Install one (https://www.python.org/downloads/), or uv." >&2; exit 1

# The hashed files name everything, so that nothing is resolved; the project comes last, built by the backend among them.
$(VENV)/.installed: LOCK := default
$(VENV)/.installed-dev: LOCK := dev
$(VENV)/.installed $(VENV)/.installed-dev: $(PY) pyproject.toml requirements/default.txt requirements/dev.txt
	@echo "Installing requirements/$(LOCK).txt and dream-forge into $(VENV) …"
	@if command -v uv >/dev/null 2>&1; then \
		install() { uv pip install --quiet --python $(PY) --no-deps "$$@"; }; \
	else \
		install() { $(PY) -m pip install --quiet --no-deps "$$@"; }; \
	fi; \
	install --require-hashes -r requirements/$(LOCK).txt && install --no-build-isolation -e .
	@touch $(VENV)/.installed $@

# Into environments beside the first, by the uv that is locked with the tests.
BESIDE = $(VENV)/bin/uv pip install --quiet --python $(@D)/bin/python

# torch first, by its pin: what it is, the rest would leave to the newest, which brings CUDA along where there is no GPU.
# And by pip, which knows of the wheels that lie on a machine.
.venv-images/.ready: pyproject.toml requirements/diffusers.txt requirements/torch.txt | $(VENV)/.installed-dev
	@echo "Installing torch, requirements/dev.txt, requirements/diffusers.txt and dream-forge into $(@D) …"
	@$(MAKE) --no-print-directory VENV=$(@D) $(@D)/bin/python
	@$(@D)/bin/python -m pip install --quiet "$${TORCH:-$$(grep '^torch==' requirements/torch.txt)}"
	@$(BESIDE) --no-deps --require-hashes -r requirements/dev.txt -r requirements/diffusers.txt
	@$(BESIDE) --no-deps --no-build-isolation -e .
	@touch $@

.venv-gan/.ready: pyproject.toml requirements/gan.txt requirements/torch.txt | $(VENV)/.installed-dev
	@echo "Installing torch, torchvision, requirements/dev.txt, requirements/gan.txt and dream-forge into $(@D) …"
	@$(MAKE) --no-print-directory VENV=$(@D) $(@D)/bin/python
	@$(BESIDE) -r requirements/torch.txt
	@$(BESIDE) --no-deps --require-hashes -r requirements/dev.txt -r requirements/gan.txt
	@$(BESIDE) --no-deps --no-build-isolation -e .
	@touch $@

.venv-bench/.ready: pyproject.toml requirements/default.txt tests/bench/requirements.txt | $(VENV)/.installed-dev
	@echo "Installing requirements/default.txt, tests/bench/requirements.txt and dream-forge into $(@D) …"
	@[ -x $(@D)/bin/python ] || $(MAKE) --no-print-directory VENV=$(@D) $(@D)/bin/python
	@$(BESIDE) --no-deps --require-hashes -r requirements/default.txt
	@$(BESIDE) -r tests/bench/requirements.txt
	@$(BESIDE) --no-deps --no-build-isolation -e .
	@touch $@

# The oldest version of the package that streams images.
.venv-openai/.ready: | $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory VENV=$(@D) $(@D)/bin/python
	@$(BESIDE) 'openai==1.97.0'
	@touch $@

# What the newest versions are changes by the day: they are looked up each time.
.PHONY: .venv-newest/.ready
.venv-newest/.ready: | $(VENV)/.installed-dev
	@echo "Installing dream-forge[dev] with the newest versions of everything into $(@D) …"
	@[ -x $(@D)/bin/python ] || $(MAKE) --no-print-directory VENV=$(@D) $(@D)/bin/python
	@$(BESIDE) --upgrade -e '.[dev]'
