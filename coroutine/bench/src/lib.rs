//! The programs of the coroutine benchmarks, and how to compare two of them.

pub mod compare;
pub mod hops;
pub mod memory;
pub mod ours;
pub mod peers;
