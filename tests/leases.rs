//! Leases that processes of the host have on files of the share (F_SETLEASE): who opens such a file
//! waits until they are given back, for 45 seconds at the most, and nobody else does.

mod common;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::BINARY;
use common::{Guest, NO_ID, no_change};
use nix::errno::Errno;
use protocol::{Tgetattr, Tlcreate, Tlopen, Tmessage, Tsetattr, getattr, lock, open, setattr};
use stub_guest::Client;
use stub_guest::daemon::Launch;
use stub_guest::messages::{Lock, tlock};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Takes a lease, for which `file` must be the only one that is open.
fn lease(file: &File, kind: i32) {
    // SAFETY: to ignore a signal needs no handler. It is sent when the lease has to be given back.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    let begin = Instant::now();
    // Between fork and exec, a daemon that another test starts has the file open, too.
    while set_lease(file, kind) == Err(Errno::EAGAIN) {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
}

fn set_lease(file: &File, kind: i32) -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    match Errno::result(result) {
        Err(Errno::EAGAIN) => Err(Errno::EAGAIN),
        result => {
            result.expect("the host's file system has leases");
            Ok(())
        }
    }
}

/// Waits until somebody wants the lease to be given back.
fn wait_until_wanted(file: &File, kind: i32) {
    let begin = Instant::now();
    // SAFETY: takes no pointer.
    while unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) } == kind {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
}

/// Posts a request about the file of the fid, or the name `file` in the directory of the other.
type Post = fn(&mut Client, u32, u32) -> u16;

fn post(client: &mut Client, message: Tmessage<'_>) -> u16 {
    let tag = client.submit(&message, &[]).unwrap();
    client.kick().unwrap();
    tag
}

fn lopen(client: &mut Client, fid: u32, flags: u32) -> u16 {
    post(client, Tmessage::Lopen(Tlopen { fid, flags }))
}

fn truncate(client: &mut Client, fid: u32) -> u16 {
    let change = Tsetattr {
        valid: setattr::SIZE,
        size: 5,
        ..no_change(fid)
    };
    post(client, Tmessage::Setattr(change))
}

fn lcreate(client: &mut Client, fid: u32, flags: u32) -> u16 {
    let create = Tlcreate {
        fid,
        name: b"file",
        flags,
        mode: 0o600,
        gid: NO_ID,
    };
    post(client, Tmessage::Lcreate(create))
}

const POSTS: &[(&str, i32, Post)] = &[
    ("lopen to write", libc::F_RDLCK, |c, file, _| {
        lopen(c, file, open::RDWR)
    }),
    ("lopen to append", libc::F_RDLCK, |c, file, _| {
        lopen(c, file, open::WRONLY | open::APPEND)
    }),
    ("lopen to truncate", libc::F_RDLCK, |c, file, _| {
        lopen(c, file, open::WRONLY | open::TRUNC)
    }),
    ("lopen to read", libc::F_WRLCK, |c, file, _| {
        lopen(c, file, open::RDONLY)
    }),
    (
        "lcreate of what exists",
        libc::F_RDLCK,
        |c, _, directory| lcreate(c, directory, open::RDWR),
    ),
    ("the same to read", libc::F_WRLCK, |c, _, directory| {
        lcreate(c, directory, open::RDONLY)
    }),
    ("lock, which opens to write", libc::F_RDLCK, |c, file, _| {
        c.lopen(file, open::RDONLY).unwrap();
        post(c, tlock(file, 0, &Lock::whole(lock::WRLCK)))
    }),
    ("truncate", libc::F_RDLCK, |c, file, _| truncate(c, file)),
    ("truncate what is written", libc::F_WRLCK, |c, file, _| {
        truncate(c, file)
    }),
];

/// Directories on file systems whose calls the loop makes itself, as far as this host has them.
fn places() -> Vec<PathBuf> {
    let memory = Path::new("/dev/shm").to_owned();
    [std::env::temp_dir(), memory]
        .into_iter()
        .filter(|path| path.is_dir())
        .collect()
}

/// A guest, and a share where `model` rules.
fn guest(place: &Path, model: &str) -> (Guest, tempfile::TempDir) {
    let share = tempfile::tempdir_in(place).unwrap();
    let launch = Launch::new(BINARY).share(share.path());
    let guest = Guest::on(launch.arg("--security-model").arg(model));
    (guest, share)
}

#[test]
fn who_opens_a_file_under_a_lease_waits_alone() {
    for place in places() {
        for model in ["passthrough", "mapped-xattr", "mapped-file"] {
            let (mut guest, _share) = guest(&place, model);
            guest.file("other", "");
            let other = guest.walk("other");
            for (what, kind, post) in POSTS {
                let path = guest.file("file", "0123456789");
                let file = File::open(&path).unwrap();
                lease(&file, *kind);
                let (fid, directory) = (guest.walk("file"), guest.walk(""));
                let tag = post(&mut guest.client, fid, directory);
                guest.client.getattr(other, getattr::ALL).unwrap();
                wait_until_wanted(&file, *kind);
                assert!(!guest.client.is_done(tag).unwrap(), "{model}: {what}");
                drop(file);
                guest.client.wait(tag).unwrap().message().unwrap();
                // The guest may have it open.
                fs::remove_file(path).unwrap();
            }
        }
    }
}

#[test]
fn more_may_wait_for_leases_than_there_are_workers() {
    for model in ["passthrough", "mapped-xattr", "mapped-file"] {
        let share = tempfile::tempdir().unwrap();
        let launch = Launch::new(BINARY).share(share.path());
        let launch = launch.arg("--security-model").arg(model);
        let mut guest = Guest::on(launch.arg("--threads").arg("4"));
        guest.file("other", "");
        let other = guest.open("other", open::RDWR);
        let files: Vec<(u32, File)> = (0..12)
            .map(|n| {
                let name = format!("file-{n}");
                let file = File::open(guest.file(&name, "0123456789")).unwrap();
                lease(&file, libc::F_WRLCK);
                (guest.walk(&name), file)
            })
            .collect();
        let mut waiting = Vec::new();
        for (n, (fid, file)) in files.into_iter().enumerate() {
            let tag = match n % 2 {
                0 => lopen(&mut guest.client, fid, open::RDONLY),
                _ => truncate(&mut guest.client, fid),
            };
            waiting.push((tag, file));
        }
        // Of both kinds.
        wait_until_wanted(&waiting[0].1, libc::F_WRLCK);
        wait_until_wanted(&waiting[1].1, libc::F_WRLCK);
        // Which only a worker may do.
        guest.client.fsync(other, 0).unwrap();
        let again = guest.walk("other");
        guest.client.getattr(again, getattr::ALL).unwrap();
        for (tag, _) in &waiting {
            assert!(!guest.client.is_done(*tag).unwrap(), "{model}");
        }
        let (tags, files): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
        // All at once: they wait for each other, too.
        drop(files);
        for tag in tags {
            guest.client.wait(tag).unwrap().message().unwrap();
        }
    }
}

#[test]
fn a_file_that_the_guest_writes_has_no_lease_and_is_truncated_at_once() {
    let (mut guest, _share) = guest(&std::env::temp_dir(), "passthrough");
    let path = guest.file("file", "0123456789");
    let fid = guest.open("file", open::RDWR);
    let file = File::open(&path).unwrap();
    for kind in [libc::F_RDLCK, libc::F_WRLCK] {
        assert_eq!(set_lease(&file, kind), Err(Errno::EAGAIN));
    }
    let tag = truncate(&mut guest.client, fid);
    guest.client.wait(tag).unwrap().message().unwrap();
    assert_eq!(fs::read(path).unwrap(), b"01234");
}

#[test]
fn what_a_mapped_model_keeps_is_read_when_a_lease_on_it_is_given_back() {
    let (mut guest, share) = guest(&std::env::temp_dir(), "mapped-file");
    let root = guest.root;
    guest
        .client
        .write_file(root, "file", b"0123456789")
        .unwrap();
    let fid = guest.walk("file");
    let kept = share.path().join(".virtfs_metadata/file");
    let file = File::open(kept).unwrap();
    lease(&file, libc::F_WRLCK);
    let mask = getattr::ALL;
    let tag = post(&mut guest.client, Tmessage::Getattr(Tgetattr { fid, mask }));
    guest.client.statfs(root).unwrap();
    wait_until_wanted(&file, libc::F_WRLCK);
    assert!(!guest.client.is_done(tag).unwrap());
    drop(file);
    guest.client.wait(tag).unwrap().message().unwrap();
}

#[test]
fn what_stands_for_a_link_is_read_when_a_lease_on_it_is_given_back() {
    for place in places() {
        let (mut guest, share) = guest(&place, "mapped-xattr");
        let root = guest.root;
        guest.client.symlink(root, "link", "target", NO_ID).unwrap();
        let fid = guest.walk("link");
        let file = File::open(share.path().join("link")).unwrap();
        lease(&file, libc::F_WRLCK);
        let readlink = Tmessage::Readlink(protocol::Treadlink { fid });
        let tag = post(&mut guest.client, readlink);
        guest.client.getattr(root, getattr::ALL).unwrap();
        wait_until_wanted(&file, libc::F_WRLCK);
        assert!(!guest.client.is_done(tag).unwrap());
        drop(file);
        guest.client.wait(tag).unwrap().message().unwrap();
    }
}
