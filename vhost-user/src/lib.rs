//! The vhost-user back-end of one virtio device with one request queue.
//!
//! A front-end (the virtual machine monitor) connects to a socket and hands over the guest's
//! memory and the ring; from then on requests go between the guest and this process without it.
//! The crate does not depend on what the device does: it turns descriptor chains into [`Request`]s,
//! gives them to a [`Handler`], and pushes them when they are completed. It runs on one thread, in
//! its user's event loop ([`Poller`]).
//!
//! - `connection`: one front-end, from connect to disconnect.
//! - `device`: the control messages, what starts and stops the ring.
//! - `interface`: what the user of the crate implements.
//! - `request`: a request, from pop to push.
//! - `ring`: pop, push, notify; `split`: the ring's layout in memory.
//! - `chain`: one walk over the descriptors of a request.
//! - `buffers`: copying and I/O on guest memory.
//! - `memory`: the guest's memory as the front-end describes it.
//! - `signal`: the descriptors by which both sides wake each other.
//! - `prefetch`: fetches what another processor has written.
//! - `log_limiter`: keeps a guest from flooding the log.
//! - `error`: what can go wrong.
//!
//! A module imports only from those below it in this list.
//!
//! The guest is not trusted: what breaks the ring's rules stops the ring until the front-end stops
//! and starts it again, and the process, the connection and the log are safe from it. A buffer outside
//! of the guest's memory costs the one [`Request`] that names it. The front-end
//! is checked, too, but can do what a virtual machine monitor can do to its own guest: it may keep
//! the loop waiting for the rest of a message that it has begun, and end the process by cutting the
//! files short that it has given as memory.
//!
//! Not offered, because not implemented: live migration's log, in-flight tracking, the
//! back-end's own channel, more than one queue.

#[cfg(test)]
mod agreement;
mod buffers;
mod chain;
mod connection;
mod device;
mod error;
mod interface;
mod log_limiter;
mod memory;
mod prefetch;
mod request;
mod ring;
mod signal;
mod split;

pub use buffers::{Readable, Writable};
pub use connection::{Connection, Status};
pub use error::{ChainError, Error, RingError};
pub use interface::{DeviceConfig, Handler, Poller, Source};
pub use request::Request;
