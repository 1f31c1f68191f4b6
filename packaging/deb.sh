#!/usr/bin/env bash
# Packs what `make install` installs for Debian: deb.sh TARGET. Writes the package into TARGET and prints its path.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tests/guest/packages.sh
. tests/guest/packages.sh
need dpkg-shlibdeps dpkg-dev strip binutils >&2

target=$(realpath "$1")
version=$(packaging/version.sh)
architecture=$(dpkg --print-architecture)
# When the sources were last changed: the same sources make the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
doc=$root/usr/share/doc/vhost-user-9p
umask 022
make --no-print-directory --silent install CARGO=none PREFIX=/usr DESTDIR="$root"

# As Debian has it: the licences in one file, pages and change log compressed, completions where zsh is told to look.
mv "$root"/usr/share/zsh/{site-functions,vendor-completions}
rm "$doc"/LICENSE-*
{
    cat packaging/debian/copyright
    sed '1,2d; s/^$/./; s/^/ /' LICENSE-MIT
} >"$doc/copyright"
{
    printf 'vhost-user-9p (%s) unstable; urgency=medium\n\n  * The history of the sources tells.\n\n' "$version"
    sed -n 's/^Maintainer: \(.*\)/ -- \1  /p' packaging/debian/control.in | tr -d '\n'
    date -R -u -d "@$SOURCE_DATE_EPOCH"
} >"$doc/changelog"
gzip -9 -n "$doc"/{changelog,third-party-licences} "$root"/usr/share/man/man?/*
install -d "$root/etc/vhost-user-9p" "$root/DEBIAN"

# dpkg-shlibdeps wants to be where a source package is.
mkdir "$work/debian"
printf 'Source: vhost-user-9p\n\nPackage: vhost-user-9p\nArchitecture: any\n' >"$work/debian/control"
depends=$(cd "$work" && dpkg-shlibdeps -O "$root/usr/bin/vhost-user-9p" 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
[ -n "$depends" ] || die "dpkg-shlibdeps does not say what the binary depends on"
sed "s/@VERSION@/$version/; s/@ARCHITECTURE@/$architecture/; s/@DEPENDS@/$depends/
    s/@SIZE@/$(du -sk --apparent-size "$root" | cut -f1)/" packaging/debian/control.in >"$root/DEBIAN/control"
install -m 755 packaging/debian/{postinst,prerm,postrm} "$root/DEBIAN/"
(cd "$root" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"

package=$target/vhost-user-9p_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zxz --build "$root" "$package" >/dev/null
echo "$package"
