#!/usr/bin/env bash
# Builds the User-mode Linux kernel from Debian's newest kernel source and our patches to it, once, and
# prints its path. It is kept in the user's cache directory, under the checksum of its configuration and
# the patches.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vhost-user-9p
patches=("$here"/uml-*.patch)
sum=$(cat "$here/uml.config" "${patches[@]}" | sha256sum)
kernel=$cache/linux-um-${sum:0:12}

[ ! -x "$kernel" ] || { echo "$kernel"; exit 0; }
started=$SECONDS
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
[ ! -x "$kernel" ] || { echo "$kernel"; exit 0; }

# shellcheck source=tests/guest/packages.sh
. "$here/packages.sh"
need make make gcc gcc gcc libc6-dev flex flex bison bison bc bc xz xz-utils patch patch >&2
work=$cache/building
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
apt_setup
source=$(newest 'linux-source-[0-9.]+')
[ -n "$source" ] || die "found no linux-source package in $newer"
echo "building the User-mode Linux kernel from $source: some minutes, once" >&2
fetch_alone "$work/package" "$source"
tar -xf "$work/package/usr/src/$source.tar.xz" -C "$work"
rm -rf "$work/package"
# About as many steps as make prints with this configuration.
steps=1400

built_so_far() {
    echo "  $(grep -c '^  [A-Z]' "$cache/build.log") of about $steps steps"
}

build() (
    cd "$work/$source" &&
        cat "${patches[@]}" | patch -p1 --forward &&
        KCONFIG_ALLCONFIG=$here/uml.config make ARCH=um allnoconfig &&
        make ARCH=um -j"$(nproc)" linux
) >"$cache/build.log" 2>&1

if ! showing built_so_far build; then
    tail -n 20 "$cache/build.log" >&2
    die "the kernel did not build, all of it is in $cache/build.log"
fi
strip -o "$kernel.new" "$work/$source/linux"
mv "$kernel.new" "$kernel"
echo "built $kernel in $((SECONDS - started)) s" >&2
echo "$kernel"
