# shellcheck shell=sh
# What the POSIX suites are told, the same in the guest and for the control on the host.

# posix_config DIRECTORY FIRST SECOND SECONDARY: writes there what pjdfstest and fsx are to read.
#   FIRST, SECOND   two users, "user:group"
#   SECONDARY       a directory of another file system
posix_config() {
    pjdfstest_config false "$@" >"$1/pjdfstest.toml"
    pjdfstest_config true "$@" >"$1/pjdfstest-erofs.toml"
    fsx_weights 10 >"$1/fsx.toml"
    fsx_weights 0 >"$1/fsx-unmapped.toml"
}

# pjdfstest_config REMOUNT ...
pjdfstest_config() {
    cat <<END
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
secondary_fs = "$5"
[settings]
naptime = 0.01
allow_remount = $1
[dummy_auth]
entries = [["${3%:*}", "${3#*:}"], ["${4%:*}", "${4#*:}"]]
END
}

# pjdfstest_all PROGRAM CONFIGURATION DIRECTORY [TEST...]: all tests, or those. Those that mount the
# file system read-only come first and by themselves: others leave deleted files open, and then no
# file system can be mounted read-only. $read_only, if set, is a command that runs those.
pjdfstest_all() {
    program=$1 configuration=$2 directory=$3
    shift 3
    if [ $# -gt 0 ]; then
        "$program" -c "$configuration/pjdfstest-erofs.toml" -p "$directory" "$@"
    else
        ${read_only:-} "$program" -c "$configuration/pjdfstest-erofs.toml" -p "$directory" erofs
        "$program" -c "$configuration/pjdfstest.toml" -p "$directory"
    fi
}

# fsx_weights MAPPED: all that fsx can do but to punch holes, for which 9P has no message, and
# posix_fallocate, which it asks for no bytes at times and then takes the error for a failure. What
# waits for the disk is rare, or a million operations would take hours on the host already.
fsx_weights() {
    cat <<END
nomsyncafterwrite = true
[weights]
close_open = 1
read = 10
write = 10
mapread = $1
mapwrite = $1
invalidate = $(($1 / 10))
truncate = 10
fsync = 0.02
fdatasync = 0.02
posix_fadvise = 1
sendfile = 1
copy_file_range = 1
END
}

# fsx_rounds PROGRAM CONFIGURATION MODE OPERATIONS FILE: fsx in rounds of 10000 operations, each with a
# seed of its own; a longer one gets slower and slower. Prints the file's checksum after each, and
# fails with what fsx said.
fsx_rounds() {
    suited=fsx.toml
    [ "$3" != none ] || suited=fsx-unmapped.toml # without a cache the client refuses to map
    seed=0
    while [ $((seed * 10000)) -lt "$4" ]; do
        seed=$((seed + 1))
        "$1" -q -f "$2/$suited" -N 10000 -S $seed -P "$2" "$5" >"$2/fsx.log" 2>&1 || {
            echo "FAILED  with seed $seed:"
            tail -n 30 "$2/fsx.log"
            return 1
        }
        sha256sum <"$5"
    done
}
