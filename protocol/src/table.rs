//! Generates types that can be encoded and decoded from the table of messages.

/// One direction of the protocol. A line is `number NUMBER_NAME Variant Name { field: type, ... }
/// payload count;`, where the payload is for a message whose fields are followed by `count` bytes.
/// Each line makes the struct `Name`; together they make the enum, its `decode`, `decode_head` and
/// `encode`, and the module of numbers.
macro_rules! messages {
    (
        $(#[$enum_doc:meta])*
        $enum:ident $kinds:ident: $(
            $(#[$doc:meta])*
            $number:literal $kind:ident $variant:ident
            $name:ident $(<$lifetime:lifetime>)? { $($field:ident: $type:ty),* $(,)? }
            $(payload $count:ident)?;
        )+
    ) => {
        pub(crate) mod $kinds {
            $(
                #[doc = concat!("[`", stringify!($name), "`](crate::", stringify!($name), ")")]
                pub const $kind: u8 = $number;
            )+
        }

        $(#[$enum_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(
            clippy::large_enum_variant,
            reason = "a message lives where it is handled, and is not stored"
        )]
        pub enum $enum<'a> {
            $(
                #[doc = concat!("Type ", $number, ".")]
                $variant($name $(<$lifetime>)?),
            )+
        }

        $(
            $crate::wire::record! {
                #[doc = concat!("Type ", $number, ".")]
                $(#[$doc])*
                #[allow(missing_docs, reason = "the fields are the protocol's")]
                $name $(<$lifetime>)? { $($field: $type),* }
            }

            $(
                impl $name {
                    /// Where the payload begins in a frame: after the header and the fields.
                    pub const PAYLOAD: usize =
                        $crate::wire::HEADER_LEN + <$name as $crate::wire::Field>::MIN;

                    #[inline]
                    fn payload(&self) -> u32 {
                        self.$count
                    }
                }
            )?
        )+

        impl<'a> $enum<'a> {
            /// Type number and name of every message, in the order of the numbers.
            pub const ALL: &'static [(u8, &'static str)] =
                &[$(($number, stringify!($name))),+];

            /// Decodes a whole frame into its tag and its message, which borrows its strings from
            /// the frame. Errors: [`DecodeError`](crate::DecodeError) for a frame that is not
            /// exactly one message of this direction.
            #[inline]
            pub fn decode(frame: &'a [u8]) -> Result<(u16, Self), $crate::error::DecodeError> {
                Self::decode_head(frame, frame.len())
            }

            /// Decodes a frame of `len` bytes that starts with `head`, as [`decode`](Self::decode)
            /// would. `head` must contain all of the frame but its payload: it may end where that
            /// begins, or anywhere after.
            pub fn decode_head(
                head: &'a [u8],
                len: usize,
            ) -> Result<(u16, Self), $crate::error::DecodeError> {
                use $crate::error::DecodeError;

                let mut cursor = $crate::wire::Cursor(head);
                let header: $crate::header::Header = $crate::wire::Field::decode(&mut cursor)?;
                if header.size as usize != len || head.len() > len {
                    return Err(DecodeError::Size { size: header.size, len });
                }
                Ok((header.tag, Self::decode_fields(&header, cursor.0)?))
            }

            /// Decodes the rest of a frame after `header`, as [`decode_head`](Self::decode_head)
            /// would. `fields` may end where the payload begins, or anywhere after.
            #[inline]
            pub fn decode_fields(
                header: &$crate::header::Header,
                fields: &'a [u8],
            ) -> Result<Self, $crate::error::DecodeError> {
                use $crate::error::DecodeError;

                let len = header.size as usize;
                let Some(left) = len
                    .checked_sub($crate::wire::HEADER_LEN)
                    .filter(|left| *left >= fields.len())
                else {
                    let len = $crate::wire::HEADER_LEN + fields.len();
                    return Err(DecodeError::Size { size: header.size, len });
                };
                let mut cursor = $crate::wire::Cursor(fields);
                match header.kind {
                    $($number => {
                        let message = $crate::wire::Field::decode(&mut cursor)?;
                        // What follows the fields: nothing, or the payload.
                        let behind = left - (fields.len() - cursor.0.len());
                        messages!(@check $name message behind $($count)?);
                        Ok($enum::$variant(message))
                    })+
                    kind => Err(DecodeError::UnknownType(kind)),
                }
            }

            /// Appends the message's frame to `out`, without its payload, which the size field
            /// includes and which the caller appends. Returns the size field. Errors:
            /// [`EncodeError`](crate::EncodeError), and `out` is unchanged.
            pub fn encode(
                &self,
                tag: u16,
                out: &mut Vec<u8>,
            ) -> Result<u32, $crate::error::EncodeError> {
                let start = out.len();
                self.encode_frame(start, tag, out).inspect_err(|_| out.truncate(start))
            }

            #[inline]
            fn encode_frame(
                &self,
                start: usize,
                tag: u16,
                out: &mut Vec<u8>,
            ) -> Result<u32, $crate::error::EncodeError> {
                // The size is known only after the fields are written.
                let mut header = $crate::header::Header { size: 0, kind: self.kind(), tag };
                match self {
                    $($enum::$variant(message) => {
                        if $crate::wire::is_fixed(message) {
                            let mut bytes = [0; $crate::wire::FIXED_ROOM];
                            $crate::wire::Field::store(&header, &mut bytes, 0);
                            let end = $crate::wire::Field::store(
                                message,
                                &mut bytes,
                                $crate::wire::HEADER_LEN,
                            );
                            out.extend_from_slice(&bytes[..end]);
                        } else {
                            $crate::wire::Field::encode(&header, out)?;
                            $crate::wire::Field::encode(message, out)?;
                        }
                    })+
                }
                let size = (out.len() - start) as u64 + u64::from(self.payload());
                header.size =
                    u32::try_from(size).map_err(|_| $crate::error::EncodeError::FrameTooLong)?;
                out[start..][..4].copy_from_slice(&header.size.to_le_bytes());
                Ok(header.size)
            }

            /// The message's type number.
            #[inline]
            pub fn kind(&self) -> u8 {
                match self {
                    $($enum::$variant(_) => $number,)+
                }
            }

            /// The fid that the message begins with, if it does: the file that a request is about.
            #[allow(unused_variables, reason = "some messages have no field")]
            pub fn fid(&self) -> Option<u32> {
                match self {
                    $($enum::$variant(message) => messages!(@fid message $($field)*),)+
                }
            }

            /// How many bytes of payload follow the fields.
            #[inline]
            #[allow(unused_variables, reason = "few messages have a payload")]
            fn payload(&self) -> u32 {
                match self {
                    $($enum::$variant(message) => messages!(@payload message $($count)?),)+
                }
            }
        }
    };

    (@check $name:ident $message:ident $behind:ident) => {
        if $behind != 0 {
            return Err(DecodeError::Trailing($behind));
        }
    };
    (@check $name:ident $message:ident $behind:ident $count:ident) => {
        let count = $name::payload(&$message);
        if count as usize != $behind {
            return Err(DecodeError::Count { count, payload: $behind });
        }
    };
    (@fid $message:ident fid $($rest:ident)*) => { Some($message.fid) };
    (@fid $message:ident dfid $($rest:ident)*) => { Some($message.dfid) };
    (@fid $message:ident dirfid $($rest:ident)*) => { Some($message.dirfid) };
    (@fid $message:ident olddirfid $($rest:ident)*) => { Some($message.olddirfid) };
    (@fid $message:ident $($rest:ident)*) => { None };
    (@payload $message:ident) => { 0 };
    (@payload $message:ident $count:ident) => { $message.payload() };
}

pub(crate) use messages;
