//! The holder of a lock.

use std::mem;
use std::ptr;

use crate::core::Core;
use crate::thread;

/// The holder of a lock: a coroutine, or code outside of one. Keeps the coroutine's stack until it
/// is dropped, even if the coroutine ends before.
pub(super) struct Holder(*const Core);

impl Holder {
    /// The caller.
    pub(super) fn this() -> Holder {
        let core = thread::running();
        // SAFETY: the running coroutine is alive, as this code runs on its stack.
        if let Some(core) = unsafe { core.as_ref() } {
            core.take_lock();
        }
        Holder(core)
    }

    /// Makes a waiting coroutine the holder, which calls [`granted`](Holder::granted) when it runs.
    pub(super) fn grant(core: &Core) {
        core.take_lock();
    }

    /// The holder for a coroutine that was granted the lock.
    ///
    /// # Safety
    /// There must have been one [`grant`](Holder::grant) to the coroutine for each call.
    pub(super) unsafe fn granted(core: &Core) -> Holder {
        Holder(core)
    }

    /// Moves the holder out of a guard that will be forgotten.
    pub(super) fn take(&mut self) -> Holder {
        Holder(mem::replace(&mut self.0, ptr::null()))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // SAFETY: `this` or `grant` has counted this lock, so the core is not given back before
        // `drop_lock`, and it is not used after that.
        unsafe {
            if let Some(core) = self.0.as_ref() {
                core.drop_lock();
            }
        }
    }
}
