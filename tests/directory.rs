//! Directories and names: readdir, mkdir, mknod, symlink, readlink, link, rename, renameat,
//! unlinkat, remove.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use common::{Guest, NO_ID, impossible_names, is_dir, is_root, mode_of, refused};
use nix::errno::Errno;
use protocol::{DirEntry, QidKind, getattr, open, unlink};
use stub_guest::messages::Entry;
use stub_guest::{Attach, Error};

fn names(entries: &[Entry]) -> BTreeSet<String> {
    entries
        .iter()
        .map(|entry| String::from_utf8(entry.name.clone()).unwrap())
        .collect()
}

fn host_names(path: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(path).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.chain([".".into(), "..".into()]).collect()
}

#[test]
fn readdir_lists_every_entry_once() {
    let mut guest = Guest::new();
    guest.dir("dir");
    for n in 0..1000 {
        guest.file(&format!("dir/file-{n:0width$}", width = n % 40), "");
    }
    guest.file(&format!("dir/{}", "n".repeat(255)), "");
    let expected = host_names(&guest.path("dir"));
    for count in [400, 1000, 1024, 1025, 4000, 8192, 100_000, 511_989] {
        let fid = guest.open("dir", open::RDONLY | open::DIRECTORY);
        let entries = guest.client.list(fid, count).unwrap();
        assert_eq!(
            entries.len(),
            expected.len(),
            "count {count}: an entry came twice or not at all"
        );
        assert_eq!(names(&entries), expected, "count {count}");
        guest.client.close(fid).unwrap();
    }
}

#[test]
fn readdir_fills_a_small_msize_with_whole_entries() {
    let mut guest = Guest::new();
    for n in 0..300 {
        guest.file(&format!("a-rather-long-name-for-a-file-{n}"), "");
    }
    let root = guest
        .client
        .mount(&Attach {
            msize: 4096,
            ..Attach::default()
        })
        .unwrap();
    assert_eq!(
        names(&guest.client.read_dir(root, "").unwrap()),
        host_names(guest.daemon.share())
    );
    // A count above msize is clamped.
    guest.client.walk::<&str>(root, 9, &[]).unwrap();
    guest.client.lopen(9, open::RDONLY).unwrap();
    let request = protocol::Tmessage::Readdir(protocol::Treaddir {
        fid: 9,
        offset: 0,
        count: 100_000,
    });
    let mut frame = Vec::new();
    request.encode(1, &mut frame).unwrap();
    let handle = guest.client.submit_frame(&frame, 50_000).unwrap();
    let reply = guest.client.wait(handle).unwrap();
    assert!(reply.frame().len() <= 4096);
    assert!(
        reply.frame().len() > 3000,
        "{} bytes: it holds more",
        reply.frame().len()
    );
    assert!(DirEntry::decode_all(reply.payload()).all(|entry| entry.is_ok()));
}

#[test]
fn readdir_cookies_survive_reopening() {
    let mut guest = Guest::new();
    for n in 0..200 {
        guest.file(&format!("file-{n}"), "");
    }
    let fid = guest.open("", open::RDONLY);
    let all = guest.client.list(fid, 8000).unwrap();
    guest.client.close(fid).unwrap();
    for at in [0, 1, 57, 100, all.len() - 2, all.len() - 1] {
        let fid = guest.open("", open::RDONLY);
        let rest = guest.client.readdir(fid, all[at].offset, 100_000).unwrap();
        assert_eq!(rest, all[at + 1..], "from entry {at}");
        if rest.is_empty() {
            // A descriptor of ext4 that began at the end finds nothing any more (seen in 6.18).
            continue;
        }
        // Backwards on the same fid.
        assert_eq!(guest.client.readdir(fid, 0, 100_000).unwrap(), all);
        guest.client.close(fid).unwrap();
    }
    // A cookie survives the removal of the entries before it.
    for entry in &all[..100] {
        let path = guest.path(std::str::from_utf8(&entry.name).unwrap());
        if path.is_file() {
            fs::remove_file(path).unwrap();
        }
    }
    let fid = guest.open("", open::RDONLY);
    assert_eq!(
        guest.client.readdir(fid, all[99].offset, 100_000).unwrap(),
        all[100..]
    );
}

#[test]
fn readdir_says_what_a_walk_says() {
    let mut guest = Guest::new();
    guest.dir("dir");
    guest.file("file", "x");
    symlink("file", guest.path("link")).unwrap();
    nix::unistd::mkfifo(&guest.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let kinds = BTreeMap::from([
        (".", libc::DT_DIR),
        ("..", libc::DT_DIR),
        ("dir", libc::DT_DIR),
        ("file", libc::DT_REG),
        ("link", libc::DT_LNK),
        ("fifo", libc::DT_FIFO),
    ]);
    let entries = guest.client.read_dir(guest.root, "").unwrap();
    assert_eq!(entries.len(), kinds.len());
    for entry in entries {
        let name = std::str::from_utf8(&entry.name).unwrap();
        assert_eq!(entry.kind, kinds[name], "{name}");
        let walked = match name {
            // The way up from the root is the root.
            "." | ".." => guest.client.getattr(guest.root, getattr::ALL).unwrap().qid,
            _ => guest.client.stat(guest.root, name).unwrap().qid,
        };
        assert_eq!(
            (entry.qid.kind, entry.qid.path),
            (walked.kind, walked.path),
            "{name}"
        );
    }
}

#[test]
fn readdir_of_an_empty_directory_and_behind_the_end() {
    let mut guest = Guest::new();
    guest.dir("empty");
    let fid = guest.open("empty", open::RDONLY);
    let entries = guest.client.readdir(fid, 0, 4000).unwrap();
    assert_eq!(names(&entries), BTreeSet::from([".".into(), "..".into()]));
    let end = entries.last().unwrap().offset;
    for _ in 0..3 {
        assert_eq!(guest.client.readdir(fid, end, 4000).unwrap(), []);
    }
}

#[test]
fn readdir_sees_what_was_made_meanwhile_after_a_rewind() {
    let mut guest = Guest::new();
    let fid = guest.open("", open::RDONLY);
    assert_eq!(guest.client.list(fid, 4000).unwrap().len(), 2);
    guest.file("new", "");
    assert_eq!(guest.client.list(fid, 4000).unwrap().len(), 3);
    guest.client.unlinkat(guest.root, "new", 0).unwrap();
    assert_eq!(guest.client.list(fid, 4000).unwrap().len(), 2);
}

#[test]
fn readdir_of_10000_entries() {
    let mut guest = Guest::new();
    guest.dir("many");
    for n in 0..10_000 {
        guest.file(&format!("many/{n}"), "");
    }
    let entries = guest.client.read_dir(guest.root, "many").unwrap();
    assert_eq!(entries.len(), 10_002);
    assert_eq!(names(&entries).len(), 10_002);
}

#[test]
fn readdir_refuses() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let fid = guest.walk("");
    refused(guest.client.readdir(fid, 0, 4000), Errno::EBADF);
    guest.client.lopen(fid, open::RDONLY).unwrap();
    // Too small for the first entry: an empty reply would mean the end.
    for count in [1, 10, 24] {
        refused(guest.client.readdir(fid, 0, count), Errno::EINVAL);
    }
    let file = guest.open("file", open::RDONLY);
    refused(guest.client.readdir(file, 0, 4000), Errno::ENOTDIR);
    refused(guest.client.readdir(fid, u64::MAX, 4000), Errno::EINVAL);
}

#[test]
fn mkdir_makes_a_directory() {
    let mut guest = Guest::new();
    let qid = guest
        .client
        .mkdir(guest.root, "dir", libc::S_IFDIR | 0o1775, NO_ID)
        .unwrap();
    assert!(is_dir(qid));
    let host = fs::metadata(guest.path("dir")).unwrap();
    assert_eq!((host.ino(), host.mode() & 0o7777), (qid.path, 0o1775));
    assert_eq!(guest.client.stat(guest.root, "dir").unwrap().qid, qid);
    refused(
        guest.client.mkdir(guest.root, "dir", 0o755, 0),
        Errno::EEXIST,
    );
    guest.file("file", "");
    refused(
        guest.client.mkdir(guest.root, "file", 0o755, 0),
        Errno::EEXIST,
    );
    guest.client.mkdir(guest.root, "closed", 0, NO_ID).unwrap();
    assert_eq!(mode_of(&guest.path("closed")), 0);
}

#[test]
fn what_is_made_belongs_to_the_caller() {
    if !is_root() {
        return;
    }
    let mut guest = Guest::new();
    let root = guest.client.alloc_fid();
    guest.client.attach(root, "user", "", 1001).unwrap();
    let c = &mut guest.client;
    c.mkdir(root, "dir", 0o755, 1002).unwrap();
    c.symlink(root, "link", "target", 1003).unwrap();
    c.mknod(root, "fifo", libc::S_IFIFO | 0o600, (0, 0), 1004)
        .unwrap();
    c.mknod(root, "device", libc::S_IFCHR | 0o600, (1, 3), 1005)
        .unwrap();
    for (name, gid) in [
        ("dir", 1002),
        ("link", 1003),
        ("fifo", 1004),
        ("device", 1005),
    ] {
        let host = fs::symlink_metadata(guest.path(name)).unwrap();
        assert_eq!((host.uid(), host.gid()), (1001, gid), "{name}");
    }
}

#[test]
fn a_set_gid_directory_hands_its_group_down() {
    let mut guest = Guest::new();
    guest.dir("dir");
    let own = guest.client.stat(guest.root, "dir").unwrap();
    let path = guest.path("dir");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o2775)).unwrap();
    if is_root() {
        std::os::unix::fs::chown(&path, None, Some(4000)).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o2775)).unwrap();
    }
    let group = fs::metadata(&path).unwrap().gid();
    let dir = guest.walk("dir");
    guest.client.mkdir(dir, "sub", 0o755, own.gid).unwrap();
    let sub = fs::metadata(path.join("sub")).unwrap();
    assert_eq!(sub.gid(), group);
    assert_eq!(sub.mode() & 0o2000, 0o2000);
}

#[test]
fn mknod_makes_special_files() {
    let mut guest = Guest::new();
    let c = &mut guest.client;
    c.mknod(guest.root, "fifo", libc::S_IFIFO | 0o640, (0, 0), NO_ID)
        .unwrap();
    c.mknod(guest.root, "sock", libc::S_IFSOCK | 0o600, (0, 0), NO_ID)
        .unwrap();
    c.mknod(guest.root, "file", libc::S_IFREG | 0o604, (0, 0), NO_ID)
        .unwrap();
    c.mknod(guest.root, "untyped", 0o600, (0, 0), NO_ID)
        .unwrap();
    let kind = |name: &str| fs::symlink_metadata(guest.path(name)).unwrap().file_type();
    assert!(kind("fifo").is_fifo() && kind("sock").is_socket());
    assert!(kind("file").is_file() && kind("untyped").is_file());
    assert_eq!(mode_of(&guest.path("fifo")), 0o640);
    refused(
        guest
            .client
            .mknod(guest.root, "fifo", libc::S_IFIFO, (0, 0), 0),
        Errno::EEXIST,
    );
    for kind in [libc::S_IFDIR, libc::S_IFLNK, 0o170_000, 0o030_000] {
        refused(
            guest
                .client
                .mknod(guest.root, "odd", kind | 0o600, (0, 0), 0),
            Errno::EINVAL,
        );
    }
    assert!(!guest.path("odd").exists());
}

#[test]
fn mknod_makes_devices_for_root() {
    let mut guest = Guest::new();
    let made = guest
        .client
        .mknod(guest.root, "dev", libc::S_IFCHR | 0o600, (7, 300), NO_ID);
    if !is_root() {
        return refused(made, Errno::EPERM);
    }
    made.unwrap();
    let host = fs::symlink_metadata(guest.path("dev")).unwrap();
    assert!(host.file_type().is_char_device());
    assert_eq!(
        (libc::major(host.rdev()), libc::minor(host.rdev())),
        (7, 300)
    );
    let stat = guest.client.stat(guest.root, "dev").unwrap();
    assert_eq!((stat.mode, stat.rdev), (host.mode(), host.rdev()));
}

#[test]
fn symlink_and_readlink() {
    let mut guest = Guest::new();
    let long = "t/".repeat(2000);
    for (name, target) in [
        ("a", "target"),
        ("b", "/etc/passwd"),
        ("c", "../../.."),
        ("d", long.as_str()),
    ] {
        let qid = guest
            .client
            .symlink(guest.root, name, target, NO_ID)
            .unwrap();
        assert_eq!(qid.kind, QidKind::SYMLINK);
        assert_eq!(fs::read_link(guest.path(name)).unwrap(), Path::new(target));
        let fid = guest.walk(name);
        assert_eq!(guest.client.readlink(fid).unwrap(), target.as_bytes());
        assert_eq!(
            guest.client.getattr(fid, getattr::ALL).unwrap().size,
            target.len() as u64
        );
    }
    let c = &mut guest.client;
    refused(c.symlink(guest.root, "a", "again", 0), Errno::EEXIST);
    refused(c.symlink(guest.root, "e", "", 0), Errno::ENOENT);
    refused(c.symlink(guest.root, "e", b"a\0b", 0), Errno::ENOENT);
    refused(
        c.symlink(guest.root, "e", "t".repeat(5000), 0),
        Errno::ENAMETOOLONG,
    );
    refused(c.readlink(guest.root), Errno::EINVAL);
    guest.file("file", "x");
    let fid = guest.walk("file");
    refused(guest.client.readlink(fid), Errno::EINVAL);
}

#[test]
fn link_gives_another_name() {
    let mut guest = Guest::new();
    let path = guest.file("file", "content");
    guest.dir("dir");
    let (file, dir) = (guest.walk("file"), guest.walk("dir"));
    guest.client.link(dir, file, "second").unwrap();
    let (first, second) = (
        fs::metadata(&path).unwrap(),
        fs::metadata(guest.path("dir/second")).unwrap(),
    );
    assert_eq!((first.ino(), first.nlink()), (second.ino(), 2));
    refused(guest.client.link(dir, file, "second"), Errno::EEXIST);
    refused(guest.client.link(file, file, "third"), Errno::ENOTDIR);
    refused(guest.client.link(guest.root, dir, "hard-dir"), Errno::EPERM);
    // A symbolic link gets a second name itself; its target is not looked at.
    symlink("/etc/passwd", guest.path("link")).unwrap();
    let link = guest.walk("link");
    guest.client.link(dir, link, "link-too").unwrap();
    assert_eq!(
        fs::read_link(guest.path("dir/link-too")).unwrap(),
        Path::new("/etc/passwd")
    );
    // A file without a name gets none any more.
    fs::remove_file(&path).unwrap();
    fs::remove_file(guest.path("dir/second")).unwrap();
    refused(guest.client.link(dir, file, "back"), Errno::ENOENT);
}

#[test]
fn renameat_moves() {
    let mut guest = Guest::new();
    guest.dir("a");
    guest.dir("b");
    guest.file("a/file", "content");
    let (a, b) = (guest.walk("a"), guest.walk("b"));
    let file = guest.walk("a/file");
    guest.client.renameat(a, "file", b, "moved").unwrap();
    assert!(!guest.path("a/file").exists());
    assert_eq!(fs::read(guest.path("b/moved")).unwrap(), b"content");
    // A fid of the file goes with it.
    guest.client.lopen(file, open::RDONLY).unwrap();
    assert_eq!(guest.client.read(file, 0, 10).unwrap(), b"content");
    // Over an existing file.
    guest.file("b/old", "old");
    guest.client.renameat(b, "moved", b, "old").unwrap();
    assert_eq!(fs::read(guest.path("b/old")).unwrap(), b"content");
    // A directory, with all that is in it; fids below keep working.
    let inside = guest.walk("b/old");
    guest.client.renameat(guest.root, "b", a, "b2").unwrap();
    guest.client.lopen(inside, open::RDONLY).unwrap();
    assert_eq!(guest.client.read(inside, 0, 10).unwrap(), b"content");
    assert!(guest.path("a/b2/old").exists());
}

#[test]
fn renameat_refuses() {
    let mut guest = Guest::new();
    guest.dir("dir");
    guest.dir("dir/sub");
    guest.dir("full");
    guest.file("full/x", "");
    guest.file("file", "");
    let (root, dir, file) = (guest.root, guest.walk("dir"), guest.walk("file"));
    let c = &mut guest.client;
    refused(c.renameat(root, "missing", root, "n"), Errno::ENOENT);
    refused(c.renameat(file, "x", root, "n"), Errno::ENOTDIR);
    refused(c.renameat(root, "file", file, "n"), Errno::ENOTDIR);
    refused(c.renameat(root, "dir", dir, "inside"), Errno::EINVAL);
    refused(c.renameat(root, "file", root, "dir"), Errno::EISDIR);
    refused(c.renameat(root, "dir", root, "file"), Errno::ENOTDIR);
    refused(c.renameat(root, "dir", root, "full"), Errno::ENOTEMPTY);
    for dots in [".", ".."] {
        refused(c.renameat(root, dots, root, "n"), Errno::EBUSY);
        refused(c.renameat(root, "file", dir, dots), Errno::EBUSY);
    }
    for (name, errno) in impossible_names() {
        refused(c.renameat(root, &name, root, "n"), errno);
        refused(c.renameat(root, "file", root, &name), errno);
    }
    let expected = [".", "..", "dir", "file", "full"].map(String::from);
    assert_eq!(host_names(guest.daemon.share()), BTreeSet::from(expected));
}

#[test]
fn rename_moves_the_file_of_a_fid() {
    let mut guest = Guest::new();
    guest.dir("a");
    guest.file("a/file", "content");
    let (a, file) = (guest.walk("a"), guest.walk("a/file"));
    guest.client.rename(file, guest.root, "moved").unwrap();
    assert_eq!(fs::read(guest.path("moved")).unwrap(), b"content");
    // Where the file is now counts, not where it was walked to.
    fs::rename(guest.path("moved"), guest.path("a/by-host")).unwrap();
    guest.client.rename(file, guest.root, "again").unwrap();
    assert!(guest.path("again").exists() && !guest.path("a/by-host").exists());
    // Directories too, and fids that are open.
    guest.client.rename(a, guest.root, "b").unwrap();
    assert!(guest.path("b").is_dir());
    let opened = guest.open("again", open::RDONLY);
    guest.client.rename(opened, a, "in-b").unwrap();
    assert!(guest.path("b/in-b").exists());
}

#[test]
fn rename_refuses() {
    let mut guest = Guest::new();
    let path = guest.file("file", "");
    guest.dir("dir");
    let (root, file, dir) = (guest.root, guest.walk("file"), guest.walk("dir"));
    let c = &mut guest.client;
    refused(c.rename(root, dir, "root"), Errno::EBUSY);
    refused(c.rename(file, file, "n"), Errno::ENOTDIR);
    refused(c.rename(dir, dir, "inside"), Errno::EINVAL);
    refused(c.rename(file, root, "."), Errno::EBUSY);
    refused(c.rename(file, root, ".."), Errno::EBUSY);
    for (name, errno) in impossible_names() {
        refused(c.rename(file, root, name), errno);
    }
    fs::remove_file(&path).unwrap();
    refused(c.rename(file, root, "n"), Errno::ENOENT);
}

#[test]
fn unlinkat_removes() {
    let mut guest = Guest::new();
    guest.file("file", "");
    guest.dir("dir");
    symlink("dir", guest.path("link")).unwrap();
    let c = &mut guest.client;
    c.unlinkat(guest.root, "file", 0).unwrap();
    c.unlinkat(guest.root, "link", 0).unwrap();
    c.unlinkat(guest.root, "dir", unlink::REMOVEDIR).unwrap();
    assert_eq!(fs::read_dir(guest.daemon.share()).unwrap().count(), 0);
}

#[test]
fn unlinkat_refuses() {
    let mut guest = Guest::new();
    guest.file("file", "");
    guest.dir("dir");
    guest.dir("full");
    guest.file("full/x", "");
    symlink("dir", guest.path("link")).unwrap();
    let (root, file) = (guest.root, guest.walk("file"));
    let c = &mut guest.client;
    refused(c.unlinkat(root, "missing", 0), Errno::ENOENT);
    refused(c.unlinkat(root, "dir", 0), Errno::EISDIR);
    refused(c.unlinkat(root, "file", unlink::REMOVEDIR), Errno::ENOTDIR);
    refused(c.unlinkat(root, "link", unlink::REMOVEDIR), Errno::ENOTDIR);
    refused(
        c.unlinkat(root, "full", unlink::REMOVEDIR),
        Errno::ENOTEMPTY,
    );
    refused(c.unlinkat(file, "x", 0), Errno::ENOTDIR);
    refused(c.unlinkat(root, ".", unlink::REMOVEDIR), Errno::EINVAL);
    refused(c.unlinkat(root, "..", unlink::REMOVEDIR), Errno::ENOTEMPTY);
    refused(c.unlinkat(root, "file", 0x400), Errno::EINVAL);
    for (name, errno) in impossible_names() {
        refused(c.unlinkat(root, &name, 0), errno);
        refused(c.unlinkat(root, &name, unlink::REMOVEDIR), errno);
    }
    let expected = [".", "..", "dir", "file", "full", "link"].map(String::from);
    assert_eq!(host_names(guest.daemon.share()), BTreeSet::from(expected));
}

#[test]
fn remove_takes_file_and_fid() {
    let mut guest = Guest::new();
    guest.dir("dir");
    guest.file("dir/file", "");
    let (dir, file) = (guest.walk("dir"), guest.walk("dir/file"));
    // Clunked even when it fails.
    refused(guest.client.remove(dir), Errno::ENOTEMPTY);
    refused(guest.client.clunk(dir), Errno::EBADF);
    fs::rename(guest.path("dir/file"), guest.path("moved")).unwrap();
    guest.client.remove(file).unwrap();
    assert!(!guest.path("moved").exists());
    refused(guest.client.clunk(file), Errno::EBADF);
    let dir = guest.walk("dir");
    guest.client.remove(dir).unwrap();
    assert!(!guest.path("dir").exists());
    // The root stays.
    let root = guest.walk("");
    refused(guest.client.remove(root), Errno::EBUSY);
    assert!(guest.daemon.share().is_dir());
}

#[test]
fn remove_of_a_file_that_is_gone_spares_its_successor() {
    let mut guest = Guest::new();
    let path = guest.file("file", "first");
    let file = guest.walk("file");
    let keep = guest.walk("file");
    fs::remove_file(&path).unwrap();
    fs::write(&path, "second").unwrap();
    refused(guest.client.remove(file), Errno::ENOENT);
    assert_eq!(fs::read(&path).unwrap(), b"second");
    refused(guest.client.clunk(file), Errno::EBADF);
    guest.client.clunk(keep).unwrap();
}

#[test]
fn new_names_are_checked_by_every_message() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let (root, file) = (guest.root, guest.walk("file"));
    let mut cases = impossible_names();
    cases.push((b".".to_vec(), Errno::EEXIST));
    cases.push((b"..".to_vec(), Errno::EEXIST));
    let c = &mut guest.client;
    for (name, errno) in cases {
        refused(c.mkdir(root, &name, 0o755, 0), errno);
        refused(
            c.mknod(root, &name, libc::S_IFIFO | 0o600, (0, 0), 0),
            errno,
        );
        refused(c.symlink(root, &name, "target", 0), errno);
        refused(c.link(root, file, &name), errno);
    }
    assert_eq!(fs::read_dir(guest.daemon.share()).unwrap().count(), 1);
    assert_eq!(
        fs::read_dir(guest.daemon.outside()).unwrap().count(),
        3,
        "share, socket, log"
    );
}

#[test]
fn directories_are_needed_by_every_message_that_makes() {
    let mut guest = Guest::new();
    guest.file("file", "x");
    let file = guest.walk("file");
    let c = &mut guest.client;
    refused(c.mkdir(file, "n", 0o755, 0), Errno::ENOTDIR);
    refused(c.mknod(file, "n", libc::S_IFIFO, (0, 0), 0), Errno::ENOTDIR);
    refused(c.symlink(file, "n", "t", 0), Errno::ENOTDIR);
    refused(
        c.lopen(file, open::RDONLY | open::DIRECTORY),
        Errno::ENOTDIR,
    );
}

#[test]
fn a_directory_that_is_gone_takes_nothing() {
    let mut guest = Guest::new();
    guest.dir("dir");
    guest.file("file", "x");
    let (dir, file) = (guest.walk("dir"), guest.walk("file"));
    guest
        .client
        .unlinkat(guest.root, "dir", unlink::REMOVEDIR)
        .unwrap();
    let c = &mut guest.client;
    refused(c.mkdir(dir, "n", 0o755, 0), Errno::ENOENT);
    refused(c.symlink(dir, "n", "t", 0), Errno::ENOENT);
    refused(c.link(dir, file, "n"), Errno::ENOENT);
    refused(c.renameat(guest.root, "file", dir, "n"), Errno::ENOENT);
    refused(c.unlinkat(dir, "n", 0), Errno::ENOENT);
    assert_eq!(c.getattr(dir, getattr::ALL).unwrap().nlink, 0);
}

#[test]
fn a_readonly_share_keeps_its_names() {
    let (mut guest, share) = Guest::readonly(|share| {
        fs::write(share.join("file"), "content").unwrap();
        fs::create_dir(share.join("dir")).unwrap();
    });
    let before = host_names(share.path());
    let (root, file, file2) = (guest.root, guest.walk("file"), guest.walk("file"));
    let c = &mut guest.client;
    refused(c.mkdir(root, "n", 0o755, 0), Errno::EROFS);
    refused(c.mknod(root, "n", libc::S_IFIFO, (0, 0), 0), Errno::EROFS);
    refused(c.symlink(root, "n", "t", 0), Errno::EROFS);
    refused(c.link(root, file, "n"), Errno::EROFS);
    refused(c.rename(file, root, "n"), Errno::EROFS);
    refused(c.renameat(root, "file", root, "n"), Errno::EROFS);
    refused(c.unlinkat(root, "file", 0), Errno::EROFS);
    refused(c.unlinkat(root, "dir", unlink::REMOVEDIR), Errno::EROFS);
    refused(c.remove(file2), Errno::EROFS);
    assert_eq!(host_names(share.path()), before);
    assert!(matches!(c.clunk(file2), Err(Error::Errno(_))));
    assert_eq!(names(&c.read_dir(root, "").unwrap()), before);
}
