//! Namespaces of its own for the daemon (namespaces(7)), with the share as the only root.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, fchdir, getegid, geteuid, getppid, pipe, pivot_root};

use super::{Error, Role, keep_descriptors_reachable};
use crate::export::sys;

/// Makes the child that is the daemon, with the share as its root. Errors: the step that the
/// kernel refused; nothing has changed then.
pub fn enter(share: &Path) -> Result<Role, Error> {
    let (reader, writer) = pipe().map_err(|error| refused("a pipe", error))?;
    let user = !geteuid().is_root();
    let mut flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if user {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    let (uid, gid, parent) = (
        geteuid().as_raw(),
        getegid().as_raw(),
        nix::unistd::getpid(),
    );
    match sys::fork_into(flags).map_err(|error| refused("namespaces", error))? {
        Some(child) => {
            drop(writer);
            wait_for_entry(reader, child)?;
            Ok(Role::Supervisor(child))
        }
        None => {
            drop(reader);
            let entered = die_with(parent)
                .and_then(|()| if user { map_own_ids(uid, gid) } else { Ok(()) })
                .and_then(|()| make_root(share));
            tell(writer, entered);
            Ok(Role::Daemon { share: "/".into() })
        }
    }
}

fn refused(what: &'static str, error: Errno) -> Error {
    Error::Refused {
        what,
        error,
        instead: if geteuid().is_root() {
            "chroot"
        } else {
            "none"
        },
    }
}

/// The steps that the child can fail in, and what it says of them.
const STEPS: [&str; 5] = [
    "the death of the parent",
    "a map of ids",
    "/proc/self/fd",
    "mounts",
    "a new root",
];
type Step = usize;
const PARENT: Step = 0;
const IDS: Step = 1;
const PROC: Step = 2;
const MOUNTS: Step = 3;
const ROOT: Step = 4;

fn at<T>(step: Step, result: Result<T, Errno>) -> Result<T, (Step, Errno)> {
    result.map_err(|error| (step, error))
}

/// Tells the parent how it went, and ends if it went wrong.
fn tell(writer: OwnedFd, entered: Result<(), (Step, Errno)>) {
    let message = match entered {
        Ok(()) => [STEPS.len() as u8, 0, 0],
        Err((step, error)) => {
            let [low, high, ..] = (error as i32).to_le_bytes();
            [step as u8, low, high]
        }
    };
    let told = fs::File::from(writer).write_all(&message);
    if entered.is_err() || told.is_err() {
        std::process::exit(1);
    }
}

fn wait_for_entry(reader: OwnedFd, child: Pid) -> Result<(), Error> {
    let mut message = [0; 3];
    let read = fs::File::from(reader).read_exact(&mut message);
    let step = usize::from(message[0]);
    if read.is_ok() && step == STEPS.len() {
        return Ok(());
    }
    let _ = waitpid(child, None);
    let error = match read {
        Ok(()) => Errno::from_raw(i32::from(message[1]) | i32::from(message[2]) << 8),
        Err(_) => Errno::ECHILD,
    };
    Err(refused(STEPS.get(step).unwrap_or(&"the child"), error))
}

/// The daemon stops in an orderly way when nobody passes signals on to it any more.
fn die_with(parent: Pid) -> Result<(), (Step, Errno)> {
    at(PARENT, prctl::set_pdeathsig(Signal::SIGTERM))?;
    // In the new namespace a living parent is nobody: number 0.
    let gone = getppid() != Pid::from_raw(0) && getppid() != parent;
    if gone {
        Err((PARENT, Errno::ESRCH))
    } else {
        Ok(())
    }
}

/// In a namespace of users an ordinary user is who they were, and nobody else is there.
fn map_own_ids(uid: u32, gid: u32) -> Result<(), (Step, Errno)> {
    let write =
        |path: &str, text: String| at(IDS, fs::write(path, text).map_err(crate::export::errno_of));
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

fn make_root(share: &Path) -> Result<(), (Step, Errno)> {
    let none = None::<&str>;
    // What the host mounts below the share later is to be seen, and nothing that is done here to
    // be seen by the host.
    at(
        MOUNTS,
        mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none),
    )?;
    // Of /proc the own descriptors alone: as a mount of its own there is no way up from it.
    let bind = MsFlags::MS_BIND;
    at(
        PROC,
        mount(Some("/proc/self/fd"), "/proc", none, bind, none),
    )?;
    at(
        MOUNTS,
        mount(Some(share), share, none, bind | MsFlags::MS_REC, none),
    )?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let share = at(ROOT, open(share, flags, Mode::empty()))?;
    at(PROC, keep_descriptors_reachable("/proc"))?;
    let descriptors = at(PROC, open(".", flags, Mode::empty()))?;
    at(ROOT, fchdir(share.as_fd()))?;
    // The old root is stacked on the new one, and then taken away.
    at(ROOT, pivot_root(".", "."))?;
    at(ROOT, umount2(".", MntFlags::MNT_DETACH))?;
    at(ROOT, fchdir(descriptors.as_fd()))
}

/// Waits for the daemon and passes on what it is told to it. Returns the exit status that the
/// daemon ended with.
pub fn supervise(daemon: Pid) -> Result<i32, Errno> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block()?;
    loop {
        match waitpid(daemon, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, status) => return Ok(status),
            WaitStatus::Signaled(_, Signal::SIGSYS, _) => {
                log::error!("the daemon was killed: it made a system call that --seccomp forbids");
                return Ok(128 + Signal::SIGSYS as i32);
            }
            WaitStatus::Signaled(_, signal, _) => {
                log::error!("the daemon was killed by {signal}");
                return Ok(128 + signal as i32);
            }
            _ => {}
        }
        match signals.wait()? {
            Signal::SIGCHLD => {}
            // It may have ended a moment ago.
            signal => match kill(daemon, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error),
            },
        }
    }
}
