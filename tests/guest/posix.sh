#!/bin/sh
# The suites that ask whether a file system is one, in the guest: posix.sh DIRECTORY
# pjdfstest goes through the system calls as root and as users; fsx writes, reads, maps and truncates
# one file at random, OPERATIONS times in each cache mode. What they said goes to the share, where
# host-posix.sh compares it with what they say of the host's own file system. posix-cases.sh adds what
# the suites leave out.
# Of pjdfstest only TESTS is run, and then nothing else, if those are given: names with commas between, or
# "cases" for posix-cases.sh alone, or "fsx".
# shellcheck disable=SC1091 # they lie beside this in the guest only
. /mount.sh
. /posix-config.sh
top=$1
operations=${operations:?}

mkdir /tmp/other
posix_config /tmp nobody:nobody guest:guest /tmp/other
# They want two users beside root.
echo nobody:x:65534:65534::/:/bin/sh >>/etc/passwd
echo nobody:x:65534: >>/etc/group

fsx_in_each_mode() {
    for mode in none mmap loose; do
        mount_share "$top" ",cache=$mode" || exit 1
        fsx_rounds fsx /tmp $mode "$operations" "$top/file-$mode" >/tmp/sums
        echo "fsx, cache=$mode: $(wc -l </tmp/sums) rounds, after $(cut -d. -f1 /proc/uptime) s"
        cp /tmp/sums "$top/guest/fsx-$mode"
        umount "$top"
    done
}

# shellcheck disable=SC2154 # the kernel sets it
case ${tests:-} in
cases) exec sh /enter-tree.sh posix-cases.sh "$top" ;;
fsx)
    fsx_in_each_mode
    exit 0
    ;;
esac
mount_share "$top" || exit 1
# shellcheck disable=SC2046 # several names
pjdfstest_all pjdfstest /tmp "$top" $(echo "${tests:-}" | tr ',' ' ') >/tmp/log 2>&1
grep Summary /tmp/log
cp /tmp/log "$top/guest/pjdfstest"
umount "$top"
[ -z "${tests:-}" ] || exit 0

sh /enter-tree.sh posix-cases.sh "$top"
fsx_in_each_mode
