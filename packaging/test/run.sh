#!/usr/bin/env bash
# Installs the Debian package in fresh Debian machines, has systemd start it, mounts a share in a guest and removes
# the package: run.sh PACKAGE SUITE...
# A machine is QEMU with Debian's kernel and a root file system in memory, made from the suite's packages (once,
# kept in $GUEST/packaging). The guest in it is User-mode Linux. From the environment:
#   GUEST        what prepare.sh has made, if not target/guest
#   GUEST_ACCEL  QEMU's accelerator, tcg if not given
#   LIMIT        how many seconds a machine may take, if not 1800
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(realpath "$here/../..")
guest=${GUEST:-$top/target/guest}
package=$(realpath "$1")
shift
# shellcheck source=tests/guest/packages.sh
. "$top/tests/guest/packages.sh"

# tree SUITE: prints the archive of a fresh system of that suite
tree() {
    local archive=$guest/packaging/$1.tar mirror
    if [ ! -e "$archive" ]; then
        echo "making a fresh Debian $1" >&2
        need mmdebstrap mmdebstrap >&2
        mkdir -p "$guest/packaging"
        mirror=$(debian_mirror)
        [ -n "$mirror" ] || die "apt's sources name no Debian mirror: add one to /etc/apt/sources.list"
        mmdebstrap --quiet --variant=minbase --include=systemd-sysv "$1" "$archive.new.tar" "$mirror"
        mv "$archive.new.tar" "$archive"
    fi
    echo "$archive"
}

# machine SUITE: what it says goes to standard output
machine() {
    local suite=$1 root=$guest/root memory=2G accelerator=${GUEST_ACCEL:-tcg} cpu=max
    if [ "$accelerator" = tcg ]; then
        accelerator=tcg,thread=multi
        cpu=max,-erms,-fsrm # copies are up to twice as fast without them
    fi
    local input=$run/$suite log=$guest/packaging/$suite.log
    mkdir "$input"
    ln "$(tree "$suite")" "$input/tree.tar" 2>/dev/null || cp "$(tree "$suite")" "$input/tree.tar"
    cp "$package" "$input/vhost-user-9p.deb"
    cp "$uml" "$input/linux"
    cp "$run/guest.cpio" "$here"/{checks.sh,checks.service} "$input"
    # shellcheck source=tests/guest/loader.sh
    . "$top/tests/guest/loader.sh"
    timeout -k 5 "${LIMIT:-1800}" "${loader[@]}" "$root/usr/bin/qemu-system-x86_64" \
        -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" \
        -machine q35 -accel "$accelerator" -cpu "$cpu" -smp 2 -m "$memory" \
        -nodefaults -no-user-config -display none -no-reboot -serial stdio \
        -fsdev "local,id=input,path=$input,security_model=none,readonly=on,multidevs=remap" \
        -device virtio-9p-pci,fsdev=input,mount_tag=input \
        -kernel "$guest/vmlinuz" -initrd "$run/machine.cpio" \
        -append "console=ttyS0 quiet panic=-1 systemd.show_status=no" </dev/null |
        tr -d '\r' | tee "$log" | sed -n 's/^checks: //p'
    grep -qx 'checks: passed' "$log" || die "the package failed in Debian $suite; what was said is in $log"
}

# initramfs SCRIPT: the prepared one, with another first process
initramfs() {
    cat "$guest/initramfs.cpio"
    cp "$here/$1" "$run/init"
    (cd "$run" && echo init | "$guest/root/usr/bin/busybox" cpio -o -H newc -R 0:0 2>/dev/null)
}

[ -e "$guest/version" ] || die "there is no guest in $guest: run make guest"
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
trap 'exit 130' INT TERM HUP
uml=$("$top/tests/guest/uml-kernel.sh")
initramfs machine-init >"$run/machine.cpio"
initramfs guest-init >"$run/guest.cpio"
for suite; do
    started=$SECONDS
    echo "Debian $suite"
    machine "$suite" || exit 1
    echo "passed in $((SECONDS - started)) s: $(basename "$package") in Debian $suite"
done
