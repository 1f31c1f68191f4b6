//! How much of the daemon one guest may use.
//!
//! What a guest builds up is counted here and released with the value that counts it. Everything
//! else is bounded elsewhere: requests under way by the size of the ring, a frame by the exchange,
//! directory entries by the size of one reply (the kernel keeps the position), threads by
//! `--threads`, descriptors by `--rlimit-nofile`.

use std::cell::Cell;
use std::rc::Rc;

use nix::errno::Errno;

use crate::state::Capacity;

/// The largest message size that is agreed to, header included. QEMU has the same limit; Linux's
/// virtio transport asks for at most 512000.
pub const MAX_MSIZE: u32 = 4_186_112;
/// The smallest message size that a session can work with; Linux has the same limit.
pub const MIN_MSIZE: u32 = 4096;

/// How much one guest may have at any moment.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Fids: ENFILE for one more.
    pub fids: usize,
    /// Bytes of attributes that are being read or written by fids of their own: ENOMEM.
    pub xattr_bytes: usize,
    /// Locked ranges, and processes of the guest that hold locks: ENOLCK.
    pub locks: usize,
}

impl Limits {
    /// How many bytes the session of such a guest takes when it is moved to another daemon: each fid may
    /// stand for a file with the longest name, behind directories of its own.
    pub fn migration_bytes(&self) -> usize {
        const FID: usize = 1024;
        const LOCK: usize = 512;
        (self.fids * FID)
            .saturating_add(self.locks * LOCK)
            .saturating_add(self.xattr_bytes)
            .saturating_add(64 << 20)
    }

    /// How much the state of such a guest must hold.
    pub fn capacity(&self) -> Capacity {
        Capacity {
            fids: self.fids,
            locks: self.locks,
            xattr_bytes: self.xattr_bytes,
            device: vhost_user::State::SIZE,
        }
    }
}

/// A counter with a limit.
#[derive(Debug)]
pub struct Bound {
    used: Rc<Cell<usize>>,
    limit: usize,
    error: Errno,
}

/// A part of a [`Bound`], released when dropped.
#[derive(Debug)]
pub struct Share {
    used: Rc<Cell<usize>>,
    amount: usize,
}

impl Bound {
    /// An unused counter. What would exceed `limit` gets `error`.
    pub fn new(limit: usize, error: Errno) -> Bound {
        Bound {
            used: Rc::default(),
            limit,
            error,
        }
    }

    /// How much is taken.
    pub fn used(&self) -> usize {
        self.used.get()
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

    /// Whether `share` may become `amount`; less is always allowed.
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
    /// Sets the share to `amount`, whatever the limit.
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
