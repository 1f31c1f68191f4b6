//! What is known of a thread: which coroutine runs, which are ready, which stacks are free.

use std::cell::Cell;
use std::ptr;

use crate::arch::thread_slot;
use crate::core::{Core, List};
use crate::timer::Timers;

/// A thread's state. All zero at the thread's beginning.
#[repr(C)]
pub(crate) struct Thread {
    /// The coroutine that runs; null on the thread's own stack.
    pub(crate) current: Cell<*const Core>,
    /// Coroutines that have ended and can be used again, linked by `Core::links`, the one used last
    /// first: its pages are warm.
    pub(crate) free: Cell<*const Core>,
    pub(crate) pooled: Cell<usize>,
    /// Coroutines that the thread has got from elsewhere, less those it has given away: those that
    /// are not pooled are alive.
    pub(crate) obtained: Cell<usize>,
    /// The least that `pooled` was since `obtained` has changed, and the most that ever were alive
    /// before that.
    low: Cell<usize>,
    peak: Cell<usize>,
    /// Coroutines taken from elsewhere since the pool was trimmed last: while there are any the
    /// load rises.
    pub(crate) taken: Cell<usize>,
    /// Whether what the thread has to give back at its end is known to the standard library.
    pub(crate) registered: Cell<bool>,
    /// Coroutines that have been woken.
    pub(crate) ready: List,
    /// Those that wait for the time. Made when first needed, and kept.
    timers: Cell<*const Timers>,
}

const SLOT_SIZE: usize = 88;
const _: () = assert!(
    size_of::<Thread>() == SLOT_SIZE,
    "the slot is made of this size"
);

thread_slot!("coroutine_thread_0", "88");

impl Thread {
    /// The state of the thread that this runs on; not to be kept over a switch.
    #[inline(always)]
    pub(crate) fn this<'a>() -> &'a Thread {
        // SAFETY: the slot is the calling thread's own, aligned, large enough, lives as long as
        // the thread, and is all zero at first: null pointers, numbers, false.
        unsafe { &*slot().cast::<Thread>() }
    }

    /// The coroutine that runs.
    #[inline(always)]
    pub(crate) fn core<'a>(&self) -> Option<&'a Core> {
        // SAFETY: the pointer is null or that of the coroutine on whose stack this very call is,
        // which outlives the call.
        unsafe { self.current.get().as_ref() }
    }

    /// Takes the first from the list of those that are free.
    #[inline(always)]
    pub(crate) fn pop_free(&self, first: &Core) {
        self.free.set(first.links.next.get());
        let pooled = self.pooled.get() - 1;
        self.pooled.set(pooled);
        if pooled < self.low.get() {
            self.low.set(pooled);
        }
    }

    #[inline(always)]
    pub(crate) fn push_free(&self, core: &Core) {
        core.links.next.set(self.free.replace(ptr::from_ref(core)));
        self.pooled.set(self.pooled.get() + 1);
    }

    /// The table of those that wait for the time.
    pub(crate) fn timers(&self) -> &Timers {
        if self.timers.get().is_null() {
            self.timers.set(Box::into_raw(Box::default()));
        }
        // SAFETY: what is there comes from the line above, and is freed at the thread's end.
        unsafe { &*self.timers.get() }
    }

    /// At the thread's end, when nothing enters those that wait any more.
    pub(crate) fn drop_timers(&self) {
        let timers = self.timers.replace(ptr::null()).cast_mut();
        if !timers.is_null() {
            // SAFETY: what is there comes from `timers`, and is not used again.
            drop(unsafe { Box::from_raw(timers) });
        }
    }

    /// Takes all but the first `keep` from the list of free coroutines.
    pub(crate) fn cut(&self, keep: usize) -> *const Core {
        let mut place: &Cell<*const Core> = &self.free;
        for _ in 0..keep {
            // SAFETY: what is in the list is a core that nobody else knows of.
            match unsafe { place.get().as_ref() } {
                Some(core) => place = &core.links.next,
                None => return ptr::null(),
            }
        }
        self.change(keep as isize - self.pooled.get() as isize, keep);
        place.replace(ptr::null())
    }

    /// Notes that `gained` coroutines come from elsewhere, or are given away if it is negative, and
    /// that `pooled` are in the list then.
    pub(crate) fn change(&self, gained: isize, pooled: usize) {
        self.peak.set(self.peak());
        self.obtained
            .set(self.obtained.get().wrapping_add_signed(gained));
        self.pooled.set(pooled);
        self.low.set(pooled);
    }

    /// How many coroutines are alive, made by this thread or ended by it.
    pub(crate) fn live(&self) -> usize {
        self.obtained.get().wrapping_sub(self.pooled.get())
    }

    /// The most that [`live`](Thread::live) ever was.
    pub(crate) fn peak(&self) -> usize {
        let recent = self.obtained.get().wrapping_sub(self.low.get());
        // A thread that ends coroutines of others has less than none.
        if recent as isize > self.peak.get() as isize {
            recent
        } else {
            self.peak.get()
        }
    }
}
