//! A moment, as attributes have it.

use crate::wire::record;

record! {
    /// A moment, since the beginning of 1970 in UTC: `sec[8] nsec[8]`.
    Time {
        /// Seconds; a moment before 1970 is negative, in two's complement.
        sec: u64,
        /// Nanoseconds. Nothing on the wire keeps them below a second.
        nsec: u64,
    }
}
