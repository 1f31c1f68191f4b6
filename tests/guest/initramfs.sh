#!/usr/bin/env bash
# Packs what both guests run: initramfs.sh ROOT KERNEL OUTPUT
#   ROOT, KERNEL   unpacked packages: the programs, and the kernel whose 9p modules are taken
# The scripts are not in it, start.sh adds them at every start.
set -euo pipefail
root=$1 kernel=$2 output=$(realpath "$3")
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/guest/loader.sh
. "$here/loader.sh"
busybox=$root/usr/bin/busybox
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
chmod 755 "$tree" # the guest's users pass through it

mkdir -p "$tree"/{bin,dev,etc,lib,lib64,mnt,proc,root,sys,tmp}
cp "$busybox" "$tree/bin/"
"$busybox" --list | while read -r applet; do
    [ -e "$tree/bin/$applet" ] || ln -s busybox "$tree/bin/$applet"
done

# Programs that busybox has not or has with less, and their libraries.
cp "$libraries/ld-linux-x86-64.so.2" "$tree/lib64/"
for program in fio flock getfattr setfattr; do
    cp --remove-destination "$root/usr/bin/$program" "$tree/bin/"
    "${loader[@]}" --list "$root/usr/bin/$program" |
        sed -n 's/.* => \(.*\) (0x.*/\1/p' | xargs -r cp -L -n -t "$tree/lib/"
done

# Users of the guest: root, and one whom the host does not know.
printf '%s\n' root:x:0:0::/root:/bin/sh guest:x:4711:4712::/:/bin/sh >"$tree/etc/passwd"
printf '%s\n' root:x:0: guest:x:4712: >"$tree/etc/group"

release=$(ls "$kernel/usr/lib/modules")
modules=usr/lib/modules/$release/kernel
for directory in net/9p fs/9p fs/netfs; do
    mkdir -p "$tree/lib/modules/$release/$directory"
    cp "$kernel/$modules/$directory"/*.ko* "$tree/lib/modules/$release/$directory/"
done
find "$tree/lib/modules" -name '*.ko.xz' -exec "$busybox" unxz {} +
"$busybox" depmod -b "$tree" "$release"

(cd "$tree" && find . | "$busybox" cpio -o -H newc -R 0:0 2>/dev/null) >"$output"
