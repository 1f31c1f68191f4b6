//! Why bytes are not a message, and why a message cannot be encoded.

use crate::constants::MAX_WALK;

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The frame is shorter than its fields.
    #[error("the frame ends in the middle of a field")]
    Short,
    /// The frame continues after its last field by this many bytes.
    #[error("{0} bytes follow the last field")]
    Trailing(usize),
    /// The size field differs from the length of the frame.
    #[error("the size field says {size}, the frame has {len} bytes")]
    Size {
        /// The size field.
        size: u32,
        /// The length.
        len: usize,
    },
    /// The frame is longer than the session allows.
    #[error("a frame of {size} bytes, {msize} is the most")]
    OverMsize {
        /// The size field.
        size: u32,
        /// The agreed size.
        msize: u32,
    },
    /// A string's length exceeds the frame.
    #[error("a string ends behind the frame")]
    StringPastEnd,
    /// A walk has this many elements, more than [`MAX_WALK`].
    #[error("{0} elements in a walk, {MAX_WALK} is the most")]
    TooManyNames(u16),
    /// The count of a message with a payload differs from the number of bytes after its fields.
    #[error("the count says {count}, the payload has {payload} bytes")]
    Count {
        /// The count.
        count: u32,
        /// The number of bytes.
        payload: usize,
    },
    /// 9P2000.L has no message of this type in this direction. The frame's
    /// [`Header`](crate::Header) has the tag, for a reply.
    #[error("no message has type {0}")]
    UnknownType(u8),
}

/// Why a message cannot be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A string of this many bytes is too long for its length field.
    #[error("a string of {0} bytes is too long, 65535 is the most")]
    StringTooLong(usize),
    /// The frame is too long for its size field.
    #[error("the frame is too long for its size field")]
    FrameTooLong,
}
