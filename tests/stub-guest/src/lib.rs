//! A vhost-user front-end with a 9P client on it, for tests, benches and people.
//!
//! ```text
//! fuse::Client  FUSE messages, for the peers of the benches fuse
//! Client      9P messages: tags, fids, replies           client, messages, files
//!   └ FrontEnd    negotiation, notifications, stop           front_end, control
//!       ├ Ring         one split ring, driver's side         ring
//!       └ GuestMemory  shared regions and their pages        memory
//! Daemon      starts the back-end for a test, ends it    daemon
//! skipped     what cannot be tested here                   skip
//! ```
//! Everything waits with a timeout and reports an [`Error`]; nothing hangs if the back-end does.

pub mod client;
pub mod control;
pub mod daemon;
mod error;
pub mod files;
pub mod front_end;
pub mod fuse;
pub mod memory;
pub mod messages;
pub mod ring;
mod skip;

pub use client::{Client, Completion, Reply, Shape};
pub use daemon::Daemon;
pub use error::{Error, Result};
pub use files::Attach;
pub use front_end::{CallFd, FrontEnd, Options};
pub use protocol;
pub use skip::skipped;
