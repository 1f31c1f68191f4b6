/* Writes a file through shared mappings of two processes: mapped FILE
 * and the same content without: mapped -
 * Exits with 2 if the file cannot be mapped, and 1 with a message if a process does not see what the
 * other one, or a system call, has written. */
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORDS = 1 << 20, HALF = WORDS / 2 };

static uint32_t word(uint32_t index) {
    return index * 2654435761u;
}

static void demand(int truth, const char *what) {
    if (!truth) {
        perror(what);
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 1;
    if (!strcmp(argv[1], "-")) {
        for (uint32_t i = 0; i < WORDS; i++) {
            uint32_t value = word(i);
            demand(fwrite(&value, sizeof value, 1, stdout) == 1, "write");
        }
        return fflush(stdout) ? 1 : 0;
    }
    int file = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0644);
    demand(file >= 0, "open");
    demand(ftruncate(file, WORDS * sizeof(uint32_t)) == 0, "ftruncate");
    volatile uint32_t *map = mmap(NULL, WORDS * sizeof(uint32_t), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (map == MAP_FAILED) {
        perror("mmap");
        return 2;
    }

    /* The child answers through the mapping: its half is done when its last word is there. */
    pid_t child = fork();
    demand(child >= 0, "fork");
    if (child == 0) {
        int again = open(argv[1], O_RDWR);
        volatile uint32_t *own = mmap(NULL, WORDS * sizeof(uint32_t), PROT_READ | PROT_WRITE, MAP_SHARED, again, 0);
        demand(own != MAP_FAILED, "mmap in the child");
        while (own[1] != word(1))
            sched_yield();
        for (uint32_t i = HALF; i < WORDS; i++)
            own[i] = word(i);
        return 0;
    }
    for (uint32_t i = 0; i < HALF; i++)
        map[i] = word(i);
    while (map[WORDS - 1] != word(WORDS - 1))
        sched_yield();
    int status;
    demand(waitpid(child, &status, 0) == child && status == 0, "the child");

    /* Mappings and system calls see the same. */
    uint32_t value;
    demand(pread(file, &value, sizeof value, HALF * sizeof value) == sizeof value && value == word(HALF),
           "read what was mapped");
    value = 7;
    demand(pwrite(file, &value, sizeof value, 4096) == sizeof value, "pwrite");
    demand(map[1024] == 7, "see in the mapping what was written");
    map[1024] = word(1024);
    demand(msync((void *)map, WORDS * sizeof value, MS_SYNC) == 0, "msync");
    demand(pread(file, &value, sizeof value, 4096) == sizeof value && value == word(1024), "read what was synchronised");
    /* The last change is left to the end of the process. */
    map[WORDS - 1] = 0;
    map[WORDS - 1] = word(WORDS - 1);
    return 0;
}
