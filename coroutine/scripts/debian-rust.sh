#!/bin/sh
# Unpacks Debian's compiler (rustc-web, which follows upstream), its sources and the standard library of
# another architecture into a folder, and installs the given packages. Does not change the system's Rust.
#
#   debian-rust.sh FOLDER ARCHITECTURE PACKAGE...    ARCHITECTURE as Debian names it, e.g. arm64
set -eu
folder=$1
architecture=$2
shift 2

[ "$(id -u)" = 0 ] && sudo="" || sudo="sudo"
missing=""
for package; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "ok installed" ||
        missing="$missing $package"
done
if [ -n "$missing" ] || [ ! -x "$folder/usr/bin/rustc" ]; then
    dpkg --print-foreign-architectures | grep -qx "$architecture" ||
        $sudo dpkg --add-architecture "$architecture"
    $sudo apt-get update -qq
fi
# shellcheck disable=SC2086 # a list of names
[ -z "$missing" ] || $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null

if [ ! -e "$folder/complete-$architecture" ]; then
    mkdir -p "$folder/packages"
    depends() {
        apt-cache depends "$1" | sed -n "s/^ *Depends: \($2\)$/\1/p" | head -1
    }
    std=$(depends libstd-rust-web-dev 'libstd-rust-web-[0-9.]*')
    llvm=$(depends "$std" 'libllvm[0-9]*')
    (
        cd "$folder/packages"
        apt-get download -qq rustc-web rust-web-src libstd-rust-web-dev \
            "libstd-rust-web-dev:$architecture" "$std" "$llvm"
    )
    for package in "$folder"/packages/*.deb; do
        dpkg-deb -x "$package" "$folder"
    done
    rm -r "$folder/packages"
    touch "$folder/complete-$architecture"
fi
