//! A guest works the same in every sandbox that this machine allows.

mod common;

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use common::{BINARY, Guest, NO_ID};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use protocol::{lock, open};
use stub_guest::Attach;
use stub_guest::daemon::Launch;
use stub_guest::messages::Lock;

/// Whether the daemon starts with this sandbox here; else it says why not.
fn start(mode: &str, handles: &str) -> Option<Guest> {
    let mut daemon = Launch::new(BINARY)
        .arg(format!("--sandbox={mode}"))
        .arg(format!("--inode-file-handles={handles}"))
        .arg("--rlimit-nofile=100")
        .start()
        .unwrap();
    match daemon.mount() {
        Ok((client, root)) => Some(Guest {
            client,
            root,
            daemon,
        }),
        Err(_) => {
            let said = daemon.stderr();
            assert!(said.contains("cannot enter the sandbox"), "{said}");
            assert!(!daemon.wait().unwrap().success());
            stub_guest::skipped(said);
            None
        }
    }
}

fn tour(mode: &str) {
    for handles in ["never", "prefer"] {
        if let Some(guest) = start(mode, handles) {
            tour_of(guest, mode);
        }
    }
}

fn tour_of(mut guest: Guest, mode: &str) {
    let root = guest.root;
    let client = &mut guest.client;
    client.make_dir(root, "a").unwrap();
    client.make_dir(root, "b").unwrap();
    client.write_file(root, "a/file", b"content").unwrap();
    client.rename_path(root, "a/file", "b/moved").unwrap();
    assert_eq!(client.read_file(root, "b/moved").unwrap(), b"content");
    let (b, moved) = (
        client.walk_path(root, "b").unwrap(),
        client.walk_path(root, "b/moved").unwrap(),
    );
    client.link(root, moved, "linked").unwrap();
    client.symlink(b, "link", "../anywhere", NO_ID).unwrap();
    let link = client.walk_path(b, "link").unwrap();
    assert_eq!(client.readlink(link).unwrap(), b"../anywhere");
    client
        .mknod(b, "fifo", libc::S_IFIFO | 0o600, (0, 0), NO_ID)
        .unwrap();
    client.lopen(moved, open::RDWR | open::TRUNC).unwrap();
    client.write_all(moved, 0, b"more").unwrap();
    client.fsync(moved, 0).unwrap();
    client.statfs(root).unwrap();
    // More files than descriptors: they are found again.
    let mut fids = Vec::new();
    for number in 0..300 {
        let name = format!("a/{number}");
        client.write_file(root, &name, name.as_bytes()).unwrap();
        fids.push((client.walk_path(root, &name).unwrap(), name));
    }
    for (fid, name) in fids {
        client.lopen(fid, open::RDONLY).unwrap();
        assert_eq!(client.read(fid, 0, 100).unwrap(), name.as_bytes(), "{mode}");
        client.clunk(fid).unwrap();
    }
    assert_eq!(client.read_dir(root, "a").unwrap().len(), 302);
    client.unlinkat(b, "link", 0).unwrap();
    // What the host sees.
    assert_eq!(std::fs::read(guest.path("linked")).unwrap(), b"more");
    assert_eq!(std::fs::metadata(guest.path("b/moved")).unwrap().nlink(), 2);
    let fifo = std::fs::symlink_metadata(guest.path("b/fifo")).unwrap();
    assert!(fifo.file_type().is_fifo());
    assert!(std::fs::symlink_metadata(guest.path("b/link")).is_err());
}

/// The names in a directory of the host.
fn listing(path: &Path) -> BTreeSet<Vec<u8>> {
    let entries = std::fs::read_dir(path).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_vec());
    names.chain([b".".to_vec(), b"..".to_vec()]).collect()
}

/// The names in the guest's root.
fn listing_of_guest(guest: &mut Guest) -> BTreeSet<Vec<u8>> {
    let entries = guest.client.read_dir(guest.root, "").unwrap();
    entries.into_iter().map(|entry| entry.name).collect()
}

/// The share is what its path led to when the daemon was started, however the path was given.
fn paths(mode: &str) {
    if start(mode, "never").is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let share = directory.path().join("share");
    std::fs::create_dir_all(share.join("inside")).unwrap();
    std::fs::write(share.join("inside/file"), "").unwrap();
    std::fs::write(share.join("host"), "").unwrap();
    std::os::unix::fs::symlink("share", directory.path().join("link")).unwrap();
    for (working, given, shared) in [
        ("share", ".", "share"),
        ("share", "./", "share"),
        ("share", "inside", "share/inside"),
        ("share/inside", "..", "share"),
        ("", "share", "share"),
        ("", "./share/inside/../", "share"),
        ("", "link", "share"),
    ] {
        let working = directory.path().join(working);
        let shared = directory.path().join(shared);
        let prelude = format!(
            "cd '{}'; shift 2; set -- --shared-dir '{given}' \"$@\"",
            working.display()
        );
        let launch = Launch::new(BINARY).arg(format!("--sandbox={mode}"));
        let mut guest = Guest::on(launch.share(&shared).prelude(&prelude));
        assert_eq!(listing_of_guest(&mut guest), listing(&shared), "{given}");
        // Also what goes by the descriptor's number.
        let root = guest.root;
        guest.client.write_file(root, "new", b"content").unwrap();
        assert_eq!(guest.client.read_file(root, "new").unwrap(), b"content");
        let new = guest.walk("new");
        guest.client.remove(new).unwrap();
    }
    let launch = Launch::new(BINARY).arg(format!("--sandbox={mode}"));
    let mut guest = Guest::on(launch.share("/").arg("--readonly"));
    assert_eq!(listing_of_guest(&mut guest), listing(Path::new("/")));
}

/// How a daemon ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Signal(Signal),
    FrontEnd,
}

/// At each normal end the socket's file goes, and nothing is said of it.
fn socket_goes(mode: &str) {
    if start(mode, "never").is_none() {
        return;
    }
    let ends = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT].map(End::Signal);
    for end in ends.into_iter().chain([End::FrontEnd]) {
        let mut launch = Launch::new(BINARY)
            .by_path()
            .arg(format!("--sandbox={mode}"))
            // Whoever starts the daemon may not care for its children.
            .prelude("exec env --ignore-signal=CHLD \"$0\" \"$@\"");
        if let End::FrontEnd = end {
            launch = launch.arg("--once");
        }
        let mut daemon = launch.start().unwrap();
        let (client, _) = daemon.mount().unwrap();
        match end {
            End::Signal(signal) => daemon.signal(signal).unwrap(),
            End::FrontEnd => drop(client),
        }
        let status = daemon.wait().unwrap();
        assert!(status.success(), "{end:?}: {status}, {}", daemon.stderr());
        assert!(!daemon.socket().exists(), "{end:?}");
        assert!(!daemon.stderr().contains("warn"), "{}", daemon.stderr());
    }
}

/// A socket that another process has put in its place stays.
fn foreign_socket_stays(mode: &str) {
    if start(mode, "never").is_none() {
        return;
    }
    let launch = Launch::new(BINARY).by_path();
    let mut daemon = launch.arg(format!("--sandbox={mode}")).start().unwrap();
    daemon.mount().unwrap();
    // Made before the other goes: its inode has another number.
    let other = daemon.outside().join("other");
    let _successor = UnixListener::bind(&other).unwrap();
    std::fs::rename(&other, daemon.socket()).unwrap();
    assert!(daemon.terminate().unwrap().success());
    assert!(daemon.socket().exists());
    assert!(!daemon.stderr().contains("warn"), "{}", daemon.stderr());
}

/// SIGHUP leaves everything to another process, and SIGUSR1 is answered in the log.
#[test]
fn some_signals_do_not_end_the_daemon() {
    for mode in ["none", "namespace", "chroot", "landlock"] {
        if start(mode, "never").is_none() {
            continue;
        }
        let launch = Launch::new(BINARY).arg(format!("--sandbox={mode}"));
        let mut guest = Guest::on(launch);
        guest.file("file", "content");
        let file = guest.open("file", open::RDWR);
        let whole = Lock::whole(lock::WRLCK);
        guest.client.lock(file, 0, &whole).unwrap();
        guest.daemon.signal(Signal::SIGHUP).unwrap();
        guest.daemon.said("took over in").unwrap();
        // Answered when the next process has told the host of the lock again.
        guest.client.lock(file, 0, &whole).unwrap();
        guest.daemon.signal(Signal::SIGUSR1).unwrap();
        let said = guest
            .daemon
            .said("status: a front-end is connected, ")
            .unwrap();
        let numbers = "fids: 2, requests under way: 0, descriptors of open files and locks: 2, \
                       locked ranges and their processes: 2, on files: 1";
        assert!(said.contains(numbers), "{mode}: {said}");
        guest.client.read_dir(guest.root, "").unwrap();
    }
}

/// A guest of a directory that is no longer there learns nothing; the log does.
#[test]
fn a_share_that_is_removed_is_told_of() {
    for mode in ["none", "namespace", "chroot", "landlock"] {
        if start(mode, "never").is_none() {
            continue;
        }
        let mut guest = Guest::on(Launch::new(BINARY).arg(format!("--sandbox={mode}")));
        let told = |guest: &Guest| guest.daemon.stderr().matches("has been removed").count();
        assert!(guest.client.walk_path(guest.root, "missing").is_err());
        std::fs::remove_dir(guest.path("")).unwrap();
        std::fs::create_dir(guest.path("")).unwrap();
        assert_eq!(told(&guest), 0);
        for _ in 0..2 {
            let made = guest.client.mkdir(guest.root, "new", 0o755, NO_ID);
            common::refused(made, Errno::ENOENT);
        }
        assert_eq!(told(&guest), 1, "{mode}: {}", guest.daemon.stderr());
        // Once more to whoever mounts it anew.
        guest.client.mount(&Attach::default()).unwrap();
        assert_eq!(told(&guest), 2, "{mode}");
    }
}

#[test]
fn socket_none() {
    socket_goes("none");
    foreign_socket_stays("none");
}

#[test]
fn socket_landlock() {
    socket_goes("landlock");
    foreign_socket_stays("landlock");
}

#[test]
fn socket_chroot() {
    socket_goes("chroot");
    foreign_socket_stays("chroot");
}

#[test]
fn socket_namespace() {
    socket_goes("namespace");
    foreign_socket_stays("namespace");
}

#[test]
fn paths_none() {
    paths("none");
}

#[test]
fn paths_landlock() {
    paths("landlock");
}

#[test]
fn paths_chroot() {
    paths("chroot");
}

#[test]
fn paths_namespace() {
    paths("namespace");
}

/// Without a wish the strongest sandbox is had, and the log says which one it is and no more.
#[test]
fn the_strongest_that_can_be_had() {
    if !common::is_root() {
        return;
    }
    let has_landlock = start("landlock", "never").is_some();
    let (inside, weakest) = match has_landlock {
        true => ("chroot with landlock inside", "the sandbox is landlock"),
        false => ("chroot without landlock inside", "no sandbox"),
    };
    for (without, handles, had) in [
        ("-sys_admin", "never", inside),
        ("-sys_admin,-sys_chroot", "never", weakest),
        // Landlock lets nothing be found by its handle.
        ("-sys_admin", "prefer", "chroot without landlock inside"),
        ("-sys_admin", "mandatory", "chroot without landlock inside"),
        ("-sys_admin,-sys_chroot", "prefer", weakest),
        ("-sys_admin,-sys_chroot", "mandatory", "no sandbox"),
    ] {
        let launch = Launch::new(BINARY)
            .arg(format!("--inode-file-handles={handles}"))
            .prelude(&format!(
                "set -- --bounding-set={without} \"$0\" \"$@\"; exec setpriv \"$@\""
            ));
        let mut guest = Guest::on(launch);
        let root = guest.root;
        guest.client.write_file(root, "file", b"content").unwrap();
        assert_eq!(guest.client.read_file(root, "file").unwrap(), b"content");
        let said = guest.daemon.stderr();
        let warnings: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("refused"))
            .collect();
        assert_eq!(warnings.len(), 1, "{said}");
        assert!(warnings[0].contains(had) && !said.contains("try"), "{said}");
    }
}

/// Where Landlock holds, file handles are of no use, and the right to them is given up.
#[test]
fn landlock_and_file_handles_exclude_each_other() {
    if !common::is_root() || start("landlock", "never").is_none() {
        return;
    }
    for (mode, handles, landlock) in [
        ("landlock", "never", true),
        ("landlock", "prefer", true),
        ("chroot", "never", true),
        ("chroot", "prefer", false),
        ("chroot", "mandatory", false),
        ("namespace", "prefer", false),
    ] {
        let Some(guest) = start(mode, handles) else {
            continue;
        };
        let path = format!("/proc/{}/status", guest.daemon.pid());
        let status = std::fs::read_to_string(path).unwrap();
        let rights = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
        let rights = u64::from_str_radix(rights.unwrap().trim(), 16).unwrap();
        // Where Landlock holds, the right to open files by their handles (CAP_DAC_READ_SEARCH) is gone.
        assert_eq!(rights & 1 << 2 == 0, landlock, "{mode}, {handles}");
        let said = guest.daemon.stderr();
        let told = said.contains("Landlock does not allow them");
        assert_eq!(told, landlock && handles == "prefer", "{said}");
    }
}

#[test]
fn none() {
    tour("none");
}

#[test]
fn landlock() {
    tour("landlock");
}

#[test]
fn chroot() {
    tour("chroot");
}

#[test]
fn namespace() {
    tour("namespace");
}
