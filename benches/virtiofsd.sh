#!/usr/bin/env bash
# Builds virtiofsd, the benches' peer, once, and prints its path. It is kept in the user's cache directory.
set -euo pipefail
version=1.14.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vhost-user-9p
kept=$cache/virtiofsd-$version
program=$kept/bin/virtiofsd

[ ! -x "$program" ] || { echo "$program"; exit 0; }
mkdir -p "$cache"
exec 9>"$kept.lock"
flock 9
[ ! -x "$program" ] || { echo "$program"; exit 0; }

missing=()
for library in seccomp cap-ng; do
    echo 'int main(void) { return 0; }' | cc -x c -o /dev/null - "-l$library" 2>/dev/null || missing+=("lib$library-dev")
done
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || {
        echo "$0: missing packages, ask an administrator for: apt-get install ${missing[*]}" >&2
        exit 1
    }
    echo "installing ${missing[*]}" >&2
    apt-get -qq update >&2
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null
fi
echo "building virtiofsd $version: some minutes, once" >&2
rm -rf "$kept.incomplete"
cargo install --quiet --locked --version "$version" --root "$kept.incomplete" virtiofsd >&2
mv "$kept.incomplete" "$kept"
echo "$program"
