#!/usr/bin/env bash
# Times a real client on our daemon and on its peers: bench-guest.sh uml|qemu
#   uml     in User-mode Linux beside virtiofsd (never against none, never with --allow-mmap against mmap,
#           auto against loose) and hostfs
#   qemu    in QEMU's guest beside QEMU's own 9p server
# Each line is `bench guest/NAME ours V UNIT PEER V UNIT ratio R`, R being how many times faster ours is.
# Medians of rounds in which the servers take turns, because a machine's speed drifts; the shared
# directory is on a tmpfs, and all of User-mode Linux and its server on one processor, because between
# two it drifts even more. From the environment:
#   ROUNDS      how many, if not 7 and with QEMU 3
#   FILES       how many files the workloads have, if not 2000 and in QEMU 200
#   MODES       the cache modes, if not none,mmap,loose
#   VIRTIOFSD   the program, if not what benches/virtiofsd.sh gives
#   GUEST       see run.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
front_end=${1:?usage: bench-guest.sh uml|qemu}
files=2000 rounds=7
[ "$front_end" = uml ] || files=200 rounds=3
modes=${MODES:-none,mmap,loose}
rounds=${ROUNDS:-$rounds}
figures=${GUEST:?}/$front_end-bench.txt
export OBJECTS=${FILES:-$files} TMPDIR=/dev/shm
: >"$figures"

if [ "$front_end" = uml ]; then
    VIRTIOFSD=${VIRTIOFSD:-$("$here/../../benches/virtiofsd.sh")}
    export VIRTIOFSD
fi

pinned=()
[ "$front_end" = qemu ] || pinned=(taskset -c "$(($(nproc) - 1))")

# once SERVER MODE: the figures of one boot, "SERVER MODE NAME VALUE UNIT"
once() {
    local backend=$1 output
    [ "$backend" != ours ] || backend=
    output=$(BACKEND=$backend MODES=$2 "${pinned[@]}" "$here/run.sh" "$front_end" bench 2>&1) || {
        echo "$output" >&2
        exit 1
    }
    echo "$output" | sed -n "s/^bench /$1 $2 /p" >>"$figures"
}

for round in $(seq "$rounds"); do
    echo "round $round of $rounds" >&2
    [ "$front_end" = qemu ] || once hostfs none
    for mode in ${modes//,/ }; do
        once ours "$mode"
        if [ "$front_end" = qemu ]; then once qemu "$mode"; else once virtiofsd "$mode"; fi
    done
done

# hostfs has one mode only, and stands beside each of ours.
sort -k1,3 -k4,4n "$figures" | awk -v front_end="$front_end" '
    { key = $1 " " $2 " " $3; value[key, ++count[key]] = $4; unit[$3] = $5; names[$3]; modes[$2] }
    function median(key, n) {
        n = count[key]
        return n % 2 ? value[key, (n + 1) / 2] : (value[key, n / 2] + value[key, n / 2 + 1]) / 2
    }
    function line(name, mode, peer, key,    ours, theirs) {
        if (!(("ours " mode " " name) in count) || !(key in count)) return
        ours = median("ours " mode " " name)
        theirs = median(key)
        printf "bench guest/%s-%s-%s ours %s %s %s %s %s ratio %.2f\n", front_end, mode, name,
            ours, unit[name], peer, theirs, unit[name], unit[name] == "s" ? theirs / ours : ours / theirs
    }
    END {
        for (mode in modes) for (name in names) {
            line(name, mode, "virtiofsd", "virtiofsd " mode " " name)
            line(name, mode, "hostfs", "hostfs none " name)
            line(name, mode, "qemu", "qemu " mode " " name)
        }
    }' | sort
