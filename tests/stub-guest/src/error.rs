//! What can go wrong between the stub guest and a back-end.

use std::io;

use protocol::{DecodeError, EncodeError};
use thiserror::Error;

/// Result with this crate's [`Error`](enum@Error).
pub type Result<T> = std::result::Result<T, Error>;

/// Everything a front-end or its 9P client may report.
#[derive(Debug, Error)]
pub enum Error {
    /// The server answered Rlerror with this Linux errno.
    #[error("the server answered {}", nix::errno::Errno::from_raw(*.0 as i32))]
    Errno(u32),
    /// The request was cancelled: its chain came back with a used length of 0.
    #[error("the request was flushed: no reply")]
    Flushed,
    /// A system call of ours failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The back-end closed the vhost-user socket.
    #[error("the back-end closed the connection")]
    Disconnected,
    /// Nothing came in time.
    #[error("timeout: no {0}")]
    Timeout(&'static str),
    /// The back-end answered a vhost-user request with a failure.
    #[error("the back-end refused vhost-user request {request} (code {code})")]
    Refused {
        /// Number of the vhost-user request.
        request: u32,
        /// The acknowledgement, not 0.
        code: u64,
    },
    /// The back-end broke the vhost-user protocol.
    #[error("vhost-user request {request}: {problem}")]
    Control {
        /// Number of the vhost-user request.
        request: u32,
        /// What is wrong with the reply.
        problem: &'static str,
    },
    /// The back-end lacks something that the options ask for.
    #[error("the back-end does not offer {0}")]
    NotOffered(&'static str),
    /// No free descriptor is left in the ring.
    #[error("the ring is full")]
    RingFull,
    /// No free run of guest pages of that size is left.
    #[error("no {0} free bytes in a row in guest memory")]
    OutOfMemory(usize),
    /// An address outside of guest memory, or one that is not aligned for its access.
    #[error("guest address {0:#x} is outside of guest memory or not aligned")]
    BadAddress(u64),
    /// The back-end wrote a used element that nobody waits for.
    #[error("used ring: descriptor {head} with length {len} was not outstanding")]
    BrokenUsed {
        /// The element's descriptor index.
        head: u32,
        /// The element's length.
        len: u32,
    },
    /// The used length is neither 0 nor the reply's size field.
    #[error("used length {used}, but the reply says that its size is {size}")]
    UsedLength {
        /// What the used ring says.
        used: u32,
        /// What the 9P frame says.
        size: u32,
    },
    /// More was used than the request had writable bytes.
    #[error("used length {used} in a chain with {writable} writable bytes")]
    UsedPastEnd {
        /// What the used ring says.
        used: u32,
        /// Writable bytes in the chain.
        writable: usize,
    },
    /// A reply with another tag than its request.
    #[error("the reply's tag is {found}, the request's {expected}")]
    WrongTag {
        /// Tag of the request.
        expected: u16,
        /// Tag of the reply.
        found: u16,
    },
    /// A reply of another type than the request asks for.
    #[error("a request of type {request} was answered with type {reply}")]
    WrongReply {
        /// Type number of the T-message.
        request: u8,
        /// Type number of what came back.
        reply: u8,
    },
    /// A count or length in the reply that the request does not allow.
    #[error("the reply counts {count}, the request allowed {limit}")]
    WrongCount {
        /// What the reply says.
        count: usize,
        /// What was asked for.
        limit: usize,
    },
    /// The reply is not a 9P message.
    #[error("malformed reply: {0}")]
    Decode(#[from] DecodeError),
    /// The request cannot be expressed as a 9P message.
    #[error("request not encodable: {0}")]
    Encode(#[from] EncodeError),
    /// The handle does not name an outstanding request.
    #[error("no request {0} is outstanding")]
    NotOutstanding(u16),
    /// Only part of a path exists.
    #[error("no such file: only {0} components of the path exist")]
    PartialWalk(usize),
    /// The server negotiated something unusable.
    #[error("version negotiation: the server offers {version:?} with an msize of {msize}")]
    Version {
        /// The dialect in Rversion.
        version: String,
        /// The msize in Rversion.
        msize: u32,
    },
}

impl Error {
    /// The errno of an Rlerror, if that is what this is.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Errno(code) => i32::try_from(*code).ok(),
            _ => None,
        }
    }

    /// Makes a system call's failure an [`Error::Io`].
    pub(crate) fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
        move |source| Error::Io {
            what,
            source: source.into(),
        }
    }
}
