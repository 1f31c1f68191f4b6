//! Waiting without sleeping, as long as that pays.
//!
//! To sleep and be woken costs some microseconds, tens of them on another processor. Looking again
//! and again costs nothing else if a processor is free, and the peer's time if not. So the time
//! that is spent follows what it brought: it grows while looking succeeds, falls to nothing after
//! a few failures, and is tried again more and more rarely.

use crate::sync::spin_loop;

#[cfg(not(shuttle))]
use std::time::{Duration, Instant};

/// The longest time to look.
#[cfg(not(shuttle))]
const MOST: Duration = Duration::from_micros(20);
/// The shortest worth trying.
#[cfg(not(shuttle))]
const LEAST: Duration = Duration::from_micros(2);
/// After giving up: how many waits pass before it is tried again, doubled at each failure.
const FIRST_PAUSE: u32 = 16;
const LAST_PAUSE: u32 = 4096;

/// One side's experience with looking.
pub(crate) struct Spin {
    #[cfg(not(shuttle))]
    budget: Duration,
    pause: u32,
    paused: u32,
}

impl Spin {
    pub(crate) fn new() -> Spin {
        Spin {
            #[cfg(not(shuttle))]
            budget: MOST,
            pause: FIRST_PAUSE,
            paused: 0,
        }
    }

    /// Looks until `ready`, or for as long as seems worth it.
    #[cfg(not(shuttle))]
    pub(crate) fn until(&mut self, ready: impl Fn() -> bool) -> bool {
        if ready() {
            return true;
        }
        if self.paused > 0 {
            self.paused -= 1;
            return false;
        }
        if !several_processors() {
            self.paused = LAST_PAUSE;
            return false;
        }
        let start = Instant::now();
        loop {
            for _ in 0..32 {
                spin_loop();
                if ready() {
                    self.budget = (self.budget * 2).min(MOST);
                    self.pause = FIRST_PAUSE;
                    return true;
                }
            }
            if start.elapsed() >= self.budget {
                break;
            }
        }
        self.budget /= 2;
        if self.budget < LEAST {
            self.budget = LEAST;
            self.paused = self.pause;
            self.pause = (self.pause * 2).min(LAST_PAUSE);
        }
        false
    }

    /// The model checker tries all orders anyway: one look stands for many.
    #[cfg(shuttle)]
    pub(crate) fn until(&mut self, ready: impl Fn() -> bool) -> bool {
        let _ = (FIRST_PAUSE, LAST_PAUSE, self.pause, self.paused);
        spin_loop();
        ready()
    }
}

/// On one processor looking only keeps the other side from working.
#[cfg(not(shuttle))]
fn several_processors() -> bool {
    use std::sync::OnceLock;
    static SEVERAL: OnceLock<bool> = OnceLock::new();
    *SEVERAL.get_or_init(|| std::thread::available_parallelism().is_ok_and(|n| n.get() > 1))
}
