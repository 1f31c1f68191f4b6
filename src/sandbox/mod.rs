//! What the daemon cannot reach, even if a guest should come to command it.
//!
//! Three fences, each for itself: `namespace` (or chroot(2) and `landlock`, or `landlock`) leaves it no file
//! but the share's, no network and no other process; [`capabilities`] leaves root's daemon no right but those
//! over files; [`seccomp`] leaves it no system call that it does not need. They are put up once, before
//! the first front-end is served and the first thread is started.
//!
//! Landlock and file handles exclude each other: it asks for the way from an inode up to the share, and an
//! inode that is found by its handle has none, unless the kernel happens to remember its name. Then a file
//! cannot be opened (EACCES), nor a directory be found (ESTALE).

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

/// What the daemon sees of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sandbox {
    /// The share is its whole file system, and it has namespaces of its own: no network, no other
    /// processes. A second process waits outside, as with chroot and landlock, passes signals and the
    /// exit status on, and removes the socket
    Namespace,
    /// The share is its root directory, and inside of it the rules of Landlock hold, if the kernel has
    /// them and file handles are not asked for. Only for root
    Chroot,
    /// The kernel lets it use no file outside of the share, no network and no other process; whose
    /// they are it can still see. Needs no rights, and Linux 5.13 or later. Files are found by name alone
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
    /// To serve, with nobody outside: this is the process that was started.
    Alone(Inside),
    /// To serve, as the child of the process that was started.
    Daemon(Inside),
    /// To wait for the daemon, which is this child, and to do then what it cannot do from inside.
    Supervisor(Pid),
}

/// What there is in the sandbox.
#[derive(Debug)]
pub struct Inside {
    /// The share as it is found there.
    pub share: OwnedFd,
    /// Whether Landlock holds, and file handles are of no use.
    pub landlock: bool,
}

type Enter = fn(&OwnedFd, FileHandles) -> Result<Role, Error>;

/// Enters the sandbox; without a wish the strongest that can be had, and in which file handles can be used
/// if they are mandatory. There must be no other thread. `share` is an `O_PATH` descriptor, and no path is
/// asked for the share any more: paths lead elsewhere here. Errors: [`Error`] if a wish cannot be
/// fulfilled.
pub fn enter(wish: Option<Sandbox>, share: OwnedFd, handles: FileHandles) -> Result<Role, Error> {
    match wish {
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

/// Namespaces leave nothing else to be seen. Where they are refused, root has chroot(2) with Landlock inside:
/// the one takes all paths away, the other what a root directory alone leaves to a program that means to
/// get out. Landlock alone is for who may not chroot(2): what others' files are called is to be seen then.
fn enter_strongest(share: OwnedFd, handles: FileHandles) -> Role {
    let mut by_strength: Vec<(&str, Enter)> =
        vec![("namespace", |share, _| namespace::enter(share))];
    if geteuid().is_root() {
        by_strength.push(("chroot", enter_chroot));
    }
    // Who insists on handles has said what counts more.
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
                        "the sandbox is {name}{landlock}, a weaker one: refused were {refused}"
                    );
                }
                return role;
            }
            Err(error) => refused.push(format!("{name} ({})", error.reason())),
        }
    }
    log::warn!("there is no sandbox: refused were {}", refused.join(", "));
    outside(share)
}

/// Makes the child that is the daemon. Errors: the step that the kernel refused; nothing has changed then.
fn enter_chroot(share: &OwnedFd, handles: FileHandles) -> Result<Role, Error> {
    child::fork(CloneFlags::empty(), "landlock", || {
        let descriptors = at(Step::Descriptors, open_directory("/proc/self/fd"))?;
        let inside = at(Step::Root, share.try_clone().map_err(errno_of))?;
        // Not by its path, which may be relative to a working directory, or lead elsewhere by now.
        let path = ProcPath::new(share.as_fd());
        at(Step::Root, chroot(path.as_c_str()))?;
        at(Step::Descriptors, find_descriptors_in(&descriptors))?;
        // An inner fence: where the kernel does not have it, the outer one stands.
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
