#!/usr/bin/env bash
# Makes the Debian that rootfs.sh boots from a share, once: rootfs-tree.sh DIRECTORY
#   tree.tar   systemd, dpkg, gcc, git, Python and PostgreSQL, as their packages' scripts leave them
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
rootfs=$(realpath -m "${1:?usage: rootfs-tree.sh DIRECTORY}")
version=$(cat "$here"/{rootfs-tree,packages}.sh | sha256sum)
[ "$(cat "$rootfs/version" 2>/dev/null)" != "$version" ] || exit 0

mkdir -p "$rootfs"
exec 9>"$rootfs/lock"
flock 9
[ "$(cat "$rootfs/version" 2>/dev/null)" != "$version" ] || exit 0
started=$SECONDS

# shellcheck source=tests/guest/packages.sh
. "$here/packages.sh"
need mmdebstrap mmdebstrap >&2
mirror=$(debian_mirror)
[ -n "$mirror" ] || die "apt's sources name no Debian mirror: add one to /etc/apt/sources.list"
echo "making a Debian $suite with gcc, git, Python and PostgreSQL: 700 MB, some minutes, once"
# dpkg asks for fsync only, and nothing here has to survive.
# shellcheck disable=SC2016 # mmdebstrap's shell fills it in
mmdebstrap --quiet --variant=minbase --dpkgopt=force-unsafe-io \
    --include=systemd-sysv,gcc,libc6-dev,make,git,python3-venv,postgresql \
    --customize-hook='chroot "$1" systemctl disable --quiet postgresql' \
    --customize-hook='mkdir "$1/srv/packages"' \
    --customize-hook='cd "$1/srv/packages" && chroot "$1" sh -c "cd /srv/packages && apt-get -qq download hello tree bc"' \
    "$suite" "$rootfs/tree.new.tar" "$mirror"
mv "$rootfs/tree.new.tar" "$rootfs/tree.tar"
echo "$version" >"$rootfs/version"
echo "made it in $((SECONDS - started)) s"
