/* Writes zeros over the start of a file, from memory that was never touched: untouched FILE
 * The guest's kernel takes them from its one page of zeros, which must be memory that the daemon has. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PIECE = 50000, TOUCHED = 3000 };

/* Not const: the compiler shall not put it beside the program's text. */
char in_bss[PIECE + 10000];

static int wrote(ssize_t count, ssize_t wanted, const char *what) {
    if (count == wanted)
        return 1;
    if (count < 0)
        perror(what);
    else
        fprintf(stderr, "%s: wrote %zd bytes of %zd\n", what, count, wanted);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 1;
    int file = open(argv[1], O_WRONLY);
    char *mapped = mmap(NULL, PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (file < 0 || mapped == MAP_FAILED) {
        perror(argv[1]);
        return 1;
    }
    char touched[TOUCHED];
    memset(touched, 0, sizeof touched);
    struct iovec between[] = {{mapped + 100, PIECE - 100}, {touched, TOUCHED}, {in_bss + 10000, PIECE}};
    ssize_t all = PIECE - 100 + TOUCHED + PIECE;
    int good = wrote(write(file, in_bss + 10000, PIECE), PIECE, "a static buffer");
    good &= wrote(write(file, mapped, PIECE), PIECE, "an anonymous mapping");
    good &= wrote(writev(file, between, 3), all, "both, and touched memory between");
    return !good;
}
