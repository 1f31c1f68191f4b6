//! One coroutine at a time.

use std::ops::{Deref, DerefMut};

use super::rwlock::{RwLock, WriteGuard};

/// One coroutine at a time has the value.
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

/// Has the value of a [`Mutex`] until it is dropped, by the coroutine that has taken it.
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

    /// Waits for the value.
    ///
    /// # Panics
    /// If it has to wait outside of a coroutine.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard {
            guard: self.lock.write(),
            mutex: self,
        }
    }

    /// The value if nobody has it, nor waits for it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        Some(MutexGuard {
            guard: self.lock.try_write()?,
            mutex: self,
        })
    }

    /// The value, as nobody else can have it.
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
