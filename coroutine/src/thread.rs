//! What is known of a thread: which coroutine runs, which are ready, which stacks are free.

use std::cell::Cell;
use std::ptr;

use crate::arch::thread_slot;
use crate::core::Core;
use crate::list::List;
use crate::timer::Timers;

/// A thread's state. All zero at the thread's beginning.
#[repr(C)]
pub(crate) struct Thread {
    /// The coroutine that runs; null on the thread's own stack.
    pub(crate) current: Cell<*const Core>,
    /// Coroutines that have ended and can be used again, linked by `Core::next`, the one used last
    /// first: its pages are warm.
    pub(crate) free: Cell<*const Core>,
    pub(crate) pooled: Cell<usize>,
    /// Coroutines made less those given back, and the most there were. One that moves between
    /// threads counts where it is made and where it ends.
    pub(crate) live: Cell<isize>,
    pub(crate) peak: Cell<isize>,
    /// Coroutines taken from elsewhere since the pool was trimmed last: while there are any the
    /// load rises.
    pub(crate) taken: Cell<usize>,
    /// Whether what the thread has to give back at its end is known to the standard library.
    pub(crate) registered: Cell<bool>,
    /// Coroutines that have been woken.
    pub(crate) ready: List,
    /// Those that wait for the time. Made when first needed, and kept.
    pub(crate) timers: Cell<*const Timers>,
}

const SLOT_SIZE: usize = 80;
const _: () = assert!(
    size_of::<Thread>() == SLOT_SIZE,
    "the slot is made of this size"
);

thread_slot!("coroutine_thread_0", "80");

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

    #[inline(always)]
    pub(crate) fn push_free(&self, core: &Core) {
        core.next.set(self.free.replace(ptr::from_ref(core)));
        self.pooled.set(self.pooled.get() + 1);
    }
}
