//! Coroutines: create, enter, yield, end.
//!
//! A coroutine's [`Core`] lies at the top of its own stack, its closure below, then the frames:
//!
//! ```text
//!   top of the mapping ─▶ Core
//!                         the closure, until it is called
//!                         frames ...
//!                         guard
//! ```

use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};

use crate::arch;
use crate::stack::{Stack, StackError};
use crate::workers::Job;

/// What is known of a coroutine, on its own stack.
pub(crate) struct Core {
    /// While suspended the coroutine's stack pointer, while running its caller's.
    sp: Cell<*mut u8>,
    /// The coroutine that entered this one; null for a thread's own stack.
    caller: Cell<*mut Core>,
    state: Cell<State>,
    /// Whether the next entering unwinds the stack instead of going on.
    cancelled: Cell<bool>,
    /// Whether nobody holds a handle: the stack goes back as soon as the coroutine has ended.
    detached: Cell<bool>,
    /// A job that is to be given to its workers when the stack has been left.
    job: Cell<Option<NonNull<Job>>>,
    /// What the coroutine has panicked with.
    panic: Cell<Option<Box<dyn Any + Send>>>,
    stack: ManuallyDrop<Stack>,
    id: Id,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Yielded, or not begun: may be entered.
    Suspended,
    /// On the processor, or waiting for one that it has entered.
    Running,
    /// In a queue, or on a worker: is entered by who takes it from there.
    Waiting,
    /// At its end.
    Finished,
}

/// Tells coroutines of a thread apart. Not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(u64);

/// What a cancelled coroutine unwinds with.
struct Cancelled;

thread_local! {
    static CURRENT: Cell<*mut Core> = const { Cell::new(ptr::null_mut()) };
    static LAST_ID: Cell<u64> = const { Cell::new(0) };
}

/// Whether the caller runs in a coroutine.
#[inline]
pub fn in_coroutine() -> bool {
    !CURRENT.get().is_null()
}

/// The coroutine that the caller runs in, if any.
pub fn current() -> Option<Id> {
    // SAFETY: CURRENT is null or the coroutine on whose stack this very call is.
    unsafe { CURRENT.get().as_ref() }.map(|core| core.id)
}

/// A coroutine that its owner enters. Dropped before its end, its stack is unwound; a coroutine
/// that waits for a worker or a lock is unwound when its waiting is over.
///
/// It stays on its thread:
///
/// ```compile_fail
/// fn send<T: Send>(_: T) {}
/// send(coroutine::Coroutine::create(|| {}));
/// ```
pub struct Coroutine {
    core: NonNull<Core>,
    thread_bound: PhantomData<*mut ()>,
}

impl Coroutine {
    /// Makes a coroutine that will run `f`. Errors: [`StackError`] if there is no stack for it.
    pub fn create(f: impl FnOnce() + 'static) -> Result<Coroutine, StackError> {
        let core = create(f, false)?;
        Ok(Coroutine {
            core,
            thread_bound: PhantomData,
        })
    }

    /// Runs the coroutine until it yields, waits or ends, and returns whether it has not ended. A
    /// panic in it goes on here.
    ///
    /// # Panics
    /// If the coroutine runs already, has ended, or waits for something that will enter it.
    pub fn enter(&mut self) -> bool {
        match self.core().state.get() {
            State::Suspended => {}
            State::Running => panic!("a running coroutine was entered"),
            State::Waiting => panic!("a coroutine was entered that waits for a worker or a lock"),
            State::Finished => panic!("a finished coroutine was entered"),
        }
        enter(self.core);
        self.core().state.get() != State::Finished
    }

    /// Whether the coroutine has come to its end.
    pub fn is_finished(&self) -> bool {
        self.core().state.get() == State::Finished
    }

    /// The coroutine's name for [`current`].
    pub fn id(&self) -> Id {
        self.core().id
    }

    fn core(&self) -> &Core {
        // SAFETY: a core that is not detached lives as long as its handle.
        unsafe { self.core.as_ref() }
    }
}

impl Drop for Coroutine {
    fn drop(&mut self) {
        match self.core().state.get() {
            State::Finished => release(self.core),
            State::Suspended => {
                self.core().cancelled.set(true);
                self.core().detached.set(true);
                enter(self.core);
            }
            // Something holds a pointer into the stack, a worker perhaps: it lives until that is
            // over. A running coroutine that drops its own handle ends as it would have.
            State::Waiting => {
                self.core().cancelled.set(true);
                self.core().detached.set(true);
            }
            State::Running => self.core().detached.set(true),
        }
    }
}

/// Makes a coroutine and enters it at once; returns when it first yields, waits or ends. It has no
/// handle: what it waits for continues it. Errors: [`StackError`] if there is no stack for it.
///
/// # Panics
/// With what the coroutine panics with, if it does before it first waits; later panics reach who
/// continues it.
pub fn spawn(f: impl FnOnce() + 'static) -> Result<(), StackError> {
    enter(create(f, true)?);
    Ok(())
}

/// Suspends the running coroutine and goes on where it was entered.
///
/// # Panics
/// Outside of a coroutine, and while the coroutine is panicking: the standard library counts
/// panics by thread.
pub fn yield_now() {
    leave(State::Suspended);
}

/// Suspends the running coroutine until something calls [`resume`] for it.
pub(crate) fn wait() {
    leave(State::Waiting);
}

/// Suspends the running coroutine until its job is done. The job is handed over only when the
/// stack has been left: a fast worker would otherwise resume a coroutine that still runs.
pub(crate) fn wait_for_job(job: NonNull<Job>) {
    running().job.set(Some(job));
    leave(State::Waiting);
}

/// The running coroutine, to be continued by [`resume`].
///
/// # Panics
/// Outside of a coroutine.
pub(crate) fn this() -> NonNull<Core> {
    NonNull::from(running())
}

/// Continues a coroutine that waits.
pub(crate) fn resume(core: NonNull<Core>) {
    // SAFETY: a coroutine that waits is alive, whoever has dropped its handle.
    let state = unsafe { core.as_ref() }.state.get();
    assert_eq!(
        state,
        State::Waiting,
        "a coroutine was continued that does not wait"
    );
    enter(core);
}

fn running<'a>() -> &'a Core {
    // SAFETY: CURRENT is null or the coroutine on whose stack this very call is, which outlives
    // the call.
    unsafe { CURRENT.get().as_ref() }.expect("outside of a coroutine there is nothing to suspend")
}

/// The first function on a coroutine's stack: what is to run, and how it ends.
struct Entry<F> {
    core: NonNull<Core>,
    f: F,
}

fn create<F: FnOnce() + 'static>(f: F, detached: bool) -> Result<NonNull<Core>, StackError> {
    const {
        assert!(align_of::<Entry<F>>() <= 4096 && align_of::<Core>() <= 4096);
        // The stack is for frames.
        assert!(
            size_of::<Entry<F>>() <= 16 * 1024,
            "the closure is too large for the stack"
        );
    }
    let stack = Stack::take()?;
    let core_at = below(stack.top(), size_of::<Core>(), align_of::<Core>());
    let entry_at = below(core_at, size_of::<Entry<F>>(), align_of::<Entry<F>>());
    let frames_at = below(entry_at, 0, 16);
    let core = core_at.cast::<Core>();
    LAST_ID.set(LAST_ID.get() + 1);
    // SAFETY: both places lie in the stack's own memory, aligned, one below the other, and nothing
    // else uses that memory; `frames_at` is aligned to 16 and the memory below it is the stack's.
    unsafe {
        let core_ref = NonNull::new_unchecked(core);
        entry_at
            .cast::<Entry<F>>()
            .write(Entry { core: core_ref, f });
        let sp = arch::initialise(frames_at, run::<F>, entry_at);
        core.write(Core {
            sp: Cell::new(sp),
            caller: Cell::new(ptr::null_mut()),
            state: Cell::new(State::Suspended),
            cancelled: Cell::new(false),
            detached: Cell::new(detached),
            job: Cell::new(None),
            panic: Cell::new(None),
            stack: ManuallyDrop::new(stack),
            id: Id(LAST_ID.get()),
        });
        Ok(core_ref)
    }
}

fn below(address: *mut u8, size: usize, align: usize) -> *mut u8 {
    let place = (address as usize - size) & !(align - 1);
    address.wrapping_sub(address as usize - place)
}

unsafe extern "C" fn run<F: FnOnce() + 'static>(entry: *mut u8) -> ! {
    // SAFETY: `create` has put the entry there for this one call.
    let Entry { core, f } = unsafe { entry.cast::<Entry<F>>().read() };
    // SAFETY: the core lives until `release`, which runs after this stack has been left for good.
    let core = unsafe { core.as_ref() };
    // Never let an unwind pass the switch: there is no frame behind it.
    let result = catch_unwind(AssertUnwindSafe(|| {
        if core.cancelled.get() {
            drop(f);
        } else {
            f();
        }
    }));
    if let Err(panic) = result
        && !panic.is::<Cancelled>()
    {
        core.panic.set(Some(panic));
    }
    core.state.set(State::Finished);
    let to = core.sp.get();
    let mut nowhere = MaybeUninit::uninit();
    // SAFETY: `enter` has saved the caller's stack pointer in `sp`. Nothing ever comes back, so
    // what is saved of this stack is of no use.
    unsafe { arch::switch(nowhere.as_mut_ptr(), to) };
    unreachable!("a finished coroutine was entered")
}

fn enter(core: NonNull<Core>) {
    // SAFETY: callers have checked that the coroutine is alive and not running.
    let target = unsafe { core.as_ref() };
    let caller = CURRENT.replace(core.as_ptr());
    target.caller.set(caller);
    target.state.set(State::Running);
    let to = target.sp.get();
    // SAFETY: `sp` is the stack pointer saved when the coroutine was made or last left, and is
    // used once: the switch overwrites it with ours, the way back.
    unsafe { arch::switch(target.sp.as_ptr(), to) };
    CURRENT.set(caller);
    if let Some(job) = target.job.take() {
        // SAFETY: the job is alive until the coroutine is resumed, and that takes its completion,
        // which only this makes possible. From here on the coroutine may be touched by nobody
        // but through that.
        unsafe { Job::submit(job) };
        return;
    }
    if target.state.get() == State::Finished {
        let panic = target.panic.take();
        if target.detached.get() {
            release(core);
        }
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

fn leave(state: State) {
    let core = running();
    assert!(
        !std::thread::panicking(),
        "a coroutine cannot be suspended while it panics"
    );
    core.state.set(state);
    let to = core.sp.get();
    // SAFETY: while a coroutine runs, `sp` is its caller's stack pointer, saved by `enter`; it is
    // used once and overwritten with ours.
    unsafe { arch::switch(core.sp.as_ptr(), to) };
    if core.cancelled.get() {
        resume_unwind(Box::new(Cancelled));
    }
}

/// Gives the stack of a finished coroutine back, the core with it.
fn release(core: NonNull<Core>) {
    // SAFETY: the coroutine has ended and nobody else knows of it: its handle is gone or being
    // dropped. The stack is moved out before its memory, in which the core lies, is given away.
    unsafe {
        let stack = ManuallyDrop::take(&mut (*core.as_ptr()).stack);
        ptr::drop_in_place(core.as_ptr());
        stack.give_back();
    }
}
