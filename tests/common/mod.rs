//! What the integration tests share: a daemon with a guest that has mounted it.
#![allow(dead_code, reason = "each test binary uses the part that it needs")]

pub mod load;
pub mod random;

use std::ffi::CString;
use std::fmt::Debug;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use protocol::{NONUNAME, Qid, Tsetattr};
use stub_guest::daemon::Launch;
use stub_guest::{Client, Daemon, Error, Result};

/// The daemon under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_vhost-user-9p");
/// Copies the daemon to where a test needs it. By another process: a child that another thread forks
/// would keep this one's copy open for writing, and a file that is open so cannot be executed.
pub fn copy_binary(to: &Path) {
    let copied = Command::new("cp").arg(BINARY).arg(to).status().unwrap();
    assert!(copied.success());
}

/// "Whatever the daemon runs as", for gid fields.
pub const NO_ID: u32 = u32::MAX;

/// A daemon on a fresh directory, and a guest that has mounted it.
pub struct Guest {
    /// The guest's 9P client.
    pub client: Client,
    /// The fid of the share's root.
    pub root: u32,
    /// The daemon; ends after the guest.
    pub daemon: Daemon,
}

impl Guest {
    /// Starts both.
    pub fn new() -> Guest {
        Guest::on(Launch::new(BINARY))
    }

    /// Starts both, the daemon in this way.
    pub fn on(launch: Launch) -> Guest {
        let mut daemon = launch.start().unwrap();
        let (client, root) = daemon.mount().unwrap();
        Guest {
            client,
            root,
            daemon,
        }
    }

    /// A daemon with `--readonly` on a directory that `prepare` fills.
    pub fn readonly(prepare: impl FnOnce(&Path)) -> (Guest, tempfile::TempDir) {
        let share = tempfile::tempdir().unwrap();
        prepare(share.path());
        (
            Guest::on(Launch::new(BINARY).share(share.path()).arg("--readonly")),
            share,
        )
    }

    /// A path of the share on the host.
    pub fn path(&self, name: &str) -> PathBuf {
        self.daemon.path(name)
    }

    /// Makes a file on the host.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Makes a directory on the host.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        path
    }

    /// A fresh fid for a path below the root.
    pub fn walk(&mut self, path: &str) -> u32 {
        self.client.walk_path(self.root, path).unwrap()
    }

    /// A fresh fid for a path below the root, opened with these flags.
    pub fn open(&mut self, path: &str, flags: u32) -> u32 {
        let fid = self.walk(path);
        self.client.lopen(fid, flags).unwrap();
        fid
    }
}

/// Asserts that the server answered Rlerror with this errno.
#[track_caller]
pub fn refused<T: Debug>(result: Result<T>, expected: Errno) {
    match result {
        Err(Error::Errno(code)) => assert_eq!(Errno::from_raw(code as i32), expected),
        other => panic!("expected {expected:?}, got {other:?}"),
    }
}

/// Names that no file can have, with the errno that every message answers them with.
pub fn impossible_names() -> Vec<(Vec<u8>, Errno)> {
    vec![
        (b"".to_vec(), Errno::ENOENT),
        (b"/".to_vec(), Errno::ENOENT),
        (b"a/b".to_vec(), Errno::ENOENT),
        (b"../outside".to_vec(), Errno::ENOENT),
        (b"/etc/passwd".to_vec(), Errno::ENOENT),
        (b"nul\0inside".to_vec(), Errno::ENOENT),
        (b"\0".to_vec(), Errno::ENOENT),
        (vec![b'x'; 256], Errno::ENAMETOOLONG),
        (vec![b'x'; 60_000], Errno::ENAMETOOLONG),
    ]
}

/// A Tsetattr that changes nothing.
pub fn no_change(fid: u32) -> Tsetattr {
    let now = protocol::Time { sec: 0, nsec: 0 };
    Tsetattr {
        fid,
        valid: 0,
        mode: 0,
        uid: NONUNAME,
        gid: NO_ID,
        size: 0,
        atime: now,
        mtime: now,
    }
}

/// Bytes that are different at every place: the number of each 4-byte word.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| ((at / 4) as u32).to_le_bytes()[at % 4])
        .collect()
}

/// Permission bits of a file on the host.
pub fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Whether the tests run as root: ownership can be tested then.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether a qid is a directory's.
pub fn is_dir(qid: Qid) -> bool {
    qid.kind == protocol::QidKind::DIR
}

/// lgetxattr(2) on the host; None: there is none.
pub fn host_value(path: &Path, name: &str) -> Option<Vec<u8>> {
    let (path, name) = (
        CString::new(path.as_os_str().as_bytes()).unwrap(),
        CString::new(name).unwrap(),
    );
    let mut value = vec![0u8; 70_000];
    // SAFETY: both strings end with a NUL, and the buffer has the length that is given.
    let length = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    let length = usize::try_from(length).ok()?;
    value.truncate(length);
    Some(value)
}

/// lsetxattr(2) on the host. False: its file system knows no such attributes.
pub fn host_set(path: &Path, name: &str, value: &[u8]) -> bool {
    let (path, name) = (
        CString::new(path.as_os_str().as_bytes()).unwrap(),
        CString::new(name).unwrap(),
    );
    // SAFETY: both strings end with a NUL, and the value has the length that is given.
    let result = unsafe {
        libc::lsetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    result == 0
}
