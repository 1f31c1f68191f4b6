//! Queues of coroutines, first in, first out, linked through the coroutines themselves.

use std::cell::Cell;
use std::ptr;

use crate::core::Core;

/// A queue of coroutines. A coroutine is in one queue at most.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct List {
    first: Cell<*const Core>,
    last: Cell<*const Core>,
}

impl List {
    pub(crate) const fn new() -> List {
        List {
            first: Cell::new(ptr::null()),
            last: Cell::new(ptr::null()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.get().is_null()
    }

    pub(crate) fn first<'a>(&self) -> Option<&'a Core> {
        // SAFETY: what is in a queue waits there, and takes itself out before it goes away.
        unsafe { self.first.get().as_ref() }
    }

    pub(crate) fn push_back(&self, core: &Core) {
        let last = self.last.replace(core);
        core.previous.set(last);
        core.next.set(ptr::null());
        // SAFETY: as for `first`.
        match unsafe { last.as_ref() } {
            Some(last) => last.next.set(core),
            None => self.first.set(core),
        }
    }

    pub(crate) fn pop_front<'a>(&self) -> Option<&'a Core> {
        let core = self.first()?;
        self.remove(core);
        Some(core)
    }

    /// Takes `core` out, which must be in this queue.
    pub(crate) fn remove(&self, core: &Core) {
        let (previous, next) = (
            core.previous.replace(ptr::null()),
            core.next.replace(ptr::null()),
        );
        // SAFETY: as for `first`; the neighbours are in the queue.
        unsafe {
            match previous.as_ref() {
                Some(previous) => previous.next.set(next),
                None => self.first.set(next),
            }
            match next.as_ref() {
                Some(next) => next.previous.set(previous),
                None => self.last.set(previous),
            }
        }
    }
}
