# shellcheck shell=sh
# Writers of one SQLite database, which only SQLite's own locks keep apart. The guest has them, and the
# host.

# database_make FILE JOURNAL: prints the journal mode that SQLite has settled on
database_make() {
    printf '%s\n' "PRAGMA journal_mode = $2;" "CREATE TABLE counter (n INTEGER);" "INSERT INTO counter VALUES (0);" \
        "CREATE TABLE entries (n INTEGER PRIMARY KEY, writer TEXT);" | sqlite3 -bail "$1"
}

# database_write FILE WRITER COUNT: that many transactions, each of which depends on the last
database_write() {
    transaction="UPDATE counter SET n = n + 1; INSERT INTO entries SELECT n, '$2' FROM counter;"
    seq "$3" | sed "s/.*/BEGIN IMMEDIATE; $transaction COMMIT;/" | sqlite3 -bail -cmd '.timeout 120000' "$1"
}

# database_verdict FILE: prints "ok COUNTER ENTRIES"
database_verdict() {
    sqlite3 -bail -separator ' ' "$1" \
        'PRAGMA integrity_check; SELECT n, (SELECT count(*) FROM entries) FROM counter;' | paste -s -d' '
}
