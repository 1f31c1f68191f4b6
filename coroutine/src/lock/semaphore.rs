//! A counting semaphore.

use std::cell::Cell;

use crate::core::{Core, List};
use crate::lifecycle::{this, wait_in};
use crate::scheduler::make_ready;

/// A counting semaphore: a number of permits, each held by one coroutine at a time.
pub struct Semaphore {
    free: Cell<usize>,
    waiting: List,
}

/// A permit of a [`Semaphore`], returned when it is dropped.
pub struct Permit<'a>(&'a Semaphore);

/// `Core::wait_mode` of a waiting coroutine, and of one that was granted a permit.
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

    /// Takes a permit, and waits for one if necessary.
    ///
    /// # Panics
    /// If it must wait outside of a coroutine.
    pub fn acquire(&self) -> Permit<'_> {
        if self.free.get() > 0 {
            self.free.set(self.free.get() - 1);
            return Permit(self);
        }
        let waiter = Waiter {
            semaphore: self,
            // SAFETY: the reference does not leave this frame, which is on the coroutine's stack.
            core: unsafe { this() },
        };
        waiter.core.wait_mode.set(WANTED);
        wait_in(&self.waiting);
        std::mem::forget(waiter);
        Permit(self)
    }

    /// The number of free permits.
    pub fn available(&self) -> usize {
        self.free.get()
    }

    fn put_back(&self) {
        // Handed directly to the first waiter, so that it is never free in between.
        match self.waiting.pop_front() {
            Some(core) => {
                core.wait_mode.set(GRANTED);
                // SAFETY: it waited in this queue, and was just removed from it.
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

/// Returns a granted permit when the waiting coroutine is unwound.
struct Waiter<'a> {
    semaphore: &'a Semaphore,
    core: &'a Core,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if self.core.wait_mode.get() == GRANTED {
            self.semaphore.put_back();
        }
    }
}
