//! More than one file system below the share.

mod common;

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use common::{BINARY, Guest, NO_ID, refused};
use nix::errno::Errno;
use nix::unistd::geteuid;
use protocol::{getattr, open};
use stub_guest::daemon::Launch;

/// A guest of a share with `one`, `two` and `ro` below it, all mount points that only the daemon
/// sees: file systems whose inode numbers are the same, and `rw` a second time, read-only. None
/// where mounting is not allowed.
fn guest(policy: &str) -> Option<(Guest, tempfile::TempDir)> {
    if !geteuid().is_root() {
        stub_guest::skipped("only root may mount file systems");
        return None;
    }
    let share = tempfile::tempdir().unwrap();
    for name in ["one", "two", "rw", "ro"] {
        fs::create_dir(share.path().join(name)).unwrap();
    }
    fs::write(share.path().join("rw/file"), "content").unwrap();
    let script = "cd \"$SHARE\" \
        && mount -t tmpfs none one && mount -t tmpfs none two \
        && mount --bind rw ro && mount -o remount,bind,ro ro \
        && touch one/file two/file && mkdir one/dir && cd / && exec \"$0\" \"$@\"";
    let prelude = format!(
        "SHARE='{}'; export SHARE; exec unshare --mount sh -c '{script}' \"$0\" \"$@\"",
        share.path().display()
    );
    let launch = Launch::new(BINARY)
        .share(share.path())
        .prelude(&prelude)
        .arg("--multidevs")
        .arg(policy);
    Some((Guest::on(launch), share))
}

const FILES: [&str; 8] = [
    "", "one", "two", "rw", "one/file", "two/file", "one/dir", "rw/file",
];

#[test]
fn remapped_no_two_files_have_the_same_path() {
    let Some((mut guest, _share)) = guest("remap") else {
        return;
    };
    let root = guest.root;
    let mut paths = HashSet::new();
    for name in FILES {
        let path = guest.client.stat(root, name).unwrap().qid.path;
        assert!(paths.insert(path), "{name} has the path of another");
        assert_eq!(guest.client.stat(root, name).unwrap().qid.path, path);
    }
    // The two file systems by themselves do repeat.
    let numbers = |name: &str| {
        // The share is the daemon's root directory.
        let path = PathBuf::from(format!("/proc/{}/root/{name}", guest.daemon.pid()));
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap())
    };
    assert_eq!(numbers("one/file"), numbers("two/file"));
    // The way up from a mounted root leads into the share.
    let fid = guest.walk("one/dir");
    let up = guest.client.walk(fid, 900, &["..", "..", ".."]).unwrap();
    let top = guest.client.stat(root, "").unwrap().qid;
    assert_eq!(up[2].path, top.path);
    assert_eq!(up[1].path, top.path);
    guest
        .client
        .write_file(root, "one/new", b"content")
        .unwrap();
    assert_eq!(guest.client.read_file(root, "one/new").unwrap(), b"content");
    let (one, two) = (guest.walk("one"), guest.walk("two"));
    refused(guest.client.renameat(one, "new", two, "new"), Errno::EXDEV);
    let fids = [one, root].map(|fid| guest.client.statfs(fid).unwrap().fsid);
    assert_ne!(fids[0], fids[1]);
}

#[test]
fn the_same_inode_through_a_mount_that_may_not_be_written_is_not_written() {
    let Some((mut guest, _share)) = guest("remap") else {
        return;
    };
    let root = guest.root;
    // Whichever of the two was seen first.
    let writable = guest.walk("rw/file");
    let readonly = guest.walk("ro/file");
    refused(guest.client.lopen(readonly, open::RDWR), Errno::EROFS);
    guest.client.lopen(writable, open::RDWR).unwrap();
    let readonly = guest.walk("ro");
    refused(
        guest.client.mkdir(readonly, "dir", 0o755, NO_ID),
        Errno::EROFS,
    );
    let up = guest.client.walk(readonly, 900, &[".."]).unwrap();
    assert_eq!(up[0].path, guest.client.stat(root, "").unwrap().qid.path);
}

#[test]
fn forbidden_only_the_share_s_own_file_system_is_reached() {
    let Some((mut guest, _share)) = guest("forbid") else {
        return;
    };
    let root = guest.root;
    refused(guest.client.walk(root, 900, &["one"]), Errno::ENODEV);
    // A later name ends the walk before it.
    guest.dir("rw/dir");
    assert_eq!(
        guest.client.walk(root, 900, &["rw", "dir"]).unwrap().len(),
        2
    );
    assert_eq!(
        guest
            .client
            .walk(root, 901, &["rw", "..", "two"])
            .unwrap()
            .len(),
        2
    );
    refused(guest.client.getattr(901, getattr::ALL), Errno::EBADF);
    assert_eq!(guest.client.read_file(root, "rw/file").unwrap(), b"content");
    let names: Vec<_> = guest.client.read_dir(root, "").unwrap();
    assert!(
        names.len() >= 6,
        "the mount points are there, and can be seen"
    );
}

#[test]
fn warned_of_once_numbers_repeat() {
    let Some((mut guest, _share)) = guest("warn") else {
        return;
    };
    let root = guest.root;
    let paths = ["one/file", "two/file"].map(|name| {
        let stat = guest.client.stat(root, name).unwrap();
        guest.client.stat(root, name).unwrap();
        stat.qid.path
    });
    assert_eq!(paths[0], paths[1]);
    let log = guest.daemon.stderr();
    // One line for each file system.
    assert_eq!(log.matches("--multidevs remap").count(), 2, "{log}");
}
