//! A closure that a worker runs for a coroutine.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};

use crate::core::Core;

/// The start of every job, independent of its closure.
#[repr(C)]
pub(super) struct Job {
    run: unsafe fn(NonNull<Job>),
    /// The next in the list that the job is in.
    pub(super) next: Cell<*mut Job>,
    /// The coroutine that waits for the job, and on whose stack it lies.
    pub(super) waiter: *const Core,
}

/// A job with its closure and its result, on the stack of the waiting coroutine.
#[repr(C)]
pub(super) struct JobOf<F, T> {
    job: Job,
    f: UnsafeCell<Option<F>>,
    result: UnsafeCell<Option<Result<T, Box<dyn Any + Send>>>>,
}

impl Job {
    /// Calls the closure.
    ///
    /// # Safety
    /// The job must be alive, and only the calling thread may use it.
    pub(super) unsafe fn run(job: NonNull<Job>) {
        // SAFETY: the caller promises that only this thread uses the job. Both the job and its
        // function come from the same `JobOf`.
        unsafe { (job.as_ref().run)(job) }
    }

    #[cfg(loom)]
    pub(super) fn with(run: unsafe fn(NonNull<Job>)) -> Job {
        Job {
            run,
            next: Cell::new(ptr::null_mut()),
            waiter: ptr::null(),
        }
    }
}

impl<T: Send, F: FnOnce() -> T + Send> JobOf<F, T> {
    pub(super) fn new(f: F, waiter: *const Core) -> Self {
        JobOf {
            job: Job {
                run: run::<T, F>,
                next: Cell::new(ptr::null_mut()),
                waiter,
            },
            f: UnsafeCell::new(Some(f)),
            result: UnsafeCell::new(None),
        }
    }

    /// The result of the closure.
    ///
    /// # Panics
    /// If the closure has panicked, with its payload.
    pub(super) fn value(self) -> T {
        match self.result.into_inner() {
            Some(Ok(value)) => value,
            Some(Err(panic)) => resume_unwind(panic),
            None => unreachable!("a coroutine was resumed before its job was done"),
        }
    }
}

/// Calls the closure of a job.
///
/// # Safety
/// `job` must be the start of a `JobOf<F, T>` that only the calling thread uses.
unsafe fn run<T: Send, F: FnOnce() -> T + Send>(job: NonNull<Job>) {
    // SAFETY: the caller promises that the job is in a `JobOf` of this type, and `repr(C)` puts it
    // at the start.
    let job = unsafe { job.cast::<JobOf<F, T>>().as_ref() };
    // SAFETY: the caller promises that only this thread uses the job, so there is no other
    // reference into the cells.
    let (f, result) = unsafe { (&mut *job.f.get(), &mut *job.result.get()) };
    if let Some(f) = f.take() {
        *result = Some(catch_unwind(AssertUnwindSafe(f)));
    }
}
