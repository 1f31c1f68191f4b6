# shellcheck shell=sh
# How checks.sh and apps.sh check, and tell. To be sourced; wants $top, the directory below which each
# check works in one of its own. $failures counts.
failures=0

# equal WHAT WANTED
equal() {
    [ "$1" = "$2" ] && return
    echo "got '$1', wanted '$2'"
    return 1
}

# refused COMMAND...
refused() {
    ! "$@" && return
    echo "should have failed: $*"
    return 1
}

now() {
    cut -d' ' -f1 /proc/uptime
}

# check NAME DESCRIPTION: runs the function of that name in a directory of that name. Prints one line,
# and what a failed one did last.
check() {
    began=$(now)
    (
        set -ex
        mkdir -p "${top:?}/$1"
        cd "$top/$1"
        "$1"
    ) </dev/null >/tmp/output 2>&1
    status=$?
    took=$(echo "$(now) $began" | awk '{ printf "%6.2f s", $1 - $2 }')
    if [ $status = 0 ]; then
        echo "ok      $took  $2"
    else
        echo "FAILED  $took  $2"
        tail -n 25 /tmp/output | cut -c 1-300 | sed 's/^/    /'
        failures=$((failures + 1))
    fi
}
