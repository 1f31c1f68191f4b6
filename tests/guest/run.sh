#!/usr/bin/env bash
# Serves a directory with the daemon and starts a guest on it:
#   run.sh qemu|uml [checks|posix|apps|survive|sqlite|bench|rootfs]
#   checks    checks.sh in the guest and host-checks.sh on the host, in a fresh directory
#   posix     pjdfstest, fsx and our cases (posix.sh) in a fresh directory, beside the host's own (host-posix.sh)
#   apps      SQLite, git, make, rsync (apps.sh) in a fresh directory, the host taking part (host-apps.sh)
#   survive   programs that must not notice that the process that serves is killed (survive.sh)
#   sqlite    two SQLite writers, round after round (sqlite-rounds.sh), in $GUEST/*-sqlite.share, where what
#             failed stays
#   bench     times what a user waits for (bench.sh) in a fresh directory; see bench-guest.sh
#   rootfs    a Debian whose root directory is a fresh copy of rootfs-tree.sh's, in the cache mode MODES
#             (rootfs-checks.sh)
#   if not    a shell in the guest if there is a terminal, else tour.sh; on the directory SHARE
# What the guest and the daemon said is kept in $GUEST/*.log. From the environment:
#   DAEMON    the daemon, if not release/vhost-user-9p in the build folder
#   SHARE     the directory, if not fixtures/share
#   LIMIT     how many seconds the guest may take, if not 900 (rootfs: an hour; posix, sqlite: four)
#   OPERATIONS, TESTS   how many operations fsx does in each cache mode, if not 1000000; which of
#             pjdfstest's tests to run, and then nothing else, if not all; or "cases" or "fsx" (see posix.sh)
#   MODES, OBJECTS      in which cache modes apps.sh does it all, and how many objects its git
#             repository gets, if not none,mmap,loose and 10000
#   ROUNDS, WATCH, SERVERS, LOAD  for sqlite: how many rounds in each of MODES, if not 100; yes for a process
#             that asks for the files' sizes all the time; 2 for a second server of the directory; how many
#             processes keep the host busy
#   KILL      every how many seconds the process that serves is killed, in any job; not at all if not given
#   HOW       "upgrade" if the daemon is told to start its program anew then, instead of a kill
#   KILLS     for survive: how many kills each check goes through, if not 10
#   VIRTIOFSD the program that BACKEND=virtiofsd takes, if not the one in PATH
#   BACKEND, GUEST, GUEST_ACCEL   see start.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(realpath "$here/../..")
target=$(realpath -m "${CARGO_TARGET_DIR:-$top/target}")
front_end=${1:?usage: run.sh qemu|uml [checks|posix|apps|survive|sqlite|bench|rootfs]} job=${2:-tour}
export GUEST=${GUEST:-$target/guest}
binary=${DAEMON:-$target/release/vhost-user-9p}
case $job in
posix | sqlite) limit=14400 ;;
rootfs) limit=3600 ;;
*) limit=900 ;;
esac
limit=${LIMIT:-$limit}
export MODES=${MODES:-none,mmap,loose} OBJECTS=${OBJECTS:-10000}
export OPERATIONS=${OPERATIONS:-1000000} TESTS=${TESTS:-} ROUNDS=${ROUNDS:-100} WATCH=${WATCH:-no} KILLS=${KILLS:-10}
log=$GUEST/$front_end-$job.log
daemon_log=$GUEST/$front_end-$job.daemon.log
guest='' daemons=() writer='' killer='' load=() note=''
run=$(mktemp -d "${TMPDIR:-/tmp}/vhost-user-9p.XXXXXX")
export NOTE=from-the-guest.${run##*.}

clean_up() {
    [ -z "$guest" ] || kill -KILL -- "-$guest" 2>/dev/null || kill -KILL "$guest" 2>/dev/null || true
    {
        for process in "${daemons[@]}" "${load[@]}" $writer $killer; do
            kill -KILL "$process" || true
        done
        wait
    } 2>/dev/null # bash would name each that was killed
    [ -z "$note" ] || rm -f "$note"
    rm -rf "$run"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

die() {
    echo "$0: $*" >&2
    exit 1
}

# start_daemon SOCKET TAG: it listens before a front-end may connect
start_daemon() {
    local socket=$1 tag=$2 cache=never
    mkfifo "$socket.alive" # closed when the daemon ends, however it ends
    local command=("$binary" --socket "$socket" --shared-dir "$share" --tag "$tag" --once)
    if [ "${BACKEND:-}" = virtiofsd ]; then
        [ "$MODES" != loose ] || cache=auto
        command=("${VIRTIOFSD:-virtiofsd}" --socket-path "$socket" --shared-dir "$share" --tag "$tag"
            --sandbox none --cache "$cache")
        [ "$MODES" != mmap ] || command+=(--allow-mmap)
    fi
    type "${command[0]}" >/dev/null 2>&1 || die "there is no daemon ${command[0]}: run make build, or set VIRTIOFSD"
    "${command[@]}" >>"$daemon_log" 2>&1 </dev/null 9<>"$socket.alive" &
    daemons+=($!)
    until listening "$socket"; do
        kill -0 $! 2>/dev/null || die "the daemon has ended: $(cat "$daemon_log")"
        sleep 0.02
    done
}

# listening SOCKET: in /proc/net/unix a listening socket has the flag 0x10000.
listening() {
    awk -v path="$1" '$4 == "00010000" && $8 == path { found = 1 } END { exit !found }' /proc/net/unix
}

# Says how often the process that serves was killed, if it was.
tell_kills() {
    [ -n "$killer" ] || return 0
    kill "$killer" && wait "$killer" 2>/dev/null || true
    killer=
    local taken
    taken=$(grep -c "took over in" "$daemon_log") || true
    say "the process that serves was ended $(cat "$run/kills") times (${HOW:-kill}); another took over $taken times"
    [ "$taken" -gt 0 ] || die "no other process took over"
}

# The front-end has gone: with --once each daemon now ends by itself, and well.
end_daemons() {
    local daemon status=0
    for daemon in "${daemons[@]}"; do
        timeout 20 tail -s 0.1 --pid="$daemon" -f /dev/null || die "the guest has gone, but the daemon still runs"
        wait "$daemon" || status=$?
        [ $status = 0 ] || die "the daemon ended with status $status: $(tail -n 20 "$daemon_log")"
    done
    daemons=()
}

# serving DAEMON: the chain of processes that begins there; the last one serves.
serving() {
    local process=$1 children
    while [ -n "$process" ]; do
        echo "$process"
        children=$(cat "/proc/$process/task/$process/children") || true
        process=${children%% *}
    done 2>/dev/null
}

# tell_guest KILLS: survive.py reads them. In place and at once: the guest keeps the file open.
tell_guest() {
    [ "$job" != survive ] || printf '%07d\n' "$1" | dd of="$share/kills" conv=notrunc status=none
}

# kill_servers SECONDS: kills the process that serves, of each daemon in turn, and counts in $run/kills.
kill_servers() {
    local count=0 daemon chain depth=() last=()
    # Before that there are not all processes.
    until [ "$(grep -c ' listening$' "$daemon_log")" -ge ${#daemons[@]} ]; do
        sleep 0.05
    done
    for daemon in "${!daemons[@]}"; do
        mapfile -t chain < <(serving "${daemons[daemon]}")
        depth+=(${#chain[@]})
    done
    while sleep "$1"; do
        for daemon in "${!daemons[@]}"; do
            mapfile -t chain < <(serving "${daemons[daemon]}")
            # Not one that waits for another to begin, nor one twice.
            [ ${#chain[@]} = "${depth[daemon]}" ] && [ "${chain[-1]}" != "${last[daemon]:-}" ] || continue
            if [ "${HOW:-kill}" = upgrade ]; then
                kill -HUP "${daemons[daemon]}" || return 0
            else
                kill -KILL "${chain[-1]}" || return 0
            fi
            last[daemon]=${chain[-1]}
            count=$((count + 1))
            echo $count >"$run/kills"
            tell_guest $count
        done
    done
}

daemons_run() {
    local daemon
    for daemon in "${daemons[@]}"; do
        kill -0 "$daemon" 2>/dev/null || return 1
    done
}

become_guest() {
    exec "$here/start.sh" "$front_end" "$job" "$owners" "$shared" "$run/initramfs.cpio"
}

say() {
    printf '%s\n' "$1"
    printf '%s\n' "$1" >>"$log"
}

# Shows the guest's console until the guest ends, and fails unless its job went well.
watch_guest() {
    local line='' status='' deadline=$((SECONDS + limit)) left
    : >"$log"
    mkfifo "$run/console"
    # It leads a process group, by which User-mode Linux's many processes are ended. With a shell in
    # between it would make itself a session, and nobody could.
    set -m
    become_guest </dev/null >"$run/console" 2>&1 &
    guest=$!
    set +m
    # Without its daemon the guest would only wait.
    for alive in "$run"/*.alive; do
        [ ! -p "$alive" ] || { cat "$alive"; kill -KILL -- "-$guest"; } >/dev/null 2>&1 &
    done
    exec 3<"$run/console"
    while left=$((deadline - SECONDS)) && [ $left -gt 0 ] && IFS= read -r -t $left line <&3; do
        line=${line%$'\r'}
        case $line in
        "guest: exit "*)
            status=${line##* }
            deadline=$((SECONDS + 10)) # to turn off
            ;;
        "guest: wrote the note") answer ;;
        *"reboot: Power down"*) ;;
        *) say "$line" ;;
        esac
    done
    [ -z "$line" ] || [ -n "$status" ] || say "$line"
    exec 3<&-
    kill -KILL -- "-$guest" 2>/dev/null || true
    wait "$guest" 2>/dev/null || true
    guest=
    [ -n "$status" ] || daemons_run ||
        die "the daemon ended before the guest: $(tail -n 20 "$daemon_log")"
    [ -n "$status" ] || die "the guest did not come to its end within $limit s; what it said is in $log"
    [ "$status" = 0 ] || die "the guest's $job failed ($status); what it said is in $log"
}

# The host's part of tour.sh: shows what the guest has written, and adds a line.
answer() {
    if [ ! -f "$note" ] || [ -L "$note" ]; then die "the host does not see the file $note"; fi
    say "host\$ cat $note"
    say "$(cat "$note")"
    say "host\$ echo 'Added by the host.' >>$note"
    echo "Added by the host." >>"$note"
}

[ -e "$GUEST/version" ] || die "there is no guest in $GUEST: run make guest"
owners=no
[ "$(id -u)" != 0 ] || [ "${BACKEND:-}" = hostfs ] || owners=yes
if [ "$job" = checks ]; then
    share=$run/share
    mkdir "$share"
    "$here/host-checks.sh" prepare "$share"
elif [ "$job" = posix ]; then
    [ "$(id -u)" = 0 ] || die "run it as root: the suites change owners and users"
    share=$run/share
    rm -f "$GUEST/$front_end-posix".*
    chmod 711 "$run" # the host's other users pass through it
    mkdir "$share"
    "$here/host-posix.sh" control "$share"
elif [ "$job" = sqlite ]; then
    share=$GUEST/$front_end-sqlite.share
    rm -rf "$share"
    mkdir "$share"
    for _ in $(seq "${LOAD:-0}"); do
        (while :; do :; done) &
        load+=($!)
    done
elif [ "$job" = bench ] || [ "$job" = survive ]; then
    share=$run/share
    mkdir "$share"
elif [ "$job" = rootfs ]; then
    [ "$(id -u)" = 0 ] || die "run it as root: a Debian has files of many users"
    share=$run/share
    mkdir "$share"
    "$here/rootfs-host.sh" prepare "$share"
elif [ "$job" = apps ]; then
    share=$run/share
    mkdir "$share"
    "$here/host-apps.sh" write "$share" &
    writer=$!
else
    share=$(realpath "${SHARE:-$top/fixtures/share}")
    [ -d "$share" ] || die "SHARE is no directory: $share"
    if [ -t 0 ] && [ -t 1 ]; then job=shell; fi
fi

# A first build takes minutes: before the guest's clock starts.
if [ "$front_end" = uml ]; then
    UML_KERNEL=${UML_KERNEL:-$("$here/uml-kernel.sh")}
    export UML_KERNEL
fi
shared=$share
if [ -z "${BACKEND:-}" ] || [ "$BACKEND" = virtiofsd ]; then
    : >"$daemon_log"
    shared=$run/socket
    start_daemon "$shared" host
    if [ "${SERVERS:-1}" = 2 ]; then
        export SECOND=$run/second.socket
        start_daemon "$SECOND" second
    fi
fi
if [ -n "${KILL:-}" ]; then
    echo 0 >"$run/kills"
    tell_guest 0
    kill_servers "$KILL" &
    killer=$!
fi
case $job in
shell)
    become_guest <&0 & # not in the foreground, so that a signal is not kept waiting
    guest=$!
    wait "$guest" || die "the guest ended with status $?"
    guest=
    end_daemons
    ;;
tour)
    echo "A guest boots on $share; from a terminal you would get a shell in it."
    note=$share/$NOTE
    watch_guest
    end_daemons
    echo "The guest has turned off and the daemon has ended."
    ;;
checks)
    watch_guest
    tell_kills
    end_daemons
    "$here/host-checks.sh" verify "$share" "$owners" | tee -a "$log"
    say "passed in $SECONDS s: $front_end, ${BACKEND:-$binary}"
    ;;
posix)
    watch_guest
    tell_kills
    end_daemons
    "$here/host-posix.sh" compare "$share" "$GUEST/$front_end-posix" | tee -a "$log"
    say "passed in $SECONDS s: $front_end, ${BACKEND:-$binary}"
    ;;
apps)
    watch_guest
    tell_kills
    end_daemons
    "$here/host-apps.sh" verify "$share" | tee -a "$log"
    say "passed in $SECONDS s: $front_end, ${BACKEND:-$binary}"
    ;;
rootfs)
    watch_guest
    tell_kills
    end_daemons
    "$here/rootfs-host.sh" verify "$share" | tee -a "$log"
    say "passed in $SECONDS s: $front_end, cache=$MODES, ${BACKEND:-$binary}"
    ;;
sqlite | bench | survive)
    watch_guest
    tell_kills
    end_daemons
    ;;
*) die "no such job: $job" ;;
esac
