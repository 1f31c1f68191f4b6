//! A host that fails: what the guest is told, and what goes on meanwhile.
//!
//! The share holds a directory on a file system of its own, `faulty`, that fails and hangs on
//! command. `errors` is about the first, `hanging` and `every_request` about the second.

mod apart;
#[path = "../common/mod.rs"]
mod common;
mod errors;
mod every_request;
mod faulty;
mod hanging;

use std::fs;
use std::ops::{Deref, DerefMut};

use common::{BINARY, Guest};
use faulty::FaultyFs;
use nix::errno::Errno;
use stub_guest::daemon::Launch;
use stub_guest::{Attach, Options};
use tempfile::TempDir;

/// A guest whose share holds a healthy directory, its root, and below it `faulty`.
struct Host {
    // Dropped in this order: who waits for the file system can end only while it is there.
    guest: Guest,
    faulty: FaultyFs,
    _share: TempDir,
}

impl Host {
    /// None where the tests cannot mount a file system of their own. `prepare` says how the daemon is
    /// started.
    fn new(prepare: impl FnOnce(Launch) -> Launch) -> Option<Host> {
        let share = tempfile::tempdir().unwrap();
        let mount_point = share.path().join("faulty");
        fs::create_dir(&mount_point).unwrap();
        // Before the daemon has a view of its own of what is mounted.
        let faulty = FaultyFs::mount(&mount_point)?;
        for path in [faulty.path("file"), share.path().join("file")] {
            fs::write(path, "0123456789").unwrap();
        }
        let launch = prepare(Launch::new(BINARY).share(share.path()));
        let mut daemon = launch.start().unwrap();
        let options = Options {
            regions: vec![8 << 20],
            ..Options::default()
        };
        let mut client = daemon.client_with(options).unwrap();
        let root = client.mount(&Attach::default()).unwrap();
        let guest = Guest {
            client,
            root,
            daemon,
        };
        Some(Host {
            guest,
            faulty,
            _share: share,
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A test that fails in between: the daemon's end waits for what hangs.
        self.faulty.release_with(Err(Errno::EIO));
    }
}

impl Deref for Host {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl DerefMut for Host {
    fn deref_mut(&mut self) -> &mut Guest {
        &mut self.guest
    }
}
