#!/bin/sh
# The suites that ask whether a file system is one, in the guest: posix.sh DIRECTORY
# pjdfstest goes through the system calls as root and as users; fsx writes, reads, maps and truncates
# one file at random, OPERATIONS times in each cache mode. Exits with the number of failures.
# shellcheck disable=SC1091 # it lies beside this in the guest only
. /mount.sh
top=$1
operations=${operations:?}
failures=0

# What fails by the client's own doing: statfs shows the host file system's magic number, as it
# should, and the C library guesses from it and the name "9p" how many links a file may have.
expected="link::link_count_max"

# It wants two users beside root.
echo nobody:x:65534:65534::/:/bin/sh >>/etc/passwd
echo nobody:x:65534: >>/etc/group
cat >/tmp/pjdfstest.toml <<END
[features]
posix_fallocate = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nobody"], ["guest", "guest"]]
END
# No mapping without a cache: the client refuses it.
cat >/tmp/fsx-none.toml <<END
[weights]
mapread = 0
mapwrite = 0
END
: >/tmp/fsx-mmap.toml

mount_share "$top" || exit 1
cd "$top" || exit 1
pjdfstest -c /tmp/pjdfstest.toml -p "$top" >/tmp/pjdfstest.log 2>&1
sed 's/\x1b\[[0-9;]*m//g' -i /tmp/pjdfstest.log
failed=$(sed -n 's/^\([a-z_0-9:]*\)  *FAILED$/\1/p' /tmp/pjdfstest.log)
tail -n 5 /tmp/pjdfstest.log | grep Summary || {
    echo "pjdfstest did not come to its end"
    tail -n 20 /tmp/pjdfstest.log
    failures=$((failures + 1))
}
for test in $failed; do
    case " $expected " in
    *" $test "*) echo "expected: $test fails" ;;
    *)
        echo "FAILED  $test"
        grep -A 8 "^$test " /tmp/pjdfstest.log
        failures=$((failures + 1))
        ;;
    esac
done
cd /
umount "$top"

for mode in none mmap loose; do
    mount_share "$top" ",cache=$mode" || exit 1
    config=/tmp/fsx-mmap.toml
    [ $mode != none ] || config=/tmp/fsx-none.toml
    if fsx -q -f "$config" -N "$operations" -S 42 -P /tmp "$top/fsx-$mode" >/tmp/fsx.log 2>&1; then
        echo "ok      fsx, $operations operations, cache=$mode"
    else
        echo "FAILED  fsx, cache=$mode"
        tail -n 30 /tmp/fsx.log
        failures=$((failures + 1))
    fi
    umount "$top"
done
exit $failures
