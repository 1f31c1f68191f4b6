# shellcheck shell=bash
# Debian packages without root: the machine's own apt, with directories of its own, fetches them
# and dpkg-deb unpacks them. Nothing is installed. To be sourced; wants $work, a directory.

suite=trixie
newer=trixie-backports

die() {
    echo "$0: $*" >&2
    exit 1
}

# The Debian mirror that the machine uses already. Its package lists may be missing, as in a fresh container.
debian_mirror() {
    apt-get --print-uris update 2>/dev/null | sed -n "s|^'\(.*/debian/\)dists/.*|\1|p" | sort -u | sed -n 1p
}

# apt_setup: the package lists of both suites, for what follows
apt_setup() {
    local mirror keys state=${work:?}/apt
    [ "$(uname -m)" = x86_64 ] || die "the test guests are x86-64 only, this machine is $(uname -m)"
    type apt-get dpkg-deb >/dev/null 2>&1 || die "apt-get and dpkg-deb are needed: run this on Debian"
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || die "apt's sources name no Debian mirror: add one to /etc/apt/sources.list"
    keys=$(find /usr/share/keyrings -name 'debian-archive-keyring.*' | sort | head -n 1)
    [ -n "$keys" ] || die "install debian-archive-keyring: without its keys nothing can be verified"

    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    : >"$state/status"
    printf "deb [signed-by=$keys] $mirror %s main\n" "$suite" "$newer" >"$state/sources.list"
    # Of the machine's configuration only how to download: its hooks are for its own packages.
    {
        apt-config dump | sed -n '/^Acquire::/p'
        cat <<EOF
Acquire { Languages "none"; Retries "3"; };
Dir {
    Etc {
        Main "/dev/null"; Parts "/dev/null"; Preferences "/dev/null"; PreferencesParts "/dev/null";
        SourceList "$state/sources.list"; SourceParts "/dev/null";
    };
    State "$state"; State::Status "$state/status"; Cache "$state/cache";
};
APT {
    Architecture "amd64"; Architectures "amd64"; Sandbox::User "";
    Install-Recommends "false"; Default-Release "$newer";
};
EOF
    } >"$state/apt.conf"
    private apt-get -qq update
}

# private apt-get|apt-cache ARGUMENT...: with those directories
private() {
    APT_CONFIG=$work/apt/apt.conf "$@"
}

# showing REPORT COMMAND...: runs the command, and until it ends prints what REPORT prints, every 5 seconds
showing() {
    local report=$1 reporter status=0
    shift
    # A wait without a process of its own, which would outlive this one.
    while kill -0 $$ 2>/dev/null; do
        read -r -t 5 <> <(:) || true
        "$report"
    done >&2 &
    reporter=$!
    "$@" || status=$?
    kill $reporter
    wait $reporter 2>/dev/null || true
    return $status
}

# mib BYTES
mib() {
    echo $((($1 + 1048575) / 1048576))
}

# fetched_so_far: how much apt has, of $wanted bytes
fetched_so_far() {
    echo "  $(mib "$(du -sb "$work/apt/cache/archives" | cut -f1)") of $(mib "$wanted") MiB"
}

# fetch_with_dependencies DIR PACKAGE...
fetch_with_dependencies() {
    local into=$1 count wanted
    shift
    read -r count wanted < <(private apt-get -qq -y --print-uris install "$@" |
        awk '{ bytes += $3 } END { printf "%d %.0f\n", NR, bytes }')
    echo "  downloading $count packages, $(mib "$wanted") MiB" >&2
    showing fetched_so_far private apt-get -qq -y --download-only install "$@" >/dev/null
    echo "  unpacking them" >&2
    mkdir -p "$into"
    unpack "$into" "$work"/apt/cache/archives/*.deb
    rm -f "$work"/apt/cache/archives/*.deb
}

# fetch_alone DIR PACKAGE: without what it depends on
fetch_alone() {
    local into=$1 package=$2
    echo "  downloading $package" >&2
    mkdir -p "$into"
    (cd "$work/apt/cache" && private apt-get -qq download "$package")
    unpack "$into" "$work"/apt/cache/*.deb
    rm -f "$work"/apt/cache/*.deb
}

# unpack DIR FILE...
unpack() {
    local into=$1 package
    shift
    for package in "$@"; do
        dpkg-deb -x "$package" "$into"
    done
}

# newest PATTERN: of the packages whose name matches, the one with the highest version in the name
newest() {
    private apt-cache pkgnames | sed -nE "/^$1\$/p" | sort -V | tail -n 1
}

# dependency_of PACKAGE SUITE: the first package that it depends on there
dependency_of() {
    private apt-cache depends "$1/$2" | sed -n 's/^ *Depends: //p' | head -n 1
}

# need COMMAND PACKAGE...: installs the packages of missing commands, or says which they are
need() {
    local missing=()
    while [ $# -gt 0 ]; do
        type "$1" >/dev/null 2>&1 || missing+=("$2")
        shift 2
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "missing packages, ask an administrator for: apt-get install ${missing[*]}"
    echo "installing ${missing[*]}"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null
}
