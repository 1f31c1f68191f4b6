//! How long it pays to look for work before going to sleep.
//!
//! With a free processor a job and its completion come within a microsecond, and a sleep costs
//! many times that. Without one, looking takes the time from who would bring the work. So the time
//! is what has paid lately: it grows when the search succeeds, and is zero after a few failures,
//! but for a short try now and then.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a search is: a little more than it takes to wake a worker, so that the loop finds what
/// a worker does that has slept. Otherwise neither would ever find the other searching again.
const LIMIT: Duration = Duration::from_micros(20);
/// A search that takes this long was interrupted by another program.
const INTERRUPTED: Duration = Duration::from_micros(100);
/// After so many failures in a row it is not tried any more,
const MAX_FAILURES: u32 = 3;
/// but after so many sleeps, of which there are twice as many after each further failure.
const FIRST_PAUSE: u32 = 16;
const LONGEST_PAUSE: u32 = 256;
/// Looks between two looks at the clock.
const LOOKS: u32 = 16;

/// What has paid lately. Shared by those that look for the same thing: no more than a hint, so
/// that updates may get lost.
pub(super) struct Spin {
    failures: AtomicU32,
    /// Searches to leave out, and how many that will be the next time.
    skip: AtomicU32,
    pause: AtomicU32,
}

impl Spin {
    pub(super) const fn new() -> Spin {
        Spin {
            failures: AtomicU32::new(0),
            skip: AtomicU32::new(0),
            pause: AtomicU32::new(FIRST_PAUSE),
        }
    }

    /// Looks until `found` says true, which is returned, or it does not pay any longer.
    pub(super) fn until(&self, mut found: impl FnMut() -> bool) -> bool {
        if found() {
            return true;
        }
        if cfg!(loom) {
            // The time is not part of the model.
            return false;
        }
        let skip = self.skip.load(Ordering::Relaxed);
        if skip > 0 {
            self.skip.store(skip - 1, Ordering::Relaxed);
            return false;
        }
        let begin = Instant::now();
        loop {
            for _ in 0..LOOKS {
                spin_loop();
                if found() {
                    self.failures.store(0, Ordering::Relaxed);
                    self.pause.store(FIRST_PAUSE, Ordering::Relaxed);
                    return true;
                }
            }
            let elapsed = begin.elapsed();
            if elapsed >= LIMIT {
                self.failed(elapsed >= INTERRUPTED);
                return false;
            }
        }
    }

    fn failed(&self, interrupted: bool) {
        let failures = self.failures.load(Ordering::Relaxed) + 1;
        if failures < MAX_FAILURES && !interrupted {
            self.failures.store(failures, Ordering::Relaxed);
            return;
        }
        // The next failure is enough.
        self.failures.store(MAX_FAILURES, Ordering::Relaxed);
        let pause = self.pause.load(Ordering::Relaxed);
        self.skip.store(pause, Ordering::Relaxed);
        self.pause
            .store((pause * 2).min(LONGEST_PAUSE), Ordering::Relaxed);
    }
}
