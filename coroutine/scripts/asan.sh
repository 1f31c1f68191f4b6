#!/bin/sh
# Runs the suite under AddressSanitizer, which is told of the switches. Needs a nightly toolchain.
# Arguments go to cargo test. Leaks are not looked for: misuse is tested that leaks on purpose.
set -eu
cd "$(dirname "$(realpath "$0")")/.."
export RUSTFLAGS="-Zsanitizer=address" ASAN_OPTIONS=detect_leaks=0
target=$(rustc -vV | sed -n 's/^host: //p')
cargo +nightly test --features asan --target "$target" --tests "$@"
