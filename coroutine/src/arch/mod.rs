//! The switch from one stack to another, one file for each back-end.
//!
//! All have the same interface. A [`Link`] belongs to a coroutine and knows how to reach the side
//! of it that is not running: the coroutine while it is suspended, who entered it while it runs.
//! [`switch`] exchanges the two; [`switch_then`] calls a function on the other side before that
//! goes on, when this side has been left; [`switch_for_good`] is a coroutine's end;
//! [`switch_inline`] is a switch that the compiler may copy into its caller.
//!
//! `thread_slot!` makes the place of the thread's state, found anew at each use.

#[cfg(all(backend = "assembly", target_arch = "aarch64"))]
#[path = "aarch64.rs"]
#[cfg_attr(
    watched,
    allow(dead_code, reason = "`watched` needs but the simplest switches")
)]
mod backend;

#[cfg(all(backend = "assembly", target_arch = "riscv64"))]
#[path = "riscv64.rs"]
#[cfg_attr(
    watched,
    allow(dead_code, reason = "`watched` needs but the simplest switches")
)]
mod backend;

#[cfg(all(backend = "assembly", target_arch = "x86_64"))]
#[path = "x86_64.rs"]
#[cfg_attr(
    watched,
    allow(dead_code, reason = "`watched` needs but the simplest switches")
)]
mod backend;

#[cfg(backend = "ucontext")]
#[path = "ucontext.rs"]
#[cfg_attr(
    watched,
    allow(dead_code, reason = "`watched` needs but the simplest switches")
)]
mod backend;

#[cfg(backend = "threads")]
#[path = "threads.rs"]
mod backend;

#[cfg(backend = "fibers")]
#[path = "fibers.rs"]
mod backend;

#[cfg(any(backend = "ucontext", backend = "fibers"))]
mod slot;
#[cfg(any(backend = "ucontext", backend = "fibers"))]
pub(crate) use slot::{slot_of_this, thread_slot};

#[cfg(backend = "threads")]
pub(crate) use backend::slot_of_this;
#[cfg(any(backend = "assembly", backend = "threads"))]
pub(crate) use backend::thread_slot;

#[cfg(watched)]
mod watched;
#[cfg(not(watched))]
use backend as used;
#[cfg(watched)]
use watched as used;

pub(crate) use used::{
    Link, switch, switch_for_good, switch_for_good_then, switch_inline, switch_then, usable,
};

#[cfg(all(backend = "assembly", target_arch = "x86_64", not(watched)))]
pub(crate) use backend::start_inline;

/// As `Link::prepare` and then [`switch_inline`].
///
/// # Safety
/// As for `Link::prepare`.
#[cfg(not(all(backend = "assembly", target_arch = "x86_64", not(watched))))]
pub(crate) unsafe fn start_inline(link: &Link, top: *mut u8, entry: used::Entry) -> bool {
    // SAFETY: the caller says that the memory below `top` and the link can be used so; then the
    // coroutine can be switched to.
    unsafe {
        link.prepare(top, entry);
        switch_inline(link, false)
    }
}
