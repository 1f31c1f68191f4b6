//! The state of a thread: the running coroutine, the ready ones, the free stacks.

use std::cell::Cell;
use std::ptr;

use crate::arch::thread_slot;
use crate::core::{Core, List};
use crate::timer::Timers;

/// A thread's state. All zero when the thread starts.
#[repr(C)]
pub(crate) struct Thread {
    /// The running coroutine; null on the thread's own stack.
    running: Cell<*const Core>,
    /// Ended coroutines for reuse, linked by `Core::links`. The one used last is the first, as its
    /// pages are warm.
    pub(crate) free: Cell<*const Core>,
    pub(crate) pooled: Cell<usize>,
    /// Coroutines that the thread has got from the global pool, less those it has given back. Those
    /// that are not pooled are alive.
    pub(crate) obtained: Cell<usize>,
    /// The minimum of `pooled` since the last change of `obtained`, and the maximum of live
    /// coroutines before that.
    low: Cell<usize>,
    peak: Cell<usize>,
    /// Coroutines taken from the global pool since the last trim. The load is rising if there are
    /// any.
    pub(crate) taken: Cell<usize>,
    /// Whether the destructor that gives back the thread's coroutines is registered.
    pub(crate) registered: Cell<bool>,
    /// Coroutines that have been woken and not yet resumed.
    pub(crate) ready: List,
    /// The deadlines. Allocated at first use.
    timers: Cell<*const Timers>,
}

const _: () = assert!(size_of::<Thread>() == 88, "the slot has this size");

thread_slot!("coroutine_thread_0", "88");

/// The running coroutine; null on the thread's own stack.
#[inline(always)]
pub(crate) fn running() -> *const Core {
    // SAFETY: the reference is used for this expression only, without a switch.
    unsafe { Thread::this() }.running()
}

impl Thread {
    /// The state of the calling thread.
    ///
    /// # Safety
    /// The reference must not be used after a switch, as the caller may then run on another thread,
    /// nor after the thread's end.
    #[inline(always)]
    pub(crate) unsafe fn this<'a>() -> &'a Thread {
        // SAFETY: the slot belongs to the calling thread, is aligned and large enough, lives as
        // long as the thread, and is initially all zero, which is valid for every field.
        unsafe { &*slot().cast::<Thread>() }
    }

    /// The running coroutine; null on the thread's own stack.
    #[inline(always)]
    pub(crate) fn running(&self) -> *const Core {
        self.running.get()
    }

    /// Sets the running coroutine, null for the thread's own stack. Returns the previous one.
    ///
    /// # Safety
    /// The thread must next switch to that coroutine, or to its own stack.
    #[inline(always)]
    pub(crate) unsafe fn set_running(&self, core: *const Core) -> *const Core {
        self.running.replace(core)
    }

    /// Removes the first free coroutine. The caller has it alone until it is pushed back.
    #[inline(always)]
    pub(crate) fn pop_free<'a>(&self) -> Option<&'a Core> {
        // SAFETY: a core in the list has a stack of the pool, and those stay mapped.
        let first = unsafe { self.free.get().as_ref() }?;
        self.free.set(first.links.next.get());
        let pooled = self.pooled.get() - 1;
        self.pooled.set(pooled);
        if pooled < self.low.get() {
            self.low.set(pooled);
        }
        Some(first)
    }

    /// Adds a coroutine to the free ones.
    ///
    /// # Safety
    /// The coroutine must have ended and be no longer used, and its stack must be one of the
    /// pool's. Code that still runs on that stack must switch away before the thread does anything
    /// else.
    #[inline(always)]
    pub(crate) unsafe fn push_free(&self, core: &Core) {
        core.links.next.set(self.free.replace(ptr::from_ref(core)));
        self.pooled.set(self.pooled.get() + 1);
    }

    /// The deadlines of the thread's coroutines.
    pub(crate) fn timers(&self) -> &Timers {
        if self.timers.get().is_null() {
            self.timers.set(Box::into_raw(Box::default()));
        }
        // SAFETY: the pointer comes from the line above. Only `drop_timers` frees the table, when
        // it is no longer in use.
        unsafe { &*self.timers.get() }
    }

    /// Frees the deadlines at the thread's end, when nothing resumes coroutines any more.
    ///
    /// # Safety
    /// References that [`timers`](Thread::timers) has returned must no longer be used.
    pub(crate) unsafe fn drop_timers(&self) {
        let timers = self.timers.replace(ptr::null()).cast_mut();
        if !timers.is_null() {
            // SAFETY: the pointer comes from the `Box` in `timers`, and was replaced by null. The
            // caller promises that no reference is in use.
            drop(unsafe { Box::from_raw(timers) });
        }
    }

    /// Removes all free coroutines but the first `keep`, and returns them as a list.
    pub(crate) fn cut(&self, keep: usize) -> *const Core {
        let mut place: &Cell<*const Core> = &self.free;
        for _ in 0..keep {
            // SAFETY: a core in the list has a stack of the pool, and those stay mapped.
            match unsafe { place.get().as_ref() } {
                Some(core) => place = &core.links.next,
                None => return ptr::null(),
            }
        }
        self.change(keep as isize - self.pooled.get() as isize, keep);
        place.replace(ptr::null())
    }

    /// Accounts for `gained` coroutines from the global pool, or given to it if negative. `pooled`
    /// are in the list afterwards.
    pub(crate) fn change(&self, gained: isize, pooled: usize) {
        self.peak.set(self.peak());
        self.obtained
            .set(self.obtained.get().wrapping_add_signed(gained));
        self.pooled.set(pooled);
        self.low.set(pooled);
    }

    /// The number of live coroutines: created by this thread, less those that ended on it.
    pub(crate) fn live(&self) -> usize {
        self.obtained.get().wrapping_sub(self.pooled.get())
    }

    /// The maximum of [`live`](Thread::live).
    pub(crate) fn peak(&self) -> usize {
        let recent = self.obtained.get().wrapping_sub(self.low.get());
        // Negative for a thread on which coroutines of other threads end.
        if recent as isize > self.peak.get() as isize {
            recent
        } else {
            self.peak.get()
        }
    }
}
