//! Threads for calls that would block the loop.
//!
//! A job lies on the stack of the coroutine that waits for it: a hop allocates nothing. It goes
//! to the workers ([`queue`]) when that stack has been left, comes back on a list that is taken
//! whole ([`completions`]), and wakes the loop through an eventfd only if the loop sleeps. Both
//! sides look for a while before they sleep, if that pays ([`spin`]).

mod completions;
mod queue;
mod spin;

use std::any::Any;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::time::Duration;

use crate::coroutine::{Core, in_coroutine, resume, this, wait_for_job};
use crate::sync::{Arc, thread};
use completions::{Completions, Linked};
use queue::{Next, Queue};
use spin::Spin;

/// Stack of a worker, which runs closures of system calls.
const THREAD_STACK: usize = 256 * 1024;
/// How long a worker without work stays.
const IDLE_TIME: Duration = Duration::from_secs(10);

/// A pool of threads, used by the coroutines of one other thread.
pub struct Workers {
    shared: Arc<Shared>,
    /// Jobs that coroutines wait for.
    outstanding: Cell<usize>,
    /// Jobs ever handed over.
    hops: Cell<u64>,
    /// Whether a worker has said, or will have said any moment, through the eventfd that there is
    /// something done, and that has not been read.
    signalled: Cell<bool>,
    spin: RefCell<Spin>,
    thread_bound: PhantomData<*mut ()>,
}

struct Shared {
    queue: Queue<JobPtr>,
    done: Completions<Job>,
    event: OwnedFd,
}

/// What every job begins with, whatever its closure.
#[repr(C)]
pub(crate) struct Job {
    run: unsafe fn(NonNull<Job>),
    next: Cell<*mut Job>,
    waiter: NonNull<Core>,
    workers: NonNull<Workers>,
}

// SAFETY: the place is the job's own field, used by nothing but the list.
unsafe impl Linked for Job {
    fn link(&self) -> &Cell<*mut Job> {
        &self.next
    }
}

struct JobPtr(NonNull<Job>);

// SAFETY: a job is made to be run by another thread: its closure and its result are Send, and
// whoever has the pointer has the job alone, first a worker, then the loop.
unsafe impl Send for JobPtr {}

#[repr(C)]
struct JobOf<F, T> {
    job: Job,
    f: UnsafeCell<Option<F>>,
    result: UnsafeCell<Option<Result<T, Box<dyn Any + Send>>>>,
}

impl Workers {
    /// A pool of up to `max_threads` threads, which are started when there is work for them.
    /// Errors: those of eventfd(2).
    pub fn new(max_threads: usize) -> io::Result<Workers> {
        // SAFETY: the call takes no pointers; a descriptor that it returns is ours.
        let event = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let queue = Queue::new(max_threads, IDLE_TIME);
        Ok(Workers {
            shared: Arc::new(Shared {
                queue,
                done: Completions::new(),
                event,
            }),
            outstanding: Cell::new(0),
            hops: Cell::new(0),
            signalled: Cell::new(false),
            spin: RefCell::new(Spin::new()),
            thread_bound: PhantomData,
        })
    }

    /// Runs `f` on a worker and suspends the coroutine until it is done; `f` may borrow from the
    /// coroutine's stack. Outside of a coroutine `f` runs in place.
    ///
    /// # Panics
    /// With what `f` panics with.
    pub fn offload<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        if !in_coroutine() {
            return f();
        }
        let job = job_of(f, this(), NonNull::from(self));
        // From here until the wait is over the job is the workers' and then the loop's. The
        // coroutine cannot be unwound before: it is not entered by anybody but the completion.
        wait_for_job(NonNull::from(&job).cast());
        match job.result.into_inner() {
            Some(Ok(value)) => value,
            Some(Err(panic)) => resume_unwind(panic),
            None => unreachable!("a coroutine was continued before its job was done"),
        }
    }

    /// Continues every coroutine whose job is done, and returns how many. For the loop; never
    /// blocks.
    pub fn run_completed(&self) -> usize {
        let mut count = 0;
        let mut first = self.shared.done.take();
        while let Some(job) = NonNull::new(first) {
            // SAFETY: what was taken is the loop's alone until its coroutine is continued; both
            // are read before the job goes away with it.
            let (next, waiter) = unsafe { (job.as_ref().next.get(), job.as_ref().waiter) };
            first = next;
            count += 1;
            self.outstanding.set(self.outstanding.get() - 1);
            resume(waiter);
        }
        count
    }

    /// For draining: blocks until at least one job is done, and continues its coroutine. Returns 0
    /// at once if nothing is outstanding.
    pub fn wait_completed(&self) -> usize {
        loop {
            let count = self.run_completed();
            if count > 0 || self.outstanding.get() == 0 {
                return count;
            }
            if self.prepare_sleep() {
                let fd = self.shared.event.as_raw_fd();
                let mut poll = libc::pollfd {
                    fd,
                    events: libc::POLLIN,
                    revents: 0,
                };
                // SAFETY: `poll` is one pollfd. An error is a signal: the loop looks again.
                unsafe { libc::poll(&raw mut poll, 1, -1) };
            }
            self.awake();
        }
    }

    /// Before the loop blocks: true if it may, and from now on a job that is done makes the
    /// descriptor readable; false if something is done already. Looks for a while first if jobs
    /// are outstanding and looking has paid lately.
    pub fn prepare_sleep(&self) -> bool {
        let done = &self.shared.done;
        if self.outstanding.get() > 0 && self.spin.borrow_mut().until(|| !done.is_empty()) {
            return false;
        }
        done.prepare_sleep()
    }

    /// When the loop is awake again: jobs that are done are found without the descriptor.
    pub fn awake(&self) {
        if self.shared.done.awake() {
            self.signalled.set(true);
        }
        if self.signalled.get() {
            let mut count = 0_u64;
            let fd = self.shared.event.as_raw_fd();
            // SAFETY: the kernel writes at most the eight bytes of `count`.
            let read = unsafe { libc::read(fd, (&raw mut count).cast(), 8) };
            // A worker that has seen the loop asleep may be about to write: then the next turn
            // reads it.
            if read == 8 {
                self.signalled.set(false);
            }
        }
    }

    /// How many coroutines wait for a job.
    pub fn outstanding(&self) -> usize {
        self.outstanding.get()
    }

    /// How many jobs have been handed over since the beginning.
    pub fn hops(&self) -> u64 {
        self.hops.get()
    }

    fn submit(&self, job: NonNull<Job>) {
        self.outstanding.set(self.outstanding.get() + 1);
        self.hops.set(self.hops.get() + 1);
        Shared::act(&self.shared, self.shared.queue.submit(JobPtr(job)));
    }
}

impl AsFd for Workers {
    /// Readable when a job is done while the loop sleeps.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

impl Drop for Workers {
    /// Waits for what runs, and for the threads to end.
    fn drop(&mut self) {
        while self.outstanding.get() > 0 {
            self.wait_completed();
        }
        self.shared.queue.end();
    }
}

impl Shared {
    fn act(this: &Arc<Shared>, next: Next) {
        match next {
            Next::Nothing => {}
            Next::Wake(worker) => worker.wake(),
            Next::Start => Shared::start_thread(this),
        }
    }

    fn start_thread(this: &Arc<Shared>) {
        let shared = this.clone();
        let started = thread::Builder::new()
            .name("worker".into())
            .stack_size(THREAD_STACK)
            .spawn(move || {
                shared
                    .queue
                    .work(|next| Shared::act(&shared, next), |job| shared.run(job))
            });
        if let Err(error) = started {
            log::warn!("cannot start a worker: {error}");
            // The loop waits for them: better done here than never.
            for job in this.queue.not_started() {
                this.run(job);
            }
        }
    }

    fn run(&self, JobPtr(job): JobPtr) {
        // SAFETY: the job is this thread's alone, and `run` is the function made for it.
        unsafe { (job.as_ref().run)(job) };
        // SAFETY: still this thread's alone; its coroutine waits until it has been taken.
        if unsafe { self.done.push(job) } {
            let one = 1_u64;
            // SAFETY: eight bytes are read from `one`. The counter cannot overflow: one write is
            // made for each time the loop goes to sleep.
            unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), 8) };
        }
    }
}

impl Job {
    /// Gives the job to its workers.
    ///
    /// # Safety
    /// To be called once for a job, when its coroutine's stack has been left, and the job be alive
    /// until the coroutine is continued.
    pub(crate) unsafe fn submit(job: NonNull<Job>) {
        // SAFETY: the coroutine waits inside `Workers::offload`, which borrows the workers.
        let workers = unsafe { job.as_ref().workers.as_ref() };
        workers.submit(job);
    }
}

fn job_of<T: Send, F: FnOnce() -> T + Send>(
    f: F,
    waiter: NonNull<Core>,
    workers: NonNull<Workers>,
) -> JobOf<F, T> {
    JobOf {
        job: Job {
            run: run_job::<T, F>,
            next: Cell::new(ptr::null_mut()),
            waiter,
            workers,
        },
        f: UnsafeCell::new(Some(f)),
        result: UnsafeCell::new(None),
    }
}

/// # Safety
/// `job` must be the beginning of a `JobOf<F, T>` that the calling thread has alone.
unsafe fn run_job<T: Send, F: FnOnce() -> T + Send>(job: NonNull<Job>) {
    // SAFETY: granted by the caller; `repr(C)` puts the job at the beginning.
    let job = unsafe { job.cast::<JobOf<F, T>>().as_ref() };
    // SAFETY: the thread has the job alone, so nobody else is in the cells.
    let (f, result) = unsafe { (&mut *job.f.get(), &mut *job.result.get()) };
    if let Some(f) = f.take() {
        *result = Some(catch_unwind(AssertUnwindSafe(f)));
    }
}
