#!/bin/sh
# What posix-cases.py finds on the share, in each cache mode: posix-cases.sh DIRECTORY
# Run by enter-tree.sh; what it said goes to the share, where host-posix.sh compares it with what the same
# program finds on the host's own file system.
# shellcheck disable=SC1091 # it lies beside this in the guest only
. /scripts/mount.sh
top=$1
failures=0
for mode in none mmap loose; do
    # The client has access control lists only if it is told to.
    mount_share "$top" ",cache=$mode,posixacl" || exit 1
    python3 -B /scripts/posix-cases.py "$top/cases-$mode" >/tmp/cases 2>&1 || failures=$((failures + 1))
    echo "cases, cache=$mode: $(wc -l </tmp/cases)"
    cp /tmp/cases "$top/guest/cases-$mode"
    umount "$top" || failures=$((failures + 1))
done
exit $failures
