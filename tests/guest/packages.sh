# shellcheck shell=bash
# Debian packages without root: the machine's own apt, with directories of its own, fetches them
# and dpkg-deb unpacks them. Nothing is installed. To be sourced; wants $work, a directory.

suite=trixie
newer=trixie-backports

die() {
    echo "$0: $*" >&2
    exit 1
}

# The Debian mirror that the machine uses already.
debian_mirror() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
        grep '/debian/$' | sort -u | head -n 1
}

# apt_setup: the package lists of both suites, and `apt` to ask and fetch.
apt_setup() {
    local mirror keys state=$work/apt
    [ "$(uname -m)" = x86_64 ] || die "the test guests are x86-64 only, this machine is $(uname -m)"
    type apt-get dpkg-deb >/dev/null 2>&1 || die "apt-get and dpkg-deb are needed: run this on Debian"
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || die "apt's sources name no Debian mirror: add one to /etc/apt/sources.list"
    keys=$(find /usr/share/keyrings -name 'debian-archive-keyring.*' | sort | head -n 1)
    [ -n "$keys" ] || die "install debian-archive-keyring: without its keys nothing can be verified"

    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    : >"$state/status"
    printf "deb [signed-by=$keys] $mirror %s main\n" "$suite" "$newer" >"$state/sources.list"
    apt_options=(
        -o Dir::Etc::SourceList="$state/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
        -o Dir::State="$state" -o Dir::State::Status="$state/status" -o Dir::Cache="$state/cache"
        -o APT::Architecture=amd64 -o APT::Architectures=amd64 -o APT::Sandbox::User=
        -o APT::Install-Recommends=false -o APT::Default-Release="$newer"
        -o Acquire::Languages=none -o Acquire::Retries=3
    )
    apt-get "${apt_options[@]}" -qq update
}

# fetch_with_dependencies DIR PACKAGE...
fetch_with_dependencies() {
    local into=$1
    shift
    apt-get "${apt_options[@]}" -qq -y --download-only install "$@" >/dev/null
    mkdir -p "$into"
    unpack "$into" "$work"/apt/cache/archives/*.deb
    rm -f "$work"/apt/cache/archives/*.deb
}

# fetch_alone DIR PACKAGE: without what it depends on
fetch_alone() {
    local into=$1 package=$2
    mkdir -p "$into"
    (cd "$work/apt/cache" && apt-get "${apt_options[@]}" -qq download "$package")
    unpack "$into" "$work"/apt/cache/*.deb
    rm -f "$work"/apt/cache/*.deb
}

unpack() {
    local into=$1 package
    shift
    for package in "$@"; do
        dpkg-deb -x "$package" "$into"
    done
}

# newest PATTERN: of the packages whose name matches, the one with the highest version in the name
newest() {
    apt-cache "${apt_options[@]}" pkgnames | grep -E "^$1\$" | sort -V | tail -n 1
}

# dependency_of PACKAGE SUITE: the first package that it depends on there
dependency_of() {
    apt-cache "${apt_options[@]}" depends "$1/$2" | sed -n 's/^ *Depends: //p' | head -n 1
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
