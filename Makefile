# The targets of this repository; `make` alone lists them.

.DEFAULT_GOAL := help
# One target after the other, even with -j.
.NOTPARALLEL:
.PHONY: help demo test lint unit unit-sid lint-ansible unit-ansible test-collection test-corefetch test-ansible molecule test-fleet test-hostile test-socket test-vm test-arm scale bench fuzz mutants picture venv packages clean

# The first Python that can build .venv. Not `:=`, because the target packages may install one.
PYTHON = $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	command -v "$$python" && break; done)
# Another directory with another PYTHON gives another ansible-core: see tests/ansible.sh.
VENV = .venv
BIN := $(CURDIR)/$(VENV)/bin
# The engine, the kernel's settings and the rollout need root. Programs that run as root write no bytecode into the clone.
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo) env PATH="$(BIN):$(PATH)" PYTHONDONTWRITEBYTECODE=1
# Many tests wait most of the time: with two for each processor a run takes half as long.
WORKERS = $(shell echo $$((2 * $$(nproc))))
SHELL_SCRIPTS = $(wildcard .ci/run container_scripts/*.sh tests/*.sh tests/*/*.sh tools/*.sh)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

demo: packages venv .cache/corefetch/complete ## roll out to this machine, crash a container, have corefetch name the function, and undo everything
	@$(AS_ROOT) python -u tools/demo.py

# The virtual machine takes one processor. Nothing runs beside the attacks, which have deadlines, nor beside the unit tests.
test: packages lint unit test-corefetch ## run every test: lint, unit, test-corefetch, test-collection, molecule, test-fleet, test-hostile, test-vm
	@tools/packages.sh vm
	@# A password is asked for before two of them run at once.
	@$(AS_ROOT) true
	@$(BIN)/python -u tests/beside.py $(MAKE) --no-print-directory test-vm -- \
		$(MAKE) --no-print-directory test-collection molecule test-fleet
	@$(MAKE) --no-print-directory test-hostile
	@printf '\nmake test: lint, unit, test-corefetch, test-collection, molecule, test-fleet, test-hostile and test-vm passed. kernel.core_pattern is now: '
	@cat /proc/sys/kernel/core_pattern

lint: venv lint-ansible ## ruff, mypy, shellcheck, yamllint, ansible-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	shellcheck $(SHELL_SCRIPTS)
	$(BIN)/yamllint --strict .

unit: venv .cache/azurite/complete ## the tests that need no root; those of the helper on three of the Pythons 3.8 to 3.14 found, with ALL=1 on each
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal --ignore tests/unit/helper tests/unit tests/fuzz
	tests/unit.sh $(if $(ALL),all)

unit-sid: ## the unit tests that need no engine on Debian sid's Python 3.14 and ansible-core, about a minute
	@$(AS_ROOT) tests/sid.sh

test-collection: venv ## build the collection, install it into an empty folder, roll out from there and by ansible-pull
	@$(AS_ROOT) python -m pytest tests/collection

test-corefetch: packages .cache/corefetch/complete .cache/azurite/complete ## corefetch: mypy, and its tests with an S3 server and debuginfod, about 2 minutes
	cd corefetch && $(CURDIR)/.cache/corefetch/bin/mypy
	cd corefetch && $(CURDIR)/.cache/corefetch/bin/python -m pytest --numprocesses auto

picture: packages .cache/corefetch/complete ## make docs/corefetch.svg anew, of what corefetch says of a real crash
	.cache/corefetch/bin/python corefetch/picture.py

test-ansible: packages ## lint-ansible, unit-ansible, test-collection and molecule with the oldest and the newest ansible-core
	@tests/ansible.sh

lint-ansible: venv
	PATH="$(BIN):$$PATH" ansible-lint --offline --strict --profile production

unit-ansible: venv
	$(BIN)/python -m pytest tests/unit --ignore tests/unit/helper --ignore tests/unit/uploader

# ARGS is an action of molecule, and what it takes: make molecule ARGS=converge.
molecule: venv .cache/corefetch/complete ## the helper on this machine, with real crashes in Docker containers; ARGS=converge for one action alone
	@$(AS_ROOT) tests/molecule.sh $(if $(ARGS),default $(ARGS))

# These two set the kernel's core pattern, so they run one after the other.
FLEET_CRASHES = tests/fleet/test_canary.py tests/fleet/test_collect.py
test-fleet: packages venv ## rollout, gate and rollback with simulated hosts, which of them were touched, and the canary with real crashes
	@$(AS_ROOT) python -m pytest -v --numprocesses auto --dist worksteal $(FLEET_CRASHES:%=--ignore %) tests/fleet
	@$(AS_ROOT) python -m pytest -v $(FLEET_CRASHES)

test-hostile: packages venv ## every attack of tests/hostile, with real containers on this machine
	@$(AS_ROOT) python -u tests/hostile/run.py

# As long as test-hostile and the tests of molecule together. A few crashes come through the socket in `make test`, too.
test-socket: packages venv ## the tests of tests/crash and tests/hostile with the core-dump socket of Linux 6.17 as the door
	@$(AS_ROOT) CORE_LAB_DOOR=socket python -u tests/hostile/run.py tests/crash tests/hostile

test-vm: venv ## a virtual machine as the host: systemd, AppArmor, three engines, reboots; ALL=1 for all and a fleet
	@tools/packages.sh vm
	@$(AS_ROOT) $(if $(ARGS),VM_MACHINE=$(or $(VM),trixie) tests/molecule.sh vm $(ARGS),python -u tests/vm/run.py $(if $(ALL),all,$(VM)))

test-arm: venv ## crashes of 64 and 32 bits, and unit tests that make system calls, on an emulated 64-bit ARM machine
	@tools/packages.sh arm
	@$(AS_ROOT) python -u tests/arm/run.py

# Few crashes say little: what they say is not published.
BENCH_RESULTS = $(if $(QUICK),.cache/bench/quick,docs/bench)
bench: packages venv .cache/bench/complete ## measure what a crash costs, beside handlers that do the least; QUICK=1 for a few crashes, VM=trixie for systemd-coredump
	@$(if $(VM),tools/packages.sh vm)
	@$(AS_ROOT) python -u tests/bench/$(if $(VM),machine.py $(VM),run.py $(if $(QUICK),--quick)) $(BENCH_RESULTS)
	@.cache/bench/bin/python tests/bench/plots.py $(BENCH_RESULTS)
	$(if $(QUICK)$(VM),,@$(AS_ROOT) python -u tests/bench/upload.py)

scale: venv ## measure the controller's time for each host and task, for 100 and 1,000 simulated hosts
	@$(BIN)/python -u tests/fleet/scale.py

FUZZ_SECONDS ?= 60
fuzz: .cache/fuzz/complete ## fuzz the code that reads what others write, for FUZZ_SECONDS (60)
	.cache/fuzz/bin/python tests/fuzz/fuzz.py --seconds $(FUZZ_SECONDS)

MUTANTS_SECONDS ?= 900
MUTANTS_SEED ?= 1
mutants: .cache/mutants/complete ## test the helper's unit tests: change the helper in one place after the other, for MUTANTS_SECONDS (900)
	.cache/mutants/bin/python -B tests/mutants/run.py --seconds $(MUTANTS_SECONDS) --seed $(MUTANTS_SEED) $(MUTANTS)

# Tools that make test does not need have environments of their own, and so has corefetch, which is no tool of this project.
.cache/bench/complete: tests/bench/requirements.txt
.cache/fuzz/complete: tests/fuzz/requirements.txt
.cache/mutants/complete: tests/mutants/requirements.txt
.cache/corefetch/complete: corefetch/requirements.txt
.cache/bench/complete .cache/fuzz/complete .cache/mutants/complete .cache/corefetch/complete: .cache/%/complete:
	rm -rf .cache/$*
	$(PYTHON) -m venv .cache/$*
	.cache/$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	@touch $@

# The emulator of Azure is a program of Node.js. Where npm is not there, or cannot fetch it, the tests with it are skipped.
.cache/azurite/complete: tests/azurite/package.json tests/azurite/package-lock.json
	@rm -rf .cache/azurite
	@mkdir -p .cache/azurite && cp $^ .cache/azurite/
	@if npm ci --prefix .cache/azurite --ignore-scripts --no-audit --no-fund --loglevel=error; then touch $@; else \
		echo 'npm cannot install the emulator of Azure: the tests with it are skipped'; fi

venv: $(VENV)/complete ## build .venv, which holds all tools, pinned and hashed

$(VENV)/complete: requirements.txt
	@[ -n "$(PYTHON)" ] || { \
		echo 'make venv: found no Python 3.11 or newer with its venv module: install python3-venv' >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.txt
	@touch $@

packages:
	@tools/packages.sh

clean: ## remove what the other targets wrote into this clone
	rm -rf .venv .cache .ansible .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
