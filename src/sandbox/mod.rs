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

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use clap::ValueEnum;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, chroot, fchdir, geteuid};

pub use child::{End, wait};
use child::{Forked, Step, at, refused};

use crate::export::sys::{self, ProcPath};
use crate::export::{FileHandles, errno_of};
use crate::state::Claims;

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
    Server(Inside),
    /// Serves, after another server has died and left these descriptors.
    Successor(Inside, Vec<RawFd>),
    /// Waits for this child, and then does what cannot be done from inside.
    Parent(Pid),
    /// Waits for the server, or for another supervisor, which is this child and shares this process's
    /// descriptors, and starts another one when it has died.
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
pub struct Entry {
    /// Which one. None: the strongest available one, in which file handles work if they are
    /// mandatory.
    pub sandbox: Option<Sandbox>,
    /// Whether file handles are used inside.
    pub handles: FileHandles,
    /// Whether another server takes over when one has died.
    pub supervised: bool,
}

/// Enters the sandbox. There must be no other thread. `share` is an `O_PATH` descriptor; the share's path
/// is not used any more, because paths resolve differently here. Errors: [`Error`] if the requested
/// sandbox is not available.
pub fn enter(entry: Entry, share: OwnedFd) -> Result<Role, Error> {
    let mut entrance = Entrance {
        sandbox: Sandbox::None,
        share,
        mounts: None,
        users: None,
        handles: entry.handles,
        open: Vec::new(),
        inner: false,
    };
    let entered = match entry.sandbox {
        Some(sandbox) => entrance.enter(sandbox, entry.supervised)?,
        None => entrance.enter_strongest(entry.supervised),
    };
    Ok(match entered {
        Entered::Here(inside) => Role::Alone(inside),
        Entered::Child(inside) => Role::Server(inside),
        Entered::Sharing(inside) => {
            // Closing these descriptors would close them in the supervisors.
            std::mem::forget(entrance);
            Role::Server(inside)
        }
        Entered::Parent(child) => Role::Parent(child),
        Entered::Supervisor(child) => Role::Supervisor(child, entrance),
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
    /// The user namespace, if there is one.
    users: Option<OwnedFd>,
    handles: FileHandles,
    /// The descriptors that were open before the first server was started.
    open: Vec<RawFd>,
    /// Whether this is the supervisor inside of namespaces, which has another one outside.
    inner: bool,
}

/// What another program needs to go on as supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Which sandbox it is.
    pub sandbox: Sandbox,
    /// The share.
    pub share: RawFd,
    /// The mount namespace.
    pub mounts: Option<RawFd>,
    /// The user namespace.
    pub users: Option<RawFd>,
    /// The descriptors that were open before the first server was started.
    pub open: Vec<RawFd>,
}

/// Which process this is.
enum Entered {
    /// The process that was started, with no child.
    Here(Inside),
    /// A child with its own table of descriptors.
    Child(Inside),
    /// A child that shares the table of its supervisors.
    Sharing(Inside),
    /// The parent of a [`Entered::Child`].
    Parent(Pid),
    /// The parent of a [`Entered::Sharing`], or of another supervisor.
    Supervisor(Pid),
}

impl Entrance {
    /// Whether the supervisor is inside of namespaces, and another one outside.
    pub fn is_inner(&self) -> bool {
        self.inner
    }

    /// Whether there is such another supervisor inside of this one's namespaces.
    pub fn has_inner(&self) -> bool {
        self.sandbox == Sandbox::Namespace && !self.inner
    }

    /// What another program needs.
    pub fn kept(&self) -> Kept {
        let number = |fd: &Option<OwnedFd>| fd.as_ref().map(AsRawFd::as_raw_fd);
        Kept {
            sandbox: self.sandbox,
            share: self.share.as_raw_fd(),
            mounts: number(&self.mounts),
            users: number(&self.users),
            open: self.open.clone(),
        }
    }

    /// The entrance of the program that this one was before. Errors: a descriptor is not open.
    pub fn of(kept: Kept, handles: FileHandles, claims: &mut Claims) -> std::io::Result<Entrance> {
        let mut take = |fd: Option<RawFd>| fd.map(|fd| claims.take(fd)).transpose();
        Ok(Entrance {
            sandbox: kept.sandbox,
            mounts: take(kept.mounts)?,
            users: take(kept.users)?,
            share: claims.take(kept.share)?,
            handles,
            open: kept.open,
            inner: false,
        })
    }

    /// Starts another server, or another supervisor with one, when the one before has died. Errors:
    /// [`Error`].
    pub fn enter_again(mut self) -> Result<Role, Error> {
        /// How many processes one after the other may be killed before they are inside.
        const TRIES: usize = 20;
        let mut tries = 0;
        let entered = loop {
            tries += 1;
            let entered = match (self.sandbox, self.inner) {
                (Sandbox::Namespace, false) => self.enter_namespace_again(),
                _ => self.enter_sharing_again(),
            };
            match entered {
                Err((Step::Child, Errno::ECHILD)) if tries < TRIES => {
                    log::warn!("the process that was to take over was killed; another one does");
                }
                entered => break entered,
            }
        };
        match entered {
            Ok(Forked::Parent(child)) => Ok(Role::Supervisor(child, self)),
            Ok(Forked::Child((inside, left))) => {
                std::mem::forget(self);
                Ok(Role::Successor(inside, left))
            }
            Err(error) => {
                if self.inner {
                    std::mem::forget(self);
                }
                Err(refused("none")(error))
            }
        }
    }

    /// Starts another server.
    fn enter_sharing_again(&self) -> child::Entered<Forked<(Inside, Vec<RawFd>)>> {
        child::fork_sharing(|| {
            let mut left = at(Step::Descriptors, open_descriptors().map_err(errno_of))?;
            left.retain(|fd| !self.open.contains(fd));
            let inside = match (self.sandbox, &self.mounts) {
                (Sandbox::Namespace, Some(mounts)) => namespace::enter_again(&self.share, mounts),
                (sandbox, _) => self.inside(sandbox),
            }?;
            Ok((inside, left))
        })
    }

    /// Starts another supervisor in new namespaces, except for those of mounts and users, which starts
    /// another server.
    fn enter_namespace_again(&mut self) -> child::Entered<Forked<(Inside, Vec<RawFd>)>> {
        let flags = (namespace::flags() | CloneFlags::CLONE_FILES) - CloneFlags::CLONE_NEWUSER;
        let forked = match &self.users {
            Some(users) => child::fork_into(users, flags)?,
            None => child::fork(flags)?,
        };
        let report = match forked {
            Forked::Parent(supervisor) => return Ok(Forked::Parent(supervisor)),
            Forked::Child(report) => report,
        };
        self.inner = true;
        let entered = namespace::keep_proc_alone().and_then(|()| self.enter_sharing_again());
        Ok(match entered {
            // The server. What it reports goes to its parent.
            Ok(Forked::Child(inside)) => Forked::Child(inside),
            entered => report.tell(entered),
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

    fn enter(&mut self, sandbox: Sandbox, supervised: bool) -> Result<Entered, Error> {
        let (namespaces, instead) = match sandbox {
            Sandbox::Namespace => (namespace::flags(), namespace::instead()),
            Sandbox::Chroot => (CloneFlags::empty(), "landlock"),
            Sandbox::Landlock | Sandbox::None => (CloneFlags::empty(), "none"),
        };
        self.sandbox = sandbox;
        let entered = match (sandbox, supervised) {
            (Sandbox::None, false) => self.inside(sandbox).map(Entered::Here),
            (Sandbox::Namespace, true) => self.enter_namespace(),
            (_, true) => self.note_open().and_then(|()| self.enter_sharing()),
            (_, false) => {
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

    /// Notes which descriptors are not the servers'.
    fn note_open(&mut self) -> child::Entered {
        self.open = at(Step::Descriptors, open_descriptors().map_err(errno_of))?;
        Ok(())
    }

    /// Starts the first server, whose supervisor this process is.
    fn enter_sharing(&mut self) -> child::Entered<Entered> {
        let inside = child::fork_sharing(|| match (self.sandbox, &mut self.mounts) {
            (Sandbox::Namespace, Some(mounts)) => namespace::enter_first(&mut self.share, mounts),
            (sandbox, _) => self.inside(sandbox),
        })?;
        Ok(match inside {
            Forked::Child(inside) => Entered::Sharing(inside),
            Forked::Parent(server) => Entered::Supervisor(server),
        })
    }

    /// Starts a supervisor in new namespaces, which starts the first server.
    fn enter_namespace(&mut self) -> child::Entered<Entered> {
        // The two processes replace these, and the share's: so this one knows their numbers.
        let another = || at(Step::Mounts, self.share.try_clone().map_err(errno_of));
        self.mounts = Some(another()?);
        self.users = match namespace::flags().contains(CloneFlags::CLONE_NEWUSER) {
            true => Some(another()?),
            false => None,
        };
        self.note_open()?;
        let ids = namespace::Ids::of_process();
        let report = match child::fork(namespace::flags() | CloneFlags::CLONE_FILES)? {
            Forked::Parent(supervisor) => return Ok(Entered::Supervisor(supervisor)),
            Forked::Child(report) => report,
        };
        self.inner = true;
        let entered = ids
            .apply()
            .and_then(|()| self.users.as_mut().map_or(Ok(()), namespace::keep_users))
            .and_then(|()| self.enter_sharing());
        Ok(match entered {
            // The server. What it reports goes to its parent.
            Ok(entered @ Entered::Sharing(_)) => entered,
            Ok(entered) => report.tell(namespace::keep_proc_alone().map(|()| entered)),
            Err(error) => report.tell(Err(error)),
        })
    }

    /// In namespaces nothing else is visible. Where they are refused, root uses chroot(2) with Landlock
    /// inside: chroot removes all paths, and Landlock blocks the ways out of a root directory. Landlock
    /// alone is for users who may not chroot(2): they can still see names of other files.
    fn enter_strongest(&mut self, supervised: bool) -> Entered {
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
            match self.enter(sandbox, supervised) {
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
        self.enter(Sandbox::None, supervised)
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
