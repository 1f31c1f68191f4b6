//! How much of the daemon one guest may take.
//!
//! What a guest builds up is counted here, and given back with the value that counts it. What is not
//! here is bounded elsewhere: requests under way by the size of the ring, a frame by the exchange, the
//! entries of a directory by the size of one reply (the position is the kernel's), threads by
//! `--threads`, descriptors by `--rlimit-nofile`.

use std::cell::Cell;
use std::rc::Rc;

use nix::errno::Errno;

/// The largest message that is agreed to, header included. QEMU's limit is the same; Linux's
/// virtio transport asks for 512000 at the most.
pub const MAX_MSIZE: u32 = 4_186_112;
/// The smallest that a session can work with, Linux's own limit.
pub const MIN_MSIZE: u32 = 4096;

/// How much there may be; one guest's, at any moment.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Fids: ENFILE for one more.
    pub fids: usize,
    /// Bytes of attributes that are being read or written by fids of their own: ENOMEM.
    pub xattr_bytes: usize,
    /// Ranges that are locked, and processes of the guest that lock: ENOLCK.
    pub locks: usize,
}

/// Something of which there may be no more than so much.
#[derive(Debug)]
pub struct Bound {
    used: Rc<Cell<usize>>,
    limit: usize,
    error: Errno,
}

/// A part of a [`Bound`], given back when dropped.
#[derive(Debug)]
pub struct Share {
    used: Rc<Cell<usize>>,
    amount: usize,
}

impl Bound {
    /// Nothing is used yet; what would exceed `limit` gets `error`.
    pub fn new(limit: usize, error: Errno) -> Bound {
        Bound {
            used: Rc::default(),
            limit,
            error,
        }
    }

    /// Takes `amount`.
    pub fn take(&self, amount: usize) -> Result<Share, Errno> {
        let used = self.used.get().checked_add(amount);
        let used = used.filter(|used| *used <= self.limit).ok_or(self.error)?;
        self.used.set(used);
        Ok(Share {
            used: self.used.clone(),
            amount,
        })
    }

    /// Whether `share` may become `amount`: always if that is less.
    pub fn allows(&self, share: &Share, amount: usize) -> Result<(), Errno> {
        let others = self.used.get() - share.amount;
        if amount <= share.amount || others.saturating_add(amount) <= self.limit {
            Ok(())
        } else {
            Err(self.error)
        }
    }
}

impl Share {
    /// What was done has made it `amount`, whatever the limit says.
    pub fn set(&mut self, amount: usize) {
        self.used.set(self.used.get() - self.amount + amount);
        self.amount = amount;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back() {
        let bound = Bound::new(10, Errno::EMFILE);
        let mut first = bound.take(4).unwrap();
        let second = bound.take(6).unwrap();
        assert_eq!(bound.take(1).unwrap_err(), Errno::EMFILE);
        assert_eq!(bound.allows(&first, 5), Err(Errno::EMFILE));
        assert_eq!(bound.allows(&first, 4), Ok(()));
        drop(second);
        assert_eq!(bound.allows(&first, 10), Ok(()));
        // More than was allowed, as another was faster: nothing else is until it is given back.
        first.set(12);
        assert!(bound.take(0).is_err());
        drop(first);
        assert!(bound.take(10).is_ok());
        assert_eq!(bound.take(usize::MAX).unwrap_err(), Errno::EMFILE);
    }
}
