//! What a Tsetattr asks for, and its parts that are the same in every model.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::unistd::{Gid, Uid, fchownat, ftruncate, truncate};

use crate::export::node::{FileKind, Node};
use crate::export::sys;

/// Which attributes of a file to change.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// The new owner.
    pub uid: Option<u32>,
    /// The new group.
    pub gid: Option<u32>,
    /// The new permissions; type bits do not count.
    pub mode: Option<u32>,
    /// The new size in bytes.
    pub size: Option<i64>,
    /// Access and modification time, as utimensat(2) takes them.
    pub times: Option<[libc::timespec; 2]>,
    /// Whether to move the change time though nothing else changes.
    pub touch: bool,
}

impl Change {
    /// Sets the times, on the host in every model. Errors: those of utimensat(2).
    pub(super) fn set_times(&self, node: &Node) -> Result<(), Errno> {
        match &self.times {
            Some(times) => sys::set_times(node.as_fd(), times),
            None => Ok(()),
        }
    }
}

/// chown(2) of the inode itself, even a symbolic link. Without ids it still moves the change time.
/// Errors: EPERM also for an id that the daemon's user namespace does not have.
pub(super) fn chown(node: &Node, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    let flags = AtFlags::AT_EMPTY_PATH | AtFlags::AT_SYMLINK_NOFOLLOW;
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    fchownat(node, c"", uid, gid, flags).map_err(|error| match error {
        Errno::EINVAL => Errno::EPERM,
        error => error,
    })
}

/// Sets the size of a file that has this kind for the guest. `writable` is the fid's own
/// descriptor, which may still be written when the file's mode does not permit opening it again.
/// Errors: EISDIR, EINVAL for a file without a size, those of truncate(2).
pub(super) fn resize(
    node: &Node,
    kind: FileKind,
    writable: Option<BorrowedFd<'_>>,
    size: i64,
) -> Result<(), Errno> {
    match (kind, writable) {
        (FileKind::Regular, Some(fd)) => ftruncate(fd, size),
        (FileKind::Regular, None) => truncate(node.proc_path().as_c_str(), size),
        (FileKind::Directory, _) => Err(Errno::EISDIR),
        (FileKind::Symlink | FileKind::Special, _) => Err(Errno::EINVAL),
    }
}
