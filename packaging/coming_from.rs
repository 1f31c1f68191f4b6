//! The options of virtiofsd 1.14 and of QEMU's -fsdev, and what takes their place here.

use std::io::{self, Write};

use clap::Command;

/// An option of theirs, and ours or why there is none.
type Row = (&'static str, &'static str);

const VIRTIOFSD: &[Row] = &[
    ("--shared-dir", "--shared-dir"),
    ("--socket-path, --socket", "--socket"),
    ("--socket-group", "--socket-group"),
    ("--fd", "--fd, which may also be connected already"),
    ("--tag", "--tag; there is always one, host by default"),
    ("--readonly", "--readonly"),
    ("--thread-pool-size", "--threads"),
    (
        "--sandbox",
        "--sandbox, with the same names and landlock; without it the strongest that this user can have",
    ),
    ("--seccomp", "--seccomp, with the same names"),
    (
        "--modcaps",
        "--modcaps; an ordinary user's daemon has no capabilities",
    ),
    ("--rlimit-nofile", "--rlimit-nofile"),
    (
        "--inode-file-handles",
        "--inode-file-handles, with the same names; the default is never, because the capability that \
         handles take opens every file of the file system",
    ),
    (
        "--translate-uid, --translate-gid",
        "--translate-uid and --translate-gid, with the same rules; ACLs are translated, too",
    ),
    (
        "--uid-map, --gid-map",
        "--translate-uid and --translate-gid; root's daemon needs no namespace of users for them",
    ),
    (
        "--xattr",
        "none: extended attributes are always there if the host's file system has them",
    ),
    (
        "--xattrmap",
        "none: the guest's user.* are the host's, and with --modcaps +sys_admin also trusted.* and \
         security.*",
    ),
    (
        "--posix-acl",
        "none: ACLs are always there if the host's file system has them; the guest mounts with \
         posixacl",
    ),
    (
        "--security-label",
        "none: no message of 9P labels a file at its creation; with --modcaps +sys_admin the guest may \
         set security.selinux afterwards",
    ),
    (
        "--killpriv-v2",
        "none: set-user-id and set-group-id bits always fall with a write, as on the host",
    ),
    (
        "--announce-submounts",
        "none: 9P cannot announce them, and --multidevs keeps their inode numbers apart",
    ),
    (
        "--cache, --writeback",
        "none: the guest chooses, with the mount option cache=none, mmap or loose",
    ),
    (
        "--allow-mmap",
        "none: with the mount option cache=mmap or loose the guest has shared mappings",
    ),
    ("--no-readdirplus", "none: 9P has no such message"),
    (
        "--allow-direct-io",
        "none: without a cache the guest reads and writes without copies of its own; the host's cache \
         is always used",
    ),
    (
        "--preserve-noatime",
        "none: O_NOATIME is passed on wherever the daemon's user may use it",
    ),
    ("--log-level", "--log-level, with the same names"),
    (
        "--syslog",
        "none: started by systemd, the daemon writes to the journal with priorities; elsewhere pipe \
         standard error to logger(1)",
    ),
    ("--print-capabilities", "--print-capabilities"),
    (
        "--migration-mode, --migration-on-error",
        "--migration-mode, --migration-on-error, with the same meanings",
    ),
    (
        "--migration-verify-handles, --migration-confirm-paths",
        "none: a file that is found is always verified, by inode number, type and time of birth",
    ),
    (
        "-o, -d, -f",
        "none: --log-level debug for -d; the daemon always stays in the foreground",
    ),
];

const QEMU: &[Row] = &[
    ("path=DIR", "--shared-dir"),
    ("mount_tag=TAG, of -device and -virtfs", "--tag"),
    (
        "security_model=MODEL",
        "--security-model, with the same names and the same formats on the host",
    ),
    ("readonly=on", "--readonly"),
    ("fmode=MODE, dmode=MODE", "--fmode and --dmode"),
    ("multidevs=WHAT", "--multidevs; the default is remap"),
    (
        "max_xattr=MAX",
        "--limit-xattr-bytes, the sum of what the guest reads and writes at the same time",
    ),
    (
        "throttling.bps-total, throttling.bps-total-max",
        "--throttle-bps RATE,BURST",
    ),
    (
        "throttling.iops-total, throttling.iops-total-max",
        "--throttle-iops RATE,BURST, which counts every request",
    ),
    (
        "throttling.bps-read, throttling.bps-write",
        "--throttle-bps-read and --throttle-bps-write",
    ),
    (
        "throttling.iops-read, throttling.iops-write",
        "--throttle-iops-read and --throttle-iops-write, also together with --throttle-iops",
    ),
    (
        "throttling.*-max-length",
        "none: a burst is an amount, and lasts as long as it takes",
    ),
    (
        "throttling.iops-size",
        "none: --throttle-bps counts the bytes of large requests",
    ),
    (
        "writeout=immediate",
        "none: data is on the disk when the guest's fsync returns; the mount option sync does it for \
         every write",
    ),
    (
        "id=ID, local, synth",
        "none: each share has a daemon of its own, on a directory",
    ),
];

/// Writes the section of the manual page. Errors: an option of ours that is not there, those of
/// writing.
pub fn write(page: &mut impl Write, command: &Command) -> io::Result<()> {
    let known = |option: &str| {
        command
            .get_arguments()
            .any(|argument| argument.get_long() == Some(option))
    };
    writeln!(page, ".SH \"COMING FROM OTHERS\"")?;
    for (title, rows) in [("virtiofsd", VIRTIOFSD), ("QEMU -fsdev", QEMU)] {
        writeln!(page, ".SS \"{}\"", roff(title))?;
        for (theirs, ours) in rows {
            if let Some(option) = options(ours).find(|option| !known(option)) {
                return Err(io::Error::other(format!("there is no --{option}")));
            }
            writeln!(page, ".TP\n.B {}\n{}", roff(theirs), roff(ours))?;
        }
    }
    Ok(())
}

/// The long options that a text names.
fn options(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter_map(|word| word.strip_prefix("--"))
}

fn roff(text: &str) -> String {
    text.replace('-', r"\-")
}
