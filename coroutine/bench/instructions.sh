#!/bin/sh
# Counts the instructions of each primitive by callgrind, exactly and repeatably: those of 2000 less
# those of 1000, so that start and end drop out.
#
#   instructions.sh PRIMITIVES [NAME...]    PRIMITIVES is the program of that name, optimised
#
# Prints "ir coroutine/NAME COUNT", for each primitive or for those named.
set -eu
program=$1
shift
if ! command -v valgrind >/dev/null; then
    echo "instructions.sh: valgrind is missing: apt-get install valgrind" >&2
    exit 1
fi
# shellcheck disable=SC2046 # a list of names
[ $# -gt 0 ] || set -- $("$program" 2>/dev/null || true)
count() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" "$1" "$2" 2>&1 |
        sed -n 's/^==[0-9]*== Collected : //p'
}
for name; do
    few=$(count "$name" 1000)
    many=$(count "$name" 2000)
    echo "ir coroutine/$name $(((many - few + 500) / 1000))"
done
