//! The synchronisation primitives of the worker pool: the standard library's, or loom's.

#[cfg(not(loom))]
pub(crate) use std::{
    sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

#[cfg(loom)]
pub(crate) use loom::{
    sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

/// loom treats a sequentially consistent access as an acquire or release one, and needs a fence
/// between such a store and such a load.
#[inline(always)]
pub(crate) fn seq_cst_fence() {
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
}

/// A thread that can sleep until it is unparked.
#[cfg(not(loom))]
pub(crate) use std_parker::Parker;

#[cfg(not(loom))]
mod std_parker {
    use std::thread::{self, Thread};
    use std::time::{Duration, Instant};

    #[derive(Clone)]
    pub(crate) struct Parker(Thread);

    impl Parker {
        /// The calling thread.
        pub(crate) fn this() -> Parker {
            Parker(thread::current())
        }

        /// Sleeps until unparked, and returns true, or returns false after `time`. Only for the
        /// calling thread.
        pub(crate) fn park(&self, time: Duration) -> bool {
            let begin = Instant::now();
            thread::park_timeout(time);
            begin.elapsed() < time
        }

        pub(crate) fn unpark(&self) {
            self.0.unpark();
        }

        pub(crate) fn is(&self, other: &Parker) -> bool {
            self.0.id() == other.0.id()
        }
    }
}

/// loom's `park` loses a wake-up that arrives while the thread waits for a mutex. There are no
/// time-outs.
#[cfg(loom)]
#[derive(Clone)]
pub(crate) struct Parker(std::sync::Arc<(Mutex<bool>, loom::sync::Condvar)>);

#[cfg(loom)]
impl Parker {
    pub(crate) fn this() -> Parker {
        Parker(std::sync::Arc::new((
            Mutex::new(false),
            loom::sync::Condvar::new(),
        )))
    }

    pub(crate) fn park(&self, _: std::time::Duration) -> bool {
        let mut woken = self.0.0.lock().unwrap();
        while !*woken {
            woken = self.0.1.wait(woken).unwrap();
        }
        *woken = false;
        true
    }

    pub(crate) fn unpark(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_one();
    }

    pub(crate) fn is(&self, other: &Parker) -> bool {
        std::sync::Arc::ptr_eq(&self.0, &other.0)
    }
}
