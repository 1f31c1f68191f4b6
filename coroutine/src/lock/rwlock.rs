//! A lock for many readers or one writer.

use std::cell::{Cell, UnsafeCell};
use std::mem;
use std::ops::{Deref, DerefMut};

use super::holder::Holder;
use crate::core::{Core, List};
use crate::lifecycle::{this, wait_in};
use crate::scheduler::make_ready;

/// Gives many coroutines read access to a value, or one coroutine write access. Readers and writers
/// are served in FIFO order: each waits only for those before it.
pub struct RwLock<T> {
    readers: Cell<usize>,
    writer: Cell<bool>,
    waiting: List,
    value: UnsafeCell<T>,
}

/// Shared access to the value of an [`RwLock`] until it is dropped. The coroutine that has taken
/// the lock must drop it.
pub struct ReadGuard<'a, T> {
    lock: &'a RwLock<T>,
    /// Dropped after the lock is released.
    holder: Holder,
}

/// Exclusive access to the value of an [`RwLock`] until it is dropped. The coroutine that has taken
/// the lock must drop it.
pub struct WriteGuard<'a, T> {
    lock: &'a RwLock<T>,
    /// Dropped after the lock is released.
    holder: Holder,
}

/// `Core::wait_mode` of a waiting coroutine, and of one that was granted the lock.
const READ: u8 = 0;
const WRITE: u8 = 1;
const GRANTED_READ: u8 = 2;
const GRANTED_WRITE: u8 = 3;

impl<T> RwLock<T> {
    /// Protects `value`.
    pub const fn new(value: T) -> RwLock<T> {
        RwLock {
            readers: Cell::new(0),
            writer: Cell::new(false),
            waiting: List::new(),
            value: UnsafeCell::new(value),
        }
    }

    /// Locks the value for reading, and waits if there is a writer or an earlier waiter.
    ///
    /// # Panics
    /// If it must wait outside of a coroutine.
    pub fn read(&self) -> ReadGuard<'_, T> {
        self.try_read().unwrap_or_else(|| {
            let holder = self.wait_for(READ);
            ReadGuard { lock: self, holder }
        })
    }

    /// Locks the value for writing, and waits if there is a reader, a writer or an earlier waiter.
    ///
    /// # Panics
    /// If it must wait outside of a coroutine.
    pub fn write(&self) -> WriteGuard<'_, T> {
        self.try_write().unwrap_or_else(|| {
            let holder = self.wait_for(WRITE);
            WriteGuard { lock: self, holder }
        })
    }

    /// Locks the value for reading if there is no writer and no waiter.
    pub fn try_read(&self) -> Option<ReadGuard<'_, T>> {
        if self.writer.get() || !self.waiting.is_empty() {
            return None;
        }
        self.readers.set(self.readers.get() + 1);
        Some(ReadGuard {
            lock: self,
            holder: Holder::this(),
        })
    }

    /// Locks the value for writing if there is no reader, writer or waiter.
    pub fn try_write(&self) -> Option<WriteGuard<'_, T>> {
        if self.writer.get() || self.readers.get() > 0 || !self.waiting.is_empty() {
            return None;
        }
        self.writer.set(true);
        Some(WriteGuard {
            lock: self,
            holder: Holder::this(),
        })
    }

    /// Returns the value.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }

    /// Waits until `hand_over` has granted the lock to this coroutine.
    fn wait_for(&self, wait_mode: u8) -> Holder {
        let waiter = Waiter {
            lock: self,
            // SAFETY: the reference does not leave this frame, which is on the coroutine's stack.
            core: unsafe { this() },
        };
        waiter.core.wait_mode.set(wait_mode);
        wait_in(&self.waiting);
        // SAFETY: a coroutine that continues here was removed from the queue by `hand_over`, which
        // has granted it the lock. One that is unwound does not continue here.
        let holder = unsafe { Holder::granted(waiter.core) };
        mem::forget(waiter);
        holder
    }

    /// Grants the lock to the next waiters, and wakes them.
    fn hand_over(&self) {
        while let Some(core) = self.waiting.first() {
            if self.writer.get() {
                return;
            }
            if core.wait_mode.get() == WRITE {
                if self.readers.get() > 0 {
                    return;
                }
                self.writer.set(true);
                core.wait_mode.set(GRANTED_WRITE);
            } else {
                self.readers.set(self.readers.get() + 1);
                core.wait_mode.set(GRANTED_READ);
            }
            Holder::grant(core);
            // SAFETY: it is the first in the queue and waits. After its removal it is in no queue.
            unsafe {
                self.waiting.remove(core);
                make_ready(core);
            }
        }
    }

    fn release_read(&self) {
        self.readers.set(self.readers.get() - 1);
        self.hand_over();
    }

    fn release_write(&self) {
        self.writer.set(false);
        self.hand_over();
    }
}

impl<'a, T> ReadGuard<'a, T> {
    /// Changes to write access. If there is another reader or a waiter it releases the lock and
    /// waits for it, so that others may write meanwhile.
    ///
    /// # Panics
    /// If it must wait outside of a coroutine.
    pub fn upgrade(mut self) -> WriteGuard<'a, T> {
        let lock = self.lock;
        if lock.readers.get() == 1 && lock.waiting.is_empty() {
            let holder = self.holder.take();
            mem::forget(self);
            lock.readers.set(0);
            lock.writer.set(true);
            return WriteGuard { lock, holder };
        }
        drop(self);
        lock.write()
    }
}

impl<'a, T> WriteGuard<'a, T> {
    /// Changes to read access, and admits the readers that wait before the next writer.
    pub fn downgrade(mut self) -> ReadGuard<'a, T> {
        let (lock, holder) = (self.lock, self.holder.take());
        mem::forget(self);
        lock.writer.set(false);
        lock.readers.set(1);
        lock.hand_over();
        ReadGuard { lock, holder }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.release_read();
    }
}

impl<T> Drop for WriteGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.release_write();
    }
}

/// When a waiting coroutine is unwound: releases the lock if it was granted, and admits the waiters
/// behind it.
struct Waiter<'a, T> {
    lock: &'a RwLock<T>,
    core: &'a Core,
}

impl<T> Drop for Waiter<'_, T> {
    fn drop(&mut self) {
        match self.core.wait_mode.get() {
            GRANTED_READ => {
                // SAFETY: `hand_over` has granted the lock, and `wait_for` was unwound before it
                // made a holder.
                drop(unsafe { Holder::granted(self.core) });
                self.lock.release_read();
            }
            GRANTED_WRITE => {
                // SAFETY: `hand_over` has granted the lock, and `wait_for` was unwound before it
                // made a holder.
                drop(unsafe { Holder::granted(self.core) });
                self.lock.release_write();
            }
            _ => self.lock.hand_over(),
        }
    }
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: while a read guard lives `readers` is not 0, so there is no write guard.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: while the write guard lives `writer` is set, so there is no other guard.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: while the write guard lives `writer` is set, so there is no other guard. This one
        // is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}
