//! What a guest keeps when the process that serves it is killed, and another one takes over.

mod common;

use std::fs;
use std::os::unix::net::UnixStream;

use common::{BINARY, Guest, host_set, host_value};
use nix::fcntl::{FcntlArg, fcntl};
use protocol::{getattr, lock, open};
use stub_guest::daemon::Launch;
use stub_guest::messages::{Lock, tlock};
use stub_guest::{Attach, Client, FrontEnd, Options};

impl Guest {
    /// Kills the process that serves. The next request is answered by another one.
    fn crash(&mut self) {
        self.daemon.kill_server().unwrap();
    }
}

/// A guest for each sandbox that this user can have.
fn guests() -> impl Iterator<Item = Guest> {
    let modes: &[&str] = match nix::unistd::geteuid().is_root() {
        true => &["namespace", "chroot", "landlock", "none"],
        false => &["landlock", "none"],
    };
    let launch = |mode| Launch::new(BINARY).arg("--sandbox").arg(mode);
    modes.iter().map(move |mode| Guest::on(launch(mode)))
}

#[test]
fn a_file_that_was_removed_stays_open() {
    for mut guest in guests() {
        let path = guest.file("file", "before");
        let fid = guest.open("file", open::RDWR);
        fs::remove_file(path).unwrap();
        guest.crash();
        assert_eq!(guest.client.read(fid, 0, 100).unwrap(), b"before");
        guest.client.write(fid, 0, b"behind").unwrap();
        guest.crash();
        assert_eq!(guest.client.read(fid, 0, 100).unwrap(), b"behind");
        assert_eq!(guest.client.getattr(fid, getattr::ALL).unwrap().nlink, 0);
        guest.client.clunk(fid).unwrap();
    }
}

#[test]
fn a_fid_stands_for_the_same_file_wherever_it_is() {
    for mut guest in guests() {
        fs::create_dir(guest.path("a")).unwrap();
        guest.file("a/file", "content");
        let fid = guest.walk("a/file");
        let before = guest.client.getattr(fid, getattr::ALL).unwrap().qid;
        guest.crash();
        fs::rename(guest.path("a"), guest.path("b")).unwrap();
        guest.file("other", "");
        assert_eq!(
            guest.client.getattr(fid, getattr::ALL).unwrap().qid.path,
            before.path
        );
        // One inode, also for a fid that is new.
        let again = guest.walk("b/file");
        assert_eq!(
            guest.client.getattr(again, getattr::ALL).unwrap().qid.path,
            before.path
        );
        guest.client.lopen(fid, open::RDONLY).unwrap();
        assert_eq!(guest.client.read(fid, 0, 100).unwrap(), b"content");
    }
}

/// Each process dies before it serves, some before they are in their sandbox.
#[test]
fn processes_that_are_killed_at_once_are_followed_by_others() {
    for mut guest in guests() {
        guest.file("file", "content");
        let fid = guest.open("file", open::RDONLY);
        for _ in 0..15 {
            guest.crash();
        }
        assert_eq!(guest.client.read(fid, 0, 9).unwrap(), b"content");
    }
}

/// The daemon was given the connection itself, whose number must not become a file's.
#[test]
fn a_connection_that_was_given_outlives_crashes() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut daemon = Launch::new(BINARY)
        .connected(theirs.into())
        .start()
        .unwrap();
    fs::write(daemon.path("file"), "content").unwrap();
    let mut client = Client::new(FrontEnd::new(ours, Options::default()).unwrap());
    let root = client.mount(&Attach::default()).unwrap();
    let mut fids = Vec::new();
    for _ in 0..4 {
        daemon.kill_server().unwrap();
        let fid = client.walk_path(root, "file").unwrap();
        client.lopen(fid, open::RDONLY).unwrap();
        fids.push(fid);
        for fid in &fids {
            assert_eq!(client.read(*fid, 0, 9).unwrap(), b"content");
        }
    }
    drop(client);
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn a_lock_is_held_and_can_be_released() {
    for mut guest in guests() {
        let path = guest.file("file", "0123456789");
        let fid = guest.open("file", open::RDWR);
        let range = Lock {
            start: 2,
            length: 4,
            ..Lock::whole(lock::WRLCK)
        };
        assert_eq!(guest.client.lock(fid, 0, &range).unwrap(), lock::SUCCESS);
        let middle = Lock {
            start: 3,
            length: 1,
            ..Lock::whole(lock::UNLCK)
        };
        assert_eq!(guest.client.lock(fid, 0, &middle).unwrap(), lock::SUCCESS);
        let host = fs::File::options().write(true).open(path).unwrap();
        let free = |byte: i64| {
            let mut flock = libc::flock {
                l_type: libc::F_WRLCK as i16,
                l_whence: libc::SEEK_SET as i16,
                l_start: byte,
                l_len: 1,
                l_pid: 0,
            };
            fcntl(&host, FcntlArg::F_OFD_GETLK(&mut flock)).unwrap();
            i32::from(flock.l_type) == libc::F_UNLCK
        };
        let held =
            |bytes: &dyn Fn(i64) -> bool| (0..8).filter(|byte| !bytes(*byte)).collect::<Vec<_>>();
        assert_eq!(held(&free), [2, 4, 5]);
        for _ in 0..2 {
            guest.crash();
            guest.client.getattr(fid, getattr::ALL).unwrap();
            assert_eq!(held(&free), [2, 4, 5]);
        }
        let rest = Lock {
            start: 4,
            length: 0,
            ..Lock::whole(lock::UNLCK)
        };
        assert_eq!(guest.client.lock(fid, 0, &rest).unwrap(), lock::SUCCESS);
        assert_eq!(held(&free), [2]);
        guest.crash();
        // The last lock ends with the file.
        guest.client.clunk(fid).unwrap();
        guest.client.getattr(guest.root, getattr::ALL).unwrap();
        assert_eq!(held(&free), []);
    }
}

#[test]
fn a_listing_goes_on_where_it_was() {
    for mut guest in guests() {
        let names: Vec<String> = (0..300).map(|n| format!("entry-{n}")).collect();
        for name in &names {
            guest.file(name, "");
        }
        let fid = guest.open("", open::RDONLY | open::DIRECTORY);
        let mut seen = Vec::new();
        let mut offset = 0;
        loop {
            let entries = guest.client.readdir(fid, offset, 1000).unwrap();
            let Some(last) = entries.last() else { break };
            offset = last.offset;
            seen.extend(entries.iter().map(|entry| entry.name.clone()));
            guest.crash();
        }
        seen.retain(|name| name != b"." && name != b"..");
        seen.sort();
        let mut names: Vec<Vec<u8>> = names.into_iter().map(String::into_bytes).collect();
        names.sort();
        assert_eq!(seen, names);
    }
}

#[test]
fn an_attribute_that_is_being_read_or_written_goes_on() {
    let mut guest = Guest::new();
    let path = guest.file("file", "");
    host_set(&path, "user.read", b"a value");
    if host_value(&path, "user.read").is_none() {
        stub_guest::skipped("this file system has no extended attributes");
        return;
    }
    let fid = guest.walk("file");
    let reader = guest.client.alloc_fid();
    guest.client.xattrwalk(fid, reader, b"user.read").unwrap();
    host_set(&path, "user.read", b"another");
    let writer = guest.walk("file");
    guest
        .client
        .xattrcreate(writer, b"user.written", 6, 0)
        .unwrap();
    guest.crash();
    guest.client.write(writer, 0, b"abc").unwrap();
    guest.crash();
    assert_eq!(guest.client.read(reader, 2, 100).unwrap(), b"value");
    guest.client.write(writer, 3, b"def").unwrap();
    guest.crash();
    guest.client.clunk(writer).unwrap();
    assert_eq!(host_value(&path, "user.written").unwrap(), b"abcdef");
    guest.client.clunk(reader).unwrap();
}

#[test]
fn files_without_descriptors_are_found_again() {
    let launch = Launch::new(BINARY).arg("--rlimit-nofile").arg("160");
    let mut guest = Guest::on(launch);
    let mut fids = Vec::new();
    for n in 0..300 {
        let name = format!("file-{n}");
        guest.file(&name, n.to_string());
        fids.push(guest.walk(&name));
        if n % 100 == 50 {
            guest.crash();
        }
    }
    guest.crash();
    for (n, fid) in fids.into_iter().enumerate() {
        guest.client.lopen(fid, open::RDONLY).unwrap();
        assert_eq!(
            guest.client.read(fid, 0, 9).unwrap(),
            n.to_string().as_bytes()
        );
        guest.client.clunk(fid).unwrap();
        if n % 100 == 50 {
            guest.crash();
        }
    }
}

#[test]
fn no_descriptor_is_left_over() {
    let mut guest = Guest::new();
    guest.file("file", "");
    let count = |guest: &Guest| {
        let directory = format!("/proc/{}/fd", guest.daemon.pid());
        fs::read_dir(directory).unwrap().count()
    };
    let mut counts = Vec::new();
    for _ in 0..5 {
        guest.crash();
        let fid = guest.open("file", open::RDWR);
        counts.push(count(&guest));
        guest.client.clunk(fid).unwrap();
    }
    assert!(
        counts.windows(2).all(|pair| pair[0] == pair[1]),
        "{counts:?}"
    );
}

#[test]
fn the_socket_s_file_is_out_of_reach_and_removed_at_the_end() {
    for mode in ["namespace", "none"] {
        let launch = Launch::new(BINARY).by_path().arg("--sandbox").arg(mode);
        let mut daemon = launch.start().unwrap();
        let (mut client, root) = daemon.mount().unwrap();
        daemon.kill_server().unwrap();
        client.getattr(root, getattr::ALL).unwrap();
        let links = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
        let links = links.filter_map(|link| fs::read_link(link.unwrap().path()).ok());
        let has_file = links.into_iter().any(|link| link == daemon.socket());
        assert!(!has_file, "{mode}");
        drop(client);
        assert!(daemon.terminate().unwrap().success());
        assert!(!daemon.socket().exists());
    }
}

#[test]
fn a_request_that_two_crashes_had_under_way_gets_eio() {
    let mut guest = Guest::new();
    // Waits, and so is under way whenever the process dies.
    let path = guest.file("file", "");
    let host = fs::File::options().write(true).open(&path).unwrap();
    let fid = guest.open("file", open::RDWR);
    let flock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(&host, FcntlArg::F_OFD_SETLK(&flock)).unwrap();
    let whole = Lock::whole(lock::WRLCK);
    let request = tlock(fid, lock::BLOCK, &whole);
    let tag = guest.client.submit(&request, &[]).unwrap();
    guest.client.kick().unwrap();
    for _ in 0..2 {
        guest.client.getattr(guest.root, getattr::ALL).unwrap();
        guest.daemon.crash_server().unwrap();
    }
    let reply = guest.client.wait(tag).unwrap();
    assert_eq!(reply.message().unwrap_err().errno(), Some(libc::EIO));
    guest.client.getattr(guest.root, getattr::ALL).unwrap();
}
