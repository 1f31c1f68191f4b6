//! Waiting for another coroutine of the same thread, or for a deadline.
//!
//! These types are for one thread. They are fair: waiters are served in FIFO order, and a released
//! lock or permit is handed directly to the next waiter, so that no other coroutine can take it in
//! between. A woken coroutine becomes ready, and runs when the loop calls
//! [`run_ready`](crate::run_ready). Waiting allocates nothing, as queues are intrusive.

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
