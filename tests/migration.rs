//! What a guest keeps when it moves to another daemon (DEVICE_STATE).

mod common;

use std::fs;

use common::{BINARY, Guest, is_root};
use nix::fcntl::{FcntlArg, fcntl};
use protocol::{getattr, lock, open};
use stub_guest::Daemon;
use stub_guest::daemon::Launch;
use stub_guest::messages::Lock;
use tempfile::TempDir;

/// A guest of a directory that outlives the daemon.
fn guest_with(args: &[&str]) -> (Guest, TempDir) {
    let share = tempfile::tempdir().unwrap();
    let launch = Launch::new(BINARY).share(share.path()).args(args);
    (Guest::on(launch), share)
}

fn guest() -> (Guest, TempDir) {
    guest_with(&[])
}

/// Another daemon for the same directory.
fn another(guest: &Guest, args: &[&str]) -> Daemon {
    let launch = Launch::new(BINARY).share(guest.path("")).args(args);
    launch.start().unwrap()
}

impl Guest {
    /// Stops the ring and saves the session.
    fn save(&mut self) -> (u16, Vec<u8>) {
        let front_end = self.client.front_end();
        let base = front_end.stop().unwrap();
        (base, front_end.control().save_state().unwrap())
    }

    /// Goes on under another daemon with this state, and ends the one before.
    fn continue_with(&mut self, mut next: Daemon, base: u16, state: &[u8]) -> Result<(), String> {
        let front_end = self.client.front_end();
        // The daemon before has the session until the next one has it, too.
        let _before = front_end.go_over(next.stream().unwrap()).unwrap();
        let loaded = front_end.control().load_state(state);
        std::mem::swap(&mut self.daemon, &mut next);
        loaded.map_err(|_| self.daemon.stderr())?;
        front_end.start(base).unwrap();
        Ok(())
    }

    fn migrate(&mut self, args: &[&str]) {
        let next = another(self, args);
        let (base, state) = self.save();
        self.continue_with(next, base, &state).unwrap();
    }
}

#[test]
fn files_are_found_by_their_paths() {
    let (mut guest, _share) = guest();
    guest.dir("a");
    guest.dir("a/b");
    guest.file("a/b/file", "content");
    let open_fid = guest.open("a/b/file", open::RDWR | open::APPEND);
    let walked = guest.walk("a/b/file");
    let directory = guest.walk("a/b");
    let qid = |guest: &mut Guest, fid| guest.client.getattr(fid, getattr::ALL).unwrap().qid;
    let before = [walked, directory].map(|fid| qid(&mut guest, fid));
    for _ in 0..3 {
        guest.migrate(&[]);
        assert_eq!(before, [walked, directory].map(|fid| qid(&mut guest, fid)));
    }
    assert_eq!(guest.client.read(open_fid, 0, 100).unwrap(), b"content");
    // It appends still.
    guest.client.write(open_fid, 0, b" and more").unwrap();
    assert_eq!(
        fs::read(guest.path("a/b/file")).unwrap(),
        b"content and more"
    );
    guest.client.lopen(directory, open::RDONLY).unwrap();
    let missing = guest.client.walk_path(guest.root, "missing");
    assert!(missing.is_err());
}

#[test]
fn files_that_were_renamed_are_found_where_they_are() {
    let (mut guest, _share) = guest();
    guest.dir("a");
    guest.file("a/file", "content");
    let fid = guest.walk("a/file");
    fs::rename(guest.path("a"), guest.path("b")).unwrap();
    guest.migrate(&[]);
    guest.client.lopen(fid, open::RDONLY).unwrap();
    assert_eq!(guest.client.read(fid, 0, 100).unwrap(), b"content");
}

#[test]
fn another_file_by_that_name_is_not_taken() {
    for on_error in ["abort", "guest-error"] {
        let (mut guest, _share) = guest();
        guest.file("file", "content");
        guest.file("other", "still there");
        let fid = guest.open("file", open::RDWR);
        let other = guest.open("other", open::RDWR);
        let next = another(&guest, &["--migration-on-error", on_error]);
        let (base, state) = guest.save();
        // Both exist for a moment, so that the second does not get the number of the first.
        guest.file("new", "another file");
        fs::rename(guest.path("new"), guest.path("file")).unwrap();
        let continued = guest.continue_with(next, base, &state);
        if on_error == "abort" {
            let said = continued.unwrap_err();
            assert!(said.contains("file is not found here"), "{said}");
            continue;
        }
        continued.unwrap();
        let stat = guest.client.getattr(fid, getattr::ALL);
        assert_eq!(stat.unwrap_err().errno(), Some(libc::ESTALE));
        assert!(guest.client.read(fid, 0, 100).is_err());
        assert!(guest.client.write(fid, 0, b"x").is_err());
        guest.client.clunk(fid).unwrap();
        assert_eq!(guest.client.read(other, 0, 100).unwrap(), b"still there");
        assert_eq!(fs::read(guest.path("file")).unwrap(), b"another file");
    }
}

#[test]
fn another_directory_is_not_the_share() {
    let (mut guest, _share) = guest();
    let elsewhere = tempfile::tempdir().unwrap();
    let next = Launch::new(BINARY)
        .share(elsewhere.path())
        .args(["--migration-on-error", "guest-error"]);
    let next = next.start().unwrap();
    let (base, state) = guest.save();
    let said = guest.continue_with(next, base, &state).unwrap_err();
    assert!(
        said.contains("the share here is another directory"),
        "{said}"
    );
}

#[test]
fn a_file_without_a_name_is_found_by_its_handle() {
    if !is_root() {
        stub_guest::skipped("file handles are for root");
        return;
    }
    let args = [
        "--inode-file-handles",
        "mandatory",
        "--migration-mode",
        "file-handles",
    ];
    let (mut guest, _share) = guest_with(&args);
    guest.file("file", "content");
    let fid = guest.open("file", open::RDWR);
    fs::remove_file(guest.path("file")).unwrap();
    guest.dir("a");
    guest.file("a/moved", "moved");
    let moved = guest.walk("a/moved");
    let next = another(&guest, &args);
    let (base, state) = guest.save();
    // After it was saved, and so not where it was.
    fs::rename(guest.path("a/moved"), guest.path("elsewhere")).unwrap();
    // The daemon before keeps the file until it is told to end.
    guest.continue_with(next, base, &state).unwrap();
    assert_eq!(guest.client.read(fid, 0, 100).unwrap(), b"content");
    guest.client.lopen(moved, open::RDONLY).unwrap();
    assert_eq!(guest.client.read(moved, 0, 100).unwrap(), b"moved");
}

#[test]
fn locks_move_along() {
    let (mut guest, _share) = guest();
    let path = guest.file("file", "0123456789");
    let fid = guest.open("file", open::RDWR);
    for (start, length) in [(0, 2), (4, 1)] {
        let range = Lock {
            start,
            length,
            ..Lock::whole(lock::WRLCK)
        };
        assert_eq!(guest.client.lock(fid, 0, &range).unwrap(), lock::SUCCESS);
    }
    let host = fs::File::options().write(true).open(path).unwrap();
    let held = || {
        let is_held = |byte: &i64| {
            let mut flock = libc::flock {
                l_type: libc::F_WRLCK as i16,
                l_whence: libc::SEEK_SET as i16,
                l_start: *byte,
                l_len: 1,
                l_pid: 0,
            };
            fcntl(&host, FcntlArg::F_OFD_GETLK(&mut flock)).unwrap();
            i32::from(flock.l_type) != libc::F_UNLCK
        };
        (0..10).filter(is_held).collect::<Vec<i64>>()
    };
    assert_eq!(held(), [0, 1, 4]);
    // A migration that fails: this daemon goes on, and takes its locks again.
    let (base, _) = guest.save();
    assert_eq!(held(), []);
    guest.client.front_end().start(base).unwrap();
    guest.client.getattr(fid, getattr::ALL).unwrap();
    guest
        .client
        .lock(
            fid,
            0,
            &Lock {
                start: 4,
                length: 1,
                ..Lock::whole(lock::WRLCK)
            },
        )
        .unwrap();
    assert_eq!(held(), [0, 1, 4]);
    // One that succeeds, while the daemon before is there.
    let next = another(&guest, &[]);
    let (base, state) = guest.save();
    guest.continue_with(next, base, &state).unwrap();
    assert_eq!(held(), [0, 1, 4]);
    guest.client.clunk(fid).unwrap();
    guest.client.getattr(guest.root, getattr::ALL).unwrap();
    assert_eq!(held(), []);
}

#[test]
fn attributes_under_way_move_along() {
    let (mut guest, _share) = guest();
    guest.file("file", "");
    let file = guest.walk("file");
    let draft = guest.walk("file");
    guest.client.xattrcreate(draft, "user.draft", 8, 0).unwrap();
    guest.client.write(draft, 0, b"half").unwrap();
    guest.migrate(&[]);
    guest.client.write(draft, 4, b"done").unwrap();
    guest.client.clunk(draft).unwrap();
    let value = 90;
    assert_eq!(
        guest.client.xattrwalk(file, value, "user.draft").unwrap(),
        8
    );
    guest.migrate(&[]);
    assert_eq!(guest.client.read(value, 0, 100).unwrap(), b"halfdone");
}

#[test]
fn what_is_no_state_is_refused_and_changes_nothing_else() {
    let (mut guest, _share) = guest();
    let (base, state) = guest.save();
    let mut wrong = vec![
        Vec::new(),
        b"nonsense".to_vec(),
        state[..state.len() - 1].to_vec(),
    ];
    wrong.push([&state[..], b"x"].concat());
    for state in &wrong {
        assert!(
            guest
                .client
                .front_end()
                .control()
                .load_state(state)
                .is_err()
        );
    }
    // The right one is taken afterwards.
    guest
        .client
        .front_end()
        .control()
        .load_state(&state)
        .unwrap();
    guest.client.front_end().start(base).unwrap();
    guest.client.getattr(guest.root, getattr::ALL).unwrap();
}

#[test]
fn a_crash_after_a_migration_is_a_pause_too() {
    let (mut guest, _share) = guest();
    guest.file("file", "content");
    let fid = guest.open("file", open::RDONLY);
    guest.migrate(&[]);
    guest.daemon.kill_server().unwrap();
    assert_eq!(guest.client.read(fid, 0, 100).unwrap(), b"content");
}

#[test]
fn thousands_of_fids_move_along() {
    let (mut guest, _share) = guest();
    let mut fids = Vec::new();
    for directory in 0..20 {
        guest.dir(&format!("d{directory}"));
        for file in 0..100 {
            let name = format!("d{directory}/f{file}");
            guest.file(&name, &name);
            fids.push((guest.walk(&name), name));
        }
    }
    // Fewer descriptors than files.
    guest.migrate(&["--rlimit-nofile", "500"]);
    for (fid, name) in fids {
        guest.client.lopen(fid, open::RDONLY).unwrap();
        assert_eq!(guest.client.read(fid, 0, 100).unwrap(), name.as_bytes());
        guest.client.clunk(fid).unwrap();
    }
}
