//! What a change of a file takes away from it, and what a directory gives to what is made in it:
//! set-id bits, capabilities, access control lists. Each beside the same done on the host.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use common::{BINARY, Guest, NO_ID, host_set, host_value, is_root, mode_of, no_change, refused};
use nix::errno::Errno;
use protocol::{open, setattr};
use stub_guest::daemon::Launch;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const CAPABILITY: &str = "security.capability";

/// A file of another user with every permission bit, made anew.
fn powerful(guest: &Guest) -> std::path::PathBuf {
    let _ = fs::remove_file(guest.path("file"));
    let path = guest.file("file", "content");
    if is_root() {
        std::os::unix::fs::chown(&path, Some(1234), Some(1234)).unwrap();
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
    path
}

/// A name, and what is done to "file".
type Way = (&'static str, Box<dyn Fn(&mut Guest)>);

/// The ways to change a file's content or its owner through a fid.
fn changes() -> Vec<Way> {
    let mut ways: Vec<Way> = vec![
        (
            "write",
            Box::new(|guest| {
                let fid = guest.open("file", open::WRONLY);
                guest.client.write(fid, 0, b"x").unwrap();
            }),
        ),
        (
            "truncate",
            Box::new(|guest| {
                let fid = guest.walk("file");
                let mut change = no_change(fid);
                (change.valid, change.size) = (setattr::SIZE, 3);
                guest.client.setattr(change).unwrap();
            }),
        ),
        (
            "truncate an open one",
            Box::new(|guest| {
                let fid = guest.open("file", open::RDWR);
                let mut change = no_change(fid);
                (change.valid, change.size) = (setattr::SIZE, 100);
                guest.client.setattr(change).unwrap();
            }),
        ),
        (
            "open with TRUNC",
            Box::new(|guest| {
                guest.open("file", open::WRONLY | open::TRUNC);
            }),
        ),
    ];
    if is_root() {
        ways.push((
            "chown",
            Box::new(|guest| {
                let fid = guest.walk("file");
                let mut change = no_change(fid);
                (change.valid, change.uid) = (setattr::UID, 4321);
                guest.client.setattr(change).unwrap();
            }),
        ));
        ways.push((
            "chgrp",
            Box::new(|guest| {
                let fid = guest.walk("file");
                let mut change = no_change(fid);
                (change.valid, change.gid) = (setattr::GID, 4321);
                guest.client.setattr(change).unwrap();
            }),
        ));
    }
    ways
}

#[test]
fn set_id_bits_fall_with_every_change_of_content_or_owner() {
    let mut guest = Guest::new();
    for (way, change) in changes() {
        let path = powerful(&guest);
        assert_eq!(mode_of(&path), 0o6755);
        change(&mut guest);
        assert_eq!(mode_of(&path), 0o755, "{way}");
    }
    // A read takes nothing, and chmod gives what it was asked for.
    let path = powerful(&guest);
    let fid = guest.open("file", open::RDONLY);
    guest.client.read(fid, 0, 10).unwrap();
    assert_eq!(mode_of(&path), 0o6755);
    let mut change = no_change(fid);
    (change.valid, change.mode) = (setattr::MODE, 0o6711);
    guest.client.setattr(change).unwrap();
    assert_eq!(mode_of(&path), 0o6711);
}

/// struct vfs_cap_data, revision 2, with CAP_NET_RAW (linux/capability.h).
fn capability() -> Vec<u8> {
    let mut value = 0x0200_0001u32.to_le_bytes().to_vec();
    value.extend((1u32 << 13).to_le_bytes());
    value.extend([0; 12]);
    value
}

#[test]
fn a_file_loses_its_capabilities_with_every_change_of_content_or_owner() {
    let value = capability();
    let mut guest = Guest::new();
    for (way, change) in changes() {
        let path = powerful(&guest);
        if !host_set(&path, CAPABILITY, &value) {
            stub_guest::skipped("only root gives files capabilities");
            return;
        }
        change(&mut guest);
        assert_eq!(host_value(&path, CAPABILITY), None, "{way}");
    }
    let path = powerful(&guest);
    assert!(host_set(&path, CAPABILITY, &value));
    let fid = guest.walk("file");
    // The guest's root may see it, and give it.
    let size = guest.client.xattrwalk(fid, 900, CAPABILITY).unwrap();
    assert_eq!(guest.client.read(900, 0, size as u32).unwrap(), value);
    guest.file("other", "");
    let other = guest.walk("other");
    guest
        .client
        .xattrcreate(other, CAPABILITY, size, 0)
        .unwrap();
    guest.client.write(other, 0, &value).unwrap();
    guest.client.clunk(other).unwrap();
    assert_eq!(host_value(&guest.path("other"), CAPABILITY), Some(value));
}

/// user::rwx, user:1000:`named`, group::r-x, mask::`mask`, other::`other`
fn list(named: u16, mask: u16, other: u16) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01u16, 7u16, NO_ID),
        (0x02, named, 1000),
        (0x04, 5, NO_ID),
        (0x10, mask, NO_ID),
        (0x20, other, NO_ID),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// Mode and lists of a file, to compare.
fn protection(path: &Path) -> (u32, Option<Vec<u8>>, Option<Vec<u8>>) {
    let mode = fs::symlink_metadata(path).unwrap().mode();
    (mode, host_value(path, ACCESS), host_value(path, DEFAULT))
}

#[test]
fn a_directory_s_default_list_is_inherited_as_on_the_host() {
    let mut guest = Guest::new();
    for (round, default) in [list(7, 7, 0), list(6, 4, 5), list(0, 1, 7)]
        .iter()
        .enumerate()
    {
        let name = format!("directory {round}");
        let directory = guest.dir(&name);
        if !host_set(&directory, DEFAULT, default) {
            stub_guest::skipped("this file system has no access control lists");
            return;
        }
        let dfid = guest.walk(&name);
        for mode in [0o777, 0o666, 0o640, 0] {
            // A default list stands in the place of the umask: the host's does not matter.
            let file = directory.join(format!("host file {mode:o}"));
            let mut options = fs::OpenOptions::new();
            options
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&file)
                .unwrap();
            let (fid, name) = (guest.client.alloc_fid(), format!("file {mode:o}"));
            guest.client.walk::<&str>(dfid, fid, &[]).unwrap();
            guest
                .client
                .lcreate(fid, &name, open::RDWR, mode, NO_ID)
                .unwrap();
            assert_eq!(protection(&directory.join(&name)), protection(&file));

            let made = directory.join(format!("host directory {mode:o}"));
            nix::unistd::mkdir(&made, nix::sys::stat::Mode::from_bits_truncate(mode)).unwrap();
            let name = format!("directory {mode:o}");
            guest.client.mkdir(dfid, &name, mode, NO_ID).unwrap();
            assert_eq!(protection(&directory.join(&name)), protection(&made));

            let name = format!("node {mode:o}");
            guest
                .client
                .mknod(dfid, &name, libc::S_IFREG | mode, (0, 0), NO_ID)
                .unwrap();
            assert_eq!(protection(&directory.join(&name)), protection(&file));
        }
    }
}

#[test]
fn a_list_is_set_seen_and_follows_the_mode() {
    let mut guest = Guest::new();
    let path = guest.file("file", "");
    if !host_set(&path, ACCESS, &list(6, 6, 0)) {
        stub_guest::skipped("this file system has no access control lists");
        return;
    }
    let fid = guest.walk("file");
    let size = guest.client.xattrwalk(fid, 900, ACCESS).unwrap();
    assert_eq!(
        guest.client.read(900, 0, size as u32).unwrap(),
        list(6, 6, 0)
    );
    // The group's bits of the mode are the mask.
    assert_eq!(mode_of(&path), 0o760);
    let mut change = no_change(fid);
    (change.valid, change.mode) = (setattr::MODE, 0o741);
    guest.client.setattr(change).unwrap();
    assert_eq!(host_value(&path, ACCESS), Some(list(6, 4, 1)));
    let new = list(5, 5, 4);
    guest.client.walk::<&str>(fid, 901, &[]).unwrap();
    guest
        .client
        .xattrcreate(901, ACCESS, new.len() as u64, 0)
        .unwrap();
    guest.client.write(901, 0, &new).unwrap();
    guest.client.clunk(901).unwrap();
    assert_eq!(mode_of(&path), 0o754);
    // What is none is refused, as by the host.
    guest.client.walk::<&str>(fid, 902, &[]).unwrap();
    guest.client.xattrcreate(902, ACCESS, 5, 0).unwrap();
    guest.client.write(902, 0, b"wrong").unwrap();
    assert!(!host_set(&path, ACCESS, b"wrong"));
    let expected = nix::errno::Errno::last();
    common::refused(guest.client.clunk(902), expected);
}

#[test]
fn a_list_leaves_the_set_group_id_of_a_directory() {
    if !is_root() {
        stub_guest::skipped("only root acts for others");
        return;
    }
    let mut guest = Guest::new();
    let directory = guest.dir("directory");
    if !host_set(&directory, DEFAULT, &list(7, 7, 5)) {
        stub_guest::skipped("this file system has no access control lists");
        return;
    }
    std::os::unix::fs::chown(&directory, Some(1000), Some(1000)).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o2775)).unwrap();
    for user in [0, 1000, NO_ID] {
        let root = guest.client.alloc_fid();
        guest.client.attach(root, "", "", user).unwrap();
        let above = guest.client.walk_path(root, "directory").unwrap();
        let made = format!("made by {user}");
        guest.client.mkdir(above, &made, 0o2775, 1000).unwrap();
        let made = format!("directory/{made}");
        // As setfacl does, and Linux's client when it has made a directory below a default list.
        for (name, value, mode) in [
            (ACCESS, list(7, 7, 5), 0o2775),
            (ACCESS, list(7, 5, 0), 0o2750),
            (DEFAULT, list(5, 5, 0), 0o2750),
            // Without a list the group's bits are its own again.
            (ACCESS, vec![], 0o2750),
        ] {
            for path in ["directory", &made] {
                let fid = guest.client.walk_path(root, path).unwrap();
                let size = value.len() as u64;
                guest.client.xattrcreate(fid, name, size, 0).unwrap();
                guest.client.write_all(fid, 0, &value).unwrap();
                guest.client.clunk(fid).unwrap();
                let found = mode_of(&guest.path(path));
                assert_eq!(found, mode, "{path}, {name} of {} bytes", value.len());
            }
        }
    }
}

/// Makes a file of user and group 1234 with this mode.
fn give(path: &Path, mode: u32) {
    let _ = fs::remove_file(path);
    fs::write(path, "content").unwrap();
    std::os::unix::fs::chown(path, Some(1234), Some(1234)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// What a program of the host's user, who is in this group, leaves of a mode.
fn left_on_host(directory: &Path, (user, group): (u32, u32), mode: u32, script: &str) -> u32 {
    let path = directory.join("host");
    give(&path, mode);
    let mut shell = std::process::Command::new("sh");
    std::os::unix::process::CommandExt::uid(&mut shell, user);
    std::os::unix::process::CommandExt::gid(&mut shell, group);
    let status = shell.args(["-c", script]).arg(&path).status().unwrap();
    assert!(status.success(), "{script} by {user}");
    mode_of(&path)
}

#[test]
fn the_set_id_bits_that_stay_are_those_that_stay_on_the_host() {
    if !is_root() {
        stub_guest::skipped("only root acts for others");
        return;
    }
    // Where each of the users gets at it.
    let there = tempfile::tempdir().unwrap();
    fs::set_permissions(there.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for options in [&[][..], &["--permissions", "host"]] {
        let launch = stub_guest::daemon::Launch::new(common::BINARY);
        let launch = options
            .iter()
            .fold(launch, |launch, option| launch.arg(option));
        let mut guest = Guest::on(launch);
        fs::set_permissions(guest.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        let path = guest.path("file");
        for user in [0, 1234, 4321] {
            // The guest's users are taken for members of the file's group; the host, which does
            // not know them, has them in none.
            let group = match user {
                0 => 0,
                _ if options.is_empty() => 1234,
                _ => 65534,
            };
            let root = guest.client.alloc_fid();
            guest.client.attach(root, "", "", user).unwrap();
            for mode in [0o6777, 0o6767, 0o2767, 0o2777, 0o4777, 0o4767, 0o777] {
                let mut compare = |way: &str, script: &str, change: &dyn Fn(&mut Guest, u32)| {
                    give(&path, mode);
                    let fid = guest.client.walk_path(root, "file").unwrap();
                    change(&mut guest, fid);
                    guest.client.clunk(fid).unwrap();
                    let expected = left_on_host(there.path(), (user, group), mode, script);
                    let found = mode_of(&path);
                    assert_eq!(
                        found, expected,
                        "{way} by {user}, {mode:o}: {found:o}, {expected:o}"
                    );
                };
                compare("write", "printf x >> $0", &|guest, fid| {
                    guest.client.lopen(fid, open::WRONLY).unwrap();
                    guest.client.write(fid, 0, b"x").unwrap();
                });
                compare("second write", "printf x >> $0", &|guest, fid| {
                    guest.client.lopen(fid, open::WRONLY).unwrap();
                    guest.client.write(fid, 0, b"x").unwrap();
                    // What chmod gives counts for a descriptor that has written before.
                    let as_root = guest.walk("file");
                    let mut change = no_change(as_root);
                    (change.valid, change.mode) = (setattr::MODE, mode);
                    guest.client.setattr(change).unwrap();
                    assert_eq!(mode_of(&guest.path("file")), mode);
                    guest.client.write(fid, 1, b"y").unwrap();
                });
                compare("truncate", "truncate -s 3 $0", &|guest, fid| {
                    let mut change = no_change(fid);
                    (change.valid, change.size) = (setattr::SIZE, 3);
                    guest.client.setattr(change).unwrap();
                });
                compare("open with TRUNC", "printf '' > $0", &|guest, fid| {
                    guest.client.lopen(fid, open::WRONLY | open::TRUNC).unwrap();
                });
                if user != 4321 {
                    compare("chgrp", "chgrp 1234 $0", &|guest, fid| {
                        let mut change = no_change(fid);
                        (change.valid, change.gid) = (setattr::GID, 1234);
                        guest.client.setattr(change).unwrap();
                    });
                }
                if user == 0 {
                    compare("chown", "chown 4321:4321 $0", &|guest, fid| {
                        let mut change = no_change(fid);
                        change.valid = setattr::UID | setattr::GID;
                        (change.uid, change.gid) = (4321, 4321);
                        guest.client.setattr(change).unwrap();
                    });
                }
            }
        }
    }
}

#[test]
fn attributes_of_the_host_s_administrator_are_refused() {
    let mut guest = Guest::new();
    let path = guest.file("file", "content");
    for name in ["trusted.test", "security.test"] {
        if !host_set(&path, "user.test", b"x") || !host_set(&path, name, b"host") {
            stub_guest::skipped(format_args!("{name} cannot be set here"));
            continue;
        }
        for user in [0, 1234] {
            let root = guest.client.alloc_fid();
            guest.client.attach(root, "", "", user).unwrap();
            let fid = guest.client.walk_path(root, "file").unwrap();
            guest.client.xattrcreate(fid, name, 5, 0).unwrap();
            guest.client.write(fid, 0, b"guest").unwrap();
            refused(guest.client.clunk(fid), Errno::EPERM);
            assert_eq!(host_value(&path, name).unwrap(), b"host");
        }
    }
}

/// Sets an attribute of "file" as a user of the guest.
fn set_as(guest: &mut Guest, user: u32, name: &str, value: &[u8]) -> stub_guest::Result<()> {
    let client = &mut guest.client;
    let root = client.alloc_fid();
    client.attach(root, "", "", user)?;
    let fid = client.walk_path(root, "file")?;
    client.xattrcreate(fid, name, value.len() as u64, 0)?;
    client.write(fid, 0, value)?;
    client.clunk(fid)
}

#[test]
fn attributes_of_the_host_s_administrator_are_set_by_who_is_given_the_right() {
    if !is_root() {
        return;
    }
    for arg in ["--seccomp=kill", "--sandbox=none", "--permissions=host"] {
        let launch = Launch::new(BINARY).arg("--modcaps=+sys_admin").arg(arg);
        let mut guest = Guest::on(launch);
        let path = guest.file("file", "content");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        fs::set_permissions(guest.path(""), fs::Permissions::from_mode(0o777)).unwrap();
        for name in ["trusted.test", "security.test"] {
            if !host_set(&path, name, b"host") {
                stub_guest::skipped(format_args!("{name} cannot be set here"));
                continue;
            }
            set_as(&mut guest, 0, name, b"guest").unwrap();
            assert_eq!(host_value(&path, name).unwrap(), b"guest", "{arg}");
            let fid = guest.walk("file");
            let size = guest.client.xattrwalk(fid, 900, name).unwrap();
            let value = guest.client.read(900, 0, size as u32).unwrap();
            assert_eq!(value, b"guest", "{arg}");
            guest.client.clunk(900).unwrap();
            let size = guest.client.xattrwalk(fid, 900, "").unwrap();
            let names = guest.client.read(900, 0, size as u32).unwrap();
            let mut names = names.split(|byte| *byte == 0);
            assert!(names.any(|known| known == name.as_bytes()), "{arg}");
            guest.client.clunk(900).unwrap();
            let other = set_as(&mut guest, 1234, name, b"other");
            if arg == "--permissions=host" {
                refused(other, Errno::EPERM);
            } else {
                other.unwrap();
            }
        }
    }
}

#[test]
fn a_user_whom_the_host_judges_gives_no_file_a_capability() {
    if !is_root() {
        return;
    }
    let mut guest = Guest::on(Launch::new(BINARY).arg("--permissions=host"));
    let path = guest.file("file", "content");
    std::os::unix::fs::chown(&path, Some(1234), Some(1234)).unwrap();
    fs::set_permissions(guest.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    let value = capability();
    refused(set_as(&mut guest, 1234, CAPABILITY, &value), Errno::EPERM);
    assert_eq!(host_value(&path, CAPABILITY), None);
    set_as(&mut guest, 0, CAPABILITY, &value).unwrap();
    assert_eq!(host_value(&path, CAPABILITY), Some(value));
}

#[test]
fn without_a_capability_the_rest_goes_on() {
    if !is_root() {
        return;
    }
    for without in ["mknod", "fsetid", "setgid", "setuid", "chown", "setfcap"] {
        for sandbox in ["namespace", "none"] {
            let launch = Launch::new(BINARY)
                .arg(format!("--modcaps=-{without}"))
                .arg(format!("--sandbox={sandbox}"));
            let mut guest = Guest::on(launch);
            let client = &mut guest.client;
            let root = client.alloc_fid();
            client.attach(root, "", "", 1234).unwrap();
            client.make_dir(root, "directory").unwrap();
            client
                .write_file(root, "directory/file", b"content")
                .unwrap();
            let file = client.walk_path(root, "directory/file").unwrap();
            let mut change = no_change(file);
            (change.valid, change.mode) = (setattr::MODE, 0o640);
            client.setattr(change).unwrap();
            let device = client.mknod(root, "device", libc::S_IFCHR | 0o600, (1, 3), NO_ID);
            match without {
                "mknod" => refused(device, Errno::EPERM),
                _ => drop(device.unwrap()),
            }
            (change.valid, change.uid) = (setattr::UID, 4321);
            let given = client.setattr(change);
            match without {
                "chown" => refused(given, Errno::EPERM),
                _ => given.unwrap(),
            }
            let path = guest.path("directory/file");
            assert_eq!(mode_of(&path), 0o640, "{without}");
            // Who cannot act for others does it all as itself.
            let itself = ["setgid", "setuid", "chown"].contains(&without);
            let owner = fs::metadata(guest.path("directory")).unwrap().uid();
            assert_eq!(owner, if itself { 0 } else { 1234 }, "{without}");
        }
    }
}
