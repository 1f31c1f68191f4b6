//! What every frame begins with.

use crate::error::DecodeError;
use crate::wire::{Cursor, Field, record};

/// Length of a [`Header`] in bytes.
pub const HEADER_LEN: usize = <Header as Field>::MIN;

record! {
    /// The beginning of every frame: `size[4] type[1] tag[2]`.
    Header {
        /// Length of the frame in bytes, these seven and a payload included.
        size: u32,
        /// The message's type number, one of [`kind`](crate::kind).
        kind: u8,
        /// By which the client knows the reply.
        tag: u16,
    }
}

impl Header {
    /// Reads the first [`HEADER_LEN`] bytes, and judges none of them. Errors:
    /// [`DecodeError::Short`] if there are fewer.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<Header, DecodeError> {
        Field::decode(&mut Cursor(bytes))
    }
}
