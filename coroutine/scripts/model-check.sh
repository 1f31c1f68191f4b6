#!/bin/sh
# Tries every order in which the worker pool and the loop can meet (workers/model.rs).
set -eu
cd "$(dirname "$(realpath "$0")")/.."
export RUSTFLAGS="--cfg loom"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-../target}/loom"
cargo test --release --lib "$@"
