//! Waiting for another coroutine of the same thread.
//!
//! Nothing here is for several threads. Everything is fair: who waits first is served first, and
//! what is released is handed to the one it is for, so that nobody can take it in between. A
//! coroutine that is woken is put on the thread's list of those that are ready, and runs when the
//! loop calls [`run_ready`]. Waiting allocates nothing: queues are linked through the coroutines.

mod mutex;
mod queue;
mod rwlock;
mod semaphore;

use crate::core::{Core, move_to, resume};
use crate::thread::Thread;

pub use mutex::{Mutex, MutexGuard};
pub use queue::WaitQueue;
pub use rwlock::{ReadGuard, RwLock, WriteGuard};
pub use semaphore::{Permit, Semaphore};

/// Puts a coroutine that waits, and is in no queue any more, on the list of those that are ready.
pub(crate) fn make_ready(core: &Core) {
    move_to(&Thread::this().ready, core);
}

/// Continues every coroutine that has been woken, also those that are woken
/// meanwhile, and returns how many. For the loop.
///
/// # Panics
/// With what a coroutine panics with; those behind it stay ready.
pub fn run_ready() -> usize {
    let mut count = 0;
    while let Some(core) = Thread::this().ready.pop_front() {
        count += 1;
        resume(core);
    }
    count
}

/// Who holds a lock, to be told when it is released: a coroutine, or code outside of one.
#[derive(Clone, Copy)]
struct Holder(*const Core);

impl Holder {
    /// The caller.
    fn this() -> Holder {
        let current = Thread::this().current.get();
        // SAFETY: the pointer is null or that of the coroutine that this runs in.
        unsafe { current.as_ref() }.map_or(Holder(current), Holder::of)
    }

    fn of(core: &Core) -> Holder {
        core.take_lock();
        Holder(core)
    }

    fn release(self) {
        // SAFETY: a coroutine is not given back while it holds a lock, even at its end.
        if let Some(core) = unsafe { self.0.as_ref() } {
            core.drop_lock();
        }
    }
}
