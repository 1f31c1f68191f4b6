#!/bin/sh
# The mapped security models, of our server and QEMU's own on the same directories at once: models.sh
# What one has made must be the same by the other, and what the other changes by the first; and both
# must be what the guest's own tmpfs makes of the same commands. Exits with the number of failures.
# shellcheck disable=SC2317 # expect() calls the functions by their names
failures=0
reference=/tmp/reference

# mount_tag TAG DIRECTORY: without a cache, so that each sees at once what the other does
mount_tag() {
    mkdir -p "$2"
    mount -t 9p -o version=9p2000.L,trans=virtio,msize=512000,cache=none "$1" "$2"
}

make() {
    cd "$1" || exit
    chmod 0777 .
    echo content >file
    chmod 0640 file
    cp /bin/busybox program
    chmod 4755 program
    chown 1234:5678 file
    : >huge
    chown 4294967290:3000000000 huge
    ln file second
    ln -s file link
    ln -s /nowhere/at/all dangling
    ln -s "$(printf '%0200d' 7)" "long link"
    chown -h 42:43 link
    mknod fifo p
    mknod null c 1 3
    mknod disk b 259 70000
    chmod 0622 fifo null disk
    mkdir dir sticky group
    chmod 1777 sticky
    chown 0:77 group
    chmod 2775 group
    echo a >group/inherits
    mkdir group/below
    su guest -c 'umask 027; echo hers >made; mkdir hers; ln -s made hers/symlink; echo x >sticky/hers'
    echo one >a
    echo two >b
    chown 5:6 a
    chmod 0400 b
    mv a moved
    mv b dir/b
    echo three >c
    mv c moved
    mkdir -p deep/er/still
    chown 9:9 deep/er
    mv deep/er dir/er
    mkdir gone
    echo x >gone/x
    mknod gone/fifo p
    rm -r gone
    name=$(printf '%0250d' 1)
    echo long >"$name"
    chmod 0604 "$name"
    echo attributes >xattrs
    setfattr -n user.colour -v blue xattrs
}

change() {
    cd "$1" || exit
    chmod 0600 file
    chown 7 second
    chown 0:0 program
    chmod 0700 dir
    mv link dir/link
    rm fifo dangling
    mv disk drive
    chown 3:3 null
    ln second dir/third
    mv dir sticky/dir
    rm -r hers
    echo more >>moved
    ln -sf elsewhere "long link"
    mkdir empty
    mv empty sticky/dir/er/still
    setfattr -x user.colour xattrs
    setfattr -n user.shape -v round xattrs
    su guest -c 'chmod 0444 made; mv made mine'
}

# Everything but times, and what a directory counts as its links and its size.
describe() {
    cd "$1" || exit
    find . | sort | while IFS= read -r name; do
        stat -c '%N %F %a %u:%g' "$name"
        [ -d "$name" ] || stat -c '  links %h, size %s, device %t,%T' "$name"
        if [ -L "$name" ]; then
            continue
        elif [ -f "$name" ]; then
            sha256sum <"$name"
            /bin/getfattr -d "$name" 2>/dev/null | grep '^user'
        fi
    done
}

# same WHAT DIRECTORY: of all three
same() {
    what=$1
    (describe "$reference") >/tmp/expected
    for server in ours theirs; do
        (describe "/$server/$2") >/tmp/seen 2>&1
        if diff /tmp/expected /tmp/seen >/tmp/different; then
            echo "ok      $model: $what, seen by $server ($(wc -l </tmp/seen) lines)"
        else
            echo "FAILED  $model: $what, seen by $server"
            head -n 40 /tmp/different | cut -c 1-300 | sed 's/^/    /'
            failures=$((failures + 1))
        fi
    done
}

# expect DESCRIPTION COMMAND...
expect() {
    what=$1
    shift
    if "$@" >/tmp/output 2>&1; then
        echo "ok      $model: $what"
    else
        echo "FAILED  $model: $what"
        head -n 10 /tmp/output | sed 's/^/    /'
        failures=$((failures + 1))
    fi
}

acls() {
    # u::rw- u:4711:r-- g::r-- m::r-- o::---, as setxattr(2) takes it
    acl=0x0200000001000600ffffffff020004006712000004000400ffffffff10000400ffffffff20000000ffffffff
    : >/ours/acl && setfattr -n system.posix_acl_access -v "$acl" /ours/acl || return
    for server in ours theirs; do
        [ "$(/bin/getfattr -n system.posix_acl_access -e hex "/$server/acl" 2>/dev/null | grep '=')" = \
            "system.posix_acl_access=$acl" ] || return
    done
}

# By us: QEMU's mapped-file lets the guest have user.virtfs.
hidden() {
    if [ "$model" = mapped-file ]; then
        ! ls /ours/.virtfs_metadata && ! ls /ours/.virtfs_metadata_root || return
        ! mkdir /ours/.virtfs_metadata && ! mv /ours/theirs/file /ours/.virtfs_metadata/file || return
    fi
    ! /bin/getfattr -n user.virtfs.uid /ours/theirs/file || return
    ! setfattr -n user.virtfs.uid -v 0sAAAAAA== /ours/theirs/file || return
    ! find /ours | grep virtfs || return
}

root_itself() {
    chown 11:12 /ours && chmod 0751 /ours && [ "$(stat -c '%a %u:%g' /theirs)" = "751 11:12" ] &&
        chown 13:14 /theirs && [ "$(stat -c '%a %u:%g' /ours)" = "751 13:14" ]
}

for model in mapped-xattr mapped-file; do
    mount_tag "ours-$model" /ours && mount_tag "theirs-$model" /theirs || exit 99
    for maker in ours theirs; do
        other=theirs
        [ $maker = ours ] || other=ours
        rm -rf $reference
        mkdir $reference "/$maker/$maker"
        for place in "/$maker/$maker" $reference; do
            (make "$place") 2>&1 | sed "s|^|$place: |"
        done
        same "made by $maker" "$maker"
        for place in "/$other/$maker" $reference; do
            (change "$place") 2>&1 | sed "s|^|$place: |"
        done
        same "made by $maker, changed by $other" "$maker"
    done
    expect "what is kept cannot be reached" hidden
    expect "the root's owner and mode" root_itself
    cd /
    umount /ours /theirs
    if [ $model = mapped-xattr ]; then
        for server in ours theirs; do
            mount -t 9p -o version=9p2000.L,trans=virtio,access=client,posixacl "$server-$model" /$server || exit 99
        done
        expect "access control lists" acls
        umount /ours /theirs
    fi
done
exit $failures
