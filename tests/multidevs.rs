//! More than one file system below the share.

mod common;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use common::{BINARY, Guest, NO_ID, refused};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
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

/// Gives the thread mounts of its own, of which those below `share` are seen by whoever copies them.
fn own_mounts(share: &Path) -> Result<(), Errno> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    mount(Some(share), share, none, MsFlags::MS_BIND, none)?;
    mount(none, share, none, MsFlags::MS_SHARED, none)
}

fn is_unmounted_when_nothing_is_known_of_it(sandbox: &str, handles: &str) {
    let share = tempfile::tempdir().unwrap();
    let below = share.path().join("below");
    fs::create_dir(&below).unwrap();
    if let Err(error) = own_mounts(share.path()) {
        stub_guest::skipped(format_args!("no mounts of its own: {error}"));
        return;
    }
    // Few descriptors, so that inodes give theirs up.
    let launch = Launch::new(BINARY)
        .share(share.path())
        .arg("--rlimit-nofile=64")
        .arg(format!("--sandbox={sandbox}"))
        .arg(format!("--inode-file-handles={handles}"));
    let mut guest = Guest::on(launch);
    let unmount = || umount2(&below, MntFlags::empty());
    // The second may have the number of the first.
    for _ in 0..2 {
        mount(
            Some("none"),
            &below,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        let mut fids = Vec::new();
        for file in 0..100 {
            fs::write(below.join(file.to_string()), "content").unwrap();
            fids.push(guest.walk(&format!("below/{file}")));
        }
        let opened = guest.open("below/7", open::RDONLY);
        for fid in fids {
            guest.client.lopen(fid, open::RDONLY).unwrap();
            assert_eq!(guest.client.read(fid, 0, 10).unwrap(), b"content");
            guest.client.clunk(fid).unwrap();
        }
        assert_eq!(unmount(), Err(Errno::EBUSY));
        guest.client.clunk(opened).unwrap();
        assert_eq!(unmount(), Ok(()), "{sandbox}, {handles}");
    }
    drop(guest);
    umount2(share.path(), MntFlags::MNT_DETACH).unwrap();
}

#[test]
fn the_host_unmounts_what_the_guest_has_left() {
    if !geteuid().is_root() {
        stub_guest::skipped("only root may mount file systems");
        return;
    }
    for sandbox in ["none", "namespace"] {
        for handles in ["never", "prefer", "mandatory"] {
            let test = || is_unmounted_when_nothing_is_known_of_it(sandbox, handles);
            // The mounts are the thread's.
            std::thread::scope(|scope| scope.spawn(test).join().unwrap());
        }
    }
}
