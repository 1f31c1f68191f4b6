"""What a program must not notice while the host kills the process that serves: survive.py CASE KILLS

The working directory is on the share. The host counts the kills in the file of the share that $KILLS_FILE
names. Each case goes on until KILLS more of them have happened.
"""

import errno
import fcntl
import os
import subprocess
import sys
import time

case, kills = sys.argv[1], int(sys.argv[2])


# Past the guest's cache.
kills_file = os.open(os.environ["KILLS_FILE"], os.O_RDONLY | os.O_DIRECT)


def count():
    """How many kills there were."""
    return int(os.pread(kills_file, 8, 0))


if case == "count":
    print(count())
    sys.exit()
begin = count()


def more():
    """Whether to go on."""
    return count() < begin + kills


def unlinked():
    """An open file without a name keeps its content."""
    file = os.open("unlinked", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.unlink("unlinked")
    size = 1 << 16
    old = bytes(size)
    os.pwrite(file, old, 0)
    number = 0
    while more():
        assert os.pread(file, size, 0) == old, "other content"
        number = number % 255 + 1
        old = bytes([number]) * size
        assert os.pwrite(file, old, 0) == size
    assert os.pread(file, size + 1, 0) == old
    assert not os.path.lexists("unlinked")


def lock():
    """A lock keeps others away, and is given back."""
    file = open("locked", "w")
    fcntl.lockf(file, fcntl.LOCK_EX)
    attempt = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    other = [sys.executable, "-c", attempt, "locked"]
    while more():
        done = subprocess.run(other, stderr=subprocess.PIPE)
        assert b"BlockingIOError" in done.stderr, done.stderr
    # One that waits gets it at last.
    waiting = subprocess.Popen([sys.executable, "-c", attempt.replace(" | fcntl.LOCK_NB", ""), "locked"])
    before = count()
    while count() < before + 3:
        assert waiting.poll() is None, "it did not wait"
    fcntl.lockf(file, fcntl.LOCK_UN)
    assert waiting.wait(60) == 0


def listing():
    """A listing that is half done goes on: no name twice, none left out."""
    names = {f"name-{n:05}" for n in range(4000)}
    for name in names:
        os.mknod(name)
    while more():
        seen = []
        with os.scandir(".") as entries:
            for entry in entries:
                seen.append(entry.name)
                if len(seen) % 1500 == 0:
                    before = count()
                    while count() == before:
                        time.sleep(0.01)
        assert len(seen) == len(set(seen)), "a name twice"
        assert set(seen) == names, "other names"


def fails(number, call, *arguments):
    """The call fails with this errno."""
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno == number, error
    else:
        raise AssertionError("it did not fail")


def names():
    """What cannot be done twice is done once."""
    round = 0
    while more():
        round += 1
        a, b = f"a{round}", f"b{round}"
        os.mkdir(a)
        fails(errno.EEXIST, os.mkdir, a)
        os.rename(a, b)
        fails(errno.ENOENT, os.rename, a, b)
        os.symlink("target", f"{b}/link")
        assert os.readlink(f"{b}/link") == "target"
        os.close(os.open(f"{b}/file", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        fails(errno.EEXIST, os.open, f"{b}/file", os.O_CREAT | os.O_EXCL)
        os.link(f"{b}/file", f"{b}/second")
        assert os.stat(f"{b}/file").st_nlink == 2
        os.mkfifo(f"{b}/pipe")
        assert sorted(os.listdir(b)) == ["file", "link", "pipe", "second"]
        for name in ["file", "link", "pipe", "second"]:
            os.unlink(f"{b}/{name}")
            fails(errno.ENOENT, os.unlink, f"{b}/{name}")
        os.rmdir(b)
        fails(errno.ENOENT, os.rmdir, b)
    assert round > 1
    print(round, "rounds")


def append():
    """What is appended is there once, in order."""
    lines = 0
    with open("appended", "ab", buffering=0) as file:
        while more():
            for _ in range(20):
                lines += 1
                file.write(f"line {lines}\n".encode())
    with open("appended") as file:
        found = [line.rstrip() for line in file]
    assert found == [f"line {n}" for n in range(1, lines + 1)], "other lines"
    print(lines, "lines")


def attributes():
    """An extended attribute is one of the two values that were set, never none."""
    open("attributed", "w").close()
    values = [b"x" * 3000, b"y" * 1000]
    os.setxattr("attributed", "user.value", values[0])
    round = 0
    while more():
        round += 1
        os.setxattr("attributed", "user.value", values[round % 2], os.XATTR_REPLACE)
        assert os.getxattr("attributed", "user.value") == values[round % 2]


globals()[case]()
