# shellcheck shell=sh
# A small C project, the same on every machine: files of which each includes two headers, and a program
# that prints the sum of their numbers, from 0.

# make_project DIRECTORY FILES
make_project() {
    mkdir -p "$1"
    cat >"$1/Makefile" <<'END'
objects := $(patsubst %.c,%.o,$(wildcard *.c))
CFLAGS := -O1 -MMD
program: $(objects)
	$(CC) -o $@ $^
-include $(objects:.o=.d)
END
    awk -v top="$1" -v files="$2" 'BEGIN {
        common = top "/common.h"
        print "#include <stddef.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>" >common
        main = top "/main.c"
        print "#include \"common.h\"" >main
        for (n = 0; n < files; n++) {
            header = top "/part" n ".h"
            print "int part" n "(void);" >header
            close(header)
            print "#include \"part" n ".h\"" >main
            part = top "/part" n ".c"
            print "#include \"common.h\"\n#include \"part" n ".h\"" >part
            for (i = 0; i < 20; i++)
                print "static int step" i "(int x) { for (int i = 0; i < x; i++) x ^= i * " i "; return x; }" >part
            print "int part" n "(void) { int x = " n ";" >part
            for (i = 0; i < 20; i++) print "if (x < 0) x = step" i "(x);" >part
            print "return x; }" >part
            close(part)
        }
        print "int main(void) { int sum = 0;" >main
        for (n = 0; n < files; n++) print "sum += part" n "();" >main
        print "printf(\"%d\\n\", sum); return 0; }" >main
    }'
}
