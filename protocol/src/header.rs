//! The beginning of every frame.

use crate::error::DecodeError;
use crate::wire::{Cursor, Field, HEADER_LEN, record};

const _: () = assert!(HEADER_LEN == <Header as Field>::MIN);

record! {
    /// The beginning of every frame: `size[4] type[1] tag[2]`.
    Header {
        /// Length of the frame in bytes, including these seven and a payload.
        size: u32,
        /// The message's type number, one of [`kind`](crate::kind).
        kind: u8,
        /// Matches the reply to its request.
        tag: u16,
    }
}

impl Header {
    /// Decodes the first [`HEADER_LEN`] bytes without validating them. Errors:
    /// [`DecodeError::Short`] if there are fewer.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<Header, DecodeError> {
        Field::decode(&mut Cursor(bytes))
    }

    /// Checks the frame's length, including its payload, against the size that the session has
    /// agreed on with Tversion. Errors: [`DecodeError::OverMsize`].
    #[inline]
    pub fn check_msize(&self, msize: u32) -> Result<(), DecodeError> {
        if self.size > msize {
            return Err(DecodeError::OverMsize {
                size: self.size,
                msize,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tmessage, Twrite};

    #[test]
    fn a_count_over_msize_is_an_error() {
        // What Linux leaves for the header of a write is 24 bytes; it has 23.
        for (count, fits) in [
            (4096 - 23, true),
            (4096 - 22, false),
            (u32::MAX - 23, false),
        ] {
            let message = Tmessage::Write(Twrite {
                fid: 1,
                offset: 0,
                count,
            });
            let mut head = Vec::new();
            message.encode(1, &mut head).unwrap();
            let header = Header::decode(&head).unwrap();
            let error = DecodeError::OverMsize {
                size: count + 23,
                msize: 4096,
            };
            assert_eq!(
                header.check_msize(4096),
                if fits { Ok(()) } else { Err(error) }
            );
        }
    }
}
