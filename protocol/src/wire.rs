//! The encoding of a message's fields, one after the other.
//!
//! All integers are little-endian. A string is a u16 length and that many bytes: Linux sends the
//! bytes of a file's name, which need not be UTF-8 and have no NUL at the end.

use std::fmt;

use crate::error::{DecodeError, EncodeError};

/// What is left of a frame to decode.
pub(crate) struct Cursor<'a>(pub(crate) &'a [u8]);

impl<'a> Cursor<'a> {
    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(*head)
    }
}

/// Bytes of a [`Header`](crate::Header).
pub const HEADER_LEN: usize = 7;

/// Enough for every message without strings and lists, of which Rgetattr is the longest.
pub(crate) const FIXED_ROOM: usize = 160;

/// A field of a message.
pub(crate) trait Field<'a>: Sized {
    /// The fewest bytes it has on the wire; all of them, if it is fixed.
    const MIN: usize;
    /// Whether it contains no string and no list.
    const FIXED: bool;

    /// Takes it from the cursor.
    fn decode(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError>;

    /// Appends it. On an error, `out` may contain a part of it.
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError>;

    /// Stores a fixed field at `at` and returns the position after it. All positions are known at
    /// compile time, so nothing is checked and no buffer grows.
    fn store(&self, bytes: &mut [u8; FIXED_ROOM], at: usize) -> usize;

    /// How it appears in a log.
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// Whether a message can be [stored](Field::store).
#[inline(always)]
pub(crate) const fn is_fixed<'a, T: Field<'a>>(_: &T) -> bool {
    const { assert!(!T::FIXED || HEADER_LEN + T::MIN <= FIXED_ROOM) };
    T::FIXED
}

/// A field for `{:?}`: a string as text with escapes, unlike a slice of bytes.
pub(crate) struct DebugField<'s, T>(pub(crate) &'s T);

impl<'a, T: Field<'a>> fmt::Debug for DebugField<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.show(f)
    }
}

macro_rules! integer {
    ($($type:ty),+) => {$(
        impl<'a> Field<'a> for $type {
            const MIN: usize = size_of::<$type>();
            const FIXED: bool = true;

            #[inline(always)]
            fn store(&self, bytes: &mut [u8; FIXED_ROOM], at: usize) -> usize {
                let end = at + size_of::<$type>();
                bytes[at..end].copy_from_slice(&self.to_le_bytes());
                end
            }

            #[inline]
            fn decode(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
                cursor.array().map(<$type>::from_le_bytes)
            }

            #[inline]
            fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
                out.extend_from_slice(&self.to_le_bytes());
                Ok(())
            }

            fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    )+};
}

integer!(u8, u16, u32, u64);

impl<'a> Field<'a> for &'a [u8] {
    const MIN: usize = <u16 as Field>::MIN;
    const FIXED: bool = false;

    fn store(&self, _: &mut [u8; FIXED_ROOM], _: usize) -> usize {
        unreachable!("a string is not fixed")
    }

    #[inline]
    fn decode(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        let len = u16::decode(cursor)?;
        let (text, rest) = cursor
            .0
            .split_at_checked(len.into())
            .ok_or(DecodeError::StringPastEnd)?;
        cursor.0 = rest;
        Ok(text)
    }

    #[inline]
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let len = u16::try_from(self.len()).map_err(|_| EncodeError::StringTooLong(self.len()))?;
        len.encode(out)?;
        out.extend_from_slice(self);
        Ok(())
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.escape_ascii())
    }
}

/// A struct whose fields are in a frame in the order in which they are declared.
macro_rules! record {
    (
        $(#[$attribute:meta])*
        $name:ident $(<$lifetime:lifetime>)? {
            $($(#[$field_attribute:meta])* $field:ident: $type:ty),* $(,)?
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name $(<$lifetime>)? {
            $($(#[$field_attribute])* pub $field: $type),*
        }

        #[allow(unused_variables, reason = "some messages have no field")]
        impl<'a> $crate::wire::Field<'a> for $name $(<$lifetime>)? {
            const MIN: usize = 0 $(+ <$type as $crate::wire::Field<'a>>::MIN)*;
            const FIXED: bool = true $(&& <$type as $crate::wire::Field<'a>>::FIXED)*;

            #[inline(always)]
            fn store(&self, bytes: &mut [u8; $crate::wire::FIXED_ROOM], at: usize) -> usize {
                $(let at = $crate::wire::Field::store(&self.$field, bytes, at);)*
                at
            }

            #[inline]
            fn decode(
                cursor: &mut $crate::wire::Cursor<'a>,
            ) -> Result<Self, $crate::error::DecodeError> {
                Ok($name { $($field: $crate::wire::Field::decode(cursor)?),* })
            }

            #[inline]
            fn encode(&self, out: &mut Vec<u8>) -> Result<(), $crate::error::EncodeError> {
                $($crate::wire::Field::encode(&self.$field, out)?;)*
                Ok(())
            }

            fn show(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name))
                    $(.field(
                        stringify!($field).trim_start_matches("r#"),
                        &$crate::wire::DebugField(&self.$field),
                    ))*
                    .finish()
            }
        }

        impl $(<$lifetime>)? std::fmt::Debug for $name $(<$lifetime>)? {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::wire::Field::show(self, f)
            }
        }
    };
}

pub(crate) use record;
