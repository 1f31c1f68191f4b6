//! Stackful coroutines for an event loop, and a worker pool for what would block it.
//!
//! A coroutine is a function with a stack of its own that can stop in the middle
//! ([`yield_now`]) and be continued later ([`Coroutine::enter`]). Code in it reads like blocking
//! code: where the kernel would make it wait, it hands the call to a worker
//! ([`Workers::offload`]) and yields, and the thread goes on with other coroutines.
//!
//! ```
//! use coroutine::{Coroutine, yield_now};
//!
//! let mut count = 0;
//! let mut coroutine = Coroutine::create(|| {
//!     println!("one");
//!     yield_now();
//!     println!("two");
//! })?;
//! while coroutine.enter() {
//!     count += 1;
//! }
//! assert_eq!(count, 1);
//! # Ok::<(), coroutine::StackError>(())
//! ```
//!
//! A coroutine belongs to the thread that made it. [`spawn`] makes one without a handle, which
//! runs until it waits for a worker or a lock, and is continued by the loop:
//! [`Workers::run_completed`] and [`run_ready`].
//!
//! - `arch`: the switch between two stacks, one file for each architecture.
//! - `stack`: memory for stacks, with a guard page, and the pool of them.
//! - `coroutine`: creation, entering, yielding, the end.
//! - `lock`: waiting for another coroutine of the thread.
//! - `workers`: the pool of threads.

mod arch;
mod coroutine;
mod lock;
mod stack;
mod sync;
mod workers;

pub use coroutine::{Coroutine, Id, current, in_coroutine, spawn, yield_now};
pub use lock::{Mutex, MutexGuard, ReadGuard, RwLock, WaitQueue, WriteGuard, run_ready};
pub use stack::StackError;
pub use workers::Workers;
