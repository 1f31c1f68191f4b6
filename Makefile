# The commands of the project. `make help` lists them.

CARGO   ?= cargo
SHARE   ?= fixtures/share

TARGET    := $(or $(CARGO_TARGET_DIR),target)
BINARY    := $(TARGET)/release/vhost-user-9p
TOOLS     := $(abspath $(TARGET))/tools
MSRV      := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
DENY       = PATH="$(TOOLS)/bin:$$PATH" $(CARGO) deny

.DEFAULT_GOAL := all
.PHONY: help all build check deny audit deny-tool test unit-test model-check tsan msrv-check cross-check soak bench bench-record bench-check bench-coroutine bench-coroutine-ir request-ir clean

help: ## List the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | sort | awk -F'|' '{ printf "make %-16s %s\n", $$1, $$2 }'

all: build generated ## Build all that is installed

build: ## Build the daemon
	$(CARGO) build --release --locked

check: ## Formatting, lints, documentation, and licences and sources of the crates
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --quiet
	@if $(MAKE) --no-print-directory deny-tool; then $(MAKE) --no-print-directory deny; \
	else echo "the crates' licences and sources were not looked at: cargo-deny cannot be installed here" >&2; fi

deny: deny-tool ## Licences and sources of the crates; installs cargo-deny if it is missing
	$(DENY) --workspace --locked check licenses bans sources

audit: deny-tool ## Known vulnerabilities of the crates, from RustSec's database
	@$(DENY) fetch db || { echo "RustSec's database cannot be fetched: run \`make audit\` where the network has it" >&2; exit 1; }
	$(DENY) --workspace --locked check --disable-fetch advisories

# Minutes, once: the tool is kept in the build folder.
deny-tool:
	@$(DENY) --version >/dev/null 2>&1 || $(CARGO) install --locked --quiet --root $(TOOLS) cargo-deny

unit-test: ## What needs no guest: unit and integration tests, the coroutines under valgrind too
	@tests/guest/tools.sh valgrind valgrind
	$(CARGO) test --workspace --locked
	CARGO_TARGET_DIR=$(abspath $(TARGET)) coroutine/scripts/valgrind.sh --locked

model-check: ## Every order in which the loop and its workers can meet
	RUSTFLAGS="--cfg loom" $(CARGO) test --release --locked --target-dir $(TARGET)/model -p coroutine --lib model

tsan: ## Data races: ThreadSanitizer on the coroutines, the ring and the daemon; needs a nightly with rust-src
	CARGO_TARGET_DIR=$(abspath $(TARGET)) tests/tsan.sh --locked

msrv-check: ## Everything compiles with the oldest Rust that is promised, Debian 13's; needs that toolchain
	$(CARGO) +$(MSRV) check --workspace --all-targets --locked --target-dir $(TARGET)/msrv

cross-check: ## The daemon compiles for other processors and for musl; needs a nightly with rust-src
	for target in aarch64-unknown-linux-gnu riscv64gc-unknown-linux-gnu x86_64-unknown-linux-musl; do \
	    $(CARGO) +nightly check -Zbuild-std --target $$target --bin vhost-user-9p --locked || exit 1; \
	done

test: unit-test model-check request-ir guest-test uml-test ## Everything: unit and integration tests, and the real guests

soak: ## Escapes while the host swaps links in, a hundred thousand; guests gone, servers killed in the middle, ten thousand
	ESCAPE_TRIES=100000 $(CARGO) test --release --locked --test escape -- --nocapture
	STOP_ROUNDS=1000 GONE_CYCLES=10000 CRASH_ROUNDS=10000 UPGRADE_ROUNDS=1000 $(CARGO) test --release --locked --test stop -- --nocapture

bench: ## The daemon beside virtiofsd and the bare system calls; BENCH=NAME for some of the workloads
	VIRTIOFSD=$$(benches/virtiofsd.sh) $(CARGO) bench --locked --bench server -- $(BENCH)
	$(CARGO) bench --locked --bench recovery -- $(BENCH)

bench-record: ## The same, kept in docs/bench as lines, a table and plots
	VIRTIOFSD=$$(benches/virtiofsd.sh) $(CARGO) bench --locked --bench server -- --record

bench-check: ## The same beside what was kept: names what has become worse
	VIRTIOFSD=$$(benches/virtiofsd.sh) $(CARGO) bench --locked --bench server -- --check $(BENCH)

bench-coroutine: ## The coroutine library beside its peers
	$(CARGO) bench --locked -p coroutine-bench --bench peers -- $(BENCH)

bench-coroutine-ir: ## Instructions of each coroutine primitive, by callgrind
	$(CARGO) build --release --locked -p coroutine-bench --bin primitives
	coroutine/bench/instructions.sh $(TARGET)/release/primitives

request-ir: ## Instructions of a request, by callgrind: fails if they have grown by a fifth
	@tests/guest/tools.sh valgrind valgrind
	$(CARGO) build --release --locked --example requests
	benches/requests/check.sh $(TARGET)/release/examples/requests

include tests/guest/guest.mk
include fuzz/fuzz.mk
include packaging/packaging.mk

clean: ## Remove what was built, the prepared guest too
	$(CARGO) clean
