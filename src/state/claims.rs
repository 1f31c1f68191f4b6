//! The descriptors of a process that has died.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// The open descriptors of a process that has died, whose table of descriptors this process shares. Those
/// that nobody has taken over are closed when this is dropped.
#[derive(Debug)]
pub struct Claims(BTreeSet<RawFd>);

impl Claims {
    /// These descriptors.
    ///
    /// # Safety
    ///
    /// Nothing in this process owns or uses one of them, and no other process that shares the table of
    /// descriptors is going to close one.
    pub unsafe fn new(open: impl IntoIterator<Item = RawFd>) -> Claims {
        Claims(open.into_iter().collect())
    }

    /// No descriptors: there was no process before.
    pub fn none() -> Claims {
        Claims(BTreeSet::new())
    }

    /// Takes over a descriptor. Errors: EBADF if the process before did not have it, or it was taken
    /// over already.
    pub fn take(&mut self, fd: RawFd) -> io::Result<OwnedFd> {
        if !self.0.remove(&fd) {
            return Err(Errno::EBADF.into());
        }
        // SAFETY: open, and owned by nobody else: it was the dead process's alone, by the contract of
        // `new`, and is not given out again, since it has just been removed.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        for fd in std::mem::take(&mut self.0) {
            // SAFETY: as in `take`: open, the dead process's, and never given out.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}
