#!/bin/sh
# Programs at work while the host kills the process that serves, again and again: survive.sh DIRECTORY
# Run by enter-tree.sh. All of it is done in each cache mode of $modes, below a directory of that name,
# and each check goes on for $kills kills. Exits with the number of failures.
# shellcheck disable=SC2317 # check() calls the functions by their names
# shellcheck disable=SC1091 # these lie beside it in the guest only
. /scripts/mount.sh
mounted=$1 modes=${modes:?} kills=${kills:?}
top=$mounted/none
# shellcheck source=tests/guest/check.sh
. /scripts/check.sh
export KILLS_FILE=$mounted/kills

survive() {
    python3 /scripts/survive.py "$1" "$kills"
}
unlinked() { survive unlinked; }
lock() { survive lock; }
listing() { survive listing; }
names() { survive names; }
append() { survive append; }
attributes() { survive attributes; }

fio_verifies() {
    before=$(survive count)
    until [ "$(survive count)" -ge $((before + kills)) ]; do
        fio --name=verify --filename=data --size=8m --rw=randrw --bsrange=512-128k --verify=crc32c \
            --verify_fatal=1 --ioengine=psync --end_fsync=1 --randrepeat=0 --minimal
    done
}

for mode in $(echo "$modes" | tr ',' ' '); do
    echo "cache=$mode"
    top=$mounted/$mode
    mount_share "$mounted" ",cache=$mode" || exit 1
    check names "mkdir, rename, link, symlink, mkfifo, create and unlink are each done once"
    check append "what is appended is there once"
    check unlinked "an open file without a name keeps its content"
    check lock "a held lock keeps others away, and one that waits gets it"
    check listing "a listing goes on where it was"
    check attributes "extended attributes are replaced"
    check fio_verifies "fio finds what it wrote"
    umount "$mounted"
done
[ $failures = 0 ] || echo "$failures checks failed"
exit $failures
