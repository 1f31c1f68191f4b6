#!/usr/bin/env bash
# Prints the licences of the crates that the binary contains: each wants its text to go along with it.
set -euo pipefail
cd "$(dirname "$0")/.."
sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
cargo=${CARGO:-cargo}

echo "vhost-user-9p contains these crates."
"$cargo" tree --locked --edges normal --package vhost-user-9p --prefix none --no-dedupe --format '{p}|{l}' |
    sort -u | while IFS='|' read -r crate licence; do
    read -r name version place <<<"$crate"
    case $place in /* | "(/"*) continue ;; esac # one of ours
    printf '\n%s %s: %s\n\n' "$name" "${version#v}" "$licence"
    found=$(find "$sources"/*/"$name-${version#v}" -maxdepth 1 -type f \
        \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'copyright*' -o -iname 'notice*' \) | sort)
    [ -z "$found" ] || xargs -d '\n' cat <<<"$found"
done
