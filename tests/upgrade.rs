//! What a guest keeps when the installed program is replaced by another one (SIGHUP).

mod common;

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::{BINARY, Guest, copy_binary};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use protocol::{getattr, lock, open};
use stub_guest::daemon::Launch;
use stub_guest::messages::{Lock, tlock};
use stub_guest::{Attach, Client, FrontEnd, Options};
use tempfile::TempDir;

/// A program that can be replaced.
struct Installed {
    path: PathBuf,
    _directory: TempDir,
}

impl Installed {
    fn new() -> Installed {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = directory.path().join("vhost-user-9p");
        copy_binary(&path);
        Installed {
            path,
            _directory: directory,
        }
    }

    /// Puts another program there, as a package manager does.
    fn replace(&self, write: impl FnOnce(&Path)) {
        let new = self.path.with_extension("new");
        write(&new);
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, &self.path).unwrap();
    }

    fn replace_by_a_copy(&self) {
        self.replace(copy_binary);
    }

    fn replace_by_script(&self, script: &str) {
        self.replace(|new| fs::write(new, format!("#!/bin/sh\n{script}\n")).unwrap());
    }
}

/// The sandboxes that this user can have.
fn modes() -> &'static [&'static str] {
    match nix::unistd::geteuid().is_root() {
        true => &["namespace", "chroot", "landlock", "none"],
        false => &["namespace", "landlock", "none"],
    }
}

/// Asks for an upgrade, and waits until so many processes have taken over since the start.
fn upgrade(guest: &Guest, times: usize) {
    guest.daemon.signal(Signal::SIGHUP).unwrap();
    guest.daemon.said_often("took over in", times).unwrap();
}

/// The program that the process which was started is now.
fn program(guest: &Guest) -> u64 {
    let pid = guest.daemon.first_pid();
    fs::metadata(format!("/proc/{pid}/exe")).unwrap().ino()
}

#[test]
fn a_guest_goes_on_under_the_new_program() {
    for mode in modes() {
        let installed = Installed::new();
        let launch = Launch::new(&installed.path).arg("--sandbox").arg(mode);
        let mut guest = Guest::on(launch.by_path());
        let unlinked = guest.file("unlinked", "before");
        let open_fid = guest.open("unlinked", open::RDWR);
        fs::remove_file(unlinked).unwrap();
        let path = guest.file("locked", "");
        let locked = guest.open("locked", open::RDWR);
        let whole = Lock::whole(lock::WRLCK);
        assert_eq!(guest.client.lock(locked, 0, &whole).unwrap(), lock::SUCCESS);
        let host = fs::File::options().write(true).open(path).unwrap();
        let is_locked = || {
            let mut flock = whole_flock();
            fcntl(&host, FcntlArg::F_OFD_GETLK(&mut flock)).unwrap();
            i32::from(flock.l_type) != libc::F_UNLCK
        };
        let qid = |guest: &mut Guest| {
            let root = guest.root;
            guest.client.getattr(root, getattr::ALL).unwrap().qid.path
        };
        let before = qid(&mut guest);
        for times in 1..4 {
            installed.replace_by_a_copy();
            let old = program(&guest);
            upgrade(&guest, times);
            assert_ne!(program(&guest), old, "{mode}");
            assert_eq!(
                program(&guest),
                fs::metadata(&installed.path).unwrap().ino()
            );
            assert!(is_locked(), "{mode}");
            assert_eq!(guest.client.read(open_fid, 0, 9).unwrap(), b"before");
            assert_eq!(qid(&mut guest), before);
        }
        // The new program outlives its server, too.
        guest.daemon.kill_server().unwrap();
        assert_eq!(guest.client.read(open_fid, 0, 9).unwrap(), b"before");
        guest.client.clunk(locked).unwrap();
        assert!(!is_locked());
        let descriptors = fs::read_dir(format!("/proc/{}/fd", guest.daemon.first_pid())).unwrap();
        let links = descriptors.filter_map(|link| fs::read_link(link.unwrap().path()).ok());
        let program = format!("{} (deleted)", installed.path.display());
        assert!(!links.into_iter().any(|link| link == Path::new(&program)));
        drop(guest.client);
        assert!(guest.daemon.terminate().unwrap().success(), "{mode}");
        assert!(!guest.daemon.socket().exists());
    }
}

fn whole_flock() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[test]
fn a_request_that_waits_is_handed_over() {
    let mut guest = Guest::new();
    let path = guest.file("file", "");
    let host = fs::File::options().write(true).open(&path).unwrap();
    let fid = guest.open("file", open::RDWR);
    let mut flock = whole_flock();
    fcntl(&host, FcntlArg::F_OFD_SETLK(&flock)).unwrap();
    let whole = Lock::whole(lock::WRLCK);
    let request = tlock(fid, lock::BLOCK, &whole);
    let tag = guest.client.submit(&request, &[]).unwrap();
    guest.client.kick().unwrap();
    for times in 1..4 {
        guest.client.getattr(guest.root, getattr::ALL).unwrap();
        upgrade(&guest, times);
    }
    flock.l_type = libc::F_UNLCK as i16;
    fcntl(&host, FcntlArg::F_OFD_SETLK(&flock)).unwrap();
    assert!(guest.client.wait(tag).unwrap().message().is_ok());
}

#[test]
fn a_connection_that_was_given_is_handed_over() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let launch = Launch::new(BINARY).connected(theirs.into());
    let mut daemon = launch.start().unwrap();
    fs::write(daemon.path("file"), "content").unwrap();
    let mut client = Client::new(FrontEnd::new(ours, Options::default()).unwrap());
    let root = client.mount(&Attach::default()).unwrap();
    let mut fids = Vec::new();
    for times in 1..4 {
        daemon.signal(Signal::SIGHUP).unwrap();
        daemon.said_often("took over in", times).unwrap();
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
fn a_program_that_does_not_start_is_not_taken() {
    let installed = Installed::new();
    let mut guest = Guest::on(Launch::new(&installed.path));
    let old = program(&guest);
    let server = guest.daemon.pid();
    for (script, why) in [
        ("echo it is broken >&2; exit 1", "it is broken"),
        ("kill -KILL $$", "signal: 9"),
    ] {
        installed.replace_by_script(script);
        guest.daemon.signal(Signal::SIGHUP).unwrap();
        let line = guest.daemon.said(why).unwrap();
        assert!(line.contains("no upgrade, this program goes on"), "{line}");
    }
    fs::remove_file(&installed.path).unwrap();
    guest.daemon.signal(Signal::SIGHUP).unwrap();
    guest.daemon.said("No such file").unwrap();
    assert_eq!((program(&guest), guest.daemon.pid()), (old, server));
    guest.client.getattr(guest.root, getattr::ALL).unwrap();
}

/// A script that does this instead of continuing.
fn instead(what: &str) -> String {
    format!("case $VHOST_USER_9P_UPGRADE in *sandbox=*) {what};; esac")
}

#[test]
fn a_program_that_cannot_continue_gives_the_guest_back() {
    for mode in modes() {
        let installed = Installed::new();
        let launch = Launch::new(&installed.path).arg("--sandbox").arg(mode);
        let mut guest = Guest::on(launch);
        guest.file("file", "content");
        let fid = guest.open("file", open::RDONLY);
        let old = program(&guest);
        // One that does not know the option.
        let other = installed.path.with_extension("other");
        let mut bytes = fs::read(BINARY).unwrap();
        for start in 0..bytes.len() - b"sandbox".len() {
            if bytes[start..].starts_with(b"sandbox") {
                bytes[start] = b'x';
            }
        }
        fs::write(&other, bytes).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
        installed.replace_by_script(&instead(&format!("exec {} \"$@\"", other.display())));
        upgrade(&guest, 1);
        guest.daemon.said("the one before goes on").unwrap();
        assert_eq!(program(&guest), old, "{mode}");
        assert_eq!(guest.client.read(fid, 0, 9).unwrap(), b"content");
        // And then one that can.
        installed.replace_by_a_copy();
        upgrade(&guest, 2);
        assert_eq!(
            program(&guest),
            fs::metadata(&installed.path).unwrap().ino()
        );
        assert_eq!(guest.client.read(fid, 0, 9).unwrap(), b"content");
    }
}

#[test]
fn a_state_that_no_program_can_read_disconnects_the_guest() {
    for mode in modes() {
        let installed = Installed::new();
        let launch = Launch::new(&installed.path).arg("--sandbox").arg(mode);
        let guest = Guest::on(launch);
        let mut daemon = guest.daemon;
        // The version is at byte 8 of a table's row 1, which is behind 64 bytes and row 0.
        installed.replace_by_script(&instead(&format!(
            "memory=${{VHOST_USER_9P_UPGRADE#*memory=}}; \
             printf '\\377\\377\\377\\377' | \
             dd bs=1 seek={} conv=notrunc of=/proc/self/fd/${{memory%%,*}} 2>&1; \
             exec {BINARY} \"$@\"",
            64 + 24 + 8
        )));
        daemon.signal(Signal::SIGHUP).unwrap();
        daemon.said("the one before goes on").unwrap();
        daemon.said("so disconnects the front-end").unwrap();
        drop(guest.client);
        let (mut client, root) = daemon.mount().unwrap();
        client.getattr(root, getattr::ALL).unwrap();
    }
}

#[test]
fn without_a_guest_the_next_one_is_served_by_the_new_program() {
    for mode in modes() {
        let installed = Installed::new();
        let launch = Launch::new(&installed.path).arg("--sandbox").arg(mode);
        let mut daemon = launch.start().unwrap();
        daemon.said("listening").unwrap();
        for times in 2..4 {
            daemon.signal(Signal::SIGHUP).unwrap();
            daemon.said_often("listening", times).unwrap();
        }
        let (mut client, root) = daemon.mount().unwrap();
        client.getattr(root, getattr::ALL).unwrap();
    }
}

/// What systemd does with the messages of a service: it keeps descriptors by their names.
struct Systemd {
    path: PathBuf,
    _directory: TempDir,
    store: Arc<Mutex<Vec<(String, OwnedFd)>>>,
    said: Arc<Mutex<String>>,
}

impl Systemd {
    fn new() -> Systemd {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let (store, said) = (Arc::default(), Arc::default());
        let (kept, heard) = (Arc::clone(&store), Arc::clone(&said));
        // Ends with the process.
        std::thread::spawn(move || {
            loop {
                Systemd::receive(&socket, &kept, &heard);
            }
        });
        Systemd {
            path,
            _directory: directory,
            store,
            said,
        }
    }

    fn receive(socket: &UnixDatagram, store: &Mutex<Vec<(String, OwnedFd)>>, said: &Mutex<String>) {
        let mut text = [0; 1000];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let mut iov = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags).unwrap();
        let mut fds = Vec::new();
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel has just made them for this process.
                fds.extend(
                    received
                        .iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }),
                );
            }
        }
        let length = message.bytes;
        let text = String::from_utf8(text[..length].to_vec()).unwrap();
        said.lock().unwrap().push_str(&text);
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
        let mut store = store.lock().unwrap();
        match name {
            Some(name) if text.contains("FDSTOREREMOVE=1") => {
                store.retain(|(kept, _)| kept != name);
            }
            Some(name) if text.contains("FDSTORE=1") => {
                store.extend(fds.drain(..).map(|fd| (name.to_owned(), fd)));
            }
            _ => {}
        }
    }

    fn launch(&self, mode: &str, limit: usize) -> Launch {
        let path = self.path.display();
        Launch::new(BINARY)
            .arg("--sandbox")
            .arg(mode)
            .prelude(&format!("export NOTIFY_SOCKET={path} FDSTORE={limit}"))
    }
}

#[test]
fn a_guest_outlives_a_restart_by_systemd() {
    for mode in modes() {
        let systemd = Systemd::new();
        let share = tempfile::tempdir().unwrap();
        let launch = systemd.launch(mode, 1000).share(share.path());
        let mut guest = Guest::on(launch.by_systemd());
        let path = guest.file("unlinked", "content");
        let fid = guest.open("unlinked", open::RDWR);
        fs::remove_file(path).unwrap();
        for _ in 0..2 {
            assert!(guest.daemon.terminate().unwrap().success(), "{mode}");
            // Everything was read before it ended.
            assert!(systemd.said.lock().unwrap().contains("READY=1"));
            let stored = std::mem::take(&mut *systemd.store.lock().unwrap());
            assert!(!stored.is_empty(), "{}", guest.daemon.stderr());
            let launch = systemd.launch(mode, 1000).share(share.path());
            let launch = launch.by_systemd_store(stored);
            let before = std::mem::replace(&mut guest.daemon, launch.start().unwrap());
            drop(before);
            assert_eq!(guest.client.read(fid, 0, 9).unwrap(), b"content", "{mode}");
        }
        // The next process takes over as ever.
        guest.daemon.kill_server().unwrap();
        assert_eq!(guest.client.read(fid, 0, 9).unwrap(), b"content");
        guest.client.clunk(fid).unwrap();
    }
}

/// As after an edit of the unit's options, and with a socket that systemd has made anew.
#[test]
fn other_options_begin_anew_with_the_socket_that_systemd_passes() {
    for same in [true, false] {
        let systemd = Systemd::new();
        let guest = Guest::on(systemd.launch("none", 1000).by_systemd());
        let (mut daemon, share) = (guest.daemon, tempfile::tempdir().unwrap());
        drop(guest.client);
        daemon.said("the front-end has disconnected").unwrap();
        assert!(daemon.terminate().unwrap().success());
        let path = share.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut passed = vec![("unit.socket".to_owned(), OwnedFd::from(listener))];
        passed.append(&mut systemd.store.lock().unwrap());
        let directory = match same {
            true => daemon.share().to_owned(),
            false => share.path().join("other"),
        };
        let launch = systemd.launch("none", 1000).share(&directory);
        let mut next = launch.by_systemd_store(passed).start().unwrap();
        fs::write(directory.join("file"), "content").unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        let mut client = Client::new(FrontEnd::new(stream, Options::default()).unwrap());
        let root = client.mount(&Attach::default()).unwrap();
        client.walk_path(root, "file").unwrap();
        assert_eq!(next.stderr().contains("the options have changed"), !same);
        drop(client);
        assert!(next.terminate().unwrap().success());
    }
}

#[test]
fn what_has_no_room_in_the_store_is_a_stop() {
    let systemd = Systemd::new();
    let guest = Guest::on(systemd.launch("none", 5));
    let mut daemon = guest.daemon;
    assert!(daemon.terminate().unwrap().success());
    daemon.said("more is open than systemd stores").unwrap();
    assert!(systemd.store.lock().unwrap().is_empty());
}

#[test]
fn a_stop_is_not_lost_in_an_upgrade() {
    for mode in modes() {
        let guest = Guest::on(Launch::new(BINARY).arg("--sandbox").arg(mode));
        let mut daemon = guest.daemon;
        daemon.signal(Signal::SIGHUP).unwrap();
        daemon.said("hands over").unwrap();
        assert!(daemon.terminate().unwrap().success(), "{mode}");
    }
}

#[test]
fn without_a_file_for_the_state_there_is_no_upgrade() {
    let mut guest = Guest::on(Launch::new(BINARY).prelude("ulimit -f 1000"));
    guest.daemon.signal(Signal::SIGHUP).unwrap();
    guest.daemon.said("the limit of the size of files").unwrap();
    guest.client.getattr(guest.root, getattr::ALL).unwrap();
    // Another process takes over all the same.
    guest.daemon.kill_server().unwrap();
    guest.client.getattr(guest.root, getattr::ALL).unwrap();
}

#[test]
fn without_another_process_there_is_no_upgrade() {
    let mut guest = Guest::on(Launch::new(BINARY).args(["--restart", "never"]));
    guest.daemon.signal(Signal::SIGHUP).unwrap();
    guest.daemon.said("it takes --restart crash").unwrap();
    guest.client.getattr(guest.root, getattr::ALL).unwrap();
}
