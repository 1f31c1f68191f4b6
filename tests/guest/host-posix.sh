#!/usr/bin/env bash
# The host's side of posix.sh: the same programs with the same seeds, in the same directory, by the
# host's own system calls. What they find there is the control.
#   host-posix.sh control SHARE           runs them below SHARE, and makes SHARE/guest for the guest's part
#   host-posix.sh compare SHARE KEPT      prints how the guest's results differ, and exits non-zero if a
#                                         test failed in the guest alone that is not the client's own doing.
#                                         KEPT.failed gets the names of what failed there, KEPT.guest and
#                                         KEPT.host what pjdfstest said
# From the environment: GUEST, OPERATIONS, TESTS as in run.sh.
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
mode=$1 share=$2 kept=${3:-}
programs=${GUEST:?}/posix/bin
operations=${OPERATIONS:?}
tree=$GUEST/apps/tree
# shellcheck source=tests/guest/posix-config.sh
. "$here/posix-config.sh"

# What fails by the Linux client's own doing, whatever the server answers: pjdfstest's tests, and lines of
# posix-cases.py.
client_decides() {
    case $1 in
    link::link_count_max)
        echo "v9fs_statfs shows the host's magic number, and the C library's pathconf guesses the limit from it and the name 9p"
        ;;
    utimensat::subsecond)
        echo "fs/9p/vfs_super.c sets no s_time_gran, so notify_change (fs/attr.c) cuts times to seconds before they are sent"
        ;;
    *) return 1 ;;
    esac
}

client_decides_case() {
    case $1 in
    "xattr no value with XATTR_REPLACE where there is "*)
        echo "__vfs_removexattr (fs/xattr.c) and a program's empty XATTR_REPLACE are one message of v9fs_fid_xattr_set (fs/9p/xattr.c)"
        ;;
    *) return 1 ;;
    esac
}

control() {
    mkdir "$share/guest" "$share/host"
    chmod 755 "$share"
    if [ -z "${TESTS:-}" ] || [ "$TESTS" = cases ]; then
        cases
    fi
    [ "${TESTS:-}" != cases ] || return 0
    scratch=$(mktemp -d /dev/shm/vhost-user-9p.XXXXXX)
    trap 'rm -rf "$scratch"' EXIT
    if [ "${TESTS:-}" = fsx ]; then
        control_fsx
        return
    fi
    mkdir "$scratch/other"
    posix_config "$scratch" daemon:daemon nobody:"$(id -gn nobody)" "$scratch/other"
    # shellcheck disable=SC2034,SC2086 # for pjdfstest_all; several names
    {
        local read_only=on_tmpfs
        pjdfstest_all "$programs/pjdfstest" "$scratch" "$share" ${TESTS//,/ } >"$share/host/pjdfstest" 2>&1 || true
    }
    echo "the host's own $(findmnt -n -o FSTYPE -T "$share") has been looked at by pjdfstest"
    [ -n "${TESTS:-}" ] || control_fsx
}

control_fsx() {
    local mode
    for mode in none mmap; do
        fsx_rounds "$programs/fsx" "$scratch" $mode "$operations" "$share/file" \
            >"$share/host/fsx-$mode" || {
            cat "$share/host/fsx-$mode"
            echo "$0: fsx fails on the host's own file system"
            exit 1
        }
    done
    cp "$share/host/fsx-mmap" "$share/host/fsx-loose"
    echo "the host's own: fsx, $operations operations with and without mappings"
}

# on_tmpfs PROGRAM -c CONFIGURATION -p DIRECTORY ...: with a file system that only it sees, which may
# be mounted read-only. That of the share is the machine's own.
on_tmpfs() {
    # shellcheck disable=SC2016 # the inner shell fills it in
    unshare --mount sh -c 'mount -t tmpfs -o mode=755 none "$5" && exec "$@"' on_tmpfs "$@"
}

# What posix-cases.py finds in the share's directory, with the same programs as in the guest.
cases() {
    # shellcheck disable=SC2016 # the inner shell fills it in
    unshare --mount sh -ec '
        mount --bind /dev "$1/dev"
        mount --bind /proc "$1/proc"
        mount -t tmpfs scripts "$1/scripts"
        cp "$2" "$1/scripts/"
        mount --bind "$3" "$1/mnt"
        exec chroot "$1" /usr/bin/env -i PATH=/usr/bin python3 -B /scripts/posix-cases.py /mnt/cases-host' \
        cases "$tree" "$here/posix-cases.py" "$share" >"$share/host/cases"
    echo "the host's own: $(wc -l <"$share/host/cases") cases of attributes, lists, set-id bits and locks"
}

plain() {
    sed 's/\x1b\[[0-9;]*m//g'
}

# results FILE: "NAME RESULT" of each test, sorted. Those with a run of their own are skipped in the
# other.
results() {
    plain <"$1" | sed -nE 's/^([a-z_0-9:]+) +(ok|skipped|FAILED)$/\1 \2/p' |
        awk '$2 != "skipped" || !($1 in result) { result[$1] = $2 } END { for (name in result) print name, result[name] }' |
        sort
}

# reasons FILE: why tests were skipped, beside those with a run of their own
reasons() {
    plain <"$1" | awk '
        / skipped$/ { skipped = 1; next }
        skipped && /^\t/ { sub(/^\t/, ""); if (!/allow_remount/) why[$0]++; next }
        { skipped = 0 }
        END { for (reason in why) printf "  %d skipped: %s\n", why[reason], reason }'
}

# totals SIDE
totals() {
    awk -v side="$1" '{ count[$2]++ }
        END { printf "%s: %d tests, %d ok, %d failed, %d skipped\n", side, NR, count["ok"], count["FAILED"], count["skipped"] }'
}

# equal_sums FILE SUMS: whether the last of the checksums is that of the file, as the host sees it
equal_sums() {
    [ "$(sha256sum <"$1")" = "$(tail -n 1 "$2")" ]
}

# compare_cases: prints how the guest's lines of posix-cases.py differ from the host's, and fails if one
# does that is not the client's own doing
compare_cases() {
    local mode line why different decided all unexpected=0
    all=$(wc -l <"$share/host/cases")
    for mode in none mmap loose; do
        different=0 decided=0
        while IFS= read -r line; do
            echo "  cache=$mode, $line"
            case $line in "guest "*) ;; *) continue ;; esac
            if why=$(client_decides_case "${line#guest }"); then
                echo "    the client's doing: $why"
                decided=$((decided + 1))
            else
                different=$((different + 1))
            fi
        done < <(diff "$share/host/cases" "$share/guest/cases-$mode" | sed -n 's/^< /host  /p; s/^> /guest /p')
        if [ $different = 0 ] && [ "$(wc -l <"$share/guest/cases-$mode")" = "$all" ]; then
            echo "ok      cases, cache=$mode: $((all - decided)) of $all as on the host"
        else
            echo "FAILED  cases, cache=$mode: $different differ, of $all"
            unexpected=1
        fi
    done
    return $unexpected
}

# compare_fsx: fails if a file is not as on the host
compare_fsx() {
    local mode unexpected=0
    for mode in none mmap loose; do
        if cmp "$share/guest/fsx-$mode" "$share/host/fsx-$mode" &&
            equal_sums "$share/file-$mode" "$share/host/fsx-$mode"; then
            echo "ok      fsx, $operations operations, cache=$mode: after each 10000 the file is as on the host"
        else
            echo "FAILED  fsx, cache=$mode"
            tail -n 31 "$share/guest/fsx-$mode"
            unexpected=1
        fi
    done
    return $unexpected
}

compare() {
    local name guest host why unexpected=0
    : >"$kept.failed"
    case ${TESTS:-} in
    cases)
        compare_cases
        return
        ;;
    fsx)
        compare_fsx
        return
        ;;
    esac
    [ "$(grep -c Summary "$share/guest/pjdfstest")" = "$(grep -c Summary "$share/host/pjdfstest")" ] || {
        tail -n 20 "$share/guest/pjdfstest"
        echo "$0: pjdfstest did not come to its end in the guest"
        exit 1
    }
    grep -q " ok$" <(plain <"$share/host/pjdfstest") || {
        echo "$0: no test passes on the host"
        exit 1
    }
    for side in guest host; do
        results "$share/$side/pjdfstest" >"$share/$side/results"
        totals "$side" <"$share/$side/results"
        reasons "$share/$side/pjdfstest"
        plain <"$share/$side/pjdfstest" >"$kept.$side"
    done
    echo "where they differ:"
    while read -r name guest host; do
        [ "$guest" != "$host" ] || continue
        printf '  %-40s guest %-8s host %s\n' "$name" "$guest" "$host"
        [ "$guest" = FAILED ] || continue
        echo "$name" >>"$kept.failed"
        if why=$(client_decides "$name"); then
            echo "    the client's doing: $why"
        else
            unexpected=$((unexpected + 1))
            plain <"$share/guest/pjdfstest" | grep -F -A 8 "$name " | sed -n '2,9s/^/    /p'
        fi
    done < <(join -a 1 -a 2 -e missing -o 0,1.2,2.2 "$share/guest/results" "$share/host/results")
    [ $unexpected = 0 ] || echo "FAILED  $unexpected of pjdfstest's tests fail in the guest and not on the host"

    [ -n "${TESTS:-}" ] || compare_cases || unexpected=$((unexpected + 1))
    [ -n "${TESTS:-}" ] || compare_fsx || unexpected=$((unexpected + 1))
    [ $unexpected = 0 ]
}

"$mode"
