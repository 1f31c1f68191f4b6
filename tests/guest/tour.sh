#!/bin/sh
# A short tour of the share, for who starts `make run` without a terminal. run.sh plays the host's
# part: it sees "guest: wrote the note" on the console, shows the note as the host has it and adds a
# line.
# shellcheck disable=SC2154 # the kernel sets share and note, from its command line
# shellcheck source=tests/guest/mount.sh
. /mount.sh

# step COMMAND: shows it as if it were typed, and runs it
step() {
    echo "guest# $1"
    eval "$1" || exit 1
}

echo "guest# mount -t 9p -o version=9p2000.L,trans=virtio,msize=512000 $share /mnt"
mount_share /mnt || exit 1
step "df -h /mnt"
step "cd /mnt"
step "ls -l"
[ ! -f hello.txt ] || step "cat hello.txt"
[ ! -x greet ] || step "./greet"
if (set -C && : >"$note"); then
    step "echo 'Written in the guest, Linux $(uname -r).' >$note"
    echo "guest: wrote the note"
    tries=100
    until [ "$(wc -l <"$note")" -gt 1 ]; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || exit 1
        sleep 0.1
    done
    step "cat $note"
    step "rm $note"
else
    echo "The guest may not write here, so the tour only reads."
fi
step "cd /"
step "umount /mnt"
