//! Stackful coroutines, their locks, and a worker pool for calls that would block.
//!
//! # What a coroutine is
//!
//! A function with its own stack. It can suspend itself at any call depth ([`yield_now`]), and
//! continues there when it is entered again ([`Coroutine::enter`]). A program can run many of them
//! on one thread, each written as plain sequential code:
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
//! Values can be passed in and out ([`Coroutine::with_values`]), which turns a function that yields
//! into an iterator. The example `generator` walks a tree this way.
//!
//! # In an event loop
//!
//! An event loop must not block, and callbacks split sequential code into pieces. A coroutine keeps
//! it in one piece: where a system call would block, the coroutine gives it to a worker thread
//! ([`Workers::offload`]), and the loop runs other coroutines meanwhile. The call may borrow from
//! the coroutine's stack and allocates nothing.
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
//! The example `offload` has a complete loop around epoll(7). One iteration of a loop calls
//! [`Workers::run_completed`], [`run_timers`] and [`run_ready`]. Then, if
//! [`Workers::prepare_sleep`] returns true, it blocks until one of its descriptors is ready, the
//! workers' among them, or until [`next_deadline`]. Then it calls [`Workers::awake`].
//!
//! Coroutines of one thread synchronise by [`Mutex`], [`RwLock`], [`Semaphore`], [`WaitQueue`] and
//! [`Sleep`]. A coroutine that waits there yields and does not spin. Waiters are served in FIFO order.
//!
//! # When not to use them
//!
//! - For parallel computation: the coroutines of a thread share one processor.
//! - In a program of `async` functions: those are stackless coroutines, which are smaller and
//!   checked by the compiler, but every function between the loop and a yield must be `async`.
//! - Under code that inspects its stack bounds, or keeps addresses of thread-local variables across
//!   calls.
//!
//! # How large a stack
//!
//! A coroutine has a stack of [`DEFAULT_STACK_SIZE`] bytes. Only touched pages use memory: 4 KiB
//! for a coroutine that does little. The stack does not grow. Below each stack is a guard; a stack
//! overflow hits it and ends the process with a message. [`set_stack_size`] sets the size for all
//! coroutines, [`Coroutine::create_with_stack`] for one. Large arrays on the stack, deep recursion,
//! unoptimised builds (about three times as much) and C code need much. Formatting and logging take
//! about 2 KiB, a panic with a backtrace about 20 KiB.
//!
//! # Threads
//!
//! A coroutine stays on its thread and need not be [`Send`]. A [`SendCoroutine`] may be entered by
//! a different thread after each yield. Creating one is `unsafe`, as the compiler cannot check what
//! is on its stack.
//!
//! # Panics
//!
//! A panic in a coroutine continues in the code that entered it. A coroutine that is dropped before
//! its end is unwound, which drops the values on its stack. With `panic = "abort"` a coroutine must
//! not be dropped before its end.
//!
//! # Features
//!
//! - `trace`: calls a function of the program at each step of a coroutine (`trace::subscribe`).
//! - `valgrind`, `asan`, `tsan`: registers the stacks with valgrind, or announces each switch to
//!   AddressSanitizer or ThreadSanitizer.
//! - `ucontext`: switches by swapcontext(3). The default where there is no assembly: the assembly
//!   covers x86_64, aarch64 and riscv64.
//! - `threads`: runs each coroutine on its own thread, for tools that do not support stack
//!   switching.
//!
//! # Inside
//!
//! The modules from the bottom to the top. A module uses only modules above it in this list:
//!
//! - `stack`: memory for stacks, and their guards.
//! - `arch`: the switch between two stacks, one file per back-end.
//! - `list`: intrusive queues.
//! - `core`: the record of a coroutine.
//! - `timer`: the table of deadlines.
//! - `thread`: the state of a thread.
//! - `pool`: free coroutines and stacks.
//! - `trace`: trace points.
//! - `lifecycle`: create, enter, suspend, resume and end a coroutine.
//! - `coroutine`: the handle to a coroutine, and passing values.
//! - `scheduler`: the coroutines that the loop resumes.
//! - `lock`: waiting for another coroutine or for a deadline.
//! - `workers`: the thread pool.

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
