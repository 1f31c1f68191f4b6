//! The way back: jobs that are done, from many workers to the one loop.
//!
//! A list that grows at its head and is taken whole. Whoever puts the first job on an empty list
//! looks whether the loop sleeps, and wakes it; the loop says that it is about to sleep, and then
//! looks at the list once more. One of the two sees what the other did.

use std::ptr::{self, NonNull};

use crate::sync::{AtomicBool, AtomicPtr, Ordering, fence};

/// What can be on the list.
///
/// # Safety
/// `link` must return the same place for the same object, which nobody else uses while the object
/// is on the list.
pub(crate) unsafe trait Linked {
    /// Where the list keeps the next object.
    fn link(&self) -> &std::cell::Cell<*mut Self>;
}

pub(crate) struct Completions<J> {
    head: AtomicPtr<J>,
    /// Whether the loop is asleep, or about to be.
    sleeping: AtomicBool,
}

impl<J: Linked> Completions<J> {
    pub(crate) fn new() -> Completions<J> {
        Completions {
            head: AtomicPtr::new(ptr::null_mut()),
            sleeping: AtomicBool::new(false),
        }
    }

    /// Puts a job on the list. True: the loop has to be woken, by the caller.
    ///
    /// # Safety
    /// The job must be the caller's alone, and stay where it is until it has been taken.
    #[must_use]
    pub(crate) unsafe fn push(&self, job: NonNull<J>) -> bool {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // SAFETY: until it is on the list the job is the caller's alone.
            unsafe { job.as_ref() }.link().set(head);
            let pushed = self.head.compare_exchange_weak(
                head,
                job.as_ptr(),
                Ordering::Release,
                Ordering::Relaxed,
            );
            match pushed {
                Ok(_) => break,
                Err(other) => head = other,
            }
        }
        // The job is the loop's now. Behind another job there is nothing to do: who put that one
        // there has looked.
        if !head.is_null() {
            return false;
        }
        fence(Ordering::SeqCst);
        self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel)
    }

    /// Whether nothing is done.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed).is_null()
    }

    /// Takes all jobs, linked in the order in which they were done; null if there are none.
    pub(crate) fn take(&self) -> *mut J {
        let mut reversed = match self.head.load(Ordering::Relaxed).is_null() {
            true => ptr::null_mut(),
            false => self.head.swap(ptr::null_mut(), Ordering::Acquire),
        };
        let mut first = ptr::null_mut();
        while let Some(job) = NonNull::new(reversed) {
            // SAFETY: what has been taken off the list is the loop's alone.
            reversed = unsafe { job.as_ref() }.link().replace(first);
            first = job.as_ptr();
        }
        first
    }

    /// Before the loop sleeps: true if it may, and will be woken by the next job.
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.is_empty()
    }

    /// When the loop is awake. True: a worker has found it asleep, and wakes it or has done so.
    pub(crate) fn awake(&self) -> bool {
        !self.sleeping.swap(false, Ordering::AcqRel)
    }
}

/// Every order in which workers and the loop can meet.
#[cfg(all(test, shuttle))]
mod model {
    use super::*;
    use crate::sync::{Arc, Condvar, Mutex, lock, thread};

    struct Node {
        next: std::cell::Cell<*mut Node>,
        value: usize,
    }

    // SAFETY: the field is the node's own.
    unsafe impl Linked for Node {
        fn link(&self) -> &std::cell::Cell<*mut Node> {
            &self.next
        }
    }

    /// An eventfd: a flag that the loop waits for.
    #[derive(Default)]
    struct Event(Mutex<bool>, Condvar);

    #[test]
    fn no_wake_up_is_lost() {
        let meeting = || {
            let list = Arc::new((Completions::<Node>::new(), Event::default()));
            for value in [1, 10] {
                let list = list.clone();
                thread::spawn(move || {
                    let node = Box::new(Node {
                        next: std::cell::Cell::new(ptr::null_mut()),
                        value,
                    });
                    let node = NonNull::from(Box::leak(node));
                    // SAFETY: the node is this thread's own, and freed by the one who takes it.
                    if unsafe { list.0.push(node) } {
                        *lock(&list.1.0) = true;
                        list.1.1.notify_one();
                    }
                });
            }
            let mut sum = 0;
            while sum < 11 {
                if list.0.prepare_sleep() {
                    let mut written = lock(&list.1.0);
                    while !*written {
                        written = list.1.1.wait(written).unwrap();
                    }
                    *written = false;
                }
                if list.0.awake() {
                    // What was or will be written stays readable: a later sleep is short.
                }
                let mut first = list.0.take();
                while let Some(node) = NonNull::new(first) {
                    // SAFETY: a node that was taken is this thread's alone, and came from a box.
                    let node = unsafe { Box::from_raw(node.as_ptr()) };
                    first = node.next.get();
                    sum += node.value;
                }
            }
            assert_eq!(sum, 11);
        };
        shuttle::check_dfs(meeting, Some(500_000));
        shuttle::check_pct(meeting, 50_000, 4);
    }
}
