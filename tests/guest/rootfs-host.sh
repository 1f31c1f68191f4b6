#!/usr/bin/env bash
# The host's part of a guest that boots from the share:
#   rootfs-host.sh prepare SHARE   unpacks what rootfs-tree.sh has made, with rootfs-checks.sh as a unit
#   rootfs-host.sh verify SHARE    looks at what the guest has left
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
job=$1 share=$2

die() {
    echo "host: $*" >&2
    exit 1
}

prepare() {
    tar -x -f "${GUEST:?}/rootfs/tree.tar" -C "$share" --numeric-owner
    echo guest >"$share/etc/hostname"
    # The kernel is another's, so its modules are not there; and nobody logs in.
    ln -s /dev/null "$share/etc/systemd/system/systemd-modules-load.service"
    ln -s /dev/null "$share/etc/systemd/system/serial-getty@.service"
    cp "$here/rootfs-checks.sh" "$share/srv/"
    cp "$here/rootfs-checks.service" "$share/etc/systemd/system/checks.service"
    ln -s /etc/systemd/system/checks.service "$share/etc/systemd/system/multi-user.target.wants/"
}

# equal WHAT GOT WANTED
equal() {
    [ "$2" = "$3" ] || die "$1: found '$2', wanted '$3'"
}

verify() {
    local postgres changed
    postgres=$(sed -n 's/^postgres:x:\([0-9]*:[0-9]*\):.*/\1/p' "$share/etc/passwd")
    equal "the database's owner and mode" "$(stat -c '%u:%g %a' "$share/var/lib/postgresql/database")" "$postgres 700"
    equal "files in it of others" "$(find "$share/var/lib/postgresql/database" ! -user "${postgres%:*}")" ""
    equal "set-user-id of su" "$(stat -c '%u %a' "$share/usr/bin/su")" "0 4755"
    equal "an installed program" "$(stat -c '%u:%g %a' "$share/usr/bin/tree")" "0:0 755"
    [ ! -e "$share/usr/bin/hello" ] || die "a removed program is still there"
    changed=$(dpkg --root="$share" --verify tree bc git)
    equal "files of packages that are not what was unpacked" "$changed" ""
    equal "what the clone has" "$(tail -n 1 "$share/root/clone/file-291")" changed
    echo "host: it is all there, with the owners that the guest gave it"
}

"$job"
