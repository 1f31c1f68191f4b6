#!/bin/sh
# Round after round of two SQLite writers on one database: sqlite-rounds.sh DIRECTORY
# $rounds rounds in each cache mode of $modes, with the write-ahead log where the client has shared
# mappings, else with the rollback journal. With $second, the tag of a second server of the same
# directory, the second writer goes by that one; only cache=none promises that this works. With
# watch=yes a third process asks for the size of the database and of its log all the time. A failed
# round's database and what its writers said stay on the share, in failed/MODE-ROUND. Exits with 1 if a
# round failed.
# shellcheck disable=SC1091 # these lie beside it in the guest only
. /scripts/mount.sh
. /scripts/sqlite.sh
top=$1 modes=${modes:?} rounds=${rounds:?} share=${share:?} second=${second:-} watch=${watch:-no}
transactions=100 failed_rounds=0

# watcher FILE: until it is killed
watcher() {
    while :; do
        stat "$1" "$1-wal" "$1-shm"
    done >/dev/null 2>&1
}

# one_round JOURNAL FILE FILE: the second is where the second writer finds the database. Says what
# failed, and puts it into $kept.
one_round() {
    [ "$(database_make "$2" "$1")" = "$1" ] || return 1
    watcher=''
    [ "$watch" != yes ] || { watcher "$2" & watcher=$!; }
    database_write "$2" first "$transactions" /tmp/first &
    first=$! first_status=0 second_status=0
    database_write "$3" second "$transactions" /tmp/second || second_status=$?
    wait "$first" || first_status=$?
    [ -z "$watcher" ] || { kill "$watcher"; wait "$watcher"; } 2>/dev/null
    mkdir -p /tmp/before
    cp "$2"* /tmp/before/ # the account opens the database, which brings it in order again
    account_status=0
    database_account "$2" "$transactions" /tmp/first $first_status /tmp/second $second_status || account_status=1
    if [ $account_status != 0 ]; then
        mkdir -p "$kept"
        cp -r /tmp/before /tmp/first.* /tmp/second.* "$2"* "$kept/"
    fi
    rm -rf /tmp/before
    return $account_status
}

for mode in $(echo "$modes" | tr ',' ' '); do
    mount_share "$top" ",cache=$mode" || exit 1
    other=$top
    if [ -n "$second" ]; then
        other=/tmp/second.mount
        mkdir -p "$other"
        share=$second mount_share "$other" ",cache=$mode" || exit 1
    fi
    journal=delete
    case $mode in mmap | loose | fscache) journal=wal ;; esac
    round=0 failed=0 began=$(cut -d. -f1 /proc/uptime)
    mkdir "$top/$mode"
    while [ "$round" -lt "$rounds" ]; do
        round=$((round + 1)) kept=$top/failed/$mode-$round
        if ! one_round $journal "$top/$mode/$round" "$other/$mode/$round"; then
            failed=$((failed + 1))
            echo "FAILED cache=$mode round $round of $rounds"
        fi
        rm -f "$top/$mode/$round"*
        [ $((round % 50)) != 0 ] || echo "cache=$mode: $round rounds, $failed failed"
    done
    took=$(($(cut -d. -f1 /proc/uptime) - began))
    echo "cache=$mode, journal $journal: $rounds rounds in $took s, $failed failed"
    failed_rounds=$((failed_rounds + failed))
    [ "$other" = "$top" ] || umount "$other"
    umount "$top"
done
[ "$failed_rounds" = 0 ]
