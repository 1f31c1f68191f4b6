#!/bin/sh
# Builds the suite for aarch64 by Debian's compiler, and runs it under qemu-user. Installs missing
# packages (as root, or by sudo). Passes its arguments to cargo test.
set -eu
here=$(dirname "$(realpath "$0")")
target=$(realpath -m "${CARGO_TARGET_DIR:-$here/../../target}")
rust=$target/debian-rust
"$here/debian-rust.sh" "$rust" arm64 qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross

export RUSTC="$rust/usr/bin/rustc" CARGO_TARGET_DIR="$target/aarch64"
LD_LIBRARY_PATH=$rust/usr/lib/$(dpkg --print-architecture | sed "s/amd64/x86_64/")-linux-gnu
export LD_LIBRARY_PATH
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export TEST_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$TEST_RUNNER"
cd "$here/.."
cargo test --target aarch64-unknown-linux-gnu --tests "$@"
