//! Whose files the guest's are on the host, when the daemon is run by root.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::{BINARY, Guest, NO_ID, copy_binary, no_change, refused};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, geteuid};
use protocol::{getattr, open, setattr};
use stub_guest::daemon::Launch;
use stub_guest::{Attach, Result};
use vhost_user_9p::export::Node;
use vhost_user_9p::export::xattr::XattrName;

/// A guest with these options, on a directory that everyone may write to; None unless root.
fn guest(options: &[&str]) -> Option<Guest> {
    if !geteuid().is_root() {
        stub_guest::skipped("only root may act for others");
        return None;
    }
    let launch = options.iter().fold(Launch::new(BINARY), Launch::arg);
    let guest = Guest::on(launch);
    fs::set_permissions(guest.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    Some(guest)
}

/// Attaches as another user of the guest.
fn attach(guest: &mut Guest, fid: u32, uid: u32) -> Result<u32> {
    let Attach { uname, aname, .. } = Attach::default();
    guest.client.attach(fid, &uname, &aname, uid).map(|_| fid)
}

fn owner(guest: &Guest, name: &str) -> (u32, u32) {
    let metadata = fs::symlink_metadata(guest.path(name)).unwrap();
    (metadata.uid(), metadata.gid())
}

/// Makes a file, a directory and a link as the user of `root`, and returns whose they are.
fn make_all(guest: &mut Guest, root: u32, gid: u32) -> [(u32, u32); 3] {
    guest.client.mkdir(root, "directory", 0o755, gid).unwrap();
    guest.client.symlink(root, "link", "target", gid).unwrap();
    guest.client.walk::<&str>(root, 900, &[]).unwrap();
    guest
        .client
        .lcreate(900, "file", open::RDWR, 0o644, gid)
        .unwrap();
    guest.client.clunk(900).unwrap();
    let owners = ["file", "directory", "link"].map(|name| owner(guest, name));
    for (name, flags) in [
        ("file", 0),
        ("link", 0),
        ("directory", protocol::unlink::REMOVEDIR),
    ] {
        guest.client.unlinkat(root, name, flags).unwrap();
    }
    owners
}

#[test]
fn what_a_user_makes_is_the_user_s() {
    let Some(mut guest) = guest(&[]) else { return };
    let alice = attach(&mut guest, 100, 1234).unwrap();
    assert_eq!(make_all(&mut guest, alice, 777), [(1234, 777); 3]);
    let root = attach(&mut guest, 101, 0).unwrap();
    assert_eq!(make_all(&mut guest, root, 0), [(0, 0); 3]);
}

/// The numbers of the capabilities that each thread of the daemon would be asked for.
fn effective(guest: &Guest) -> Vec<u64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", guest.daemon.pid())).unwrap();
    let of_task = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
    };
    tasks.map(|task| of_task(task.unwrap())).collect()
}

#[test]
fn no_thread_may_exceed_a_quota_or_keep_set_id_bits_by_accident() {
    for sandbox in ["namespace", "none"] {
        let Some(mut guest) = guest(&["--sandbox", sandbox]) else {
            return;
        };
        // Workers take on another's ids, and the right to keep set-id bits, for one call each.
        let root = attach(&mut guest, 50, 1234).unwrap();
        make_all(&mut guest, root, 5678);
        guest.client.walk::<&str>(root, 900, &[]).unwrap();
        let flags = open::RDWR;
        guest
            .client
            .lcreate(900, "program", flags, 0o755, 5678)
            .unwrap();
        let mut change = no_change(900);
        (change.valid, change.mode) = (setattr::MODE, 0o4755);
        guest.client.setattr(change).unwrap();
        let threads = effective(&guest);
        assert!(threads.len() > 1, "no worker has worked");
        for held in threads {
            // quotactl(2): who has CAP_SYS_RESOURCE is not bound by a quota.
            const CAP_SYS_RESOURCE: u32 = 24;
            const CAP_FSETID: u32 = 4;
            assert_eq!(
                held & (1 << CAP_SYS_RESOURCE | 1 << CAP_FSETID),
                0,
                "{held:#x}"
            );
            assert_ne!(held, 0, "it acts for others");
        }
    }
}

#[test]
fn ids_are_translated_in_both_directions() {
    let rules = [
        "--translate-uid",
        "map:0:100000:65536",
        "--translate-gid",
        "map:0:200000:65536",
    ];
    let Some(mut guest) = guest(&rules) else {
        return;
    };
    let root = attach(&mut guest, 100, 0).unwrap();
    assert_eq!(make_all(&mut guest, root, 5), [(100_000, 200_005); 3]);

    guest.file("file", "");
    let fid = guest.walk("file");
    let mut change = no_change(fid);
    (change.valid, change.uid, change.gid) = (setattr::UID | setattr::GID, 1000, 1001);
    guest.client.setattr(change).unwrap();
    assert_eq!(owner(&guest, "file"), (101_000, 201_001));
    let seen = guest.client.getattr(fid, getattr::ALL).unwrap();
    assert_eq!((seen.uid, seen.gid), (1000, 1001));
    // What no rule names is the same on both sides.
    std::os::unix::fs::chown(guest.path("file"), Some(9), Some(10)).unwrap();
    let seen = guest.client.getattr(fid, getattr::ALL).unwrap();
    assert_eq!((seen.uid, seen.gid), (9, 10));
    // "Leave it as it is" is no id.
    let mut change = no_change(fid);
    (change.valid, change.uid, change.gid) = (setattr::UID | setattr::GID, NO_ID, 3);
    guest.client.setattr(change).unwrap();
    assert_eq!(owner(&guest, "file"), (9, 200_003));
}

#[test]
fn root_can_be_squashed_and_users_forbidden() {
    let rules = [
        "--translate-uid",
        "squash-guest:0:65534:1",
        "--translate-uid",
        "forbid-guest:1000:1000",
        "--translate-gid",
        "forbid-guest:27:1",
    ];
    let Some(mut guest) = guest(&rules) else {
        return;
    };
    let root = attach(&mut guest, 100, 0).unwrap();
    assert_eq!(make_all(&mut guest, root, 0), [(65_534, 0); 3]);
    refused(attach(&mut guest, 101, 1500), Errno::EPERM);
    refused(
        guest.client.mkdir(root, "directory", 0o755, 27),
        Errno::EPERM,
    );
    assert!(!guest.path("directory").exists());
    guest.file("file", "");
    let fid = guest.walk("file");
    for (uid, gid) in [(1000, 0), (0, 27)] {
        let mut change = no_change(fid);
        (change.valid, change.uid, change.gid) = (setattr::UID | setattr::GID, uid, gid);
        refused(guest.client.setattr(change), Errno::EPERM);
    }
    let own = (Uid::effective().as_raw(), Gid::effective().as_raw());
    assert_eq!(owner(&guest, "file"), own);
}

/// A share in which the host's user 1234 may do little, and that user's fid of its root.
fn restricted() -> Option<(Guest, u32)> {
    let mut guest = guest(&["--permissions", "host"])?;
    guest.file("secret", "secret");
    guest.dir("closed");
    guest.file("closed/file", "");
    guest.dir("readable");
    guest.file("readable/file", "content");
    guest.dir("sticky");
    guest.file("sticky/file", "");
    let mode = |name: &str, mode| {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(guest.path(name), permissions).unwrap();
    };
    guest.file("own", "");
    std::os::unix::fs::chown(guest.path("own"), Some(1234), None).unwrap();
    mode("secret", 0o600);
    mode("closed", 0o700);
    mode("readable", 0o755);
    mode("readable/file", 0o644);
    mode("sticky", 0o1777);
    let alice = attach(&mut guest, 100, 1234).unwrap();
    Some((guest, alice))
}

#[test]
fn the_host_s_permissions_hold_if_they_are_to() {
    let Some((mut guest, alice)) = restricted() else {
        return;
    };
    let client = &mut guest.client;
    let secret = client.walk_path(alice, "secret").unwrap();
    refused(client.lopen(secret, open::RDONLY), Errno::EACCES);
    let mut change = no_change(secret);
    (change.valid, change.mode) = (setattr::MODE, 0o666);
    refused(client.setattr(change), Errno::EPERM);
    let mut change = no_change(secret);
    (change.valid, change.size) = (setattr::SIZE, 0);
    refused(client.setattr(change), Errno::EACCES);
    let mut change = no_change(secret);
    (change.valid, change.uid) = (setattr::UID, 1234);
    refused(client.setattr(change), Errno::EPERM);
    refused(
        client
            .walk(alice, 900, &["closed", "file"])
            .and_then(|qids| {
                assert_eq!(qids.len(), 1);
                client.getattr(900, getattr::ALL)
            }),
        Errno::EBADF,
    );
    let readable = client.walk_path(alice, "readable").unwrap();
    refused(client.mkdir(readable, "new", 0o755, NO_ID), Errno::EACCES);
    refused(client.symlink(readable, "new", "x", NO_ID), Errno::EACCES);
    refused(client.unlinkat(readable, "file", 0), Errno::EACCES);
    refused(
        client.renameat(readable, "file", alice, "file"),
        Errno::EACCES,
    );
    let own = client.walk_path(alice, "own").unwrap();
    refused(client.link(readable, own, "new"), Errno::EACCES);
    let sticky = client.walk_path(alice, "sticky").unwrap();
    refused(client.unlinkat(sticky, "file", 0), Errno::EPERM);
    client.walk::<&str>(readable, 901, &[]).unwrap();
    refused(
        client.lcreate(901, "new", open::RDWR, 0o644, NO_ID),
        Errno::EACCES,
    );
    let file = client.walk_path(readable, "file").unwrap();
    refused(client.lopen(file, open::RDWR), Errno::EACCES);
    client.lopen(file, open::RDONLY).unwrap();
    assert_eq!(client.read(file, 0, 10).unwrap(), b"content");
    // What is allowed is done as that user, and root of the guest is root.
    assert_eq!(make_all(&mut guest, alice, 1234), [(1234, 1234); 3]);
    let root = attach(&mut guest, 102, 0).unwrap();
    assert_eq!(guest.client.read_file(root, "secret").unwrap(), b"secret");
    guest.client.write_file(root, "closed/new", b"x").unwrap();
    assert_eq!(owner(&guest, "closed/new").0, 0);
}

#[test]
fn each_part_of_a_change_is_made_with_the_user_s_rights() {
    let Some((mut guest, alice)) = restricted() else {
        return;
    };
    // The mode may be changed, by the owner; to set the size takes the right to write as well.
    let own = guest.client.walk_path(alice, "own").unwrap();
    guest.client.write_file(alice, "own", b"content").unwrap();
    let mut change = no_change(own);
    (change.valid, change.mode, change.size) = (setattr::MODE | setattr::SIZE, 0o400, 3);
    refused(guest.client.setattr(change), Errno::EACCES);
    let metadata = fs::metadata(guest.path("own")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.len()), (0o400, 7));
}

#[test]
fn the_guest_s_kernel_alone_decides_by_default() {
    let Some(mut guest) = guest(&[]) else { return };
    guest.file("secret", "secret");
    fs::set_permissions(guest.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let alice = attach(&mut guest, 100, 1234).unwrap();
    assert_eq!(guest.client.read_file(alice, "secret").unwrap(), b"secret");
}

#[test]
fn the_groups_of_the_host_s_users_count() {
    // Whoever is in a group besides the own one.
    let listed = fs::read_to_string("/etc/group").unwrap();
    let member = listed.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let name = fields
            .get(3)?
            .split(',')
            .next()
            .filter(|name| !name.is_empty())?;
        let user = nix::unistd::User::from_name(name).ok()??;
        let gid: u32 = fields[2].parse().ok()?;
        (!user.uid.is_root() && user.gid.as_raw() != gid).then(|| (user.uid.as_raw(), gid))
    });
    let Some((uid, gid)) = member else {
        stub_guest::skipped("no user of this host is in a second group");
        return;
    };
    let Some(mut guest) = guest(&["--permissions", "host"]) else {
        return;
    };
    guest.file("shared", "shared");
    std::os::unix::fs::chown(guest.path("shared"), Some(0), Some(gid)).unwrap();
    fs::set_permissions(guest.path("shared"), fs::Permissions::from_mode(0o640)).unwrap();
    let member = attach(&mut guest, 100, uid).unwrap();
    assert_eq!(guest.client.read_file(member, "shared").unwrap(), b"shared");
    let stranger = attach(&mut guest, 101, 54_321).unwrap();
    refused(guest.client.read_file(stranger, "shared"), Errno::EACCES);
}

#[test]
fn the_ids_in_access_control_lists_are_translated_too() {
    let rules = ["--translate-uid", "map:0:100000:65536"];
    let Some(mut guest) = guest(&rules) else {
        return;
    };
    let list = |user: u32| {
        let mut value = vec![2, 0, 0, 0];
        for (tag, permissions, id) in [
            (0x01u16, 6u16, NO_ID),
            (0x02, 6, user),
            (0x04, 4, NO_ID),
            (0x10, 6, NO_ID),
            (0x20, 0, NO_ID),
        ] {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    };
    let path = guest.file("file", "");
    let (name, value) = ("system.posix_acl_access", list(1000));
    let fid = guest.walk("file");
    guest.client.walk::<&str>(fid, 900, &[]).unwrap();
    guest
        .client
        .xattrcreate(900, name, value.len() as u64, 0)
        .unwrap();
    guest.client.write(900, 0, &value).unwrap();
    if let Err(error) = guest.client.clunk(900) {
        refused::<()>(Err(error), Errno::EOPNOTSUPP);
        stub_guest::skipped("this file system has no access control lists");
        return;
    }
    let (node, _) = Node::new(fs::File::open(path).unwrap().into()).unwrap();
    let stored = node.xattr(&XattrName::new(name.as_bytes()).unwrap());
    assert_eq!(stored.unwrap(), list(101_000));
    let size = guest.client.xattrwalk(fid, 901, name).unwrap();
    assert_eq!(guest.client.read(901, 0, size as u32).unwrap(), value);
}

#[test]
fn an_ordinary_user_s_daemon_serves_from_its_sandbox() {
    const NOBODY: u32 = 65_534;
    if !geteuid().is_root() {
        // All other tests show it.
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let share = directory.path().join("share");
    fs::create_dir(&share).unwrap();
    for path in [directory.path(), &share] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // The build may be where only root gets at it.
    let binary = directory.path().join("daemon");
    copy_binary(&binary);
    let prelude = format!(
        "exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --pdeathsig=KILL \"$0\" \"$@\""
    );
    let mut guest = Guest::on(Launch::new(binary).share(share).prelude(&prelude));
    let root = guest.root;
    let own = [(NOBODY, NOBODY); 3];
    assert_eq!(make_all(&mut guest, root, NO_ID), own);
    guest.client.write_file(root, "file", b"content").unwrap();
    assert_eq!(guest.client.read_file(root, "file").unwrap(), b"content");
    let fid = guest.walk("file");
    for (valid, mode, size) in [(setattr::MODE, 0o640, 0), (setattr::SIZE, 0, 3)] {
        let mut change = no_change(fid);
        (change.valid, change.mode, change.size) = (valid, mode, size);
        guest.client.setattr(change).unwrap();
    }
    let mut change = no_change(fid);
    (change.valid, change.uid) = (setattr::UID, 1);
    refused(guest.client.setattr(change), Errno::EPERM);
    guest.client.link(root, fid, "another name").unwrap();
    let seen = guest.client.getattr(fid, getattr::ALL).unwrap();
    assert_eq!((seen.nlink, seen.size, seen.uid), (2, 3, NOBODY));
    assert_eq!(owner(&guest, "another name"), (NOBODY, NOBODY));
    guest.client.remove(fid).unwrap();
}
