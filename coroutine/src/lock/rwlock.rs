//! Many readers, or one writer.

use std::cell::{Cell, UnsafeCell};
use std::mem;
use std::ops::{Deref, DerefMut};

use super::holder::Holder;
use crate::core::{Core, List};
use crate::lifecycle::{this, wait_in};
use crate::scheduler::make_ready;

/// Many coroutines read the value, or one changes it. Readers and writers are served in the order
/// in which they come: a writer waits for those before it only, and so does a reader.
pub struct RwLock<T> {
    readers: Cell<usize>,
    writer: Cell<bool>,
    waiting: List,
    value: UnsafeCell<T>,
}

/// Shares the value of an [`RwLock`] until it is dropped, by the coroutine that has taken it.
pub struct ReadGuard<'a, T> {
    lock: &'a RwLock<T>,
    /// Dropped with the guard.
    holder: Holder,
}

/// Has the value of an [`RwLock`] alone until it is dropped, by the coroutine that has taken it.
pub struct WriteGuard<'a, T> {
    lock: &'a RwLock<T>,
    /// Dropped with the guard.
    holder: Holder,
}

/// `Core::wish` of one that waits, and of one that has been given what it waited for.
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

    /// Waits until nobody writes, nor has waited longer to write.
    ///
    /// # Panics
    /// If it has to wait outside of a coroutine.
    pub fn read(&self) -> ReadGuard<'_, T> {
        self.try_read().unwrap_or_else(|| {
            let holder = self.wait_for(READ);
            ReadGuard { lock: self, holder }
        })
    }

    /// Waits until nobody else reads or writes, nor has waited longer.
    ///
    /// # Panics
    /// If it has to wait outside of a coroutine.
    pub fn write(&self) -> WriteGuard<'_, T> {
        self.try_write().unwrap_or_else(|| {
            let holder = self.wait_for(WRITE);
            WriteGuard { lock: self, holder }
        })
    }

    /// The value to read, if nobody writes or waits.
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

    /// The value to change, if nobody has it or waits.
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

    /// The value, as nobody else can have it.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }

    /// Returns when `hand_over` has given the lock to this coroutine.
    fn wait_for(&self, wish: u8) -> Holder {
        let waiter = Waiter {
            lock: self,
            // SAFETY: it is used in this frame alone.
            core: unsafe { this() },
        };
        waiter.core.wish.set(wish);
        wait_in(&self.waiting);
        // SAFETY: only `hand_over` takes a coroutine out of the queue that goes on here, and it
        // grants the lock. One that is unwound does not come here.
        let holder = unsafe { Holder::granted(waiter.core) };
        mem::forget(waiter);
        holder
    }

    /// Gives the lock to those who are next, and wakes them.
    fn hand_over(&self) {
        while let Some(core) = self.waiting.first() {
            if self.writer.get() {
                return;
            }
            if core.wish.get() == WRITE {
                if self.readers.get() > 0 {
                    return;
                }
                self.writer.set(true);
                core.wish.set(GRANTED_WRITE);
            } else {
                self.readers.set(self.readers.get() + 1);
                core.wish.set(GRANTED_READ);
            }
            Holder::grant(core);
            // SAFETY: it is the first in the queue, waits, and is in no other queue when it is out.
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
    /// Waits until nobody else reads or writes, nor has waited longer. Unless this is the only
    /// reader and nobody waits, others may write meanwhile: the lock is released until then.
    ///
    /// # Panics
    /// If it has to wait outside of a coroutine.
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
    /// Goes on as a reader, together with those readers that wait before the next writer.
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

/// A coroutine that is unwound while it waits passes on what it has been given, and lets those
/// behind it through.
struct Waiter<'a, T> {
    lock: &'a RwLock<T>,
    core: &'a Core,
}

impl<T> Drop for Waiter<'_, T> {
    fn drop(&mut self) {
        match self.core.wish.get() {
            GRANTED_READ => {
                // SAFETY: `hand_over` has granted the lock, and `wait_for` has not gone on.
                drop(unsafe { Holder::granted(self.core) });
                self.lock.release_read();
            }
            GRANTED_WRITE => {
                // SAFETY: `hand_over` has granted the lock, and `wait_for` has not gone on.
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
        // SAFETY: while a read guard lives `readers` is not 0, so no write guard is made.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: while the write guard lives `writer` is set, so no other guard is made.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: while the write guard lives `writer` is set, so no other guard is made. The guard
        // is borrowed alone.
        unsafe { &mut *self.lock.value.get() }
    }
}
