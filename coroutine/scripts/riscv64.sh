#!/bin/sh
# Builds the suite for riscv64 with a standard library built from source, and runs it under qemu-user.
# Installs missing packages (as root, or by sudo). Needs a nightly toolchain with rust-src. Passes its
# arguments to cargo test.
set -eu
here=$(dirname "$(realpath "$0")")
target=$(realpath -m "${CARGO_TARGET_DIR:-$here/../../target}")
[ "$(id -u)" = 0 ] && sudo="" || sudo="sudo"
packages="qemu-user-static gcc-riscv64-linux-gnu libc6-dev-riscv64-cross"
# shellcheck disable=SC2086 # a list of names
dpkg-query -W $packages >/dev/null 2>&1 || {
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq --no-install-recommends $packages >/dev/null
}

export CARGO_TARGET_DIR="$target/riscv64"
export CARGO_TARGET_RISCV64GC_UNKNOWN_LINUX_GNU_LINKER=riscv64-linux-gnu-gcc
export TEST_RUNNER="qemu-riscv64-static -L /usr/riscv64-linux-gnu"
export CARGO_TARGET_RISCV64GC_UNKNOWN_LINUX_GNU_RUNNER="$TEST_RUNNER"
cd "$here/.."
cargo +nightly test -Zbuild-std --target riscv64gc-unknown-linux-gnu --tests "$@"
