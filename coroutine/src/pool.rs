//! The pools of coroutines and their stacks.
//!
//! In the order in which they are tried:
//!
//! | where | what | taken by |
//! |---|---|---|
//! | a thread's list ([`Thread::free`]) | ended coroutines, the last on top | [`create`], inline |
//! | [`POOL`], batches | ended coroutines of threads that had too many or have ended | [`take`] |
//! | [`POOL`], blank | stacks without pages, new or trimmed | [`take`] |
//! | a new slab | 64 stacks in one mapping | [`take`] |
//!
//! [`create`]: crate::lifecycle::create

use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::arch;
use crate::core::Core;
use crate::stack::{self, Slab, StackError};
use crate::thread::Thread;

/// The stack size in bytes, unless [`set_stack_size`] sets another.
///
/// Measured on x86_64: the deepest request of a 9P server takes 18 KiB in a debug build and 7 KiB
/// in a release build, and a panic that prints its backtrace 23 KiB. The frames of a sanitizer
/// build are several times as large.
pub const DEFAULT_STACK_SIZE: usize = if cfg!(watched) { 256 * 1024 } else { 64 * 1024 };
/// The minimum stack size in bytes.
pub const MIN_STACK_SIZE: usize = 32 * 1024;

/// How many coroutines move between a thread and the global pool at once.
const BATCH: usize = 128;
/// The maximum number of free coroutines that a thread keeps.
pub(crate) const MAX_POOLED: usize = 2 * BATCH;

static POOL: Mutex<Pool> = Mutex::new(Pool {
    size: 0,
    batches: Vec::new(),
    blank: Vec::new(),
});
static STACKS: AtomicUsize = AtomicUsize::new(0);

struct Pool {
    /// Bytes of each stack; 0 until it is set or first used.
    size: usize,
    /// Lists of [`BATCH`] coroutines.
    batches: Vec<*const Core>,
    /// The upper ends of stacks without a core.
    blank: Vec<*mut u8>,
}

// SAFETY: the pool owns the coroutines and stacks that it points to. No thread refers to them.
unsafe impl Send for Pool {}

fn pool() -> MutexGuard<'static, Pool> {
    // No code panics while it holds the lock.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets the stack size of all coroutines that are created without a size: `size` bytes, rounded up
/// to whole pages.
///
/// Errors: [`StackError::TooLate`] after the first coroutine of the process, [`StackError::Size`] for a size
/// that is too small or too large.
pub fn set_stack_size(size: usize) -> Result<(), StackError> {
    let size = round(size)?;
    let mut pool = pool();
    if pool.size != 0 && pool.size != size {
        return Err(StackError::TooLate);
    }
    pool.size = size;
    Ok(())
}

/// Maps stacks for `count` coroutines, and does all one-time initialisation. A program calls it
/// before it gives up system calls.
///
/// Errors: as for creating a coroutine.
pub fn reserve(count: usize) -> Result<(), StackError> {
    // SAFETY: this function does not switch.
    let thread = unsafe { Thread::this() };
    prepare_thread(thread)?;
    let mut pool = pool();
    while pool.blank.len() + pool.batches.len() * BATCH + thread.pooled.get() < count {
        pool.grow()?;
    }
    Ok(())
}

/// Returns the pages of idle stacks to the kernel: of half of the thread's free coroutines, and of
/// all in the global pool. Does nothing if the thread has taken coroutines from the global pool
/// since the last call. A loop calls it about once a second while it is idle. Returns the number of
/// stacks.
pub fn trim() -> usize {
    // SAFETY: this function does not switch.
    let thread = unsafe { Thread::this() };
    if thread.taken.replace(0) > 0 {
        return 0;
    }
    let keep = thread.pooled.get() / 2;
    let idle = thread.cut(keep);
    let mut count = 0;
    let mut pool = pool();
    let mut lists = std::mem::take(&mut pool.batches);
    lists.push(idle);
    for list in lists {
        let mut next = list;
        // SAFETY: this function owns the list, and has not yet discarded the cores that are left in
        // it.
        while let Some(core) = unsafe { next.as_ref() } {
            next = core.links.next.get();
            let top = core.top();
            // SAFETY: the coroutine has ended, and its stack has been left: `overflow` keeps the
            // only one that may not have been. The core is not used again.
            unsafe { stack::discard(top, pool.size) };
            pool.blank.push(top);
            count += 1;
        }
    }
    count
}

/// The result of [`counters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Coroutines that this thread has created and that have not ended, less those of other threads
    /// that have ended here.
    pub live: isize,
    /// The maximum of `live`.
    pub peak: isize,
    /// Ended coroutines that this thread keeps for reuse.
    pub pooled: usize,
    /// Stacks of the process, used or free, without those that were mapped for one coroutine.
    pub stacks: usize,
}

/// Counts the coroutines of this thread, and the stacks of the process.
pub fn counters() -> Counters {
    // SAFETY: this function does not switch.
    let thread = unsafe { Thread::this() };
    Counters {
        live: thread.live() as isize,
        peak: thread.peak() as isize,
        pooled: thread.pooled.get(),
        stacks: STACKS.load(Ordering::Relaxed),
    }
}

/// An unused coroutine from the global pool.
#[cold]
#[inline(never)]
pub(crate) fn take<'a>() -> Result<&'a Core, StackError> {
    // SAFETY: this function does not switch.
    let thread = unsafe { Thread::this() };
    prepare_thread(thread)?;
    thread.taken.set(thread.taken.get() + 1);
    let mut pool = pool();
    if let Some(batch) = pool.batches.pop() {
        // SAFETY: a batch is a list of `BATCH` cores whose stacks are the pool's, and those stay
        // mapped.
        let first = unsafe { &*batch };
        thread.free.set(first.links.next.get());
        thread.change(BATCH as isize, BATCH - 1);
        return Ok(first);
    }
    if pool.blank.is_empty() {
        pool.grow()?;
    }
    let Some(top) = pool.blank.pop() else {
        return Err(StackError::Memory(libc::ENOMEM));
    };
    drop(pool);
    thread.change(1, 0);
    // SAFETY: the stack is part of a slab that is never unmapped, and has the minimum size or more.
    // It was blank, so unused, and is no longer in the pool.
    Ok(unsafe { Core::place(top, ptr::null_mut()) })
}

/// A coroutine on a stack of `size` bytes that does not come from the pool.
pub(crate) fn map_own<'a>(size: usize) -> Result<&'a Core, StackError> {
    let size = round(size)?;
    // SAFETY: this function does not switch.
    let thread = unsafe { Thread::this() };
    prepare_thread(thread)?;
    let slab = Slab::map(size, 1)?;
    thread.change(1, thread.pooled.get());
    // SAFETY: the stack has just been mapped, with the minimum size or more. Only `unmap_own`
    // unmaps it, whose caller promises that the core is unused.
    Ok(unsafe { Core::place(slab.top(0), slab.base()) })
}

/// Unmaps the stack of a coroutine if it is from [`map_own`].
///
/// # Safety
/// No code may run on the stack, and the core must not be used any more.
#[cold]
pub(crate) unsafe fn unmap_own(core: &Core) {
    if let Some(base) = core.own_stack() {
        // SAFETY: this function does not switch.
        let thread = unsafe { Thread::this() };
        thread.change(-1, thread.pooled.get());
        // SAFETY: `map_own` has mapped a slab of one stack from `base` to the core's end. The
        // caller promises that it is unused.
        unsafe { stack::unmap(base.as_ptr(), core.top()) };
    }
}

/// Moves a batch of the thread's free coroutines to the global pool. The one freed last stays, as
/// the thread may still run on its stack.
#[cold]
#[inline(never)]
pub(crate) fn overflow(thread: &Thread) {
    let batch = thread.cut(thread.pooled.get() - BATCH);
    pool().batches.push(batch);
}

impl Pool {
    fn grow(&mut self) -> Result<(), StackError> {
        if self.size == 0 {
            self.size = DEFAULT_STACK_SIZE;
        }
        let slab = Slab::map(self.size, stack::STACKS_OF_SLAB)?;
        STACKS.fetch_add(stack::STACKS_OF_SLAB, Ordering::Relaxed);
        // The lowest stack is used first.
        self.blank.extend(
            (0..stack::STACKS_OF_SLAB)
                .rev()
                .map(|index| slab.top(index)),
        );
        Ok(())
    }
}

/// Initialises a thread before its first coroutine.
fn prepare_thread(thread: &Thread) -> Result<(), StackError> {
    if thread.registered.get() {
        return Ok(());
    }
    if !arch::usable() {
        return Err(StackError::ShadowStack);
    }
    #[cfg(own_stacks)]
    stack::watch_thread();
    // With the back-end `threads` the state may belong to another thread.
    if cfg!(backend = "threads") {
        return Ok(());
    }
    // During the thread's end it may be too late. Then its coroutines are leaked.
    let _ = AT_THREAD_END.try_with(|_| thread.registered.set(true));
    Ok(())
}

thread_local! {
    static AT_THREAD_END: GiveBack = const { GiveBack };
}

/// Moves a thread's free coroutines to the global pool when the thread ends.
struct GiveBack;

impl Drop for GiveBack {
    fn drop(&mut self) {
        // SAFETY: this function does not switch, and the slot outlives the thread's destructors.
        let thread = unsafe { Thread::this() };
        thread.registered.set(false);
        while thread.pooled.get() >= BATCH {
            overflow(thread);
        }
        let mut next = thread.cut(0);
        let mut pool = pool();
        // SAFETY: this function owns the list, and the stacks of its cores are the pool's, which
        // stay mapped.
        while let Some(core) = unsafe { next.as_ref() } {
            next = core.links.next.get();
            // Too few for a batch: treated as new stacks.
            pool.blank.push(core.top());
        }
        drop(pool);
        // SAFETY: a thread-local destructor runs outside of all functions that use the timers.
        unsafe { thread.drop_timers() };
        #[cfg(own_stacks)]
        stack::unwatch_thread();
    }
}

fn round(size: usize) -> Result<usize, StackError> {
    match size.checked_next_multiple_of(stack::page_size()) {
        Some(rounded) if size >= MIN_STACK_SIZE && rounded < isize::MAX as usize / 256 => {
            Ok(rounded)
        }
        _ => Err(StackError::Size(size)),
    }
}
