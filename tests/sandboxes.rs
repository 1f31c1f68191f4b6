//! A guest works the same in every sandbox that this machine allows.

mod common;

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use common::{BINARY, Guest, NO_ID};
use protocol::open;
use stub_guest::daemon::Launch;

/// Whether the daemon starts with this sandbox here; else it says why not.
fn start(mode: &str) -> Option<Guest> {
    let mut daemon = Launch::new(BINARY)
        .arg(format!("--sandbox={mode}"))
        .arg("--rlimit-nofile=100")
        .start()
        .unwrap();
    match daemon.mount() {
        Ok((client, root)) => Some(Guest {
            client,
            root,
            daemon,
        }),
        Err(_) => {
            let said = daemon.stderr();
            assert!(said.contains("cannot enter the sandbox"), "{said}");
            assert!(!daemon.wait().unwrap().success());
            println!("skipped: {said}");
            None
        }
    }
}

fn tour(mode: &str) {
    let Some(mut guest) = start(mode) else { return };
    let root = guest.root;
    let client = &mut guest.client;
    client.make_dir(root, "a").unwrap();
    client.make_dir(root, "b").unwrap();
    client.write_file(root, "a/file", b"content").unwrap();
    client.rename_path(root, "a/file", "b/moved").unwrap();
    assert_eq!(client.read_file(root, "b/moved").unwrap(), b"content");
    let (b, moved) = (
        client.walk_path(root, "b").unwrap(),
        client.walk_path(root, "b/moved").unwrap(),
    );
    client.link(root, moved, "linked").unwrap();
    client.symlink(b, "link", "../anywhere", NO_ID).unwrap();
    let link = client.walk_path(b, "link").unwrap();
    assert_eq!(client.readlink(link).unwrap(), b"../anywhere");
    client
        .mknod(b, "fifo", libc::S_IFIFO | 0o600, (0, 0), NO_ID)
        .unwrap();
    client.lopen(moved, open::RDWR | open::TRUNC).unwrap();
    client.write_all(moved, 0, b"more").unwrap();
    client.fsync(moved, 0).unwrap();
    client.statfs(root).unwrap();
    // More files than descriptors: they are found again.
    let mut fids = Vec::new();
    for number in 0..300 {
        let name = format!("a/{number}");
        client.write_file(root, &name, name.as_bytes()).unwrap();
        fids.push((client.walk_path(root, &name).unwrap(), name));
    }
    for (fid, name) in fids {
        client.lopen(fid, open::RDONLY).unwrap();
        assert_eq!(client.read(fid, 0, 100).unwrap(), name.as_bytes(), "{mode}");
        client.clunk(fid).unwrap();
    }
    assert_eq!(client.read_dir(root, "a").unwrap().len(), 302);
    client.unlinkat(b, "link", 0).unwrap();
    // What the host sees.
    assert_eq!(std::fs::read(guest.path("linked")).unwrap(), b"more");
    assert_eq!(std::fs::metadata(guest.path("b/moved")).unwrap().nlink(), 2);
    let fifo = std::fs::symlink_metadata(guest.path("b/fifo")).unwrap();
    assert!(fifo.file_type().is_fifo());
    assert!(std::fs::symlink_metadata(guest.path("b/link")).is_err());
}

#[test]
fn none() {
    tour("none");
}

#[test]
fn landlock() {
    tour("landlock");
}

#[test]
fn chroot() {
    tour("chroot");
}

#[test]
fn namespace() {
    tour("namespace");
}
