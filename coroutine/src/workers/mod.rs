//! Threads for calls that would block the loop.
//!
//! - `job`: the closure, on the stack of the coroutine that waits for it: a hop allocates nothing.
//! - `hub`: how jobs get to workers and back, and who wakes whom.
//! - `spin`: how long it pays to look for work before going to sleep.
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

/// A pool of threads, used by the coroutines of one other thread.
///
/// ```
/// use coroutine::{Workers, spawn};
/// use std::rc::Rc;
///
/// let workers = Rc::new(Workers::new(4)?);
/// let inside = workers.clone();
/// spawn(move || {
///     let path = String::from("/proc/self/status");
///     // Borrows from this stack, runs on another thread; this thread goes on meanwhile.
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
/// What a worker is to touch has to be [`Send`]:
///
/// ```compile_fail,E0277
/// let workers = coroutine::Workers::new(1).unwrap();
/// let count = std::rc::Rc::new(1);
/// workers.offload(|| println!("{count}"));
/// ```
pub struct Workers {
    hub: Hub<Event>,
    /// Jobs that coroutines wait for.
    outstanding: Cell<usize>,
    /// Jobs that were ever done.
    hops: Cell<u64>,
    progress: Progress,
    /// Jobs that are done and whose coroutines are to be continued.
    completed: Cell<*mut Job>,
    /// Whether the workers were told that the loop may sleep.
    armed: Cell<bool>,
    /// Whether a worker has said, or will have said any moment, through the eventfd that there is
    /// something done, and that has not been read.
    signalled: Cell<bool>,
    spin: Spin,
    thread_bound: PhantomData<*mut ()>,
}

impl Workers {
    /// A pool of up to `max_threads` threads, which are started when there is work for them and
    /// leave when there has been none for ten seconds.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new(max_threads: usize) -> io::Result<Workers> {
        Workers::with_start(max_threads, || {})
    }

    /// The same, of threads that begin with `start`: to give up what they have no use for, and for that
    /// reason only in those that this thread starts. A worker that starts another one, because
    /// there is more to do, hands on what it has itself.
    ///
    /// # Errors
    /// Those of eventfd(2).
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

    /// How many threads there are at the most.
    pub fn max_threads(&self) -> usize {
        self.hub.max_threads
    }

    /// Runs `f` on a worker and suspends the coroutine until it is done; `f` may borrow from the
    /// coroutine's stack. Outside of a coroutine, and while it is unwound by a panic, `f` runs in
    /// place.
    ///
    /// # Panics
    /// With what `f` panics with.
    pub fn offload<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        if !in_coroutine() || panicking() {
            return f();
        }
        // SAFETY: the job is used while this coroutine waits for it.
        let job = JobOf::new(f, unsafe { this() });
        // SAFETY: from here until the wait is over the job is the workers' and then the loop's. The
        // coroutine cannot go on or be unwound before: it is continued by the completion alone.
        wait_for(|| unsafe { self.submit(NonNull::from(&job).cast()) });
        job.value()
    }

    /// Continues every coroutine whose job is done, and returns how many. For the loop; never
    /// blocks.
    ///
    /// # Panics
    /// With what a coroutine panics with. Those behind it are continued at the next call.
    pub fn run_completed(&self) -> usize {
        self.hub.see_to_progress(&self.progress);
        if self.completed.get().is_null() {
            self.completed.set(self.hub.take_done());
        }
        let mut count = 0;
        // A coroutine that is continued may call this too: it goes on with the same list.
        // SAFETY: a job on the list is done, and the loop's alone. It is alive until its coroutine
        // is continued; what is needed of it is read before.
        while let Some(job) = unsafe { self.completed.get().as_ref() } {
            self.completed.set(job.next.get());
            self.outstanding.set(self.outstanding.get() - 1);
            self.hops.set(self.hops.get() + 1);
            count += 1;
            // SAFETY: the coroutine waits for the job, so it is alive and in no queue. The worker is
            // done with the job, which was all that used its stack.
            unsafe {
                let waiter = &*job.waiter;
                trace::event(trace::Kind::Complete, waiter);
                resume(waiter);
            }
        }
        count
    }

    /// Whether a job is done whose coroutine is to be continued; costs no call.
    pub fn has_completed(&self) -> bool {
        !self.completed.get().is_null() || self.hub.is_done()
    }

    /// For draining: blocks until at least one job is done, and continues its coroutine. Returns 0
    /// at once if nothing is outstanding.
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

    /// Before the loop blocks: true if it may, and from now on a job that is done makes the
    /// descriptor readable; false if something is done already. Where it has paid lately, it looks
    /// a few microseconds for something to be done.
    pub fn prepare_sleep(&self) -> bool {
        if self.outstanding.get() > 0 && self.spin.until(|| self.has_completed()) {
            return false;
        }
        self.armed.set(true);
        self.hub.prepare_sleep()
    }

    /// When the loop is awake again: jobs that are done are found without the descriptor.
    pub fn awake(&self) {
        if self.armed.take() && self.hub.awake() {
            self.signalled.set(true);
        }
        // A worker that has seen the loop asleep may be about to write: then the next turn reads
        // it.
        if self.signalled.get() && self.hub.event.clear() {
            self.signalled.set(false);
        }
    }

    /// How many coroutines wait for a job.
    pub fn outstanding(&self) -> usize {
        self.outstanding.get()
    }

    /// How many jobs were done, ever.
    pub fn hops(&self) -> u64 {
        self.hops.get()
    }

    /// # Safety
    /// The job must be in no list, and stay alive, used by nobody else, until it is done and its
    /// coroutine, which waits for it, is continued.
    unsafe fn submit(&self, job: NonNull<Job>) {
        self.outstanding.set(self.outstanding.get() + 1);
        // SAFETY: the caller says that the job is alive, and that the coroutine waits.
        trace::event(trace::Kind::Offload, unsafe { &*job.as_ref().waiter });
        // SAFETY: the caller says that nobody else uses the job, until `take_done` returns it.
        unsafe { self.hub.submit(job) };
    }
}

impl AsFd for Workers {
    /// Readable when a job is done while the loop sleeps.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.hub.event.as_fd()
    }
}

impl Drop for Workers {
    /// Waits for what runs.
    fn drop(&mut self) {
        while self.outstanding.get() > 0 {
            self.wait_completed();
        }
        self.hub.end();
    }
}
