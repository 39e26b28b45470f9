# What people do by hand twice. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
SOAK_MINUTES ?= 30
FUZZ_SECONDS ?= 600
NIGHTLY ?= nightly
BENCH ?=

TARGET := $(or $(CARGO_TARGET_DIR),target)
TOOLS := $(or $(SHUNT_TEST_TOOLS),$(abspath $(TARGET))/test-tools)
# Tests leave nothing behind even when they are interrupted: what they make in files is below one directory.
IN_SCRATCH := export TMPDIR=$$(mktemp -d /tmp/shunt.XXXXXX); trap 'rm -rf $$TMPDIR' EXIT;

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

# Rust links with the system's C compiler, which a fresh Debian does not have.
.PHONY: linker
linker:
	@command -v cc >/dev/null || scripts/apt-install.sh gcc libc6-dev

.PHONY: build
build: linker ## shuntd and shuntctl, optimised
	$(CARGO) build --release -p shunt-switch -p shuntctl

.PHONY: run
run: build ## Start shuntd on its embedded default (ARGS="--workers 2" to say more)
	@[ "$$(id -u)" = 0 ] || echo "not root: vhost-user ports work, TAP and netdev ports do not"
	@echo "in another terminal: $(TARGET)/release/shuntctl status"
	exec $(TARGET)/release/shuntd $(ARGS)

.PHONY: demo
demo: build setup ## Two real guests talk through a fresh shuntd, live
	@$(CARGO) build -q -p shunt-tests --bin demo
	@$(IN_SCRATCH) SHUNTD_BIN=$(TARGET)/release/shuntd SHUNTCTL_BIN=$(TARGET)/release/shuntctl $(TARGET)/debug/demo

.PHONY: setup
setup: ## What the tests need: packages, QEMU, a guest kernel and its initramfs
	scripts/setup-tests.sh

.PHONY: test
test: setup check unit gates e2e ## Everything that must pass, on a fresh machine too

.PHONY: check
check: ## Formatting and lints
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

.PHONY: unit
unit: ## Tests inside the crates
	$(CARGO) test --workspace --exclude shunt-tests --no-fail-fast
	$(CARGO) test -p shunt-tests --lib

.PHONY: costs
costs: ## What rules, dirty logging and a shared ring cost (the ignored tests are these measurements; for a quiet machine)
	$(CARGO) test --profile test-release -p shunt-switch --lib -- --ignored --nocapture --test-threads=1 cost_of
	$(CARGO) test --release -p vhost-backend --test dirty --test ring_shared -- --ignored --nocapture --test-threads=1 cost_of

.PHONY: gates
gates: ## Instruction counts of the packet path, against the recorded ones
	GUNGRAUN_RUNNER=$(TOOLS)/bin/gungraun-runner $(CARGO) bench -p shunt-perf --bench gates

.PHONY: gates-update
gates-update: ## Record the instruction counts of now as the standard of `make gates`
	rm -rf $(TARGET)/gungraun
	-GUNGRAUN_SAVE_SUMMARY=json GUNGRAUN_RUNNER=$(TOOLS)/bin/gungraun-runner $(CARGO) bench -p shunt-perf --bench gates
	$(CARGO) run -q -p shunt-perf -- gates-update $(TARGET)/gungraun

.PHONY: build-test
build-test: linker ## shuntd and shuntctl as the end-to-end tests run them: optimised, with checks
	$(CARGO) build --profile test-release -p shunt-switch -p shuntctl

.PHONY: e2e
e2e: build-test ## Guests, namespaces and testpmd (ONLY=name to run some)
	$(IN_SCRATCH) $(CARGO) test -p shunt-tests --tests --no-fail-fast -- --test-threads=1 $(ONLY)

.PHONY: soak
soak: build-test setup ## The end-to-end scenarios again and again, for SOAK_MINUTES
	@$(CARGO) build -q -p shunt-tests --bin soak
	@$(IN_SCRATCH) SOAK_MINUTES=$(SOAK_MINUTES) $(TARGET)/debug/soak

# Instrumented as cargo-fuzz does it, with the compiler that builds everything else. New inputs and findings stay below
# the target directory; `make fuzz-keep` copies what is worth keeping to tests/fuzz/corpus.
FUZZ_FLAGS := -Zsanitizer=address -Cpasses=sancov-module $(addprefix -Cllvm-args=-sanitizer-coverage-,\
  level=4 inline-8bit-counters pc-table trace-compares)
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_TARGETS = $(or $(ONLY),session split_ring packed_ring frame request)

.PHONY: fuzz
fuzz: linker ## libFuzzer on every target, FUZZ_SECONDS each (ONLY="session frame" to run some)
	@command -v c++ >/dev/null || scripts/apt-install.sh g++
	RUSTC_BOOTSTRAP=1 RUSTFLAGS="$(FUZZ_FLAGS)" $(CARGO) build --profile test-release -p shunt-fuzz --features libfuzzer \
	  --target $(FUZZ_HOST) --target-dir $(TARGET)/fuzz
	for name in $(FUZZ_TARGETS); do \
	  mkdir -p $(TARGET)/fuzz/corpus/$$name; \
	  $(TARGET)/fuzz/$(FUZZ_HOST)/test-release/fuzz-$${name//_/-} -max_total_time=$(FUZZ_SECONDS) -timeout=20 -print_final_stats=1 \
	    -artifact_prefix=$(TARGET)/fuzz/$$name- $(TARGET)/fuzz/corpus/$$name tests/fuzz/corpus/$$name; \
	done

.PHONY: fuzz-keep
fuzz-keep: ## Add to tests/fuzz/corpus the fewest inputs that `make fuzz` has found and that reach more than those there
	for name in $(FUZZ_TARGETS); do \
	  $(TARGET)/fuzz/$(FUZZ_HOST)/test-release/fuzz-$${name//_/-} -set_cover_merge=1 tests/fuzz/corpus/$$name $(TARGET)/fuzz/corpus/$$name; \
	done

# Tools that only unstable compilers have. Both say nothing about what another process may do to guest memory meanwhile.
.PHONY: nightly
nightly: linker
	rustup toolchain install $(NIGHTLY) --profile minimal --component miri --component rust-src

# Left out: signals, sockets, eventfds in other states, mappings of one file in two places, guests on another thread (whose
# races with us are meant), and thousands of random cases.
MIRI_SKIP := $(addprefix --skip ,sigbus session memory:: eventfd rewrites_its_rings memory_taken garbage noise)
.PHONY: miri
miri: nightly ## Rings and records of what is in flight, under the interpreter miri (some minutes)
	MIRIFLAGS=-Zmiri-disable-isolation $(CARGO) +$(NIGHTLY) miri test --target-dir $(TARGET)/miri -p vhost-backend --no-fail-fast \
	  --lib --test ring_hostile --test ring_packed_hostile -- $(MIRI_SKIP)

# What threads share; without tables so large that their shadow does not fit, and loom's models, which change stacks by
# themselves.
TSAN_ONLY := worker:: conntrack:: l2::fdb l3::neighbour l3::route::trie stats members view services:: ipvs::sync ipvs::scope \
  ipvs::health port:: switch:: control:: pipeline container:: handover
TSAN_SKIP := $(addprefix --skip ,million scale cost modelled)
.PHONY: tsan
tsan: nightly ## Workers, tables and services under ThreadSanitizer (15 minutes, 12 GB)
	RUSTFLAGS=-Zsanitizer=thread $(CARGO) +$(NIGHTLY) test -Zbuild-std --target $(FUZZ_HOST) --target-dir $(TARGET)/tsan \
	  -p shunt-switch --lib -- --test-threads=1 $(TSAN_SKIP) $(TSAN_ONLY)

.PHONY: bench
bench: setup ## shunt beside its peers in one run (BENCH="--help" for what can be chosen)
	perf/setup-bench.sh
	$(CARGO) build --release -p shunt-switch -p shuntctl -p shunt-perf
	$(IN_SCRATCH) SHUNT_TEST_TOOLS=$(TOOLS) SHUNTD_BIN=$(TARGET)/release/shuntd SHUNTCTL_BIN=$(TARGET)/release/shuntctl \
	  $(TARGET)/release/shunt-perf bench --output $(TARGET)/bench $(BENCH)

.PHONY: man
man: build ## Manual pages and shell completions, in target/man and target/completions
	rm -rf $(TARGET)/man $(TARGET)/completions; mkdir -p $(TARGET)/man $(TARGET)/completions
	$(TARGET)/release/shuntctl man $(TARGET)/man
	for shell in bash zsh fish; do $(TARGET)/release/shuntctl completions $$shell >$(TARGET)/completions/shuntctl.$$shell; done

.PHONY: install
install: build man ## Programs, manual pages, completions and the systemd unit, below DESTDIR and PREFIX
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/sbin $(TARGET)/release/shuntd
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin $(TARGET)/release/shuntctl
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/lib/cni $(TARGET)/release/shunt-cni
	for page in $(TARGET)/man/*; do install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man$${page##*.} $$page; done
	install -D -m 644 $(TARGET)/completions/shuntctl.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/shuntctl
	install -D -m 644 $(TARGET)/completions/shuntctl.zsh $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_shuntctl
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d $(TARGET)/completions/shuntctl.fish
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system dist/shuntd.service
