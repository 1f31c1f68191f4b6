//! The security models, over the stub guest: what the guest sees, and what the host has of it.
//!
//! What both mapped models promise is in `mapped`, run for each, by root and by a user without
//! privileges; what each leaves on the host in `mapped_xattr` and `mapped_file`.

#[path = "../common/mod.rs"]
mod common;
mod host;
mod mapped;
mod mapped_file;
mod mapped_xattr;

use std::fs;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use common::{BINARY, Guest, NO_ID, copy_binary, host_set, is_root, no_change};
use protocol::{QidKind, Rgetattr, Tsetattr, getattr, setattr};
use stub_guest::Result;
use stub_guest::daemon::Launch;
use stub_guest::messages::Entry;
use tempfile::TempDir;

/// A user and a group of the guest that the host knows nothing of.
const USER: u32 = 4711;
const GROUP: u32 = 4712;
/// Whom the daemon runs as where it shall have no privileges.
const NOBODY: u32 = 65534;

/// A guest on a share of its own, attached as [`USER`] too.
struct Share {
    guest: Guest,
    /// The root as [`USER`] has attached to it.
    mine: u32,
    // Goes after the daemon.
    directory: TempDir,
}

impl Deref for Share {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl DerefMut for Share {
    fn deref_mut(&mut self) -> &mut Guest {
        &mut self.guest
    }
}

impl Share {
    /// A share under `model`, with more options. Run by root, the daemon can be made somebody
    /// without privileges; run by anyone else it is that anyway.
    fn new(model: &str, privileged: bool, options: &[&str]) -> Share {
        Share::on(TempDir::new().unwrap(), model, privileged, options)
    }

    fn on(directory: TempDir, model: &str, privileged: bool, options: &[&str]) -> Share {
        let share = directory.path().join("share");
        fs::create_dir_all(&share).unwrap();
        let mut binary = Path::new(BINARY).to_owned();
        let mut prelude = String::new();
        if is_root() && !privileged {
            for path in [directory.path(), &share] {
                chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            let reachable = |path: &Path| fs::metadata(path).unwrap().mode() & 0o001 != 0;
            if !binary.ancestors().all(reachable) {
                binary = directory.path().join("daemon");
                copy_binary(&binary);
                fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
            }
            prelude = format!(
                "exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --pdeathsig=KILL \
                 \"$0\" \"$@\""
            );
        }
        let mut launch = Launch::new(binary).share(share).prelude(&prelude);
        if !privileged {
            // In a namespace of users nobody else's id can be seen; here they are compared.
            launch = launch.arg("--sandbox=none");
        }
        for option in ["--security-model", model].iter().chain(options) {
            launch = launch.arg(option);
        }
        let mut guest = Guest::on(launch);
        let mine = guest.client.alloc_fid();
        guest.client.attach(mine, "", "", USER).unwrap();
        Share {
            guest,
            mine,
            directory,
        }
    }

    /// Ends the daemon and starts another on the same directory.
    fn restart(self, model: &str) -> Share {
        let directory = self.directory;
        drop(self.guest);
        Share::on(directory, model, true, &[])
    }

    fn stat(&mut self, path: &str) -> Rgetattr {
        let root = self.root;
        self.client.stat(root, path).unwrap()
    }

    /// Mode, owner and group, as the guest sees them.
    fn seen(&mut self, path: &str) -> (u32, u32, u32) {
        let stat = self.stat(path);
        (stat.mode, stat.uid, stat.gid)
    }

    /// Makes a regular file as [`USER`], closed again.
    fn create(&mut self, name: &str, mode: u32, content: &[u8]) {
        let fid = self.client.alloc_fid();
        let mine = self.mine;
        self.client.walk::<&str>(mine, fid, &[]).unwrap();
        let flags = protocol::open::RDWR | protocol::open::CREATE | protocol::open::EXCL;
        self.client.lcreate(fid, name, flags, mode, GROUP).unwrap();
        self.client.write_all(fid, 0, content).unwrap();
        self.client.close(fid).unwrap();
    }

    fn set(&mut self, path: &str, change: Tsetattr) -> Result<()> {
        let fid = self.walk(path);
        let result = self.client.setattr(Tsetattr { fid, ..change });
        self.client.close(fid).unwrap();
        result
    }

    fn chmod(&mut self, path: &str, mode: u32) -> Result<()> {
        self.set(path, to_mode(mode))
    }

    fn chown(&mut self, path: &str, uid: u32, gid: u32) -> Result<()> {
        self.set(path, to_owner(uid, gid))
    }

    fn entries(&mut self, path: &str) -> Vec<Entry> {
        let root = self.root;
        self.client.read_dir(root, path).unwrap()
    }

    /// The names in a directory but `.` and `..`, in order.
    fn names(&mut self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .entries(path)
            .into_iter()
            .map(|entry| String::from_utf8(entry.name).unwrap())
            .filter(|name| !matches!(name.as_str(), "." | ".."))
            .collect();
        names.sort();
        names
    }

    /// The value of an extended attribute.
    fn xattr(&mut self, path: &str, name: &str) -> Result<Vec<u8>> {
        let fid = self.walk(path);
        let value = self.client.alloc_fid();
        let size = self.client.xattrwalk(fid, value, name);
        self.client.close(fid).unwrap();
        let bytes = self.client.read(value, 0, u32::try_from(size?).unwrap())?;
        self.client.close(value)?;
        Ok(bytes)
    }

    /// The names of all, each ended by a NUL.
    fn xattr_names(&mut self, path: &str) -> Vec<u8> {
        self.xattr(path, "").unwrap()
    }

    fn set_xattr(&mut self, path: &str, name: &str, value: &[u8]) -> Result<()> {
        self.set_xattr_with(path, name, value, 0)
    }

    /// Without a value and with `XATTR_REPLACE` it is a removal.
    fn set_xattr_with(&mut self, path: &str, name: &str, value: &[u8], flags: u32) -> Result<()> {
        let fid = self.walk(path);
        let size = value.len() as u64;
        self.client.xattrcreate(fid, name, size, flags)?;
        self.client.write_all(fid, 0, value)?;
        self.client.close(fid)
    }

    /// The `d_type` of an entry of the root.
    fn kind(&mut self, name: &str) -> u8 {
        let entries = self.entries("");
        let entry = entries.iter().find(|entry| entry.name == name.as_bytes());
        entry.unwrap().kind
    }

    /// Whose group files of the daemon have.
    fn daemon_gid(&self) -> u32 {
        fs::metadata(format!("/proc/{}", self.daemon.pid()))
            .unwrap()
            .gid()
    }

    /// Whom files of the daemon belong to.
    fn daemon_uid(&self) -> u32 {
        fs::metadata(format!("/proc/{}", self.daemon.pid()))
            .unwrap()
            .uid()
    }
}

fn to_mode(mode: u32) -> Tsetattr {
    Tsetattr {
        valid: setattr::MODE,
        mode,
        ..no_change(0)
    }
}

fn to_owner(uid: u32, gid: u32) -> Tsetattr {
    Tsetattr {
        valid: setattr::UID | setattr::GID,
        uid,
        gid,
        ..no_change(0)
    }
}

/// Whether the temporary directory is on a file system with user attributes.
fn has_xattrs() -> bool {
    let file = tempfile::NamedTempFile::new().unwrap();
    let has = host_set(file.path(), "user.test", b"x");
    if !has {
        stub_guest::skipped("the temporary directory has no user attributes: mapped-xattr");
    }
    has
}

/// Runs a test for each mapped model, by root and without privileges.
fn each_mapped(test: impl Fn(Share)) {
    for model in ["mapped-xattr", "mapped-file"] {
        if model == "mapped-xattr" && !has_xattrs() {
            continue;
        }
        for privileged in [true, false] {
            eprintln!("{model}, privileged: {privileged}");
            test(Share::new(model, privileged, &[]));
        }
    }
}

/// The type and the permissions of what the host has, its owner and its size.
fn on_host(path: &Path) -> (u32, u32, u64) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.mode(), metadata.uid(), metadata.len())
}
