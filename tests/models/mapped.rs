//! What both mapped models promise.

use std::os::unix::fs::symlink;
use std::time::Duration;

use libc::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK};
use nix::errno::Errno;
use protocol::{Rmessage, Tgetattr, Tmessage, Trenameat, open, unlink};

use super::*;
use crate::common::{mode_of, refused};

#[test]
fn what_the_guest_makes_is_the_daemon_s_on_the_host() {
    each_mapped(|mut share| {
        let (mine, daemon) = (share.mine, share.daemon_uid());
        share.create("file", 0o4640, b"content");
        share.client.mkdir(mine, "dir", 0o1751, GROUP).unwrap();
        let link = share
            .client
            .symlink(mine, "link", "some/where", GROUP)
            .unwrap();
        assert_eq!(link.kind, QidKind::SYMLINK);
        let nodes = [
            ("fifo", S_IFIFO, (0, 0)),
            ("socket", S_IFSOCK, (0, 0)),
            ("null", S_IFCHR, (1, 3)),
            ("disk", S_IFBLK, (259, 0x1_2345)),
            ("plain", S_IFREG, (0, 0)),
        ];
        for (name, kind, device) in nodes {
            let mode = kind | 0o622;
            let qid = share.client.mknod(mine, name, mode, device, GROUP).unwrap();
            assert_eq!(qid.kind, QidKind::FILE);
        }

        // The write has taken the set-user-id bit away.
        assert_eq!(share.seen("file"), (S_IFREG | 0o640, USER, GROUP));
        assert_eq!(share.seen("dir"), (S_IFDIR | 0o1751, USER, GROUP));
        assert_eq!(share.seen("link"), (S_IFLNK | 0o777, USER, GROUP));
        assert_eq!(share.stat("link").size, 10);
        for (name, kind, (major, minor)) in nodes {
            assert_eq!(share.seen(name), (kind | 0o622, USER, GROUP), "{name}");
            assert_eq!(share.stat(name).rdev, libc::makedev(major, minor), "{name}");
        }

        assert_eq!(on_host(&share.path("file")), (S_IFREG | 0o600, daemon, 7));
        let directory = on_host(&share.path("dir"));
        assert_eq!((directory.0, directory.1), (S_IFDIR | 0o700, daemon));
        assert_eq!(on_host(&share.path("link")), (S_IFREG | 0o600, daemon, 10));
        assert_eq!(fs::read(share.path("link")).unwrap(), b"some/where");
        for (name, _, _) in nodes {
            let host = on_host(&share.path(name));
            assert_eq!(host, (S_IFREG | 0o600, daemon, 0), "{name}");
        }
    });
}

#[test]
fn the_modes_on_the_host_can_be_chosen() {
    for model in ["mapped-xattr", "mapped-file"] {
        if model == "mapped-xattr" && !has_xattrs() {
            continue;
        }
        let mut share = Share::new(model, true, &["--fmode", "664", "--dmode", "0775"]);
        let mine = share.mine;
        share.create("file", 0o600, b"");
        share.client.mkdir(mine, "dir", 0o700, GROUP).unwrap();
        share.client.symlink(mine, "link", "x", GROUP).unwrap();
        assert_eq!(mode_of(&share.path("file")), 0o664);
        assert_eq!(mode_of(&share.path("link")), 0o664);
        assert_eq!(mode_of(&share.path("dir")), 0o775);
        assert_eq!(share.seen("file"), (S_IFREG | 0o600, USER, GROUP));
    }
}

#[test]
fn nobody_in_particular_leaves_the_owner_to_the_host() {
    each_mapped(|mut share| {
        let (root, daemon) = (share.root, share.daemon_uid());
        share.client.mkdir(root, "dir", 0o755, NO_ID).unwrap();
        let host = fs::metadata(share.path("dir")).unwrap();
        assert_eq!(share.seen("dir"), (S_IFDIR | 0o755, daemon, host.gid()));
    });
}

#[test]
fn owner_and_mode_change_in_the_mapping_alone() {
    each_mapped(|mut share| {
        let daemon = share.daemon_uid();
        let mine = share.mine;
        share.create("file", 0o644, b"x");
        share.client.mkdir(mine, "dir", 0o755, GROUP).unwrap();
        for (path, kind) in [("file", S_IFREG), ("dir", S_IFDIR), ("", S_IFDIR)] {
            let before = on_host(&share.path(path));
            share.chown(path, 0, 0).unwrap();
            share.chmod(path, 0o1000).unwrap();
            assert_eq!(share.seen(path), (kind | 0o1000, 0, 0), "{path:?}");
            // Another type than its own means nothing.
            share.chmod(path, S_IFBLK | 0o7777).unwrap();
            assert_eq!(share.seen(path), (kind | 0o7777, 0, 0), "{path:?}");
            share.chown(path, 12, u32::MAX - 1).unwrap();
            assert_eq!((share.seen(path).1, share.seen(path).2), (12, u32::MAX - 1));
            let after = on_host(&share.path(path));
            assert_eq!((before.0, before.1), (after.0, after.1), "{path:?}");
        }
        assert_eq!(on_host(&share.path("file")).1, daemon);
        // Only one of the two.
        let group = Tsetattr {
            valid: setattr::GID,
            gid: 99,
            ..no_change(0)
        };
        share.set("file", group).unwrap();
        assert_eq!((share.seen("file").1, share.seen("file").2), (12, 99));
    });
}

#[test]
fn a_change_moves_the_change_time_and_the_version() {
    each_mapped(|mut share| {
        share.create("file", 0o644, b"x");
        let mut before = share.stat("file");
        for change in [to_mode(0o600), to_owner(1, 2)] {
            // The host's clock must have moved before its change time can.
            wait_for_tick(share.directory.path());
            share.set("file", change).unwrap();
            let after = share.stat("file");
            let time = |stat: &Rgetattr| (stat.ctime.sec, stat.ctime.nsec);
            assert!(time(&after) > time(&before));
            assert_ne!(after.qid.version, before.qid.version);
            assert_eq!(
                (after.mtime.sec, after.mtime.nsec),
                (before.mtime.sec, before.mtime.nsec)
            );
            before = after;
        }
    });
}

/// Until a file made now is younger than one made at the call.
fn wait_for_tick(directory: &Path) {
    let time = || {
        let path = directory.join("clock");
        fs::write(&path, "").unwrap();
        let metadata = fs::metadata(path).unwrap();
        (metadata.mtime(), metadata.mtime_nsec())
    };
    let start = time();
    while time() == start {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_file_of_the_host_has_what_the_host_says_until_the_guest_changes_it() {
    each_mapped(|mut share| {
        let path = share.file("file", "x");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let dir = share.dir("dir");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        symlink("target", share.path("link")).unwrap();
        let host = fs::metadata(&path).unwrap();
        let (uid, gid) = (host.uid(), host.gid());
        assert_eq!(share.seen("file"), (S_IFREG | 0o666, uid, gid));
        assert_eq!(share.seen("link"), (S_IFLNK | 0o777, uid, gid));
        let link = share.walk("link");
        assert_eq!(share.client.readlink(link).unwrap(), b"target");

        if is_root() {
            chown(&path, Some(share.daemon_uid()), None).unwrap();
            chown(&dir, Some(share.daemon_uid()), None).unwrap();
        }
        let uid = share.daemon_uid();
        share.chmod("file", 0o4711).unwrap();
        assert_eq!(share.seen("file"), (S_IFREG | 0o4711, uid, gid));
        assert_eq!(mode_of(&path), 0o666);
        let change = Tsetattr {
            valid: setattr::UID,
            uid: USER,
            ..no_change(0)
        };
        share.set("dir", change).unwrap();
        assert_eq!(share.seen("dir"), (S_IFDIR | 0o777, USER, gid));
    });
}

#[test]
fn links_and_devices_are_not_opened() {
    each_mapped(|mut share| {
        let mine = share.mine;
        share.client.symlink(mine, "link", "file", GROUP).unwrap();
        for (name, kind) in [("fifo", S_IFIFO), ("socket", S_IFSOCK), ("tty", S_IFCHR)] {
            let mode = kind | 0o666;
            share.client.mknod(mine, name, mode, (5, 0), GROUP).unwrap();
        }
        for flags in [open::RDONLY, open::RDWR, open::WRONLY | open::TRUNC] {
            for (name, error) in [
                ("link", Errno::ELOOP),
                ("fifo", Errno::ENXIO),
                ("socket", Errno::ENXIO),
                ("tty", Errno::ENXIO),
            ] {
                let fid = share.walk(name);
                refused(share.client.lopen(fid, flags), error);
                share.client.close(fid).unwrap();
                // Nor by a creation of what exists.
                let fid = share.walk("");
                refused(share.client.lcreate(fid, name, flags, 0o644, GROUP), error);
                share.client.close(fid).unwrap();
            }
        }
        // Nothing has a size to set but a regular file, and nothing is below a link.
        for name in ["link", "fifo", "tty"] {
            let change = Tsetattr {
                valid: setattr::SIZE,
                size: 0,
                ..no_change(0)
            };
            refused(share.set(name, change), Errno::EINVAL);
        }
        let (root, fid) = (share.root, share.client.alloc_fid());
        let walked = share.client.walk(root, fid, &["link", "x"]).unwrap();
        assert_eq!(walked.len(), 1);
        assert_eq!(fs::read(share.path("link")).unwrap(), b"file");
    });
}

#[test]
fn readlink_gives_the_target_of_a_link_only() {
    each_mapped(|mut share| {
        let mine = share.mine;
        let long = vec![b'x'; 4000];
        for (name, target) in [
            ("short", &b"/etc/passwd"[..]),
            ("bytes", b"\xff\n x"),
            ("long", &long),
        ] {
            share.client.symlink(mine, name, target, GROUP).unwrap();
            let fid = share.walk(name);
            assert_eq!(share.client.readlink(fid).unwrap(), target);
        }
        refused(
            share.client.symlink(mine, "empty", "", GROUP),
            Errno::ENOENT,
        );
        let longest = vec![b'x'; 4095];
        share
            .client
            .symlink(mine, "longest", longest, GROUP)
            .unwrap();
        let longer = vec![b'x'; 4096];
        let result = share.client.symlink(mine, "longer", longer, GROUP);
        refused(result, Errno::ENAMETOOLONG);
        refused(
            share.client.symlink(mine, "short", "y", GROUP),
            Errno::EEXIST,
        );
        share.create("file", 0o644, b"content");
        let (file, root) = (share.walk("file"), share.root);
        refused(share.client.readlink(file), Errno::EINVAL);
        refused(share.client.readlink(root), Errno::EINVAL);
        assert_eq!(
            share.names(""),
            ["bytes", "file", "long", "longest", "short"]
        );
    });
}

#[test]
fn set_id_bits_fall_with_a_write() {
    each_mapped(|mut share| {
        share.create("file", 0o644, b"x");
        let fid = share.open("file", open::RDWR);
        // A descriptor that has written before counts as well.
        for round in 0..3 {
            share.chmod("file", 0o6755).unwrap();
            assert_eq!(share.seen("file").0, S_IFREG | 0o6755);
            share.client.write(fid, round, b"y").unwrap();
            assert_eq!(share.seen("file").0, S_IFREG | 0o755, "round {round}");
        }
        // A file whose group may not execute keeps the bit: it means mandatory locks.
        share.chmod("file", 0o6744).unwrap();
        share.client.write(fid, 0, b"z").unwrap();
        assert_eq!(share.seen("file").0, S_IFREG | 0o2744);
        // Reading changes nothing.
        share.chmod("file", 0o4755).unwrap();
        share.client.read(fid, 0, 10).unwrap();
        assert_eq!(share.seen("file").0, S_IFREG | 0o4755);
    });
}

#[test]
fn set_id_bits_stay_where_the_guest_s_root_writes() {
    each_mapped(|mut share| {
        share.create("file", 0o644, b"content");
        let root = share.client.alloc_fid();
        share.client.attach(root, "", "", 0).unwrap();
        share.chmod("file", 0o6755).unwrap();
        let fid = share.client.walk_path(root, "file").unwrap();
        let resize = Tsetattr {
            fid,
            valid: setattr::SIZE,
            size: 3,
            ..no_change(0)
        };
        share.client.setattr(resize).unwrap();
        share.client.lopen(fid, open::WRONLY | open::TRUNC).unwrap();
        share.client.write(fid, 0, b"x").unwrap();
        assert_eq!(share.seen("file").0, S_IFREG | 0o6755);
        // But a new owner takes them, as on the host.
        let owner = Tsetattr {
            fid,
            ..to_owner(1, 1)
        };
        share.client.setattr(owner).unwrap();
        assert_eq!(share.seen("file").0, S_IFREG | 0o755);
    });
}

#[test]
fn set_id_bits_fall_with_truncation_and_a_new_owner() {
    each_mapped(|mut share| {
        share.create("file", 0o644, b"content");
        let resize = Tsetattr {
            valid: setattr::SIZE,
            size: 3,
            ..no_change(0)
        };
        let root_owner = to_owner(0, 0);
        for change in [resize, root_owner] {
            share.chmod("file", 0o6711).unwrap();
            share.set("file", change).unwrap();
            assert_eq!(share.seen("file").0, S_IFREG | 0o711);
        }
        assert_eq!(share.stat("file").size, 3);
        share.chmod("file", 0o6711).unwrap();
        share.open("file", open::WRONLY | open::TRUNC);
        assert_eq!(share.seen("file").0, S_IFREG | 0o711);
        // Both at once: what is asked for counts.
        let both = Tsetattr {
            valid: setattr::UID | setattr::MODE,
            uid: 5,
            mode: 0o4755,
            ..no_change(0)
        };
        share.set("file", both).unwrap();
        assert_eq!(
            (share.seen("file").0, share.seen("file").1),
            (S_IFREG | 0o4755, 5)
        );
        // A directory keeps its bits.
        let mine = share.mine;
        share.client.mkdir(mine, "dir", 0o6775, GROUP).unwrap();
        share.chown("dir", 1, 1).unwrap();
        assert_eq!(share.seen("dir").0, S_IFDIR | 0o6775);
    });
}

#[test]
fn a_directory_with_the_set_group_id_bit_hands_its_group_down() {
    each_mapped(|mut share| {
        let mine = share.mine;
        share.client.mkdir(mine, "dir", 0o2777, 77).unwrap();
        let dir = share.walk("dir");
        share.client.mkdir(dir, "below", 0o755, GROUP).unwrap();
        share.client.symlink(dir, "link", "x", GROUP).unwrap();
        share
            .client
            .lcreate(dir, "file", open::RDWR, 0o644, GROUP)
            .unwrap();
        assert_eq!(share.seen("dir/below").0, S_IFDIR | 0o2755);
        for name in ["dir/below", "dir/link", "dir/file"] {
            assert_eq!(share.seen(name).2, 77, "{name}");
        }
    });
}

#[test]
fn attributes_follow_every_name() {
    each_mapped(|mut share| {
        let (mine, root) = (share.mine, share.root);
        share.create("file", 0o640, b"x");
        for dir in ["from", "to"] {
            share.client.mkdir(mine, dir, 0o755, GROUP).unwrap();
        }
        let expected = (S_IFREG | 0o640, USER, GROUP);
        let (from, to) = (share.walk("from"), share.walk("to"));
        share.client.renameat(root, "file", from, "moved").unwrap();
        assert_eq!(share.seen("from/moved"), expected);
        let held = share.walk("from/moved");
        share.client.rename(held, to, "again").unwrap();
        assert_eq!(share.seen("to/again"), expected);

        // A second name shows the same, and so it stays.
        share.client.link(from, held, "second").unwrap();
        assert_eq!(share.seen("from/second"), expected);
        assert_eq!(share.stat("from/second").nlink, 2);
        share.chmod("from/second", 0o4444).unwrap();
        share.chown("to/again", 8, 9).unwrap();
        let expected = (S_IFREG | 0o444, 8, 9);
        assert_eq!(share.seen("from/second"), expected);
        assert_eq!(share.seen("to/again"), expected);
        share.client.unlinkat(to, "again", 0).unwrap();
        assert_eq!(share.seen("from/second"), expected);

        // A directory takes along what is in it.
        share.client.renameat(root, "from", to, "inside").unwrap();
        assert_eq!(share.seen("to/inside/second"), expected);
        assert_eq!(share.seen("to/inside"), (S_IFDIR | 0o755, USER, GROUP));
        // Two names of one file: a rename does nothing.
        let (inside, second) = (share.walk("to/inside"), share.walk("to/inside/second"));
        share.client.link(inside, second, "third").unwrap();
        share
            .client
            .renameat(inside, "second", inside, "third")
            .unwrap();
        assert_eq!(share.names("to/inside"), ["second", "third"]);
        assert_eq!(share.seen("to/inside/second"), expected);
        assert_eq!(share.seen("to/inside/third"), expected);
    });
}

#[test]
fn a_new_file_has_nothing_of_the_one_before() {
    each_mapped(|mut share| {
        let (mine, root) = (share.mine, share.root);
        share.create("a", 0o600, b"a");
        share.chown("a", 1, 1).unwrap();
        share.create("b", 0o444, b"b");
        share.client.renameat(root, "b", root, "a").unwrap();
        assert_eq!(share.seen("a"), (S_IFREG | 0o444, USER, GROUP));
        // A file of the host that replaces one of the guest's is still the host's.
        let host = share.file("host", "h");
        let host = fs::metadata(host).unwrap();
        share.client.renameat(root, "host", root, "a").unwrap();
        assert_eq!(share.seen("a"), (host.mode(), host.uid(), host.gid()));
        share.client.unlinkat(root, "a", 0).unwrap();
        share.client.symlink(mine, "a", "x", GROUP).unwrap();
        assert_eq!(share.seen("a"), (S_IFLNK | 0o777, USER, GROUP));
        share.client.unlinkat(root, "a", 0).unwrap();
        share.client.mkdir(mine, "a", 0o711, GROUP).unwrap();
        assert_eq!(share.seen("a"), (S_IFDIR | 0o711, USER, GROUP));
        share.client.unlinkat(root, "a", unlink::REMOVEDIR).unwrap();
        assert!(share.names("").is_empty());
    });
}

#[test]
fn a_removed_file_that_is_held_keeps_its_attributes() {
    each_mapped(|mut share| {
        let (mine, root) = (share.mine, share.root);
        share.create("file", 0o640, b"x");
        share.create("replaced", 0o604, b"x");
        share.client.mkdir(mine, "dir", 0o711, GROUP).unwrap();
        let (file, replaced, dir) = (
            share.open("file", open::RDWR),
            share.walk("replaced"),
            share.walk("dir"),
        );
        share
            .client
            .renameat(root, "file", root, "replaced")
            .unwrap();
        share.client.unlinkat(root, "replaced", 0).unwrap();
        share
            .client
            .unlinkat(root, "dir", unlink::REMOVEDIR)
            .unwrap();
        let mut seen = |fid| {
            let stat = share.client.getattr(fid, getattr::ALL).unwrap();
            (stat.mode, stat.uid, stat.gid)
        };
        assert_eq!(seen(file), (S_IFREG | 0o640, USER, GROUP));
        assert_eq!(seen(replaced), (S_IFREG | 0o604, USER, GROUP));
        assert_eq!(seen(dir), (S_IFDIR | 0o711, USER, GROUP));
        let change = |fid, change| Tsetattr { fid, ..change };
        share.client.setattr(change(file, to_mode(0o4755))).unwrap();
        share.client.setattr(change(file, to_owner(3, 4))).unwrap();
        share.client.setattr(change(file, to_mode(0o4755))).unwrap();
        share.client.write(file, 0, b"y").unwrap();
        let stat = share.client.getattr(file, getattr::ALL).unwrap();
        assert_eq!((stat.mode, stat.uid, stat.gid), (S_IFREG | 0o755, 3, 4));
        assert_eq!(stat.nlink, 0);
        // Nothing of it is left for a file that comes later.
        share.create("replaced", 0o600, b"");
        assert_eq!(share.seen("replaced"), (S_IFREG | 0o600, USER, GROUP));
    });
}

#[test]
fn a_directory_tells_the_kinds_that_files_have_for_the_guest() {
    each_mapped(|mut share| {
        let mine = share.mine;
        share.create("file", 0o600, b"");
        share.file("host", "");
        share.client.mkdir(mine, "dir", 0o700, GROUP).unwrap();
        share.client.symlink(mine, "link", "x", GROUP).unwrap();
        for (name, kind) in [
            ("fifo", S_IFIFO),
            ("socket", S_IFSOCK),
            ("char", S_IFCHR),
            ("block", S_IFBLK),
        ] {
            let mode = kind | 0o600;
            share.client.mknod(mine, name, mode, (1, 1), GROUP).unwrap();
        }
        let expected = [
            ("block", libc::DT_BLK, QidKind::FILE),
            ("char", libc::DT_CHR, QidKind::FILE),
            ("dir", libc::DT_DIR, QidKind::DIR),
            ("fifo", libc::DT_FIFO, QidKind::FILE),
            ("file", libc::DT_REG, QidKind::FILE),
            ("host", libc::DT_REG, QidKind::FILE),
            ("link", libc::DT_LNK, QidKind::SYMLINK),
            ("socket", libc::DT_SOCK, QidKind::FILE),
        ];
        let mut entries = share.entries("");
        entries.retain(|entry| !entry.name.starts_with(b"."));
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(entries.len(), expected.len());
        for (entry, (name, kind, qid_kind)) in entries.iter().zip(expected) {
            assert_eq!(entry.name, name.as_bytes());
            assert_eq!((entry.kind, entry.qid.kind), (kind, qid_kind), "{name}");
            assert_eq!(entry.qid.path, share.stat(name).qid.path, "{name}");
        }
    });
}

#[test]
fn a_file_whose_descriptor_was_given_up_keeps_its_attributes() {
    const FILES: u32 = 150;
    for model in ["mapped-xattr", "mapped-file"] {
        if model == "mapped-xattr" && !has_xattrs() {
            continue;
        }
        for handles in ["prefer", "never"] {
            let options = ["--rlimit-nofile", "100", "--inode-file-handles", handles];
            let mut share = Share::new(model, true, &options);
            let root = share.root;
            share.client.mkdir(root, "dir", 0o755, NO_ID).unwrap();
            let fids: Vec<u32> = (0..FILES)
                .map(|number| {
                    let name = format!("file-{number}");
                    share.create(&name, 0o600, b"x");
                    share.chown(&name, number, number).unwrap();
                    share.walk(&name)
                })
                .collect();
            let dir = share.walk("dir");
            for (number, fid) in (0..).zip(fids) {
                let name = format!("file-{number}");
                share.client.renameat(root, &name, dir, &name).unwrap();
                let stat = share.client.getattr(fid, getattr::ALL).unwrap();
                assert_eq!((stat.uid, stat.gid), (number, number), "{model}, {handles}");
                let change = to_owner(number + 1, number + 1);
                share.client.setattr(Tsetattr { fid, ..change }).unwrap();
            }
            for number in 0..FILES {
                let seen = share.seen(&format!("dir/file-{number}"));
                assert_eq!(seen, (S_IFREG | 0o600, number + 1, number + 1));
            }
        }
    }
}

#[test]
fn a_file_that_no_path_is_long_enough_for_has_attributes() {
    each_mapped(|mut share| {
        let name = "d".repeat(250);
        let fid = share.walk("");
        for level in 0..20 {
            share.client.mkdir(fid, &name, 0o755, level).unwrap();
            share.client.walk(fid, fid, &[&name]).unwrap();
            let stat = share.client.getattr(fid, getattr::ALL).unwrap();
            assert_eq!((stat.mode, stat.gid), (S_IFDIR | 0o755, level));
        }
        let file = share.client.alloc_fid();
        share.client.walk::<&str>(fid, file, &[]).unwrap();
        let flags = open::RDWR | open::CREATE;
        share.client.lcreate(file, "file", flags, 0o640, 5).unwrap();
        for fid in [fid, file] {
            let change = to_owner(7, 8);
            share.client.setattr(Tsetattr { fid, ..change }).unwrap();
            let change = to_mode(0o4711);
            share.client.setattr(Tsetattr { fid, ..change }).unwrap();
            let stat = share.client.getattr(fid, getattr::ALL).unwrap();
            assert_eq!((stat.mode & 0o7777, stat.uid, stat.gid), (0o4711, 7, 8));
        }
        share.client.write(file, 0, b"x").unwrap();
        share.client.link(fid, file, "second").unwrap();
        let second = share.client.alloc_fid();
        share.client.walk(fid, second, &["second"]).unwrap();
        let stat = share.client.getattr(second, getattr::ALL).unwrap();
        assert_eq!((stat.mode, stat.uid, stat.gid), (S_IFREG | 0o711, 7, 8));
        share.client.unlinkat(fid, "second", 0).unwrap();
        share.client.unlinkat(fid, "file", 0).unwrap();
        let stat = share.client.getattr(file, getattr::ALL).unwrap();
        assert_eq!((stat.mode, stat.uid, stat.gid), (S_IFREG | 0o711, 7, 8));
    });
}

#[test]
fn a_file_that_is_being_moved_is_never_without_its_attributes() {
    each_mapped(|mut share| {
        let (mine, root) = (share.mine, share.root);
        share.create("a", 0o640, b"x");
        share.client.mkdir(mine, "dir", 0o755, GROUP).unwrap();
        let (fid, dir) = (share.walk("a"), share.walk("dir"));
        for round in 0..200 {
            let (from, to) = if round % 2 == 0 {
                ((root, &b"a"[..]), (dir, &b"b"[..]))
            } else {
                ((dir, &b"b"[..]), (root, &b"a"[..]))
            };
            let look = Tmessage::Getattr(Tgetattr {
                fid,
                mask: getattr::BASIC,
            });
            let rename = Tmessage::Renameat(Trenameat {
                olddirfid: from.0,
                oldname: from.1,
                newdirfid: to.0,
                newname: to.1,
            });
            let client = &mut share.client;
            let tags = [&look, &rename, &look, &look, &look]
                .map(|message| client.submit(message, &[]).unwrap());
            for tag in tags {
                let reply = client.wait(tag).unwrap();
                if let Rmessage::Getattr(stat) = reply.message().unwrap() {
                    let seen = (stat.mode, stat.uid, stat.gid);
                    assert_eq!(seen, (S_IFREG | 0o640, USER, GROUP), "round {round}");
                }
                client.recycle(reply);
            }
        }
    });
}

#[test]
fn everything_is_there_after_a_restart() {
    for model in ["mapped-xattr", "mapped-file"] {
        if model == "mapped-xattr" && !has_xattrs() {
            continue;
        }
        let mut share = Share::new(model, true, &[]);
        let mine = share.mine;
        share.create("file", 0o751, b"x");
        share.client.symlink(mine, "link", "x", GROUP).unwrap();
        let mode = S_IFBLK | 0o660;
        share
            .client
            .mknod(mine, "disk", mode, (8, 17), GROUP)
            .unwrap();
        share.chown("", 1, 2).unwrap();
        let mut share = share.restart(model);
        assert_eq!(share.seen("file"), (S_IFREG | 0o751, USER, GROUP));
        assert_eq!(share.seen("link"), (S_IFLNK | 0o777, USER, GROUP));
        assert_eq!(share.seen("disk"), (S_IFBLK | 0o660, USER, GROUP));
        assert_eq!(share.stat("disk").rdev, libc::makedev(8, 17));
        assert_eq!((share.seen("").1, share.seen("").2), (1, 2));
    }
}

#[test]
fn a_device_that_no_kernel_has_is_refused() {
    each_mapped(|mut share| {
        let mine = share.mine;
        let mode = S_IFCHR | 0o600;
        let result = share.client.mknod(mine, "x", mode, (u32::MAX, 0), GROUP);
        refused(result, Errno::EINVAL);
        let mode = 0o160_600;
        refused(
            share.client.mknod(mine, "x", mode, (0, 0), GROUP),
            Errno::EINVAL,
        );
        assert!(share.names("").is_empty());
        assert!(!share.path("x").exists());
    });
}

#[test]
fn a_readonly_share_keeps_its_metadata_too() {
    for model in ["mapped-xattr", "mapped-file"] {
        if model == "mapped-xattr" && !has_xattrs() {
            continue;
        }
        let mut share = Share::new(model, true, &["--readonly"]);
        share.file("file", "x");
        refused(share.chmod("file", 0o600), Errno::EROFS);
        refused(share.chown("", 1, 1), Errno::EROFS);
        let host: Vec<_> = fs::read_dir(share.path("")).unwrap().collect();
        assert_eq!(host.len(), 1, "{host:?}");
    }
}
