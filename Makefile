# Ferrule's make targets. `make` alone lists them.
#
# One cargo profile (release) and, wherever it can be, one package selection (--workspace): features unify over what is
# selected, and librdkafka and OpenSSL, which take minutes, are built once only if every command sees the same ones.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help tools build demo test unit e2e check fix audit bench bench-quick bench-report faults conformance

E2E := $(patsubst tests/tests/%.rs,%,$(sort $(wildcard tests/tests/*.rs)))
# The faults among them.
FAULTS := $(filter blackhole kill9 storm bad_input,$(E2E))
# Each test runs several servers, and there may be but two cores.
THREADS ?= 2
DEMO_SECONDS ?=

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

tools:
	@missing=; \
	command -v cargo >/dev/null || missing+=$$'\n  cargo (Rust): https://rustup.rs, or: apt-get install -y rustup && rustup default stable'; \
	command -v cc >/dev/null && command -v c++ >/dev/null || missing+=$$'\n  cc, c++: sudo apt-get install -y build-essential'; \
	command -v perl >/dev/null || missing+=$$'\n  perl (OpenSSL is built with it): sudo apt-get install -y perl'; \
	[ -z "$$missing" ] || { echo "These are missing; type what follows each:$$missing" >&2; exit 1; }

build: tools ## ferrule-edge, ferrule-cloud and the demo into target/release
	cargo build --release --workspace --bins

demo: build ## builds and runs the demo; DEMO_SECONDS=30 ends it after that
	DEMO_SECONDS="$(DEMO_SECONDS)" target/release/ferrule-demo

test: tools ## the gate: servers, format, lints, docs, licences, unit tests, end-to-end tests; changes nothing
	tests/servers/install.sh
	$(MAKE) --no-print-directory check
	$(MAKE) --no-print-directory unit
	$(MAKE) --no-print-directory e2e

check: tools ## format, lints, documentation; licences and sources when cargo-deny is installed
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --release --workspace --no-deps
	@if command -v cargo-deny >/dev/null; then $(MAKE) --no-print-directory deny; \
	else echo "licences and sources not checked: no cargo-deny here (make audit installs it)"; fi

unit: tools ## unit and crate tests
	cargo test --release --workspace --exclude ferrule-tests

e2e: build ## end-to-end tests with real processes and real servers; E2E=kill9 runs one file
	cargo test --release --workspace $(addprefix --test ,$(E2E)) -- --test-threads=$(THREADS) --show-output

faults: build ## of the end-to-end tests, those with faults: kill -9, blackhole, storm, bad input
	cargo test --release --workspace $(addprefix --test ,$(FAULTS)) -- --test-threads=1 --nocapture

fix: tools ## formats, and applies what clippy can mend by itself
	cargo clippy --release --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

.PHONY: deny
deny:
	cargo deny --workspace --all-features check bans licenses sources

audit: tools ## licences, sources, bans, and known vulnerabilities where their database can be reached
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	$(MAKE) --no-print-directory deny
	@if cargo deny --workspace --all-features fetch db >/dev/null 2>&1; \
	then cargo deny --workspace --all-features check --disable-fetch advisories; \
	else echo "advisories skipped: their database cannot be reached from here"; fi

bench: build ## Ferrule, mosquitto and the floor side by side: every figure and target, on this machine (half an hour)
	target/release/ferrule-bench

bench-quick: build ## the same as a smoke test: every row runs, no figure means anything (two minutes)
	target/release/ferrule-bench run --quick

bench-report: build ## docs/benchmarks.md from the newest result of `make bench`
	target/release/ferrule-bench report

conformance: build ## rule-language cases: make conformance CASES=DIR (a folder beside its run_cases.py)
	@[ -n "$(CASES)" ] || { echo "make conformance CASES=DIR: the folder of the cases" >&2; exit 2; }
	python3 "$(CASES)/../run_cases.py" --bin target/release/ferrule-edge --show 5 "$(CASES)"
