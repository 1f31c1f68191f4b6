//! The models passthrough and none.

use nix::errno::Errno;

use super::*;
use crate::common::refused;

#[test]
fn owner_and_mode_are_the_host_s() {
    for model in ["passthrough", "none"] {
        for privileged in [true, false] {
            let mut share = Share::new(model, privileged, &[]);
            let mine = share.mine;
            share.create("file", 0o640, b"x");
            share.client.mkdir(mine, "dir", 0o711, GROUP).unwrap();
            share.client.symlink(mine, "link", "x", GROUP).unwrap();
            for name in ["file", "dir", "link"] {
                let host = fs::symlink_metadata(share.path(name)).unwrap();
                assert_eq!(share.seen(name), (host.mode(), host.uid(), host.gid()));
                let owner = if is_root() && privileged {
                    (USER, GROUP)
                } else {
                    (share.daemon_uid(), share.daemon_gid())
                };
                assert_eq!((host.uid(), host.gid()), owner, "{model}: {name}");
            }
            assert!(fs::read_link(share.path("link")).is_ok());
        }
    }
}

#[test]
fn an_owner_that_is_asked_for_later_is_not_let_go() {
    for model in ["passthrough", "none"] {
        let mut share = Share::new(model, false, &[]);
        share.create("file", 0o640, b"x");
        refused(share.chown("file", 1, 1), Errno::EPERM);
        share.chmod("file", 0o600).unwrap();
    }
}

#[test]
fn none_has_no_acls() {
    if !has_xattrs() {
        return;
    }
    let mut share = Share::new("none", true, &[]);
    share.create("file", 0o640, b"x");
    let acl = "system.posix_acl_access";
    refused(share.xattr("file", acl), Errno::EOPNOTSUPP);
    refused(share.set_xattr("file", acl, b"x"), Errno::EOPNOTSUPP);
    share.set_xattr("file", "user.color", b"blue").unwrap();
    assert_eq!(share.xattr("file", "user.color").unwrap(), b"blue");
    assert_eq!(share.xattr_names("file"), b"user.color\0");
}
