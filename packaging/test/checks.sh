#!/bin/bash
# What is checked in a fresh Debian whose systemd runs: the package's whole life.
cd /

say() {
    echo "checks: $*" >/dev/console
}

failed=0
fail() {
    say "FAILED: $*"
    failed=1
}

# check WORD... -- COMMAND: it must succeed
check() {
    local what=()
    while [ "$1" != -- ]; do what+=("$1"); shift; done
    shift
    if "$@" >/tmp/out 2>&1; then say "${what[*]}"; else fail "${what[*]}: $(cat /tmp/out)"; fi
}

not() {
    ! "$@"
}

# Names and modes of all that an installation may leave.
files() {
    find /etc /usr /var/lib/dpkg/info /run/vhost-user-9p /run/systemd/system /srv -xdev \
        ! -name '*ld.so.cache' ! -path '/etc/*-' -printf '%p %M %u %g\n' 2>/dev/null | sort
}

nothing_failed() {
    local failed
    failed=$(systemctl --failed --no-legend --plain 'vhost-user-9p@*')
    [ -z "$failed" ] || { echo "$failed"; return 1; }
}

# guest SOCKET TAG READONLY
guest() {
    HOME=/root TMPDIR=/dev/shm timeout 600 /input/linux mem=256M initrd=/input/guest.cpio con=null con0=null,fd:1 seccomp=on \
        quiet panic=-1 virtio_uml.device="$1:9" "tag=$2" "readonly=$3" </dev/null >/tmp/guest 2>&1
    cat /tmp/guest
    grep -q 'guest: well' /tmp/guest
}

exposure() {
    local found
    found=$(systemd-analyze security --no-pager "$1" | sed -n 's/.*exposure level for [^:]*: \([0-9.]*\).*/\1/p')
    echo "$found"
    say "  exposure of $1: $found"
    awk -v found="$found" 'BEGIN { exit !(found != "" && found <= 2.0) }'
}

serving() {
    systemctl show -P MainPID "vhost-user-9p@$1.service"
}

# its_rights NAME: no right of the daemon but those to act for the guest's users
its_rights() {
    local main child
    main=$(serving "$1")
    child=$(cat "/proc/$main/task/$main/children")
    grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' "/proc/${child%% *}/status"
    # CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, SETFCAP
    grep -q '^CapBnd:.*00000000800000db$' "/proc/${child%% *}/status" &&
        grep -q '^Seccomp:.*2$' "/proc/${child%% *}/status"
}

mkdir -p /etc/systemd/system/sockets.target.wants # stays, once a socket was enabled
files >/tmp/before
check install the package -- dpkg -i /input/vhost-user-9p.deb
check the program runs -- vhost-user-9p --version
for file in /usr/share/man/man1/vhost-user-9p.1.gz /usr/share/man/man8/vhost-user-9p-share.8.gz \
    /usr/share/bash-completion/completions/vhost-user-9p /usr/share/zsh/vendor-completions/_vhost-user-9p \
    /usr/share/fish/vendor_completions.d/vhost-user-9p.fish /usr/share/qemu/vhost-user/50-vhost-user-9p.json \
    /usr/share/doc/vhost-user-9p/{README.md,copyright,third-party-licences.gz,changelog.gz,examples/NAME.conf}; do
    [ -e "$file" ] || fail "$file is not there"
done

check no share can be started that is not set up -- not systemctl start vhost-user-9p@none.socket
check that is no failed unit -- nothing_failed

mkdir -p /srv/data "/home/me/a b:c%d"
echo "the host's" | tee /srv/data/from-host >"/home/me/a b:c%d/from-host"
check set up a share -- vhost-user-9p-share data /srv/data
check its socket is root\'s alone -- [ "$(stat -c '%a %U %G' /run/vhost-user-9p/data.sock)" = "600 root root" ]
check it comes back at the next boot -- systemctl is-enabled vhost-user-9p@data.socket
check a guest mounts and changes it -- guest /run/vhost-user-9p/data.sock data no
[ "$(cat /srv/data/made/hard)" = "the guest's" ] || fail "content"
[ "$(stat -c '%a %u %g %h' /srv/data/made/moved)" = "4755 4711 4712 2" ] || fail "owner and mode"
[ "$(stat -c %s /srv/data/made/large)" = 20971520 ] || fail "size"
if [ ! -p /srv/data/made/fifo ] || [ "$(readlink /srv/data/made/link)" != moved ]; then fail "kinds"; fi
check the daemon keeps few rights -- its_rights data
check its messages are in the journal -- grep listening <(journalctl --no-pager -p info -u vhost-user-9p@data.service)
check it has nothing to complain about -- not grep . <(journalctl --no-pager --quiet -p warning -u vhost-user-9p@data.service)
check it names no sandbox but its own -- not grep -i landlock <(journalctl --no-pager -u vhost-user-9p@data.service)
check the exposure of the service -- exposure vhost-user-9p@data.service

groupadd --system libvirt-qemu
check set up a share below /home, read-only -- vhost-user-9p-share photos "/home/me/a b:c%d" --tag pictures --readonly
check its socket is libvirt\'s, too -- [ "$(stat -c '%a %U %G' /run/vhost-user-9p/photos.sock)" = "660 root libvirt-qemu" ]
check a guest reads it -- guest /run/vhost-user-9p/photos.sock pictures yes
check change it -- vhost-user-9p-share --group daemon photos "/home/me/a b:c%d" --security-model mapped-xattr
check its socket is another group\'s -- [ "$(stat -c %G /run/vhost-user-9p/photos.sock)" = daemon ]
echo 'OPTIONS=--tag pictures --inode-file-handles prefer --readonly' >>/etc/vhost-user-9p/photos.conf
systemctl restart vhost-user-9p@photos.socket
check a guest reads it when file handles are used -- guest /run/vhost-user-9p/photos.sock pictures yes

# The guest writes on while the installed program takes over.
guest /run/vhost-user-9p/data.sock data slow &
slow=$!
until [ -e /srv/data/slow/begun ]; do sleep 0.1; done
running=$(serving data)
check reload it under a guest -- systemctl reload vhost-user-9p@data.service
took_over() {
    until grep -q 'took over in' <(journalctl --no-pager -u vhost-user-9p@data.service); do sleep 0.1; done
}
check the installed program takes over -- timeout 120 bash -c "$(declare -f took_over); took_over"
check in the same process -- [ "$(serving data)" = "$running" ]
check restart it under the guest -- systemctl restart vhost-user-9p@data.service
check in another process -- [ "$(serving data)" != "$running" ]
touch /srv/data/slow/go-on
check the guest has not noticed -- wait $slow
check and wrote everything -- [ "$(cat /srv/data/slow/file)" = "$(seq 200)" ]

running=$(serving data)
check install it once more -- dpkg -i /input/vhost-user-9p.deb
check the share was served all the while -- [ "$(serving data)" = "$running" ]
check take a share away -- vhost-user-9p-share --remove photos
check its socket is gone -- [ ! -e /run/vhost-user-9p/photos.sock ]
check its directory is not -- [ -e "/home/me/a b:c%d/from-host" ]
check no unit has failed -- nothing_failed

check purge the package -- dpkg --purge vhost-user-9p
check nothing runs any more -- not grep -lx vhost-user-9p /proc/[0-9]*/comm
rm -r /srv/data
groupdel libvirt-qemu
rmdir /run/vhost-user-9p
files >/tmp/after
check nothing is left -- diff /tmp/before /tmp/after
if [ "$failed" = 0 ]; then
    say passed
else
    journalctl --no-pager -o short-monotonic | grep vhost-user-9p | tail -n 60 >/dev/console
fi
