//! What the benchmarks of the coroutine library share: the way to compare two programs, and the
//! programs.

pub mod compare;
pub mod hops;
pub mod memory;
pub mod ours;
pub mod peers;
