#!/usr/bin/env bash
# Builds the POSIX test programs for the guests, once: posix-tools.sh DIRECTORY
# They are linked statically: the guest's C library may be older than this machine's.
set -euo pipefail
directory=${1:?usage: posix-tools.sh DIRECTORY}
tools="pjdfstest@0.2.2 fsx@0.3.2"
[ "$(cat "$directory/version" 2>/dev/null)" != "$tools" ] || exit 0
rm -rf "$directory"
mkdir -p "$directory/bin"
target=$(rustc -vV | sed -n 's/^host: //p')
for tool in $tools; do
    RUSTFLAGS="-C target-feature=+crt-static" cargo install --quiet --locked --target "$target" \
        --target-dir "$directory/build" --root "$directory/installed" "$tool"
    cp "$directory/installed/bin/${tool%@*}" "$directory/bin/"
done
rm -rf "$directory/build" "$directory/installed"
echo "$tools" >"$directory/version"
