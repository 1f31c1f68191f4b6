//! Twalk: names to fids, and nothing outside of the share.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};

use common::{Guest, impossible_names, is_dir, refused};
use nix::errno::Errno;
use protocol::{NOFID, QidKind, getattr, open};
use stub_guest::Attach;

#[test]
fn a_walk_answers_with_the_qid_of_every_name() {
    let mut guest = Guest::new();
    guest.dir("a");
    guest.dir("a/b");
    guest.file("a/b/c", "content");
    let qids = guest.client.walk(guest.root, 9, &["a", "b", "c"]).unwrap();
    let kinds: Vec<bool> = qids.iter().map(|qid| is_dir(*qid)).collect();
    assert_eq!(kinds, [true, true, false]);
    for (path, qid) in ["a", "a/b", "a/b/c"].iter().zip(&qids) {
        assert_eq!(
            guest.client.stat(guest.root, path).unwrap().qid,
            *qid,
            "{path}"
        );
        // The share's file system has the inode numbers of the host.
        assert_eq!(qid.path, fs::metadata(guest.path(path)).unwrap().ino());
        assert_ne!(qid.version, 0, "version 0 turns the client's cache off");
    }
    guest.client.lopen(9, open::RDONLY).unwrap();
    assert_eq!(guest.client.read(9, 0, 100).unwrap(), b"content");
}

#[test]
fn a_walk_without_names_clones() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let fid = guest.walk("file");
    assert_eq!(guest.client.walk::<&str>(fid, 50, &[]).unwrap(), []);
    let (old, new) = (
        guest.client.getattr(fid, getattr::ALL).unwrap(),
        guest.client.getattr(50, getattr::ALL).unwrap(),
    );
    assert_eq!(old.qid, new.qid);
    guest.client.clunk(fid).unwrap();
    guest.client.getattr(50, getattr::ALL).unwrap();
}

#[test]
fn sixteen_names_are_the_most() {
    let mut guest = Guest::new();
    let names = vec!["d"; 16];
    fs::create_dir_all(guest.path(&names.join("/"))).unwrap();
    assert_eq!(guest.client.walk(guest.root, 9, &names).unwrap().len(), 16);
    // Deeper ones take several walks.
    fs::create_dir_all(guest.path(&["d"; 40].join("/"))).unwrap();
    let deep = guest.walk(&["d"; 40].join("/"));
    let host = fs::metadata(guest.path(&["d"; 40].join("/"))).unwrap();
    assert_eq!(
        guest.client.getattr(deep, getattr::ALL).unwrap().qid.path,
        host.ino()
    );
}

#[test]
fn a_failure_at_the_first_name_is_an_error() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    refused(
        guest.client.walk(guest.root, 9, &["missing"]),
        Errno::ENOENT,
    );
    refused(
        guest.client.walk(guest.root, 9, &["missing", "file"]),
        Errno::ENOENT,
    );
    let file = guest.walk("file");
    refused(guest.client.walk(file, 9, &["x"]), Errno::ENOTDIR);
    refused(guest.client.walk(file, 9, &[".."]), Errno::ENOTDIR);
    refused(guest.client.clunk(9), Errno::EBADF);
}

#[test]
fn a_failure_at_a_later_name_is_a_partial_walk() {
    let mut guest = Guest::new();
    guest.dir("a");
    guest.file("a/file", "x");
    for (names, reached) in [
        (vec!["a", "missing"], 1),
        (vec!["a", "file", "below"], 2),
        (vec!["a", "file", ".."], 2),
        (vec!["a", "a/b"], 1),
        (vec!["a", "."], 1),
        (vec!["a", "", "file"], 1),
    ] {
        let qids = guest.client.walk(guest.root, 9, &names).unwrap();
        assert_eq!(qids.len(), reached, "{names:?}");
        refused(guest.client.clunk(9), Errno::EBADF);
    }
}

#[test]
fn a_partial_walk_onto_itself_leaves_the_fid() {
    let mut guest = Guest::new();
    guest.dir("a");
    let fid = guest.walk("");
    assert_eq!(
        guest
            .client
            .walk(fid, fid, &["a", "missing"])
            .unwrap()
            .len(),
        1
    );
    let root = guest.client.getattr(guest.root, getattr::ALL).unwrap();
    assert_eq!(
        guest.client.getattr(fid, getattr::ALL).unwrap().qid,
        root.qid
    );
    refused(guest.client.walk(fid, fid, &["missing"]), Errno::ENOENT);
    assert_eq!(
        guest.client.getattr(fid, getattr::ALL).unwrap().qid,
        root.qid
    );
    // A whole one moves it.
    let qids = guest.client.walk(fid, fid, &["a"]).unwrap();
    assert_eq!(
        guest.client.getattr(fid, getattr::ALL).unwrap().qid,
        qids[0]
    );
}

#[test]
fn the_new_fid_must_be_free() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let fid = guest.walk("file");
    refused(guest.client.walk(guest.root, fid, &["file"]), Errno::EINVAL);
    refused(
        guest.client.walk::<&str>(guest.root, fid, &[]),
        Errno::EINVAL,
    );
    refused(
        guest.client.walk(guest.root, NOFID, &["file"]),
        Errno::EINVAL,
    );
}

#[test]
fn an_open_fid_is_cloned_and_walked_but_not_moved() {
    let mut guest = Guest::new();
    guest.dir("dir");
    guest.file("dir/file", "x");
    let dir = guest.open("dir", open::RDONLY);
    refused(guest.client.walk::<&str>(dir, dir, &[]), Errno::EINVAL);
    refused(guest.client.walk(dir, dir, &["file"]), Errno::EINVAL);
    guest.client.walk::<&str>(dir, 50, &[]).unwrap();
    guest.client.walk(dir, 51, &["file"]).unwrap();
    // A clone of an open fid is not open.
    refused(guest.client.readdir(50, 0, 4000), Errno::EBADF);
    guest.client.lopen(50, open::RDONLY).unwrap();
}

#[test]
fn impossible_names_are_never_found() {
    let mut guest = Guest::new();
    guest.dir("a");
    guest.file("a/b", "x");
    fs::write(guest.daemon.outside().join("outside"), "secret").unwrap();
    for (name, errno) in impossible_names() {
        refused(guest.client.walk(guest.root, 9, &[&name]), errno);
    }
    refused(guest.client.walk(guest.root, 9, &["."]), Errno::ENOENT);
    refused(guest.client.clunk(9), Errno::EBADF);
}

#[test]
fn the_longest_name_is_found() {
    let mut guest = Guest::new();
    let long = "n".repeat(255);
    guest.file(&long, "x");
    assert_eq!(guest.client.walk(guest.root, 9, &[&long]).unwrap().len(), 1);
}

#[test]
fn a_name_is_bytes() {
    let mut guest = Guest::new();
    let name = b"\xff\xfe \n\\";
    fs::write(guest.daemon.path(OsStr::from_bytes(name)), "odd").unwrap();
    guest.client.walk(guest.root, 9, &[name]).unwrap();
    guest.client.lopen(9, open::RDONLY).unwrap();
    assert_eq!(guest.client.read(9, 0, 9).unwrap(), b"odd");
}

#[test]
fn the_way_up_ends_at_the_root() {
    let mut guest = Guest::new();
    guest.dir("a");
    guest.dir("a/b");
    let root = guest.client.getattr(guest.root, getattr::ALL).unwrap().qid;
    assert_eq!(
        guest
            .client
            .walk(guest.root, 9, &["..", "..", ".."])
            .unwrap(),
        [root; 3]
    );
    assert_eq!(guest.client.getattr(9, getattr::ALL).unwrap().qid, root);
    let b = guest.walk("a/b");
    let a = guest.client.stat(guest.root, "a").unwrap().qid;
    let qids = guest.client.walk(b, 10, &["..", "..", "..", "a"]).unwrap();
    assert_eq!(qids, [a, root, root, a]);
}

#[test]
fn a_directory_moved_out_of_the_share_has_no_way_up() {
    let mut guest = Guest::new();
    guest.dir("a");
    guest.dir("a/b");
    let b = guest.walk("a/b");
    fs::rename(guest.path("a"), guest.daemon.outside().join("moved")).unwrap();
    refused(guest.client.walk(b, 9, &[".."]), Errno::ENOENT);
    refused(
        guest.client.walk(b, 9, &["..", "..", "share"]),
        Errno::ENOENT,
    );
}

#[test]
fn a_symbolic_link_is_reached_not_followed() {
    let mut guest = Guest::new();
    let outside = guest.daemon.outside().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, guest.path("link")).unwrap();
    symlink("link", guest.path("chain")).unwrap();
    symlink(outside.join("secret"), guest.path("file-link")).unwrap();
    for name in ["link", "chain", "file-link"] {
        let fid = guest.walk(name);
        let stat = guest.client.getattr(fid, getattr::ALL).unwrap();
        assert_eq!(stat.qid.kind, QidKind::SYMLINK);
        assert_eq!(stat.mode & libc::S_IFMT, libc::S_IFLNK);
        refused(guest.client.walk(fid, 90, &["secret"]), Errno::ENOTDIR);
        refused(guest.client.lopen(fid, open::RDONLY), Errno::ELOOP);
        assert_eq!(
            guest
                .client
                .walk(guest.root, 90, &[name, "secret"])
                .unwrap()
                .len(),
            1
        );
        refused(guest.client.clunk(90), Errno::EBADF);
        refused(guest.client.mkdir(fid, "made", 0o755, 0), Errno::ENOTDIR);
        refused(guest.client.unlinkat(fid, "secret", 0), Errno::ENOTDIR);
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[test]
fn a_fid_stands_for_the_file_not_for_its_path() {
    let mut guest = Guest::new();
    guest.dir("dir");
    guest.file("dir/file", "first");
    let file = guest.walk("dir/file");
    let dir = guest.walk("dir");
    // The host renames the directory and puts another in its place.
    fs::rename(guest.path("dir"), guest.path("moved")).unwrap();
    guest.dir("dir");
    guest.file("dir/file", "second");
    guest.client.lopen(file, open::RDONLY).unwrap();
    assert_eq!(guest.client.read(file, 0, 10).unwrap(), b"first");
    guest.client.walk(dir, 60, &["file"]).unwrap();
    guest.client.lopen(60, open::RDONLY).unwrap();
    assert_eq!(guest.client.read(60, 0, 10).unwrap(), b"first");
}

#[test]
fn an_unlinked_file_is_still_there_for_its_fid() {
    let mut guest = Guest::new();
    let path = guest.file("file", "content");
    let (walked, opened) = (guest.walk("file"), guest.open("file", open::RDWR));
    fs::remove_file(&path).unwrap();
    refused(guest.client.walk(guest.root, 70, &["file"]), Errno::ENOENT);
    assert_eq!(guest.client.read(opened, 0, 10).unwrap(), b"content");
    assert_eq!(guest.client.getattr(opened, getattr::ALL).unwrap().nlink, 0);
    // Both can be cloned, and the clones opened.
    for fid in [walked, opened] {
        guest.client.walk::<&str>(fid, 70, &[]).unwrap();
        guest.client.lopen(70, open::RDWR).unwrap();
        assert_eq!(guest.client.read(70, 0, 10).unwrap(), b"content");
        guest.client.clunk(70).unwrap();
    }
    guest.client.write(opened, 0, b"CON").unwrap();
    assert_eq!(guest.client.read(opened, 0, 10).unwrap(), b"CONtent");
}

#[test]
fn hard_links_share_a_qid_and_changes_move_the_version() {
    let mut guest = Guest::new();
    let path = guest.file("a", "x");
    fs::hard_link(&path, guest.path("b")).unwrap();
    let (a, b) = (
        guest.client.stat(guest.root, "a").unwrap().qid,
        guest.client.stat(guest.root, "b").unwrap().qid,
    );
    assert_eq!(a, b);
    guest
        .client
        .write_file(guest.root, "a", b"changed")
        .unwrap();
    let after = guest.client.stat(guest.root, "b").unwrap().qid;
    assert_eq!((after.path, after.kind), (a.path, a.kind));
    assert_ne!(after.version, a.version);
}

#[test]
fn many_walks_work_with_a_small_msize() {
    let mut guest = Guest::new();
    guest.dir("d");
    let root = guest
        .client
        .mount(&Attach {
            msize: 4096,
            ..Attach::default()
        })
        .unwrap();
    for fid in 100..1100 {
        guest.client.walk(root, fid, &["d"]).unwrap();
    }
    for fid in 100..1100 {
        guest.client.clunk(fid).unwrap();
    }
}
