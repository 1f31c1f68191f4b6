//! Memory for stacks with guards, and the report of an overflow.

mod error;
#[cfg(own_stacks)]
mod overflow;
#[cfg(own_stacks)]
mod slab;
#[cfg(not(own_stacks))]
#[path = "heap.rs"]
mod slab;

pub use error::StackError;
#[cfg(own_stacks)]
pub(crate) use overflow::{unwatch_thread, watch_thread};
#[cfg(watched)]
pub(crate) use slab::bounds;
pub(crate) use slab::{STACKS as STACKS_OF_SLAB, Slab, discard, page_size, unmap};
