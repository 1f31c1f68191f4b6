# shellcheck shell=sh
# Writers of one SQLite database, which only SQLite's own locks keep apart. The guest has them, and the
# host.

# database_make FILE JOURNAL: prints the journal mode that SQLite has settled on
database_make() {
    printf '%s\n' "PRAGMA journal_mode = $2;" "CREATE TABLE counter (n INTEGER);" "INSERT INTO counter VALUES (0);" \
        "CREATE TABLE entries (n INTEGER PRIMARY KEY, writer TEXT);" | sqlite3 -bail "$1"
}

# database_write FILE WRITER COUNT LOG: that many transactions, each of which depends on the last. What the
# writer was told goes to LOG.out, a line "committed" after each commit, and its errors to LOG.err. Fails if
# it stopped early.
database_write() {
    transaction="UPDATE counter SET n = n + 1; INSERT INTO entries SELECT n, '$2' FROM counter;"
    transaction="BEGIN IMMEDIATE; $transaction SELECT 'wrote ' || n FROM counter; COMMIT; SELECT 'committed';"
    seq "$3" | sed "s/.*/$transaction/" | sqlite3 -bail -cmd '.timeout 120000' "$1" >"$4.out" 2>"$4.err"
}

# database_verdict FILE: prints "ok COUNTER ENTRIES"
database_verdict() {
    sqlite3 -bail -separator ' ' "$1" \
        'PRAGMA integrity_check; SELECT n, (SELECT count(*) FROM entries) FROM counter;' | paste -s -d' '
}

# database_account FILE COUNT LOG STATUS LOG STATUS: fails unless both writers, which ended with STATUS, have
# committed COUNT transactions each and the database has them all. Says which of the two it is.
database_account() {
    { set +x; } 2>/dev/null
    told=0 early='' verdict=$(database_verdict "$1" 2>&1) count=$2 all=$((2 * $2)) account=''
    shift 2
    while [ $# -gt 0 ]; do
        committed=$(grep -c '^committed$' "$1.out" || true)
        told=$((told + committed))
        [ "$2" = 0 ] && [ "$committed" = "$count" ] || early="$early ${1##*/}"
        account="$account
${1##*/}: $committed of $count committed, status $2, last '$(tail -n 1 "$1.out")', errors: $(tail -n 3 "$1.err")"
        shift 2
    done
    [ -z "$early" ] && [ "$verdict" = "ok $all $all" ] && return
    [ -z "$early" ] || echo "STOPPED EARLY:$early"
    # What was committed and not told, as the writer ended between, is more and no loss.
    entries=${verdict##* } counter=${verdict% *} counter=${counter##* }
    case $verdict in
    "ok $counter $entries")
        [ "$counter" -ge "$told" ] && [ "$entries" -ge "$told" ] ||
            echo "LOST TRANSACTIONS: $told were committed"
        ;;
    *) echo "BROKEN DATABASE" ;;
    esac
    echo "the database says '$verdict', should say 'ok $all $all'$account"
    return 1
}
