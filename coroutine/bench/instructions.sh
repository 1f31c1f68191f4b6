#!/bin/sh
# Counts the instructions of a program's operations by callgrind, exactly and repeatably: those of 2048
# operations less those of 1024, which excludes start-up and exit.
#
#   instructions.sh PROGRAM [NAME...]    PROGRAM, optimised, takes a name and a number of operations
#
# Prints "ir GROUP/NAME COUNT" for the given names, or for all that the program lists. GROUP is
# "coroutine" unless the environment sets it.
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
    few=$(count "$name" 1024)
    many=$(count "$name" 2048)
    echo "ir ${GROUP:-coroutine}/$name $(((many - few + 512) / 1024))"
done
