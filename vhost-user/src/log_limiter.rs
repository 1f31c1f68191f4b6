//! Keeps a guest from flooding the log.

use std::cell::Cell;

/// Counts events and says which of them to log: the first, the second, the fourth, the eighth, and
/// so on.
#[derive(Default)]
pub(crate) struct LogLimiter(Cell<u64>);

impl LogLimiter {
    /// Counts an event; returns its number if it is to be logged.
    pub(crate) fn count(&self) -> Option<u64> {
        let number = self.0.get().saturating_add(1);
        self.0.set(number);
        number.is_power_of_two().then_some(number)
    }
}
