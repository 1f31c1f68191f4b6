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

use std::os::fd::{AsFd, OwnedFd};

use clap::ValueEnum;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, chroot, fchdir, geteuid};

pub use child::supervise;

use crate::export::errno_of;
use crate::export::sys::{self, ProcPath};

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

impl Error {
    /// What failed, without advice.
    fn reason(&self) -> String {
        let Error::Refused { what, error, .. } = self;
        format!("{what}: {error}")
    }
}

/// What is to be done in this process from now on.
#[derive(Debug)]
pub enum Role {
    /// To serve.
    Daemon {
        /// The share as it is found in the sandbox.
        share: OwnedFd,
    },
    /// To wait for the daemon, which is this child.
    Supervisor(Pid),
}

type Enter = fn(&OwnedFd) -> Result<Role, Error>;

/// Enters the sandbox; without a wish the strongest that can be had. There must be no other
/// thread. `share` is an `O_PATH` descriptor, and no path is asked for the share any more: paths
/// lead elsewhere here. Errors: [`Error`] if a wish cannot be fulfilled.
pub fn enter(wish: Option<Sandbox>, share: OwnedFd) -> Result<Role, Error> {
    match wish {
        Some(Sandbox::Namespace) => namespace::enter(&share),
        Some(Sandbox::Chroot) => enter_chroot(&share),
        Some(Sandbox::Landlock) => landlock::enter(&share),
        Some(Sandbox::None) => Ok(Role::Daemon { share }),
        None => Ok(enter_strongest(share)),
    }
}

fn enter_strongest(share: OwnedFd) -> Role {
    let by_strength: &[(&str, Enter)] = &[
        ("namespace", namespace::enter),
        ("chroot", enter_chroot),
        ("landlock", landlock::enter),
    ];
    let mut refused = Vec::new();
    for (name, enter) in by_strength {
        if *name == "chroot" && !geteuid().is_root() {
            continue;
        }
        match enter(&share) {
            Ok(role) => {
                if let Role::Daemon { .. } = role
                    && !refused.is_empty()
                {
                    let refused = refused.join(", ");
                    log::warn!("the sandbox is {name}, a weaker one: refused were {refused}");
                }
                return role;
            }
            Err(error) => refused.push(format!("{name} ({})", error.reason())),
        }
    }
    log::warn!("there is no sandbox: refused were {}", refused.join(", "));
    Role::Daemon { share }
}

/// When it is refused, nothing has changed.
fn enter_chroot(share: &OwnedFd) -> Result<Role, Error> {
    let refused = |what| {
        move |error| Error::Refused {
            what,
            error,
            instead: "landlock",
        }
    };
    let descriptors = open_directory("/proc/self/fd").map_err(refused("/proc/self/fd"))?;
    let inside = share
        .try_clone()
        .map_err(|error| refused("the share")(errno_of(error)))?;
    // Not by its path, which may be relative to a working directory, or lead elsewhere by now.
    chroot(ProcPath::new(share.as_fd()).as_c_str()).map_err(refused("chroot"))?;
    find_descriptors_in(&descriptors).map_err(refused("/proc/self/fd"))?;
    Ok(Role::Daemon { share: inside })
}

/// The magic links in `/proc/self/fd`, which is at `path`, by which the export reaches pinned
/// inodes, are found from the working directory from now on: nothing else of /proc is to be found
/// after the root has changed.
fn keep_descriptors_reachable(path: &str) -> Result<(), Errno> {
    find_descriptors_in(&open_directory(path)?)
}

fn find_descriptors_in(directory: &OwnedFd) -> Result<(), Errno> {
    fchdir(directory)?;
    sys::find_descriptors_from_working_directory();
    Ok(())
}

fn open_directory(path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty())
}
