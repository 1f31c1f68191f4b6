//! How a coroutine is made, entered, left and ended.
//!
//! All bookkeeping is done before a switch, on the side that is being left. So [`enter`] and
//! [`yield_now`] end in a tail call of the switch, and the way from `enter` to what the coroutine
//! does next is a single predicted jump. What can be done only when a stack has been left (handing
//! a job to a worker, raising a panic at who entered) is a hook of the switch, and costs nothing
//! where there is none.

use std::any::Any;
use std::fmt;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::thread::panicking;

use crate::arch::{self, Link};
use crate::core::{Core, Id, List, below, flags, state};
use crate::pool;
use crate::stack::StackError;
use crate::thread::Thread;
use crate::trace;

/// There is no stack to [`spawn`](crate::spawn) a coroutine on. Gives the closure back, with all
/// that it owns.
#[derive(thiserror::Error)]
#[error("{error}")]
pub struct SpawnError<F> {
    /// What the coroutine would have run.
    pub closure: F,
    /// Why there is no stack.
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

/// What a cancelled coroutine unwinds with.
struct Cancelled;

/// Bytes that a closure may have: the stack is for frames.
const MAX_CLOSURE: usize = 8 * 1024;
/// What one panics with that ends with a lock.
const LOCK_HELD: &str = "a coroutine has ended while it held a coroutine lock";
/// How often a coroutine that is dropped may catch its unwinding and yield again.
const MAX_REFUSALS: usize = 100;

/// Whether the caller runs in a coroutine.
#[inline]
pub fn in_coroutine() -> bool {
    !Thread::this().current.get().is_null()
}

/// The coroutine that the caller runs in, if any.
pub fn current() -> Option<Id> {
    Thread::this().core().map(Core::id)
}

/// Whether the coroutine has been entered and has neither yielded nor ended: the caller runs in
/// it, or in a coroutine that it has entered, directly or through others.
pub fn entered(id: Id) -> bool {
    let mut core = Thread::this().core();
    while let Some(running) = core {
        if running.id() == id {
            return true;
        }
        // SAFETY: who has entered a coroutine that runs is alive, as this runs on top of it.
        core = unsafe { running.caller.get().as_ref() };
    }
    false
}

/// Suspends the running coroutine and goes on where it was entered.
///
/// # Panics
/// Outside of a coroutine, and while the thread is panicking, as the standard library counts
/// panics by thread; not so in a coroutine that is dropped, or continued by its lock or worker,
/// while somebody else panics.
#[inline(never)]
pub fn yield_now() {
    let core = leaving(state::SUSPENDED);
    // SAFETY: the coroutine runs, so the link has the state of who entered it, which cannot have
    // gone on meanwhile. A null reference has not come out of `leaving`.
    unsafe { arch::switch(core.link(), true) };
}

/// As [`yield_now`], copied into the caller. Together with [`Coroutine::enter_inline`] this makes
/// a loop that does little else about twice as fast, and the program larger.
///
/// [`Coroutine::enter_inline`]: crate::Coroutine::enter_inline
///
/// # Panics
/// As [`yield_now`].
#[inline(always)]
pub fn yield_inline() {
    let core = leaving(state::INLINE);
    // SAFETY: as in `yield_now`. Who cancels sees `INLINE` and does not unwind into this.
    let cancelled = unsafe { arch::switch_inline(core.link(), true) };
    if cancelled {
        unwind_cancelled();
    }
}

/// Does the bookkeeping for leaving the running coroutine, which is returned.
#[inline(always)]
fn leaving<'a>(state: u8) -> &'a Core {
    // First, as this may be a call, over which nothing has to be kept.
    if panicking() {
        check_panic();
    }
    let thread = Thread::this();
    let Some(core) = thread.core() else {
        nothing_to_suspend()
    };
    trace::event(trace::Kind::Yield, core);
    core.state.set(state);
    thread.current.set(core.caller.get());
    core
}

/// Suspends the running coroutine, which is in `queue`, until [`resume`] is called for it.
pub(crate) fn wait_in(queue: &List, core: &Core) {
    core.refuse_migration();
    leaving(state::WAITING);
    move_to(queue, core);
    // SAFETY: as in `yield_now`.
    unsafe { arch::switch(core.link(), true) };
}

/// Puts a waiting coroutine into another queue.
#[inline]
pub(crate) fn move_to(queue: &List, core: &Core) {
    queue.push_back(core);
    core.queue.set(queue);
}

/// Suspends the running coroutine until [`resume`] is called for it. `hand_over` is called when its
/// stack has been left, and sees to that: called before, it might let somebody resume a coroutine
/// that still runs.
#[cfg(target_os = "linux")]
pub(crate) fn wait_for<F: FnOnce()>(hand_over: F, core: &Core) {
    unsafe extern "C-unwind" fn left<F: FnOnce()>(link: *const Link) {
        // SAFETY: the hook is called with the link that was switched, the beginning of the core.
        // The closure lies on the stack that has been left, where nothing else reads it.
        let hand_over = unsafe { (*link.cast::<Core>()).parcel.get().cast::<F>().read() };
        hand_over();
    }
    core.refuse_migration();
    leaving(state::WAITING);
    let hand_over = ManuallyDrop::new(hand_over);
    core.parcel.set((&raw const hand_over).cast());
    // SAFETY: as in `yield_now`; who has entered this coroutine has begun.
    unsafe { arch::switch_then(core.link(), true, left::<F>) };
}

/// The running coroutine.
///
/// # Panics
/// Outside of a coroutine.
pub(crate) fn this<'a>() -> &'a Core {
    Thread::this()
        .core()
        .unwrap_or_else(|| nothing_to_suspend())
}

/// Continues a coroutine that waits, and is in no queue any more.
pub(crate) fn resume(core: &Core) {
    assert!(
        core.state.get() & state::WAITING != 0,
        "a coroutine was continued that does not wait"
    );
    core.queue.set(ptr::null());
    core.state.set(state::SUSPENDED);
    if core.flags.get() & flags::CANCELLED != 0 {
        return cancel(core);
    }
    core.entering(in_panic());
    // SAFETY: the coroutine is suspended, so the link has its state.
    unsafe { arch::switch(core.link(), false) };
}

/// A bit for the state of a coroutine that is entered now.
fn in_panic() -> u8 {
    if panicking() { state::IN_PANIC } else { 0 }
}

/// Enters a coroutine; returns when it yields, waits or ends, and whether it has not ended. A
/// panic in it goes on here.
///
/// # Panics
/// If the coroutine runs, waits or has ended.
#[inline(never)]
pub(crate) fn enter(core: &Core) -> bool {
    core.entering(0);
    // SAFETY: the coroutine is suspended, so the link has its state.
    unsafe { arch::switch(core.link(), false) }
}

/// Panics as [`enter`] would.
#[inline(always)]
pub(crate) fn check(core: &Core) {
    if core.state.get() & state::BUSY != 0 {
        core.refuse();
    }
}

/// As [`enter`], copied into the caller.
#[inline(always)]
pub(crate) fn enter_inline(core: &Core) -> bool {
    core.entering(state::ENTERED_INLINE);
    // SAFETY: as in `enter`. A panic in the coroutine is not raised here while that bit is set.
    let alive = unsafe { arch::switch_inline(core.link(), false) };
    if !alive && core.has_panicked() {
        core.raise();
    }
    alive
}

/// Unwinds a coroutine that does not run and whose handle is gone.
pub(crate) fn cancel(core: &Core) {
    core.flags
        .set(core.flags.get() | flags::CANCELLED | flags::DETACHED);
    for _ in 0..MAX_REFUSALS {
        let before = core.state.get();
        core.entering(in_panic());
        // SAFETY: the coroutine does not run, so the link has its state; the hook is not used if
        // it has not begun, or cannot be unwound from outside.
        let alive = unsafe {
            if before & (state::FRESH | state::INLINE) == 0 {
                arch::switch_then(core.link(), true, unwind)
            } else {
                arch::switch(core.link(), true)
            }
        };
        // What waits is continued, and cancelled again, when its waiting is over.
        if !alive || core.state.get() & state::WAITING != 0 {
            return;
        }
    }
    panic!("a coroutine that was dropped catches its unwinding and goes on to yield");
}

unsafe extern "C-unwind" fn unwind(_: *const Link) {
    unwind_cancelled();
}

#[cold]
fn unwind_cancelled() -> ! {
    resume_unwind(Box::new(Cancelled))
}

/// Makes a coroutine with an empty mailbox `M`, which will call `f`.
#[inline]
pub(crate) fn create<F, M>(f: F, flags: u8) -> Result<NonNull<Core>, StackError>
where
    F: FnOnce() + 'static,
    M: Default,
{
    let core = take()?;
    core.begin::<F, M>(f, flags);
    Ok(NonNull::from(core))
}

/// Makes a coroutine without an owner, and enters it.
#[inline]
pub(crate) fn spawn<F: FnOnce() + 'static>(f: F) -> Result<(), SpawnError<F>> {
    match take() {
        Ok(core) => {
            core.begin_detached(f);
            Ok(())
        }
        Err(error) => Err(SpawnError { closure: f, error }),
    }
}

/// A core that is unused.
#[inline(always)]
fn take<'a>() -> Result<&'a Core, StackError> {
    let thread = Thread::this();
    // SAFETY: what is in the list is an initialised core that nobody else knows of.
    match unsafe { thread.free.get().as_ref() } {
        Some(core) => {
            thread.pop_free(core);
            Ok(core)
        }
        None => pool::take(),
    }
}

/// As [`create`], with a stack of its own of `size` bytes.
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
    core.begin::<F, M>(f, flags);
    Ok(NonNull::from(core))
}

/// The first function on a coroutine's stack.
unsafe extern "C-unwind" fn run<F, M>(link: *const Link, cancelled: bool) -> !
where
    F: FnOnce() + 'static,
{
    // SAFETY: the link is the beginning of a core, which lives until its stack has been left for
    // good.
    let core = unsafe { &*link.cast::<Core>() };
    // Never let an unwind pass the switch.
    let result = catch_unwind(AssertUnwindSafe(move || {
        // SAFETY: `begin` has put the closure there for this one call.
        let f = unsafe { core.closure::<F, M>().read() };
        if cancelled {
            drop(f);
        } else {
            f();
        }
    }));
    finish(core, result)
}

#[inline(always)]
fn finish(core: &Core, result: Result<(), Box<dyn Any + Send>>) -> ! {
    if result.is_err() || core.oddities.get() != 0 {
        finish_badly(core, result);
    }
    let thread = core.finished();
    if core.is_detached() {
        // The stack is in the pool while this still runs on it; nothing can take it from there
        // before the thread has left it.
        core.give_back(thread);
    }
    // SAFETY: as in `yield_now`; nobody enters a coroutine that has ended.
    unsafe { arch::switch_for_good(core.link(), false) }
}

/// The end of a coroutine with more to do when its stack has been left.
#[cold]
#[inline(never)]
fn finish_badly(core: &Core, result: Result<(), Box<dyn Any + Send>>) -> ! {
    unsafe extern "C-unwind" fn settle(link: *const Link) {
        // SAFETY: the hook is called with the link that was switched, the beginning of the core.
        unsafe { &*link.cast::<Core>() }.raise();
    }
    core.panic.set(match result {
        Err(panic) if !panic.is::<Cancelled>() => Some(panic),
        _ if core.holds_locks() => Some(Box::new(LOCK_HELD)),
        _ => None,
    });
    let inline = core.state.get() & state::ENTERED_INLINE != 0;
    core.finished();
    if core.oddities.get() != 0 {
        core.state.set(state::FINISHED | state::ODD);
    }
    // SAFETY: as in `finish`; who has entered this coroutine has begun.
    unsafe {
        if inline {
            // Calls `raise` itself.
            arch::switch_for_good(core.link(), false);
        }
        arch::switch_for_good_then(core.link(), false, settle)
    }
}

impl Core {
    /// Puts the mailbox and the closure in their places, and returns that of the first frame.
    #[inline(always)]
    fn fill<F, M>(&self, f: F) -> *mut u8
    where
        F: FnOnce() + 'static,
        M: Default,
    {
        const {
            assert!(align_of::<F>() <= 1024 && align_of::<M>() <= 1024);
            assert!(size_of::<F>() <= MAX_CLOSURE && size_of::<M>() <= MAX_CLOSURE);
        }
        // SAFETY: both places lie below the core on its stack, aligned and apart; nothing runs on
        // the stack.
        unsafe {
            self.mailbox::<M>().write(M::default());
            let place = self.closure::<F, M>();
            place.write(f);
            below(place.cast(), 0, 16)
        }
    }

    /// As long as the coroutine is nobody else's: how it begins.
    #[inline(always)]
    fn set(&self, state: u8, flags: u8) {
        self.state.set(state);
        self.flags.set(flags);
        self.wish.set(0);
        self.named.set(false);
    }

    #[inline(always)]
    fn begin<F, M>(&self, f: F, flags: u8)
    where
        F: FnOnce() + 'static,
        M: Default,
    {
        let top = self.fill::<F, M>(f);
        // SAFETY: below that place is more than 4 KiB of the stack, as it has at least 32 KiB.
        unsafe { self.link.prepare(top, run::<F, M>) };
        self.set(state::FRESH, flags);
    }

    /// Makes the coroutine, which has no owner, and enters it at once.
    #[inline(always)]
    fn begin_detached<F>(&self, f: F)
    where
        F: FnOnce() + 'static,
    {
        let top = self.fill::<F, ()>(f);
        self.set(
            state::RUNNING | state::ENTERED_INLINE | in_panic(),
            flags::DETACHED,
        );
        trace::event(trace::Kind::Enter, self);
        self.caller.set(Thread::this().current.replace(self));
        // SAFETY: as in `begin`.
        let alive = unsafe { arch::start_inline(&self.link, top, run::<F, ()>) };
        // At its end it is in the pool, but nothing else has run since.
        if !alive && self.has_panicked() {
            self.raise();
        }
    }

    /// Does the bookkeeping for entering the coroutine.
    #[inline(always)]
    fn entering(&self, how: u8) {
        check(self);
        trace::event(trace::Kind::Enter, self);
        self.state.set(state::RUNNING | how);
        self.caller.set(Thread::this().current.replace(self));
    }

    /// Does the bookkeeping for leaving the coroutine for good.
    #[inline(always)]
    fn finished<'a>(&self) -> &'a Thread {
        trace::event(trace::Kind::Terminate, self);
        let thread = Thread::this();
        self.state.set(state::FINISHED);
        thread.current.set(self.caller.get());
        thread
    }

    /// After a coroutine's end: gives back what it leaves, and goes on with its panic.
    #[cold]
    #[inline(never)]
    fn raise(&self) {
        let panic = self.panic.take();
        if self.flags.get() & flags::DETACHED != 0 {
            self.release();
        }
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Gives back a coroutine that has ended and that nobody knows of any more.
    fn release(&self) {
        if self.state.get() & state::ODD == 0 {
            self.give_back(Thread::this());
        } else if !self.holds_locks() {
            pool::unmap_own(self);
        }
        // Who has been given a lock by the coroutine still points to it: then it stays.
    }

    #[inline(always)]
    fn give_back(&self, thread: &Thread) {
        thread.push_free(self);
        if thread.pooled.get() > pool::MAX_POOLED {
            pool::overflow(thread);
        }
    }

    /// The owner has dropped its handle.
    #[inline]
    pub(crate) fn disown(&self) {
        if self.state.get() == state::FINISHED {
            self.give_back(Thread::this());
        } else {
            self.abandon();
        }
    }

    #[cold]
    fn abandon(&self) {
        let state = self.state.get();
        if state & state::FINISHED != 0 {
            self.release();
        } else if state & state::RUNNING != 0 {
            // It drops its own handle, or one that it has entered does: it ends as it would have.
            self.flags.set(self.flags.get() | flags::DETACHED);
        } else if state & state::WAITING == 0 {
            cancel(self);
        // SAFETY: a queue that a coroutine waits in is borrowed by it.
        } else if let Some(queue) = unsafe { self.queue.get().as_ref() } {
            queue.remove(self);
            self.flags
                .set(self.flags.get() | flags::CANCELLED | flags::DETACHED);
            resume(self);
        } else {
            // A worker uses the stack: it is unwound when the job is done.
            self.flags
                .set(self.flags.get() | flags::CANCELLED | flags::DETACHED);
        }
    }

    fn refuse_migration(&self) {
        assert!(
            self.flags.get() & flags::MIGRATES == 0,
            "a coroutine that may move between threads waits for something that belongs to one"
        );
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

#[cold]
#[inline(never)]
fn nothing_to_suspend() -> ! {
    panic!("outside of a coroutine there is nothing to suspend")
}

/// The thread is panicking: is it the coroutine that is to be suspended?
#[cold]
#[inline(never)]
fn check_panic() {
    if let Some(core) = Thread::this().core()
        && core.state.get() & state::IN_PANIC == 0
    {
        panic!("a coroutine cannot be suspended while it panics");
    }
}
