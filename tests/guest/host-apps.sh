#!/usr/bin/env bash
# The host's part of apps.sh:
#   host-apps.sh write SHARE     waits for the guest's database, and writes it too
#   host-apps.sh verify SHARE    looks at what the guest has left, with the same programs
# Exits non-zero after the first thing that is not as it should be. GUEST, MODES and OBJECTS as in run.sh.
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
job=$1 share=$2
root=${GUEST:?}/apps/tree
# shellcheck source=tests/guest/loader.sh
. "$here/loader.sh"
# shellcheck source=tests/guest/sqlite.sh
. "$here/sqlite.sh"

sqlite3() {
    "${loader[@]}" "$root/usr/bin/sqlite3" "$@"
}

# The guest gives account of this writer too: of what it leaves, and of its status.
write() {
    local status=0
    cd "$share"
    until [ -e none/sqlite_host/ready ]; do
        sleep 0.05
    done
    cd none/sqlite_host
    database_write database host 100 host || status=$?
    echo "$status" >written.new
    mv written.new written
}

# equal WHAT GOT WANTED
equal() {
    [ "$2" = "$3" ] && return
    echo "host: $1: found '${2:0:500}', wanted '${3:0:500}'"
    exit 1
}

verify() {
    local mode repository journal files=$((OBJECTS / 100))
    for mode in ${MODES//,/ }; do
        cd "$share/$mode"
        for journal in journal wal; do
            [ "$mode,$journal" != none,wal ] || continue # no shared mappings: see apps.sh
            equal "$mode, $journal" "$(database_verdict sqlite_$journal/database)" "ok 200 200"
        done
        [ "$mode" != none ] || equal "written by both" "$(database_verdict sqlite_host/database)" "ok 200 200"
        for repository in made cloned; do
            GIT_CONFIG_GLOBAL=$here/git.config "${loader[@]}" "$root/usr/bin/git" \
                --git-dir="git_repository/$repository/.git" fsck --full --strict 2>/dev/null ||
                equal "$mode, git's $repository" broken whole
        done
        equal "$mode, program" "$(build/program)" $((files * (files - 1) / 2))
        equal "$mode, hard link" "$(stat -c '%h %i' rsync_there_and_back/there/plain)" \
            "2 $(stat -c %i rsync_there_and_back/there/directory/hard)"
        cmp mapped/file ../none/mapped/file
        equal "$mode, mapped" "$(stat -c %s mapped/file)" 4194304
    done
    echo "host: all is as the guest left it"
}

"$job"
