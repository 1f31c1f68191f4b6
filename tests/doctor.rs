//! `vhost-user-9p doctor`: what it finds, and that it disturbs nobody.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::BINARY;
use stub_guest::daemon::Launch;

/// Exit code and output.
fn doctor(args: &[&str]) -> (i32, String) {
    let output = Command::new(BINARY)
        .arg("doctor")
        .args(args)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{said}");
    (output.status.code().unwrap(), said)
}

/// A program that answers as QEMU does, with or without the device.
fn qemu(directory: &Path, device: &str) -> PathBuf {
    let program = directory.join(format!("qemu{device}"));
    let script = format!(
        "#!/bin/sh\ncase $1 in --version) echo 'QEMU emulator version 10.2.0' ;; \
         *) echo 'name \"{device}\", bus PCI' ;; esac\n"
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// The words of a QEMU that has all that it takes for a socket.
fn command_line(socket: &str) -> Vec<String> {
    let device = "vhost-user-test-device-pci,chardev=share,virtio-id=9,config_size=6";
    let words = [
        "-object",
        "memory-backend-memfd,id=mem,size=1G,share=on",
        "-numa",
        "node,memdev=mem",
        "-chardev",
        &format!("socket,id=share,path={socket}"),
        "-device",
        device,
    ];
    words.map(str::to_owned).to_vec()
}

#[test]
fn all_is_well_and_the_daemon_is_not_disturbed() {
    let directory = tempfile::tempdir().unwrap();
    let qemu = qemu(directory.path(), "vhost-user-test-device-pci");
    let mut daemon = Launch::new(BINARY).by_path().start().unwrap();
    daemon.said("listening").unwrap();
    let socket = daemon.socket().to_str().unwrap().to_owned();
    let words = command_line(&socket);
    let mut args = vec!["--shared-dir", daemon.share().to_str().unwrap()];
    args.extend(["--", qemu.to_str().unwrap()]);
    args.extend(words.iter().map(String::as_str));
    let (code, said) = doctor(&args);
    assert_eq!(code, 0, "{said}");
    assert!(!said.contains("BAD"), "{said}");
    for part in [
        "version 10.2.0, has the device",
        "the memory mem is shared",
        "right for the tag \"host\"",
        &format!("a daemon listens on {socket}"),
        "the daemon's sandbox is",
        "mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 host /mnt",
    ] {
        assert!(said.contains(part), "no {part:?}: {said}");
    }
    daemon.terminate().unwrap();
    assert!(
        !daemon.stderr().contains("connected"),
        "{}",
        daemon.stderr()
    );
}

#[test]
fn what_is_wrong_is_told_with_how_to_mend_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    drop(UnixListener::bind(path("stale")).unwrap());
    fs::write(path("file"), "").unwrap();
    let old = qemu(directory.path(), "vhost-user-fs-pci");
    for (args, says, mend) in [
        (
            &["--qemu", old.to_str().unwrap()][..],
            "has no device vhost-user-test-device-pci",
            "QEMU 10.2",
        ),
        (
            &["--socket", &path("missing")],
            "missing",
            "start the daemon",
        ),
        (
            &["--socket", &path("stale")],
            "nobody listens",
            "start the daemon",
        ),
        (
            &["--socket", &path("file")],
            "not a socket",
            "another --socket",
        ),
        (
            &["--shared-dir", &path("missing")],
            "missing",
            "--shared-dir",
        ),
        (&["--", "qemu", "-m", "1G"], "QEMU's own", "share=on"),
        (&["--pid", "4194305"], "4194305", "QEMU that runs"),
    ] {
        let (code, said) = doctor(args);
        assert_eq!(code, 1, "{said}");
        let lines: Vec<&str> = said.lines().collect();
        let found = lines.windows(2).any(|pair| {
            pair[0].starts_with("BAD") && pair[0].contains(says) && pair[1].contains(mend)
        });
        assert!(found, "{args:?}: {said}");
    }
}

#[test]
fn the_command_line_of_a_qemu_that_runs_is_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    let qemu = qemu(directory.path(), "vhost-user-test-device-pci");
    // A shell that waits for its input, with QEMU's words.
    let mut process = Command::new("sh")
        .args(["-c", "read line", "qemu"])
        .args(command_line("/run/nobody"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = process.id().to_string();
    let (_, said) = doctor(&[
        "--pid",
        &pid,
        "--qemu",
        qemu.to_str().unwrap(),
        "--tag=photos",
    ]);
    drop(process.stdin.take());
    process.wait().unwrap();
    assert!(said.contains("the memory mem is shared"), "{said}");
    assert!(
        said.contains("BAD   the device has config_size=6"),
        "{said}"
    );
}

#[test]
fn who_may_connect_is_told() {
    let nobody = |args: &[&str]| {
        let mut launch = Launch::new(BINARY).by_path();
        for arg in args {
            launch = launch.arg(arg);
        }
        let daemon = launch.start().unwrap();
        daemon.said("listening").unwrap();
        let directory = daemon.socket().parent().unwrap();
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        let socket = daemon.socket().to_str().unwrap();
        doctor(&["--socket", socket, "--qemu-user=nobody"])
    };
    let (code, said) = nobody(&[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("BAD   nobody may not connect"), "{said}");
    assert!(said.contains("--socket-group"), "{said}");
    if common::is_root() {
        let group = format!("--socket-group={}", group_of_nobody());
        let (code, said) = nobody(&[&group]);
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("good  nobody may connect"), "{said}");
    }
}

fn group_of_nobody() -> u32 {
    let user = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    user.gid.as_raw()
}
