//! Waiting for another coroutine of the same thread.
//!
//! Nothing here is for several threads. Everything is fair: who waits first is served first, and
//! what is released is handed to the one it is for, so that nobody can take it in between. A
//! coroutine that is woken is put on the thread's list of those that are ready, and runs when the
//! loop calls [`run_ready`](crate::run_ready). Waiting allocates nothing: queues are linked through the coroutines.

mod holder;
mod mutex;
mod queue;
mod rwlock;
mod semaphore;
mod sleep;

pub use mutex::{Mutex, MutexGuard};
pub use queue::WaitQueue;
pub use rwlock::{ReadGuard, RwLock, WriteGuard};
pub use semaphore::{Permit, Semaphore};
pub use sleep::{Sleep, sleep};
