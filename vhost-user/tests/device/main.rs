//! A front-end, a driver and a back-end on one thread: what the crate promises, message by message
//! and descriptor by descriptor.
//!
//! - `event_loop`, `handler`, `front_end`, `guest_memory`, `machine`, `random`, `log_lines`, `saved`: the
//!   other side of everything, and what turns it. The driver is in the crate `ring-driver`.
//! - `control`, `device_state`, `dirty_log`, `front_ends`, `inflight`,
//!   `lifecycle`, `notification`, `memory`, `buffers`, `chains`, `broken_ring`,
//!   `garbage`, `race`, `resume`: the tests.

mod event_loop;
mod front_end;
mod guest_memory;
mod handler;
mod log_lines;
mod machine;
mod random;
mod saved;

mod broken_ring;
mod buffers;
mod chains;
mod control;
mod device_state;
mod dirty_log;
mod front_ends;
mod garbage;
mod inflight;
mod lifecycle;
mod memory;
mod notification;
mod race;
mod resume;
