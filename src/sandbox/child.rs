//! The process that serves, made by fork, and the process outside that waits for it.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid, pipe};

use super::{Error, Inside, Role};
use crate::export::{errno_of, sys};

/// The steps in which the child can fail, and their names.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Step {
    /// Ending together with the parent.
    Parent,
    /// The id map of a user namespace.
    Ids,
    /// Access to its own descriptors.
    Descriptors,
    /// The mounts.
    Mounts,
    /// The root directory.
    Root,
    /// The rules of Landlock.
    Landlock,
}

const STEPS: [(Step, &str); 6] = [
    (Step::Parent, "the death of the parent"),
    (Step::Ids, "a map of ids"),
    (Step::Descriptors, "/proc/self/fd"),
    (Step::Mounts, "mounts"),
    (Step::Root, "a new root"),
    (Step::Landlock, "Landlock"),
];

/// What a step of the child returns.
pub type Entered<T = ()> = Result<T, (Step, Errno)>;

/// Names the step that a call belongs to.
pub fn at<T>(step: Step, result: Result<T, Errno>) -> Entered<T> {
    result.map_err(|error| (step, error))
}

/// Forks the daemon into these new namespaces and lets it `enter` the sandbox. Errors: the step
/// that the kernel refused, with `instead` as an easier sandbox; nothing has changed then.
pub fn fork(
    namespaces: CloneFlags,
    instead: &'static str,
    enter: impl FnOnce() -> Entered<Inside>,
) -> Result<Role, Error> {
    let refused = |what, error| Error::Refused {
        what,
        error,
        instead,
    };
    let (reader, writer) = pipe().map_err(|error| refused("a pipe", error))?;
    let parent = nix::unistd::getpid();
    match fork_alone(namespaces).map_err(|error| refused("namespaces", error))? {
        Some(child) => {
            drop(writer);
            wait_for_entry(reader, child).map_err(|(what, error)| refused(what, error))?;
            Ok(Role::Supervisor(child))
        }
        None => {
            drop(reader);
            let inside = tell(writer, die_with(parent).and_then(|()| enter()));
            Ok(Role::Daemon(inside))
        }
    }
}

/// Errors: EBUSY if there is another thread, those of clone(2).
fn fork_alone(namespaces: CloneFlags) -> Result<Option<Pid>, Errno> {
    let threads = fs::read_dir("/proc/self/task").map_err(errno_of)?.count();
    if threads != 1 {
        return Err(Errno::EBUSY);
    }
    // SAFETY: this thread is the only one, as was counted, and starts no other.
    unsafe { sys::fork_into(namespaces) }
}

/// Tells the parent the result, and exits if it is an error.
fn tell<T>(writer: OwnedFd, entered: Entered<T>) -> T {
    let message = match &entered {
        Ok(_) => [STEPS.len() as u8, 0, 0],
        Err((step, error)) => {
            let [low, high, ..] = (*error as i32).to_le_bytes();
            [*step as u8, low, high]
        }
    };
    let told = fs::File::from(writer).write_all(&message);
    match entered {
        Ok(share) if told.is_ok() => share,
        _ => std::process::exit(1),
    }
}

fn wait_for_entry(reader: OwnedFd, child: Pid) -> Result<(), (&'static str, Errno)> {
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
    let what = STEPS.iter().find(|(known, _)| *known as usize == step);
    Err((what.map_or("the child", |(_, name)| name), error))
}

/// The daemon stops in order when nobody passes signals on to it any more.
fn die_with(parent: Pid) -> Entered {
    at(Step::Parent, prctl::set_pdeathsig(Signal::SIGTERM))?;
    // A parent in the outer pid namespace has number 0 here.
    let gone = getppid() != Pid::from_raw(0) && getppid() != parent;
    if gone {
        Err((Step::Parent, Errno::ESRCH))
    } else {
        Ok(())
    }
}

/// Waits for the daemon and passes these signals on to it. SIGCHLD must not be ignored. Returns the
/// daemon's exit status.
pub fn supervise(daemon: Pid, mut signals: SigSet) -> Result<i32, Errno> {
    signals.add(Signal::SIGCHLD);
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
            // It may have exited a moment ago.
            signal => match kill(daemon, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error),
            },
        }
    }
}
