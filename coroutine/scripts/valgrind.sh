#!/bin/sh
# Runs the suite under valgrind, with registered stacks. An invalid access fails it. Passes its arguments
# to cargo test.
set -eu
cd "$(dirname "$(realpath "$0")")/.."
command -v valgrind >/dev/null || {
    echo "valgrind.sh: valgrind is missing: apt-get install valgrind" >&2
    exit 1
}
runner=CARGO_TARGET_$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')_RUNNER
export "$runner=valgrind -q --error-exitcode=99 --leak-check=no"
cargo test --features valgrind --test coroutines --test locks --test migration --test waiting "$@"
