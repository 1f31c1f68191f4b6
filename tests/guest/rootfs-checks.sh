#!/bin/bash
# What a Debian whose root directory is the share is put through, as a systemd unit: packages, a compiler, git,
# Python and a database. rootfs-host.sh looks afterwards. A failure does not end it; the last line says how it went.
export LC_ALL=C HOME=/root GIT_CONFIG_GLOBAL=/root/gitconfig
PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
cd /root || exit
failed=0

say() {
    echo "$*" >/dev/console
}

# step WHAT COMMAND...
step() {
    local what=$1 started=$SECONDS
    shift
    if "$@" >/tmp/said 2>&1; then
        say "ok: $what ($((SECONDS - started)) s)"
    else
        failed=$((failed + 1))
        say "FAILED: $what: $(tail -n 20 /tmp/said)"
    fi
}

root_is_the_share() {
    findmnt -n -o SOURCE,FSTYPE,OPTIONS / && findmnt -n -o FSTYPE / | grep -qx 9p &&
        ! systemctl --failed --no-legend | grep .
}

# Unpacks, configures, verifies and removes; apt maps its caches.
packages() {
    dpkg -i /srv/packages/*.deb && hello && tree -d /etc && [ "$(echo '2^100' | bc)" = 1267650600228229401496703205376 ] &&
        dpkg --purge hello && [ ! -e /usr/bin/hello ] && [ -z "$(dpkg --audit)" ] && [ -z "$(dpkg --verify tree bc)" ] &&
        apt-get -q check && apt-cache policy tree | grep -q 'Installed: [0-9]'
}

compiler() {
    mkdir project && cd project || return
    echo 'int answer(void) { return 42; }' >answer.c
    printf '%s\n' '#include <stdio.h>' 'int answer(void);' 'int main(void) { printf("%d\n", answer()); }' >main.c
    printf '%s\n' 'all: main' 'libanswer.so: answer.c' '	gcc -shared -fPIC -O2 -o $@ $<' \
        'main: main.c libanswer.so' '	gcc -O2 -o $@ $< -L. -lanswer -Wl,-rpath,$(CURDIR)' >Makefile
    make -j2 && [ "$(./main)" = 42 ] && make -q
}

repository() {
    git config --global user.name guest && git config --global user.email guest@localhost || return
    git init -q -b main repository && cd repository || return
    local n
    for n in $(seq 300); do seq "$n" >"file-$n"; done
    git add . && git commit -q -m first || return
    for n in $(seq 1 10 300); do echo changed >>"file-$n"; done
    git commit -q -a -m second && git gc -q --aggressive --prune=now && git fsck --strict --full &&
        cd .. && git clone -q --no-local repository clone &&
        [ -z "$(git -C clone status --porcelain)" ] && [ "$(git -C clone rev-list --count HEAD)" = 2 ]
}

# pip comes from wheels that the package brings: there is no network here.
environment() {
    python3 -m venv venv && venv/bin/pip --version && venv/bin/pip check &&
        venv/bin/python -c 'import ssl, ctypes, sqlite3, sys; assert sys.prefix != sys.base_prefix'
}

database=/var/lib/postgresql/database

postgres() {
    cd /tmp && runuser -u postgres -- "$@"
}

initialise() {
    postgres initdb --pgdata $database --data-checksums --no-instructions
}

start() {
    postgres pg_ctl --pgdata $database -o '-k /tmp -h ""' --log $database/log --wait --timeout 300 start
}

# sum TABLE COLUMN
sum() {
    postgres psql -h /tmp -At -c "select coalesce(sum($2), 0) from $1"
}

# Each of pgbench's transactions changes three balances by one amount, which it notes in its history.
balanced() {
    local wanted found
    wanted=$(sum pgbench_history delta) &&
        found="$(sum pgbench_accounts abalance) $(sum pgbench_tellers tbalance) $(sum pgbench_branches bbalance)" || return
    [ "$found" = "$wanted $wanted $wanted" ] || { echo "balances: $found, and not $wanted"; return 1; }
}

bench() {
    postgres pgbench -h /tmp -i -q -s 1 &&
        postgres pgbench -h /tmp -c 4 -j 2 -T 20 >/root/pgbench && balanced
}

# The server is stopped in the middle of it, and has to replay its log.
crash() {
    # Without -n it empties its history.
    postgres pgbench -n -h /tmp -c 4 -j 2 -T 600 &
    local bench=$!
    until [ "$(sum pgbench_history 1)" -gt "$(($(sed -n 's/^number of transactions actually processed: //p' /root/pgbench) + 20))" ]; do
        kill -0 $bench || return
    done
    postgres pg_ctl --pgdata $database --mode immediate --wait stop
    wait $bench
    start && balanced && grep -q 'redo done' $database/log && return
    tail -n 20 $database/log
    return 1
}

stop() {
    postgres pg_ctl --pgdata $database --wait --timeout 300 stop && postgres pg_checksums --pgdata $database --check
}

say "$(systemd-analyze time 2>/dev/null | head -n 1)"
step "the root directory is the share" root_is_the_share
step "dpkg, apt" packages
step "gcc, make" compiler
step "git" repository
step "Python's venv and pip" environment
step "PostgreSQL: initdb" initialise
step "PostgreSQL: start" start
step "PostgreSQL: pgbench" bench
[ ! -e pgbench ] || say "$(grep -E '^(number of transactions actually|latency average|tps)' pgbench)"
step "PostgreSQL: stopped in the middle, started again" crash
step "PostgreSQL: stop, checksums" stop
say "guest: exit $failed"
