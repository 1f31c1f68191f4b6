//! What mapped-file leaves on the host, and what the guest cannot reach there.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use libc::{S_IFBLK, S_IFDIR, S_IFLNK, S_IFREG};
use nix::errno::Errno;
use protocol::{open, unlink};

use super::*;
use crate::common::{mode_of, refused};

const DIRECTORY: &str = ".virtfs_metadata";
const ROOT: &str = ".virtfs_metadata_root";

fn share() -> Share {
    Share::new("mapped-file", true, &[])
}

impl Share {
    /// The metadata file of `name` in `directory`.
    fn metadata(&self, directory: &str, name: &str) -> PathBuf {
        self.path(directory).join(DIRECTORY).join(name)
    }

    fn kept(&self, directory: &str, name: &str) -> String {
        fs::read_to_string(self.metadata(directory, name)).unwrap()
    }
}

fn text(uid: u32, gid: u32, mode: u32) -> String {
    format!("virtfs.uid={uid}\nvirtfs.gid={gid}\nvirtfs.mode={mode}\n")
}

#[test]
fn the_files_on_the_host_are_qemu_s() {
    let mut share = share();
    let mine = share.mine;
    share.create("file", 0o640, b"x");
    share.client.mkdir(mine, "dir", 0o755, GROUP).unwrap();
    let dir = share.walk("dir");
    share.client.symlink(dir, "link", "x", GROUP).unwrap();
    let mode = S_IFBLK | 0o660;
    share
        .client
        .mknod(mine, "disk", mode, (8, 17), GROUP)
        .unwrap();
    assert_eq!(share.kept("", "file"), text(USER, GROUP, S_IFREG | 0o640));
    assert_eq!(share.kept("", "dir"), text(USER, GROUP, S_IFDIR | 0o755));
    let nobody = share.kept("dir", "link");
    assert_eq!(
        nobody,
        format!("virtfs.gid={GROUP}\nvirtfs.mode={}\n", S_IFLNK | 0o777)
    );
    let disk = text(USER, GROUP, S_IFBLK | 0o660) + "virtfs.rdev=2065\n";
    assert_eq!(share.kept("", "disk"), disk);
    assert_eq!(mode_of(&share.path(DIRECTORY)), 0o700);
    assert_eq!(mode_of(&share.metadata("", "file")), 0o600);

    share.chmod("file", 0o4711).unwrap();
    share.chown("file", 1, u32::MAX - 1).unwrap();
    let expected = format!(
        "virtfs.uid=1\nvirtfs.gid=-2\nvirtfs.mode={}\n",
        S_IFREG | 0o711
    );
    assert_eq!(share.kept("", "file"), expected);
    // What the guest does not change is not written down.
    share.file("host", "x");
    share.chown("host", 7, 8).unwrap();
    assert_eq!(share.kept("", "host"), "virtfs.uid=7\nvirtfs.gid=8\n");
    // The root has its own.
    assert!(!share.path(ROOT).exists());
    share.chown("", 3, 4).unwrap();
    let root = fs::read_to_string(share.path(ROOT)).unwrap();
    assert_eq!(root, "virtfs.uid=3\nvirtfs.gid=4\n");
    assert_eq!(mode_of(&share.path(ROOT)), 0o600);
}

#[test]
fn files_that_others_wrote_are_read() {
    let mut share = share();
    share.file("disk", "");
    fs::create_dir(share.path(DIRECTORY)).unwrap();
    let text = "virtfs.uid=12\nvirtfs.gid=-2\nvirtfs.mode=24992\nvirtfs.rdev=2065\n";
    fs::write(share.metadata("", "disk"), text).unwrap();
    assert_eq!(share.seen("disk"), (S_IFBLK | 0o640, 12, u32::MAX - 1));
    assert_eq!(share.stat("disk").rdev, libc::makedev(8, 17));
    fs::write(share.path(ROOT), "virtfs.mode=17407\n").unwrap();
    assert_eq!(share.seen("").0, S_IFDIR | 0o1777);
}

#[test]
fn what_is_no_metadata_is_not_there() {
    let mut share = share();
    let outside = share.directory.path().join("outside");
    fs::write(&outside, "virtfs.uid=1\n").unwrap();
    for name in ["nonsense", "link", "fifo", "directory", "long"] {
        share.file(name, "x");
    }
    let host = fs::metadata(share.path("link")).unwrap();
    fs::create_dir(share.path(DIRECTORY)).unwrap();
    let nonsense = b"virtfs.uid=\xff\nvirtfs.mode=x\n\0\0virtfs.gid=99999999999\n";
    fs::write(share.metadata("", "nonsense"), nonsense).unwrap();
    symlink(&outside, share.metadata("", "link")).unwrap();
    nix::unistd::mkfifo(&share.metadata("", "fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(share.metadata("", "directory")).unwrap();
    fs::write(share.metadata("", "long"), vec![b'\n'; 1 << 20]).unwrap();
    for name in ["nonsense", "link", "fifo", "directory", "long"] {
        let seen = share.seen(name);
        assert_eq!(seen, (host.mode(), host.uid(), host.gid()), "{name}");
    }
    assert_eq!(share.names("").len(), 5);
    // Nothing is written through what somebody has put there.
    for name in ["link", "fifo", "directory"] {
        assert!(share.chown(name, 5, 5).is_err(), "{name}");
        assert_eq!(share.seen(name).1, host.uid());
    }
    assert_eq!(fs::read_to_string(outside).unwrap(), "virtfs.uid=1\n");
    for name in ["nonsense", "long"] {
        share.chown(name, 5, 5).unwrap();
        assert_eq!(share.kept("", name), "virtfs.uid=5\nvirtfs.gid=5\n");
    }
}

#[test]
fn a_metadata_directory_that_is_a_link_is_not_followed() {
    let mut share = share();
    let outside = share.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "virtfs.uid=1\n").unwrap();
    symlink(&outside, share.path(DIRECTORY)).unwrap();
    let host = share.file("file", "x");
    let uid = fs::metadata(host).unwrap().uid();
    let (root, mine) = (share.root, share.mine);
    assert_eq!(share.seen("file").1, uid);
    assert!(share.chown("file", 5, 5).is_err());
    assert!(share.client.mkdir(mine, "dir", 0o755, GROUP).is_err());
    assert!(!share.path("dir").exists());
    assert!(share.client.renameat(root, "file", root, "other").is_err());
    share.client.unlinkat(root, "file", 0).unwrap();
    assert_eq!(
        fs::read_to_string(outside.join("file")).unwrap(),
        "virtfs.uid=1\n"
    );
    assert_eq!(fs::read_dir(outside).unwrap().count(), 1);
}

#[test]
fn no_message_reaches_the_metadata() {
    let mut share = share();
    let (mine, root) = (share.mine, share.root);
    share.create("file", 0o640, b"x");
    share.client.mkdir(mine, "dir", 0o755, GROUP).unwrap();
    let dir = share.walk("dir");
    share.client.mkdir(dir, "below", 0o755, GROUP).unwrap();
    share.chown("", 1, 1).unwrap();
    let file = share.walk("file");
    for name in [DIRECTORY, ROOT, ".VIRTFS_METADATA", ".Virtfs_Metadata_Root"] {
        let fid = share.client.alloc_fid();
        refused(share.client.walk(root, fid, &[name]), Errno::ENOENT);
        let partial = share
            .client
            .walk(root, fid, &["dir", name, "below"])
            .unwrap();
        assert_eq!(partial.len(), 1);
        let attached = share.client.attach(fid, "", name, 0);
        refused(attached, Errno::ENOENT);
        let attached = share.client.attach(fid, "", format!("/dir/{name}/.."), 0);
        refused(attached, Errno::ENOENT);

        let made = share.client.mkdir(root, name, 0o777, 0);
        refused(made, Errno::ENOENT);
        let made = share.client.mknod(root, name, S_IFREG | 0o666, (0, 0), 0);
        refused(made, Errno::ENOENT);
        refused(share.client.symlink(root, name, "x", 0), Errno::ENOENT);
        refused(share.client.link(root, file, name), Errno::ENOENT);
        let fid = share.walk("");
        let flags = open::RDWR | open::TRUNC;
        let made = share.client.lcreate(fid, name, flags, 0o666, 0);
        refused(made, Errno::ENOENT);
        share.client.close(fid).unwrap();

        refused(
            share.client.renameat(root, "file", root, name),
            Errno::ENOENT,
        );
        refused(
            share.client.renameat(root, name, root, "mine"),
            Errno::ENOENT,
        );
        refused(share.client.rename(file, root, name), Errno::ENOENT);
        for flags in [0, unlink::REMOVEDIR] {
            refused(share.client.unlinkat(root, name, flags), Errno::ENOENT);
        }
    }
    assert_eq!(share.names(""), ["dir", "file"]);
    assert_eq!(share.names("dir"), ["below"]);
    assert_eq!(share.kept("", "file"), text(USER, GROUP, S_IFREG | 0o640));
    // What looks like it is anybody's name.
    share.create(".virtfs_metadata_", 0o600, b"");
    share.create("virtfs_metadata", 0o600, b"");
}

#[test]
fn small_reads_of_a_directory_skip_the_metadata() {
    let mut share = share();
    for name in 0..40 {
        share.create(&format!("file-{name}"), 0o600, b"");
    }
    let fid = share.open("", open::RDONLY);
    for count in [40, 64, 200, 4000] {
        let entries = share.client.list(fid, count).unwrap();
        assert_eq!(entries.len(), 42, "{count}");
        assert!(
            entries
                .iter()
                .all(|entry| !entry.name.starts_with(b".virtfs"))
        );
    }
}

#[test]
fn metadata_comes_and_goes_with_the_name() {
    let mut share = share();
    let (mine, root) = (share.mine, share.root);
    share.create("a", 0o640, b"x");
    share.client.mkdir(mine, "dir", 0o755, GROUP).unwrap();
    let dir = share.walk("dir");
    share.client.renameat(root, "a", dir, "b").unwrap();
    assert!(!share.metadata("", "a").exists());
    assert_eq!(share.kept("dir", "b"), text(USER, GROUP, S_IFREG | 0o640));
    // Hard links share it, as the files are one.
    let file = share.walk("dir/b");
    share.client.link(root, file, "c").unwrap();
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(
        inode(share.metadata("", "c")),
        inode(share.metadata("dir", "b"))
    );
    share.client.remove(file).unwrap();
    assert!(!share.metadata("dir", "b").exists());
    assert_eq!(share.kept("", "c"), text(USER, GROUP, S_IFREG | 0o640));
    share.client.unlinkat(root, "c", 0).unwrap();
    assert!(!share.metadata("", "c").exists());
    // An operation that fails leaves it where it is.
    share.create("a", 0o640, b"x");
    refused(share.client.renameat(root, "a", root, "dir"), Errno::EISDIR);
    refused(
        share.client.unlinkat(root, "a", unlink::REMOVEDIR),
        Errno::ENOTDIR,
    );
    refused(share.client.unlinkat(root, "dir", 0), Errno::EISDIR);
    assert_eq!(share.kept("", "a"), text(USER, GROUP, S_IFREG | 0o640));
    assert_eq!(share.kept("", "dir"), text(USER, GROUP, S_IFDIR | 0o755));
}

#[test]
fn a_directory_is_empty_with_nothing_but_metadata_in_it() {
    let mut share = share();
    let (mine, root) = (share.mine, share.root);
    for name in ["removed", "replaced", "full", "moved"] {
        share.client.mkdir(mine, name, 0o755, GROUP).unwrap();
        let fid = share.walk(name);
        share.client.mkdir(fid, "x", 0o755, GROUP).unwrap();
        if name != "full" {
            share.client.unlinkat(fid, "x", unlink::REMOVEDIR).unwrap();
        }
        assert!(share.path(name).join(DIRECTORY).exists());
    }
    // Left over by the host, which knows nothing of it.
    fs::write(share.metadata("removed", "stale"), "virtfs.uid=1\n").unwrap();
    fs::write(share.path("replaced").join(ROOT), "").unwrap();
    let result = share.client.unlinkat(root, "full", unlink::REMOVEDIR);
    refused(result, Errno::ENOTEMPTY);
    refused(
        share.client.renameat(root, "moved", root, "full"),
        Errno::ENOTEMPTY,
    );
    assert_eq!(
        share.kept("full", "x"),
        format!("virtfs.gid={GROUP}\nvirtfs.mode=16877\n")
    );
    share
        .client
        .renameat(root, "moved", root, "replaced")
        .unwrap();
    share
        .client
        .unlinkat(root, "removed", unlink::REMOVEDIR)
        .unwrap();
    let fid = share.walk("replaced");
    share.client.remove(fid).unwrap();
    assert_eq!(share.names(""), ["full"]);
    let left: Vec<_> = fs::read_dir(share.path(DIRECTORY)).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn hidden_directories_are_not_counted_as_links() {
    let mut share = share();
    let mine = share.mine;
    share.client.mkdir(mine, "dir", 0o755, GROUP).unwrap();
    // What an empty directory counts here, and each one in it: file systems differ.
    let empty = fs::metadata(share.path("dir")).unwrap().nlink();
    assert_eq!(share.stat("dir").nlink, empty);
    let dir = share.walk("dir");
    share.client.mkdir(dir, "a", 0o755, GROUP).unwrap();
    fs::create_dir_all(share.directory.path().join("plain/a")).unwrap();
    let expected = fs::metadata(share.directory.path().join("plain")).unwrap();
    assert_eq!(share.stat("dir").nlink, expected.nlink());
}

#[test]
fn metadata_left_over_by_the_host_is_nobody_else_s() {
    let mut share = share();
    let root = share.root;
    share.create("a", 0o640, b"x");
    let file = share.walk("a");
    share.client.link(root, file, "b").unwrap();
    // An editor of the host replaces one of the two; their metadata is still one.
    fs::remove_file(share.path("b")).unwrap();
    share.file("b", "new");
    share.chown("b", 1, 1).unwrap();
    assert_eq!(share.kept("", "a"), text(USER, GROUP, S_IFREG | 0o640));
    assert_eq!(share.seen("b").1, 1);
    // And takes one away: a new file there starts afresh.
    fs::remove_file(share.path("b")).unwrap();
    share.create("b", 0o600, b"");
    assert_eq!(share.kept("", "b"), text(USER, GROUP, S_IFREG | 0o600));
    assert_eq!(share.kept("", "a"), text(USER, GROUP, S_IFREG | 0o640));
}

#[test]
fn extended_attributes_are_users_only() {
    if !has_xattrs() {
        return;
    }
    let mut share = share();
    share.create("file", 0o640, b"x");
    share.set_xattr("file", "user.color", b"blue").unwrap();
    assert_eq!(share.xattr("file", "user.color").unwrap(), b"blue");
    // The other mapped model may serve the share tomorrow.
    host_set(&share.path("file"), "user.virtfs.uid", &[0; 4]);
    refused(share.xattr("file", "user.virtfs.uid"), Errno::ENODATA);
    refused(
        share.set_xattr("file", "user.virtfs.uid", &[1; 4]),
        Errno::EACCES,
    );
    for name in [
        "system.posix_acl_access",
        "security.capability",
        "trusted.x",
    ] {
        refused(share.xattr("file", name), Errno::EOPNOTSUPP);
        refused(share.set_xattr("file", name, b"x"), Errno::EOPNOTSUPP);
    }
    assert_eq!(share.xattr_names("file"), b"user.color\0");
}
