//! Which coroutines wait for the time, and until when.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Instant;

use crate::core::Core;

/// A time, told apart by a number from others that are the same.
pub(crate) type Deadline = (Instant, u64);

/// What is to happen when.
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

    /// The first time that is waited for.
    pub(crate) fn first(&self) -> Option<Instant> {
        let table = self.table.borrow();
        table.first_key_value().map(|(&(when, _), _)| when)
    }

    /// Takes the first out whose time has come.
    pub(crate) fn take_expired(&self, now: Instant) -> Option<*const Core> {
        let mut table = self.table.borrow_mut();
        let first = table.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}
