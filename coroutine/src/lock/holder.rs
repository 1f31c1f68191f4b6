//! Who holds a lock.

use std::mem;
use std::ptr;

use crate::core::Core;
use crate::thread;

/// Who holds a lock: a coroutine, or code outside of one. A coroutine's stack is kept until this is
/// dropped, even if the coroutine ends before.
pub(super) struct Holder(*const Core);

impl Holder {
    /// The caller.
    pub(super) fn this() -> Holder {
        let core = thread::running();
        // SAFETY: the coroutine that runs is alive, as this runs on its stack.
        if let Some(core) = unsafe { core.as_ref() } {
            core.take_lock();
        }
        Holder(core)
    }

    /// Notes that a coroutine that waits holds the lock from now on.
    pub(super) fn grant(core: &Core) {
        core.take_lock();
    }

    /// The coroutine that was granted the lock.
    ///
    /// # Safety
    /// There must have been a [`grant`](Holder::grant) to it for this one call.
    pub(super) unsafe fn granted(core: &Core) -> Holder {
        Holder(core)
    }

    /// Moves it out of a guard that is about to be forgotten.
    pub(super) fn take(&mut self) -> Holder {
        Holder(mem::replace(&mut self.0, ptr::null()))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // SAFETY: the coroutine was told of this lock, by `this` or `grant`, and its core is not
        // given back before it is told that this is over. It is not used after that.
        unsafe {
            if let Some(core) = self.0.as_ref() {
                core.drop_lock();
            }
        }
    }
}
