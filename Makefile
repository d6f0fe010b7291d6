# Ferrule's make targets. `make` alone lists them.
#
# One cargo profile (release) and, wherever it can be, one package selection (--workspace): features unify over what is
# selected, and librdkafka and OpenSSL, which take minutes, are built once only if every command sees the same ones.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help tools build demo test unit e2e check fix audit bench bench-quick bench-wire bench-backlog bench-cluster bench-report faults flash conformance fuzz soak upgrade faults-report cross cross-test footprint peers

E2E := $(sort $(patsubst tests/tests/%.rs,%,$(wildcard tests/tests/*.rs)) $(patsubst tests/tests/%/main.rs,%,$(wildcard tests/tests/*/main.rs)))
# The faults among them.
FAULTS := $(filter blackhole cluster kill9 storm bad_input faults matrix emulated footprint,$(E2E))
# Each test runs several servers, and there may be but two cores.
THREADS ?= 2
DEMO_SECONDS ?=
# What `make cross` builds for.
TARGETS ?= aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf arm-unknown-linux-musleabihf x86_64-unknown-linux-musl
# Each fuzz target runs this long.
FUZZ_SECONDS ?= 300
FUZZ := $(patsubst fuzz/fuzz_targets/%.rs,%,$(sort $(wildcard fuzz/fuzz_targets/*.rs)))

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

# Each with one worker a node, with three, and with three between which everything takes a random time; there without those that are
# about libraries, proxies and packages, to which that makes no difference.
e2e: build ## end-to-end tests with real processes and real servers; E2E=kill9 runs one file
	FERRULE_TEST_WORKERS=1 cargo test --release --workspace $(addprefix --test ,$(E2E)) -- --test-threads=$(THREADS) --show-output
	FERRULE_TEST_WORKERS=3 cargo test --release --workspace $(addprefix --test ,$(E2E)) -- --test-threads=$(THREADS) --show-output
	FERRULE_TEST_WORKERS=3 FERRULE_TEST_WORKER_DELAY=3ms \
		cargo test --release --workspace $(addprefix --test ,$(or $(filter-out browser clients elsewhere emulated footprint manifests package peers proxies,$(E2E)),$(E2E))) -- --test-threads=$(THREADS) --show-output

# Half of the campaigns' nodes have one worker, half three. The page is made of what they write.
faults: build ## the tests with faults at length: 1,000 power cuts, 1,000 kill -9, failing disks, the fault matrix; FERRULE_FAULT_SEEDS=1000, FERRULE_MATRIX_SEEDS=40, FERRULE_CLUSTER_ROUNDS=100; the result goes to tests/results and docs/faults.md
	FERRULE_BACKLOG=$${FERRULE_BACKLOG:-1000000} FERRULE_FAULT_SEEDS=$${FERRULE_FAULT_SEEDS:-1000} \
		FERRULE_MATRIX_SEEDS=$${FERRULE_MATRIX_SEEDS:-40} FERRULE_CLUSTER_ROUNDS=$${FERRULE_CLUSTER_ROUNDS:-100} FERRULE_FAULT_RESULTS="$(CURDIR)/tests/results" \
		cargo test --release --workspace $(addprefix --test ,$(FAULTS)) -- --test-threads=1 --nocapture
	$(MAKE) --no-print-directory faults-report

upgrade: build ## a cluster of an earlier version becomes today's under load, node by node and one of them there and back; FERRULE_OLD_COMMIT=5091705; the result goes to tests/results
	tests/scripts/upgrade.sh

# The temporary folder must be on a disk: what is kept in memory is not written anywhere.
flash: build ## what a gateway writes to its flash for 100,000 messages, over fast and slow links and offline (half an hour); the result goes to tests/results and docs/faults.md
	FERRULE_FLASH_RESULTS="$(CURDIR)/tests/results" cargo test --release --workspace --test flash -- --nocapture
	$(MAKE) --no-print-directory faults-report

cross: ## static ferrule-edge for ARM and x86_64 and its Debian packages into dist/; TARGETS=armv7-unknown-linux-musleabihf builds one
	cross/build.sh $(TARGETS)
	cross/sizes.py $(TARGETS)
	cross/package.sh

cross-test: build ## what `make cross` built, really run: the whole job under qemu, the Debian package in a booted Debian, OpenWrt's script, the container image, memory; root
	tests/servers/install.sh --cross
	FERRULE_CROSS=1 cargo test --release --workspace --test elsewhere --test emulated --test footprint --test package -- --test-threads=1 --nocapture

# The figures are there also where a limit of the test is passed: it fails afterwards.
footprint: build ## file sizes and memory of what `make cross` built, with a backlog of a million (five minutes), into docs/footprint.md
	log=$$(mktemp); rc=0; \
	FERRULE_CROSS=1 FERRULE_BACKLOG=$${FERRULE_BACKLOG:-1000000} cargo test --release --workspace --test footprint -- --test-threads=1 --nocapture \
		2>&1 | tee "$$log" || rc=$$?; \
	cross/footprint.py <"$$log"; rm -f "$$log"; exit $$rc

# Seven hundred crates, so neither `make test` nor `make cross-test` has it; FERRULE_CROSS makes a test that is skipped fail.
peers: build ## the edge beside RMQTT's broker from crates.io, which is built first (half an hour, once)
	tests/servers/install.sh
	tests/servers/rmqttd.sh
	FERRULE_CROSS=1 cargo test --release --workspace --test peers -- --test-threads=$(THREADS) --show-output

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

# No input is longer than 4 KiB, so that no allocation of 64 MiB can have a reason; a unit of 10 s is a hang. The working corpus
# grows in target/, the committed one is only read. The address sanitizer is for the codec, which promises not to allocate; there is no
# unsafe code for it to find, and without it a shard runs three times as often.
fuzz: tools ## fuzzes the codecs and a shard, FUZZ_SECONDS=300 each; FUZZ=shard runs one; needs the nightly toolchain
	@cargo +nightly --version >/dev/null 2>&1 || { echo "no nightly toolchain; type: rustup toolchain install nightly --profile minimal" >&2; exit 1; }
	@command -v cargo-fuzz >/dev/null || cargo +nightly install --locked cargo-fuzz
	@for target in $(FUZZ); do \
		sanitizer=address; [ "$$target" = codec ] || sanitizer=none; \
		mkdir -p target/fuzz-corpus/$$target fuzz/artifacts/$$target; \
		echo "== $$target: $(FUZZ_SECONDS) s"; \
		cargo +nightly fuzz run --sanitizer $$sanitizer $$target target/fuzz-corpus/$$target fuzz/seeds/$$target -- -max_total_time=$(FUZZ_SECONDS) \
			-max_len=4096 -timeout=10 -malloc_limit_mb=64 -rss_limit_mb=2048 -print_final_stats=1 $(FUZZ_ARGS) || { \
			for crash in fuzz/artifacts/$$target/*; do \
				echo "replay: FERRULE_FUZZ_INPUT=$$PWD/$$crash cargo test --release -p ferrule-fuzz --test seeded $$target" >&2; \
			done; exit 1; }; \
	done

# The clients are sockets of the test, and connections of the node: both need as many open files.
soak: build ## clients that come and go, SOAK_SECONDS=600, SOAK_CLIENTS=5000; the result goes to tests/results and docs/faults.md
	ulimit -n 16384; SOAK_SECONDS=$${SOAK_SECONDS:-600} SOAK_CLIENTS=$${SOAK_CLIENTS:-5000} SOAK_RESULTS="$(CURDIR)/tests/results" \
		cargo test --release --workspace --test soak -- --nocapture clients_come_and_go
	$(MAKE) --no-print-directory faults-report

faults-report: tools ## docs/faults.md from tests/results
	FERRULE_WRITE_REPORT=1 cargo test --release --workspace --test soak the_page_of_faults

bench: build ## Ferrule, mosquitto and the floor side by side: every figure and target, on this machine (half an hour)
	target/release/ferrule-bench

bench-quick: build ## the same as a smoke test: every row runs, no figure means anything (two minutes)
	target/release/ferrule-bench run --quick
	target/release/ferrule-bench cluster --quick

bench-wire: build ## bytes and delay of the link to the cloud, beside mosquitto's bridge; root (ten minutes)
	target/release/ferrule-bench wire
	target/release/ferrule-bench wire-report

bench-backlog: build ## a gateway without its cloud, beside bare SQLite, and how fast a backlog leaves (ten minutes)
	target/release/ferrule-bench backlog

bench-cluster: build ## several nodes: CPU a delivery, barrier, routes, link, sessions of a dead node; root, 20,000 open files (ten minutes)
	ulimit -n 20000; target/release/ferrule-bench cluster
	target/release/ferrule-bench report

bench-report: build ## docs/benchmarks.md from the newest result of `make bench`
	target/release/ferrule-bench report

conformance: build ## rule-language cases: make conformance CASES=DIR (a folder beside its run_cases.py)
	@[ -n "$(CASES)" ] || { echo "make conformance CASES=DIR: the folder of the cases" >&2; exit 2; }
	python3 "$(CASES)/../run_cases.py" --bin target/release/ferrule-edge --show 5 "$(CASES)"
