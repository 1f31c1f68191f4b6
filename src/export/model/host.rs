//! The models passthrough and none: a file of the guest is that file of the host.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, readlinkat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, makedev, mkdirat, mknodat};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};

use super::attributes::has_set_id;
use super::change::{Change, chown, resize};
use super::options::NewFile;
use super::xattrs::Xattrs;
use crate::export::identity::{Identity, Owner};
use crate::export::name::Name;
use crate::export::node::{FileKind, Node, Stat, permissions};

/// The two models. They differ in what happens if the host does not permit the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// passthrough: the file is not created.
    Passthrough,
    /// none: it belongs to the daemon.
    None,
}

impl Host {
    /// The guest's extended attributes.
    pub fn xattrs(self) -> Xattrs {
        match self {
            Host::Passthrough => Xattrs::All,
            Host::None => Xattrs::NoAcls,
        }
    }

    /// Runs `make`, which creates one file, with its owner's ids.
    fn creating<T>(
        self,
        identity: &Identity,
        owner: Owner,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match identity.creating(owner, &make) {
            // Also the answer for an id that the host's user namespace does not have.
            Err(Errno::EINVAL) if self == Host::None => make(),
            result => result,
        }
    }

    /// Creates a regular file and opens it. If it cannot be pinned then, it stays in `made` for the
    /// next try.
    #[allow(clippy::too_many_arguments)]
    pub fn create(
        self,
        identity: &Identity,
        directory: &Node,
        name: &Name,
        flags: OFlag,
        mode: u32,
        owner: Owner,
        made: &mut Option<OwnedFd>,
    ) -> Result<(OwnedFd, Node, Stat), Errno> {
        let fd = match made.take() {
            Some(fd) => fd,
            None => self.creating(identity, owner, || directory.create(name, flags, mode))?,
        };
        match Node::of_open_file(&fd) {
            Ok((node, stat)) => Ok((fd, node, stat)),
            Err(error) => {
                *made = Some(fd);
                Err(error)
            }
        }
    }

    /// Creates any other file.
    pub fn make(
        self,
        identity: &Identity,
        directory: &Node,
        name: &Name,
        file: &NewFile<'_>,
        owner: Owner,
    ) -> Result<Stat, Errno> {
        let name_there = name.as_c_str();
        self.creating(identity, owner, || match file {
            NewFile::Directory { mode } => mkdirat(directory, name_there, permissions(*mode)),
            NewFile::Node { kind, mode, device } => {
                let kind = SFlag::from_bits_truncate(*kind);
                mknodat(directory, name_there, kind, permissions(*mode), *device)
            }
            NewFile::Symlink { target } => symlinkat(*target, directory, name_there),
        })?;
        // Without a descriptor: there may be none left, and the file exists.
        directory.child_stat(name)
    }
}

/// Changes attributes. Owner before mode, because a change of owner clears the set-id bits; size
/// before times, because it moves them.
pub(in crate::export) fn set_attributes(
    identity: &Identity,
    node: &Node,
    writable: Option<BorrowedFd<'_>>,
    change: &Change,
    user: u32,
) -> Result<(), Errno> {
    if change.uid.is_some() || change.gid.is_some() || change.touch {
        changing_content(identity, node, user, || chown(node, change.uid, change.gid))?;
    }
    if let Some(mode) = change.mode {
        identity.changing_mode(user, || {
            let (path, follow) = (node.proc_path(), FchmodatFlags::FollowSymlink);
            fchmodat(AT_FDCWD, path.as_c_str(), permissions(mode), follow)
        })?;
    }
    if let Some(size) = change.size {
        changing_content(identity, node, user, || {
            resize(node, node.kind(), writable, size)
        })?;
    }
    change.set_times(node)
}

/// Runs `change`, a change of content or owner by `user`, so that the kernel clears the set-id bits
/// that it clears for that user.
pub(in crate::export) fn changing_content<T>(
    identity: &Identity,
    node: &Node,
    user: u32,
    change: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    let stat = node.stat()?.0;
    match has_set_id(stat.stx_mode.into()) {
        false => change(),
        true => identity.changing_content(user, stat.stx_gid, change),
    }
}

/// The target of a symbolic link. Errors: EINVAL for any other file.
pub(in crate::export) fn readlink(node: &Node) -> Result<Vec<u8>, Errno> {
    if node.kind() != FileKind::Symlink {
        return Err(Errno::EINVAL);
    }
    Ok(readlinkat(node, c"")?.into_vec())
}

/// Gives a pinned file another name.
pub(in crate::export) fn link(node: &Node, directory: &Node, name: &Name) -> Result<(), Errno> {
    // The magic link leads to the inode; what it contains, a symbolic link's target too, is not
    // looked at.
    let (inode, flags) = (node.proc_path(), AtFlags::AT_SYMLINK_FOLLOW);
    linkat(
        AT_FDCWD,
        inode.as_c_str(),
        directory,
        name.as_c_str(),
        flags,
    )
}

/// Moves a name to another.
pub(in crate::export) fn rename(
    from: &Node,
    old: &Name,
    to: &Node,
    new: &Name,
) -> Result<(), Errno> {
    renameat(from, old.as_c_str(), to, new.as_c_str())
}

/// Removes a name.
pub(in crate::export) fn unlink(
    directory: &Node,
    name: &Name,
    flag: UnlinkatFlags,
) -> Result<(), Errno> {
    unlinkat(directory, name.as_c_str(), flag)
}

/// Opens a file that was just created. As for creat(2), its mode need not permit that. Errors: those of
/// open(2).
pub(in crate::export) fn open_created(node: &Node, flags: OFlag) -> Result<OwnedFd, Errno> {
    match node.reopen(flags) {
        Err(Errno::EACCES) => {
            let mode = permissions(node.stat()?.0.stx_mode.into());
            let change = |mode| {
                let (path, follow) = (node.proc_path(), FchmodatFlags::FollowSymlink);
                fchmodat(AT_FDCWD, path.as_c_str(), mode, follow)
            };
            change(mode | Mode::S_IRUSR | Mode::S_IWUSR)?;
            let opened = node.reopen(flags);
            change(mode)?;
            opened
        }
        result => result,
    }
}

/// Whether a file is what creating `file` makes.
pub(in crate::export) fn is_alike(node: &Node, stat: &Stat, file: &NewFile<'_>) -> bool {
    match file {
        NewFile::Directory { .. } => node.kind() == FileKind::Directory,
        NewFile::Node { kind, device, .. } => {
            let found = makedev(stat.0.stx_rdev_major.into(), stat.0.stx_rdev_minor.into());
            let is_device = matches!(*kind, libc::S_IFCHR | libc::S_IFBLK);
            u32::from(stat.0.stx_mode) & libc::S_IFMT == *kind && (!is_device || found == *device)
        }
        NewFile::Symlink { target } => readlink(node).is_ok_and(|found| found == target.to_bytes()),
    }
}
