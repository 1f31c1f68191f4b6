//! What the daemon cannot reach, even if a guest should come to command it.
//!
//! Three fences, each for itself: `namespace` (or `landlock`, or chroot(2)) leaves it no file but the
//! share's, no network and no other process; [`capabilities`] leaves root's daemon no right but those over
//! files; [`seccomp`] leaves it no system call that it does not need. They are put up once, before
//! the first front-end is served and the first thread is started.

pub mod capabilities;
mod child;
mod landlock;
mod namespace;
pub mod seccomp;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, chroot, fchdir, geteuid};

pub use child::supervise;

use crate::export::sys;

/// What the daemon sees of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sandbox {
    /// The share is its whole file system, and it has namespaces of its own: no network, no other
    /// processes. A second process waits outside and passes signals and the exit status on
    Namespace,
    /// The share is its root directory. Only for root
    Chroot,
    /// The kernel lets it use no file outside of the share, no network and no other process; whose
    /// they are it can still see. Needs no rights, and Linux 5.13 or later
    Landlock,
    /// All that the user may see
    None,
}

/// Why the sandbox that was asked for cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses.
    #[error("cannot enter the sandbox: {what}: {error}; try --sandbox {instead}")]
    Refused {
        /// The step that failed.
        what: &'static str,
        /// The answer.
        error: Errno,
        /// What is easier to have.
        instead: &'static str,
    },
}

/// What is to be done in this process from now on.
#[derive(Debug)]
pub enum Role {
    /// To serve; the share is found here now.
    Daemon {
        /// Its path.
        share: PathBuf,
    },
    /// To wait for the daemon, which is this child.
    Supervisor(Pid),
}

/// Enters the sandbox; without a wish the strongest that can be had. There must be no other
/// thread. Errors: [`Error`] if a wish cannot be fulfilled.
pub fn enter(wish: Option<Sandbox>, share: &Path) -> Result<Role, Error> {
    let here = || Role::Daemon {
        share: share.into(),
    };
    match wish {
        Some(Sandbox::Namespace) => namespace::enter(share),
        Some(Sandbox::Chroot) => enter_chroot(share),
        Some(Sandbox::Landlock) => landlock::enter(share),
        Some(Sandbox::None) => Ok(here()),
        None => namespace::enter(share).or_else(|error| {
            let (weaker, name) = if geteuid().is_root() {
                (enter_chroot(share), "chroot")
            } else {
                (landlock::enter(share), "landlock")
            };
            let (role, name) = weaker.map_or_else(|_| (here(), "none"), |role| (role, name));
            if let Role::Daemon { .. } = role {
                log::warn!("{error}, which is what is done: a weaker sandbox, {name}");
            }
            Ok(role)
        }),
    }
}

fn enter_chroot(share: &Path) -> Result<Role, Error> {
    let refused = |what| {
        move |error| Error::Refused {
            what,
            error,
            instead: "none",
        }
    };
    keep_descriptors_reachable("/proc/self/fd").map_err(refused("/proc/self/fd"))?;
    chroot(share).map_err(refused("chroot"))?;
    Ok(Role::Daemon { share: "/".into() })
}

/// The magic links in `/proc/self/fd`, which is at `path`, by which the export reaches pinned
/// inodes, are found from the working directory from now on: nothing else of /proc is to be found
/// after the root has changed.
fn keep_descriptors_reachable(path: &str) -> Result<(), Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = open(path, flags, Mode::empty())?;
    fchdir(&directory)?;
    sys::find_descriptors_from_working_directory();
    Ok(())
}
