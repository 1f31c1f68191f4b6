//! Waiting for a deadline.

use std::time::Duration;

use super::queue::WaitQueue;

/// A sleep that others can end.
///
/// ```
/// use coroutine::{Sleep, run_ready, spawn};
/// use std::{rc::Rc, time::Duration};
///
/// let sleep = Rc::new(Sleep::new());
/// let sleeps = sleep.clone();
/// spawn(move || assert!(!sleeps.sleep(Duration::from_secs(3600)), "nobody waits that long"))?;
/// assert_eq!(sleep.wake(), 1);
/// assert_eq!(run_ready(), 1);
/// # Ok::<(), coroutine::StackError>(())
/// ```
#[derive(Default)]
pub struct Sleep {
    queue: WaitQueue,
}

impl Sleep {
    /// A sleep without sleepers.
    pub const fn new() -> Sleep {
        Sleep {
            queue: WaitQueue::new(),
        }
    }

    /// Suspends the running coroutine for `duration`, or until it is [woken](Sleep::wake). Returns
    /// whether the whole duration has passed. The loop must use
    /// [`next_deadline`](crate::next_deadline) and [`run_timers`](crate::run_timers).
    ///
    /// # Panics
    /// Outside of a coroutine.
    pub fn sleep(&self, duration: Duration) -> bool {
        !self.queue.wait_timeout(duration)
    }

    /// Wakes all sleepers. Returns their number.
    pub fn wake(&self) -> usize {
        self.queue.wake_all()
    }
}

/// Suspends the running coroutine for `duration`. The loop must use
/// [`next_deadline`](crate::next_deadline) and [`run_timers`](crate::run_timers).
///
/// # Panics
/// Outside of a coroutine.
pub fn sleep(duration: Duration) {
    Sleep::new().sleep(duration);
}
