//! Open files and directories.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;

use crate::export::directory::DirectoryStream;

/// The descriptor behind an open fid.
#[derive(Debug)]
pub enum Handle {
    /// A regular file.
    File(File),
    /// A directory and its position.
    Directory(DirectoryStream),
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Handle::File(file) => file.fd.as_fd(),
            Handle::Directory(stream) => stream.as_fd(),
        }
    }
}

/// An open regular file.
#[derive(Debug)]
pub struct File {
    /// The descriptor, with the access mode that the guest asked for.
    pub fd: OwnedFd,
    /// Whether the descriptor may be written.
    pub writable: bool,
    /// Whether a write returns only when the device has the data (O_SYNC, O_DSYNC).
    pub sync: bool,
    /// The value of [`Export::set_id_given`](crate::export::Export::set_id_given) up to which the
    /// file is known to have no set-id bits that a write by this fid's user must handle.
    pub set_id_dropped: Cell<u64>,
}

impl File {
    /// A file that was opened with `flags`, with no set-id bits as of `set_id_dropped`.
    pub fn new(fd: OwnedFd, flags: OFlag, set_id_dropped: u64) -> File {
        File {
            fd,
            writable: flags & OFlag::O_ACCMODE != OFlag::O_RDONLY,
            sync: flags.intersects(OFlag::O_SYNC | OFlag::O_DSYNC),
            set_id_dropped: Cell::new(set_id_dropped),
        }
    }
}
