"""Extended attributes, access control lists, set-id bits and locks, as programs use them:
posix-cases.py DIRECTORY

Run as root, in the guest on the share and on the host beside it, in a new directory. Each case prints one
line, "GROUP CASE: OUTCOME", and the host's lines are what the guest's should be. Users are numbers, so
that none has to exist. The commands are those of Debian's acl.
"""

import errno
import fcntl
import os
import struct
import subprocess
import sys

OWNER, GROUP, OTHER = 4711, 4712, 4713
directory = sys.argv[1]
cases = 0


def case(what, action, *arguments):
    try:
        outcome = action(*arguments)
    except OSError as error:
        outcome = errno.errorcode[error.errno]
    print(f"{what}: {outcome}")


def new(mode=0o644, owner=0, group=0):
    """A file of its own for each case, with what was set by nobody else."""
    global cases
    cases += 1
    name = f"case-{cases}"
    with open(name, "wb") as file:
        file.write(b"content\n" * 100)
    own(name, mode, owner, group)
    return name


def new_directory(mode=0o755, owner=0, group=0):
    global cases
    cases += 1
    name = f"case-{cases}"
    os.mkdir(name)
    own(name, mode, owner, group)
    return name


def own(name, mode, owner, group):
    os.chown(name, owner, group)
    os.chmod(name, mode)


def mode_of(name):
    return format(os.lstat(name).st_mode & 0o7777, "04o")


def as_user(user, groups, action, *arguments):
    """What action returns, or raises, in a process of that user and those groups, the first its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        number = 0
        try:
            os.setgroups(groups)
            os.setresgid(groups[0], groups[0], groups[0])
            os.setresuid(user, user, user)
            os.write(writer, str(action(*arguments)).encode())
        except OSError as error:
            number = error.errno
        os._exit(number)
    os.close(writer)
    with open(reader) as answer:
        outcome = answer.read()
    number = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if number:
        raise OSError(number, "in the other process")
    return outcome


def run(*command):
    """What a command prints, and its status if it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    said = " ".join((done.stdout + done.stderr).split())
    return said if done.returncode == 0 else f"status {done.returncode}: {said}"


# Extended attributes


def attributes(name, **options):
    keys = sorted(key for key in os.listxattr(name, **options) if key.startswith("user."))
    return {key: shown(os.getxattr(name, key, **options)) for key in keys}


def shown(value):
    return value if len(value) < 100 else f"{len(value)} bytes of {sorted(set(value))}"


def set_attribute(before, value, flags):
    name = new()
    if before is not None:
        os.setxattr(name, "user.a", before)
    os.setxattr(name, "user.other", b"stays")
    error = "set"
    try:
        os.setxattr(name, "user.a", value, flags)
    except OSError as caught:
        error = errno.errorcode[caught.errno]
    return error, attributes(name)


def remove_attribute(before):
    name = new()
    if before is not None:
        os.setxattr(name, "user.a", before)
    error = "removed"
    try:
        os.removexattr(name, "user.a")
    except OSError as caught:
        error = errno.errorcode[caught.errno]
    return error, attributes(name)


def attribute_kept(step):
    name = new()
    os.setxattr(name, "user.a", b"kept")
    os.setxattr(name, "user.empty", b"")
    return attributes(step(name))


def renamed(name):
    os.rename(name, name + ".moved")
    return name + ".moved"


def written(name):
    with open(name, "ab") as file:
        file.write(b"more")
    return name


def on_open_and_unlinked():
    name = new()
    file = os.open(name, os.O_RDWR)
    os.setxattr(file, "user.a", b"before")
    os.unlink(name)
    os.setxattr(file, "user.b", b"")
    os.removexattr(file, "user.a")
    return attributes(file)


def on_symbolic_link():
    name = new()
    os.symlink(name, name + ".link")
    os.setxattr(name + ".link", "user.a", b"through")
    try:
        os.setxattr(name + ".link", "user.b", b"link", follow_symlinks=False)
        refused = "set"
    except OSError as caught:
        refused = errno.errorcode[caught.errno]
    return attributes(name), refused


def on_pipe():
    name = new()
    os.mkfifo(name + ".pipe")
    os.setxattr(name + ".pipe", "user.a", b"pipe")


def on_directory():
    name = new_directory()
    os.setxattr(name, "user.a", b"x" * 3000)
    os.setxattr(name, "user.a", b"")
    os.setxattr(name, "user.b", b"b", os.XATTR_CREATE)
    return attributes(name)


def many_attributes():
    name = new()
    for number in range(40):
        os.setxattr(name, f"user.number-{number}", str(number).encode())
    for number in range(0, 40, 3):
        os.removexattr(name, f"user.number-{number}")
    return attributes(name)


def by_stranger(action):
    name = new(0o644, OWNER, GROUP)
    os.setxattr(name, "user.a", b"readable")
    return as_user(OTHER, [OTHER], action, name), attributes(name)


def extended_attributes():
    flags = {"no flags": 0, "XATTR_CREATE": os.XATTR_CREATE, "XATTR_REPLACE": os.XATTR_REPLACE}
    for said, value in {"a value": b"blue", "no value": b"", "3000 bytes": b"x" * 3000}.items():
        for had, before in {"none": None, "a value": b"red", "an empty one": b""}.items():
            for flag, number in flags.items():
                case(f"xattr {said} with {flag} where there is {had}", set_attribute, before, value, number)
    for had, before in {"none": None, "a value": b"red", "an empty one": b""}.items():
        case(f"xattr removal where there is {had}", remove_attribute, before)
    case("xattr a name too long", lambda: os.setxattr(new(), "user." + "n" * 251, b"v"))
    case("xattr the longest name", lambda: os.setxattr(new(), "user." + "n" * 250, b"v"))
    case("xattr an empty name", lambda: os.setxattr(new(), "user.", b"v"))
    case("xattr a value too large", lambda: os.setxattr(new(), "user.a", b"v" * 65537))
    case("xattr one that is not there", lambda: os.getxattr(new(), "user.a"))
    case("xattr both flags", lambda: os.setxattr(new(), "user.a", b"v", os.XATTR_CREATE | os.XATTR_REPLACE))
    for step in renamed, written:
        case(f"xattr of a file that was {step.__name__}", attribute_kept, step)
    case("xattr of an open file without a name", on_open_and_unlinked)
    case("xattr of a symbolic link", on_symbolic_link)
    case("xattr of a pipe", on_pipe)
    case("xattr of a directory", on_directory)
    case("xattr forty of a file, and then fewer", many_attributes)
    case("xattr read by a stranger", by_stranger, lambda name: os.getxattr(name, "user.a"))
    case("xattr set by a stranger", by_stranger, lambda name: os.setxattr(name, "user.a", b""))
    case("xattr removed by a stranger", by_stranger, lambda name: os.removexattr(name, "user.a"))


# Access control lists


def acl(name):
    return mode_of(name), run("getfacl", "-ncp", name)


def acl_of(name, *command):
    """The list after a command on the file, and what the command said."""
    return run(*command, name), acl(name)


def acl_of_group_directory(mode, user, groups, *command):
    name = new_directory(mode, OWNER, GROUP)
    return as_user(user, groups, acl_of, name, *command), acl(name)


def inherited(mode, list_, umask):
    """What is made below a directory with a default list, two levels deep."""
    top = new_directory(mode, OWNER, GROUP)
    said = run("setfacl", "-d", "-m", list_, top)

    def make():
        os.umask(umask)
        os.mkdir(top + "/dir", 0o777)
        os.mkdir(top + "/dir/below", 0o770)
        os.close(os.open(top + "/dir/file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkfifo(top + "/pipe", 0o660)

    os.chmod(top, mode | 0o777)
    as_user(OTHER, [OTHER], make)
    made = {}
    for name in "dir", "dir/below", "dir/file", "pipe":
        status = os.stat(f"{top}/{name}")
        made[name] = status.st_uid, status.st_gid, acl(f"{top}/{name}")
    return said, acl(top), made


def raw_acl(name, value, flags=0):
    os.setxattr(name, "system.posix_acl_access", value, flags)
    return acl(name)


def acl_removed_raw(action):
    name = new(0o640)
    run("setfacl", "-m", f"u:{OTHER}:rw", name)
    said = "done"
    try:
        action(name)
    except OSError as caught:
        said = errno.errorcode[caught.errno]
    return said, acl(name)


def acl_admits(entry, user, groups, flags):
    name = new(0o600, OWNER, GROUP)
    run("setfacl", "-m", entry, name)

    def use():
        os.close(os.open(name, flags))
        return "open"

    return as_user(user, groups, use)


def chmod_with_acl(mode):
    name = new(0o660, OWNER, GROUP)
    run("setfacl", "-m", f"u:{OTHER}:rwx", name)
    os.chmod(name, mode)
    return acl(name)


def acl_of_link():
    name = new()
    os.symlink(name, name + ".link")
    return acl_of(name + ".link", "setfacl", "-m", f"u:{OTHER}:r"), acl(name)


def access_control_lists():
    entry = f"u:{OTHER}:rwx"
    for command in (
        ("setfacl", "-m", entry),
        ("setfacl", "-m", f"g:{OTHER}:r"),
        ("setfacl", "-m", "m::r"),
        ("setfacl", "-b"),
        ("setfacl", "-k"),
        ("setfacl", "-x", f"u:{OTHER}"),
        ("setfacl", "-d", "-m", entry),
        ("chacl", "u::rwx,g::r-x,o::---"),
        ("chacl", f"u::rwx,g::r-x,o::r--,u:{OTHER}:rwx,m::r-x"),
        ("chacl", "u::rwx,g::r-x"),
        ("chacl", "-B"),
        ("chacl", "-R"),
        ("chacl", "-d", f"u::rwx,g::r-x,o::---,u:{OTHER}:rwx,m::rwx"),
    ):
        said = " ".join(command)
        case(f"acl {said} of a file", lambda: acl_of(new(0o644), *command))
        case(f"acl {said} of a directory", lambda: acl_of(new_directory(0o755), *command))
        for mode in 0o2775, 0o2765, 0o3777:
            for whom, user, groups in (
                ("root", 0, [0]),
                ("the owner, a member", OWNER, [GROUP]),
                ("the owner, no member", OWNER, [OTHER]),
                ("a member", OTHER, [OTHER, GROUP]),
            ):
                case(f"acl {said} of a directory {mode:o} by {whom}", acl_of_group_directory, mode, user, groups, *command)
    for mode in 0o4755, 0o2755, 0o6711:
        case(f"acl of a file {mode:o}", lambda: acl_of(new(mode, OWNER, GROUP), "setfacl", "-m", entry))
    case(
        "acl of a file 2755 by its owner, no member",
        lambda: as_user(OWNER, [OTHER], acl_of, new(0o2755, OWNER, GROUP), "setfacl", "-m", entry),
    )
    for mode in 0o755, 0o2775:
        for list_ in entry, f"u::rwx,g::r-x,o::---,g:{GROUP}:rwx", "u::rwx,g::---,o::---":
            for umask in 0o000, 0o027:
                case(f"acl inherited below {mode:o} from {list_}, umask {umask:03o}", inherited, mode, list_, umask)
    for mode in 0o600, 0o640, 0o777, 0o4755, 0o2755:
        case(f"acl after chmod {mode:04o}", chmod_with_acl, mode)
    for said, remove in {
        "removexattr": lambda name: os.removexattr(name, "system.posix_acl_access"),
        "an empty value": lambda name: os.setxattr(name, "system.posix_acl_access", b""),
        "a list of nothing": lambda name: os.setxattr(name, "system.posix_acl_access", struct.pack("<I", 2)),
        "an empty default": lambda name: os.setxattr(name, "system.posix_acl_default", b""),
    }.items():
        case(f"acl removed by {said}", acl_removed_raw, remove)
    everyone = 0xFFFFFFFF
    header = struct.pack("<I", 2)
    short = b"".join(struct.pack("<HHI", tag, 6, everyone) for tag in (1, 4, 0x20))
    named = b"".join(
        struct.pack("<HHI", *part) for part in ((1, 6, everyone), (2, 4, OTHER), (4, 4, everyone), (0x10, 4, everyone), (0x20, 0, everyone))
    )
    for said, value in {
        "of three entries": header + short,
        "of five entries": header + named,
        "without a mask": header + named[:24] + named[32:],
        "cut short": header + named[:-3],
        "of another version": struct.pack("<I", 1) + named,
    }.items():
        case(f"acl set raw, {said}", raw_acl, new(0o600), value)
    for said, flags in {"XATTR_CREATE": os.XATTR_CREATE, "XATTR_REPLACE": os.XATTR_REPLACE}.items():
        case(f"acl set raw with {said}", raw_acl, new(0o600), header + named, flags)
    case("acl of a symbolic link", acl_of_link)
    for said, entry in {"a user": f"u:{OTHER}:rw", "a group": f"g:{OTHER}:r", "nobody": f"u:{OTHER}:-"}.items():
        for flag in "O_RDONLY", "O_RDWR":
            case(f"acl for {said} lets open with {flag}", acl_admits, entry, OTHER, [OTHER], getattr(os, flag))


# Set-id bits


def set_id_after(mode, user, groups, action):
    name = new(mode, OWNER, GROUP)
    said = as_user(user, groups, action, name)
    return mode_of(name), said


def write(name, flags=0, data=b"x"):
    file = os.open(name, os.O_WRONLY | flags)
    return os.write(file, data)


def write_twice(name):
    file = os.open(name, os.O_WRONLY)
    os.write(file, b"x" * 100)
    return os.pwrite(file, b"y" * 70000, 200)


def open_to_truncate(name):
    os.close(os.open(name, os.O_WRONLY | os.O_TRUNC))


def ftruncate(name):
    file = os.open(name, os.O_WRONLY)
    os.ftruncate(file, 10)


def handed_over():
    """Root opens it and somebody else writes."""
    name = new(0o6777, OWNER, GROUP)
    file = os.open(name, os.O_WRONLY)
    as_user(OTHER, [OTHER], os.write, file, b"x")
    os.close(file)
    return mode_of(name)


def capability(action):
    """Root gives a file capabilities, then something is done."""
    name = new(0o755, OWNER, GROUP)
    os.setxattr(name, "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))
    action(name)
    try:
        return os.getxattr(name, "security.capability").hex()
    except OSError as error:
        return errno.errorcode[error.errno]


def set_id_bits():
    actions = {
        "a write": write,
        "a write of nothing": lambda name: write(name, data=b""),
        "an appending write": lambda name: write(name, os.O_APPEND),
        "a large write": write_twice,
        "ftruncate": ftruncate,
        "truncate": lambda name: os.truncate(name, 20),
        "truncate to the same size": lambda name: os.truncate(name, 800),
        "O_TRUNC": open_to_truncate,
        "chown to nobody else": lambda name: os.chown(name, -1, -1),
        "chown to the owner": lambda name: os.chown(name, OWNER, -1),
        "chown to the group": lambda name: os.chown(name, -1, GROUP),
        "chmod 6777": lambda name: os.chmod(name, 0o6777),
        "utime": lambda name: os.utime(name),
        "setxattr": lambda name: os.setxattr(name, "user.a", b"a"),
        "a read": lambda name: len(open(name, "rb").read()),
    }
    for mode in 0o4777, 0o4766, 0o2777, 0o2767, 0o6777, 0o6766:
        for whom, user, groups in (
            ("root", 0, [0]),
            ("the owner", OWNER, [GROUP]),
            ("the owner, no member", OWNER, [OTHER]),
            ("a member", OTHER, [OTHER, GROUP]),
            ("a stranger", OTHER, [OTHER]),
        ):
            for said, action in actions.items():
                case(f"set-id {mode:o} after {said} by {whom}", set_id_after, mode, user, groups, action)
    case("set-id after a write to what root has opened", handed_over)
    for said, action in {
        "a write": write,
        "truncate": lambda name: os.truncate(name, 5),
        "chown": lambda name: os.chown(name, 5, 6),
        "chmod": lambda name: os.chmod(name, 0o700),
        "a write by the owner": lambda name: as_user(OWNER, [GROUP], write, name),
    }.items():
        case(f"set-id file capabilities after {said}", capability, action)
    for mode in 0o2775, 0o2765:
        name = new_directory(mode, OWNER, GROUP)
        os.chown(name, OTHER, OTHER)
        case(f"set-id directory {mode:o} after chown", mode_of, name)
        os.mkdir(name + "/below")
        with open(name + "/file", "w"):
            pass
        case(f"set-id directory {mode:o}, below it", lambda: (mode_of(name + "/below"), os.stat(name + "/file").st_gid))


# Locks


def elsewhere(action, *arguments):
    """In a child, which has inherited all descriptors."""
    return as_user(0, [0], action, *arguments)


def outcome_of(action, *arguments):
    try:
        action(*arguments)
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]


def flock_by_another(name, how):
    """Whether a program that has inherited nothing may lock the file."""
    return elsewhere(lambda: outcome_of(fcntl.flock, os.open(name, os.O_RDWR), how | fcntl.LOCK_NB))


def flock_of_child(first, again):
    name = new()
    file = os.open(name, os.O_RDWR)
    fcntl.flock(file, first)
    before = flock_by_another(name, fcntl.LOCK_SH), flock_by_another(name, fcntl.LOCK_EX)
    child = elsewhere(outcome_of, fcntl.flock, file, again | fcntl.LOCK_NB)
    behind = flock_by_another(name, fcntl.LOCK_SH), flock_by_another(name, fcntl.LOCK_EX)
    return before, child, behind


def flock_that_a_child_waits_for():
    """The child has the lock already: it does not wait."""
    file = os.open(new(), os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    return elsewhere(outcome_of, fcntl.flock, file, fcntl.LOCK_EX)


def flock_after_child_s_end():
    name = new()
    file = os.open(name, os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    elsewhere(os.getpid)
    held = flock_by_another(name, fcntl.LOCK_EX)
    fcntl.flock(file, fcntl.LOCK_UN)
    return held, flock_by_another(name, fcntl.LOCK_EX)


def flock_twice(first, second):
    """Two descriptors of one process, which gives one up, by LOCK_UN and then by close."""
    said = []
    for give_up in lambda file: fcntl.flock(file, fcntl.LOCK_UN), os.close:
        name = new()
        files = [os.open(name, os.O_RDWR) for _ in range(2)]
        fcntl.flock(files[0], first)
        said.append(outcome_of(fcntl.flock, files[1], second | fcntl.LOCK_NB))
        for file in files:
            give_up(file)
            said.append(flock_by_another(name, fcntl.LOCK_EX))
    return said


KINDS = {fcntl.F_RDLCK: "read", fcntl.F_WRLCK: "write", fcntl.F_UNLCK: "free"}


def record_lock(file, command, kind, start, length):
    """F_SETLK and its like; for F_GETLK what is in the way."""
    lock = struct.pack("hhqqi0q", kind, os.SEEK_SET, start, length, 0)
    kind, _, start, length, pid = struct.unpack("hhqqi0q", fcntl.fcntl(file, command, lock))
    if kind == fcntl.F_UNLCK:
        return "free"
    return KINDS[kind], start, length, "mine" if pid in (os.getpid(), os.getppid()) else "another's"


def get(file, kind, start=0, length=0):
    return record_lock(file, fcntl.F_GETLK, kind, start, length)


def set_lock(file, kind, start=0, length=0):
    return outcome_of(record_lock, file, fcntl.F_SETLK, kind, start, length)


def getlk(held):
    """What the holder itself, and its child, is told."""
    name = new()
    file, other = os.open(name, os.O_RDWR), os.open(name, os.O_RDWR)
    said = [set_lock(file, held, 10, 10)]
    for kind in fcntl.F_RDLCK, fcntl.F_WRLCK:
        for descriptor in file, other:
            said.append(get(descriptor, kind))
            said.append(elsewhere(get, descriptor, kind))
    return said


def map_of(name):
    """Each tenth byte of the first hundred, as another process finds it."""

    def look():
        file = os.open(name, os.O_RDWR)
        kinds = [get(file, fcntl.F_WRLCK, byte, 1) for byte in range(0, 100, 10)]
        return "".join(kind[0][0] if kind != "free" else "-" for kind in kinds)

    return elsewhere(look)


def ranges():
    """A process owns its ranges, whichever descriptor it has locked them through."""
    name = new()
    files = [os.open(name, os.O_RDWR) for _ in range(3)]
    said = []
    for file, kind, start, length in (
        (files[0], fcntl.F_WRLCK, 10, 60),
        (files[1], fcntl.F_UNLCK, 30, 10),
        (files[1], fcntl.F_RDLCK, 50, 30),
        (files[0], fcntl.F_RDLCK, 0, 20),
        (files[2], fcntl.F_UNLCK, 75, 0),
    ):
        said.append((set_lock(file, kind, start, length), map_of(name)))
    said.append(elsewhere(set_lock, files[0], fcntl.F_RDLCK, 0, 10))
    said.append(elsewhere(set_lock, files[0], fcntl.F_WRLCK, 0, 10))
    said.append(map_of(name))
    os.close(files[2])
    said.append(map_of(name))
    return said


def upgrade():
    """From read to write, alone and beside another reader."""
    name = new()
    file = os.open(name, os.O_RDWR)
    said = [set_lock(file, fcntl.F_RDLCK), set_lock(file, fcntl.F_WRLCK), set_lock(file, fcntl.F_RDLCK)]

    def reader():
        other = os.open(name, os.O_RDWR)
        return set_lock(other, fcntl.F_RDLCK), set_lock(other, fcntl.F_WRLCK)

    said.append(elsewhere(reader))
    said.append(set_lock(file, fcntl.F_WRLCK))
    return said


def of_description():
    """Locks of open file descriptions exclude each other also in one process."""
    name = new()
    files = [os.open(name, os.O_RDWR) for _ in range(2)]
    lock = lambda file, kind: outcome_of(record_lock, file, fcntl.F_OFD_SETLK, kind, 0, 10)
    said = [lock(files[0], fcntl.F_WRLCK), lock(files[1], fcntl.F_WRLCK)]
    said.append(elsewhere(lock, files[0], fcntl.F_WRLCK))
    said.append(elsewhere(lock, files[1], fcntl.F_RDLCK))
    said.append(lock(files[0], fcntl.F_UNLCK))
    said.append(lock(files[1], fcntl.F_WRLCK))
    return said


def locks():
    kinds = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX, "none": fcntl.LOCK_UN}
    for said, first in kinds.items():
        if first == fcntl.LOCK_UN:
            continue
        for again, second in kinds.items():
            case(f"lock flock {said}, then {again} by a child", flock_of_child, first, second)
        for again, second in kinds.items():
            if second != fcntl.LOCK_UN:
                case(f"lock flock {said} and {again}, one given up", flock_twice, first, second)
    case("lock flock that a child waits for", flock_that_a_child_waits_for)
    case("lock flock after a child's end", flock_after_child_s_end)
    case("lock F_GETLK of a read lock", getlk, fcntl.F_RDLCK)
    case("lock F_GETLK of a write lock", getlk, fcntl.F_WRLCK)
    case("lock ranges of several descriptors", ranges)
    case("lock read, then write", upgrade)
    case("lock of open file descriptions", of_description)


os.umask(0o022)
os.mkdir(directory)
os.chdir(directory)
os.chmod(".", 0o777)
extended_attributes()
access_control_lists()
set_id_bits()
locks()
