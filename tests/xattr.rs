//! Txattrwalk and Txattrcreate: extended attributes.

mod common;

use common::{BINARY, Guest, host_set, host_value, pattern, refused};
use nix::errno::Errno;
use protocol::{open, xattr};
use stub_guest::Result;
use stub_guest::daemon::Launch;

/// A guest with a file that has an attribute, unless the file system under the temporary
/// directory has no user attributes.
fn guest() -> Option<Guest> {
    let guest = Guest::new();
    let path = guest.file("file", "content");
    host_set(&path, "user.color", b"blue").then_some(guest)
}

impl Guest {
    fn value(&mut self, path: &str, name: &str) -> Result<Vec<u8>> {
        let root = self.root;
        self.client.with_path(root, path, |client, fid| {
            let value = client.alloc_fid();
            let size = client.xattrwalk(fid, value, name)?;
            let mut bytes = Vec::new();
            while (bytes.len() as u64) < size {
                bytes.extend(client.read(value, bytes.len() as u64, 8000)?);
            }
            assert!(client.read(value, size, 100)?.is_empty());
            client.close(value)?;
            Ok(bytes)
        })
    }

    /// What Linux sends for setxattr(2) and removexattr(2).
    fn set(&mut self, path: &str, name: &str, value: &[u8], flags: u32) -> Result<()> {
        let fid = self.walk(path);
        self.client
            .xattrcreate(fid, name, value.len() as u64, flags)?;
        self.client.write_all(fid, 0, value)?;
        self.client.close(fid)
    }
}

#[test]
fn xattrwalk_reads_what_the_host_has_set() {
    let Some(mut guest) = guest() else { return };
    let path = guest.path("file");
    assert_eq!(guest.value("file", "user.color").unwrap(), b"blue");
    assert!(host_set(&path, "user.empty", b""));
    assert_eq!(guest.value("file", "user.empty").unwrap(), b"");
    let long = pattern(3000);
    if host_set(&path, "user.long", &long) {
        assert_eq!(guest.value("file", "user.long").unwrap(), long);
    }
}

#[test]
fn xattrwalk_lists_names() {
    let Some(mut guest) = guest() else { return };
    assert!(host_set(&guest.path("file"), "user.shape", b"round"));
    let list = guest.value("file", "").unwrap();
    let names: Vec<&[u8]> = list.split_inclusive(|byte| *byte == 0).collect();
    assert!(
        names.contains(&&b"user.color\0"[..]) && names.contains(&&b"user.shape\0"[..]),
        "{names:?}"
    );
    guest.file("plain", "");
    assert!(
        !guest
            .value("plain", "")
            .unwrap()
            .windows(5)
            .any(|part| part == b"user.")
    );
}

#[test]
fn xattrwalk_works_on_open_and_unlinked_files_and_directories() {
    let Some(mut guest) = guest() else { return };
    let dir = guest.dir("dir");
    assert!(host_set(&dir, "user.kind", b"dir"));
    assert_eq!(guest.value("dir", "user.kind").unwrap(), b"dir");
    let fid = guest.open("file", open::RDONLY);
    std::fs::remove_file(guest.path("file")).unwrap();
    assert_eq!(guest.client.xattrwalk(fid, 90, "user.color").unwrap(), 4);
    assert_eq!(guest.client.read(90, 0, 100).unwrap(), b"blue");
    assert_eq!(guest.client.read(90, 2, 1).unwrap(), b"u");
    guest.client.clunk(90).unwrap();
}

#[test]
fn xattrwalk_refuses() {
    let Some(mut guest) = guest() else { return };
    let fid = guest.walk("file");
    let c = &mut guest.client;
    refused(c.xattrwalk(fid, 90, "user.missing"), Errno::ENODATA);
    refused(c.xattrwalk(fid, 90, "nonsense"), Errno::EOPNOTSUPP);
    refused(
        c.xattrwalk(fid, 90, format!("user.{}", "x".repeat(300))),
        Errno::ERANGE,
    );
    refused(c.xattrwalk(fid, 90, b"user.\0"), Errno::EINVAL);
    refused(c.xattrwalk(fid, guest.root, "user.color"), Errno::EINVAL);
    refused(c.clunk(90), Errno::EBADF);
    // The value's fid is for reading, and for nothing else.
    c.xattrwalk(fid, 90, "user.color").unwrap();
    refused(c.write(90, 0, b"x"), Errno::EBADF);
    refused(c.lopen(90, open::RDONLY), Errno::EINVAL);
    refused(c.getattr(90, protocol::getattr::ALL), Errno::EBADF);
    refused(c.walk(90, 91, &["x"]), Errno::EBADF);
    refused(c.xattrwalk(90, 91, "user.color"), Errno::EBADF);
    assert_eq!(
        host_value(&guest.path("file"), "user.color").unwrap(),
        b"blue"
    );
}

#[test]
fn a_value_is_set_by_the_clunk() {
    let Some(mut guest) = guest() else { return };
    let path = guest.path("file");
    let fid = guest.walk("file");
    let c = &mut guest.client;
    c.xattrcreate(fid, "user.new", 10, 0).unwrap();
    assert_eq!(c.write(fid, 0, b"01234").unwrap(), 5);
    assert_eq!(c.write(fid, 5, b"56789").unwrap(), 5);
    assert_eq!(host_value(&path, "user.new"), None);
    c.clunk(fid).unwrap();
    assert_eq!(host_value(&path, "user.new").unwrap(), b"0123456789");
    refused(c.clunk(fid), Errno::EBADF);
    assert_eq!(guest.value("file", "user.new").unwrap(), b"0123456789");
    guest.set("file", "user.new", b"shorter", 0).unwrap();
    assert_eq!(host_value(&path, "user.new").unwrap(), b"shorter");
    guest.dir("dir");
    guest.set("dir", "user.on-dir", b"x", 0).unwrap();
    assert_eq!(host_value(&guest.path("dir"), "user.on-dir").unwrap(), b"x");
}

#[test]
fn a_value_that_is_not_whole_is_not_set() {
    let Some(mut guest) = guest() else { return };
    let path = guest.path("file");
    for written in [0, 1, 9] {
        let fid = guest.walk("file");
        guest.client.xattrcreate(fid, "user.part", 10, 0).unwrap();
        guest
            .client
            .write(fid, 0, &b"0123456789"[..written])
            .unwrap();
        refused(guest.client.close(fid), Errno::EINVAL);
        assert_eq!(host_value(&path, "user.part"), None);
        refused(guest.client.clunk(fid), Errno::EBADF);
    }
    // Nor one that is longer than announced, or has a hole.
    let fid = guest.walk("file");
    guest.client.xattrcreate(fid, "user.part", 4, 0).unwrap();
    assert!(guest.client.write(fid, 0, b"01234").is_err());
    assert!(guest.client.write(fid, 2, b"23").is_err());
    assert!(guest.client.write(fid, u64::MAX, b"0").is_err());
    refused(guest.client.close(fid), Errno::EINVAL);
    assert_eq!(host_value(&path, "user.part"), None);
}

#[test]
fn a_draft_that_a_new_session_interrupts_is_not_set() {
    let Some(mut guest) = guest() else { return };
    let fid = guest.walk("file");
    guest.client.xattrcreate(fid, "user.draft", 1, 0).unwrap();
    guest.client.write(fid, 0, b"x").unwrap();
    guest.client.version(8192, "9P2000.L").unwrap();
    refused(guest.client.clunk(fid), Errno::EBADF);
    assert_eq!(host_value(&guest.path("file"), "user.draft"), None);
}

#[test]
fn an_empty_value_is_set_and_replacing_by_one_removes() {
    for model in ["passthrough", "none", "mapped-xattr", "mapped-file"] {
        let launch = Launch::new(BINARY).arg("--security-model").arg(model);
        let mut guest = Guest::on(launch);
        let path = guest.file("file", "content");
        if !host_set(&path, "user.color", b"blue") {
            return;
        }
        guest.set("file", "user.color", b"", 0).unwrap();
        assert_eq!(host_value(&path, "user.color").unwrap(), b"", "{model}");
        assert_eq!(guest.value("file", "user.color").unwrap(), b"");
        let create = xattr::CREATE;
        refused(guest.set("file", "user.color", b"", create), Errno::EEXIST);
        guest.set("file", "user.new", b"", create).unwrap();
        assert_eq!(host_value(&path, "user.new").unwrap(), b"", "{model}");
        // What Linux sends for removexattr(2).
        for name in ["user.color", "user.new"] {
            guest.set("file", name, b"", xattr::REPLACE).unwrap();
            assert_eq!(host_value(&path, name), None, "{model}");
            refused(guest.set("file", name, b"", xattr::REPLACE), Errno::ENODATA);
        }
    }
}

#[test]
fn an_empty_list_is_none_whatever_the_flags() {
    // user::rwx, group::r-x, other::r-x
    let mut list = vec![2, 0, 0, 0];
    for (tag, permissions) in [(1, 7), (4, 5), (0x20, 5)] {
        list.extend([tag, 0, permissions, 0, 255, 255, 255, 255]);
    }
    for model in ["passthrough", "mapped-xattr"] {
        let launch = Launch::new(BINARY).arg("--security-model").arg(model);
        let mut guest = Guest::on(launch);
        let path = guest.dir("directory");
        let name = "system.posix_acl_default";
        if !host_set(&path, "user.color", b"blue") || !host_set(&path, name, &list) {
            stub_guest::skipped("no access control lists");
            return;
        }
        for flags in [0, xattr::CREATE, xattr::REPLACE] {
            guest.set("directory", name, &list, 0).unwrap();
            assert_eq!(guest.value("directory", name).unwrap(), list, "{model}");
            guest.set("directory", name, b"", flags).unwrap();
            refused(guest.value("directory", name), Errno::ENODATA);
            // There is none to be taken away: nobody minds.
            guest.set("directory", name, b"", flags).unwrap();
        }
    }
}

#[test]
fn create_and_replace_are_kept() {
    let Some(mut guest) = guest() else { return };
    refused(
        guest.set("file", "user.color", b"red", xattr::CREATE),
        Errno::EEXIST,
    );
    refused(
        guest.set("file", "user.new", b"red", xattr::REPLACE),
        Errno::ENODATA,
    );
    assert_eq!(
        host_value(&guest.path("file"), "user.color").unwrap(),
        b"blue"
    );
    guest
        .set("file", "user.color", b"red", xattr::REPLACE)
        .unwrap();
    guest
        .set("file", "user.new", b"red", xattr::CREATE)
        .unwrap();
    for name in ["user.color", "user.new"] {
        assert_eq!(host_value(&guest.path("file"), name).unwrap(), b"red");
    }
}

#[test]
fn xattrcreate_refuses() {
    let Some(mut guest) = guest() else { return };
    let fid = guest.walk("file");
    let c = &mut guest.client;
    refused(c.xattrcreate(fid, "user.a", 65_537, 0), Errno::E2BIG);
    refused(c.xattrcreate(fid, "user.a", u64::MAX, 0), Errno::E2BIG);
    refused(c.xattrcreate(fid, "user.a", 1, 4), Errno::EINVAL);
    refused(c.xattrcreate(fid, "", 1, 0), Errno::ERANGE);
    refused(c.xattrcreate(fid, b"user.\0a", 1, 0), Errno::EINVAL);
    // The fid is as it was.
    c.lopen(fid, open::RDONLY).unwrap();
    refused(c.xattrcreate(fid, "user.a", 1, 0), Errno::EINVAL);
    // A draft is neither a file nor a value to read.
    let fid = guest.walk("file");
    let c = &mut guest.client;
    c.xattrcreate(fid, "user.a", 1, 0).unwrap();
    refused(c.read(fid, 0, 10), Errno::EBADF);
    refused(c.lopen(fid, open::RDONLY), Errno::EINVAL);
    refused(c.getattr(fid, protocol::getattr::ALL), Errno::EBADF);
    refused(c.xattrcreate(fid, "user.b", 1, 0), Errno::EINVAL);
}

#[test]
fn a_symbolic_link_has_no_user_attributes_and_spares_its_target() {
    let Some(mut guest) = guest() else { return };
    std::os::unix::fs::symlink("file", guest.path("link")).unwrap();
    let fid = guest.walk("link");
    let read = guest.client.xattrwalk(fid, 90, "user.color");
    assert!(read.is_err(), "the target's value came through the link");
    refused(guest.set("link", "user.color", b"red", 0), Errno::EPERM);
    assert_eq!(
        host_value(&guest.path("file"), "user.color").unwrap(),
        b"blue"
    );
}

#[test]
fn a_readonly_share_keeps_its_xattrs() {
    let (mut guest, share) =
        Guest::readonly(|share| std::fs::write(share.join("file"), "x").unwrap());
    let path = share.path().join("file");
    if !host_set(&path, "user.color", b"blue") {
        return;
    }
    let fid = guest.walk("file");
    refused(
        guest.client.xattrcreate(fid, "user.color", 0, 0),
        Errno::EROFS,
    );
    assert_eq!(guest.value("file", "user.color").unwrap(), b"blue");
}
