//! Keeps what a guest can bring about without end out of the log.

use std::cell::Cell;

/// Counts events and says which of them is worth a line: the first, the second, the fourth, the
/// eighth, and so on.
#[derive(Default)]
pub(crate) struct Tally(Cell<u64>);

impl Tally {
    /// One more; its number if it is to be told of.
    pub(crate) fn count(&self) -> Option<u64> {
        let number = self.0.get().saturating_add(1);
        self.0.set(number);
        number.is_power_of_two().then_some(number)
    }
}
