//! What can go wrong, by how much of the device it costs: the connection, the ring, or one chain.

use std::io;

/// How monitors are told to share the guest's memory.
pub(crate) const SHARED: &str = "QEMU: -object memory-backend-memfd,id=mem,size=SIZE,share=on \
     -numa node,memdev=mem; Cloud Hypervisor: --memory size=SIZE,shared=on";

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The front-end violates the protocol, or the socket fails.
    #[error("vhost-user: {0}")]
    Protocol(#[from] vhost::vhost_user::Error),
    /// The event loop refuses.
    #[error("cannot watch a descriptor: {0}")]
    Watch(#[source] io::Error),
    /// The socket cannot be used.
    #[error("cannot use the socket: {0}")]
    Socket(#[source] io::Error),
    /// The memory of the state cannot be used, or its content is invalid.
    #[error("cannot use the saved state: {0}")]
    State(#[source] io::Error),
    /// A descriptor that the state names cannot be had.
    #[error("cannot use a descriptor of the saved state: {0}")]
    Claim(#[source] io::Error),
    /// The process before ended while it handled a message: the front-end may wait for an answer.
    #[error("the process before ended in the middle of a vhost-user message")]
    Interrupted,
    /// The configured maximum ring size is invalid.
    #[error("{0} is not a valid ring size: it must be a power of two, at most 32768")]
    QueueSize(u16),
}

/// How a driver breaks its ring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The driver made more requests available than the ring holds.
    #[error("{0} requests are available in a ring of {1}")]
    Runaway(u16, u16),
    /// A request was made available again before it was answered.
    #[error("the request at descriptor {0} is in flight already")]
    InFlight(u16),
    /// A chain begins outside of the ring.
    #[error("a chain begins at descriptor {0}, outside of the ring")]
    Head(u16),
    /// A chain is malformed.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A part of the ring is not in the guest's memory, in one region.
    #[error(
        "a part of the ring, at {0:#x}, is not in the memory that the front-end shares: start it \
         with shared memory ({SHARED})"
    )]
    Address(u64),
    /// A part of the ring is aligned in the guest, but not in this process.
    #[error("a part of the ring, at {0:#x}, is not aligned in its memory region")]
    Alignment(u64),
    /// The ring's size or the address of one of its parts is invalid.
    #[error("{0}")]
    Queue(#[source] virtio_queue::Error),
    /// The table of requests in flight that was left by an earlier process is invalid.
    #[error("the table of requests in flight is invalid: {0}")]
    Inflight(&'static str),
}

/// What is wrong with a descriptor chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The next descriptor does not exist.
    #[error("descriptor {0} is outside of its table")]
    Index(u16),
    /// The chain is longer than its table: it loops.
    #[error("a chain that does not end")]
    Loop,
    /// An indirect table is not in the guest's memory.
    #[error("an indirect table at {0:#x}, which is not in the guest's memory")]
    Address(u64),
    /// A readable descriptor follows a writable one.
    #[error("a readable descriptor behind a writable one")]
    Order,
    /// An indirect table contains or precedes another descriptor of its chain.
    #[error("a nested or continued indirect table")]
    Nested,
    /// An indirect table's length is invalid.
    #[error("an indirect table of {0} bytes")]
    Table(u32),
    /// More than 4 GiB in one direction.
    #[error("a chain of more than 4 GiB")]
    TooLong,
}
