//! The deadlines of a thread's coroutines.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Instant;

use crate::core::Core;

/// A time, and a number that makes it unique.
pub(crate) type Deadline = (Instant, u64);

/// The coroutines that wait for a deadline, in order of time.
#[derive(Default)]
pub(crate) struct Timers {
    table: RefCell<BTreeMap<Deadline, *const Core>>,
    last_number: Cell<u64>,
}

impl Timers {
    pub(crate) fn add(&self, when: Instant, core: &Core) -> Deadline {
        let number = self.last_number.get() + 1;
        self.last_number.set(number);
        self.table.borrow_mut().insert((when, number), core);
        (when, number)
    }

    pub(crate) fn remove(&self, deadline: &Deadline) {
        self.table.borrow_mut().remove(deadline);
    }

    /// The earliest deadline.
    pub(crate) fn first(&self) -> Option<Instant> {
        let table = self.table.borrow();
        table.first_key_value().map(|(&(when, _), _)| when)
    }

    /// Removes and returns the first coroutine whose deadline has passed.
    pub(crate) fn take_expired(&self, now: Instant) -> Option<*const Core> {
        let mut table = self.table.borrow_mut();
        let first = table.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}
