//! A thread pool for calls that would block the loop.
//!
//! - `job`: the closure, on the stack of the coroutine that waits for it, so that nothing is
//!   allocated.
//! - `hub`: moves jobs to workers and back, and decides who wakes whom.
//! - `spin`: adaptive spinning before sleeping.
//! - `event`: the descriptor that wakes the loop.

mod event;
mod hub;
mod job;
#[cfg(all(test, loom))]
mod model;
mod spin;

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::thread::panicking;

use crate::lifecycle::{in_coroutine, resume, this, wait_for};
use crate::trace;
use event::Event;
use hub::{Hub, Progress};
use job::{Job, JobOf};
use spin::SEARCH;
pub use spin::Spin;

/// A thread pool for the coroutines of one thread.
///
/// ```
/// use coroutine::{Workers, spawn};
/// use std::rc::Rc;
///
/// let workers = Rc::new(Workers::new(4)?);
/// let inside = workers.clone();
/// spawn(move || {
///     let path = String::from("/proc/self/status");
///     // Runs on another thread and borrows from this stack, while this thread continues.
///     let status = inside.offload(|| std::fs::read_to_string(&path)).unwrap();
///     assert!(status.contains("Threads:"));
/// })?;
/// assert_eq!(workers.outstanding(), 1);
/// assert_eq!(workers.wait_completed(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// It belongs to the thread of its coroutines:
///
/// ```compile_fail,E0277
/// fn send<T: Send>(_: T) {}
/// send(coroutine::Workers::new(1).unwrap());
/// ```
///
/// Closures and their results must be [`Send`]:
///
/// ```compile_fail,E0277
/// let workers = coroutine::Workers::new(1).unwrap();
/// let count = std::rc::Rc::new(1);
/// workers.offload(|| println!("{count}"));
/// ```
pub struct Workers {
    hub: Hub<Event>,
    /// Number of jobs that coroutines wait for.
    outstanding: Cell<usize>,
    /// Number of jobs done so far.
    hops: Cell<u64>,
    progress: Progress,
    /// Jobs that are done and whose coroutines are not yet resumed.
    completed: Cell<*mut Job>,
    /// Whether `prepare_sleep` has announced that the loop may sleep.
    armed: Cell<bool>,
    /// Whether a worker has signalled the eventfd, or is about to, and the signal was not yet read.
    signalled: Cell<bool>,
    spin: Spin,
    thread_bound: PhantomData<*mut ()>,
}

impl Workers {
    /// A pool of up to `max_threads` threads. A thread starts when there is work for it, and ends
    /// when it has been idle for ten seconds.
    ///
    /// Errors: those of eventfd(2).
    pub fn new(max_threads: usize) -> io::Result<Workers> {
        Workers::with_start(max_threads, || {})
    }

    /// As [`new`](Workers::new), with threads that first call `start`, for instance to drop
    /// privileges. Only a thread started by the loop calls it: one started by another worker
    /// inherits what that worker has left.
    ///
    /// Errors: those of eventfd(2).
    pub fn with_start(
        max_threads: usize,
        start: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Workers> {
        Ok(Workers {
            hub: Hub::new(max_threads, Event::new()?, Box::new(start)),
            outstanding: Cell::new(0),
            hops: Cell::new(0),
            progress: Progress::default(),
            completed: Cell::new(ptr::null_mut()),
            armed: Cell::new(false),
            signalled: Cell::new(false),
            spin: Spin::new(SEARCH),
            thread_bound: PhantomData,
        })
    }

    /// The maximum number of threads.
    pub fn max_threads(&self) -> usize {
        self.hub.max_threads
    }

    /// Runs `f` on a worker and suspends the coroutine until it is done. `f` may borrow from the
    /// coroutine's stack. Outside of a coroutine, and while a panic unwinds it, runs `f` in place.
    ///
    /// # Panics
    /// If `f` panics, with its payload.
    pub fn offload<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        if !in_coroutine() || panicking() {
            return f();
        }
        // SAFETY: the job is only used while this coroutine waits for it.
        let job = JobOf::new(f, unsafe { this() });
        // SAFETY: until the wait is over the workers, and then the loop, own the job. Only its
        // completion resumes or unwinds the coroutine.
        wait_for(|| unsafe { self.submit(NonNull::from(&job).cast()) });
        job.value()
    }

    /// Resumes every coroutine whose job is done. Returns their number. For the loop; never blocks.
    ///
    /// # Panics
    /// If a coroutine panics, with its payload. The next call resumes the coroutines after it.
    pub fn run_completed(&self) -> usize {
        self.hub.wake_if_stalled(&self.progress);
        if self.completed.get().is_null() {
            self.completed.set(self.hub.take_done());
        }
        let mut count = 0;
        // A resumed coroutine may call this function too, and takes from the same list.
        // SAFETY: the loop owns the jobs on the list. Each is alive until its coroutine is resumed,
        // and is read before.
        while let Some(job) = unsafe { self.completed.get().as_ref() } {
            self.completed.set(job.next.get());
            self.outstanding.set(self.outstanding.get() - 1);
            self.hops.set(self.hops.get() + 1);
            count += 1;
            // SAFETY: the coroutine waits for the job, so it is alive and in no queue. The worker
            // is done with the job, and nothing else used its stack.
            unsafe {
                let waiter = &*job.waiter;
                trace::event(trace::Kind::Complete, waiter);
                resume(waiter);
            }
        }
        count
    }

    /// Whether a job is done whose coroutine is not yet resumed. Makes no system call.
    pub fn has_completed(&self) -> bool {
        !self.completed.get().is_null() || self.hub.is_done()
    }

    /// Blocks until at least one job is done, and resumes its coroutine. Returns the number of
    /// resumed coroutines: 0, at once, if no job is outstanding. For draining.
    ///
    /// # Panics
    /// As [`run_completed`](Workers::run_completed).
    pub fn wait_completed(&self) -> usize {
        loop {
            let count = self.run_completed();
            if count > 0 || self.outstanding.get() == 0 {
                return count;
            }
            if self.prepare_sleep() {
                self.hub.event.wait();
            }
            self.awake();
        }
    }

    /// Called before the loop blocks. Returns true if it may block: from now on a completed job
    /// makes the descriptor readable. Returns false if a job is done already. Spins for a few
    /// microseconds if that has been successful lately.
    pub fn prepare_sleep(&self) -> bool {
        if self.outstanding.get() > 0 && self.spin.until(|| self.has_completed()) {
            return false;
        }
        self.armed.set(true);
        self.hub.prepare_sleep()
    }

    /// Called when the loop is awake again. Completed jobs no longer make the descriptor readable.
    pub fn awake(&self) {
        if self.armed.take() && self.hub.awake() {
            self.signalled.set(true);
        }
        // A worker that has seen the loop asleep may not have written yet. Then the next call reads
        // the signal.
        if self.signalled.get() && self.hub.event.clear() {
            self.signalled.set(false);
        }
    }

    /// The number of coroutines that wait for a job.
    pub fn outstanding(&self) -> usize {
        self.outstanding.get()
    }

    /// The number of jobs done so far.
    pub fn hops(&self) -> u64 {
        self.hops.get()
    }

    /// # Safety
    /// The job must be in no list, and its coroutine must wait for it. It must stay alive, and not
    /// be used otherwise, until that coroutine is resumed.
    unsafe fn submit(&self, job: NonNull<Job>) {
        self.outstanding.set(self.outstanding.get() + 1);
        // SAFETY: the caller promises that the job is alive and that the coroutine waits.
        trace::event(trace::Kind::Offload, unsafe { &*job.as_ref().waiter });
        // SAFETY: the caller promises that nothing else uses the job until `take_done` returns it.
        unsafe { self.hub.submit(job) };
    }
}

impl AsFd for Workers {
    /// Readable if a job was done while the loop slept.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.hub.event.as_fd()
    }
}

impl Drop for Workers {
    /// Waits for the outstanding jobs.
    fn drop(&mut self) {
        while self.outstanding.get() > 0 {
            self.wait_completed();
        }
        self.hub.end();
    }
}
