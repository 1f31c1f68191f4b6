//! Nothing is left over from requests, whether they succeed or fail: each message is sent over and over,
//! rightly and wrongly, and the daemon's memory and descriptors stay what they were. What leaked in QEMU's
//! server on its ways of errors (CVE-2016-8577, 2016-9102, 2016-9105, 2016-9106, 2017-7377, 2017-8086)
//! is among them.

mod common;

use std::fs;

use common::{Guest, NO_ID, host_set, refused};
use nix::errno::Errno;
use protocol::{Tsetattr, getattr, lock, open, unlink, xattr};
use stub_guest::Client;
use stub_guest::messages::Lock;

/// How often each is sent after the first rounds, in which buffers and tables grow to their size.
const ROUNDS: usize = 3000;
const WARM_UP: usize = 500;
/// One object of this size left over in each round is seen; the rest is what an allocator does.
const OBJECT: i64 = 64;
const TOLERANCE_KIB: i64 = OBJECT * ROUNDS as i64 / 1024;

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

/// Sends `requests` over and over, which look at the answers: a request that ends too early leaves
/// nothing over.
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
        client.walk(root, fid, &["file"]).unwrap();
        refused(client.walk(root, fid, &["file"]), Errno::EINVAL);
        refused(client.walk(root, missing, &["nothing"]), Errno::ENOENT);
        client.walk(root, missing, &["file", "below"]).unwrap();
        refused(client.walk(missing, fid, &["file"]), Errno::EBADF);
        refused(client.attach(fid, "", "", 0), Errno::EINVAL);
        refused(client.attach(missing, "", "/nowhere", 0), Errno::ENOENT);
        refused(client.auth(missing, "", "", 0), Errno::EOPNOTSUPP);
        refused(client.clunk(missing), Errno::EBADF);
        client.clunk(fid).unwrap();
        refused(client.remove(missing), Errno::EBADF);
    });
}

/// The inode of a directory that no fid stands for is there for the one below it, and ends with it.
#[test]
fn directories_above() {
    nothing_is_left(guest(), |client, root| {
        let (a, b) = (client.alloc_fid(), client.alloc_fid());
        // New ones each time: nobody else takes what is left over of them.
        client.mkdir(root, "a", 0o700, NO_ID).unwrap();
        client.walk(root, a, &["a"]).unwrap();
        client.mkdir(a, "b", 0o700, NO_ID).unwrap();
        client.walk(a, b, &["b"]).unwrap();
        client.unlinkat(a, "b", unlink::REMOVEDIR).unwrap();
        client.unlinkat(root, "a", unlink::REMOVEDIR).unwrap();
        client.clunk(a).unwrap();
        client.getattr(b, getattr::BASIC).unwrap();
        client.clunk(b).unwrap();
    });
}

#[test]
fn attributes_and_their_errors() {
    let guest = guest();
    if !host_set(&guest.path("file"), "user.a", &[7; 3000]) {
        stub_guest::skipped("this file system has no extended attributes");
        return;
    }
    nothing_is_left(guest, |client, root| {
        let (file, value) = (client.walk_path(root, "file").unwrap(), client.alloc_fid());
        client.getattr(file, getattr::BASIC).unwrap();
        refused(
            client.setattr(Tsetattr {
                fid: 77_777,
                ..Tsetattr::default()
            }),
            Errno::EBADF,
        );
        client.xattrwalk(file, value, "user.a").unwrap();
        refused(client.xattrwalk(file, value, "user.a"), Errno::EINVAL);
        client.clunk(value).unwrap();
        refused(client.xattrwalk(file, value, "user.none"), Errno::ENODATA);
        // The list of all, which leaked in 2017-8086.
        client.xattrwalk(file, value, "").unwrap();
        client.clunk(value).unwrap();
        // Announced and not written, and announced again: 2016-9102.
        client.xattrcreate(file, "user.b", 60_000, 0).unwrap();
        client.write(file, 0, &[7; 60_000]).unwrap();
        refused(client.xattrcreate(file, "user.c", 60_000, 0), Errno::EINVAL);
        refused(client.write(file, 70_000, &[7; 10]), Errno::ENOSPC);
        refused(client.read(file, 0, 10), Errno::EBADF);
        // Too large for some file systems.
        let _ = client.clunk(file);
        // Announced and not written to the end.
        let file = client.walk_path(root, "file").unwrap();
        client.xattrcreate(file, "user.d", 60_000, 0).unwrap();
        client.write(file, 0, &[7; 50_000]).unwrap();
        refused(client.clunk(file), Errno::EINVAL);
        let file = client.walk_path(root, "file").unwrap();
        client
            .xattrcreate(file, "user.a", 10, xattr::CREATE)
            .unwrap();
        client.write(file, 0, &[7; 10]).unwrap();
        refused(client.clunk(file), Errno::EEXIST);
    });
}

#[test]
fn files_and_their_errors() {
    nothing_is_left(guest(), |client, root| {
        let file = client.walk_path(root, "file").unwrap();
        refused(client.read(file, 0, 10), Errno::EBADF);
        client.lopen(file, open::RDONLY).unwrap();
        refused(client.lopen(file, open::RDONLY), Errno::EINVAL);
        refused(client.read(file, u64::MAX, 10), Errno::EINVAL);
        client.read(file, 0, 10).unwrap();
        // To a file that is not open for it: 2016-9106.
        refused(client.write(file, 0, &[7; 5000]), Errno::EBADF);
        client.fsync(file, 0).unwrap();
        refused(client.readdir(file, 0, 1000), Errno::ENOTDIR);
        client.lock(file, 0, &Lock::whole(lock::RDLCK)).unwrap();
        client.lock(file, 0, &Lock::whole(lock::WRLCK)).unwrap();
        client.getlock(file, &Lock::whole(lock::WRLCK)).unwrap();
        client.clunk(file).unwrap();
        let directory = client.walk_path(root, "directory").unwrap();
        refused(client.lopen(directory, open::WRONLY), Errno::EISDIR);
        client.lopen(directory, open::RDONLY).unwrap();
        client.readdir(directory, 0, 1000).unwrap();
        // Some file systems have nothing at such a position, others an error.
        let _ = client.readdir(directory, 77, 10);
        client.clunk(directory).unwrap();
    });
}

#[test]
fn names_and_their_errors() {
    nothing_is_left(guest(), |client, root| {
        let (file, made) = (client.walk_path(root, "file").unwrap(), client.alloc_fid());
        // Links that fail: 2016-9105.
        refused(client.link(root, file, "file"), Errno::EEXIST);
        refused(client.link(file, root, "link"), Errno::ENOTDIR);
        client.link(root, file, "link").unwrap();
        client.unlinkat(root, "link", 0).unwrap();
        refused(client.unlinkat(root, "link", 0), Errno::ENOENT);
        client.symlink(root, "symlink", "target", NO_ID).unwrap();
        refused(
            client.symlink(root, "symlink", "target", NO_ID),
            Errno::EEXIST,
        );
        client.unlinkat(root, "symlink", 0).unwrap();
        client.mkdir(root, "made", 0o700, NO_ID).unwrap();
        refused(client.mkdir(root, "made", 0o700, NO_ID), Errno::EEXIST);
        client.renameat(root, "made", root, "moved").unwrap();
        refused(client.renameat(root, "made", root, "moved"), Errno::ENOENT);
        client.rename(file, root, "file").unwrap();
        client.unlinkat(root, "moved", unlink::REMOVEDIR).unwrap();
        client.walk(root, made, &[] as &[&str]).unwrap();
        client
            .lcreate(made, "new", open::RDWR | open::EXCL, 0o600, NO_ID)
            .unwrap();
        refused(
            client.lcreate(made, "new", open::RDWR | open::EXCL, 0o600, NO_ID),
            Errno::EINVAL,
        );
        client.write(made, 0, b"content").unwrap();
        client.remove(made).unwrap();
        client.walk(root, made, &[] as &[&str]).unwrap();
        refused(
            client.lcreate(made, "file", open::RDWR | open::EXCL, 0o600, NO_ID),
            Errno::EEXIST,
        );
        client.clunk(made).unwrap();
        client.clunk(file).unwrap();
    });
}

#[test]
fn sessions() {
    nothing_is_left(guest(), |client, _| {
        let file = client.alloc_fid();
        refused(client.version(100, "9P2000.L"), Errno::EMSGSIZE);
        client.version(8192, "9P2000.u").unwrap();
        client.version(512_000, "9P2000.L").unwrap();
        client.attach(0, "", "", 0).unwrap();
        client.walk(0, file, &["file"]).unwrap();
        client.lopen(file, open::RDWR).unwrap();
        client.flush(12).unwrap();
    });
}
