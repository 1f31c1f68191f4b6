//! The vhost-user back-end of one virtio device with one request queue.
//!
//! A front-end (the virtual machine monitor) connects to a socket and hands over the guest's
//! memory and the ring; from then on the guest and this process exchange requests without it.
//! The crate does not depend on what the device does: it turns descriptor chains into [`Request`]s,
//! gives them to a [`Handler`], and pushes them when they are completed. It runs on one thread, in
//! its user's event loop ([`Poller`]).
//!
//! - `connection`: one front-end, from connect to disconnect.
//! - `device`: the control messages, what starts and stops the ring.
//! - `messages`: a message that `vhost` does not know.
//! - `endpoint`: the socket, when another process has left it.
//! - `state`: what another process needs to go on with the connection.
//! - `transfer`: the device's state on its way to another process.
//! - `interface`: what the user of the crate implements.
//! - `request`: a request, from pop to push.
//! - `ring`: pop, push, notify; `split`: the ring's layout in memory.
//! - `chain`: one walk over the descriptors of a request.
//! - `inflight`: which requests are in flight, in memory that outlives the process.
//! - `inflight_region`: its place if the front-end keeps it.
//! - `dirty_log`: which pages of the guest's memory were written.
//! - `buffers`: copying and I/O on guest memory.
//! - `memory`: the guest's memory as the front-end describes it.
//! - `signal`: the descriptors by which both sides wake each other.
//! - `prefetch`: fetches what another processor has written.
//! - `log_limiter`: keeps a guest from flooding the log.
//! - `error`: what can go wrong.
//!
//! A module imports only from those below it in this list.
//!
//! The guest is not trusted. If it breaks the ring's rules, the ring stops until the front-end stops
//! and starts it again; process, connection and log survive. A buffer outside of the guest's memory
//! fails only the [`Request`] that names it. The front-end is checked, too, but has the power over this
//! process that it has over its own guest: it can block the loop by sending half a message, and end
//! the process by truncating the files that it has given as memory or for the log.
//!
//! Offered if the handler has what they take: the log of dirty pages and the transfer of the device's
//! state for a migration ([`Migration`]), in-flight tracking ([`Room`]).
//! Not implemented, and so not offered: the back-end channel, more than one queue.

#[cfg(test)]
mod agreement;
mod buffers;
mod chain;
mod connection;
mod device;
mod dirty_log;
mod endpoint;
mod error;
mod inflight;
mod inflight_region;
mod interface;
mod log_limiter;
mod memory;
mod messages;
mod prefetch;
mod request;
mod ring;
mod signal;
mod split;
mod state;
mod transfer;

pub use buffers::{Readable, Writable};
pub use connection::{Connection, Status};
pub use error::{ChainError, Error, RingError};
pub use inflight::Resumed;
pub use inflight_region::Room;
pub use interface::{DeviceConfig, Handler, Migration, Poller, Source};
pub use request::Request;
pub use state::State;
pub use vm_memory::{FileOffset, MmapRegion};
