//! The model mapped-xattr: attributes in extended attributes of the host file.
//!
//! | name | value, little-endian |
//! |---|---|
//! | `user.virtfs.uid`, `user.virtfs.gid` | 32 bits |
//! | `user.virtfs.mode` | 32 bits: type and permissions, as `st_mode` on Linux |
//! | `user.virtfs.rdev` | 64 bits: `makedev(major, minor)` of glibc |
//!
//! They belong to the inode, so names need no care. (hw/9pfs/9p-local.c in QEMU.)

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use super::attributes::Attributes;
use super::mapped::{ModeOf, Store};
use super::xattrs::Xattrs;
use crate::export::node::{FileKind, Node};
use crate::export::place::{Located, Place};
use crate::export::sys::{self, ProcPath};
use crate::export::tree::Tree;

const UID: &CStr = c"user.virtfs.uid";
const GID: &CStr = c"user.virtfs.gid";
const MODE: &CStr = c"user.virtfs.mode";
const RDEV: &CStr = c"user.virtfs.rdev";

/// Attributes in extended attributes. ext4, XFS and Btrfs keep such small ones in the inode or next
/// to it.
#[derive(Debug)]
pub(super) struct MappedXattr;

impl Store for MappedXattr {
    fn supported(&self, root: &Node) -> Result<(), Errno> {
        match sys::getxattr(root.proc_path().as_c_str(), UID, &mut []) {
            Err(Errno::EOPNOTSUPP) => Err(Errno::EOPNOTSUPP),
            _ => Ok(()),
        }
    }

    fn xattrs(&self) -> Xattrs {
        Xattrs::UserAndMappedAcls
    }

    fn load(&self, _: &Tree, file: Located<'_>) -> Result<Attributes, Errno> {
        load(file.node)
    }

    fn load_at(&self, node: &Node, _: Place<'_>) -> Result<Attributes, Errno> {
        load(node)
    }

    fn init(&self, node: &Node, _: Place<'_>, attributes: &Attributes) -> Result<(), Errno> {
        set(node, attributes)
    }

    fn update(&self, _: &Tree, file: Located<'_>, changes: &Attributes) -> Result<(), Errno> {
        set(file.node, changes)
    }

    fn modes_in<'a>(&'a self, directory: BorrowedFd<'a>) -> Result<ModeOf<'a>, Errno> {
        let directory = ProcPath::new(directory);
        Ok(Box::new(move |name| {
            let path = [directory.as_c_str().to_bytes(), name.to_bytes()].join(&b'/');
            let mut value = [0; 4];
            // The last component is not followed, and the first is an inode.
            match sys::lgetxattr(&CString::new(path).ok()?, MODE, &mut value) {
                Ok(length) if length == value.len() => Some(u32::from_le_bytes(value)),
                _ => None,
            }
        }))
    }
}

/// The stored attributes of a file.
fn load(node: &Node) -> Result<Attributes, Errno> {
    // Other kinds of files have no user attributes (xattr(7)).
    if !matches!(node.kind(), FileKind::Regular | FileKind::Directory) {
        return Ok(Attributes::default());
    }
    let path = node.proc_path();
    let path = path.as_c_str();
    let mode = get(path, MODE)?.map(u32::from_le_bytes);
    let device = matches!(
        mode.map(|mode| mode & libc::S_IFMT),
        Some(libc::S_IFCHR | libc::S_IFBLK)
    );
    Ok(Attributes {
        uid: get(path, UID)?.map(u32::from_le_bytes),
        gid: get(path, GID)?.map(u32::from_le_bytes),
        mode,
        rdev: if device {
            get(path, RDEV)?.map(u64::from_le_bytes)
        } else {
            None
        },
    })
}

/// The value of one attribute, if it exists and has the right length.
fn get<const LENGTH: usize>(path: &CStr, name: &CStr) -> Result<Option<[u8; LENGTH]>, Errno> {
    let mut value = [0; LENGTH];
    match sys::getxattr(path, name, &mut value) {
        Ok(length) => Ok((length == LENGTH).then_some(value)),
        // It does not exist; cannot exist, below a mount point; is not visible for this user; is
        // too long.
        Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::EACCES | Errno::ERANGE) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets what `attributes` say. The mode comes first: a file that changes its owner must not keep
/// the set-id bits of the owner before.
fn set(node: &Node, attributes: &Attributes) -> Result<(), Errno> {
    let path = node.proc_path();
    let set = |name, value: Option<&[u8]>| match value {
        Some(value) => sys::setxattr(path.as_c_str(), name, value, 0),
        None => Ok(()),
    };
    let Attributes {
        uid,
        gid,
        mode,
        rdev,
    } = attributes;
    set(MODE, mode.map(u32::to_le_bytes).as_ref().map(|v| &v[..]))?;
    set(RDEV, rdev.map(u64::to_le_bytes).as_ref().map(|v| &v[..]))?;
    set(UID, uid.map(u32::to_le_bytes).as_ref().map(|v| &v[..]))?;
    set(GID, gid.map(u32::to_le_bytes).as_ref().map(|v| &v[..]))
}
