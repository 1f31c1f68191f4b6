//! The descriptors by which driver and device wake each other.
//!
//! They should be eventfds, but some front-ends send pipes or socket pairs (User-mode Linux), or none:
//! then a timer polls the ring.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// How often a ring without a kick descriptor is polled.
const POLL_INTERVAL: std::time::Duration = std::time::Duration::from_micros(500);

/// stat(2) reports no file type for an eventfd. Its counter does not overflow by ones.
const EVENTFD: SFlag = SFlag::empty();

/// What wakes the device.
pub(crate) struct Kick {
    fd: OwnedFd,
    /// Whether RWF_NOWAIT works on the descriptor, as it does on eventfds.
    nowait: Cell<bool>,
}

impl Kick {
    /// The front-end's descriptor, or a timer if it sends none. Errors: those of timerfd_create(2).
    pub(crate) fn new(file: Option<File>) -> io::Result<Kick> {
        let fd = match file {
            Some(file) => file.into(),
            None => timer()?.into(),
        };
        let nowait = Cell::new(true);
        Ok(Kick { fd, nowait })
    }

    /// Clears the notification, if there is one. False if the other end is closed: the descriptor would
    /// wake the loop forever.
    #[must_use]
    pub(crate) fn clear(&self) -> bool {
        // A timer or an eventfd yields eight bytes and is empty then. A pipe may hold more, which only
        // causes another look at the ring.
        let mut bytes = [0; 64];
        if self.nowait.get() {
            match read_now(&self.fd, &mut bytes) {
                Err(Errno::EAGAIN | Errno::EINTR) => return true,
                Ok(count) => return count > 0,
                Err(_) => self.nowait.set(false),
            }
        }
        // Poll first: the descriptor may block, and someone else may have read it.
        let found = poll_now(self.fd.as_fd(), PollFlags::POLLIN);
        if !found.contains(PollFlags::POLLIN) {
            return found.is_empty();
        }
        match nix::unistd::read(&self.fd, &mut bytes) {
            Ok(count) => count > 0,
            Err(error) => matches!(error, Errno::EAGAIN | Errno::EINTR),
        }
    }
}

/// read(2) that never blocks. Errors: those of preadv2(2); EAGAIN if there is nothing.
fn read_now(fd: impl AsFd, bytes: &mut [u8]) -> nix::Result<usize> {
    let piece = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: the one piece is `bytes`, which this call borrows exclusively.
    let count = unsafe { libc::preadv2(fd.as_fd().as_raw_fd(), &piece, 1, -1, libc::RWF_NOWAIT) };
    Errno::result(count).map(|count| count as usize)
}

/// A timer that stands in for a missing kick descriptor.
fn timer() -> io::Result<TimerFd> {
    let timer = TimerFd::new(
        ClockId::CLOCK_MONOTONIC,
        TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
    )?;
    let interval = Expiration::Interval(TimeSpec::from_duration(POLL_INTERVAL));
    timer.set(interval, TimerSetTimeFlags::empty())?;
    Ok(timer)
}

impl AsFd for Kick {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What wakes the driver, or tells the front-end that the ring has failed.
pub(crate) struct Call {
    file: File,
    kind: SFlag,
}

impl Call {
    /// Errors: those of fstat(2).
    pub(crate) fn new(file: File) -> io::Result<Call> {
        let kind = kind(&file)?;
        Ok(Call { file, kind })
    }

    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Notifies without blocking: a full pipe holds an unread notification already, whose reader will
    /// see everything done until then.
    pub(crate) fn signal(&self) {
        let one = 1_u64.to_ne_bytes();
        let result = if self.kind == SFlag::S_IFSOCK {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            send(self.file.as_raw_fd(), &one, flags)
        } else if self.kind != EVENTFD
            && !poll_now(self.file.as_fd(), PollFlags::POLLOUT).contains(PollFlags::POLLOUT)
        {
            return;
        } else {
            nix::unistd::write(&self.file, &one)
        };
        match result {
            Ok(_) | Err(Errno::EAGAIN) => {}
            // The front-end is about to leave, or to send another descriptor.
            Err(error) => log::debug!("cannot notify the driver: {error}"),
        }
    }
}

fn kind(file: &File) -> io::Result<SFlag> {
    Ok(SFlag::from_bits_truncate(fstat(file)?.st_mode) & SFlag::S_IFMT)
}

/// What poll(2) finds without waiting, errors and hang-ups included.
fn poll_now(fd: BorrowedFd<'_>, wanted: PollFlags) -> PollFlags {
    let mut fds = [PollFd::new(fd, wanted)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(1..) => fds[0].revents().unwrap_or(PollFlags::empty()),
        _ => PollFlags::empty(),
    }
}
