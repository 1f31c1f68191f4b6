//! Requests that another process has begun and not answered, because it died.
//!
//! Most can be carried out again. For the others the file system is asked whether the change was made:
//! a name that exists, or is gone, since the request came is taken as its result.

use std::time::Duration;

use vhost_user::Resumed;

use crate::export::Stat;

/// In so many crashes a request may be under way. Then it is answered with EIO: it may be their cause.
const MAX_FAULTS: u8 = 2;

/// No clock by which files get their times is coarser.
const TICK: Duration = Duration::from_millis(10);

/// Whether a request may have been carried out already.
#[derive(Clone, Copy, Debug)]
pub struct Redo(Option<Resumed>);

impl Redo {
    /// What is known of the request.
    pub fn new(resumed: Option<Resumed>) -> Redo {
        Redo(resumed)
    }

    /// Whether it may have been carried out.
    pub fn is_possible(self) -> bool {
        self.0.is_some()
    }

    /// Whether it may be the cause of crashes.
    pub fn is_dangerous(self) -> bool {
        self.0.is_some_and(|resumed| resumed.faults >= MAX_FAULTS)
    }

    /// When it came, if it may have been carried out.
    pub fn since(self) -> Option<Duration> {
        self.0.map(|resumed| resumed.since)
    }

    /// Whether the file was surely created after the request came.
    pub fn is_older_than(self, stat: &Stat) -> bool {
        self.since()
            .is_some_and(|since| stat.created_since(since + TICK))
    }

    /// Whether the request may have changed the file's attributes, names or entries.
    pub fn has_changed(self, stat: &Stat) -> bool {
        self.since().is_some_and(|since| stat.changed_since(since))
    }
}
