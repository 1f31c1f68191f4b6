//! Stackful coroutines, their locks, and a worker pool for calls that would block.
//!
//! # What a coroutine is
//!
//! A function with a stack of its own. It can stop in the middle, at any depth of its calls
//! ([`yield_now`]), and go on there when it is entered again ([`Coroutine::enter`]). So a program
//! can do many things at a time on one thread, each written as if it were alone:
//!
//! ```
//! use coroutine::{Coroutine, yield_now};
//!
//! let mut greeting = Coroutine::create(|| {
//!     println!("one");
//!     yield_now();
//!     println!("three");
//! })?;
//! assert!(greeting.enter());
//! println!("two");
//! assert!(!greeting.enter());
//! # Ok::<(), coroutine::StackError>(())
//! ```
//!
//! Values can go in and out ([`Coroutine::with_values`]), which makes an iterator of a function
//! that yields. The example `generator` walks a tree so.
//!
//! # In an event loop
//!
//! An event loop must not block, and callbacks tear sequential code into pieces. In a coroutine it
//! stays whole: where the kernel would make it wait, it hands the call to a worker
//! ([`Workers::offload`]) and the loop goes on with other coroutines. The call may borrow from the
//! coroutine's stack, and costs no allocation.
//!
//! ```
//! use coroutine::{Workers, run_ready, spawn};
//! use std::rc::Rc;
//!
//! let workers = Rc::new(Workers::new(4)?);
//! for path in ["/etc/passwd", "/nowhere"] {
//!     let workers = workers.clone();
//!     spawn(move || match workers.offload(|| std::fs::read_to_string(path)) {
//!         Ok(text) => println!("{path}: {} lines", text.lines().count()),
//!         Err(error) => println!("{path}: {error}"),
//!     })?;
//! }
//! // What a loop does when it has nothing else to do.
//! while workers.wait_completed() + run_ready() > 0 {}
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The example `offload` has a whole loop around epoll(7). One turn of a loop is:
//! [`Workers::run_completed`], [`run_timers`], [`run_ready`]; then, if [`Workers::prepare_sleep`]
//! allows it, it sleeps until its descriptors are ready, the workers' among them, or until
//! [`next_deadline`]; then [`Workers::awake`].
//!
//! Coroutines of a thread meet at [`Mutex`], [`RwLock`], [`Semaphore`], [`WaitQueue`] and
//! [`Sleep`]. Who waits there yields; nothing spins; who waits first is served first.
//!
//! # When not to use them
//!
//! - For computations that are to run in parallel: coroutines of a thread share its processor.
//! - Where a program consists of `async` functions already: those are coroutines without stacks,
//!   smaller, and known to the compiler, but each function on the way to a yield has to be `async`.
//! - Below code that measures its stack, or keeps addresses of thread-local variables over calls.
//!
//! # How large a stack
//!
//! A coroutine has [`DEFAULT_STACK_SIZE`] bytes, of which only the pages that were touched take
//! memory: 4 KiB for one that does little. It does not grow. Using it up ends the process with a
//! message, as below each stack lies a guard that nothing can write to. [`set_stack_size`] sets
//! another size for all, [`Coroutine::create_with_stack`] for one. What uses much: large arrays on
//! the stack, deep recursion, unoptimised builds (about three times as much), and C code. Formatting
//! and logging take about 2 KiB, a panic with a backtrace about 20 KiB.
//!
//! # Threads
//!
//! A coroutine stays on its thread, and needs not be [`Send`]. [`SendCoroutine`] may be entered by
//! another thread at each yield, and making one is `unsafe`: the compiler cannot see what is on its
//! stack.
//!
//! # Panics
//!
//! A panic in a coroutine goes on at who has entered it. A coroutine that is dropped before its end
//! is unwound, so that what lives on its stack is dropped. With `panic = "abort"` a coroutine must
//! not be dropped before its end.
//!
//! # Features
//!
//! - `trace`: a function of the program's choice is told of each step (`trace::subscribe`).
//! - `valgrind`, `asan`, `tsan`: valgrind is told of the stacks, or AddressSanitizer or
//!   ThreadSanitizer of the switches.
//! - `ucontext`: swapcontext(3) instead of own assembly (x86_64, aarch64), for other machines.
//! - `threads`: each coroutine is a thread, for tools that do not know of stacks.
//!
//! # Inside
//!
//! From the bottom to the top; no module uses one below it in this list:
//!
//! - `stack`: memory for stacks, and guards.
//! - `arch`: the switch between two stacks, one file for each back-end.
//! - `list`: queues.
//! - `core`: the record of a coroutine.
//! - `timer`: the table of those that wait for the time.
//! - `thread`: what is known of a thread.
//! - `pool`: free coroutines and stacks.
//! - `trace`: trace points.
//! - `lifecycle`: making, entering, leaving, the end.
//! - `coroutine`: the handle that a program has, and values.
//! - `scheduler`: which coroutines the loop continues.
//! - `lock`: waiting for another coroutine, and for the time.
//! - `workers`: the pool of threads.

mod arch;
mod core;
mod coroutine;
mod lifecycle;
mod list;
mod lock;
mod pool;
mod sanitizer;
mod scheduler;
mod stack;
#[cfg(target_os = "linux")]
mod sync;
mod thread;
mod timer;
#[cfg(feature = "trace")]
pub mod trace;
#[cfg(not(feature = "trace"))]
mod trace;
#[cfg(target_os = "linux")]
mod workers;

pub use crate::core::Id;
pub use coroutine::{Coroutine, SendCoroutine, Step, Yielder, spawn};
pub use lifecycle::{SpawnError, current, entered, in_coroutine, yield_inline, yield_now};
pub use lock::{
    Mutex, MutexGuard, Permit, ReadGuard, RwLock, Semaphore, Sleep, WaitQueue, WriteGuard, sleep,
};
pub use pool::{
    Counters, DEFAULT_STACK_SIZE, MIN_STACK_SIZE, counters, reserve, set_stack_size, trim,
};
pub use scheduler::{next_deadline, run_ready, run_timers};
pub use stack::StackError;
#[cfg(target_os = "linux")]
pub use workers::{Spin, Workers};
