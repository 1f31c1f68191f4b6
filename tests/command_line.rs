//! The command: its options, its answers to mistakes, its end.

mod common;

use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{BINARY, Guest, copy_binary, is_root, mode_of};
use nix::sys::signal::Signal;
use protocol::{Tmessage, Tread, open};
use stub_guest::daemon::{Launch, wait_for_exit};
use stub_guest::{Attach, Client, FrontEnd, Options};

/// Exit code, standard output, standard error.
fn run(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(BINARY);
    command
        .args(args)
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ended = wait_for_exit(&child, Duration::from_secs(10));
    if ended.is_err() {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.unwrap().read_to_string(&mut out).unwrap();
    child.stderr.unwrap().read_to_string(&mut err).unwrap();
    ended.unwrap_or_else(|error| panic!("{args:?}: {error}\n{err}"));
    (status.code().unwrap_or(-1), out, err)
}

/// Asserts that the arguments are answered with one line that says these things, and this code.
#[track_caller]
fn mistake(args: &[&str], code: i32, says: &[&str]) {
    let (found, out, err) = run(args);
    assert_eq!(found, code, "{args:?}: {err}");
    assert_eq!(out, "", "{args:?}");
    assert!(
        err.ends_with('\n') && err.lines().count() == 1,
        "{args:?}: not one line:\n{err}"
    );
    assert!(err.starts_with("vhost-user-9p: "), "{args:?}: {err}");
    for part in says {
        assert!(
            err.contains(part),
            "{args:?}: {err:?} does not say {part:?}"
        );
    }
}

#[test]
fn mistakes_in_usage_are_one_line_and_code_2() {
    let long = "t".repeat(256);
    for (args, says) in [
        (&[][..], &["--shared-dir"][..]),
        (&["--shared-dir", "/tmp"], &["--socket", "--fd"]),
        (&["--socket", "/s"], &["--shared-dir"]),
        (&["--socket", "/s", "--shared-dir"], &["--shared-dir"]),
        (
            &["--socket", "/s", "--fd", "3", "--shared-dir", "/tmp"],
            &["--socket", "--fd"],
        ),
        (
            &["--socket", "/s", "--shared-dir", "/tmp", "--tag", ""],
            &["tag"],
        ),
        (
            &["--socket", "/s", "--shared-dir", "/tmp", "--tag", &long],
            &["tag", "254"],
        ),
        (
            &["--socket", "/s", "--shared-dir", "/tmp", "--read-only"],
            &["--read-only", "--readonly"],
        ),
        (
            &["--socket", "/s", "--shared-dir", "/tmp", "extra"],
            &["extra"],
        ),
        (
            &["--socket", "/s", "--shared-dir", "/tmp", "--threads", "0"],
            &["--threads"],
        ),
        (
            &[
                "--socket",
                "/s",
                "--shared-dir",
                "/tmp",
                "--threads",
                "many",
            ],
            &["--threads", "many"],
        ),
        (
            &[
                "--socket",
                "/s",
                "--shared-dir",
                "/tmp",
                "--rlimit-nofile",
                "x",
            ],
            &["--rlimit-nofile"],
        ),
        (
            &[
                "--socket",
                "/s",
                "--shared-dir",
                "/tmp",
                "--log-level",
                "loud",
            ],
            &["--log-level", "loud"],
        ),
        (&["--fd=-1", "--shared-dir", "/tmp"], &["--fd", "-1"]),
        (&["--socket", "/s", "--shared-dir", ""], &["--shared-dir"]),
        (
            &["--fd", "three", "--shared-dir", "/tmp"],
            &["--fd", "three"],
        ),
    ] {
        mistake(args, 2, says);
    }
}

#[test]
fn a_directory_that_cannot_be_shared_is_one_line_and_code_1() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let socket = path("socket");
    mistake(
        &["--socket", &socket, "--shared-dir", &path("missing")],
        1,
        &["missing", "--shared-dir"],
    );
    fs::write(path("file"), "x").unwrap();
    mistake(
        &["--socket", &socket, "--shared-dir", &path("file")],
        1,
        &["file", "--shared-dir"],
    );
    if !is_root() {
        fs::create_dir(path("closed")).unwrap();
        fs::set_permissions(path("closed"), fs::Permissions::from_mode(0o000)).unwrap();
        mistake(
            &["--socket", &socket, "--shared-dir", &path("closed")],
            1,
            &["closed"],
        );
    }
    assert!(!Path::new(&socket).exists(), "a socket was left behind");
}

#[test]
fn a_socket_that_cannot_be_had_is_one_line_and_code_1() {
    let directory = tempfile::tempdir().unwrap();
    let share = directory.path().to_str().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    // In use by a live process; its socket stays.
    let live = path("live");
    let listener = UnixListener::bind(&live).unwrap();
    mistake(
        &["--socket", &live, "--shared-dir", share],
        1,
        &["live", "in use", "--socket"],
    );
    assert!(Path::new(&live).exists());
    drop(listener);
    // Something that is no socket stays, too.
    fs::write(path("file"), "precious").unwrap();
    mistake(
        &["--socket", &path("file"), "--shared-dir", share],
        1,
        &["file", "not a socket"],
    );
    assert_eq!(fs::read(path("file")).unwrap(), b"precious");
    mistake(
        &["--socket", &path("missing/socket"), "--shared-dir", share],
        1,
        &["missing/socket", "--socket"],
    );
    mistake(
        &["--socket", &path(&"x".repeat(200)), "--shared-dir", share],
        1,
        &["at most 107 bytes", "--socket"],
    );
    mistake(&["--fd", "777", "--shared-dir", share], 1, &["777", "--fd"]);
    // Standard input, which is no socket.
    mistake(&["--fd", "0", "--shared-dir", share], 1, &["0", "--fd"]);
}

#[test]
fn a_group_that_is_not_there_is_one_line_and_code_1() {
    let directory = tempfile::tempdir().unwrap();
    let share = directory.path().to_str().unwrap();
    let socket = directory.path().join("socket");
    for group in ["no such group", "-1", "4294967295", "4294967296", ""] {
        let group = format!("--socket-group={group}");
        let args = ["--socket", socket.to_str().unwrap(), &group, "--shared-dir"];
        mistake(&[&args[..], &[share]].concat(), 1, &["--socket-group"]);
        assert!(!socket.exists(), "a socket was left behind");
    }
}

/// What becomes of a connection that another user makes, who is in this group.
fn connect_as_other(socket: &Path, group: u32) -> std::io::Result<()> {
    let path = socket.to_owned();
    let mut command = Command::new("true");
    command.uid(65_534).gid(group);
    // SAFETY: between fork and exec, as that user already, the closure connects and closes.
    unsafe { command.pre_exec(move || UnixStream::connect(&path).map(drop)) };
    command.spawn().map(|mut child| drop(child.wait()))
}

/// A daemon that makes its socket, with this umask, where every user may look for it.
fn listening(umask: &str, arg: Option<&str>) -> (stub_guest::Daemon, tempfile::TempDir) {
    let open_to_all = tempfile::tempdir().unwrap();
    fs::set_permissions(open_to_all.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let socket = open_to_all.path().join("socket");
    let mut launch = Launch::new(BINARY)
        .by_path_at("--socket", &socket)
        .prelude(&format!("umask {umask}"));
    if let Some(arg) = arg {
        launch = launch.arg(arg);
    }
    let mut daemon = launch.start().unwrap();
    // The socket is ready now: its mode is final.
    drop(daemon.mount().unwrap());
    (daemon, open_to_all)
}

#[test]
fn the_socket_is_its_user_s_alone() {
    for umask in ["000", "022", "077", "777"] {
        let (daemon, _directory) = listening(umask, None);
        let socket = daemon.socket();
        assert_eq!(mode_of(socket), 0o600, "umask {umask}");
        if is_root() {
            let other = connect_as_other(socket, 65_534).unwrap_err();
            assert_eq!(other.kind(), std::io::ErrorKind::PermissionDenied);
            // It was the socket's mode that kept them out.
            fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).unwrap();
            connect_as_other(socket, 65_534).unwrap();
        }
    }
}

#[test]
fn a_group_may_connect_if_it_is_named() {
    let own = nix::unistd::getegid();
    let name = nix::unistd::Group::from_gid(own).unwrap().unwrap().name;
    let (daemon, _directory) = listening("077", Some(&format!("--socket-group={name}")));
    let metadata = fs::symlink_metadata(daemon.socket()).unwrap();
    assert_eq!(
        (mode_of(daemon.socket()), metadata.gid()),
        (0o660, own.as_raw())
    );
    if is_root() {
        let (daemon, _directory) = listening("000", Some("--socket-group=65533"));
        let metadata = fs::symlink_metadata(daemon.socket()).unwrap();
        assert_eq!((mode_of(daemon.socket()), metadata.gid()), (0o660, 65_533));
        connect_as_other(daemon.socket(), 65_533).unwrap();
        let other = connect_as_other(daemon.socket(), 65_532).unwrap_err();
        assert_eq!(other.kind(), std::io::ErrorKind::PermissionDenied);
    }
}

#[test]
fn a_limit_that_is_not_allowed_is_one_line_and_code_1() {
    let directory = tempfile::tempdir().unwrap();
    let share = directory.path().to_str().unwrap();
    let socket = directory.path().join("socket");
    let socket = socket.to_str().unwrap();
    // Above fs.nr_open not even root may go.
    let limit = u64::MAX.to_string();
    let args = [
        "--socket",
        socket,
        "--shared-dir",
        share,
        "--rlimit-nofile",
        &limit,
    ];
    mistake(&args, 1, &["--rlimit-nofile"]);
}

#[test]
fn capabilities_that_cannot_be_kept_are_one_line_and_code_1() {
    let directory = tempfile::tempdir().unwrap();
    let share = directory.path().to_str().unwrap();
    let socket = directory.path().join("socket");
    let args = ["--socket", socket.to_str().unwrap(), "--shared-dir", share];
    let args = [&args[..], &["--modcaps", "+sys_admin"]].concat();
    if !nix::unistd::geteuid().is_root() {
        mistake(&args, 1, &["--modcaps", "root"]);
        return;
    }
    for (user, says) in [
        ("--reuid=65534", "for root"),
        ("--bounding-set=-sys_admin", "CAP_SYS_ADMIN"),
    ] {
        let (code, said) = run_as(user, &args);
        assert_eq!(code, Some(1), "{said}");
        let mistakes: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("--modcaps"))
            .collect();
        assert_eq!(mistakes.len(), 1, "{said}");
        assert!(mistakes[0].contains(says), "{said}");
        assert!(!socket.exists(), "a socket was left behind");
    }
}

/// The exit code and what was said, in the end, of a daemon that setpriv(1) has started so. Call it
/// as root.
fn run_as(user: &str, args: &[&str]) -> (Option<i32>, String) {
    // Where any user can run it.
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("daemon");
    copy_binary(&program);
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new("setpriv")
        .args(["--clear-groups", user, "--"])
        .arg(&program)
        .args(args)
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn ids_that_a_user_cannot_have_are_refused_or_told_of() {
    if !is_root() {
        return;
    }
    // A socket that is connected and closed at its other end: the daemon serves it, and exits.
    let told = |option: &str, value: &str| {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        let inherited = nix::unistd::dup(&theirs).unwrap();
        let fd = inherited.as_raw_fd().to_string();
        let share = directory.path().to_str().unwrap();
        let args = ["--fd", &fd, "--shared-dir", share, option, value];
        run_as("--reuid=65534", &args)
    };
    let (code, said) = told("--permissions", "host");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("--permissions host is for root"), "{said}");
    for (option, value, warned) in [
        ("--translate-uid", "map:0:100000:65536", true),
        ("--translate-uid", "squash-guest:0:65534:65536", false),
        ("--translate-gid", "squash-guest:0:65534:65536", true),
        ("--translate-gid", "forbid-guest:0:1", false),
    ] {
        let (code, said) = told(option, value);
        assert_eq!(code, Some(0), "{said}");
        let line = format!("{option} names ids of the host that this daemon cannot give");
        assert_eq!(said.contains(&line), warned, "{value}: {said}");
    }
}

#[test]
fn print_capabilities_is_json() {
    // Alone and beside anything else, as management software calls it.
    for args in [
        &["--print-capabilities"][..],
        &["--print-capabilities", "--shared-dir", "/missing"],
    ] {
        let (code, out, err) = run(args);
        assert_eq!((code, err.as_str()), (0, ""));
        let compact: String = out.chars().filter(|c| !c.is_whitespace()).collect();
        assert_eq!(compact, r#"{"type":"9p","features":[]}"#);
    }
}

#[test]
fn version_and_help_go_to_standard_output() {
    let (code, out, err) = run(&["--version"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        out.trim(),
        concat!("vhost-user-9p ", env!("CARGO_PKG_VERSION"))
    );
    let (code, out, err) = run(&["--help"]);
    assert_eq!((code, err.as_str()), (0, ""));
    for option in [
        "--socket",
        "--socket-path",
        "--fd",
        "--shared-dir",
        "--tag",
        "--readonly",
        "--threads",
        "--rlimit-nofile",
        "--log-level",
        "--print-capabilities",
        "--once",
    ] {
        assert!(out.contains(option), "--help does not tell of {option}");
    }
}

#[test]
fn output_that_cannot_be_written_is_one_line_and_code_1() {
    let full = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    for arg in ["--help", "--version", "--print-capabilities"] {
        let mut command = Command::new(BINARY);
        let output = command.arg(arg).stdout(full()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.starts_with("vhost-user-9p: cannot write"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        // A reader that has seen enough needs no explanation.
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        let output = command.stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    }
    let status = Command::new(BINARY).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn the_guest_s_mount_line_is_told_at_the_start() {
    for (tag, line, size) in [
        ("host", "msize=512000 host /mnt", 6),
        ("a b's", r"msize=512000 -- 'a b'\''s' /mnt", 7),
    ] {
        let daemon = Launch::new(BINARY).arg("--tag").arg(tag).start().unwrap();
        let said = daemon
            .said("the guest mounts it with: mount -t 9p")
            .unwrap();
        assert!(said.contains(line), "{said}");
        assert!(said.ends_with(&format!("config_size={size}")), "{said}");
    }
}

#[test]
fn a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(UnixStream::connect(&socket).is_err());
    let mut daemon = Launch::new(BINARY)
        .by_path_at("--socket", &socket)
        .start()
        .unwrap();
    daemon.mount().unwrap();
    assert!(daemon.terminate().unwrap().success());
    assert!(!socket.exists());
}

#[test]
fn sigterm_and_sigint_remove_the_socket() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for connected in [false, true] {
            let mut daemon = Launch::new(BINARY).by_path().start().unwrap();
            let stream = daemon.stream().unwrap();
            let client = connected.then(|| {
                let mut client = Client::new(FrontEnd::new(stream, Options::default()).unwrap());
                client.mount(&Attach::default()).unwrap();
                client
            });
            daemon.signal(signal).unwrap();
            let status = daemon.wait().unwrap();
            assert_eq!(status.code(), Some(0), "{signal}: {status}");
            assert!(
                !daemon.socket().exists(),
                "{signal}: the socket is still there"
            );
            drop(client);
        }
    }
}

#[test]
fn a_signal_lets_requests_end() {
    let mut guest = Guest::on(Launch::new(BINARY).by_path());
    let content = common::pattern(2_000_000);
    guest.file("in", &content);
    let (input, output) = (guest.open("in", open::RDONLY), {
        guest.file("out", "");
        guest.open("out", open::RDWR)
    });
    let data = &content[..400_000];
    let mut tags = Vec::new();
    for n in 0..8u64 {
        let read = Tmessage::Read(Tread {
            fid: input,
            offset: 0,
            count: 400_000,
        });
        tags.push(guest.client.submit(&read, &[]).unwrap());
        let write = stub_guest::client::twrite(output, n * 400_000, data);
        tags.push(guest.client.submit(&write, data).unwrap());
    }
    guest.client.kick().unwrap();
    // The first reply proves that the requests have been taken.
    guest.client.wait(tags.remove(0)).unwrap();
    assert_eq!(guest.daemon.terminate().unwrap().code(), Some(0));
    // What was taken is answered whole, and the rest not at all.
    for tag in tags {
        if let Ok(true) = guest.client.is_done(tag) {
            guest.client.wait(tag).unwrap().message().unwrap();
        }
    }
}

#[test]
fn a_socket_of_another_daemon_is_not_removed() {
    let mut daemon = Launch::new(BINARY).by_path().start().unwrap();
    drop(daemon.stream().unwrap());
    fs::remove_file(daemon.socket()).unwrap();
    let _successor = UnixListener::bind(daemon.socket()).unwrap();
    assert!(daemon.terminate().unwrap().success());
    assert!(daemon.socket().exists());
}

#[test]
fn the_alias_of_socket_works() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("elsewhere");
    let mut daemon = Launch::new(BINARY)
        .by_path_at("--socket-path", &socket)
        .start()
        .unwrap();
    daemon.mount().unwrap();
}

#[test]
fn once_ends_with_the_first_front_end() {
    for launch in [Launch::new(BINARY).by_path(), Launch::new(BINARY)] {
        let mut daemon = launch.arg("--once").start().unwrap();
        let (mut client, root) = daemon.mount().unwrap();
        client.write_file(root, "file", b"content").unwrap();
        drop(client);
        assert_eq!(daemon.wait().unwrap().code(), Some(0));
        assert_eq!(fs::read(daemon.path("file")).unwrap(), b"content");
    }
}

#[test]
fn a_socket_that_listens_is_served_again_and_again() {
    let mut daemon = Launch::new(BINARY).start().unwrap();
    for _ in 0..3 {
        daemon.mount().unwrap();
    }
    assert!(daemon.terminate().unwrap().success());
    assert!(
        daemon.socket().exists(),
        "the socket was not the daemon's to remove"
    );
}

#[test]
fn a_socket_passed_by_systemd_is_served() {
    let mut daemon = Launch::new(BINARY).by_systemd().start().unwrap();
    daemon.mount().unwrap();
    daemon.mount().unwrap();
}

#[test]
fn a_socket_passed_by_systemd_that_is_not_served_is_told_of() {
    let told = |prelude: &str| {
        let mut guest = Guest::on(Launch::new(BINARY).by_path().prelude(prelude));
        guest.client.read_dir(guest.root, "").unwrap();
        guest.daemon.stderr().contains("(LISTEN_FDS) is not served")
    };
    assert!(told("export LISTEN_PID=$$ LISTEN_FDS=1"));
    // Those of another process.
    assert!(!told("export LISTEN_PID=1 LISTEN_FDS=1"));
}

#[test]
fn a_connected_socket_is_served_until_its_end() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut daemon = Launch::new(BINARY)
        .connected(OwnedFd::from(theirs))
        .start()
        .unwrap();
    let mut client = Client::new(FrontEnd::new(ours, Options::default()).unwrap());
    client.mount(&Attach::default()).unwrap();
    drop(client);
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
}

#[test]
fn a_share_that_nobody_can_change_is_told_of() {
    if !is_root() {
        return;
    }
    // As in a systemd unit to which ReadWritePaths or BindPaths were not given.
    let readonly = "exec unshare -m sh -c 'mount --bind \"$2\" \"$2\" && \
        mount -o remount,bind,ro \"$2\" && exec \"$0\" \"$@\"' \"$0\" \"$@\"";
    for (args, told) in [(&[][..], true), (&["--readonly"], false)] {
        let launch = Launch::new(BINARY).prelude(readonly);
        let mut guest = Guest::on(args.iter().fold(launch, |launch, arg| launch.arg(arg)));
        let root = guest.root;
        for _ in 0..3 {
            assert!(guest.client.write_file(root, "file", b"content").is_err());
        }
        let said = guest.daemon.stderr();
        assert_eq!(said.contains("is mounted read-only here"), told, "{said}");
        // Of the refusals one is told of, with the reason.
        assert_eq!(said.matches("the guest tried to change").count(), 1);
        assert_eq!(said.contains("is served with --readonly"), !told, "{said}");
    }
    let guest = Guest::new();
    assert!(!guest.daemon.stderr().contains("read-only"));
}

#[test]
fn the_journal_gets_priorities() {
    let is_log = "export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2)";
    let mut daemon = Launch::new(BINARY).prelude(is_log).start().unwrap();
    daemon.client().unwrap().version(8192, "9P2000.u").unwrap();
    assert!(
        daemon
            .said("the guest asks for")
            .unwrap()
            .starts_with("<4>the")
    );
    assert!(daemon.said("listening").unwrap().starts_with("<6>"));
    daemon.terminate().unwrap();
    // And what ends it; the stream of another program, as of one that has started this one, is not.
    for (stream, start) in [
        (is_log, "<3>"),
        ("export JOURNAL_STREAM=1:1", "vhost-user-9p: "),
    ] {
        let launch = Launch::new(BINARY).prelude(stream).arg("--fmode=600");
        let mut daemon = launch.start().unwrap();
        assert_eq!(daemon.wait().unwrap().code(), Some(2));
        assert!(daemon.stderr().starts_with(start), "{}", daemon.stderr());
    }
}

#[test]
fn debug_names_the_request_that_fails_and_its_file() {
    let mut guest = Guest::on(Launch::new(BINARY).arg("--log-level=debug"));
    guest.dir("directory");
    let directory = guest.walk("directory");
    assert!(guest.client.walk(directory, 77, &["missing"]).is_err());
    let said = guest.daemon.said("ENOENT").unwrap();
    for part in [
        &format!("Twalk {{ fid: {directory}, newfid: 77, names: [\"missing\"] }}"),
        "directory\": ENOENT",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn log_level_off_is_silence() {
    let mut guest = Guest::on(Launch::new(BINARY).arg("--log-level").arg("off"));
    guest.client.read_dir(guest.root, "").unwrap();
    guest.daemon.terminate().unwrap();
    assert_eq!(guest.daemon.stderr(), "");
    let mut guest = Guest::on(Launch::new(BINARY).arg("--log-level").arg("trace"));
    guest.client.read_dir(guest.root, "").unwrap();
    guest.daemon.terminate().unwrap();
    assert!(
        guest.daemon.stderr().contains("Readdir"),
        "{}",
        guest.daemon.stderr()
    );
}

#[test]
fn the_limit_of_descriptors_is_set() {
    let guest = Guest::on(Launch::new(BINARY).arg("--rlimit-nofile").arg("500"));
    let limits = fs::read_to_string(format!("/proc/{}/limits", guest.daemon.pid())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    assert_eq!(line.split_whitespace().nth(3), Some("500"), "{line}");
}

#[test]
fn the_daemon_s_umask_does_not_matter() {
    // The mode of a created file is the guest's word (io.rs); here the daemon has a strict umask.
    let mut guest = Guest::on(Launch::new(BINARY).prelude("umask 077"));
    let fid = guest.walk("");
    guest
        .client
        .lcreate(fid, "file", open::RDWR, 0o666, common::NO_ID)
        .unwrap();
    assert_eq!(common::mode_of(&guest.path("file")), 0o666);
}

/// The manual page names options of ours beside others', and each of them has to exist.
#[test]
fn the_manual_page_is_made_from_the_options() {
    let example = Path::new(BINARY).with_file_name("examples/manual");
    let directory = tempfile::tempdir().unwrap();
    let made = Command::new(&example).arg(directory.path()).output();
    let made = made.unwrap_or_else(|error| panic!("{}: {error}", example.display()));
    assert!(made.status.success(), "{made:?}");
    let page = fs::read_to_string(directory.path().join("vhost-user-9p.1")).unwrap();
    assert!(page.contains("migration\\-mode"), "{page}");
}
