# Stead: what a person types. Each target is a thin call of a script, which can be read and run by itself.
#
# One build profile (dev, with dependencies optimised) serves the demo, the tests and the lints, so that nothing
# is compiled twice; `make release` is for packages and benchmarks. CARGO_TARGET_DIR is honoured.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help deps build release deb demo demo-failover test check test-e2e test-matrix test-clients test-console bench figures soak search clean

help: ## this list
	@echo 'Stead: a highly available virtualization cluster. Targets:'
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'CONTRIBUTING.md says more.'

deps: ## list the programs that are missing and offer to install them (YES=1 asks nothing)
	@scripts/versions.sh
	@scripts/deps.sh all

build: ## build the console and all programs
	@scripts/versions.sh
	@scripts/build.sh

release: ## build optimised programs, for packages and benchmarks
	@scripts/versions.sh
	@scripts/build.sh --release

deb: release ## the Debian package, from optimised programs
	@scripts/deb.sh

demo: ## three nodes with a running VM on this machine; Ctrl-C ends it
	@scripts/demo.sh demo

demo-failover: ## migrate a VM, power off the node under it, see it recovered; prints measured times
	@scripts/demo.sh demo-failover

test: ## every tier below, one after the other
	@scripts/versions.sh
	@scripts/test.sh check e2e matrix clients console

check: ## lints, unit, property and simulation tests (3 minutes warm)
	@scripts/versions.sh
	@scripts/test.sh check

test-e2e: ## real clusters, real guests, real faults (20 minutes)
	@scripts/versions.sh
	@scripts/test.sh e2e

test-matrix: ## moves, cut off at each step by each fault (25 minutes); STEAD_MATRIX=live,*/*/target-off for some
	@scripts/versions.sh
	@scripts/test.sh matrix

test-clients: ## unmodified Proxmox VE clients against a real cluster (4 minutes)
	@scripts/versions.sh
	@scripts/test.sh clients

test-console: ## the console in Chromium against a real cluster (4 minutes)
	@scripts/versions.sh
	@scripts/test.sh console

bench: ## measure fail-over, moves, snapshots, clones, start and memory; writes nothing but its report
	@scripts/versions.sh
	@scripts/long.sh bench

figures: ## measure the published distributions, for hours; ONLY=power_loss_fast for one of them
	@scripts/versions.sh
	@scripts/long.sh figures

soak: ## faults on a real cluster, over and over, for MINUTES=30, drawn from SEED=7
	@scripts/versions.sh
	@scripts/long.sh soak

search: ## the simulator's fault search over SEEDS=100000
	@scripts/versions.sh
	@scripts/long.sh search

clean: ## remove what was built here, not the guest cache
	cargo clean
	rm -rf web/dist web/node_modules
