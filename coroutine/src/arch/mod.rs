//! The switch from one stack to another.
//!
//! Each architecture offers the same two functions. The registers that a called function may
//! change are not saved: the compiler has taken care of them around the call.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::{initialise, switch};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{initialise, switch};

#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
compile_error!("no stack switch for this architecture: add one to coroutine/src/arch");
