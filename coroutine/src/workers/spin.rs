//! Adaptive spinning before sleeping.
//!
//! With a free processor a job and its completion arrive within a microsecond, and a sleep costs
//! many times that. Without one, spinning takes time from the thread that would bring the work. So
//! spinning stops after a few failures, with a retry after a number of sleeps that doubles at each
//! failure.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::yield_now;
use std::time::{Duration, Instant};

/// How long the loop and the workers spin: a little longer than waking a worker takes, so that the
/// loop sees the completion of a worker that has slept. With less, neither would find the other
/// spinning again.
pub(super) const SEARCH: Duration = Duration::from_micros(20);
/// A sched_yield that takes longer has let another thread run.
const YIELDED: Duration = Duration::from_micros(4);
/// After this number of failures in a row spinning is suspended.
const MAX_FAILURES: u32 = 3;
/// It is retried after this number of sleeps, which doubles at each further failure,
const FIRST_PAUSE: u32 = 16;
/// up to this,
const LONGEST_PAUSE: u32 = 256;
/// or this, if a sched_yield has cost a time slice.
const LONGEST_PAUSE_LOADED: u32 = 8192;
/// Checks between two readings of the clock,
const CHECKS: u32 = 16;
/// and readings of the clock between two sched_yields: a few microseconds.
const ROUNDS: u32 = 8;

/// Spins until another thread has done something, before sleeping until then. It adapts: after
/// three failures in a row it does not spin for the next 16 sleeps, and for up to 256 if it keeps
/// failing, or 8192 on a loaded machine.
///
/// Threads that wait for the same thing may share it. Its state is a hint, and updates may get
/// lost.
///
/// ```
/// use std::time::Duration;
///
/// let spin = coroutine::Spin::new(Duration::from_micros(20));
/// assert!(spin.until(|| true));
/// assert!(!spin.until(|| false));
/// ```
pub struct Spin {
    limit: Duration,
    failures: AtomicU32,
    /// Calls that will not spin.
    skip: AtomicU32,
    /// The next value of `skip` after a failure.
    pause: AtomicU32,
}

impl Spin {
    /// Spins for up to `limit`. With zero it checks once.
    pub const fn new(limit: Duration) -> Spin {
        Spin {
            limit,
            failures: AtomicU32::new(0),
            skip: AtomicU32::new(0),
            pause: AtomicU32::new(FIRST_PAUSE),
        }
    }

    /// Calls `found` until it returns true, or spinning no longer pays. Returns its last result.
    pub fn until(&self, mut found: impl FnMut() -> bool) -> bool {
        if found() {
            return true;
        }
        // loom does not model time.
        if self.limit.is_zero() || cfg!(loom) {
            return false;
        }
        let skip = self.skip.load(Ordering::Relaxed);
        if skip > 0 {
            self.skip.store(skip - 1, Ordering::Relaxed);
            return false;
        }
        let end = Instant::now() + self.limit;
        loop {
            for _ in 0..ROUNDS {
                for _ in 0..CHECKS {
                    spin_loop();
                    if found() {
                        self.succeeded();
                        return true;
                    }
                }
                if Instant::now() >= end {
                    self.failed(false);
                    return false;
                }
            }
            // A thread that waits for this processor may be the one that this one waits for.
            let before = Instant::now();
            yield_now();
            if before.elapsed() >= YIELDED {
                self.failed(true);
                return found();
            }
        }
    }

    fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
        let pause = self.pause.load(Ordering::Relaxed);
        if pause > FIRST_PAUSE {
            self.pause.store(pause / 2, Ordering::Relaxed);
        }
    }

    /// The search has failed. `loaded` if another thread wants the processor.
    fn failed(&self, loaded: bool) {
        let failures = self.failures.load(Ordering::Relaxed) + 1;
        if failures < MAX_FAILURES && !loaded {
            self.failures.store(failures, Ordering::Relaxed);
            return;
        }
        // One more failure suspends it again.
        self.failures.store(MAX_FAILURES, Ordering::Relaxed);
        let pause = self.pause.load(Ordering::Relaxed);
        self.skip.store(pause, Ordering::Relaxed);
        let longest = if loaded {
            LONGEST_PAUSE_LOADED
        } else {
            LONGEST_PAUSE
        };
        // A pause that load has made longer than that stays until a search succeeds.
        self.pause
            .store((pause * 2).min(longest).max(pause), Ordering::Relaxed);
    }
}
