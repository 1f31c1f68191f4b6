//! The processes of the sandbox, made by fork.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid, pipe};

use super::Error;
use crate::export::{errno_of, sys};
use crate::state::Memory;

/// The steps in which a child can fail, and their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// The process itself, in its namespaces.
    Process,
    /// Anything before the child reports.
    Child,
}

const STEPS: [(Step, &str); 8] = [
    (Step::Parent, "the death of the parent"),
    (Step::Ids, "a map of ids"),
    (Step::Descriptors, "/proc/self/fd"),
    (Step::Mounts, "mounts"),
    (Step::Root, "a new root"),
    (Step::Landlock, "Landlock"),
    (Step::Process, "namespaces"),
    (Step::Child, "the child"),
];

/// What a step of the child returns.
pub type Entered<T = ()> = Result<T, (Step, Errno)>;

/// Names the step that a call belongs to.
pub fn at<T>(step: Step, result: Result<T, Errno>) -> Entered<T> {
    result.map_err(|error| (step, error))
}

/// Which process this is after a fork.
pub enum Forked<T> {
    /// The parent of this child.
    Parent(Pid),
    /// The child.
    Child(T),
}

/// By which a child tells its parent whether it has entered the sandbox.
pub struct Report(OwnedFd);

/// An error that names the refused step, and `instead` as an easier sandbox.
pub fn refused(instead: &'static str) -> impl Fn((Step, Errno)) -> Error {
    move |(step, error)| {
        let what = STEPS.iter().find(|(known, _)| *known == step);
        Error::Refused {
            what: what.map_or("the child", |(_, name)| name),
            error,
            instead,
        }
    }
}

/// Forks a child into these new namespaces and waits for its [`Report`]. Errors: the step that the kernel
/// refused; nothing has changed then.
pub fn fork(namespaces: CloneFlags) -> Entered<Forked<Report>> {
    let (reader, writer) = at(Step::Process, pipe())?;
    let parent = getpid();
    match at(Step::Process, fork_alone(namespaces))? {
        Some(child) => {
            drop(writer);
            wait_for_entry(reader, child)?;
            Ok(Forked::Parent(child))
        }
        None => {
            drop(reader);
            let report = Report(writer);
            match die_with(parent) {
                Ok(()) => Ok(Forked::Child(report)),
                Err(error) => report.tell(Err(error)),
            }
        }
    }
}

/// Errors: EBUSY if there is another thread, those of clone(2).
fn fork_alone(flags: CloneFlags) -> Result<Option<Pid>, Errno> {
    if sys::count_threads().map_err(errno_of)? != 1 {
        return Err(Errno::EBUSY);
    }
    // SAFETY: this thread is the only one, as was counted, and starts no other.
    unsafe { sys::fork_into(flags) }
}

impl Report {
    /// The descriptor of the pipe.
    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Tells the parent the result, and exits if it is an error.
    pub fn tell<T>(self, entered: Entered<T>) -> T {
        let message = match &entered {
            Ok(_) => ENTERED,
            Err((step, error)) => failure(*step, *error),
        };
        let told = fs::File::from(self.0).write_all(&message);
        match entered {
            Ok(inside) if told.is_ok() => inside,
            _ => std::process::exit(1),
        }
    }
}

/// Forks a child that shares this process's table of descriptors, and lets it `enter` the sandbox. The
/// child's descriptors outlive it, and what one of the two closes is closed for the other. The child
/// reports by `memory`. Errors: the step that the kernel refused; nothing has changed then.
pub fn fork_sharing<T>(memory: &Memory, enter: impl FnOnce() -> Entered<T>) -> Entered<Forked<T>> {
    let parent = getpid();
    match at(Step::Process, fork_alone(CloneFlags::CLONE_FILES))? {
        Some(child) => {
            wait_for_stop(memory, child)?;
            Ok(Forked::Parent(child))
        }
        None => match die_with(parent).and_then(|()| enter()) {
            Ok(inside) => {
                // It stops itself to report: the end of a pipe would stay open in the parent.
                let _ = kill(getpid(), Signal::SIGSTOP);
                Ok(Forked::Child(inside))
            }
            Err((step, error)) => {
                let [step, low, high] = failure(step, error);
                memory.tell(u32::from_le_bytes([step, low, high, 0]));
                std::process::exit(1)
            }
        },
    }
}

const ENTERED: [u8; 3] = [STEPS.len() as u8, 0, 0];

fn failure(step: Step, error: Errno) -> [u8; 3] {
    let [low, high, ..] = (error as i32).to_le_bytes();
    [step as u8, low, high]
}

fn explained([step, low, high]: [u8; 3]) -> (Step, Errno) {
    let known = STEPS.iter().find(|(known, _)| *known as u8 == step);
    let error = Errno::from_raw(i32::from(low) | i32::from(high) << 8);
    (known.map_or(Step::Child, |(step, _)| *step), error)
}

fn wait_for_entry(reader: OwnedFd, child: Pid) -> Entered {
    let mut message = [0; 3];
    let read = fs::File::from(reader).read_exact(&mut message);
    if read.is_ok() && message == ENTERED {
        return Ok(());
    }
    let _ = waitpid(child, None);
    match read {
        Ok(()) => Err(explained(message)),
        Err(_) => Err((Step::Child, Errno::ECHILD)),
    }
}

/// Waits until the child has stopped itself, and continues it.
fn wait_for_stop(memory: &Memory, child: Pid) -> Entered {
    loop {
        match waitpid(child, Some(WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Stopped(..)) => {
                let _ = kill(child, Signal::SIGCONT);
                return Ok(());
            }
            Ok(WaitStatus::Exited(..)) => {
                let [step, low, high, _] = memory.told().to_le_bytes();
                return Err(explained([step, low, high]));
            }
            Ok(WaitStatus::Signaled(..)) => return Err((Step::Child, Errno::ECHILD)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err((Step::Child, error)),
        }
    }
}

/// The child stops in order when nobody passes signals on to it any more.
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

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this exit status.
    Exited(i32),
    /// By this signal.
    Killed(Signal),
}

/// Waits for a child and passes these signals on to it. SIGCHLD must not be ignored. Errors: those of
/// waitpid(2) and kill(2).
pub fn wait(child: Pid, mut signals: SigSet) -> Result<End, Errno> {
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, status) => return Ok(End::Exited(status)),
            WaitStatus::Signaled(_, signal, _) => return Ok(End::Killed(signal)),
            _ => {}
        }
        match signals.wait()? {
            Signal::SIGCHLD => {}
            // It may have exited a moment ago.
            signal => match kill(child, signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error),
            },
        }
    }
}
