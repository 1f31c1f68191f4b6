//! Waiting for another coroutine of the same thread.
//!
//! Nothing here is for several threads. Everything is fair: who waits first is served first, and
//! what is released is handed to the one it is for, so that nobody can take it in between. A
//! coroutine that is woken is put on the thread's list of those that are ready, and runs when the
//! loop calls [`run_ready`].

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::coroutine::{Core, resume, this, wait};

thread_local! {
    static READY: RefCell<VecDeque<NonNull<Core>>> = const { RefCell::new(VecDeque::new()) };
}

fn make_ready(core: NonNull<Core>) {
    READY.with_borrow_mut(|ready| ready.push_back(core));
}

/// Continues every coroutine that has been woken, also those that are woken meanwhile, and
/// returns how many. For the loop.
pub fn run_ready() -> usize {
    let mut count = 0;
    while let Some(core) = READY.with_borrow_mut(VecDeque::pop_front) {
        resume(core);
        count += 1;
    }
    count
}

/// Coroutines that wait for something to happen.
#[derive(Default)]
pub struct WaitQueue {
    waiting: RefCell<VecDeque<NonNull<Core>>>,
}

impl WaitQueue {
    /// Nobody waits.
    pub fn new() -> WaitQueue {
        WaitQueue::default()
    }

    /// Suspends the running coroutine until it is woken. What it waits for may be gone again by
    /// the time it runs: check, and wait again.
    ///
    /// # Panics
    /// Outside of a coroutine.
    pub fn wait(&self) {
        let this = this();
        self.waiting.borrow_mut().push_back(this);
        wait();
    }

    /// Wakes the coroutine that has waited longest; false if none waits.
    pub fn wake_one(&self) -> bool {
        let first = self.waiting.borrow_mut().pop_front();
        first.map(make_ready).is_some()
    }

    /// Wakes all that wait, and returns how many.
    pub fn wake_all(&self) -> usize {
        let all = self.waiting.take();
        all.iter().copied().for_each(make_ready);
        all.len()
    }
}

/// One coroutine at a time has the value.
pub struct Mutex<T> {
    lock: RwLock<T>,
}

/// Has the value of a [`Mutex`] until it is dropped.
pub struct MutexGuard<'a, T>(WriteGuard<'a, T>);

impl<T> Mutex<T> {
    /// Protects `value`.
    pub fn new(value: T) -> Mutex<T> {
        Mutex {
            lock: RwLock::new(value),
        }
    }

    /// Waits for the value.
    ///
    /// # Panics
    /// If it has to wait outside of a coroutine.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(self.lock.write())
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Read,
    Write,
}

/// Many coroutines read the value, or one changes it. A writer waits only for those that came
/// before it.
pub struct RwLock<T> {
    readers: Cell<usize>,
    writer: Cell<bool>,
    waiting: RefCell<VecDeque<(Wish, NonNull<Core>)>>,
    value: UnsafeCell<T>,
}

/// Shares the value of an [`RwLock`] until it is dropped.
pub struct ReadGuard<'a, T>(&'a RwLock<T>);
/// Has the value of an [`RwLock`] alone until it is dropped.
pub struct WriteGuard<'a, T>(&'a RwLock<T>);

impl<T> RwLock<T> {
    /// Protects `value`.
    pub fn new(value: T) -> RwLock<T> {
        RwLock {
            readers: Cell::new(0),
            writer: Cell::new(false),
            waiting: RefCell::default(),
            value: UnsafeCell::new(value),
        }
    }

    /// Waits until nobody writes, nor has waited longer to write.
    ///
    /// # Panics
    /// If it has to wait outside of a coroutine.
    pub fn read(&self) -> ReadGuard<'_, T> {
        if self.writer.get() || !self.waiting.borrow().is_empty() {
            return self.wait_for(Wish::Read, ReadGuard);
        }
        self.readers.set(self.readers.get() + 1);
        ReadGuard(self)
    }

    /// Waits until nobody else reads or writes.
    ///
    /// # Panics
    /// If it has to wait outside of a coroutine.
    pub fn write(&self) -> WriteGuard<'_, T> {
        if self.writer.get() || self.readers.get() > 0 || !self.waiting.borrow().is_empty() {
            return self.wait_for(Wish::Write, WriteGuard);
        }
        self.writer.set(true);
        WriteGuard(self)
    }

    /// Returns when `hand_over` has given the lock to this coroutine.
    fn wait_for<'a, G>(&'a self, wish: Wish, guard: impl FnOnce(&'a RwLock<T>) -> G) -> G {
        let this = this();
        self.waiting.borrow_mut().push_back((wish, this));
        // The guard is made before the lock is there: a coroutine that was cancelled while it
        // waited unwinds from here when the lock has been handed to it, and has to pass it on.
        let guard = guard(self);
        wait();
        guard
    }

    /// Gives the lock to those who are next, and wakes them.
    fn hand_over(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(&(wish, core)) = waiting.front() {
            match wish {
                _ if self.writer.get() => return,
                Wish::Write if self.readers.get() > 0 => return,
                Wish::Write => self.writer.set(true),
                Wish::Read => self.readers.set(self.readers.get() + 1),
            }
            waiting.pop_front();
            make_ready(core);
        }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        self.0.readers.set(self.0.readers.get() - 1);
        self.0.hand_over();
    }
}

impl<T> Drop for WriteGuard<'_, T> {
    fn drop(&mut self) {
        self.0.writer.set(false);
        self.0.hand_over();
    }
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: while a read guard lives `readers` is not 0, so no write guard is made.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: while the write guard lives `writer` is set, so no other guard is made.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`, and the guard itself is borrowed alone.
        unsafe { &mut *self.0.value.get() }
    }
}
