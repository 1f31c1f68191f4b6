//! Why bytes are not a message, and why a message has no bytes.

use crate::constants::MAX_WALK;

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The frame is shorter than its fields.
    #[error("the frame ends in the middle of a field")]
    Short,
    /// The frame goes on behind its last field by this many bytes.
    #[error("{0} bytes follow the last field")]
    Trailing(usize),
    /// The size field does not say how long the frame is.
    #[error("the size field says {size}, the frame has {len} bytes")]
    Size {
        /// What the frame says.
        size: u32,
        /// What it is.
        len: usize,
    },
    /// The frame is longer than the session allows.
    #[error("a frame of {size} bytes, {msize} is the most")]
    OverMsize {
        /// What the frame says.
        size: u32,
        /// What was agreed on.
        msize: u32,
    },
    /// A string's length leads past the frame's end.
    #[error("a string ends behind the frame")]
    StringPastEnd,
    /// A walk has this many elements, more than [`MAX_WALK`].
    #[error("{0} elements in a walk, {MAX_WALK} is the most")]
    TooManyNames(u16),
    /// The count of a message with a payload is not how many bytes follow its fields.
    #[error("the count says {count}, the payload has {payload} bytes")]
    Count {
        /// What the message says.
        count: u32,
        /// What it has.
        payload: usize,
    },
    /// 9P2000.L has no message of this type in this direction. The tag is in the frame's
    /// [`Header`](crate::Header), for those who want to answer.
    #[error("no message has type {0}")]
    UnknownType(u8),
}

/// Why a message has no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A string of this many bytes is longer than its length field can say.
    #[error("a string of {0} bytes is too long, 65535 is the most")]
    StringTooLong(usize),
    /// The frame is longer than its size field can say.
    #[error("the frame is too long for its size field")]
    FrameTooLong,
}
