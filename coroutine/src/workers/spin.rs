//! How long it pays to look for work before going to sleep.
//!
//! With a free processor a job and its completion come within a microsecond, and a sleep costs
//! many times that. Without one, looking takes the time from who would bring the work. So the time
//! is what has paid lately: it grows when the search succeeds, and is zero after a few failures,
//! but for a short try now and then.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Nanoseconds of the longest and of the shortest search.
const LONGEST: u32 = 20_000;
const SHORTEST: u32 = 2_500;
/// After so many failures in a row it is not tried any more,
const MAX_FAILURES: u32 = 3;
/// but for each time that this number has doubled, up to once in a while.
const FIRST_PAUSE: u32 = 16;
const LONGEST_PAUSE: u32 = 1024;
/// Looks between two looks at the clock.
const LOOKS: u32 = 16;

/// What has paid lately. Shared by those that look for the same thing: no more than a hint, so
/// that updates may get lost.
pub(super) struct Spin {
    /// Nanoseconds.
    limit: AtomicU32,
    failures: AtomicU32,
    /// Searches to leave out, and how many that were the last time.
    skip: AtomicU32,
    pause: AtomicU32,
}

impl Spin {
    pub(super) const fn new() -> Spin {
        Spin {
            limit: AtomicU32::new(LONGEST),
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
        let limit = self.limit.load(Ordering::Relaxed);
        let begin = Instant::now();
        loop {
            for _ in 0..LOOKS {
                spin_loop();
                if found() {
                    self.paid();
                    return true;
                }
            }
            let elapsed = begin.elapsed();
            if elapsed >= Duration::from_nanos(limit.into()) {
                // Much longer than that: another program has had the processor meanwhile.
                self.failed(elapsed > Duration::from_nanos(10 * u64::from(LONGEST)));
                return false;
            }
        }
    }

    fn paid(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.pause.store(FIRST_PAUSE, Ordering::Relaxed);
        let limit = self.limit.load(Ordering::Relaxed);
        self.limit
            .store((limit * 2).min(LONGEST), Ordering::Relaxed);
    }

    fn failed(&self, loaded: bool) {
        let failures = self.failures.load(Ordering::Relaxed) + 1;
        if failures < MAX_FAILURES && !loaded {
            self.failures.store(failures, Ordering::Relaxed);
            return;
        }
        // The next try is a short one, and its failure is enough.
        self.failures.store(MAX_FAILURES, Ordering::Relaxed);
        self.limit.store(SHORTEST, Ordering::Relaxed);
        let pause = self.pause.load(Ordering::Relaxed);
        self.skip.store(pause, Ordering::Relaxed);
        self.pause
            .store((pause * 2).min(LONGEST_PAUSE), Ordering::Relaxed);
    }
}
