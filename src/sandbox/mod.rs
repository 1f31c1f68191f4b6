//! What the daemon cannot reach, even if a guest compromises it.
//!
//! Three independent restrictions: `namespace` (or chroot(2) and `landlock`, or `landlock`) leaves
//! it no file but the share's, no network and no other process; [`capabilities`] leaves root's
//! daemon no rights but those over files; [`seccomp`] leaves it no system call that it does not
//! need. All are applied once, before the first front-end is served and the first thread is
//! started.
//!
//! Landlock and file handles exclude each other: Landlock checks the path from an inode up to the
//! share, and an inode that was opened by its handle has none, unless the kernel happens to
//! remember its name. Opening such a file fails with EACCES, such a directory with ESTALE.

pub mod capabilities;
mod child;
mod landlock;
mod namespace;
pub mod seccomp;

use std::os::fd::{AsFd, OwnedFd};

use clap::ValueEnum;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, chroot, fchdir, geteuid};

pub use child::supervise;
use child::{Step, at};

use crate::export::sys::{self, ProcPath};
use crate::export::{FileHandles, errno_of};

/// What the daemon can see of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sandbox {
    /// The share is its whole file system, and it has its own namespaces: no network, no other
    /// processes. A second process waits outside, as with chroot and landlock, passes signals and
    /// the exit status on, and removes the socket
    Namespace,
    /// The share is its root directory, and the rules of Landlock apply inside it, if the kernel
    /// has them and file handles are not used. Only for root
    Chroot,
    /// The kernel lets it use no file outside the share, no network and no other process; it can
    /// still see who owns them. Needs no rights, and Linux 5.13 or later. Files are found by name
    /// only
    Landlock,
    /// Everything that the user may see
    None,
}

/// Why the requested sandbox is not available.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses.
    #[error("cannot enter the sandbox: {what}: {error}; try --sandbox {instead}")]
    Refused {
        /// The step that failed.
        what: &'static str,
        /// The errno.
        error: Errno,
        /// An easier sandbox.
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

/// What this process does from now on.
#[derive(Debug)]
pub enum Role {
    /// Serves, with nobody outside: it is the process that was started.
    Alone(Inside),
    /// Serves, as the child of the process that was started.
    Daemon(Inside),
    /// Waits for the daemon, which is this child, and then does what cannot be done from inside.
    Supervisor(Pid),
}

/// What is inside the sandbox.
#[derive(Debug)]
pub struct Inside {
    /// The share, as found there.
    pub share: OwnedFd,
    /// Whether Landlock applies, so that file handles cannot be used.
    pub landlock: bool,
}

type Enter = fn(&OwnedFd, FileHandles) -> Result<Role, Error>;

/// Enters the sandbox; without one given the strongest available one, in which file handles work if
/// they are mandatory. There must be no other thread. `share` is an `O_PATH` descriptor; the
/// share's path is not used any more, because paths resolve differently here. Errors: [`Error`] if
/// the requested sandbox is not available.
pub fn enter(
    sandbox: Option<Sandbox>,
    share: OwnedFd,
    handles: FileHandles,
) -> Result<Role, Error> {
    match sandbox {
        Some(Sandbox::Namespace) => namespace::enter(&share),
        Some(Sandbox::Chroot) => enter_chroot(&share, handles),
        Some(Sandbox::Landlock) => landlock::enter(&share),
        Some(Sandbox::None) => Ok(outside(share)),
        None => Ok(enter_strongest(share, handles)),
    }
}

fn outside(share: OwnedFd) -> Role {
    Role::Alone(Inside {
        share,
        landlock: false,
    })
}

/// In namespaces nothing else is visible. Where they are refused, root uses chroot(2) with Landlock
/// inside: chroot removes all paths, and Landlock blocks the ways out of a root directory. Landlock
/// alone is for users who may not chroot(2): they can still see names of other files.
fn enter_strongest(share: OwnedFd, handles: FileHandles) -> Role {
    let mut by_strength: Vec<(&str, Enter)> =
        vec![("namespace", |share, _| namespace::enter(share))];
    if geteuid().is_root() {
        by_strength.push(("chroot", enter_chroot));
    }
    // If handles are mandatory, they count more.
    if handles != FileHandles::Mandatory {
        by_strength.push(("landlock", |share, _| landlock::enter(share)));
    }
    let mut refused = Vec::new();
    for (name, enter) in by_strength {
        match enter(&share, handles) {
            Ok(role) => {
                if let Role::Daemon(inside) = &role
                    && !refused.is_empty()
                {
                    let landlock = match (name, inside.landlock) {
                        ("chroot", true) => " with landlock inside",
                        ("chroot", false) => " without landlock inside",
                        _ => "",
                    };
                    let refused = refused.join(", ");
                    log::warn!(
                        "the sandbox is {name}{landlock}, because the host refused {refused}"
                    );
                }
                return role;
            }
            Err(error) => refused.push(format!("{name} ({})", error.reason())),
        }
    }
    log::warn!(
        "there is no sandbox, because the host refused {}",
        refused.join(", ")
    );
    outside(share)
}

/// Forks the daemon. Errors: the step that the kernel refused; nothing has changed then.
fn enter_chroot(share: &OwnedFd, handles: FileHandles) -> Result<Role, Error> {
    child::fork(CloneFlags::empty(), "landlock", || {
        let descriptors = at(Step::Descriptors, open_directory("/proc/self/fd"))?;
        let inside = at(Step::Root, share.try_clone().map_err(errno_of))?;
        // Not by its path, which may be relative to a working directory, or resolve differently by
        // now.
        let path = ProcPath::new(share.as_fd());
        at(Step::Root, chroot(path.as_c_str()))?;
        at(Step::Descriptors, find_descriptors_in(&descriptors))?;
        // A second restriction: where the kernel does not have it, chroot still applies.
        let landlock = handles == FileHandles::Never
            && landlock::restrict(share.as_fd())
                .inspect_err(|error| log::info!("no Landlock inside of chroot: {error}"))
                .is_ok();
        Ok(Inside {
            share: inside,
            landlock,
        })
    })
}

/// From now on the magic links of `/proc/self/fd`, which is at `path`, are found from the working
/// directory. The export reaches pinned inodes by them, and nothing else of /proc is visible after
/// the root has changed.
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
