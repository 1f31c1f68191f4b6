//! The pools of coroutines and their stacks.
//!
//! | where | what | taken by |
//! |---|---|---|
//! | a thread's list ([`Thread::free`]) | whole coroutines that have ended, the last on top | [`create`], at once |
//! | [`POOL`], batches | the same, from threads that had too many or have ended | [`take`] |
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

/// Bytes of a stack unless [`set_stack_size`] says otherwise.
///
/// Measured on x86_64: the deepest request of a 9P server took 18 KiB in a debug build and 7 KiB in
/// a release build, and a panic that printed its backtrace 23 KiB. Frames of a sanitizer's build
/// are several times as large.
pub const DEFAULT_STACK_SIZE: usize = if cfg!(watched) { 256 * 1024 } else { 64 * 1024 };
/// The least that a stack may have.
pub const MIN_STACK_SIZE: usize = 32 * 1024;

/// How many coroutines go between a thread and the pool of all at once.
const BATCH: usize = 128;
/// How many free coroutines a thread keeps.
pub(crate) const MAX_POOLED: usize = 2 * BATCH;

static POOL: Mutex<Pool> = Mutex::new(Pool {
    size: 0,
    batches: Vec::new(),
    blank: Vec::new(),
});
static STACKS: AtomicUsize = AtomicUsize::new(0);

struct Pool {
    /// Bytes of each stack; 0 until it is known.
    size: usize,
    /// Lists of [`BATCH`] coroutines.
    batches: Vec<*const Core>,
    /// The ends of stacks without a core.
    blank: Vec<*mut u8>,
}

// SAFETY: the coroutines and stacks that the pool points to are its own: nobody else uses them, on
// no thread.
unsafe impl Send for Pool {}

fn pool() -> MutexGuard<'static, Pool> {
    // Nothing that holds the lock panics.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets the size of the stacks of all coroutines that are not given one of their own: `size`
/// bytes, rounded up to whole pages.
///
/// # Errors
/// [`StackError::TooLate`] after the first coroutine of the process; [`StackError::Size`].
pub fn set_stack_size(size: usize) -> Result<(), StackError> {
    let size = round(size)?;
    let mut pool = pool();
    if pool.size != 0 && pool.size != size {
        return Err(StackError::TooLate);
    }
    pool.size = size;
    Ok(())
}

/// Makes sure that `count` coroutines can be made without asking the kernel for address space,
/// and that all is done that is done once: what a program wants before it gives up system calls.
///
/// # Errors
/// As when a coroutine is made.
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

/// Gives the pages back of coroutines that have ended and have not been used for a while: of half
/// of those that wait in the thread's pool, unless their number was too small since the last call.
/// To be called about once a second by a loop that has nothing to do. Returns how many stacks gave
/// their pages back.
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
        // SAFETY: the list is this function's alone, and each core in it was not yet discarded.
        while let Some(core) = unsafe { next.as_ref() } {
            next = core.links.next.get();
            let top = core.top();
            // SAFETY: the coroutine has ended and its stack has been left, as `overflow` keeps the
            // one that may not have been. The core is not looked at again.
            unsafe { stack::discard(top, pool.size) };
            pool.blank.push(top);
            count += 1;
        }
    }
    count
}

/// What [`counters`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Coroutines that this thread has made and that have not ended, less those of other threads
    /// that have ended here.
    pub live: isize,
    /// The most that `live` ever was.
    pub peak: isize,
    /// Coroutines that have ended and wait in this thread's pool to be used again.
    pub pooled: usize,
    /// Stacks of the process, used or not, but for those of a size of their own.
    pub stacks: usize,
}

/// How many coroutines there are, and were.
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

/// A coroutine that is in no thread's list.
#[cold]
#[inline(never)]
pub(crate) fn take<'a>() -> Result<&'a Core, StackError> {
    // SAFETY: this function does not switch.
    let thread = unsafe { Thread::this() };
    prepare_thread(thread)?;
    thread.taken.set(thread.taken.get() + 1);
    let mut pool = pool();
    if let Some(batch) = pool.batches.pop() {
        // SAFETY: a batch is a list of `BATCH` cores, whose stacks are mapped, as the pool's always
        // are.
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
    // SAFETY: the stack is one of a slab's, which is never unmapped, of at least the least size. It
    // was blank, and so unused, and is no longer in the pool.
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
    // SAFETY: the stack has just been mapped, of at least the least size. It is unmapped by
    // `unmap_own` alone, whose caller says that nobody uses the core.
    Ok(unsafe { Core::place(slab.top(0), slab.base()) })
}

/// Unmaps the stack of a coroutine if it is from [`map_own`].
///
/// # Safety
/// Nothing may run on the stack, and nobody use the core any more.
#[cold]
pub(crate) unsafe fn unmap_own(core: &Core) {
    if let Some(base) = core.own_stack() {
        // SAFETY: this function does not switch.
        let thread = unsafe { Thread::this() };
        thread.change(-1, thread.pooled.get());
        // SAFETY: `map_own` has mapped a slab of one stack from `base` up to the core's end. The
        // caller says that it is in no use.
        unsafe { stack::unmap(base.as_ptr(), core.top()) };
    }
}

/// Gives a batch of the thread's free coroutines to the pool of all. The one freed last stays:
/// the thread may still be on its stack.
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
        // The lowest is used first.
        self.blank.extend(
            (0..stack::STACKS_OF_SLAB)
                .rev()
                .map(|index| slab.top(index)),
        );
        Ok(())
    }
}

/// What a thread does before its first coroutine.
fn prepare_thread(thread: &Thread) -> Result<(), StackError> {
    if thread.registered.get() {
        return Ok(());
    }
    if !arch::usable() {
        return Err(StackError::ShadowStack);
    }
    #[cfg(own_stacks)]
    stack::watch_thread();
    // With the back-end `threads` this may not be the thread whose state it is.
    if cfg!(backend = "threads") {
        return Ok(());
    }
    // At the thread's end it may be too late: then its coroutines are lost.
    let _ = AT_THREAD_END.try_with(|_| thread.registered.set(true));
    Ok(())
}

thread_local! {
    static AT_THREAD_END: GiveBack = const { GiveBack };
}

/// Gives a thread's coroutines to the pool of all when the thread ends.
struct GiveBack;

impl Drop for GiveBack {
    fn drop(&mut self) {
        // SAFETY: this function does not switch, and the thread's slot outlives its destructors.
        let thread = unsafe { Thread::this() };
        thread.registered.set(false);
        while thread.pooled.get() >= BATCH {
            overflow(thread);
        }
        let mut next = thread.cut(0);
        let mut pool = pool();
        // SAFETY: the list is this function's alone, of cores whose stacks are mapped, as the
        // pool's always are.
        while let Some(core) = unsafe { next.as_ref() } {
            next = core.links.next.get();
            // Not enough for a batch: as if it were new.
            pool.blank.push(core.top());
        }
        drop(pool);
        // SAFETY: this runs at the thread's end, outside of every function that uses the timers.
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
