//! A number of coroutines at a time.

use std::cell::Cell;

use crate::core::{Core, List};
use crate::lifecycle::{this, wait_in};
use crate::scheduler::make_ready;

/// A number of permits, each had by one coroutine at a time.
pub struct Semaphore {
    free: Cell<usize>,
    waiting: List,
}

/// One of the permits of a [`Semaphore`] until it is dropped.
pub struct Permit<'a>(&'a Semaphore);

/// `Core::wish` of one that waits, and of one that has been given a permit.
const WANTED: u8 = 0;
const GRANTED: u8 = 1;

impl Semaphore {
    /// A semaphore of `permits` permits.
    pub const fn new(permits: usize) -> Semaphore {
        Semaphore {
            free: Cell::new(permits),
            waiting: List::new(),
        }
    }

    /// Waits for a permit.
    ///
    /// # Panics
    /// If it has to wait outside of a coroutine.
    pub fn acquire(&self) -> Permit<'_> {
        if self.free.get() > 0 {
            self.free.set(self.free.get() - 1);
            return Permit(self);
        }
        let waiter = Waiter {
            semaphore: self,
            // SAFETY: it is used in this frame alone.
            core: unsafe { this() },
        };
        waiter.core.wish.set(WANTED);
        wait_in(&self.waiting);
        std::mem::forget(waiter);
        Permit(self)
    }

    /// How many permits nobody has.
    pub fn available(&self) -> usize {
        self.free.get()
    }

    fn put_back(&self) {
        // To who has waited longest: then it is never free.
        match self.waiting.pop_front() {
            Some(core) => {
                core.wish.set(GRANTED);
                // SAFETY: it waited in the queue that it was taken out of just now.
                unsafe { make_ready(core) };
            }
            None => self.free.set(self.free.get() + 1),
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.put_back();
    }
}

/// Passes a permit on that is not wanted any more, as the coroutine is being unwound.
struct Waiter<'a> {
    semaphore: &'a Semaphore,
    core: &'a Core,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if self.core.wish.get() == GRANTED {
            self.semaphore.put_back();
        }
    }
}
