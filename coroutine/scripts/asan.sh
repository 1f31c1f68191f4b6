#!/bin/sh
# Runs the suite under AddressSanitizer, with announced switches. Needs a nightly toolchain. Passes its
# arguments to cargo test. Leak detection is off, as tests of misuse leak on purpose.
set -eu
cd "$(dirname "$(realpath "$0")")/.."
export RUSTFLAGS="-Zsanitizer=address" ASAN_OPTIONS=detect_leaks=0
target=$(rustc -vV | sed -n 's/^host: //p')
cargo +nightly test --features asan --target "$target" --tests "$@"
