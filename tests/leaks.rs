//! Nothing is left over from requests, whether they succeed or fail: each message is sent over and over,
//! rightly and wrongly, and the daemon's memory and descriptors stay what they were. What leaked in QEMU's
//! server on its ways of errors (CVE-2016-8577, 2016-9102, 2016-9105, 2016-9106, 2017-7377, 2017-8086)
//! is among them.

mod common;

use std::fs;

use common::{Guest, NO_ID, host_set};
use protocol::{Tsetattr, getattr, lock, open, xattr};
use stub_guest::Client;
use stub_guest::messages::Lock;

/// How often each is sent after the first rounds, in which buffers and tables grow to their size.
const ROUNDS: usize = 3000;
const WARM_UP: usize = 500;
/// Less than one byte for each time.
const TOLERANCE_KIB: i64 = 512;

/// Resident memory that is the daemon's own, in KiB, and how many descriptors it has.
fn holds(guest: &Guest) -> (i64, usize) {
    let pid = guest.daemon.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.unwrap().split_whitespace().next().unwrap();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    (kib.parse().unwrap(), descriptors)
}

/// Sends `requests` over and over. What they answer is not looked at: other tests do.
fn nothing_is_left(mut guest: Guest, requests: impl Fn(&mut Client, u32)) {
    let root = guest.root;
    for _ in 0..WARM_UP {
        requests(&mut guest.client, root);
    }
    let before = holds(&guest);
    for _ in 0..ROUNDS {
        requests(&mut guest.client, root);
    }
    let after = holds(&guest);
    assert_eq!(before.1, after.1, "descriptors");
    assert!(after.0 - before.0 < TOLERANCE_KIB, "{before:?} {after:?}");
}

fn guest() -> Guest {
    let guest = Guest::new();
    guest.file("file", "content");
    guest.dir("directory");
    guest
}

#[test]
fn fids_and_their_errors() {
    nothing_is_left(guest(), |client, root| {
        let (fid, missing) = (client.alloc_fid(), 77_777);
        let _ = client.walk(root, fid, &["file"]);
        let _ = client.walk(root, fid, &["file"]);
        let _ = client.walk(root, missing, &["nothing"]);
        let _ = client.walk(root, missing, &["file", "below"]);
        let _ = client.walk(missing, fid, &["file"]);
        let _ = client.attach(fid, "", "", 0);
        let _ = client.attach(missing, "", "/nowhere", 0);
        let _ = client.auth(missing, "", "", 0);
        let _ = client.clunk(missing);
        let _ = client.clunk(fid);
        let _ = client.remove(missing);
    });
}

#[test]
fn attributes_and_their_errors() {
    let guest = guest();
    let _ = host_set(&guest.path("file"), "user.a", &[7; 3000]);
    nothing_is_left(guest, |client, root| {
        let (file, value) = (client.walk_path(root, "file").unwrap(), client.alloc_fid());
        let _ = client.getattr(file, getattr::BASIC);
        let _ = client.setattr(Tsetattr {
            fid: 77_777,
            ..Tsetattr::default()
        });
        let _ = client.xattrwalk(file, value, "user.a");
        let _ = client.xattrwalk(file, value, "user.a");
        let _ = client.clunk(value);
        let _ = client.xattrwalk(file, value, "user.none");
        // The list of all, which leaked in 2017-8086.
        let _ = client.xattrwalk(file, value, "");
        let _ = client.clunk(value);
        // Announced and not written, and announced again: 2016-9102.
        let _ = client.xattrcreate(file, "user.b", 60_000, 0);
        let _ = client.write(file, 0, &[7; 60_000]);
        let _ = client.xattrcreate(file, "user.c", 60_000, 0);
        let _ = client.write(file, 70_000, &[7; 10]);
        let _ = client.read(file, 0, 10);
        let _ = client.clunk(file);
        // Announced and not written to the end.
        let file = client.walk_path(root, "file").unwrap();
        let _ = client.xattrcreate(file, "user.d", 60_000, 0);
        let _ = client.write(file, 0, &[7; 50_000]);
        let _ = client.clunk(file);
        let file = client.walk_path(root, "file").unwrap();
        let _ = client.xattrcreate(file, "user.a", 10, xattr::CREATE);
        let _ = client.write(file, 0, &[7; 10]);
        let _ = client.clunk(file);
    });
}

#[test]
fn files_and_their_errors() {
    nothing_is_left(guest(), |client, root| {
        let file = client.walk_path(root, "file").unwrap();
        let _ = client.read(file, 0, 10);
        let _ = client.lopen(file, open::RDONLY);
        let _ = client.lopen(file, open::RDONLY);
        let _ = client.read(file, u64::MAX, 10);
        let _ = client.read(file, 0, 10);
        // To a file that is not open for it: 2016-9106.
        let _ = client.write(file, 0, &[7; 5000]);
        let _ = client.fsync(file, 0);
        let _ = client.readdir(file, 0, 1000);
        let _ = client.lock(file, 0, &Lock::whole(lock::RDLCK));
        let _ = client.lock(file, 0, &Lock::whole(lock::WRLCK));
        let _ = client.getlock(file, &Lock::whole(lock::WRLCK));
        let _ = client.clunk(file);
        let directory = client.walk_path(root, "directory").unwrap();
        let _ = client.lopen(directory, open::WRONLY);
        let _ = client.lopen(directory, open::RDONLY);
        let _ = client.readdir(directory, 0, 1000);
        let _ = client.readdir(directory, 77, 10);
        let _ = client.clunk(directory);
    });
}

#[test]
fn names_and_their_errors() {
    nothing_is_left(guest(), |client, root| {
        let (file, made) = (client.walk_path(root, "file").unwrap(), client.alloc_fid());
        // Links that fail: 2016-9105.
        let _ = client.link(root, file, "file");
        let _ = client.link(file, root, "link");
        let _ = client.link(root, file, "link");
        let _ = client.unlinkat(root, "link", 0);
        let _ = client.unlinkat(root, "link", 0);
        let _ = client.symlink(root, "symlink", "target", NO_ID);
        let _ = client.symlink(root, "symlink", "target", NO_ID);
        let _ = client.unlinkat(root, "symlink", 0);
        let _ = client.mkdir(root, "made", 0o700, NO_ID);
        let _ = client.mkdir(root, "made", 0o700, NO_ID);
        let _ = client.renameat(root, "made", root, "moved");
        let _ = client.renameat(root, "made", root, "moved");
        let _ = client.rename(file, root, "file");
        let _ = client.unlinkat(root, "moved", libc::AT_REMOVEDIR as u32);
        let _ = client.walk(root, made, &[] as &[&str]);
        let _ = client.lcreate(made, "new", open::RDWR | open::EXCL, 0o600, NO_ID);
        let _ = client.lcreate(made, "new", open::RDWR | open::EXCL, 0o600, NO_ID);
        let _ = client.write(made, 0, b"content");
        let _ = client.remove(made);
        let _ = client.walk(root, made, &[] as &[&str]);
        let _ = client.lcreate(made, "file", open::RDWR | open::EXCL, 0o600, NO_ID);
        let _ = client.clunk(made);
        let _ = client.clunk(file);
    });
}

#[test]
fn sessions() {
    nothing_is_left(guest(), |client, _| {
        let file = client.alloc_fid();
        let _ = client.version(100, "9P2000.L");
        let _ = client.version(8192, "9P2000.u");
        let _ = client.version(512_000, "9P2000.L");
        let _ = client.attach(0, "", "", 0);
        let _ = client.walk(0, file, &["file"]);
        let _ = client.lopen(file, open::RDWR);
        let _ = client.flush(12);
    });
}
