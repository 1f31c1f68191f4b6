//! What mapped-xattr leaves on the host, and what the guest cannot reach there.

use std::process::Command;

use libc::{S_IFBLK, S_IFDIR, S_IFLNK, S_IFREG};
use nix::errno::Errno;
use protocol::xattr;

use super::*;
use crate::common::{host_value, refused};

/// A share of this model, unless the host cannot have one.
fn share() -> Option<Share> {
    has_xattrs().then(|| Share::new("mapped-xattr", true, &[]))
}

/// What the host has under `user.virtfs.`.
fn kept(path: &Path) -> [Option<Vec<u8>>; 4] {
    ["uid", "gid", "mode", "rdev"].map(|name| host_value(path, &format!("user.virtfs.{name}")))
}

fn bytes(word: u32) -> Option<Vec<u8>> {
    Some(word.to_le_bytes().to_vec())
}

#[test]
fn the_attributes_on_the_host_are_qemu_s() {
    let Some(mut share) = share() else { return };
    let mine = share.mine;
    share.create("file", 0o640, b"x");
    share.client.mkdir(mine, "dir", 0o755, GROUP).unwrap();
    share.client.symlink(mine, "link", "x", GROUP).unwrap();
    let mode = S_IFBLK | 0o660;
    share
        .client
        .mknod(mine, "disk", mode, (259, 65_537), GROUP)
        .unwrap();
    let owned = |mode| [bytes(USER), bytes(GROUP), bytes(mode), None];
    assert_eq!(kept(&share.path("file")), owned(S_IFREG | 0o640));
    assert_eq!(kept(&share.path("dir")), owned(S_IFDIR | 0o755));
    assert_eq!(kept(&share.path("link")), owned(S_IFLNK | 0o777));
    let disk = kept(&share.path("disk"));
    assert_eq!(disk[..3], owned(S_IFBLK | 0o660)[..3]);
    // makedev(259, 65537): 8 bits of the minor number, 12 of the major, the rest of the minor.
    assert_eq!(disk[3], Some(vec![0x01, 0x03, 0x01, 0x10, 0, 0, 0, 0]));

    share.chmod("file", 0o4711).unwrap();
    share.chown("file", 1, u32::MAX - 1).unwrap();
    let expected = [bytes(1), bytes(u32::MAX - 1), bytes(S_IFREG | 0o711), None];
    assert_eq!(kept(&share.path("file")), expected);
    // What the guest does not change is not written down.
    share.file("host", "x");
    share.chown("host", 7, 8).unwrap();
    assert_eq!(kept(&share.path("host")), [bytes(7), bytes(8), None, None]);
}

#[test]
fn attributes_that_others_wrote_are_read() {
    let Some(mut share) = share() else { return };
    let path = share.file("disk", "");
    host_set(&path, "user.virtfs.uid", &12u32.to_le_bytes());
    host_set(&path, "user.virtfs.gid", &13u32.to_le_bytes());
    host_set(&path, "user.virtfs.mode", &(S_IFBLK | 0o640).to_le_bytes());
    host_set(&path, "user.virtfs.rdev", &0x0811u64.to_le_bytes());
    assert_eq!(share.seen("disk"), (S_IFBLK | 0o640, 12, 13));
    assert_eq!(share.stat("disk").rdev, libc::makedev(8, 17));
    assert_eq!(share.kind("disk"), libc::DT_BLK);
}

#[test]
fn attributes_that_make_no_sense_are_not_there() {
    let Some(mut share) = share() else { return };
    let path = share.file("file", "x");
    let dir = share.dir("dir");
    let host = fs::metadata(&path).unwrap();
    for value in [&b""[..], b"x", b"123", b"12345", &[0xff; 9], &[7; 5000]] {
        for name in ["uid", "gid", "mode", "rdev"] {
            // The file system may have no room for the longest.
            host_set(&path, &format!("user.virtfs.{name}"), value);
        }
        assert_eq!(share.seen("file"), (host.mode(), host.uid(), host.gid()));
        assert_eq!(share.names(""), ["dir", "file"]);
    }
    for mode in [0, u32::MAX, S_IFDIR | 0o777, 0o150_777] {
        host_set(&path, "user.virtfs.mode", &mode.to_le_bytes());
        assert_eq!(share.seen("file").0, S_IFREG | mode & 0o7777);
        host_set(
            &dir,
            "user.virtfs.mode",
            &(S_IFREG | mode & 0o7777).to_le_bytes(),
        );
        assert_eq!(share.seen("dir").0, S_IFDIR | mode & 0o7777);
    }
}

#[test]
fn the_guest_cannot_reach_the_attributes() {
    let Some(mut share) = share() else { return };
    share.create("file", 0o640, b"x");
    let before = kept(&share.path("file"));
    for name in [
        "user.virtfs.uid",
        "user.virtfs.mode",
        "user.virtfs.new",
        "user.virtfs.",
        "user.virtfs.system.posix_acl_access",
    ] {
        refused(share.xattr("file", name), Errno::ENODATA);
        refused(share.set_xattr("file", name, &[0; 4]), Errno::EACCES);
        // A removal.
        refused(
            share.set_xattr_with("file", name, b"", xattr::REPLACE),
            Errno::EACCES,
        );
    }
    assert_eq!(kept(&share.path("file")), before);
    assert_eq!(share.xattr_names("file"), b"");
    share.set_xattr("file", "user.virtfs", b"free").unwrap();
    assert_eq!(share.xattr_names("file"), b"user.virtfs\0");
}

#[test]
fn users_attributes_are_the_guest_s() {
    let Some(mut share) = share() else { return };
    share.create("file", 0o000, b"x");
    share.set_xattr("file", "user.color", b"blue").unwrap();
    assert_eq!(share.xattr("file", "user.color").unwrap(), b"blue");
    let path = share.path("file");
    assert_eq!(host_value(&path, "user.color").unwrap(), b"blue");
    assert_eq!(share.xattr_names("file"), b"user.color\0");
    share
        .set_xattr_with("file", "user.color", b"", xattr::REPLACE)
        .unwrap();
    refused(share.xattr("file", "user.color"), Errno::ENODATA);
    for name in ["security.capability", "trusted.x", "security.selinux"] {
        refused(share.xattr("file", name), Errno::EOPNOTSUPP);
        refused(share.set_xattr("file", name, b"x"), Errno::EOPNOTSUPP);
    }
}

#[test]
fn acls_are_kept_and_mean_nothing_to_the_host() {
    let Some(mut share) = share() else { return };
    let mine = share.mine;
    share.client.mkdir(mine, "dir", 0o755, GROUP).unwrap();
    let path = share.path("dir");
    let before = fs::metadata(&path).unwrap().mode();
    for kind in ["access", "default"] {
        let name = format!("system.posix_acl_{kind}");
        let acl = format!("an {kind} list").into_bytes();
        refused(share.xattr("dir", &name), Errno::ENODATA);
        share.set_xattr("dir", &name, &acl).unwrap();
        assert_eq!(share.xattr("dir", &name).unwrap(), acl);
        let kept = host_value(&path, &format!("user.virtfs.{name}"));
        assert_eq!(kept, Some(acl));
        assert_eq!(host_value(&path, &name), None);
        assert_eq!(share.xattr_names("dir"), [name.as_bytes(), b"\0"].concat());
        // Whether there is one or not.
        for _ in 0..2 {
            share.set_xattr("dir", &name, b"").unwrap();
            refused(share.xattr("dir", &name), Errno::ENODATA);
        }
    }
    assert_eq!(fs::metadata(&path).unwrap().mode(), before);
}

#[test]
fn a_file_system_without_attributes_is_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(BINARY)
        .arg("--socket")
        .arg(directory.path().join("socket"))
        .args(["--shared-dir", "/proc", "--security-model", "mapped-xattr"])
        .output()
        .unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    assert!(
        line.contains("/proc") && line.contains("mapped-file"),
        "{line}"
    );
}

#[test]
fn flags_of_xattrcreate_hold_for_kept_acls() {
    let Some(mut share) = share() else { return };
    share.create("file", 0o640, b"x");
    let acl = "system.posix_acl_access";
    let result = share.set_xattr_with("file", acl, b"x", xattr::REPLACE);
    refused(result, Errno::ENODATA);
    share
        .set_xattr_with("file", acl, b"x", xattr::CREATE)
        .unwrap();
    let result = share.set_xattr_with("file", acl, b"y", xattr::CREATE);
    refused(result, Errno::EEXIST);
    assert_eq!(share.xattr("file", acl).unwrap(), b"x");
}
