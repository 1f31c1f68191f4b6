#!/usr/bin/env bash
# Unpacks the programs that apps.sh and bench.sh run in the guests, once: apps-tree.sh DIRECTORY
# DIRECTORY/tree is a small Debian, compiler included: too much for the guest's memory, so the guest
# mounts it and changes its root to it (enter-tree.sh).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
apps=$(realpath -m "${1:?usage: apps-tree.sh DIRECTORY}")
version=$(cat "$here"/{apps-tree,packages}.sh | sha256sum)
[ "$(cat "$apps/version" 2>/dev/null)" != "$version" ] || exit 0

mkdir -p "$(dirname "$apps")"
exec 9>"$apps.lock"
flock 9
[ "$(cat "$apps/version" 2>/dev/null)" != "$version" ] || exit 0
work=$apps.incomplete
rm -rf "$work" "$apps"
mkdir -p "$work"

# shellcheck source=tests/guest/packages.sh
. "$here/packages.sh"
echo "unpacking the guests' programs from Debian $suite"
apt_setup
fetch_with_dependencies "$work/tree" base-files bash dash coreutils findutils grep sed tar gzip \
    diffutils mawk util-linux mount gcc libc6-dev make git rsync sqlite3 acl attr fio python3-minimal
rm -rf "$work/apt" "$work"/tree/usr/share/{doc,man,locale,info,icons}
# What the packages' scripts would have made.
ln -sf mawk "$work/tree/usr/bin/awk"
ln -sf gcc "$work/tree/usr/bin/cc"
printf '%s\n' root:x:0:0::/root:/bin/sh guest:x:4711:4712::/:/bin/sh >"$work/tree/etc/passwd"
printf '%s\n' root:x:0: guest:x:4712: >"$work/tree/etc/group"
mkdir -p "$work"/tree/{dev,mnt,proc,sys,tmp,scripts,root}
echo "$version" >"$work/version"
mv "$work" "$apps"
