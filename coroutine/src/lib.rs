//! Stackful coroutines for an event loop, and a worker pool for what would block it.

mod arch;
mod core;
mod coroutine;
mod list;
mod lock;
mod sanitizer;
mod stack;
mod sync;
mod thread;
mod timer;
#[cfg(feature = "trace")]
pub mod trace;
#[cfg(not(feature = "trace"))]
mod trace;
#[cfg(target_os = "linux")]
mod workers;

pub use crate::core::{Id, current, entered, in_coroutine, yield_inline, yield_now};
pub use coroutine::{Coroutine, SendCoroutine, Step, Yielder, spawn};
pub use lock::{
    Mutex, MutexGuard, Permit, ReadGuard, RwLock, Semaphore, WaitQueue, WriteGuard, run_ready,
};
pub use stack::{
    Counters, DEFAULT_STACK_SIZE, MIN_STACK_SIZE, StackError, counters, reserve, set_stack_size,
    trim,
};
pub use timer::{Sleep, next_deadline, run_timers, sleep};
#[cfg(target_os = "linux")]
pub use workers::Workers;
