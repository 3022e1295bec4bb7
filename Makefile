# Cairn: what a developer, a user of the lab and CI call. `make help` lists the targets.

CARGO      ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
CAIRN      := $(TARGET_DIR)/debug/cairn
# Tools that the checks need and that no distribution has, outside of the checkout.
TOOLS      ?= $(HOME)/.cache/cairn-tools
# A newer Debian with other BGP daemons to measure ours against.
PEERS      ?= $(HOME)/.cache/cairn-peers
LAB_ARGS   ?=
BENCH_ARGS ?=
IMAGE      ?= cairn:dev
FUZZ_SECS  ?= 14400
SEEDS      ?= 20000
FIRST      ?= 0
FUZZ_JOBS  ?= $(shell nproc)

export PATH := $(TOOLS)/bin:$(PATH):/usr/sbin:/sbin

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
# One Cargo at a time: two would only wait for each other's lock.
.NOTPARALLEL:

.PHONY: help build lab lab-deps test check fmt clippy doc core deny typos shellcheck generated render \
        e2e e2e-deps sim bench bench-bgp bench-bgp-instr bench-cni bench-failures bench-ipam bench-kernel bench-reflector crds fuzz image tools test-deps clean

help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

build: ## Builds cairn and the CNI plugin (the profile of the lab and of every test)
	$(CARGO) build --locked -p cairn-agent --bin cairn
# Static: the plugin runs on nodes with whatever C library, or none.
	$(CARGO) rustc --locked -p cairn-cni --bin cairn-cni -- -C target-feature=+crt-static

lab: build lab-deps ## Builds, then runs a small data centre on this machine (root; LAB_ARGS="--keep")
	$(CAIRN) lab $(LAB_ARGS)

lab-deps: ## Installs what the lab's agents need and this machine lacks, if it can
	scripts/install-lab-deps.sh

# More than there are cores, by one on two: most of a test's time is waiting for timers.
TEST_THREADS ?= $(shell echo $$(( $$(nproc) * 3 / 2 )))

# The tests start the two binaries, so these are built first, and the plugin again after them:
# `cargo test` links a dynamic one to the same place.
test: test-deps build ## Every test, then the lab in its forms (root)
	RUST_TEST_THREADS=$(TEST_THREADS) $(CARGO) test --locked --workspace
	$(MAKE) --no-print-directory build
	$(CAIRN) lab --check --asn rack
	$(CAIRN) lab --check --asn single --nodes 5
	$(CAIRN) lab --check --encap vxlan
	$(CAIRN) lab --check --encap vxlan-cross-subnet

test-deps: ## Installs what the tests need and this machine lacks: an API server, a kernel for a VM, other daemons
	scripts/install-test-deps.sh $(TOOLS)
	scripts/build-kube.sh
	scripts/build-vm.sh

e2e: e2e-deps build ## Cairn on a Kubernetes cluster of three nodes on this machine (root)
	$(CARGO) test --locked -p cairn-tests --test e2e -- --ignored --nocapture

e2e-deps: ## Installs what that needs and this machine lacks: containerd, Kubernetes built from source
	scripts/install-e2e-deps.sh $(TOOLS)
	scripts/build-kube.sh --e2e

check: tools fmt clippy doc core deny typos shellcheck generated render bench-bgp-instr ## What CI checks besides tests
	@echo "make check: everything passed"

tools: ## Installs what the checks need and this machine lacks
	scripts/install-check-tools.sh $(TOOLS)

fmt: ## Formatting
	$(CARGO) fmt --all -- --check

# The fuzzer is a workspace of its own, which only has to go on compiling.
clippy: ## Lints, warnings denied
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --manifest-path fuzz/Cargo.toml -- -D warnings

doc: ## The code's documentation, warnings denied
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --workspace

core: ## The cores of BGP and BFD build without sockets, clock and tasks
	$(CARGO) build --locked -p cairn-bgp --no-default-features
	$(CARGO) build --locked -p cairn-bfd --no-default-features

# Without advisories: see deny.toml.
deny: ## Licences, duplicates and sources of dependencies
	cargo-deny --locked check bans licenses sources

typos: ## Spelling
	typos --config typos.toml .

shellcheck: ## Shell scripts
	shellcheck --shell=bash .ci/run scripts/*.sh tests/e2e/*.sh

generated: build ## Generated files are what the code generates
	CAIRN=$(CAIRN) scripts/generate.sh --check

render: ## The manifests render
	scripts/render-manifests.sh

crds: build ## Writes the generated files anew: manifests/crds and docs/reference/objects.md
	CAIRN=$(CAIRN) scripts/generate.sh

bench: ## The measurements, in one table of ratios (root; BENCH_ARGS="--only wire -o json")
	$(CARGO) run --locked --release -p cairn-bench -- $(BENCH_ARGS)

bench-bgp: ## Our speaker beside other daemons on the same load (root; BENCH_ARGS="--only 1x1M --runs 5")
	scripts/install-bench-deps.sh
	scripts/install-bench-peers.sh $(PEERS)
	$(CARGO) build --locked --release -p cairn-agent --bin cairn -p cairn-bench --bin cairn-bench
	$(TARGET_DIR)/release/cairn-bench bgp --newer $(PEERS)/root $(BENCH_ARGS)

bench-bgp-instr: ## Counts instructions of BGP's core beside the record (CAIRN_BLESS=1 writes it; BENCH_ARGS="rib-announce")
	$(CARGO) bench --locked -p cairn-bgp --no-default-features --profile instructions --bench instructions -- $(BENCH_ARGS)

bench-reflector: ## A route reflector with 1,000 clients, beside BIRD 2 (root; BENCH_ARGS="--runs 5")
	scripts/install-bench-deps.sh
	$(CARGO) build --locked --release -p cairn-agent --bin cairn -p cairn-bench --bin cairn-bench
	$(TARGET_DIR)/release/cairn-bench reflector $(BENCH_ARGS)

bench-cni: ## Pods that start and end, beside other plugins (root; BENCH_ARGS="--pods 100 --runs 5")
	scripts/install-bench-deps.sh
	$(CARGO) build --locked --release -p cairn-agent --bin cairn -p cairn-bench --bin cairn-bench
	$(CARGO) rustc --locked --release -p cairn-cni --bin cairn-cni -- -C target-feature=+crt-static
	$(TARGET_DIR)/release/cairn-bench cni $(BENCH_ARGS)

bench-failures: ## Dead paths, and sessions on an overloaded machine (root; BENCH_ARGS="--only overload --seconds 300")
	$(CARGO) build --locked --release -p cairn-agent --bin cairn -p cairn-bench --bin cairn-bench
	$(TARGET_DIR)/release/cairn-bench failures $(BENCH_ARGS)

bench-ipam: ## The IPAM at the size of a cluster, against a real API server (root; BENCH_ARGS="--api embedded")
	$(CARGO) build --locked --release -p cairn-agent --bin cairn -p cairn-bench --bin cairn-bench
	$(TARGET_DIR)/release/cairn-bench ipam $(BENCH_ARGS)
	CAIRN_ORPHAN_NODES=5000 $(CARGO) test --locked --workspace --test leader \
		orphans_go_in_one_pass -- --nocapture

bench-kernel: ## Our kernel routes beside other writers of them (root; BENCH_ARGS="--only 100k-IPv4 --runs 5")
	scripts/install-bench-deps.sh
	$(CARGO) build --locked --release -p cairn-agent --bin cairn -p cairn-bench --bin cairn-bench
	$(TARGET_DIR)/release/cairn-bench kernel $(BENCH_ARGS)
	$(TARGET_DIR)/release/cairn-bench latency

sim: ## Plays many nodes' IPAM in virtual time (SEEDS=20000 FIRST=0)
	CAIRN_SIM_SEEDS=$(SEEDS) CAIRN_SIM_FIRST=$(FIRST) $(CARGO) test --locked --workspace \
		--test simulation no_address_is_held_twice -- --nocapture

fuzz: ## Fuzzes BGP, or FUZZ_PROGRAM=cairn-fuzz-cni the plugin and its socket (FUZZ_SECS=14400 FUZZ_JOBS=2)
	scripts/fuzz.sh $(TOOLS) $(FUZZ_SECS) $(FUZZ_JOBS) $(FUZZ_PROGRAM)

image: ## Builds the container image (IMAGE=cairn:dev)
	docker build --tag $(IMAGE) .

clean: ## Removes what was built
	$(CARGO) clean
