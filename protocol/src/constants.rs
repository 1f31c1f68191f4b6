//! The numbers of 9P2000.L, as Linux's include/net/9p/9p.h gives them.

/// The tag of a Tversion.
pub const NOTAG: u16 = 0xFFFF;
/// No fid, as afid of a Tattach without authentication.
pub const NOFID: u32 = 0xFFFF_FFFF;
/// No numeric user id in Tattach.
pub const NONUNAME: u32 = 0xFFFF_FFFF;
/// The most names in a Twalk, and qids in its reply (MAXWELEM of 9P2000).
pub const MAX_WALK: usize = 16;

/// Bits of Tgetattr's request mask and Rgetattr's valid.
pub mod getattr {
    /// Mode.
    pub const MODE: u64 = 0x1;
    /// Number of links.
    pub const NLINK: u64 = 0x2;
    /// Owner.
    pub const UID: u64 = 0x4;
    /// Group.
    pub const GID: u64 = 0x8;
    /// Device number of a device.
    pub const RDEV: u64 = 0x10;
    /// Time of the last access.
    pub const ATIME: u64 = 0x20;
    /// Time of the last change of content.
    pub const MTIME: u64 = 0x40;
    /// Time of the last change.
    pub const CTIME: u64 = 0x80;
    /// Inode number, the qid's path.
    pub const INO: u64 = 0x100;
    /// Size.
    pub const SIZE: u64 = 0x200;
    /// Number of 512-byte blocks.
    pub const BLOCKS: u64 = 0x400;
    /// Time of birth.
    pub const BTIME: u64 = 0x800;
    /// Generation of the inode.
    pub const GEN: u64 = 0x1000;
    /// Version of the content.
    pub const DATA_VERSION: u64 = 0x2000;
    /// What struct stat has.
    pub const BASIC: u64 = 0x7FF;
    /// Everything.
    pub const ALL: u64 = 0x3FFF;
}

/// Bits of Tsetattr's valid.
pub mod setattr {
    /// Set the permission bits.
    pub const MODE: u32 = 0x1;
    /// Set the owner.
    pub const UID: u32 = 0x2;
    /// Set the group.
    pub const GID: u32 = 0x4;
    /// Set the size.
    pub const SIZE: u32 = 0x8;
    /// Set the access time, to the server's now without [`ATIME_SET`].
    pub const ATIME: u32 = 0x10;
    /// Set the modification time, to the server's now without [`MTIME_SET`].
    pub const MTIME: u32 = 0x20;
    /// The change time moves, as with any change.
    pub const CTIME: u32 = 0x40;
    /// The message has the access time.
    pub const ATIME_SET: u32 = 0x80;
    /// The message has the modification time.
    pub const MTIME_SET: u32 = 0x100;
}

/// Flags of Tlopen and Tlcreate: numbers of the protocol, not of any host.
pub mod open {
    /// Open for reading.
    pub const RDONLY: u32 = 0;
    /// Open for writing.
    pub const WRONLY: u32 = 1;
    /// Open for both.
    pub const RDWR: u32 = 2;
    /// Create the file if it does not exist.
    pub const CREATE: u32 = 0o100;
    /// Fail if it exists.
    pub const EXCL: u32 = 0o200;
    /// Does not become the controlling terminal.
    pub const NOCTTY: u32 = 0o400;
    /// Truncate the file to length 0.
    pub const TRUNC: u32 = 0o1000;
    /// Append: write at the end only.
    pub const APPEND: u32 = 0o2000;
    /// Do not wait.
    pub const NONBLOCK: u32 = 0o4000;
    /// A write returns when its data is on disk.
    pub const DSYNC: u32 = 0o10000;
    /// Signal-driven I/O.
    pub const FASYNC: u32 = 0o20000;
    /// Bypass the page cache.
    pub const DIRECT: u32 = 0o40000;
    /// Sizes beyond 2 GiB.
    pub const LARGEFILE: u32 = 0o100000;
    /// Fail if it is not a directory.
    pub const DIRECTORY: u32 = 0o200000;
    /// Fail if it is a symbolic link.
    pub const NOFOLLOW: u32 = 0o400000;
    /// Do not update the access time.
    pub const NOATIME: u32 = 0o1000000;
    /// Close on exec.
    pub const CLOEXEC: u32 = 0o2000000;
    /// A write returns when data and metadata are on disk.
    pub const SYNC: u32 = 0o4000000;
}

/// Types, flags and states of locks.
pub mod lock {
    /// A shared lock.
    pub const RDLCK: u8 = 0;
    /// An exclusive lock.
    pub const WRLCK: u8 = 1;
    /// No lock.
    pub const UNLCK: u8 = 2;
    /// The client is willing to wait.
    pub const BLOCK: u32 = 1;
    /// The client reclaims what it held before the server restarted.
    pub const RECLAIM: u32 = 2;
    /// The lock is taken or released.
    pub const SUCCESS: u8 = 0;
    /// Another owner holds it.
    pub const BLOCKED: u8 = 1;
    /// It is not possible.
    pub const ERROR: u8 = 2;
    /// The server waits for reclaims.
    pub const GRACE: u8 = 3;
}

/// Flags of Tunlinkat.
pub mod unlink {
    /// Remove a directory (`P9_DOTL_AT_REMOVEDIR`).
    pub const REMOVEDIR: u32 = 0x200;
}

/// Flags of Txattrcreate.
pub mod xattr {
    /// Fail if the attribute exists.
    pub const CREATE: u32 = 1;
    /// Fail if it does not.
    pub const REPLACE: u32 = 2;
}
