#!/bin/sh
# Runs the suites of the coroutines and of the ring, and those of the daemon that have much going on at
# once, under ThreadSanitizer. Everything is built for it, the standard library from its sources: of one
# that comes compiled it cannot see what that synchronises. Needs a nightly toolchain with rust-src.
# The tests start the daemon as always, but without its sandbox. Arguments go to cargo test.
set -eu
cd "$(dirname "$(realpath "$0")")/.."
sources=$(rustc +nightly --print sysroot 2>/dev/null || true)/lib/rustlib/src/rust/library
[ -f "$sources/Cargo.lock" ] || {
    echo "tsan.sh: no nightly toolchain with rust-src: rustup toolchain install nightly --component rust-src" >&2
    exit 1
}
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")/tsan
# Of tests that go on for as long as one wants.
: "${STOP_ROUNDS:=5}" "${GONE_CYCLES:=12}"
reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT
# Files, for what a daemon reports is lost in a test that does not look at how it ends.
TSAN_OPTIONS="halt_on_error=1 exitcode=66 log_path=$reports/report ${TSAN_OPTIONS:-}"
export CARGO_TARGET_DIR STOP_ROUNDS GONE_CYCLES TSAN_OPTIONS RUSTFLAGS="-Zsanitizer=thread"

# watched CARGO-TEST-ARGUMENT...
watched() {
    status=0
    cargo +nightly test -Zbuild-std --target "$host" "$@" || status=$?
    for report in "$reports"/*; do
        [ -e "$report" ] || continue
        cat "$report" >&2
        status=66
    done
    [ "$status" = 0 ] || exit "$status"
}

watched -p coroutine --features coroutine/tsan,coroutine/trace --tests "$@"
watched -p vhost-user --tests "$@"
# Not those that measure the daemon's memory (leaks), look through its sandbox, or do one thing after the
# other. The corpus of the fuzzers is tried in the test's own process.
watched -p vhost-user-9p --features tsan --lib --test broken_ring --test corpus --test directory \
    --test failures --test io --test limits --test lock --test races --test session --test stop \
    --test walk --test xattr "$@"
watched -p vhost-user-9p --features tsan --test device --test fids "$@" -- \
    while_the_ring_runs reset_ends connection_may_end many_requests_at_once
