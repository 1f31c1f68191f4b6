//! The elements that messages are made of, and how each lies in a frame.
//!
//! All integers are little-endian. A string is a u16 length and that many bytes: Linux sends the
//! bytes of a file's name, which need not be UTF-8.

use std::ops::Deref;

/// Length of `size[4] type[1] tag[2]`, with which every frame begins.
pub const HEADER_LEN: usize = 7;
/// The most names in a Twalk, and qids in its reply (MAXWELEM).
pub const MAX_WALK: usize = 16;

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The frame is shorter than its fields.
    #[error("the frame ends in the middle of a field")]
    Short,
    /// The frame goes on behind its last field.
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
    /// A string's length leads past the frame's end.
    #[error("a string ends behind the frame")]
    StringPastEnd,
    /// More elements than a walk may have.
    #[error("{0} elements in a walk, {MAX_WALK} is the most")]
    TooManyNames(u16),
    /// A payload's count does not fill the frame.
    #[error("the count says {count}, the payload has {payload} bytes")]
    Count {
        /// What the message says.
        count: u32,
        /// What it has.
        payload: usize,
    },
    /// Not a message of 9P2000.L in this direction.
    #[error("no message has type {0}")]
    UnknownType(u8),
}

/// Why a message has no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A string is longer than its length field can say.
    #[error("a string of {0} bytes is too long, 65535 is the most")]
    StringTooLong(usize),
    /// The frame is longer than its size field can say.
    #[error("the frame is too long for its size field")]
    FrameTooLong,
}

/// The beginning of every frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the frame in bytes, these seven and a payload included.
    pub size: u32,
    /// The message's type number.
    pub kind: u8,
    /// By which the client knows the reply.
    pub tag: u16,
}

impl Header {
    /// Reads the first [`HEADER_LEN`] bytes. Errors: [`DecodeError::Short`].
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<Header, DecodeError> {
        let mut cursor = Cursor(bytes);
        Ok(Header {
            size: u32::decode(&mut cursor)?,
            kind: u8::decode(&mut cursor)?,
            tag: u16::decode(&mut cursor)?,
        })
    }
}

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

/// An element of a message.
pub(crate) trait Field<'a>: Sized {
    fn decode(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError>;
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError>;
}

macro_rules! integer {
    ($($type:ty),+) => {$(
        impl<'a> Field<'a> for $type {
            #[inline]
            fn decode(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
                cursor.array().map(<$type>::from_le_bytes)
            }

            #[inline]
            fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
                out.extend_from_slice(&self.to_le_bytes());
                Ok(())
            }
        }
    )+};
}

integer!(u8, u16, u32, u64);

impl<'a> Field<'a> for &'a [u8] {
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
}

/// Elements that lie one behind the other in a frame.
macro_rules! record {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type),+
        }

        impl<'a> Field<'a> for $name {
            #[inline]
            fn decode(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
                Ok($name { $($field: Field::decode(cursor)?),+ })
            }

            #[inline]
            fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
                $(self.$field.encode(out)?;)+
                Ok(())
            }
        }
    };
}

record! {
    /// What identifies a file: `type[1] version[4] path[8]`.
    Qid {
        /// What kind of file it is.
        kind: QidKind,
        /// Changes with the file; 0 turns Linux's cache off for it.
        version: u32,
        /// Two files are the same file if their paths are equal.
        path: u64,
    }
}

record! {
    /// A moment: `sec[8] nsec[8]` since 1970.
    Time {
        /// Seconds; two's complement before 1970.
        sec: u64,
        /// Nanoseconds.
        nsec: u64,
    }
}

/// The type byte of a [`Qid`]: the upper bits of a file's mode in 9P2000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct QidKind(pub u8);

impl QidKind {
    /// A directory.
    pub const DIR: QidKind = QidKind(0x80);
    /// A file that can only be appended to.
    pub const APPEND: QidKind = QidKind(0x40);
    /// A file that only one may have open.
    pub const EXCL: QidKind = QidKind(0x20);
    /// A mounted channel.
    pub const MOUNT: QidKind = QidKind(0x10);
    /// A file for authentication.
    pub const AUTH: QidKind = QidKind(0x08);
    /// A file that is not backed up.
    pub const TMP: QidKind = QidKind(0x04);
    /// A symbolic link.
    pub const SYMLINK: QidKind = QidKind(0x02);
    /// A hard link.
    pub const LINK: QidKind = QidKind(0x01);
    /// Any other file.
    pub const FILE: QidKind = QidKind(0);
}

impl<'a> Field<'a> for QidKind {
    #[inline]
    fn decode(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        u8::decode(cursor).map(QidKind)
    }

    #[inline]
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.0.encode(out)
    }
}

/// At most [`MAX_WALK`] elements of a walk, on the wire behind a u16 that counts them.
#[derive(Clone, Copy)]
pub struct List<T> {
    items: [T; MAX_WALK],
    len: usize,
}

/// The names of a Twalk.
pub type Names<'a> = List<&'a [u8]>;
/// The qids of an Rwalk.
pub type Qids = List<Qid>;

impl<T: Copy + Default> List<T> {
    /// An empty list.
    pub fn new() -> List<T> {
        List {
            items: [T::default(); MAX_WALK],
            len: 0,
        }
    }

    /// Adds an element; false if the list is full.
    pub fn push(&mut self, item: T) -> bool {
        match self.items.get_mut(self.len) {
            Some(slot) => {
                *slot = item;
                self.len += 1;
                true
            }
            None => false,
        }
    }

    /// The elements; None if there are more than [`MAX_WALK`].
    pub fn from_slice(items: &[T]) -> Option<List<T>> {
        let mut list = List::new();
        items.iter().all(|item| list.push(*item)).then_some(list)
    }
}

impl<T: Copy + Default> Default for List<T> {
    fn default() -> List<T> {
        List::new()
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items[..self.len]
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for List<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<T: PartialEq> PartialEq for List<T> {
    fn eq(&self, other: &List<T>) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for List<T> {}

impl<'a, T: Field<'a> + Copy + Default> Field<'a> for List<T> {
    #[inline]
    fn decode(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        let count = u16::decode(cursor)?;
        if usize::from(count) > MAX_WALK {
            return Err(DecodeError::TooManyNames(count));
        }
        let mut list = List::new();
        for _ in 0..count {
            list.push(T::decode(cursor)?);
        }
        Ok(list)
    }

    #[inline]
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        (self.len as u16).encode(out)?;
        self.iter().try_for_each(|item| item.encode(out))
    }
}

/// One entry of an Rreaddir's payload: `qid[13] offset[8] type[1] name[s]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The file's qid; Linux uses only its path.
    pub qid: Qid,
    /// Where the entry behind this one begins: what the next Treaddir names.
    pub offset: u64,
    /// `DT_*` of readdir(3).
    pub kind: u8,
    /// The name.
    pub name: &'a [u8],
}

impl<'a> DirEntry<'a> {
    /// Bytes before the name.
    const FIXED: usize = 13 + 8 + 1 + 2;

    /// How many bytes [`DirEntry::encode`] appends.
    #[inline]
    pub fn encoded_len(&self) -> usize {
        Self::FIXED + self.name.len()
    }

    /// Appends the entry. Errors: [`EncodeError::StringTooLong`], and `out` is unchanged.
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let start = out.len();
        Field::encode(self, out).inspect_err(|_| out.truncate(start))
    }

    /// The entries of a payload; after an error nothing more.
    pub fn decode_all(
        payload: &'a [u8],
    ) -> impl Iterator<Item = Result<DirEntry<'a>, DecodeError>> {
        let mut cursor = Cursor(payload);
        std::iter::from_fn(move || {
            if cursor.0.is_empty() {
                return None;
            }
            let entry = DirEntry::decode(&mut cursor);
            if entry.is_err() {
                cursor.0 = &[];
            }
            Some(entry)
        })
    }
}

impl<'a> Field<'a> for DirEntry<'a> {
    #[inline]
    fn decode(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        Ok(DirEntry {
            qid: Field::decode(cursor)?,
            offset: Field::decode(cursor)?,
            kind: Field::decode(cursor)?,
            name: Field::decode(cursor)?,
        })
    }

    #[inline]
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.qid.encode(out)?;
        self.offset.encode(out)?;
        self.kind.encode(out)?;
        self.name.encode(out)
    }
}
