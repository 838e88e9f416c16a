# SPDX-License-Identifier: Apache-2.0
# Targets for developers and CI. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup assets envd kernel template build quickstart test test-long test-second test-parts test-programs test-assets check lab bench bench-lab leak-check openapi requirements fmt fmt-check lint deny check-aarch64 sqlx clean

CARGO ?= cargo
GUEST_TARGET := x86_64-unknown-linux-gnu
ENVD := target/$(GUEST_TARGET)/guest/envd
SHARE := share/wrenn
DEV := WRENN_BIN=$(CURDIR)/target/debug/wrenn WRENN_SHARE_DIR=$(CURDIR)/$(SHARE)

help: ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: ## Install what is needed on Debian 12 (packages by apt), and Firecracker for tests
	@scripts/setup
	@[ "$$(uname -m)" != x86_64 ] || lab/get-firecracker

envd: setup
	@echo "guest agent: building"
	@$(CARGO) build --locked -p wrenn-envd --profile guest --target $(GUEST_TARGET) \
	  --config 'target.$(GUEST_TARGET).rustflags=["-C","target-feature=+crt-static","-C","link-arg=-fuse-ld=lld"]'

kernel: setup
	@images/build-kernel $(SHARE)

template: setup
	@images/build-template minimal $(SHARE)/images

assets: envd kernel template ## Build guest kernel, initial RAM disk and the minimal template into share/wrenn
	@images/build-initrd $(ENVD) $(SHARE)

build: assets ## Build bin/wrenn (release)
	@echo "wrenn: building"
	@$(CARGO) build --locked -p wrenn-cli --release
	@install -D -m 0755 target/release/wrenn bin/wrenn

quickstart: build ## Build all, start Wrenn, run the demo
	@scripts/quickstart

# The same packages and features for everything compiled for tests: others would compile dependencies again.
TESTED := --workspace --features wrenn-cli/fault-points

test-programs: setup
	@$(CARGO) build --locked $(TESTED) --bins --tests --examples

# Each uses one CPU at most, so they run in parallel with the compilation.
test-assets: assets
	@scripts/api-check install
	@scripts/deny
	@lab/build

# Compiles and installs everything first. The tests then run in namespaces without an uplink, so that no packet of a test or
# a guest can leave the machine.
test: test-parts ## Unit, integration and end-to-end tests with real guests (docs/testing.md)
	@target/debug/xtask test

# What the recipes in images/ install, for guests that have no internet.
SHIPPED := build-essential jupyter-server nodejs npm python3-dev python3-ipykernel python3-matplotlib python3-numpy \
	python3-pandas python3-pip python3-venv

test-long: test-parts ## The same with more rounds, sandboxes and requests, and the shipped templates: an hour more
	@scripts/debian-mirror target/debian-mirror $(SHIPPED)
	@target/debug/xtask test --long
	@$(MAKE) --no-print-directory test-second

test-second: test-programs ## The control plane's tests with a second server on the same database, which is killed amid each
	@scripts/isolated env WRENN_STATE_SECOND=1 $(CARGO) test --locked $(TESTED) --test state

test-parts: setup
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=line test-programs test-assets

check: fmt-check lint ## Format, Clippy and unit tests: quick, and no guests
	@$(CARGO) test --locked $(TESTED) --lib --bins --quiet

# Test suites of the drivers. `make test` also runs the end-to-end cases, which take twice as long.
lab: assets ## The drivers' tests that need KVM and device-mapper, in a virtual host that has them (docs/lab.md)
	@lab/build
	@$(CARGO) build --locked $(TESTED) --bins --tests --examples
	@scripts/isolated target/debug/xtask lab test conformance

bench: build ## Measure against the same work by hand; prints tables, writes target/bench.json and -lab.json
	@$(CARGO) build --locked -p wrenn-bench --release
	@scripts/isolated env WRENN_BIN=$(CURDIR)/bin/wrenn WRENN_SHARE_DIR=$(CURDIR)/$(SHARE) \
	  target/release/wrenn-bench
	@$(MAKE) --no-print-directory bench-lab

# Benchmarks that need KVM for Linux guests, and device-mapper.
bench-lab: assets
	@lab/build
	@$(CARGO) build --locked --package xtask
	@$(CARGO) build --locked -p wrenn-bench --release
	@set -o pipefail; scripts/isolated $(CARGO) xtask lab run --name bench --minutes 40 \
	  --file target/release/wrenn-bench=/usr/local/bin/wrenn-bench -- \
	  env BENCH_JSON=- wrenn-bench lab | sed '/^lab: /d' > target/bench-lab.json

leak-check: ## After `wrenn down`: list what was not cleaned up; fails while Wrenn runs
	@bin/wrenn leak-check

openapi: ## Refresh openapi.yaml after a change of the API
	@$(CARGO) run --locked --quiet -p wrenn-cli -- openapi > openapi.yaml

requirements: ## Refresh the pinned Python packages after a change of scripts/api-check.d/requirements.in
	@scripts/api-check requirements

fmt: ## Format the code
	@$(CARGO) fmt --all

fmt-check: ## Check that the code is formatted
	@$(CARGO) fmt --all --check

lint: ## Clippy, warnings are errors
	@$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

deny: ## Check licences and sources of dependencies; advisories too with ADVISORIES=1, which needs GitHub
	@scripts/deny

check-aarch64: setup ## Check that everything compiles for aarch64
	@scripts/check-aarch64

sqlx: setup ## Refresh .sqlx/ after a change of SQL
	@crates/control/prepare-sqlx

clean: ## Remove what was built
	@$(CARGO) clean
	@rm -rf bin share
