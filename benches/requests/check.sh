#!/bin/sh
# Counts the instructions of each request and compares them with those of known.txt, which are of x86-64:
# prints both, and fails if one has grown by more than a fifth. Another compiler or C library moves them
# by some per cent.
#
#   check.sh REQUESTS    REQUESTS is the program of that name, optimised
set -eu
here=$(dirname "$(realpath "$0")")
if [ "$(uname -m)" != x86_64 ]; then
    GROUP=request exec "$here/../../coroutine/bench/instructions.sh" "$1"
fi
counted=$(GROUP=request "$here/../../coroutine/bench/instructions.sh" "$1")
echo "$counted" | awk '
    NR == FNR { known[$1] = $2; next }
    {
        name = substr($2, length("request/") + 1)
        printf "%s known %d\n", $0, known[name]
        if (!known[name] || $3 < 100 || $3 > known[name] * 1.2) bad = bad " " name
        seen++
    }
    END {
        if (bad) print "have grown, or are not known:" bad > "/dev/stderr"
        exit bad != "" || seen == 0
    }' "$here/known.txt" -
