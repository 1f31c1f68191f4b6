//! What happens when the process that serves has ended.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nix::sys::signal::Signal;

use super::End;

/// More crashes than this...
const MOST_CRASHES: usize = 20;
/// ...or more deaths by SIGKILL than this...
const MOST_KILLS: usize = 200;
/// ...within this time end the daemon.
const WITHIN: Duration = Duration::from_secs(2);
/// The exit status of a process that a panic has ended.
const PANIC: i32 = 101;
/// The exit status of a server that cannot continue with the state that it has found: the next one begins
/// anew.
pub const BEGIN_ANEW: u8 = 100;
/// The exit status of a server that was asked to leave everything to the next one.
pub const HANDED_OVER: u8 = 102;

/// When another process takes over from the one that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Restart {
    /// Never: the daemon ends with it
    Never,
    /// If it has crashed or was killed, but not if it was killed for a system call that --seccomp
    /// forbids. The guest notices a pause
    Crash,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The daemon exits with this status.
    Exit(u8),
    /// Another process takes over.
    Restart {
        /// Whether the one before died by its own fault.
        faulty: bool,
    },
}

/// Decides what follows, and remembers how often processes died.
#[derive(Debug, Default)]
pub struct Deaths {
    crashes: VecDeque<Instant>,
    kills: VecDeque<Instant>,
}

impl Deaths {
    /// What follows after this end at this moment, and reports it.
    pub fn next(&mut self, end: End, restart: Restart, now: Instant) -> Next {
        let (how, faulty) = match end {
            End::Exited(status) if status == i32::from(BEGIN_ANEW) => {
                ("could not continue".to_owned(), false)
            }
            End::Exited(PANIC) => ("panicked".to_owned(), true),
            // It has said why. A status has 8 bits.
            End::Exited(status) => return Next::Exit(status as u8),
            End::Killed(Signal::SIGSYS) => {
                log::error!("the daemon was killed: it made a system call that --seccomp forbids");
                return Next::Exit(128 + Signal::SIGSYS as u8);
            }
            End::Killed(signal) => (format!("was killed by {signal}"), signal != Signal::SIGKILL),
        };
        let status = match end {
            End::Exited(status) => status as u8,
            End::Killed(signal) => 128 + signal as u8,
        };
        if restart == Restart::Never {
            log::error!("the daemon {how}");
            return Next::Exit(status);
        }
        let (deaths, most) = match faulty {
            true => (&mut self.crashes, MOST_CRASHES),
            false => (&mut self.kills, MOST_KILLS),
        };
        deaths.retain(|death| now.duration_since(*death) <= WITHIN);
        deaths.push_back(now);
        if deaths.len() > most {
            let seconds = WITHIN.as_secs();
            log::error!("the daemon {how}, and gives up after {most} times in {seconds} s");
            return Next::Exit(status);
        }
        log::warn!("the daemon {how}; another process takes over");
        Next::Restart { faulty }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_followed_by_another_process() {
        let now = Instant::now();
        let next = |end, restart| Deaths::default().next(end, restart, now);
        let killed = End::Killed(Signal::SIGKILL);
        assert_eq!(next(End::Exited(0), Restart::Crash), Next::Exit(0));
        assert_eq!(next(End::Exited(1), Restart::Crash), Next::Exit(1));
        assert_eq!(
            next(killed, Restart::Crash),
            Next::Restart { faulty: false }
        );
        assert_eq!(next(killed, Restart::Never), Next::Exit(137));
        let aborted = End::Killed(Signal::SIGABRT);
        assert_eq!(
            next(aborted, Restart::Crash),
            Next::Restart { faulty: true }
        );
        let panicked = End::Exited(PANIC);
        assert_eq!(
            next(panicked, Restart::Crash),
            Next::Restart { faulty: true }
        );
        assert_eq!(next(panicked, Restart::Never), Next::Exit(101));
        let commanded = End::Killed(Signal::SIGSYS);
        assert_eq!(next(commanded, Restart::Crash), Next::Exit(159));
    }

    #[test]
    fn many_deaths_in_a_short_time_are_the_end() {
        let of = |signal, most: usize| {
            let faulty = signal != Signal::SIGKILL;
            let again = Next::Restart { faulty };
            let mut deaths = Deaths::default();
            let mut now = Instant::now();
            for _ in 0..10 * most {
                now += WITHIN / most as u32 + Duration::from_millis(1);
                assert_eq!(deaths.next(End::Killed(signal), Restart::Crash, now), again);
            }
            now += 2 * WITHIN;
            for _ in 0..most {
                assert_eq!(deaths.next(End::Killed(signal), Restart::Crash, now), again);
            }
            let last = deaths.next(End::Killed(signal), Restart::Crash, now);
            assert_eq!(last, Next::Exit(128 + signal as u8));
        };
        of(Signal::SIGABRT, MOST_CRASHES);
        of(Signal::SIGKILL, MOST_KILLS);
    }
}
