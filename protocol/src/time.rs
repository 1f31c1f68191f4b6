//! A point in time, as attributes have it.

use crate::wire::record;

record! {
    /// A point in time, since the beginning of 1970 in UTC: `sec[8] nsec[8]`.
    Time {
        /// Seconds; before 1970 negative, in two's complement.
        sec: u64,
        /// Nanoseconds. The wire format does not limit them to a second.
        nsec: u64,
    }
}
