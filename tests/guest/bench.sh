#!/bin/sh
# What a user waits for, timed in the guest: bench.sh DIRECTORY
# Run by enter-tree.sh, in the cache mode $modes with $objects files. Prints "bench NAME VALUE UNIT" for
# each workload, seconds or a rate. Before each the share is mounted afresh, so that the guest has
# nothing in its memory.
# shellcheck disable=SC1091 # these lie beside it in the guest only
. /scripts/mount.sh
. /scripts/tree.sh
. /scripts/project.sh
mounted=$1 mode=${modes:?} files=${objects:?}
set -e
export GIT_CONFIG_GLOBAL=/scripts/git.config GIT_CONFIG_SYSTEM=/dev/null

afresh() {
    cd /
    ! mountpoint -q "$mounted" || umount "$mounted"
    mount_share "$mounted" ",cache=$mode"
    cd "$mounted"
}

# timed NAME COMMAND...
timed() {
    name=$1
    shift
    began=$(date +%s.%N)
    "$@" >/dev/null
    echo "$name $(date +%s.%N) $began" | awk '{ printf "bench %s %.4f s\n", $1, $2 - $3 }'
}

# transfer NAME SIZE BLOCK PATTERN: each block once; what is written is in the host's kernel at the end
transfer() {
    afresh
    fio --name="$1" --filename=data --size="$2" --bs="$3" --rw="$4" --ioengine=psync --end_fsync=1 \
        --thread --randseed=9 --output-format=terse --terse-version=3 >/tmp/fio
    # Fields 7 and 8 are what was read, KiB/s and operations/s, 48 and 49 what was written.
    awk -F';' -v name="$1" -v block="$3" '{
        rate = $7 + $48; operations = $8 + $49
        if (block == "4k") printf "bench %s %.0f op/s\n", name, operations
        else printf "bench %s %.1f MiB/s\n", name, rate / 1024
    }' /tmp/fio
}

untar() {
    tar -xf /tmp/tree.tar
    sync -f .
}

make_tree /tmp/tree "$files"
tar -cf /tmp/tree.tar -C /tmp tree
rm -r /tmp/tree
# The programs themselves shall be in the guest's memory.
make_project /tmp/project 1
make -s -C /tmp/project
git init -q /tmp/project
git -C /tmp/project status >/dev/null

transfer write-1m "$((files / 32))M" 1m write
transfer read-1m "$((files / 32))M" 1m read
transfer write-4k "$((files / 128))M" 4k randwrite
transfer read-4k "$((files / 128))M" 4k randread
afresh
timed untar untar
afresh
timed find find tree
afresh
timed stat find tree -type f -exec stat -c '%s %Y' {} +
git init -q tree
git -C tree add .
git -C tree -c user.name=A -c user.email=a@example.com commit -q -m all
afresh
timed git-status git -C tree status --porcelain
make_project project "$((files / 100))"
afresh
timed build make -s -j2 -C project
afresh
timed rm rm -rf tree project
cd /
umount "$mounted"
