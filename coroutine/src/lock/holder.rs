//! Who holds a lock.

use crate::core::Core;
use crate::thread::Thread;

/// Who holds a lock, to be told when it is released: a coroutine, or code outside of one.
#[derive(Clone, Copy)]
pub(super) struct Holder(pub(super) *const Core);

impl Holder {
    /// The caller.
    pub(super) fn this() -> Holder {
        let current = Thread::this().current.get();
        // SAFETY: the pointer is null or that of the coroutine that this runs in.
        unsafe { current.as_ref() }.map_or(Holder(current), Holder::of)
    }

    pub(super) fn of(core: &Core) -> Holder {
        core.take_lock();
        Holder(core)
    }

    pub(super) fn release(self) {
        // SAFETY: a coroutine is not given back while it holds a lock, even at its end.
        if let Some(core) = unsafe { self.0.as_ref() } {
            core.drop_lock();
        }
    }
}
