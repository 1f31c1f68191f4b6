//! Threads for calls that would block the loop.
//!
//! A job lies on the stack of the coroutine that waits for it: a hop allocates nothing. It goes
//! to the workers when that stack has been left, comes back on a list that only grows at its head
//! and is taken whole, and wakes the loop through an eventfd only if the loop sleeps.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::coroutine::{Core, in_coroutine, resume, this, wait_for_job};

/// Stack of a worker, which runs closures of system calls.
const THREAD_STACK: usize = 256 * 1024;
/// How long a worker without work stays.
const IDLE_TIME: Duration = Duration::from_secs(10);

/// A pool of threads, used by the coroutines of one other thread.
pub struct Workers {
    shared: Arc<Shared>,
    /// Jobs that coroutines wait for.
    outstanding: Cell<usize>,
    /// Whether a worker has said, or will have said any moment, through the eventfd that there is
    /// something done, and that has not been read.
    signalled: Cell<bool>,
    thread_bound: PhantomData<*mut ()>,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    /// The job done last, linked to those done before it.
    done: AtomicPtr<Job>,
    /// Whether the loop is, or may be about to be, asleep.
    sleeping: AtomicBool,
    event: OwnedFd,
    max_threads: usize,
}

struct Queue {
    jobs: VecDeque<JobPtr>,
    threads: usize,
    idle: usize,
    ending: bool,
}

/// What every job begins with, whatever its closure.
#[repr(C)]
pub(crate) struct Job {
    run: unsafe fn(NonNull<Job>),
    next: Cell<*mut Job>,
    waiter: NonNull<Core>,
    workers: NonNull<Workers>,
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
        Ok(Workers {
            shared: Arc::new(Shared {
                queue: Mutex::new(Queue {
                    jobs: VecDeque::new(),
                    threads: 0,
                    idle: 0,
                    ending: false,
                }),
                work: Condvar::new(),
                done: AtomicPtr::new(ptr::null_mut()),
                sleeping: AtomicBool::new(false),
                event,
                max_threads: max_threads.max(1),
            }),
            outstanding: Cell::new(0),
            signalled: Cell::new(false),
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
        // The list has the last one first.
        let mut reversed = self.shared.done.swap(ptr::null_mut(), Ordering::Acquire);
        let mut first: *mut Job = ptr::null_mut();
        while let Some(job) = NonNull::new(reversed) {
            // SAFETY: a job that is done is the loop's alone, until its coroutine is continued.
            reversed = unsafe { job.as_ref() }.next.replace(first);
            first = job.as_ptr();
        }
        while let Some(job) = NonNull::new(first) {
            // SAFETY: as above; both are read before the job goes away with the coroutine.
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
                let mut poll = libc::pollfd {
                    fd: self.shared.event.as_raw_fd(),
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
    /// descriptor readable; false if something is done already.
    pub fn prepare_sleep(&self) -> bool {
        self.shared.sleeping.store(true, Ordering::SeqCst);
        // A worker puts its job on the list and then looks at `sleeping`: one of the two sees
        // what the other did.
        self.shared.done.load(Ordering::SeqCst).is_null()
    }

    /// When the loop is awake again: jobs that are done are found without the descriptor.
    pub fn awake(&self) {
        if !self.shared.sleeping.swap(false, Ordering::SeqCst) {
            self.signalled.set(true);
        }
        if self.signalled.get() {
            let mut count = 0_u64;
            // SAFETY: the kernel writes at most the eight bytes of `count`.
            let read =
                unsafe { libc::read(self.shared.event.as_raw_fd(), (&raw mut count).cast(), 8) };
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

    fn submit(&self, job: NonNull<Job>) {
        self.outstanding.set(self.outstanding.get() + 1);
        let mut queue = self.shared.lock();
        queue.jobs.push_back(JobPtr(job));
        if queue.idle >= queue.jobs.len() {
            drop(queue);
            self.shared.work.notify_one();
        } else if queue.threads < self.shared.max_threads {
            queue.threads += 1;
            let first = queue.threads == 1;
            drop(queue);
            self.start_thread(first);
        }
    }

    fn start_thread(&self, is_first: bool) {
        let shared = self.shared.clone();
        let started = thread::Builder::new()
            .name("worker".into())
            .stack_size(THREAD_STACK)
            .spawn(move || shared.work());
        if started.is_err() {
            let mut queue = self.shared.lock();
            queue.threads -= 1;
            if is_first && let Some(job) = queue.jobs.pop_back() {
                // Nobody else will ever do it.
                drop(queue);
                self.shared.run(job);
            }
        }
    }
}

impl AsFd for Workers {
    /// Readable when a job is done while the loop sleeps.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

impl Drop for Workers {
    /// Waits for what runs.
    fn drop(&mut self) {
        while self.outstanding.get() > 0 {
            self.wait_completed();
        }
        self.shared.lock().ending = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing that holds the lock panics.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                self.run(job);
                queue = self.lock();
                continue;
            }
            if queue.ending {
                break;
            }
            queue.idle += 1;
            let (woken, time) = self
                .work
                .wait_timeout(queue, IDLE_TIME)
                .unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            queue.idle -= 1;
            if time.timed_out() && queue.jobs.is_empty() {
                break;
            }
        }
        queue.threads -= 1;
    }

    fn run(&self, JobPtr(job): JobPtr) {
        // SAFETY: the job is this thread's alone, and `run` is the function made for it.
        unsafe { (job.as_ref().run)(job) };
        let mut head = self.done.load(Ordering::Relaxed);
        loop {
            // SAFETY: until it is on the list the job is this thread's alone.
            unsafe { job.as_ref() }.next.set(head);
            match self.done.compare_exchange_weak(
                head,
                job.as_ptr(),
                Ordering::SeqCst,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(other) => head = other,
            }
        }
        // The job is the loop's now.
        if self.sleeping.swap(false, Ordering::SeqCst) {
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
