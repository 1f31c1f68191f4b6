//! How long it pays to look for work before going to sleep.
//!
//! With a free processor a job and its completion come within a microsecond, and a sleep costs
//! many times that. Without one, looking takes the time from who would bring the work. So the time
//! is what has paid lately: it grows when the search succeeds, and is zero after a few failures,
//! but for a short try now and then.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::yield_now;
use std::time::{Duration, Instant};

/// How long the search for a job or its completion is: a little more than it takes to wake a worker,
/// so that the loop finds what a worker does that has slept. Otherwise neither would ever find the
/// other searching again.
pub(super) const SEARCH: Duration = Duration::from_micros(20);
/// A yield of the processor that takes longer has let something else run.
const GIVEN_WAY: Duration = Duration::from_micros(4);
/// After so many failures in a row it is not tried any more,
const MAX_FAILURES: u32 = 3;
/// but after so many sleeps, of which there are twice as many after each further failure.
const FIRST_PAUSE: u32 = 16;
const LONGEST_PAUSE: u32 = 256;
/// or this, where giving way has cost a time slice.
const LONGEST_PAUSE_LOADED: u32 = 8192;
/// Looks between two looks at the clock, and how many of these there are between two yields: a few
/// microseconds.
const LOOKS: u32 = 16;
const ROUNDS: u32 = 8;

/// A search for something that another processor is about to do, before going to sleep until it is
/// done. It remembers whether that has paid lately: after three failures in a row it is left out for
/// 16 sleeps, and for up to 256 if it goes on to fail.
///
/// May be shared by those that look for the same thing: what it remembers is no more than a hint, of
/// which updates may get lost.
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
    /// Searches to leave out, and how many that will be the next time.
    skip: AtomicU32,
    pause: AtomicU32,
}

impl Spin {
    /// One that takes up to `limit`; if that is zero it looks once.
    pub const fn new(limit: Duration) -> Spin {
        Spin {
            limit,
            failures: AtomicU32::new(0),
            skip: AtomicU32::new(0),
            pause: AtomicU32::new(FIRST_PAUSE),
        }
    }

    /// Looks until `found` says true, which is returned, or it does not pay any longer.
    pub fn until(&self, mut found: impl FnMut() -> bool) -> bool {
        if found() {
            return true;
        }
        // The time is not part of the model.
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
                for _ in 0..LOOKS {
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
            // Who waits for this processor may be the one that is waited for.
            let before = Instant::now();
            yield_now();
            if before.elapsed() >= GIVEN_WAY {
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

    /// The search has failed, or somebody else wants the processor.
    fn failed(&self, wanted: bool) {
        let failures = self.failures.load(Ordering::Relaxed) + 1;
        if failures < MAX_FAILURES && !wanted {
            self.failures.store(failures, Ordering::Relaxed);
            return;
        }
        // The next failure is enough.
        self.failures.store(MAX_FAILURES, Ordering::Relaxed);
        let pause = self.pause.load(Ordering::Relaxed);
        self.skip.store(pause, Ordering::Relaxed);
        let longest = if wanted {
            LONGEST_PAUSE_LOADED
        } else {
            LONGEST_PAUSE
        };
        // What a load has made longer than that stays so until a search succeeds.
        self.pause
            .store((pause * 2).min(longest).max(pause), Ordering::Relaxed);
    }
}
