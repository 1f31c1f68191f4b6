//! What the daemon cannot reach, even if a guest compromises it.
//!
//! Three independent restrictions: `namespace` (or chroot(2) and `landlock`, or `landlock`) leaves
//! it no file but the share's, no network and no other process; [`capabilities`] leaves root's
//! daemon no rights but those over files; [`seccomp`] leaves it no system call that it does not
//! need. Each server applies all of them before it serves a front-end and starts a thread.
//!
//! Landlock and file handles exclude each other: Landlock checks the path from an inode up to the
//! share, and an inode that was opened by its handle has none, unless the kernel happens to
//! remember its name. Opening such a file fails with EACCES, such a directory with ESTALE.

pub mod capabilities;
mod child;
mod landlock;
mod namespace;
pub mod seccomp;
pub mod supervisor;

use std::os::fd::{AsFd, OwnedFd, RawFd};

use clap::ValueEnum;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, chroot, fchdir, geteuid};

pub use child::{End, wait};
use child::{Forked, Report, Step, at, refused};

use crate::export::sys::{self, ProcPath};
use crate::export::{FileHandles, errno_of};
use crate::state::Memory;

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
    /// Serves, as the first process that does.
    Server {
        /// What is inside.
        inside: Inside,
        /// Whether the process that was started has the same descriptors.
        shares_outside: bool,
    },
    /// Serves, after another server has died and left these descriptors.
    Successor(Inside, Vec<RawFd>),
    /// Waits for this child, and then does what cannot be done from inside.
    Parent(Pid),
    /// Waits for the server, which is this child and shares this process's descriptors, and starts
    /// another one when it has crashed.
    Supervisor(Pid, Entrance),
}

/// What is inside the sandbox.
#[derive(Debug)]
pub struct Inside {
    /// The share, as found there.
    pub share: OwnedFd,
    /// Whether Landlock applies, so that file handles cannot be used.
    pub landlock: bool,
}

/// What is required of the sandbox.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Which one. None: the strongest available one, in which file handles work if they are
    /// mandatory.
    pub sandbox: Option<Sandbox>,
    /// Whether file handles are used inside.
    pub handles: FileHandles,
    /// The memory that a server leaves to the next one; None if a crash ends everything.
    pub memory: Option<&'a Memory>,
}

/// Enters the sandbox. There must be no other thread. `share` is an `O_PATH` descriptor; the share's path
/// is not used any more, because paths resolve differently here. Errors: [`Error`] if the requested
/// sandbox is not available.
pub fn enter(entry: Entry<'_>, share: OwnedFd) -> Result<Role, Error> {
    let mut entrance = Entrance {
        sandbox: Sandbox::None,
        share,
        mounts: None,
        handles: entry.handles,
        open: Vec::new(),
    };
    let entered = match entry.sandbox {
        Some(sandbox) => entrance.enter(sandbox, entry.memory)?,
        None => entrance.enter_strongest(entry.memory),
    };
    Ok(match entered {
        Entered::Here(inside) => Role::Alone(inside),
        Entered::Child(inside) => Role::Server {
            inside,
            shares_outside: false,
        },
        Entered::Sharing(inside) => {
            // Closing these descriptors would close them in the supervisor.
            let shares_outside = entrance.is_outside();
            std::mem::forget(entrance);
            Role::Server {
                inside,
                shares_outside,
            }
        }
        Entered::Parent(child) => Role::Parent(child),
        Entered::Supervisor(server) => Role::Supervisor(server, entrance),
    })
}

/// How servers enter the sandbox, one after the other.
#[derive(Debug)]
pub struct Entrance {
    sandbox: Sandbox,
    /// The share; since the first server has entered, as found inside.
    share: OwnedFd,
    /// The mount namespace, if there is one.
    mounts: Option<OwnedFd>,
    handles: FileHandles,
    /// The descriptors that were open before the first server was started.
    open: Vec<RawFd>,
}

/// Which process this is.
enum Entered {
    /// The process that was started, with no child.
    Here(Inside),
    /// A child with its own table of descriptors.
    Child(Inside),
    /// A child that shares the table of its supervisor.
    Sharing(Inside),
    /// The parent of a [`Entered::Child`], or of a supervisor.
    Parent(Pid),
    /// The parent of a [`Entered::Sharing`].
    Supervisor(Pid),
}

impl Entrance {
    /// Whether the supervisor is the process that was started.
    pub fn is_outside(&self) -> bool {
        self.sandbox != Sandbox::Namespace
    }

    /// Starts another server when the one before has died. Errors: [`Error`].
    pub fn enter_again(self, memory: &Memory) -> Result<Role, Error> {
        let entered = child::fork_sharing(memory, || {
            let mut left = at(Step::Descriptors, open_descriptors().map_err(errno_of))?;
            left.retain(|fd| !self.open.contains(fd));
            let inside = match (self.sandbox, &self.mounts) {
                (Sandbox::Namespace, Some(mounts)) => namespace::enter_again(&self.share, mounts),
                (sandbox, _) => self.inside(sandbox),
            }?;
            Ok((inside, left))
        });
        Ok(match entered.map_err(refused("none"))? {
            Forked::Child((inside, left)) => {
                std::mem::forget(self);
                Role::Successor(inside, left)
            }
            Forked::Parent(server) => Role::Supervisor(server, self),
        })
    }

    /// Enters in a process that was made for that.
    fn inside(&self, sandbox: Sandbox) -> child::Entered<Inside> {
        match sandbox {
            Sandbox::Namespace => namespace::enter(&self.share),
            Sandbox::Chroot => enter_chroot(&self.share, self.handles),
            Sandbox::Landlock => landlock::enter(&self.share),
            Sandbox::None => Ok(Inside {
                share: at(Step::Root, self.share.try_clone().map_err(errno_of))?,
                landlock: false,
            }),
        }
    }

    fn enter(&mut self, sandbox: Sandbox, memory: Option<&Memory>) -> Result<Entered, Error> {
        let (namespaces, instead) = match sandbox {
            Sandbox::Namespace => (namespace::flags(), namespace::instead()),
            Sandbox::Chroot => (CloneFlags::empty(), "landlock"),
            Sandbox::Landlock | Sandbox::None => (CloneFlags::empty(), "none"),
        };
        self.sandbox = sandbox;
        let entered = match (sandbox, memory) {
            (Sandbox::None, None) => self.inside(sandbox).map(Entered::Here),
            (Sandbox::Namespace, Some(memory)) => self.enter_namespace(memory),
            (_, Some(memory)) => self.enter_sharing(memory, None),
            (_, None) => {
                let ids = namespace::Ids::of_process();
                child::fork(namespaces).map(|forked| match forked {
                    Forked::Parent(child) => Entered::Parent(child),
                    Forked::Child(report) => {
                        let ids = match sandbox {
                            Sandbox::Namespace => ids.apply(),
                            _ => Ok(()),
                        };
                        Entered::Child(report.tell(ids.and_then(|()| self.inside(sandbox))))
                    }
                })
            }
        };
        entered.map_err(refused(instead))
    }

    /// Starts the first server, whose supervisor this process is.
    fn enter_sharing(
        &mut self,
        memory: &Memory,
        report: Option<&Report>,
    ) -> child::Entered<Entered> {
        let report = report.map(Report::descriptor);
        let open = at(Step::Descriptors, open_descriptors().map_err(errno_of))?;
        self.open = open.into_iter().filter(|fd| Some(*fd) != report).collect();
        let inside = child::fork_sharing(memory, || match &mut self.mounts {
            Some(mounts) => namespace::enter_first(&mut self.share, mounts),
            None => self.inside(self.sandbox),
        })?;
        Ok(match inside {
            Forked::Child(inside) => Entered::Sharing(inside),
            Forked::Parent(server) => Entered::Supervisor(server),
        })
    }

    /// Starts a supervisor in new namespaces, which starts the first server.
    fn enter_namespace(&mut self, memory: &Memory) -> child::Entered<Entered> {
        // The first server replaces this descriptor and that of the share.
        let mounts = at(Step::Mounts, self.share.try_clone().map_err(errno_of))?;
        let ids = namespace::Ids::of_process();
        let report = match child::fork(namespace::flags())? {
            Forked::Parent(supervisor) => return Ok(Entered::Parent(supervisor)),
            Forked::Child(report) => report,
        };
        self.mounts = Some(mounts);
        let entered = ids
            .apply()
            .and_then(|()| self.enter_sharing(memory, Some(&report)));
        Ok(match entered {
            Ok(entered @ Entered::Sharing(_)) => {
                std::mem::forget(report);
                entered
            }
            Ok(entered) => report.tell(namespace::keep_proc_alone().map(|()| entered)),
            Err(error) => report.tell(Err(error)),
        })
    }

    /// In namespaces nothing else is visible. Where they are refused, root uses chroot(2) with Landlock
    /// inside: chroot removes all paths, and Landlock blocks the ways out of a root directory. Landlock
    /// alone is for users who may not chroot(2): they can still see names of other files.
    fn enter_strongest(&mut self, memory: Option<&Memory>) -> Entered {
        let mut by_strength = vec![(Sandbox::Namespace, "namespace")];
        if geteuid().is_root() {
            by_strength.push((Sandbox::Chroot, "chroot"));
        }
        // If handles are mandatory, they count more.
        if self.handles != FileHandles::Mandatory {
            by_strength.push((Sandbox::Landlock, "landlock"));
        }
        let mut refused = Vec::new();
        for (sandbox, name) in by_strength {
            match self.enter(sandbox, memory) {
                Ok(entered) => {
                    let inside = match &entered {
                        Entered::Child(inside) | Entered::Sharing(inside) => Some(inside),
                        Entered::Here(_) | Entered::Parent(_) | Entered::Supervisor(_) => None,
                    };
                    if let (Some(inside), false) = (inside, refused.is_empty()) {
                        let landlock = match (sandbox, inside.landlock) {
                            (Sandbox::Chroot, true) => " with landlock inside",
                            (Sandbox::Chroot, false) => " without landlock inside",
                            _ => "",
                        };
                        let refused = refused.join(", ");
                        log::warn!(
                            "the sandbox is {name}{landlock}, because the host refused {refused}"
                        );
                    }
                    return entered;
                }
                Err(error) => refused.push(format!("{name} ({})", error.reason())),
            }
        }
        log::warn!(
            "there is no sandbox, because the host refused {}",
            refused.join(", ")
        );
        self.enter(Sandbox::None, memory)
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

/// All open descriptors. Errors: /proc cannot be read.
pub fn open_descriptors() -> std::io::Result<Vec<RawFd>> {
    let mut numbers = Vec::new();
    for entry in sys::descriptors_directory()? {
        numbers.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<RawFd>().ok()),
        );
    }
    // One of them was the directory.
    numbers.retain(|fd| sys::is_open(*fd));
    Ok(numbers)
}

/// Changes the root of this process. Errors: the step that the kernel refused.
fn enter_chroot(share: &OwnedFd, handles: FileHandles) -> child::Entered<Inside> {
    let descriptors = at(Step::Descriptors, open_directory("/proc/self/fd"))?;
    let inside = at(Step::Root, share.try_clone().map_err(errno_of))?;
    // Not by its path, which may be relative to a working directory, or resolve differently by now.
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
}

/// From now on the magic links of this directory, which is `/proc/self/fd`, are found from the working
/// directory. The export reaches pinned inodes by them, and nothing else of /proc is visible after the
/// root has changed.
fn find_descriptors_in(directory: &OwnedFd) -> Result<(), Errno> {
    fchdir(directory)?;
    sys::find_descriptors_from_working_directory();
    Ok(())
}

fn open_directory(path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty())
}
