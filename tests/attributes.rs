//! Tgetattr, Tsetattr, Tstatfs: what is known of a file, and the changing of it.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use common::{Guest, is_root, mode_of, no_change, refused};
use nix::errno::Errno;
use protocol::{Rgetattr, Time, Tsetattr, getattr, open, setattr};

/// Compares a reply with what the host says.
#[track_caller]
fn same(reply: &Rgetattr, host: &fs::Metadata) {
    assert_eq!(reply.valid & getattr::BASIC, getattr::BASIC);
    assert_eq!(
        (
            reply.mode,
            reply.uid,
            reply.gid,
            reply.nlink,
            reply.rdev,
            reply.size,
            reply.blocks
        ),
        (
            host.mode(),
            host.uid(),
            host.gid(),
            host.nlink(),
            host.rdev(),
            host.size(),
            host.blocks()
        )
    );
    let times = [
        (reply.atime, host.atime(), host.atime_nsec()),
        (reply.mtime, host.mtime(), host.mtime_nsec()),
        (reply.ctime, host.ctime(), host.ctime_nsec()),
    ];
    for (time, sec, nsec) in times {
        assert_eq!((time.sec as i64, time.nsec as i64), (sec, nsec));
    }
}

#[test]
fn getattr_says_what_the_host_says() {
    let mut guest = Guest::new();
    guest.dir("dir");
    let path = guest.file("file", "content");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6751)).unwrap();
    fs::hard_link(&path, guest.path("second")).unwrap();
    symlink("target", guest.path("link")).unwrap();
    nix::unistd::mkfifo(&guest.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::File::create(guest.path("sparse"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    for name in ["", "dir", "file", "second", "link", "fifo", "sparse"] {
        let reply = guest.client.stat(guest.root, name).unwrap();
        same(&reply, &fs::symlink_metadata(guest.path(name)).unwrap());
        assert!(reply.blksize > 0, "a block size of 0 is divided by");
    }
}

#[test]
fn getattr_knows_the_time_of_birth_where_the_host_does() {
    let mut guest = Guest::new();
    let path = guest.file("file", "x");
    let reply = guest.client.stat(guest.root, "file").unwrap();
    match fs::metadata(path).unwrap().created() {
        Ok(created) => {
            let since = created.duration_since(std::time::UNIX_EPOCH).unwrap();
            assert_ne!(reply.valid & getattr::BTIME, 0);
            let expected = (since.as_secs(), u64::from(since.subsec_nanos()));
            assert_eq!((reply.btime.sec, reply.btime.nsec), expected);
        }
        Err(_) => assert_eq!(reply.valid & getattr::BTIME, 0),
    }
}

#[test]
fn getattr_sees_changes_at_once() {
    let mut guest = Guest::new();
    let path = guest.file("file", "x");
    let (walked, opened) = (guest.walk("file"), guest.open("file", open::RDWR));
    guest
        .client
        .write(opened, 0, b"longer than before")
        .unwrap();
    for fid in [walked, opened] {
        same(
            &guest.client.getattr(fid, getattr::ALL).unwrap(),
            &fs::metadata(&path).unwrap(),
        );
    }
    fs::write(&path, "").unwrap();
    for fid in [walked, opened] {
        let reply = guest.client.getattr(fid, getattr::BASIC).unwrap();
        same(&reply, &fs::metadata(&path).unwrap());
        assert_eq!(reply.size, 0);
    }
}

#[test]
fn setattr_changes_the_mode() {
    let mut guest = Guest::new();
    let path = guest.file("file", "x");
    let dir = guest.dir("dir");
    let (file, dir_fid) = (guest.walk("file"), guest.walk("dir"));
    for mode in [
        0o600,
        0o000,
        0o777,
        0o1644,
        0o4755,
        0o2755,
        0o6711,
        libc::S_IFREG | 0o640,
    ] {
        guest
            .client
            .setattr(Tsetattr {
                valid: setattr::MODE,
                mode,
                ..no_change(file)
            })
            .unwrap();
        assert_eq!(mode_of(&path), mode & 0o7777, "{mode:o}");
    }
    guest
        .client
        .setattr(Tsetattr {
            valid: setattr::MODE,
            mode: 0o3775,
            ..no_change(dir_fid)
        })
        .unwrap();
    assert_eq!(mode_of(&dir), 0o3775);
}

#[test]
fn setattr_of_a_symbolic_link_spares_its_target() {
    let mut guest = Guest::new();
    let outside = guest.daemon.outside().join("outside");
    fs::write(&outside, "content").unwrap();
    let before = fs::metadata(&outside).unwrap();
    symlink(&outside, guest.path("link")).unwrap();
    let fid = guest.walk("link");
    let c = &mut guest.client;
    refused(
        c.setattr(Tsetattr {
            valid: setattr::MODE,
            mode: 0o777,
            ..no_change(fid)
        }),
        Errno::EOPNOTSUPP,
    );
    let result = c.setattr(Tsetattr {
        valid: setattr::SIZE,
        size: 0,
        ..no_change(fid)
    });
    assert!(result.is_err());
    let time = Time { sec: 1000, nsec: 0 };
    let valid = setattr::MTIME | setattr::MTIME_SET;
    c.setattr(Tsetattr {
        valid,
        mtime: time,
        ..no_change(fid)
    })
    .unwrap();
    assert_eq!(
        fs::symlink_metadata(guest.path("link")).unwrap().mtime(),
        1000
    );
    if is_root() {
        let valid = setattr::UID | setattr::GID;
        guest
            .client
            .setattr(Tsetattr {
                valid,
                uid: 12,
                gid: 13,
                ..no_change(fid)
            })
            .unwrap();
        let link = fs::symlink_metadata(guest.path("link")).unwrap();
        assert_eq!((link.uid(), link.gid()), (12, 13));
    }
    let after = fs::metadata(&outside).unwrap();
    assert_eq!(
        (
            before.mode(),
            before.uid(),
            before.size(),
            before.mtime_nsec(),
            before.ctime_nsec()
        ),
        (
            after.mode(),
            after.uid(),
            after.size(),
            after.mtime_nsec(),
            after.ctime_nsec()
        )
    );
}

#[test]
fn setattr_changes_owner_and_group() {
    let mut guest = Guest::new();
    let path = guest.file("file", "x");
    let fid = guest.walk("file");
    let uid = Tsetattr {
        valid: setattr::UID,
        uid: 1234,
        ..no_change(fid)
    };
    if !is_root() {
        return refused(guest.client.setattr(uid), Errno::EPERM);
    }
    let before = fs::metadata(&path).unwrap();
    guest.client.setattr(uid).unwrap();
    let host = fs::metadata(&path).unwrap();
    assert_eq!((host.uid(), host.gid()), (1234, before.gid()));
    guest
        .client
        .setattr(Tsetattr {
            valid: setattr::GID,
            gid: 5678,
            ..no_change(fid)
        })
        .unwrap();
    let host = fs::metadata(&path).unwrap();
    assert_eq!((host.uid(), host.gid()), (1234, 5678));
    // chown clears set-id bits; with the mode in the same message they are set after it.
    let valid = setattr::UID | setattr::MODE;
    guest
        .client
        .setattr(Tsetattr {
            valid,
            uid: 1,
            mode: 0o4755,
            ..no_change(fid)
        })
        .unwrap();
    assert_eq!(mode_of(&path), 0o4755);
    guest
        .client
        .setattr(Tsetattr {
            valid: setattr::UID,
            uid: 2,
            ..no_change(fid)
        })
        .unwrap();
    assert_eq!(mode_of(&path), 0o755);
}

#[test]
fn setattr_changes_the_size() {
    let mut guest = Guest::new();
    let path = guest.file("file", "content");
    let walked = guest.walk("file");
    let set = |fid, size| Tsetattr {
        valid: setattr::SIZE,
        size,
        ..no_change(fid)
    };
    guest.client.setattr(set(walked, 3)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"con");
    guest.client.setattr(set(walked, 6)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"con\0\0\0");
    // Through an open fid, also when the file has no name any more.
    let opened = guest.open("file", open::RDWR);
    fs::remove_file(&path).unwrap();
    guest.client.setattr(set(opened, 1)).unwrap();
    assert_eq!(guest.client.read(opened, 0, 10).unwrap(), b"c");
    guest.client.setattr(set(walked, 0)).unwrap();
    assert_eq!(guest.client.getattr(opened, getattr::ALL).unwrap().size, 0);
    let result = guest.client.setattr(set(opened, u64::MAX));
    let code = result
        .as_ref()
        .err()
        .and_then(stub_guest::Error::errno)
        .map(Errno::from_raw);
    assert!(
        matches!(code, Some(Errno::EINVAL | Errno::EFBIG)),
        "{result:?}"
    );
    refused(guest.client.setattr(set(guest.root, 0)), Errno::EISDIR);
}

#[test]
fn an_open_file_is_truncated_whatever_its_mode_says_by_now() {
    let mut guest = Guest::new();
    let fid = guest.walk("");
    guest
        .client
        .lcreate(fid, "file", open::RDWR, 0o000, common::NO_ID)
        .unwrap();
    guest.client.write(fid, 0, b"content").unwrap();
    guest
        .client
        .setattr(Tsetattr {
            valid: setattr::SIZE,
            size: 2,
            ..no_change(fid)
        })
        .unwrap();
    assert_eq!(guest.client.read(fid, 0, 10).unwrap(), b"co");
}

#[test]
fn setattr_changes_times() {
    let mut guest = Guest::new();
    let path = guest.file("file", "x");
    guest.dir("dir");
    let fid = guest.walk("file");
    let (atime, mtime) = (
        Time {
            sec: 1_000_000_000,
            nsec: 123_456_789,
        },
        Time { sec: 5, nsec: 1 },
    );
    let valid = setattr::ATIME | setattr::ATIME_SET | setattr::MTIME | setattr::MTIME_SET;
    guest
        .client
        .setattr(Tsetattr {
            valid,
            atime,
            mtime,
            ..no_change(fid)
        })
        .unwrap();
    let times = |host: fs::Metadata| {
        (
            host.atime(),
            host.atime_nsec(),
            host.mtime(),
            host.mtime_nsec(),
        )
    };
    assert_eq!(
        times(fs::metadata(&path).unwrap()),
        (1_000_000_000, 123_456_789, 5, 1)
    );
    // One of them alone; before 1970.
    let valid = setattr::MTIME | setattr::MTIME_SET;
    let early = Time {
        sec: (-100i64) as u64,
        nsec: 7,
    };
    guest
        .client
        .setattr(Tsetattr {
            valid,
            mtime: early,
            ..no_change(fid)
        })
        .unwrap();
    assert_eq!(
        times(fs::metadata(&path).unwrap()),
        (1_000_000_000, 123_456_789, -100, 7)
    );
    // Without SET it is the host's now, whatever the message says.
    let valid = setattr::ATIME;
    guest
        .client
        .setattr(Tsetattr {
            valid,
            atime: early,
            ..no_change(fid)
        })
        .unwrap();
    let host = fs::metadata(&path).unwrap();
    assert!(host.atime() > 1_600_000_000);
    assert_eq!((host.mtime(), host.mtime_nsec()), (-100, 7));
    // Directories have times, too.
    let dir = guest.walk("dir");
    let valid = setattr::MTIME | setattr::MTIME_SET;
    guest
        .client
        .setattr(Tsetattr {
            valid,
            mtime,
            ..no_change(dir)
        })
        .unwrap();
    assert_eq!(fs::metadata(guest.path("dir")).unwrap().mtime(), 5);
}

#[test]
fn setattr_refuses_a_time_that_is_none() {
    let mut guest = Guest::new();
    let path = guest.file("file", "x");
    let before = fs::metadata(&path).unwrap();
    let fid = guest.walk("file");
    // UTIME_NOW and UTIME_OMIT have values in this field on the host.
    for nsec in [1_000_000_000, 0x3fff_ffff, 0x3fff_fffe, u64::MAX] {
        let valid = setattr::MTIME | setattr::MTIME_SET;
        let mtime = Time { sec: 0, nsec };
        refused(
            guest.client.setattr(Tsetattr {
                valid,
                mtime,
                ..no_change(fid)
            }),
            Errno::EINVAL,
        );
    }
    let after = fs::metadata(&path).unwrap();
    assert_eq!(
        (before.mtime(), before.mtime_nsec()),
        (after.mtime(), after.mtime_nsec())
    );
}

#[test]
fn setattr_of_several_things_does_them_all() {
    let mut guest = Guest::new();
    let path = guest.file("file", "content");
    let fid = guest.walk("file");
    let time = Time { sec: 42, nsec: 0 };
    let valid = setattr::MODE | setattr::SIZE | setattr::MTIME | setattr::MTIME_SET;
    guest
        .client
        .setattr(Tsetattr {
            valid,
            mode: 0o600,
            size: 3,
            mtime: time,
            ..no_change(fid)
        })
        .unwrap();
    let host = fs::metadata(&path).unwrap();
    // The change of the size does not undo the time.
    assert_eq!(
        (host.mode() & 0o7777, host.size(), host.mtime()),
        (0o600, 3, 42)
    );
}

#[test]
fn setattr_of_nothing_changes_nothing() {
    let mut guest = Guest::new();
    let path = guest.file("file", "content");
    let before = fs::metadata(&path).unwrap();
    let fid = guest.walk("file");
    guest.client.setattr(no_change(fid)).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!(
        (before.mode(), before.size(), before.mtime_nsec()),
        (after.mode(), after.size(), after.mtime_nsec())
    );
}

#[test]
fn statfs_says_what_the_host_says() {
    let mut guest = Guest::new();
    let reply = guest.client.statfs(guest.root).unwrap();
    let host = nix::sys::statvfs::statvfs(guest.daemon.share()).unwrap();
    assert_eq!((reply.blocks, reply.files), (host.blocks(), host.files()));
    assert_eq!(u64::from(reply.bsize), host.fragment_size());
    assert!(reply.bfree <= reply.blocks && reply.bavail <= reply.blocks);
    assert_eq!(reply.namelen, 255);
    guest.file("file", "x");
    let fid = guest.open("file", open::RDONLY);
    assert_eq!(guest.client.statfs(fid).unwrap().kind, reply.kind);
}

#[test]
fn a_readonly_share_keeps_its_attributes() {
    let (mut guest, share) =
        Guest::readonly(|share| fs::write(share.join("file"), "content").unwrap());
    let path = share.path().join("file");
    let before = fs::metadata(&path).unwrap();
    let fid = guest.walk("file");
    for valid in [
        setattr::MODE,
        setattr::UID,
        setattr::GID,
        setattr::SIZE,
        setattr::ATIME,
        setattr::MTIME,
        setattr::CTIME,
    ] {
        let request = Tsetattr {
            valid,
            mode: 0,
            uid: 1,
            gid: 1,
            size: 0,
            ..no_change(fid)
        };
        refused(guest.client.setattr(request), Errno::EROFS);
    }
    same(&guest.client.getattr(fid, getattr::ALL).unwrap(), &before);
}
