//! The identity of a file.

use std::fmt;

use crate::error::{DecodeError, EncodeError};
use crate::wire::{Cursor, FIXED_ROOM, Field, record};

record! {
    /// The server's name for a file: `type[1] version[4] path[8]`, 13 bytes.
    #[derive(Hash)]
    Qid {
        /// The kind of file.
        kind: QidKind,
        /// Changes with the file's content; 0 disables Linux's cache for the file.
        version: u32,
        /// Two files are the same file if their paths are equal. Linux derives its inode number
        /// from it.
        path: u64,
    }
}

/// The type byte of a [`Qid`]: the highest byte of a file's mode in 9P2000, one bit per property.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct QidKind(pub u8);

impl QidKind {
    /// A directory.
    pub const DIR: QidKind = QidKind(0x80);
    /// A file that can only be appended to.
    pub const APPEND: QidKind = QidKind(0x40);
    /// A file that only one client may have open.
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
    const MIN: usize = <u8 as Field>::MIN;
    const FIXED: bool = true;

    #[inline(always)]
    fn store(&self, bytes: &mut [u8; FIXED_ROOM], at: usize) -> usize {
        self.0.store(bytes, at)
    }

    #[inline]
    fn decode(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        u8::decode(cursor).map(QidKind)
    }

    #[inline]
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.0.encode(out)
    }

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x}", self.0)
    }
}
