//! A closure on its way to a worker and back.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};

use crate::core::Core;

/// What every job begins with, whatever its closure.
#[repr(C)]
pub(super) struct Job {
    run: unsafe fn(NonNull<Job>),
    /// The next in the list that the job is in.
    pub(super) next: Cell<*mut Job>,
    /// The coroutine that waits for it, and on whose stack it lies.
    pub(super) waiter: *const Core,
}

/// A job with its closure and what that has returned, on the stack of who waits for it.
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
    /// The job must be alive, and used by the calling thread alone.
    pub(super) unsafe fn run(job: NonNull<Job>) {
        // SAFETY: the caller says that the job is this thread's alone. It is the beginning of the
        // `JobOf` that it was made with, as was its function.
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

    /// What the closure has returned, or its panic.
    pub(super) fn value(self) -> T {
        match self.result.into_inner() {
            Some(Ok(value)) => value,
            Some(Err(panic)) => resume_unwind(panic),
            None => unreachable!("a coroutine was continued before its job was done"),
        }
    }
}

/// Calls the closure of a job.
///
/// # Safety
/// `job` must be the beginning of a `JobOf<F, T>` that the calling thread has alone.
unsafe fn run<T: Send, F: FnOnce() -> T + Send>(job: NonNull<Job>) {
    // SAFETY: the caller says what the job is the beginning of, where `repr(C)` puts it.
    let job = unsafe { job.cast::<JobOf<F, T>>().as_ref() };
    // SAFETY: the caller says that this thread has the job alone, so nothing else refers to what is
    // in the cells.
    let (f, result) = unsafe { (&mut *job.f.get(), &mut *job.result.get()) };
    if let Some(f) = f.take() {
        *result = Some(catch_unwind(AssertUnwindSafe(f)));
    }
}
