//! What the daemon can reach from within its sandbox.
//!
//! Each probe runs in a process of its own, on a worker of the daemon's pool, which is started after
//! the sandbox was entered, or on the loop's thread: this program starts itself. Without a sandbox every
//! probe has to succeed, or it would prove nothing.

use std::cell::Cell;
use std::ffi::CString;
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::rc::Rc;

use clap::ValueEnum;
use nix::sys::signal::SigSet;
use nix::sys::socket::{MsgFlags, send};
use vhost_user_9p::export::{FileHandles, open_share};
use vhost_user_9p::sandbox::capabilities::{self, Rights};
use vhost_user_9p::sandbox::seccomp::{self, Filter, Seccomp};
use vhost_user_9p::sandbox::{self, End, Entry, Role, Sandbox};

/// What has to be possible everywhere: a fault of the program is caught, and told with its place.
const FAULT: Probe = ("a fault that is caught", |_| {
    std::panic::catch_unwind(|| panic!("a fault")).is_err()
});

/// Exit codes of a probe.
const REACHED: u8 = 10;
const OUT_OF_REACH: u8 = 11;
const NO_SANDBOX: u8 = 12;

/// A name and an attempt to reach something; true if that succeeded.
type Probe = (&'static str, fn(&Target) -> bool);

/// What the probes aim at, outside of the share.
struct Target {
    /// A file that any user may read.
    file: String,
    /// The process that waits outside.
    process: i32,
    /// As good as a connection to the front-end.
    front_end: (UnixStream, UnixStream),
    /// The share, as it is found in the sandbox.
    share: Option<OwnedFd>,
    /// The top directory of the file's file system, and the way from there to the file.
    top: Option<(Handle, CString)>,
}

/// `struct file_handle`, with room for any.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u8; 128],
}

impl Handle {
    /// None where there are no handles.
    fn of(path: &Path) -> Option<Handle> {
        let mut handle = Handle {
            bytes: 128,
            kind: 0,
            handle: [0; 128],
        };
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        let mut mount = 0;
        // SAFETY: the path ends with a NUL, the handle has the room that it says it has, and the
        // mount's number is an int.
        let result = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                libc::AT_FDCWD,
                path.as_ptr(),
                &raw mut handle,
                &raw mut mount as *mut libc::c_int,
                0,
            )
        };
        (result == 0).then_some(handle)
    }
}

/// What an attacker can guess: the number of a file system's top directory is always the same. Here it
/// is asked for, to serve for all file systems.
fn top_of(file: &Path) -> Option<(Handle, CString)> {
    let device = fs::metadata(file).unwrap().dev();
    let same = |path: &&Path| fs::metadata(path).is_ok_and(|other| other.dev() == device);
    let top = file.ancestors().take_while(same).last().unwrap();
    let below = file.strip_prefix(top).unwrap();
    let below = CString::new(below.as_os_str().as_bytes()).unwrap();
    Some((Handle::of(top)?, below))
}

/// The loop sends them, a worker has no business to.
const MESSAGES: &str = "messages to the front-end";
const UPWARDS: &str = "a file by the way up from the working directory";

/// The way around every root directory and every mount, for who has the right to it.
const HANDLE: &str = "a file by its file system's top, which has a handle";

/// Its first step, which has no effect yet. It takes CAP_SYS_ADMIN.
const MOUNT: &str = "a file system to be mounted";

/// Where the sandbox mounts the share itself. Only root can make one.
const DEVICE: &str = "a device node made in the share";

const PROBES: &[Probe] = &[
    ("a file by its path", |target| {
        fs::read(&target.file).is_ok()
    }),
    (
        "a file by the way up from the working directory",
        |target| fs::read(format!("{}{}", "../".repeat(30), target.file)).is_ok(),
    ),
    (HANDLE, |target| {
        let Some((top, below)) = &target.top else {
            return false;
        };
        let share = target.share.as_ref().unwrap().as_raw_fd();
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        let mut byte = 0u8;
        // SAFETY: the strings end with a NUL, the handle holds as many bytes as it says, and one byte is
        // read into one; descriptors that are opened stay open until the end.
        unsafe {
            let mount = libc::openat(share, c".".as_ptr(), flags | libc::O_DIRECTORY);
            let handle = std::ptr::from_ref(top);
            let top = libc::syscall(libc::SYS_open_by_handle_at, mount, handle, flags);
            let file = libc::openat(top as i32, below.as_ptr(), flags);
            libc::read(file, (&raw mut byte).cast(), 1) == 1
        }
    }),
    ("the list of users", |_| fs::read("/etc/passwd").is_ok()),
    ("other processes in /proc", |target| {
        fs::read(format!("/proc/{}/status", target.process)).is_ok()
    }),
    ("the network", |_| {
        // SAFETY: a system call on plain numbers.
        let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
        socket >= 0 && TcpListener::bind("127.0.0.1:0").is_ok()
    }),
    ("another program", |_| {
        Command::new("/bin/true").status().is_ok()
    }),
    ("another process", |_| {
        // SAFETY: the child does nothing but end.
        unsafe {
            match libc::fork() {
                0 => libc::_exit(0),
                child => child > 0,
            }
        }
    }),
    (MESSAGES, |target| {
        send(target.front_end.0.as_raw_fd(), b"?", MsgFlags::empty()).is_ok()
    }),
    ("signals to others", |target| {
        // SAFETY: signal 0 is only asked about.
        unsafe { libc::kill(target.process, 0) == 0 }
    }),
    ("memory of others", |target| {
        let nothing = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: takes two numbers for this request, and does nothing to the target.
        unsafe { libc::ptrace(libc::PTRACE_SEIZE, target.process, nothing, nothing) == 0 }
    }),
    ("memory to be executed", |_| {
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: new memory, which nobody uses.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
        memory != libc::MAP_FAILED
    }),
    (DEVICE, |target| {
        let share = target.share.as_ref().unwrap().as_raw_fd();
        let (kind, null) = (libc::S_IFCHR | 0o666, libc::makedev(1, 3));
        // SAFETY: both strings end with a NUL; a descriptor that is opened stays open until the end.
        unsafe {
            libc::mknodat(share, c"device".as_ptr(), kind, null) == 0
                && libc::openat(share, c"device".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) >= 0
        }
    }),
    (MOUNT, |_| {
        // SAFETY: the string ends with a NUL; a descriptor that is made stays open until the end.
        unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0) >= 0 }
    }),
    ("a new namespace", |_| {
        // SAFETY: a system call on plain numbers.
        unsafe { libc::unshare(libc::CLONE_NEWUTS) == 0 || libc::unshare(libc::CLONE_NEWUSER) == 0 }
    }),
    ("more rights by a set-id program", |_| {
        // SAFETY: asks one thing about this thread.
        unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0 }
    }),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    match &words[1..] {
        [command, words @ ..] if command == "--probe" => {
            let [
                mode,
                filter,
                handles,
                modcaps,
                thread,
                probe,
                share,
                file,
                process,
            ] = words
            else {
                panic!("{words:?}")
            };
            let target = Target {
                file: file.clone(),
                process: process.parse().unwrap(),
                front_end: UnixStream::pair().unwrap(),
                share: None,
                top: top_of(file.as_ref()),
            };
            let attempt = Attempt {
                mode,
                filter,
                handles,
                modcaps,
                thread,
                probe,
                user: None,
            };
            ExitCode::from(enter_and_probe(attempt, share.as_ref(), target))
        }
        [list, ..] if list == "--list" => ExitCode::SUCCESS,
        _ => {
            run_all();
            ExitCode::SUCCESS
        }
    }
}

/// Takes away what is given up anyway.
const USUAL: &str = "-sys_admin";

/// What is tried, and how.
#[derive(Clone, Copy, Debug)]
struct Attempt<'a> {
    mode: &'a str,
    filter: &'a str,
    /// Whether file handles were asked for.
    handles: &'a str,
    /// Which rights are kept or not besides.
    modcaps: &'a str,
    /// Who tries: "worker" or "loop".
    thread: &'a str,
    probe: &'a str,
    user: Option<u32>,
}

fn enter_and_probe(attempt: Attempt<'_>, share: &Path, mut target: Target) -> u8 {
    let mode = Sandbox::from_str(attempt.mode, false).unwrap();
    let handles = FileHandles::from_str(attempt.handles, false).unwrap();
    let filter = Filter {
        policy: Seccomp::from_str(attempt.filter, false).unwrap(),
        file_handles: handles != FileHandles::Never,
    };
    let entry = Entry {
        sandbox: Some(mode),
        handles,
        supervised: true,
    };
    let wait = |child| match sandbox::wait(child, SigSet::empty(), |_| true).unwrap() {
        End::Exited(status) => status as u8,
        End::Killed(signal) => 128 + signal as u8,
    };
    match sandbox::enter(entry, open_share(share).unwrap()) {
        Ok(Role::Server(inside)) => target.share = Some(inside.share),
        Ok(Role::Parent(child)) => return wait(child),
        // Its descriptors are the server's, which has closed them.
        Ok(Role::Supervisor(child, _)) => std::process::exit(wait(child).into()),
        Ok(other) => panic!("{other:?}"),
        Err(error) => {
            eprintln!("{error}");
            return NO_SANDBOX;
        }
    }
    // Without a sandbox everything is to be reached, or a probe would prove nothing.
    if mode != Sandbox::None {
        capabilities::reduce(Rights {
            sandboxed: true,
            handles,
            changes: &attempt.modcaps.parse().unwrap(),
        })
        .unwrap();
    }
    let workers = Rc::new(seccomp::workers(filter, 1).unwrap());
    seccomp::install(filter).unwrap();
    let mut probes = PROBES.iter().chain([&FAULT]);
    let (_, reach) = probes.find(|(name, _)| *name == attempt.probe).unwrap();
    if attempt.thread == "loop" {
        return if reach(&target) {
            REACHED
        } else {
            OUT_OF_REACH
        };
    }
    let reached = Rc::new(Cell::new(false));
    let result = reached.clone();
    let pool = workers.clone();
    coroutine::spawn(move || result.set(pool.offload(|| reach(&target)))).unwrap();
    workers.wait_completed();
    if reached.get() { REACHED } else { OUT_OF_REACH }
}

/// What became of a probe: an exit code, or None if it was killed for what it tried.
fn run(mode: &str, filter: &str, probe: &str, user: Option<u32>) -> Option<u8> {
    Attempt {
        mode,
        filter,
        handles: "never",
        modcaps: USUAL,
        thread: "worker",
        probe,
        user,
    }
    .run()
}

impl Attempt<'_> {
    fn run(self) -> Option<u8> {
        let (probe, user) = (self.probe, self.user);
        let share = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::write(outside.path(), "content").unwrap();
        let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(share.path(), open_to_all).unwrap();
        let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(outside.path(), open_to_all).unwrap();
        let mut sleeper = {
            let mut command = Command::new("cat");
            command.stdin(Stdio::piped()).stdout(Stdio::null());
            as_user(&mut command, user);
            command.spawn().unwrap()
        };
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .env("RUST_BACKTRACE", "full")
            .args([
                "--probe",
                self.mode,
                self.filter,
                self.handles,
                self.modcaps,
                self.thread,
                probe,
            ])
            .arg(share.path())
            .arg(outside.path())
            .arg(sleeper.id().to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        as_user(&mut command, user);
        let mut child = command.spawn().unwrap();
        let status = child.wait().unwrap();
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        drop(sleeper.stdin.take());
        sleeper.wait().unwrap();
        let killed = 128 + libc::SIGSYS;
        match (status.code(), status.signal()) {
            (Some(code), _) if code == killed => None,
            (None, Some(libc::SIGSYS)) => None,
            (Some(code @ (10..=12)), _) => Some(code as u8),
            _ => panic!("{self:?}: {status}: {said}"),
        }
    }
}

fn as_user(command: &mut Command, user: Option<u32>) {
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
}

/// What a mode keeps out of reach also without the filter.
fn alone(mode: &str, landlock: bool) -> &'static [&'static str] {
    const PATHS: [&str; 9] = [
        "a file by its path",
        "the list of users",
        "other processes in /proc",
        "another program",
        HANDLE,
        MOUNT,
        // Not with a root directory alone.
        UPWARDS,
        "memory of others",
        // Only where the share is mounted anew.
        DEVICE,
    ];
    match mode {
        "namespace" => &PATHS,
        "landlock" => &PATHS[..8],
        // It holds inside.
        "chroot" if landlock => &PATHS[..8],
        _ => &PATHS[..6],
    }
}

fn run_all() {
    let root = nix::unistd::geteuid().is_root();
    let users: &[Option<u32>] = if root { &[None, Some(65_534)] } else { &[None] };
    for user in users {
        let who = match user {
            None => "as this user",
            Some(_) => "as nobody",
        };
        if user.is_some() && !reachable_by_all() {
            stub_guest::skipped("another user cannot run this program");
            continue;
        }
        // An ordinary user may not do everything outside either.
        let able = |(probe, _): &&Probe| run("none", "none", probe, *user) == Some(REACHED);
        let probes: Vec<&str> = PROBES
            .iter()
            .filter(able)
            .map(|(probe, _)| *probe)
            .collect();
        // Some are for root alone.
        let missing = PROBES.len() - probes.len();
        let expected = if user.is_some() || !root { 4 } else { 0 };
        assert!(missing <= expected, "{who}: {probes:?}");
        for mode in ["namespace", "chroot", "landlock"] {
            let only_root = mode == "chroot";
            if only_root && (user.is_some() || !root) {
                continue;
            }
            if run(mode, "none", PROBES[0].0, *user) == Some(NO_SANDBOX) {
                stub_guest::skipped(format_args!("no sandbox {mode} {who}"));
                continue;
            }
            let landlock = run("landlock", "none", PROBES[0].0, *user) != Some(NO_SANDBOX);
            for probe in &probes {
                // A root directory alone is no wall for a program that means to leave: it keeps
                // paths in.
                if mode == "chroot" && *probe == UPWARDS && !landlock {
                    continue;
                }
                // Who may make devices may open them, but for a mount's flag.
                if mode != "namespace" && *probe == DEVICE {
                    continue;
                }
                // Together with the filter, which ends what tries.
                let code = run(mode, "kill", probe, *user);
                assert_ne!(code, Some(REACHED), "{probe} is reached in {mode}, {who}");
                if alone(mode, landlock).contains(probe) {
                    let code = run(mode, "none", probe, *user);
                    assert_eq!(code, Some(OUT_OF_REACH), "{probe} in {mode}, {who}");
                }
            }
            assert_eq!(run(mode, "kill", FAULT.0, *user), Some(REACHED));
            if probes.contains(&HANDLE) {
                by_handle(mode, *user);
            }
            if probes.contains(&MOUNT) {
                // Who has the right by --modcaps is held up by the filter alone.
                for (filter, expected) in [("kill", None), ("none", Some(REACHED))] {
                    let attempt = Attempt {
                        mode,
                        filter,
                        handles: "never",
                        modcaps: "+sys_admin",
                        thread: "worker",
                        probe: MOUNT,
                        user: *user,
                    };
                    assert_eq!(attempt.run(), expected, "{attempt:?}");
                }
            }
            println!("ok: {} probes in {mode}, {who}", probes.len());
        }
        // The filter alone.
        for probe in [
            MESSAGES,
            "the network",
            "another program",
            "memory to be executed",
            "signals to others",
            HANDLE,
        ] {
            for filter in ["kill", "trap"] {
                let code = run("none", filter, probe, *user);
                assert_eq!(code, None, "{probe}, {who}, {filter}");
            }
        }
    }
}

/// Who has not asked for file handles has no way by them, from any thread, with a filter or without;
/// who has asked for them has given the way away, but where the kernel looks at the files themselves.
fn by_handle(mode: &str, user: Option<u32>) {
    for thread in ["worker", "loop"] {
        for (handles, filter, expected) in [
            ("never", "kill", None),
            ("never", "none", Some(OUT_OF_REACH)),
            ("prefer", "kill", Some(REACHED)),
            ("mandatory", "kill", Some(REACHED)),
        ] {
            let attempt = Attempt {
                mode,
                filter,
                handles,
                modcaps: USUAL,
                thread,
                probe: HANDLE,
                user,
            };
            let expected = match mode {
                "landlock" => expected.map(|_| OUT_OF_REACH),
                _ => expected,
            };
            assert_eq!(attempt.run(), expected, "{attempt:?}");
        }
    }
}

/// Whether any user may run this program: its directories have to let them through.
fn reachable_by_all() -> bool {
    let path = std::env::current_exe().unwrap();
    let all = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|metadata| std::os::unix::fs::MetadataExt::mode(&metadata) & 0o005 == 0o005)
    };
    path.ancestors().all(all)
}
