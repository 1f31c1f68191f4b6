# shellcheck shell=sh
# The tree of files that the guest copies to the share. The same on every machine, so that the
# host can make its own and compare.

# make_tree DIRECTORY [FILES]: 2000 if not said
make_tree() {
    mkdir -p "$1"
    awk -v top="$1" -v files="${2:-2000}" 'BEGIN {
        line = "The quick brown fox jumps over the lazy dog. "
        for (n = 0; n < files; n++) {
            dir = top "/" int(n / 100) "/" n % 7
            if (!(dir in made)) { system("mkdir -p " dir); made[dir] = 1 }
            file = dir "/file-" n
            printf "" > file
            lines = (n % 50 == 0) ? 1000 + n : n % 40
            for (i = 0; i < lines; i++) printf "%d %d %s\n", n, i, line > file
            close(file)
        }
    }'
}
