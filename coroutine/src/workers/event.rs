//! The descriptor by which a sleeping loop is woken.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::hub;

/// An eventfd(2).
pub(super) struct Event(OwnedFd);

impl Event {
    pub(super) fn new() -> io::Result<Event> {
        // SAFETY: the call takes no pointers, and returns a new descriptor, which only this owns.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Event(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// Reads the signal. Returns false if there is none.
    pub(super) fn clear(&self) -> bool {
        let mut count = 0_u64;
        // SAFETY: the kernel writes at most eight bytes to `count`.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) == 8 }
    }

    /// Blocks until there is a signal, or a signal handler interrupts it.
    pub(super) fn wait(&self) {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `poll` is one pollfd.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
    }
}

impl hub::Event for Event {
    fn signal(&self) {
        let one = 1_u64;
        // SAFETY: the kernel reads eight bytes from `one`. The counter cannot overflow, as there is
        // one write each time the loop goes to sleep.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
