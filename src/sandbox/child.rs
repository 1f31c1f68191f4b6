//! The processes of the sandbox, made by fork.

use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpid, getppid};
use rustix::thread::futex::{self, Timespec};
use vm_memory::{MmapRegion, VolatileMemory};

use super::Error;
use crate::export::{errno_of, sys};

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

/// How a child tells its parent whether it has entered the sandbox: a word in memory that they share. A
/// pipe would not do, as they may share their descriptors too, and then its end stays open.
pub struct Report(MmapRegion);

/// The words of a report.
const PENDING: u32 = 0;
const ENTERED: u32 = 1;
/// With a step in bits 16 to 23, and the errno below.
const FAILED: u32 = 1 << 24;
/// How often to look for a child that was killed, and so tells nothing.
const LOOK_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

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

/// Forks a child with these flags of clone(2) and waits for its [`Report`]. With CLONE_FILES the child's
/// descriptors outlive it, and what one of the two closes is closed for the other. Errors: the step that
/// the kernel refused; nothing has changed then.
pub fn fork(flags: CloneFlags) -> Entered<Forked<Report>> {
    let report = Report::new()?;
    let parent = getpid();
    match at(Step::Process, fork_alone(flags))? {
        Some(child) => report.wait(child).map(|()| Forked::Parent(child)),
        None => report.begin(parent),
    }
}

/// [`fork`] into this user namespace, in which the parent, who is its owner, cannot make namespaces
/// without entering it, and then not go back.
pub fn fork_into(users: &OwnedFd, flags: CloneFlags) -> Entered<Forked<Report>> {
    let report = Report::new()?;
    let parent = getpid();
    let Some(between) = at(Step::Process, fork_alone(CloneFlags::CLONE_FILES))? else {
        let entered = at(Step::Ids, setns(users, CloneFlags::CLONE_NEWUSER));
        let forked =
            entered.and_then(|()| at(Step::Process, fork_alone(flags | CloneFlags::CLONE_PARENT)));
        return match forked {
            Ok(Some(child)) => {
                report.set_child(child);
                std::process::exit(0)
            }
            Ok(None) => report.begin(parent),
            Err(error) => report.tell(Err(error)),
        };
    };
    at(Step::Process, waitpid(between, None))?;
    match report.child() {
        Some(child) => report.wait(child).map(|()| Forked::Parent(child)),
        None => Err(report.told().err().unwrap_or((Step::Child, Errno::ECHILD))),
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
    fn new() -> Entered<Report> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let memory = MmapRegion::build(None, 4096, access, flags);
        let memory = memory.map_err(|_| (Step::Process, Errno::ENOMEM))?;
        Ok(Report(memory))
    }

    fn word(&self, index: usize) -> &AtomicU32 {
        // Within the page, and aligned.
        let word = self.0.get_atomic_ref(index * size_of::<u32>());
        word.expect("there is a word")
    }

    /// In the child.
    fn begin(self, parent: Pid) -> Entered<Forked<Report>> {
        match die_with(parent) {
            Ok(()) => Ok(Forked::Child(self)),
            Err(error) => self.tell(Err(error)),
        }
    }

    /// Tells the parent the result, and exits if it is an error.
    pub fn tell<T>(self, entered: Entered<T>) -> T {
        let word = match &entered {
            Ok(_) => ENTERED,
            Err((step, error)) => FAILED | (*step as u32) << 16 | (*error as u32 & 0xffff),
        };
        self.word(0).store(word, Release);
        let _ = futex::wake(self.word(0), futex::Flags::empty(), 1);
        entered.unwrap_or_else(|_| std::process::exit(1))
    }

    /// The number of the child of a process between. None: it has none.
    fn child(&self) -> Option<Pid> {
        let number = self.word(1).load(Acquire);
        (number != 0).then(|| Pid::from_raw(number as i32))
    }

    fn set_child(&self, child: Pid) {
        self.word(1).store(child.as_raw() as u32, Release);
    }

    /// What the child has told. Errors: also if it has told nothing.
    fn told(&self) -> Entered {
        let word = self.word(0).load(Acquire);
        if word == ENTERED {
            return Ok(());
        }
        let number = (word >> 16) as u8;
        let known = STEPS.iter().find(|(known, _)| *known as u8 == number);
        match known {
            Some((step, _)) if word & FAILED != 0 => {
                Err((*step, Errno::from_raw((word & 0xffff) as i32)))
            }
            _ => Err((Step::Child, Errno::ECHILD)),
        }
    }

    /// Waits until the child has told, or has ended.
    fn wait(&self, child: Pid) -> Entered {
        loop {
            let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            // Before the word is read, which is its last one then.
            let ended = !matches!(waitid(Id::Pid(child), look), Ok(WaitStatus::StillAlive));
            let told = self.told();
            if told.is_ok() {
                return told;
            }
            if ended || self.word(0).load(Acquire) != PENDING {
                let _ = waitpid(child, None);
                return self.told();
            }
            let flags = futex::Flags::empty();
            let _ = futex::wait(self.word(0), flags, PENDING, Some(&LOOK_INTERVAL));
        }
    }
}

/// Forks a child that shares this process's table of descriptors, and lets it `enter` the sandbox.
/// Errors: the step that the kernel refused; nothing has changed then.
pub fn fork_sharing<T>(enter: impl FnOnce() -> Entered<T>) -> Entered<Forked<T>> {
    Ok(match fork(CloneFlags::CLONE_FILES)? {
        Forked::Parent(child) => Forked::Parent(child),
        Forked::Child(report) => Forked::Child(report.tell(enter())),
    })
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

/// Waits for a child, and passes these signals on to it if `passes` says so. SIGCHLD must not be
/// ignored. Errors: those of waitpid(2) and kill(2).
pub fn wait(
    child: Pid,
    mut signals: SigSet,
    mut passes: impl FnMut(Signal) -> bool,
) -> Result<End, Errno> {
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, status) => return Ok(End::Exited(status)),
            WaitStatus::Signaled(_, signal, _) => return Ok(End::Killed(signal)),
            _ => {}
        }
        let signal = signals.wait()?;
        if signal == Signal::SIGCHLD || !passes(signal) {
            continue;
        }
        match kill(child, signal) {
            // It may have exited a moment ago.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
}
