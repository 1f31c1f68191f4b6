//! Mutual exclusion.

use std::ops::{Deref, DerefMut};

use super::rwlock::{RwLock, WriteGuard};

/// Gives one coroutine at a time access to a value.
///
/// ```
/// use coroutine::{Mutex, spawn};
/// use std::rc::Rc;
///
/// let list = Rc::new(Mutex::new(Vec::new()));
/// let inside = list.clone();
/// spawn(move || inside.lock().push(1))?;
/// assert_eq!(*list.lock(), [1]);
/// # Ok::<(), coroutine::StackError>(())
/// ```
pub struct Mutex<T> {
    lock: RwLock<T>,
}

/// Access to the value of a [`Mutex`] until it is dropped. The coroutine that has locked the mutex
/// must drop it.
pub struct MutexGuard<'a, T> {
    guard: WriteGuard<'a, T>,
    mutex: &'a Mutex<T>,
}

impl<T> Mutex<T> {
    /// Protects `value`.
    pub const fn new(value: T) -> Mutex<T> {
        Mutex {
            lock: RwLock::new(value),
        }
    }

    /// Locks the mutex, and waits for it if necessary.
    ///
    /// # Panics
    /// If it must wait outside of a coroutine.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard {
            guard: self.lock.write(),
            mutex: self,
        }
    }

    /// Locks the mutex if it is free and nobody waits for it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        Some(MutexGuard {
            guard: self.lock.try_write()?,
            mutex: self,
        })
    }

    /// Returns the value.
    pub fn into_inner(self) -> T {
        self.lock.into_inner()
    }
}

impl<'a, T> MutexGuard<'a, T> {
    pub(super) fn mutex(&self) -> &'a Mutex<T> {
        self.mutex
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}
