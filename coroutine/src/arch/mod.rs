//! The switch from one stack to another, one file per back-end.
//!
//! All back-ends have the same interface. A coroutine's [`Link`] holds the state of its suspended
//! side: the coroutine while it is suspended, the code that entered it while it runs.
//! - [`switch`] exchanges the two sides.
//! - [`switch_then`] calls a function on the other side first, after this side has been left.
//! - [`switch_for_good`] ends a coroutine.
//! - [`switch_inline`] is a switch that may be inlined.
//! - `thread_slot!` defines the thread-local variable for the thread's state. Its address is
//!   computed
//!   at each use.
//!
//! This module uses `stack` only where a sanitizer needs a stack's bounds (`watched`).

/// Defines a function whose body is this assembly and nothing else. `#[unsafe(naked)]` would do the
/// same, but only since Rust 1.88.
#[cfg(backend = "assembly")]
macro_rules! function {
    (
        $(#[$attribute:meta])*
        $symbol:literal $visibility:vis unsafe extern $abi:literal fn
        $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? { $($lines:tt)* }
    ) => {
        std::arch::global_asm!(
            concat!(".pushsection .text.", $symbol, ",\"ax\",@progbits"),
            ".p2align 4",
            concat!(".globl ", $symbol),
            concat!(".hidden ", $symbol),
            concat!(".type ", $symbol, ",@function"),
            concat!($symbol, ":"),
            $($lines)*
            concat!(".size ", $symbol, ", . - ", $symbol),
            ".popsection",
        );

        // SAFETY: the assembly above defines a function with this signature.
        unsafe extern $abi {
            $(#[$attribute])*
            #[link_name = $symbol]
            $visibility fn $name($($argument: $type),*) $(-> $result)?;
        }
    };
}

#[cfg(all(backend = "assembly", target_arch = "aarch64"))]
#[path = "aarch64.rs"]
#[cfg_attr(
    watched,
    allow(dead_code, reason = "`watched` needs only the simplest switches")
)]
mod backend;

#[cfg(all(backend = "assembly", target_arch = "riscv64"))]
#[path = "riscv64.rs"]
#[cfg_attr(
    watched,
    allow(dead_code, reason = "`watched` needs only the simplest switches")
)]
mod backend;

#[cfg(all(backend = "assembly", target_arch = "x86_64"))]
#[path = "x86_64.rs"]
#[cfg_attr(
    watched,
    allow(dead_code, reason = "`watched` needs only the simplest switches")
)]
mod backend;

#[cfg(backend = "ucontext")]
#[path = "ucontext.rs"]
#[cfg_attr(
    watched,
    allow(dead_code, reason = "`watched` needs only the simplest switches")
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

/// As `Link::prepare` and [`switch_inline`].
///
/// # Safety
/// As for `Link::prepare`.
#[cfg(not(all(backend = "assembly", target_arch = "x86_64", not(watched))))]
pub(crate) unsafe fn start_inline(link: &Link, top: *mut u8, entry: used::Entry) -> bool {
    // SAFETY: the caller promises that the memory below `top` and the link can be used so; then the
    // coroutine can be switched to.
    unsafe {
        link.prepare(top, entry);
        switch_inline(link, false)
    }
}
