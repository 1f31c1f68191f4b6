#!/bin/sh
# What a user does with a share, done in the guest: checks.sh DIRECTORY
# Each check works in a directory of its name and leaves there what host-checks.sh looks at.
# The host has prepared prepared/ (see host-checks.sh). Exits with the number of failures.
# shellcheck disable=SC2317 # check() calls the functions by their names
# shellcheck disable=SC1091 # these lie beside it in the guest only
. /mount.sh
. /tree.sh
top=$1
# shellcheck source=tests/guest/check.sh
. /check.sh
owners=${owners:?} share=${share:?}

# Debian's busybox would take its own, which knows less.
getfattr() {
    /bin/getfattr "$@"
}

prepared() {
    equal "$(cat ../prepared/letter)" "written by the host"
    equal "$(stat -c '%a %s %Y' ../prepared/letter)" "640 20 1000000000"
    equal "$(readlink ../prepared/link)" letter
    equal "$(cat ../prepared/link)" "written by the host"
}

tree() {
    make_tree /tmp/tree
    cp -a /tmp/tree/. .
    (cd /tmp/tree && find . -type f | sort | xargs sha256sum) >/tmp/sums
    sha256sum -c /tmp/sums >/tmp/verified
    equal "$(grep -c ': OK$' /tmp/verified)" 2000
    equal "$(find . -type f | wc -l)" 2000
}

rename() {
    echo one >a
    echo two >b
    mv a c
    refused test -e a
    equal "$(cat c)" one
    mv b c
    equal "$(cat c)" two
    mkdir -p from/deep to
    echo moved >from/deep/file
    mv from/deep to/deeper
    equal "$(cat to/deeper/file)" moved
    mkdir full
    echo x >full/x
    refused mv -T from full
    mv -T full from
    mv to/deeper/file from/
    equal "$(find . | sort | tr '\n' ' ')" ". ./c ./from ./from/file ./from/x ./to ./to/deeper "
}

unlinked() {
    head -c 300000 /dev/urandom >/tmp/random
    cp /tmp/random gone
    # shellcheck disable=SC2094 # to read and write it at once is the point
    exec 3<gone 4<>gone 5<gone
    rm gone
    refused test -e gone
    cmp /tmp/random - <&3
    echo more | dd bs=5 seek=60000 conv=notrunc >&4
    chmod 0604 /proc/self/fd/4
    truncate -s 300100 /proc/self/fd/4
    equal "$(stat -L -c '%s %a %h' /proc/self/fd/4)" "300100 604 0"
    echo fresh >gone
    equal "$(dd bs=5 skip=60000 count=1 <&5)" more
    exec 3<&- 4<&- 5<&-
    equal "$(cat gone)" fresh
    rm gone
    mkdir here
    cd here
    rmdir ../here
    refused touch file
}

links() {
    echo first >file
    ln file hard
    echo second >>hard
    equal "$(cat file)" "$(printf 'first\nsecond')"
    equal "$(stat -c '%h %i' file)" "2 $(stat -c %i hard)"
    rm file
    equal "$(stat -c %h hard)" 1
    ln hard file
    ln -s file relative
    equal "$(cat relative)" "$(cat file)"
    ln -s /nowhere/at/all dangling
    equal "$(readlink dangling)" /nowhere/at/all
    refused cat dangling
    ln -s loop loop
    refused cat loop
    refused ln file hard
}

special() {
    mkfifo fifo
    { echo through >fifo & } && equal "$(cat fifo)" through
    equal "$(stat -c %F fifo)" fifo
    [ "$owners" != yes ] || {
        mknod null c 1 3
        equal "$(stat -c '%F %t,%T' null)" "character special file 1,3"
        echo swallowed >null
    }
}

modes() {
    (umask 027 && echo a >masked && mkdir dir)
    equal "$(stat -c %a masked) $(stat -c %a dir)" "640 750"
    echo 'echo ran' >program
    chmod 0600 program
    equal "$(stat -c %a program)" 600
    sed -i '1i #!/bin/sh' program
    chmod 0755 program
    equal "$(./program)" ran
    echo a >plain
    chmod 0444 plain
    mkdir sticky
    chmod 1777 sticky
    equal "$(stat -c %a plain) $(stat -c %a sticky)" "444 1777"
    echo a >special
    chmod 4711 special
    equal "$(stat -c %a special)" 4711
}

ownership() {
    if [ "$owners" != yes ]; then
        echo a >mine
        equal "$(stat -c %u:%g mine)" "$(stat -c %u:%g .)"
        return
    fi
    echo a >given
    chown 1234:5678 given
    equal "$(stat -c %u:%g given)" 1234:5678
    ln -s given link
    chown -h 42:43 link
    equal "$(stat -c %u:%g link) $(stat -c %u:%g given)" "42:43 1234:5678"
    chown :99 given
    chmod 0777 .
    su guest -c 'echo hers >made && mkdir dir && ln -s made symlink'
    equal "$(stat -c %u:%g made dir symlink | uniq)" 4711:4712
    echo secret >secret
    chmod 0600 secret
    refused su guest -c 'cat secret'
    refused su guest -c 'chmod 0644 secret'
    refused su guest -c 'chown 4711 secret'
    mkdir group
    chown 0:77 group
    chmod 2775 group
    echo a >group/inherits
    equal "$(stat -c %g group/inherits)" 77
}

timestamps() {
    echo a >past
    touch -d '2001-02-03 04:05:06' past
    equal "$(stat -c '%X %Y' past)" "981173106 981173106"
    touch -r past same
    equal "$(stat -c %Y same)" 981173106
    touch -a -d '2002-02-02 00:00:00' same
    equal "$(stat -c '%X %Y' same)" "1012608000 981173106"
    echo b >>past
    age=$(($(date +%s) - $(stat -c %Y past)))
    [ "${age#-}" -lt 60 ]
    touch -d '2001-02-03 04:05:06' past
    mkdir dir
    touch -d '2038-01-20 00:00:00' dir
    equal "$(stat -c %Y dir)" 2147558400
}

sizes() {
    printf '0123456789' >file
    truncate -s 4 file
    equal "$(cat file)" 0123
    truncate -s 8 file
    equal "$(od -An -tx1 file)" " 30 31 32 33 00 00 00 00"
    printf 'AB' | dd bs=1 seek=6 conv=notrunc of=file
    printf 'longer than before' >shrunk
    printf 'short' >shrunk
    equal "$(cat shrunk)" short
    truncate -s 5G sparse
    echo end | dd bs=1 seek=5000000000 conv=notrunc of=sparse
    equal "$(stat -c %s sparse)" 5368709120
    equal "$(dd if=sparse bs=4 skip=1250000000 count=1)" end
    [ "$(du -k sparse | cut -f1)" -lt 1024 ]
    dd if=/dev/zero bs=1M count=3 of=blocks conv=fsync
    [ "$(stat -c %b blocks)" -ge 6144 ]
}

names() {
    for name in 'with space' 'new
line' 'ümläut-名前-🐧' '*?[x]' '\back"quote'"'" -dash ... \
        "$(printf '%0255d' 1)"; do
        printf '%s' "$name" >"./$name"
        equal "$(cat "./$name")" "$name"
    done
    refused touch "$(printf '%0256d' 1)"
    equal "$(find . -type f -print0 | tr -cd '\0' | wc -c)" 8
    deep=$(printf 'directory-%d/' $(seq 40))
    mkdir -p "$deep"
    echo deep >"$deep/file"
    equal "$(cat "$deep/file")" deep
}

large_directory() {
    equal "$(cd ../prepared/large && printf '%s\n' * | md5sum)" "$(seq -w 10000 | sed 's/^/entry-/' | md5sum)"
    (cd ../prepared/large && rm entry-00*)
    equal "$(cd ../prepared/large && printf '%s\n' * | wc -l)" 9001
    mkdir full
    (cd full && seq 300 | xargs touch)
    rm -r full
}

append() {
    for writer in a b; do
        (
            set +x
            i=0
            while [ "$i" -lt 500 ]; do
                echo "$writer $i $writer$writer$writer$writer$writer$writer$writer$writer"
                i=$((i + 1))
            done >>log
        ) &
    done
    wait
    equal "$(wc -l <log)" 1000
    for writer in a b; do
        equal "$(grep "^$writer " log | sed 's/ [^ ]*$//' | md5sum)" \
            "$(seq 0 499 | sed "s/^/$writer /" | md5sum)"
    done
    equal "$(grep -Evc '^a [0-9]+ aaaaaaaa$|^b [0-9]+ bbbbbbbb$' log)" 0
}

locks() {
    mkfifo /tmp/held /tmp/release
    flock file sh -c 'echo >/tmp/held; cat /tmp/release' &
    cat /tmp/held
    refused flock -n file true
    refused flock -n -s file true
    echo >/tmp/release
    wait
    flock -n file true
    flock -s file flock -n -s file true
}

xattrs() {
    [ -e ../prepared/xattrs ] || return 0
    echo a >file
    setfattr -n user.colour -v blue file
    setfattr -n user.shape -v round file
    equal "$(getfattr -n user.colour --only-values file)" blue
    setfattr -n user.colour -v red file
    setfattr -x user.shape file
    equal "$(getfattr file | grep -c '^user')" 1
    refused getfattr -n user.shape file
    equal "$(getfattr -n user.host --only-values ../prepared/xattrs)" there
}

statistics() {
    df -k . | tail -n 1 >line
    awk '{ exit !($2 > 0 && $4 <= $2) }' line
    rm line
    equal "$(stat -f -c %l .)" 255
}

verified_io() {
    fio --name=verified --filename=file --size=64M --rw=randwrite --bsrange=512-256k --blockalign=512 \
        --ioengine=psync --end_fsync=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed=9 \
        --output-format=terse --terse-version=3 >/tmp/fio
    equal "$(stat -c %s file)" 67108864
    head -c 5000000 /dev/urandom >/tmp/random
    cp /tmp/random copy
    cmp /tmp/random copy
    sha256sum file copy >sums
}

# What a program has not touched yet is the kernel's page of zeros.
untouched() {
    yes | head -c 300000 >file
    /bin/untouched file
    head -c 202900 /dev/zero >/tmp/zeros
    yes | head -c 97100 | cat /tmp/zeros - | cmp - file
}

remount() {
    cd /
    umount "$top"
    refused test -d "$top/tree"
    mount_share "$top"
    cd "$top/tree"
    find . -type f | sort | xargs sha256sum | cmp - /tmp/sums
    cd /
    umount "$top"
    mount_share "$top" ,cache=mmap
    cd "$top/remount"
    fio --name=mapped --filename=mapped --size=4M --rw=randwrite --bs=4k --ioengine=mmap \
        --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed=9 >/tmp/fio
    sha256sum mapped >sums
    cd /
    umount "$top"
    mount_share "$top" ,cache=loose
    cd "$top/remount"
    sha256sum -c sums
    cp mapped cached
    cmp mapped cached
    cd /
    umount "$top"
    mount_share "$top"
}

echo "guest: Linux $(uname -r), share '$share', new files belong to their makers: $owners"
mount_share "$top" || exit 1
check prepared "reads what the host has written"
check tree "copies 2000 files and compares their checksums"
check rename "renames files and directories, over others too"
check unlinked "reads, writes and changes files that are unlinked but open"
check links "makes hard and symbolic links"
check special "makes pipes and device nodes"
check modes "changes modes, honours umask, runs a program"
check ownership "changes owners; users are themselves"
check timestamps "sets times"
check sizes "truncates, extends, writes sparse files"
check names "uses odd, long and deep names"
check large_directory "lists 10000 entries and removes 999 of them"
check append "appends from two processes at once"
check locks "locks between processes"
check xattrs "sets, lists and removes extended attributes"
check statistics "asks for the file system's size"
check verified_io "64 MiB of random writes, verified by fio"
check untouched "writes from memory that was never touched"
check remount "mounts again, with cache=mmap and cache=loose too"
umount "$top" || failures=$((failures + 1))
exit "$failures"
