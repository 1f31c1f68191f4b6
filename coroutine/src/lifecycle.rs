//! Create, enter, suspend, resume and end a coroutine.
//!
//! All bookkeeping happens before a switch, on the side that is being left. So [`enter`] and
//! [`yield_now`] end in a tail call of the switch, and the path from `enter` to the coroutine's code
//! is a single predicted jump. Work that must wait until a stack has been left (submitting a job,
//! raising a panic in the code that entered) is a hook of the switch, and costs nothing without
//! one.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::thread::panicking;

use crate::arch::{self, Link};
use crate::core::{Core, Id, List, below, flags, state};
use crate::pool;
use crate::stack::StackError;
use crate::thread::{self, Thread};
use crate::trace;

/// The error of [`spawn`](crate::spawn) when there is no stack. Returns the closure.
#[derive(thiserror::Error)]
#[error("{error}")]
pub struct SpawnError<F> {
    /// The closure that the coroutine would have run.
    pub closure: F,
    /// The reason.
    pub error: StackError,
}

impl<F> fmt::Debug for SpawnError<F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SpawnError")
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

impl<F> From<SpawnError<F>> for StackError {
    fn from(failed: SpawnError<F>) -> StackError {
        failed.error
    }
}

/// The panic payload that unwinds a cancelled coroutine.
struct Cancelled;

/// Maximum size of a closure in bytes: the stack is for frames.
const MAX_CLOSURE: usize = 8 * 1024;
/// The panic of a coroutine that ends while it holds a lock.
const LOCK_HELD: &str = "a coroutine has ended while it held a coroutine lock";
/// How often a dropped coroutine may catch its unwinding and yield again.
const MAX_REFUSALS: usize = 100;

/// Whether the caller runs in a coroutine.
#[inline]
pub fn in_coroutine() -> bool {
    !thread::running().is_null()
}

/// The coroutine that the caller runs in, if any.
pub fn current() -> Option<Id> {
    // SAFETY: the caller runs in that coroutine, so it is alive.
    unsafe { thread::running().as_ref() }.map(Core::id)
}

/// Whether the coroutine has been entered and has neither yielded nor ended: the caller runs in
/// it, or in a coroutine that it has entered, directly or through others.
pub fn entered(id: Id) -> bool {
    let mut core = thread::running();
    // SAFETY: the caller runs in the first coroutine. Each was entered by the next, which cannot
    // end before it runs again.
    while let Some(running) = unsafe { core.as_ref() } {
        if running.id() == id {
            return true;
        }
        core = running.caller.get();
    }
    false
}

/// Suspends the running coroutine and continues where it was entered.
///
/// # Panics
/// Outside of a coroutine. Also while the thread is panicking, as the standard library counts
/// panics per thread, except in a coroutine that is dropped, or resumed by its lock or worker,
/// during another panic.
#[inline(never)]
pub fn yield_now() {
    // SAFETY: the coroutine runs, so its link holds the state of the code that entered it, which is
    // suspended since.
    unsafe {
        let core = leaving(state::SUSPENDED);
        arch::switch(core.link(), true);
    }
}

/// As [`yield_now`], inlined into the caller. With [`Coroutine::enter_inline`] it makes a loop that
/// does little else about twice as fast, and the program larger.
///
/// [`Coroutine::enter_inline`]: crate::Coroutine::enter_inline
///
/// # Panics
/// As [`yield_now`].
#[inline(always)]
pub fn yield_inline() {
    // SAFETY: the coroutine runs, so its link holds the state of the code that entered it, which is
    // suspended since. `cancel` sees `INLINE` and does not unwind into this function.
    let cancelled = unsafe {
        let core = leaving(state::INLINE);
        arch::switch_inline(core.link(), true)
    };
    if cancelled {
        unwind_cancelled();
    }
}

/// The bookkeeping for leaving the running coroutine, which is returned.
///
/// # Safety
/// The caller must next switch by the coroutine's link. The reference must not be used after the
/// coroutine's end.
#[inline(always)]
unsafe fn leaving<'a>(state: u8) -> &'a Core {
    // First, as it may be a call, and no value is live across it here.
    if panicking() {
        check_panic();
    }
    // SAFETY: this function does not switch.
    let thread = unsafe { Thread::this() };
    // SAFETY: the running coroutine is alive, as this code runs on its stack.
    let Some(core) = (unsafe { thread.running().as_ref() }) else {
        nothing_to_suspend()
    };
    trace::event(trace::Kind::Yield, core);
    core.state.set(state);
    // SAFETY: the caller next switches to the code that entered the coroutine.
    unsafe { thread.set_running(core.caller.get()) };
    core
}

/// Suspends the running coroutine in `queue` until [`resume`] is called for it.
pub(crate) fn wait_in(queue: &List) {
    refuse_migration();
    // SAFETY: the coroutine runs, so its link holds the state of the code that entered it, which is
    // suspended since. A running coroutine is in no queue. The queue is borrowed until the
    // coroutine is resumed, and the coroutine is removed before.
    unsafe {
        let core = leaving(state::WAITING);
        move_to(queue, core);
        arch::switch(core.link(), true);
    }
}

/// Puts a coroutine into a queue.
///
/// # Safety
/// The coroutine must wait, or be about to, and be in no queue. The queue must stay alive until the
/// coroutine is removed from it.
#[inline]
pub(crate) unsafe fn move_to(queue: &List, core: &Core) {
    // SAFETY: the caller promises that the coroutine is in no queue. As it waits, it stays alive
    // until it is resumed, and it is removed before.
    unsafe { queue.push_back(core) };
    core.queue.set(queue);
}

/// Suspends the running coroutine until [`resume`] is called for it. Calls `hand_over` after the
/// switch away from its stack: before, another thread could resume a coroutine that still runs.
#[cfg(target_os = "linux")]
pub(crate) fn wait_for<F: FnOnce()>(hand_over: F) {
    unsafe extern "C-unwind" fn left<F: FnOnce()>(link: *const Link) {
        // SAFETY: the hook gets the link that was switched, at the start of the core. The parcel is
        // the closure on the suspended stack. Nothing else reads or drops it.
        let hand_over = unsafe { (*link.cast::<Core>()).parcel.get().cast::<F>().read() };
        hand_over();
    }
    refuse_migration();
    let hand_over = std::mem::ManuallyDrop::new(hand_over);
    // SAFETY: the coroutine runs, so its link holds the state of the code that entered it, which
    // has started and is suspended since.
    unsafe {
        let core = leaving(state::WAITING);
        core.parcel.set((&raw const hand_over).cast());
        arch::switch_then(core.link(), true, left::<F>);
    }
}

/// The running coroutine.
///
/// # Safety
/// The reference must not be used after the coroutine's end.
///
/// # Panics
/// Outside of a coroutine.
pub(crate) unsafe fn this<'a>() -> &'a Core {
    // SAFETY: the running coroutine is alive, as this code runs on its stack.
    unsafe { thread::running().as_ref() }.unwrap_or_else(|| nothing_to_suspend())
}

/// Resumes a coroutine that waits.
///
/// # Safety
/// The coroutine must belong to this thread and be in no queue. A job that it has handed over must
/// no longer use its stack.
pub(crate) unsafe fn resume(core: &Core) {
    assert!(
        core.state.get() & state::WAITING != 0,
        "a coroutine was resumed that does not wait"
    );
    core.queue.set(ptr::null());
    core.state.set(state::SUSPENDED);
    if core.flags.get() & flags::CANCELLED != 0 {
        // SAFETY: its handle was dropped when it was cancelled, and it no longer waits.
        return unsafe { cancel(core) };
    }
    // SAFETY: the coroutine is suspended, so its link holds its state.
    unsafe {
        core.entering(in_panic());
        arch::switch(core.link(), false);
    }
}

/// The `IN_PANIC` bit for a coroutine that is entered now.
fn in_panic() -> u8 {
    if panicking() { state::IN_PANIC } else { 0 }
}

/// Enters a coroutine. Returns when it yields, waits or ends: false if it has ended. A panic in it
/// continues here.
///
/// # Panics
/// If the coroutine runs, waits or has ended.
#[inline(never)]
pub(crate) fn enter(core: &Core) -> bool {
    check(core);
    // SAFETY: `check` has made sure that the coroutine is suspended, so its link holds its state.
    unsafe {
        core.entering(0);
        arch::switch(core.link(), false)
    }
}

/// Panics as [`enter`] would.
#[inline(always)]
pub(crate) fn check(core: &Core) {
    if core.state.get() & state::BUSY != 0 {
        core.refuse();
    }
}

/// As [`enter`], inlined into the caller.
#[inline(always)]
pub(crate) fn enter_inline(core: &Core) -> bool {
    check(core);
    // SAFETY: `check` has made sure that the coroutine is suspended, so its link holds its state.
    // While `ENTERED_INLINE` is set, the switch does not unwind into this function.
    let alive = unsafe {
        core.entering(state::ENTERED_INLINE);
        arch::switch_inline(core.link(), false)
    };
    if !alive && core.has_panicked() {
        // SAFETY: the coroutine has just ended.
        unsafe { core.raise() };
    }
    alive
}

/// Unwinds a coroutine.
///
/// # Safety
/// The coroutine must be suspended, not wait, and have no handle any more.
pub(crate) unsafe fn cancel(core: &Core) {
    core.flags
        .set(core.flags.get() | flags::CANCELLED | flags::DETACHED);
    for _ in 0..MAX_REFUSALS {
        let before = core.state.get();
        // SAFETY: the coroutine is suspended, so its link holds its state. The hook is not used for
        // one that has not started or must not be unwound into.
        let alive = unsafe {
            core.entering(in_panic());
            if before & (state::FRESH | state::INLINE) == 0 {
                arch::switch_then(core.link(), true, unwind)
            } else {
                arch::switch(core.link(), true)
            }
        };
        // One that waits is cancelled again when its wait is over.
        if !alive || core.state.get() & state::WAITING != 0 {
            return;
        }
    }
    panic!("a coroutine that was dropped catches its unwinding and yields again");
}

unsafe extern "C-unwind" fn unwind(_: *const Link) {
    unwind_cancelled();
}

#[cold]
fn unwind_cancelled() -> ! {
    resume_unwind(Box::new(Cancelled))
}

/// Creates a coroutine with an empty mailbox `M`, which will call `f`.
#[inline]
pub(crate) fn create<F, M>(f: F, flags: u8) -> Result<NonNull<Core>, StackError>
where
    F: FnOnce() + 'static,
    M: Default,
{
    let core = take()?;
    // SAFETY: the core is unused.
    unsafe { core.begin::<F, M>(f, flags) };
    Ok(NonNull::from(core))
}

/// Creates a coroutine without an owner, and enters it.
#[inline]
pub(crate) fn spawn<F: FnOnce() + 'static>(f: F) -> Result<(), SpawnError<F>> {
    match take() {
        Ok(core) => {
            // SAFETY: the core is unused.
            unsafe { core.begin_detached(f) };
            Ok(())
        }
        Err(error) => Err(SpawnError { closure: f, error }),
    }
}

/// An unused core.
#[inline(always)]
fn take<'a>() -> Result<&'a Core, StackError> {
    // SAFETY: the reference is used for this expression only, without a switch.
    match unsafe { Thread::this() }.pop_free() {
        Some(core) => Ok(core),
        None => pool::take(),
    }
}

/// As [`create`], on a stack of `size` bytes that is mapped for this coroutine.
pub(crate) fn create_with_stack<F, M>(
    size: usize,
    f: F,
    flags: u8,
) -> Result<NonNull<Core>, StackError>
where
    F: FnOnce() + 'static,
    M: Default,
{
    let core = pool::map_own(size)?;
    // SAFETY: the core is unused.
    unsafe { core.begin::<F, M>(f, flags) };
    Ok(NonNull::from(core))
}

/// The first function on a coroutine's stack.
///
/// # Safety
/// The link must belong to a core with a closure `F` below a mailbox `M`, and the coroutine must
/// now run on its own stack.
unsafe extern "C-unwind" fn run<F, M>(link: *const Link, cancelled: bool) -> !
where
    F: FnOnce() + 'static,
{
    // SAFETY: the link is the start of a core, which lives until its stack has been left for the
    // last time.
    let core = unsafe { &*link.cast::<Core>() };
    // An unwind must not cross the switch.
    let result = catch_unwind(AssertUnwindSafe(move || {
        // SAFETY: `begin` has written the closure there, for this function to read once.
        let f = unsafe { core.closure::<F, M>().read() };
        if cancelled {
            drop(f);
        } else {
            f();
        }
    }));
    // SAFETY: the coroutine runs, and this function has nothing left to drop.
    unsafe { finish(core, result) }
}

/// Ends the running coroutine.
///
/// # Safety
/// `core` must be the running coroutine, with nothing on its stack left to drop.
#[inline(always)]
unsafe fn finish(core: &Core, result: Result<(), Box<dyn Any + Send>>) -> ! {
    if result.is_err() || core.unpoolable.get() != 0 {
        // SAFETY: the caller promises that the coroutine runs, with nothing left to drop.
        unsafe { finish_badly(core, result) };
    }
    // SAFETY: the coroutine runs, so its link holds the state of the code that entered it, which is
    // suspended since. An ended coroutine is never entered. The stack goes into the pool while this
    // code still runs on it, but this thread switches away before anything can take it from there.
    unsafe {
        let thread = core.finished();
        if core.is_detached() {
            core.give_back(thread);
        }
        arch::switch_for_good(core.link(), false)
    }
}

/// Ends a coroutine that needs work after the last switch away from its stack.
///
/// # Safety
/// `core` must be the running coroutine, with nothing on its stack left to drop.
#[cold]
#[inline(never)]
unsafe fn finish_badly(core: &Core, result: Result<(), Box<dyn Any + Send>>) -> ! {
    unsafe extern "C-unwind" fn settle(link: *const Link) {
        // SAFETY: the hook gets the link that was switched, at the start of the core. The coroutine
        // has ended, and its stack has been left.
        unsafe { (*link.cast::<Core>()).raise() };
    }
    core.panic.set(match result {
        Err(panic) if !panic.is::<Cancelled>() => Some(panic),
        _ if core.holds_locks() => Some(Box::new(LOCK_HELD)),
        _ => None,
    });
    let inline = core.state.get() & state::ENTERED_INLINE != 0;
    // SAFETY: the coroutine runs, so its link holds the state of the code that entered it, which
    // has started and is suspended since. An ended coroutine is never entered.
    unsafe {
        core.finished();
        if core.unpoolable.get() != 0 {
            core.state.set(state::FINISHED | state::UNPOOLABLE);
        }
        if inline {
            // `enter_inline` calls `raise`.
            arch::switch_for_good(core.link(), false);
        }
        arch::switch_for_good_then(core.link(), false, settle)
    }
}

impl Core {
    /// Writes the mailbox and the closure to their places. Returns the upper end of the frames.
    ///
    /// # Safety
    /// The core must be unused: no code runs on its stack, and nothing else refers to it.
    #[inline(always)]
    unsafe fn fill<F, M>(&self, f: F) -> *mut u8
    where
        F: FnOnce() + 'static,
        M: Default,
    {
        const {
            assert!(align_of::<F>() <= 1024 && align_of::<M>() <= 1024);
            assert!(size_of::<F>() <= MAX_CLOSURE && size_of::<M>() <= MAX_CLOSURE);
        }
        // SAFETY: both places lie below the core on its stack, aligned and disjoint. Their sizes
        // are limited above, so more than 4 KiB of the smallest stack are left. No code runs on it.
        unsafe {
            self.mailbox::<M>().write(M::default());
            let place = self.closure::<F, M>();
            place.write(f);
            below(place.cast(), 0, 16)
        }
    }

    /// Initialises the fields of a coroutine.
    #[inline(always)]
    fn set(&self, state: u8, flags: u8) {
        self.state.set(state);
        self.flags.set(flags);
        self.wait_mode.set(0);
        self.has_id.set(false);
    }

    /// Creates the coroutine, which will run `f` when it is entered.
    ///
    /// # Safety
    /// The core must be unused: no code runs on its stack, and nothing else refers to it.
    #[inline(always)]
    unsafe fn begin<F, M>(&self, f: F, flags: u8)
    where
        F: FnOnce() + 'static,
        M: Default,
    {
        // SAFETY: the core is unused. `fill` returns an aligned address with more than 4 KiB of
        // stack below it, and has written what `run` reads. The core does not move.
        unsafe {
            let top = self.fill::<F, M>(f);
            self.link.prepare(top, run::<F, M>);
        }
        self.set(state::FRESH, flags);
    }

    /// Creates the coroutine without an owner, and enters it at once.
    ///
    /// # Safety
    /// The core must be unused: no code runs on its stack, and nothing else refers to it.
    #[inline(always)]
    unsafe fn begin_detached<F>(&self, f: F)
    where
        F: FnOnce() + 'static,
    {
        // SAFETY: the core is unused.
        let top = unsafe { self.fill::<F, ()>(f) };
        self.set(
            state::RUNNING | state::ENTERED_INLINE | in_panic(),
            flags::DETACHED,
        );
        trace::event(trace::Kind::Enter, self);
        // SAFETY: the switch comes next. `top` is aligned, with more than 4 KiB of stack below it,
        // and `fill` has written what `run` reads. The core does not move.
        let alive = unsafe {
            self.caller.set(Thread::this().set_running(self));
            arch::start_inline(&self.link, top, run::<F, ()>)
        };
        // If it has ended it is in the pool, but nothing else has run since.
        if !alive && self.has_panicked() {
            // SAFETY: it has just ended, and has no owner.
            unsafe { self.raise() };
        }
    }

    /// The bookkeeping for entering the coroutine.
    ///
    /// # Safety
    /// The coroutine must be suspended. The caller must next switch by its link.
    #[inline(always)]
    unsafe fn entering(&self, how: u8) {
        trace::event(trace::Kind::Enter, self);
        self.state.set(state::RUNNING | how);
        // SAFETY: the caller next switches to this coroutine.
        self.caller.set(unsafe { Thread::this().set_running(self) });
    }

    /// The bookkeeping for leaving the coroutine for the last time. Returns the thread's state.
    ///
    /// # Safety
    /// The coroutine must run. The caller must next switch by its link, and not use the thread's
    /// state after that.
    #[inline(always)]
    unsafe fn finished<'a>(&self) -> &'a Thread {
        trace::event(trace::Kind::Terminate, self);
        self.state.set(state::FINISHED);
        // SAFETY: the caller next switches to the code that entered the coroutine, and does not use
        // the thread's state after that.
        unsafe {
            let thread = Thread::this();
            thread.set_running(self.caller.get());
            thread
        }
    }

    /// Continues the panic of an ended coroutine, and gives the coroutine back if it has no owner.
    ///
    /// # Safety
    /// The coroutine must have ended, and its stack have been left. Without an owner the core must
    /// not be used any more.
    #[cold]
    #[inline(never)]
    unsafe fn raise(&self) {
        let panic = self.panic.take();
        if self.is_detached() {
            // SAFETY: the caller promises that the coroutine has ended and that its core is unused.
            unsafe { self.release() };
        }
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Gives back a coroutine.
    ///
    /// # Safety
    /// The coroutine must have ended, and its stack have been left. Only locks that it holds may
    /// still refer to the core.
    unsafe fn release(&self) {
        if self.state.get() & state::UNPOOLABLE == 0 {
            // SAFETY: the caller promises that it has ended and is unused. It is poolable, so it
            // holds no locks, and its stack is one of the pool's.
            unsafe { self.give_back(Thread::this()) };
        } else if !self.holds_locks() {
            // SAFETY: the caller promises that its stack has been left and is unused. It holds no
            // locks.
            unsafe { pool::unmap_own(self) };
        }
        // While it holds locks their guards point to it: then it is leaked.
    }

    /// Adds a coroutine to the thread's free ones.
    ///
    /// # Safety
    /// The coroutine must have ended and be no longer used, and its stack must be one of the
    /// pool's. Code that still runs on that stack must switch away before the thread does anything
    /// else.
    #[inline(always)]
    unsafe fn give_back(&self, thread: &Thread) {
        // SAFETY: the caller promises that the coroutine has ended, and that its stack, which is
        // one of the pool's, is left before it can be used again.
        unsafe { thread.push_free(self) };
        if thread.pooled.get() > pool::MAX_POOLED {
            pool::overflow(thread);
        }
    }

    /// Called by the owner when it drops its handle.
    ///
    /// # Safety
    /// The owner must not use the core any more.
    #[inline]
    pub(crate) unsafe fn disown(&self) {
        if self.state.get() == state::FINISHED {
            // SAFETY: the coroutine has ended, and its stack has been left, as this code runs. The
            // owner was the last user. It is poolable, so its stack is one of the pool's.
            unsafe { self.give_back(Thread::this()) };
        } else {
            // SAFETY: the caller promises that the owner does not use the core any more.
            unsafe { self.abandon() };
        }
    }

    /// Unwinds a coroutine that has lost its owner, now or as soon as that is possible.
    ///
    /// # Safety
    /// The owner must not use the core any more.
    #[cold]
    unsafe fn abandon(&self) {
        let state = self.state.get();
        if state & state::FINISHED != 0 {
            // SAFETY: the coroutine has ended, and its stack has been left, as this code runs. The
            // owner was the last user, apart from locks.
            unsafe { self.release() };
        } else if state & state::RUNNING != 0 {
            // It drops its own handle, or a coroutine that it has entered does: it runs to its end.
            self.flags.set(self.flags.get() | flags::DETACHED);
        } else if state & state::WAITING == 0 {
            // SAFETY: it does not run, has not ended, does not wait, and has no owner.
            unsafe { cancel(self) };
        // SAFETY: the queue that a coroutine waits in is borrowed by its stack, or the ready list.
        } else if let Some(queue) = unsafe { self.queue.get().as_ref() } {
            self.flags
                .set(self.flags.get() | flags::CANCELLED | flags::DETACHED);
            // SAFETY: it waits in that queue, so no job uses its stack. It belongs to this thread,
            // as one that may migrate never waits.
            unsafe {
                queue.remove(self);
                resume(self);
            }
        } else {
            // A worker uses its stack: it is unwound when the job is done.
            self.flags
                .set(self.flags.get() | flags::CANCELLED | flags::DETACHED);
        }
    }

    #[cold]
    #[inline(never)]
    fn refuse(&self) -> ! {
        match self.state.get() {
            state if state & state::RUNNING != 0 => panic!("a running coroutine was entered"),
            state if state & state::FINISHED != 0 => panic!("a finished coroutine was entered"),
            _ => panic!("a coroutine was entered that waits for a worker or a lock"),
        }
    }
}

/// Panics if the running coroutine may migrate between threads, and so must not wait.
fn refuse_migration() {
    // SAFETY: the reference is used in this function only, which runs on the coroutine's stack.
    let core = unsafe { this() };
    assert!(
        core.flags.get() & flags::MIGRATES == 0,
        "a coroutine that may migrate between threads waits for something that belongs to one"
    );
}

#[cold]
#[inline(never)]
fn nothing_to_suspend() -> ! {
    panic!("nothing can be suspended outside of a coroutine")
}

/// Panics if the thread's panic is that of the running coroutine, which is to be suspended.
#[cold]
#[inline(never)]
fn check_panic() {
    // SAFETY: the running coroutine is alive, as this code runs on its stack.
    if let Some(core) = unsafe { thread::running().as_ref() } {
        if core.state.get() & state::IN_PANIC == 0 {
            panic!("a coroutine cannot be suspended while it panics");
        }
    }
}
