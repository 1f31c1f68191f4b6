//! A queue of coroutines that wait for an event.

use std::time::Duration;

use super::mutex::{Mutex, MutexGuard};
use crate::core::List;
use crate::lifecycle::wait_in;
use crate::scheduler::{self, make_ready};

/// Coroutines that wait for an event. Together with a [`Mutex`] it is a condition variable.
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
    /// An empty queue.
    pub const fn new() -> WaitQueue {
        WaitQueue {
            waiting: List::new(),
        }
    }

    /// Suspends the running coroutine until it is woken. Its condition may be false again when it
    /// runs: check it, and wait again.
    ///
    /// # Panics
    /// Outside of a coroutine.
    pub fn wait(&self) {
        wait_in(&self.waiting);
    }

    /// As [`wait`](WaitQueue::wait), at most for `duration`. Returns whether it was woken in time.
    /// The loop must use [`next_deadline`](crate::next_deadline) and
    /// [`run_timers`](crate::run_timers).
    ///
    /// # Panics
    /// Outside of a coroutine.
    pub fn wait_timeout(&self, duration: Duration) -> bool {
        scheduler::wait_in_for(&self.waiting, duration)
    }

    /// Unlocks a mutex, waits, and locks the mutex again. A coroutine that locks the mutex and
    /// wakes this queue cannot do so between the unlock and the wait.
    ///
    /// # Panics
    /// Outside of a coroutine.
    pub fn wait_with<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let mutex: &'a Mutex<T> = guard.mutex();
        // No other coroutine runs before this one is in the queue.
        drop(guard);
        self.wait();
        mutex.lock()
    }

    /// Wakes the coroutine that has waited longest. Returns false if none waits.
    pub fn wake_one(&self) -> bool {
        let first = self.waiting.pop_front();
        if let Some(core) = first {
            // SAFETY: it waited in this queue, and was just removed from it.
            unsafe { make_ready(core) };
        }
        first.is_some()
    }

    /// Wakes all waiting coroutines. Returns their number.
    pub fn wake_all(&self) -> usize {
        let mut count = 0;
        while self.wake_one() {
            count += 1;
        }
        count
    }

    /// Whether no coroutine waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Default for WaitQueue {
    fn default() -> WaitQueue {
        WaitQueue::new()
    }
}
