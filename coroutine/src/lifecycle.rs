//! How a coroutine is made, entered, left and ended.
//!
//! All bookkeeping is done before a switch, on the side that is being left. So [`enter`] and
//! [`yield_now`] end in a tail call of the switch, and the way from `enter` to what the coroutine
//! does next is a single predicted jump. What can be done only when a stack has been left (handing
//! a job to a worker, raising a panic at who entered) is a hook of the switch, and costs nothing
//! where there is none.

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
    // SAFETY: the caller runs in that coroutine, and each has been entered by the next, which
    // cannot end before it is gone back to.
    while let Some(running) = unsafe { core.as_ref() } {
        if running.id() == id {
            return true;
        }
        core = running.caller.get();
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
    // SAFETY: the coroutine that is left runs, so its link has the state of who entered it, which
    // cannot have gone on meanwhile.
    unsafe {
        let core = leaving(state::SUSPENDED);
        arch::switch(core.link(), true);
    }
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
    // SAFETY: the coroutine that is left runs, so its link has the state of who entered it, which
    // cannot have gone on meanwhile. Who cancels sees `INLINE` and does not unwind into this.
    let cancelled = unsafe {
        let core = leaving(state::INLINE);
        arch::switch_inline(core.link(), true)
    };
    if cancelled {
        unwind_cancelled();
    }
}

/// Does the bookkeeping for leaving the running coroutine, which is returned.
///
/// # Safety
/// The switch by the coroutine's link must come next. The coroutine must not be used after its end.
#[inline(always)]
unsafe fn leaving<'a>(state: u8) -> &'a Core {
    // First, as this may be a call, over which nothing has to be kept.
    if panicking() {
        check_panic();
    }
    // SAFETY: this function does not switch.
    let thread = unsafe { Thread::this() };
    // SAFETY: the coroutine that runs is alive, as this runs on its stack.
    let Some(core) = (unsafe { thread.running().as_ref() }) else {
        nothing_to_suspend()
    };
    trace::event(trace::Kind::Yield, core);
    core.state.set(state);
    // SAFETY: the caller switches next, to who has entered the coroutine.
    unsafe { thread.set_running(core.caller.get()) };
    core
}

/// Suspends the running coroutine in `queue` until [`resume`] is called for it.
pub(crate) fn wait_in(queue: &List) {
    refuse_migration();
    // SAFETY: the coroutine that is left runs, so its link has the state of who entered it, which
    // cannot have gone on meanwhile. One that runs is in no queue. The queue is borrowed until the
    // coroutine goes on, for which it is taken out.
    unsafe {
        let core = leaving(state::WAITING);
        move_to(queue, core);
        arch::switch(core.link(), true);
    }
}

/// Puts a coroutine into a queue.
///
/// # Safety
/// The coroutine must wait, or be about to, and be in no queue; the queue must be there until it is
/// taken out.
#[inline]
pub(crate) unsafe fn move_to(queue: &List, core: &Core) {
    // SAFETY: the caller says that the coroutine is in no queue. As it waits, it is alive until it
    // is continued, which takes somebody who has taken it out.
    unsafe { queue.push_back(core) };
    core.queue.set(queue);
}

/// Suspends the running coroutine until [`resume`] is called for it. `hand_over` is called when its
/// stack has been left, and sees to that: called before, it might let somebody resume a coroutine
/// that still runs.
#[cfg(target_os = "linux")]
pub(crate) fn wait_for<F: FnOnce()>(hand_over: F) {
    unsafe extern "C-unwind" fn left<F: FnOnce()>(link: *const Link) {
        // SAFETY: the hook is called with the link that was switched, the beginning of the core.
        // The parcel is the closure, which lies on the stack that has been left, so that nothing
        // changes it, and which nothing else reads or drops.
        let hand_over = unsafe { (*link.cast::<Core>()).parcel.get().cast::<F>().read() };
        hand_over();
    }
    refuse_migration();
    let hand_over = std::mem::ManuallyDrop::new(hand_over);
    // SAFETY: the coroutine that is left runs, so its link has the state of who entered it, which
    // has begun, and cannot have gone on meanwhile.
    unsafe {
        let core = leaving(state::WAITING);
        core.parcel.set((&raw const hand_over).cast());
        arch::switch_then(core.link(), true, left::<F>);
    }
}

/// The running coroutine.
///
/// # Safety
/// It must be used in this coroutine alone, or by somebody who knows that it has not ended.
///
/// # Panics
/// Outside of a coroutine.
pub(crate) unsafe fn this<'a>() -> &'a Core {
    // SAFETY: the coroutine that runs is alive, as this runs on its stack.
    unsafe { thread::running().as_ref() }.unwrap_or_else(|| nothing_to_suspend())
}

/// Continues a coroutine that waits.
///
/// # Safety
/// The coroutine must be one of this thread and be in no queue any more, and what it has handed
/// over must not use its stack any more.
pub(crate) unsafe fn resume(core: &Core) {
    assert!(
        core.state.get() & state::WAITING != 0,
        "a coroutine was continued that does not wait"
    );
    core.queue.set(ptr::null());
    core.state.set(state::SUSPENDED);
    if core.flags.get() & flags::CANCELLED != 0 {
        // SAFETY: it was disowned before, when it was cancelled, and waits for nothing any more.
        return unsafe { cancel(core) };
    }
    // SAFETY: the coroutine is suspended, so the link has its state.
    unsafe {
        core.entering(in_panic());
        arch::switch(core.link(), false);
    }
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
    check(core);
    // SAFETY: the coroutine is suspended, as was checked, so the link has its state.
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

/// As [`enter`], copied into the caller.
#[inline(always)]
pub(crate) fn enter_inline(core: &Core) -> bool {
    check(core);
    // SAFETY: the coroutine is suspended, as was checked, so the link has its state. A panic in it is
    // not raised here while that bit is set.
    let alive = unsafe {
        core.entering(state::ENTERED_INLINE);
        arch::switch_inline(core.link(), false)
    };
    if !alive && core.has_panicked() {
        // SAFETY: it has ended just now.
        unsafe { core.raise() };
    }
    alive
}

/// Unwinds a coroutine.
///
/// # Safety
/// The coroutine must not run, nor wait, nor have ended; its handle must be gone.
pub(crate) unsafe fn cancel(core: &Core) {
    core.flags
        .set(core.flags.get() | flags::CANCELLED | flags::DETACHED);
    for _ in 0..MAX_REFUSALS {
        let before = core.state.get();
        // SAFETY: the coroutine is suspended, so the link has its state; the hook is not used if
        // it has not begun, or cannot be unwound from outside.
        let alive = unsafe {
            core.entering(in_panic());
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
    // SAFETY: the core is unused.
    unsafe { core.begin::<F, M>(f, flags) };
    Ok(NonNull::from(core))
}

/// Makes a coroutine without an owner, and enters it.
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

/// A core that is unused.
#[inline(always)]
fn take<'a>() -> Result<&'a Core, StackError> {
    // SAFETY: it is used for this alone, without a switch.
    match unsafe { Thread::this() }.pop_free() {
        Some(core) => Ok(core),
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
    // SAFETY: the core is unused.
    unsafe { core.begin::<F, M>(f, flags) };
    Ok(NonNull::from(core))
}

/// The first function on a coroutine's stack.
///
/// # Safety
/// The link must be that of a coroutine that has a closure `F` below a mailbox `M`, and that runs
/// from now on, on its own stack.
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
    // SAFETY: the coroutine runs, and this function owns nothing that is to be dropped.
    unsafe { finish(core, result) }
}

/// Ends the running coroutine.
///
/// # Safety
/// `core` must be the running coroutine, and nothing on its stack be needed any more.
#[inline(always)]
unsafe fn finish(core: &Core, result: Result<(), Box<dyn Any + Send>>) -> ! {
    if result.is_err() || core.oddities.get() != 0 {
        // SAFETY: the caller says that the coroutine runs and that its stack is not needed any more.
        unsafe { finish_badly(core, result) };
    }
    // SAFETY: the coroutine runs, so its link has the state of who entered it, which cannot have
    // gone on meanwhile; nobody enters a coroutine that has ended. The stack may be in the pool
    // while this still runs on it: nothing can take it from there before this thread has left it.
    unsafe {
        let thread = core.finished();
        if core.is_detached() {
            core.give_back(thread);
        }
        arch::switch_for_good(core.link(), false)
    }
}

/// The end of a coroutine with more to do when its stack has been left.
///
/// # Safety
/// As for [`finish`].
#[cold]
#[inline(never)]
unsafe fn finish_badly(core: &Core, result: Result<(), Box<dyn Any + Send>>) -> ! {
    unsafe extern "C-unwind" fn settle(link: *const Link) {
        // SAFETY: the hook is called with the link that was switched, the beginning of the core. The
        // coroutine has ended, and its stack has been left.
        unsafe { (*link.cast::<Core>()).raise() };
    }
    core.panic.set(match result {
        Err(panic) if !panic.is::<Cancelled>() => Some(panic),
        _ if core.holds_locks() => Some(Box::new(LOCK_HELD)),
        _ => None,
    });
    let inline = core.state.get() & state::ENTERED_INLINE != 0;
    // SAFETY: the coroutine runs, so its link has the state of who entered it, which has begun, and
    // cannot have gone on meanwhile; nobody enters a coroutine that has ended.
    unsafe {
        core.finished();
        if core.oddities.get() != 0 {
            core.state.set(state::FINISHED | state::ODD);
        }
        if inline {
            // Calls `raise` itself.
            arch::switch_for_good(core.link(), false);
        }
        arch::switch_for_good_then(core.link(), false, settle)
    }
}

impl Core {
    /// Puts the mailbox and the closure in their places, and returns that of the first frame.
    ///
    /// # Safety
    /// The core must be unused: nothing runs on its stack, and nobody else uses it.
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
        // SAFETY: both places lie below the core on its stack, aligned and apart, and leave more
        // than 4 KiB of the least size, as both are bounded above. Nothing runs on the stack.
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

    /// Makes the coroutine, which will run `f` when it is entered.
    ///
    /// # Safety
    /// The core must be unused: nothing runs on its stack, and nobody else uses it.
    #[inline(always)]
    unsafe fn begin<F, M>(&self, f: F, flags: u8)
    where
        F: FnOnce() + 'static,
        M: Default,
    {
        // SAFETY: the core is unused. Below the place that `fill` returns, which is aligned, is more
        // than 4 KiB of the stack. The core stays where it is, and has what `run` wants.
        unsafe {
            let top = self.fill::<F, M>(f);
            self.link.prepare(top, run::<F, M>);
        }
        self.set(state::FRESH, flags);
    }

    /// Makes the coroutine, which has no owner, and enters it at once.
    ///
    /// # Safety
    /// The core must be unused: nothing runs on its stack, and nobody else uses it.
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
        // SAFETY: the switch comes next. Below `top`, which is aligned, is more than 4 KiB of the
        // stack. The core stays where it is, and has what `run` wants.
        let alive = unsafe {
            self.caller.set(Thread::this().set_running(self));
            arch::start_inline(&self.link, top, run::<F, ()>)
        };
        // At its end it is in the pool, but nothing else has run since.
        if !alive && self.has_panicked() {
            // SAFETY: it has ended just now, without an owner.
            unsafe { self.raise() };
        }
    }

    /// Does the bookkeeping for entering the coroutine.
    ///
    /// # Safety
    /// The coroutine must be suspended, and the switch by its link come next.
    #[inline(always)]
    unsafe fn entering(&self, how: u8) {
        trace::event(trace::Kind::Enter, self);
        self.state.set(state::RUNNING | how);
        // SAFETY: the caller switches to this coroutine next.
        self.caller.set(unsafe { Thread::this().set_running(self) });
    }

    /// Does the bookkeeping for leaving the coroutine for good. Returns the thread's state.
    ///
    /// # Safety
    /// The coroutine must run, and the switch by its link come next. The thread's state must not be
    /// used after that.
    #[inline(always)]
    unsafe fn finished<'a>(&self) -> &'a Thread {
        trace::event(trace::Kind::Terminate, self);
        self.state.set(state::FINISHED);
        // SAFETY: the caller switches next, to who has entered the coroutine, and does not use the
        // thread's state after that.
        unsafe {
            let thread = Thread::this();
            thread.set_running(self.caller.get());
            thread
        }
    }

    /// After a coroutine's end: gives back what it leaves, and goes on with its panic.
    ///
    /// # Safety
    /// The coroutine must have ended, and its stack have been left. If it has no owner nobody may use
    /// the core any more.
    #[cold]
    #[inline(never)]
    unsafe fn raise(&self) {
        let panic = self.panic.take();
        if self.is_detached() {
            // SAFETY: the caller says that the coroutine has ended and that nobody uses the core.
            unsafe { self.release() };
        }
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Gives back a coroutine.
    ///
    /// # Safety
    /// The coroutine must have ended, its stack have been left, and nobody use the core any more but
    /// for locks that it has taken.
    unsafe fn release(&self) {
        if self.state.get() & state::ODD == 0 {
            // SAFETY: the caller says that it has ended and that nobody uses it. It is not odd, so
            // its stack is one of the pool's.
            unsafe { self.give_back(Thread::this()) };
        } else if !self.holds_locks() {
            // SAFETY: the caller says that its stack has been left and that nobody uses it.
            unsafe { pool::unmap_own(self) };
        }
        // Who has been given a lock by the coroutine still points to it: then it stays.
    }

    /// Puts a coroutine whose stack is one of the pool's on the list of those that are free.
    ///
    /// # Safety
    /// The coroutine must have ended, and nobody use it any more; what still runs on its stack must
    /// end in a switch before anything else runs on this thread.
    #[inline(always)]
    unsafe fn give_back(&self, thread: &Thread) {
        // SAFETY: the caller says that the coroutine has ended, and that a switch comes before its stack
        // can be used again.
        unsafe { thread.push_free(self) };
        if thread.pooled.get() > pool::MAX_POOLED {
            pool::overflow(thread);
        }
    }

    /// For the owner, when it drops its handle.
    ///
    /// # Safety
    /// The owner must not use the core any more.
    #[inline]
    pub(crate) unsafe fn disown(&self) {
        if self.state.get() == state::FINISHED {
            // SAFETY: the coroutine has ended and its stack has been left, as somebody else runs.
            // Nobody but the owner has used it. It is not odd, so its stack is one of the pool's.
            unsafe { self.give_back(Thread::this()) };
        } else {
            // SAFETY: the caller says that the owner does not use the core any more.
            unsafe { self.abandon() };
        }
    }

    /// Ends a coroutine that has no owner any more, or lets it end.
    ///
    /// # Safety
    /// The owner must not use the core any more.
    #[cold]
    unsafe fn abandon(&self) {
        let state = self.state.get();
        if state & state::FINISHED != 0 {
            // SAFETY: the coroutine has ended and its stack has been left, as somebody else runs.
            // Nobody but the owner and its locks have used it.
            unsafe { self.release() };
        } else if state & state::RUNNING != 0 {
            // It drops its own handle, or one that it has entered does: it ends as it would have.
            self.flags.set(self.flags.get() | flags::DETACHED);
        } else if state & state::WAITING == 0 {
            // SAFETY: it does not run, does not wait, has not ended, and has no owner.
            unsafe { cancel(self) };
        // SAFETY: the queue that a coroutine waits in is borrowed by it, or its thread's.
        } else if let Some(queue) = unsafe { self.queue.get().as_ref() } {
            self.flags
                .set(self.flags.get() | flags::CANCELLED | flags::DETACHED);
            // SAFETY: it waits in that queue, and so for nothing that uses its stack. It is this
            // thread's: one that may move does not wait.
            unsafe {
                queue.remove(self);
                resume(self);
            }
        } else {
            // A worker uses the stack: it is unwound when the job is done.
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

/// Panics if the running coroutine may move between threads: then it cannot wait.
fn refuse_migration() {
    // SAFETY: it is used for this alone.
    let core = unsafe { this() };
    assert!(
        core.flags.get() & flags::MIGRATES == 0,
        "a coroutine that may move between threads waits for something that belongs to one"
    );
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
    // SAFETY: the coroutine that runs is alive, as this runs on its stack.
    if let Some(core) = unsafe { thread::running().as_ref() }
        && core.state.get() & state::IN_PANIC == 0
    {
        panic!("a coroutine cannot be suspended while it panics");
    }
}
