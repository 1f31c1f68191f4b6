//! A queue of coroutines that wait for something to happen.

use std::time::Duration;

use super::mutex::{Mutex, MutexGuard};
use crate::core::List;
use crate::lifecycle::wait_in;
use crate::scheduler::{self, make_ready};

/// Coroutines that wait for something to happen: with a [`Mutex`], a condition variable.
///
/// ```
/// use coroutine::{WaitQueue, run_ready, spawn};
/// use std::rc::Rc;
///
/// let queue = Rc::new(WaitQueue::new());
/// let waits = queue.clone();
/// spawn(move || {
///     waits.wait();
///     println!("it has happened");
/// })?;
/// assert!(queue.wake_one());
/// assert_eq!(run_ready(), 1);
/// # Ok::<(), coroutine::StackError>(())
/// ```
pub struct WaitQueue {
    waiting: List,
}

impl WaitQueue {
    /// Nobody waits.
    pub const fn new() -> WaitQueue {
        WaitQueue {
            waiting: List::new(),
        }
    }

    /// Suspends the running coroutine until it is woken. What it waits for may be gone again by
    /// the time it runs: check, and wait again.
    ///
    /// # Panics
    /// Outside of a coroutine.
    pub fn wait(&self) {
        wait_in(&self.waiting);
    }

    /// As [`wait`](WaitQueue::wait), for `duration` at most. Returns whether it was woken in time.
    /// The loop sees to the time: [`next_deadline`](crate::next_deadline) and
    /// [`run_timers`](crate::run_timers).
    ///
    /// # Panics
    /// Outside of a coroutine.
    pub fn wait_timeout(&self, duration: Duration) -> bool {
        scheduler::wait_in_for(&self.waiting, duration)
    }

    /// Releases a mutex, waits, and takes the mutex again. Nothing that holds the mutex can wake
    /// in between.
    ///
    /// # Panics
    /// Outside of a coroutine.
    pub fn wait_with<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let mutex: &'a Mutex<T> = guard.mutex();
        // To nobody's notice before the coroutine is in the queue: nothing else runs until then.
        drop(guard);
        self.wait();
        mutex.lock()
    }

    /// Wakes the coroutine that has waited longest; false if none waits.
    pub fn wake_one(&self) -> bool {
        let first = self.waiting.pop_front();
        if let Some(core) = first {
            // SAFETY: it waited in the queue that it was taken out of just now.
            unsafe { make_ready(core) };
        }
        first.is_some()
    }

    /// Wakes all that wait, and returns how many.
    pub fn wake_all(&self) -> usize {
        let mut count = 0;
        while self.wake_one() {
            count += 1;
        }
        count
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Default for WaitQueue {
    fn default() -> WaitQueue {
        WaitQueue::new()
    }
}
