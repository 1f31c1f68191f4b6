#!/usr/bin/env bash
# Our server and QEMU's own on the same directories, under each mapped security model, in one QEMU
# guest (models.sh). Then a look at what they have left on the host. What was said is kept in
# $GUEST/qemu-models*.log. From the environment:
#   DAEMON    the daemon, if not release/vhost-user-9p in the build folder
#   LIMIT     how many seconds the guest may take, if not 900
#   GUEST, GUEST_ACCEL   see start.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(realpath "$here/../..")
target=$(realpath -m "${CARGO_TARGET_DIR:-$top/target}")
export GUEST=${GUEST:-$target/guest}
binary=${DAEMON:-$target/release/vhost-user-9p}
log=$GUEST/qemu-models.log
models=(mapped-xattr mapped-file)
guest='' daemons=()
run=$(mktemp -d "${TMPDIR:-/tmp}/vhost-user-9p.XXXXXX")

clean_up() {
    for process in $guest "${daemons[@]}"; do
        kill -KILL "$process" 2>/dev/null || true
    done
    wait
    rm -rf "$run"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

die() {
    echo "$0: $*" >&2
    exit 1
}

[ -e "$GUEST/version" ] || die "there is no guest in $GUEST: run make guest"
[ -x "$binary" ] || die "there is no daemon at $binary: run make build"
for model in "${models[@]}"; do
    mkdir "$run/$model"
    "$binary" --socket "$run/$model.socket" --shared-dir "$run/$model" --tag "ours-$model" \
        --security-model "$model" --once >"$GUEST/qemu-models-$model.log" 2>&1 </dev/null &
    daemons+=($!)
    # In /proc/net/unix a listening socket has the flag 0x10000.
    until grep -q "00010000 .* $run/$model.socket$" /proc/net/unix; do
        kill -0 "${daemons[-1]}" 2>/dev/null || die "the daemon has ended: $(cat "$GUEST/qemu-models-$model.log")"
        sleep 0.02
    done
done

mkfifo "$run/console"
timeout --signal=KILL "${LIMIT:-900}" "$here/start.sh" qemu models no "$run" "$run/initramfs.cpio" \
    </dev/null >"$run/console" 2>&1 &
guest=$!
tr -d '\r' <"$run/console" | grep --line-buffered -v 'reboot: Power down' | tee "$log"
wait "$guest" || die "the guest did not come to its end; what it said is in $log"
guest=
grep -q '^guest: exit 0$' "$log" || die "the guest's models failed; what it said is in $log"
for daemon in "${daemons[@]}"; do
    timeout 20 tail -s 0.1 --pid="$daemon" -f /dev/null || die "the guest has gone, but a daemon still runs"
    wait "$daemon" || die "a daemon ended with status $?"
done
daemons=()

for model in "${models[@]}"; do
    share=$run/$model
    # Nothing but the daemon's own files and directories, of the modes that the model gives them.
    strange=$(find "$share" -mindepth 1 \( -not -user "$(id -u)" -o -not \( -type f -perm 600 -o -type d -perm 700 \) \))
    [ -z "$strange" ] || die "$model left on the host: $strange"
    [ "$(find "$share" -name '*link' -o -name 'drive' -o -name null | wc -l)" -gt 0 ] || die "$model left nothing"
done
# Metadata without a file would be the next file's of that name.
find "$run/mapped-file" -path '*/.virtfs_metadata/*' | while IFS= read -r metadata; do
    [ -e "${metadata%/.virtfs_metadata/*}/${metadata##*/}" ] || die "metadata was left behind: $metadata"
done
echo "host: nothing but regular files and directories of the daemon"
echo "passed in $SECONDS s: both servers, ${models[*]}"
