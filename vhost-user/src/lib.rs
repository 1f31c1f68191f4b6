//! The vhost-user back-end of one virtio device with one request queue.
//!
//! A front-end (the virtual machine monitor) connects to a socket and hands over the guest's
//! memory and the ring; from then on requests go between the guest and this process without it.
//! The crate knows nothing of what the device does: it turns descriptor chains into [`Request`]s,
//! gives them to a [`Handler`], and pushes them when they are completed. It runs on one thread, in
//! somebody else's event loop ([`Poller`]).
//!
//! - `connection`: one front-end, from connect to disconnect.
//! - `device`: the control messages, what starts and stops the ring.
//! - `memory`: the guest's memory as the front-end describes it.
//! - `ring`: pop, push, notify; `split`: how the ring lies in memory.
//! - `chain`: one walk over the descriptors of a request, and all that can be wrong with them.
//! - `buffers`: copying and I/O on guest memory.
//! - `request`: a request, from pop to push.
//! - `prefetch`: brings near what another processor has written.
//! - `signal`: the descriptors by which both sides wake each other.
//! - `tally`: keeps what a guest can bring about without end out of the log.
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
mod memory;
mod prefetch;
mod request;
mod ring;
mod signal;
mod split;
mod tally;

use std::io;
use std::os::fd::BorrowedFd;

pub use buffers::{Readable, Writable};
pub use chain::ChainError;
pub use connection::{Connection, Status};
pub use request::Request;
pub use ring::RingError;

/// What the device is.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// The device's own virtio feature bits. VERSION_1, INDIRECT_DESC, EVENT_IDX and the protocol's
    /// own bit are added.
    pub features: u64,
    /// The configuration space. Behind its end the driver reads zeroes.
    pub config_space: Vec<u8>,
    /// The largest ring that is accepted; a power of two, at most 32768.
    pub max_queue_size: u16,
}

/// What the device does.
pub trait Handler {
    /// Takes a request over. It has to be completed once, now or later; one that is dropped is
    /// completed with length 0.
    fn handle(&self, request: Request);

    /// Whether requests may be handed over now. As long as they may not, they are left in the ring, and
    /// it is the loop's business to come back when they may.
    fn takes(&self) -> bool {
        true
    }

    /// Returns when every request taken over has been completed: what follows is the loss of the
    /// memory or the ring that they use. Called before the ring is stopped, disabled or reset, before
    /// memory is replaced or taken away, and when the connection ends.
    fn drain(&self);

    /// The driver has gone, or starts anew: nothing of what it built up counts any more.
    fn reset(&self);
}

/// What a descriptor that is watched is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The front-end's messages.
    Control,
    /// The driver's notifications.
    Kick,
}

/// The event loop. Each of its turns calls [`Connection::ready`] for what is readable, then
/// [`Connection::take_requests`] and at its end [`Connection::notify`]; before it blocks it asks
/// [`Connection::prepare_sleep`].
pub trait Poller {
    /// Starts to watch whether `fd` is readable. Errors: those of the loop.
    fn watch(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()>;
    /// Ends it. The descriptor is still open, and was watched.
    fn unwatch(&self, fd: BorrowedFd<'_>);
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The front-end does not keep to the protocol, or the socket fails.
    #[error("vhost-user: {0}")]
    Protocol(#[from] vhost::vhost_user::Error),
    /// The event loop refuses.
    #[error("cannot watch a descriptor: {0}")]
    Watch(#[source] io::Error),
    /// The socket cannot be used.
    #[error("cannot use the socket: {0}")]
    Socket(#[source] io::Error),
    /// The largest ring is to be of a size that no ring can have.
    #[error("{0} is no size of a ring: it must be a power of two, at most 32768")]
    QueueSize(u16),
}
