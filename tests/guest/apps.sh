#!/bin/sh
# Programs whose authors do not trust file systems, in the guest: apps.sh DIRECTORY
# Run by enter-tree.sh. All of it is done in each cache mode of $modes ("none,mmap,loose"), below a
# directory of that name, which host-apps.sh looks at afterwards. The git repository gets $objects
# objects, the C project a hundredth of that in files. Exits with the number of failures.
# shellcheck disable=SC2317 # check() calls the functions by their names
# shellcheck disable=SC1091 # these lie beside it in the guest only
. /scripts/mount.sh
. /scripts/sqlite.sh
. /scripts/project.sh
mounted=$1 modes=${modes:?} objects=${objects:?} share=${share:?} owners=${owners:?}
transactions=100
top=$mounted/none
# shellcheck source=tests/guest/check.sh
. /scripts/check.sh
export GIT_CONFIG_GLOBAL=/scripts/git.config GIT_CONFIG_SYSTEM=/dev/null

# two_writers FILE
two_writers() {
    database_write "$1" first "$transactions" /tmp/first &
    first=$! first_status=0 second_status=0
    database_write "$1" second "$transactions" /tmp/second || second_status=$?
    wait "$first" || first_status=$?
    database_account "$1" "$transactions" /tmp/first $first_status /tmp/second $second_status
}

sqlite_journal() {
    equal "$(database_make database delete)" delete
    two_writers database
}

# The log's index is a shared mapping, which the client refuses without a cache. SQLite says so.
sqlite_wal() {
    if [ "$mode" = none ]; then
        refused database_make database wal
    else
        equal "$(database_make database wal)" wal
        two_writers database
    fi
}

# The host is the other writer.
sqlite_host() {
    database_make database delete
    touch ready
    guest_status=0
    database_write database guest "$transactions" /tmp/guest || guest_status=$?
    tries=1200
    until [ -e written ]; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ]
        sleep 0.1
    done
    database_account database "$transactions" /tmp/guest $guest_status ./host "$(cat written)"
}

# Every commit has a tree and two files of its own.
git_history() {
    awk -v commits=$((objects / 4)) 'BEGIN {
        for (n = 1; n <= commits; n++) {
            printf "commit refs/heads/main\ncommitter A <a@example.com> %d +0000\ndata 2\nc\n", 1e9 + n
            for (f = 0; f < 2; f++) {
                text = "line " n " of file " f "\n"
                printf "M 644 inline file%d\ndata %d\n%s\n", f, length(text), text
            }
        }
    }'
}

git_repository() {
    git init -q -b main made
    git_history | git -C made -c fastimport.unpackLimit=1000000 fast-import --quiet
    equal "$(git -C made count-objects | cut -d' ' -f1)" "$objects"
    git -C made fsck --full --strict
    git clone -q --no-local made cloned
    equal "$(git -C cloned rev-parse HEAD)" "$(git -C made rev-parse main)"
    git -C made gc -q --prune=now
    equal "$(git -C made count-objects | cut -d' ' -f1)" 0
    git -C made fsck --full --strict
    equal "$(git -C made rev-list --objects --all | wc -l)" "$objects"
    equal "$(git -C cloned status --porcelain)" ""
    echo changed >>cloned/file1
    equal "$(git -C cloned status --porcelain)" " M file1"
    git -C cloned -c user.name=A -c user.email=a@example.com commit -q -a -m changed
    git -C cloned push -q origin HEAD:changed
    git -C made worktree add -q ../worktree changed
    equal "$(tail -n 1 worktree/file1)" changed
    git -C made fsck --full --strict
}

build() {
    files=$((objects / 100))
    make_project . "$files"
    make -s -j4
    equal "$(./program)" $((files * (files - 1) / 2))
    equal "$(make -j4)" "make: 'program' is up to date."
    # The client sends whole seconds when it sets times, so this is one that is surely later.
    touch -d '+2 seconds' part0.h
    equal "$(make -n -j4 | grep -c -- ' -c ')" 2
    make -s -j4
    ./program
}

make_source() {
    mkdir -p /tmp/source/directory
    back=$PWD
    cd /tmp/source
    seq 100000 >plain
    ln plain directory/hard
    ln -s ../plain directory/symbolic
    ln -s /nowhere dangling
    echo a >modes
    chmod 4751 modes
    truncate -s 40M sparse
    echo end | dd bs=1 seek=30000000 conv=notrunc of=sparse
    mkfifo fifo
    setfattr -n user.colour -v blue plain
    setfattr -n user.colour -v red directory
    touch -d '2001-02-03 04:05:06' plain directory
    if [ "$owners" = yes ]; then
        chown 1234:5678 modes
        mknod null c 1 3
        setfacl -m u:4711:rw,g:77:r directory/hard
        setfacl -d -m u:4711:rwx directory
    fi
    head -c 300000 /dev/urandom >'odd name
*'
    cd "$back"
}

# copy OPTION... FROM TO
copy() {
    if [ "$owners" = yes ]; then
        rsync -aHAX "$@"
    else
        rsync -aHAX --no-owner --no-group "$@"
    fi
}

# difference FROM TO: what would still be copied
difference() {
    copy -n --delete --checksum --itemize-changes "$1/" "$2/"
}

rsync_there_and_back() {
    [ -d /tmp/source ] || make_source
    copy --sparse /tmp/source/ there/
    equal "$(difference /tmp/source there)" ""
    rm -rf /tmp/back
    copy --sparse there/ /tmp/back/
    equal "$(difference /tmp/source /tmp/back)" ""
    equal "$(stat -c %i there/plain)" "$(stat -c %i there/directory/hard)"
    [ "$(du -k there/sparse | cut -f1)" -lt 4096 ]
    equal "$(getfacl -cp there/directory/hard)" "$(getfacl -cp /tmp/source/directory/hard)"
}

mapped() {
    cc -O1 -o /tmp/mapped /scripts/mapped.c
    if [ "$mode" = none ]; then
        status=0
        /tmp/mapped file || status=$?
        equal "$status" 2
        /tmp/mapped - >file
    else
        /tmp/mapped file
    fi
    /tmp/mapped - >/tmp/expected
    cmp file /tmp/expected
}

for mode in $(echo "$modes" | tr ',' ' '); do
    # rsync's ACLs are of the guest only if the client is told to keep them.
    mount_share "$mounted" ",cache=$mode,posixacl" || exit 1
    top=$mounted/$mode
    mkdir "$top"
    check sqlite_journal "cache=$mode: SQLite, two writers, rollback journal"
    check sqlite_wal "cache=$mode: SQLite, two writers, write-ahead log"
    [ "$mode" != none ] || check sqlite_host "cache=$mode: SQLite, one writer here and one on the host"
    check git_repository "cache=$mode: git init, clone, gc, fsck, push with $objects objects"
    check build "cache=$mode: a C project, make -j4"
    check rsync_there_and_back "cache=$mode: rsync -aHAX there and back"
    check mapped "cache=$mode: shared mappings of two processes"
    cd /
    umount "$mounted" || failures=$((failures + 1))
done
exit "$failures"
