#!/usr/bin/env bash
# Prepares under target/guest what the QEMU guest needs, once:
#   root/             QEMU and the guest's programs with their libraries, unpacked from Debian packages
#   vmlinuz           Debian's stable kernel
#   initramfs.cpio    busybox, fio, flock, getfattr, setfattr and the kernel's 9p modules; both guests use it
# A half-made one lives under another name and is thrown away by the next run. Nothing of it needs
# root, and nothing is installed on the machine.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
guest=$(realpath -m "${1:?usage: prepare.sh DIRECTORY}")
version=$(cat "$here"/{prepare,packages,initramfs,loader}.sh | sha256sum)

[ "$(cat "$guest/version" 2>/dev/null)" != "$version" ] || exit 0
mkdir -p "$(dirname "$guest")"
exec 9>"$guest.lock"
flock 9
[ "$(cat "$guest/version" 2>/dev/null)" != "$version" ] || exit 0
started=$SECONDS
work=$guest.incomplete
rm -rf "$work" "$guest"
mkdir -p "$work"

# shellcheck source=tests/guest/packages.sh
. "$here/packages.sh"
echo "preparing the guest: QEMU, a kernel and a few programs from Debian $suite and $newer"
apt_setup
fetch_with_dependencies "$work/root" qemu-system-x86 busybox-static fio attr util-linux
root=$work/root
# shellcheck source=tests/guest/loader.sh
. "$here/loader.sh"
"${loader[@]}" "$root/usr/bin/qemu-system-x86_64" -device help | grep -q vhost-user-test-device-pci ||
    die "the QEMU of $newer has no vhost-user-test-device-pci: 10.2 or newer is needed"
kernel=$(dependency_of linux-image-amd64 "$suite")
[ -n "$kernel" ] || die "found no kernel in $suite"
fetch_alone "$work/kernel" "$kernel"
rm -rf "$work/apt"

mv "$work"/kernel/boot/vmlinuz-* "$work/vmlinuz"
"$here/initramfs.sh" "$work/root" "$work/kernel" "$work/initramfs.cpio"
rm -rf "$work/kernel"
echo "$version" >"$work/version"
mv "$work" "$guest"
echo "the guest is ready in $guest, after $((SECONDS - started)) s"
