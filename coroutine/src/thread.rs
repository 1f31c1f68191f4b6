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
    running: Cell<*const Core>,
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

/// The coroutine that runs; null on the thread's own stack.
#[inline(always)]
pub(crate) fn running() -> *const Core {
    // SAFETY: it is used for this alone, without a switch.
    unsafe { Thread::this() }.running()
}

impl Thread {
    /// The state of the thread that this runs on.
    ///
    /// # Safety
    /// It must not be used after a switch, behind which another thread may run the caller, nor
    /// after the thread's end.
    #[inline(always)]
    pub(crate) unsafe fn this<'a>() -> &'a Thread {
        // SAFETY: the slot is the calling thread's own, aligned, large enough, lives as long as
        // the thread, and is all zero at first: null pointers, numbers, false.
        unsafe { &*slot().cast::<Thread>() }
    }

    /// The coroutine that runs; null on the thread's own stack.
    #[inline(always)]
    pub(crate) fn running(&self) -> *const Core {
        self.running.get()
    }

    /// Sets which coroutine runs, or by null that none does. Returns which did before.
    ///
    /// # Safety
    /// A switch to that coroutine, or to the thread's own stack, must come next on this thread.
    #[inline(always)]
    pub(crate) unsafe fn set_running(&self, core: *const Core) -> *const Core {
        self.running.replace(core)
    }

    /// Takes the first from the list of those that are free. It is the caller's alone until it
    /// comes back.
    #[inline(always)]
    pub(crate) fn pop_free<'a>(&self) -> Option<&'a Core> {
        // SAFETY: what is in the list is a core whose stack is mapped, as the pool's always are.
        let first = unsafe { self.free.get().as_ref() }?;
        self.free.set(first.links.next.get());
        let pooled = self.pooled.get() - 1;
        self.pooled.set(pooled);
        if pooled < self.low.get() {
            self.low.set(pooled);
        }
        Some(first)
    }

    /// Puts a coroutine on the list of those that are free.
    ///
    /// # Safety
    /// The coroutine's stack must be one of the pool's, the coroutine have ended, and nobody use it
    /// any more; what still runs on its stack must end in a switch before anything else runs on
    /// this thread.
    #[inline(always)]
    pub(crate) unsafe fn push_free(&self, core: &Core) {
        core.links.next.set(self.free.replace(ptr::from_ref(core)));
        self.pooled.set(self.pooled.get() + 1);
    }

    /// The table of those that wait for the time.
    pub(crate) fn timers(&self) -> &Timers {
        if self.timers.get().is_null() {
            self.timers.set(Box::into_raw(Box::default()));
        }
        // SAFETY: what is there comes from the line above, and is freed by `drop_timers`, when
        // nothing uses it any more.
        unsafe { &*self.timers.get() }
    }

    /// For the thread's end, when nothing enters those that wait any more.
    ///
    /// # Safety
    /// What [`timers`](Thread::timers) has returned must not be in use.
    pub(crate) unsafe fn drop_timers(&self) {
        let timers = self.timers.replace(ptr::null()).cast_mut();
        if !timers.is_null() {
            // SAFETY: what is there comes from the `Box` in `timers`. The caller says that nobody
            // uses it, and it cannot be found any more.
            drop(unsafe { Box::from_raw(timers) });
        }
    }

    /// Takes all but the first `keep` from the list of free coroutines.
    pub(crate) fn cut(&self, keep: usize) -> *const Core {
        let mut place: &Cell<*const Core> = &self.free;
        for _ in 0..keep {
            // SAFETY: what is in the list is a core whose stack is mapped, as the pool's always are.
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
