//! The primitives that threads meet at, from `std`, or from the model checker that tries every
//! order in which threads can meet (`--cfg shuttle`).

#[cfg(shuttle)]
pub(crate) use shuttle::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, Thread},
};
#[cfg(not(shuttle))]
pub(crate) use std::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, Thread},
};

use std::sync::PoisonError;
#[cfg(not(shuttle))]
use std::time::{Duration, Instant};

/// Locks a mutex whose holders do not panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sleeps until `woken` says that somebody else has unparked this thread, or `time` is over.
#[cfg(not(shuttle))]
pub(crate) fn park_until(woken: impl Fn() -> bool, time: Duration) {
    let end = Instant::now() + time;
    while !woken() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::park_timeout(left);
    }
}

/// The model has no time: a sleeper that nobody wakes is a deadlock, which it reports.
#[cfg(shuttle)]
pub(crate) fn park_until(woken: impl Fn() -> bool, _: std::time::Duration) {
    while !woken() {
        thread::park();
    }
}
