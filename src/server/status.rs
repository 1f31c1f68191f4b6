//! What the guest has built up, for whoever asks the daemon.

use std::fmt::{self, Display, Formatter};

use super::Server;

/// The numbers of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Fids.
    pub fids: usize,
    /// Requests that have no reply yet.
    pub requests: usize,
    /// Descriptors of open files and directories, and of locks: one for each file that is locked.
    pub open_files: usize,
    /// Locked ranges, and processes of the guest that hold them.
    pub locks: usize,
    /// Files that are locked, or that a lock is asked for.
    pub locked_files: usize,
}

impl Server {
    /// The numbers of this moment.
    pub fn status(&self) -> Status {
        let session = &self.session;
        Status {
            fids: session.fids.len(),
            requests: self.in_flight.get(),
            open_files: session.inodes.open_files(),
            locks: session.locks.used(),
            locked_files: session.locks.files(),
        }
    }
}

impl Display for Status {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "fids: {}, requests under way: {}, descriptors of open files and locks: {}, \
             locked ranges and their processes: {}, on files: {}",
            self.fids, self.requests, self.open_files, self.locks, self.locked_files
        )
    }
}
