#!/bin/sh
# Tries every interleaving of the worker pool and the loop by loom (workers/model.rs).
set -eu
cd "$(dirname "$(realpath "$0")")/.."
export RUSTFLAGS="--cfg loom"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-../target}/loom"
cargo test --release --lib "$@"
