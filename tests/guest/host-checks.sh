#!/usr/bin/env bash
# The host's side of checks.sh, from its own view of the shared directory:
#   host-checks.sh prepare SHARE        what the guest shall find
#   host-checks.sh verify SHARE OWNERS  what the guest shall have left; OWNERS as in init
# Exits non-zero after the first thing that is not as it should be.
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
root=$(realpath "${GUEST:-$here/../../target/guest}")/root
mode=$1 share=$2 owners=${3:-}
# shellcheck source=tests/guest/loader.sh
. "$here/loader.sh"

prepare() {
    cd "$share"
    mkdir prepared prepared/large
    echo "written by the host" >prepared/letter
    chmod 0640 prepared/letter
    touch -d @1000000000 prepared/letter
    ln -s letter prepared/link
    (cd prepared/large && seq -f 'entry-%05g' 10000 | xargs touch)
    echo a >prepared/xattrs
    "${loader[@]}" "$root/usr/bin/setfattr" -n user.host -v there prepared/xattrs 2>/dev/null || {
        rm prepared/xattrs
        echo "host: the file system of $share has no user attributes, they are not checked"
    }
}

# equal WHAT GOT WANTED
equal() {
    [ "$2" = "$3" ] && return
    echo "host: $1: found '${2:0:500}', wanted '${3:0:500}'"
    exit 1
}

verify() {
    cd "$share"
    # shellcheck source=tests/guest/tree.sh
    . "$here/tree.sh"
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    make_tree "$scratch/tree"
    diff -r "$scratch/tree" tree || equal tree different same

    equal rename "$(cd rename && find . | sort | tr '\n' ' ')" ". ./c ./from ./from/file ./from/x ./to ./to/deeper "
    equal renamed "$(cat rename/c rename/from/file)" $'two\nmoved'
    equal unlinked "$(find unlinked -mindepth 1)" ""

    equal links "$(stat -c %h links/hard) $(stat -c %i links/hard)" "2 $(stat -c %i links/file)"
    equal "links' contents" "$(cat links/relative)" $'first\nsecond'
    equal "symbolic links" "$(readlink links/relative links/dangling links/loop)" $'file\n/nowhere/at/all\nloop'
    equal pipe "$(stat -c %F special/fifo)" fifo

    equal modes "$(cd modes && stat -c '%n %a' masked dir program plain sticky special | tr '\n' ' ')" \
        "masked 640 dir 750 program 755 plain 444 sticky 1777 special 4711 "
    equal times "$(cd timestamps && stat -c %Y past same dir | tr '\n' ' ')" "981173106 981173106 2147558400 "

    equal sizes "$(od -An -tx1 sizes/file)" " 30 31 32 33 00 00 41 42"
    equal "sparse size" "$(stat -c %s sizes/sparse)" 5368709120
    [ "$(stat -c %b sizes/sparse)" -lt 2048 ] || equal "sparse blocks" many few
    equal "sparse content" "$(tail -c +5000000001 sizes/sparse | head -c 4)" end

    equal names "$(find names -maxdepth 1 -type f | wc -l)" 9 # one name has a line feed
    (cd names && for name in * ...; do [ -d "$name" ] || equal name "$(cat "./$name")" "$name"; done)
    equal depth "$(find names -name file | tr -cd / | wc -c)" 41
    equal "large directory" "$(ls prepared/large)" "$(seq -f 'entry-%05g' 1000 10000)"
    equal append "$(sort append/log | md5sum)" \
        "$(for writer in aaaaaaaa bbbbbbbb; do seq -f "${writer:0:1} %g $writer" 0 499; done | sort | md5sum)"

    (cd verified_io && sha256sum --quiet -c sums) || equal "checksums of verified_io" different same
    equal "what was never touched" "$(tr -d '\0' <untouched/file | wc -c) $(head -c 202900 untouched/file | tr -d '\0' | wc -c)" "97100 0"
    (cd remount && sha256sum --quiet -c sums && cmp mapped cached) || equal remount different same
    [ ! -e prepared/xattrs ] || equal xattrs "$("${loader[@]}" "$root/usr/bin/getfattr" -d xattrs/file)" $'# file: xattrs/file\nuser.colour="red"'
    [ "$owners" != yes ] || verify_owners
    echo "host: all is as the guest left it"
}

verify_owners() {
    cd ownership
    equal owners "$(stat -c '%n %u:%g' given link made dir symlink group/inherits | tr '\n' ' ')" \
        "given 1234:99 link 42:43 made 4711:4712 dir 4711:4712 symlink 4711:4712 group/inherits 0:77 "
    equal "device node" "$(stat -c '%F %t,%T' ../special/null)" "character special file 1,3"
}

"$mode"
