//! The exported tree: the only way from the guest's names to the host's files.
//!
//! - [`name`]: a guest's bytes, checked to be one component of a path.
//! - [`node`]: an inode pinned by a descriptor, and the lookup of a name below it; [`place`]: where
//!   it was seen; [`way_up`]: proves that a directory is below the share's root.
//! - [`tree`]: the root, and where a file is below it.
//! - [`operations`]: the operations on files, as the guest sees them.
//! - [`model`]: where owner, mode and kind of the guest's files are kept on the host.
//! - [`handle`]: finds an inode again whose descriptor was evicted.
//! - [`directory`], [`xattr`]: reading a directory, extended attributes.
//! - [`acl`]: the ids in access control lists.
//! - [`identity`]: the identity with which the daemon acts; [`idmap`]: ids that differ on both sides;
//!   [`users`]: the groups of the host's users.
//! - [`qid`]: the protocol's names for inodes.
//! - [`sys`]: system calls that the other crates lack, with the only `unsafe` of the export.
//!
//! All of it is called on workers as well as on the loop, except [`QidMap`], which the loop alone
//! uses.

pub mod acl;
pub mod directory;
pub mod handle;
pub mod identity;
pub mod idmap;
pub mod model;
pub mod name;
pub mod node;
pub mod operations;
pub mod place;
pub mod qid;
pub mod sys;
pub mod tree;
pub mod users;
pub mod way_up;
pub mod xattr;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize};

pub use handle::FileHandles;
use handle::InodeLocators;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

pub use identity::{Identity, Ids, Owner, Permissions};
use model::Model;
pub use model::{Change, HostModes, NewFile, SecurityModel, has_set_id};
pub use name::{Component, Name};
pub use node::{FileKind, InodeId, InodeKey, Lookup, Node, Stat, errno_of, permissions};
pub use place::{Located, Place};
pub use qid::{FILE_SYSTEMS, Multidevs, QidMap};
use tree::Tree;
pub use way_up::{DEEPEST, WayUp};

/// A directory of the host that is shared with the guest.
#[derive(Debug)]
pub struct Export {
    tree: Tree,
    readonly: bool,
    identity: Identity,
    locators: InodeLocators,
    model: Model,
    /// Incremented after a chmod that may set set-id bits; never 0.
    set_id_given: AtomicU64,
}

/// Pins a directory to share. It may be reached through symbolic links, because the operator names
/// it. Errors: those of open(2), ENOTDIR, EACCES if it cannot be read.
pub fn open_share(directory: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let pinned = open(directory, flags | OFlag::O_PATH, Mode::empty())?;
    openat(&pinned, ".", flags | OFlag::O_RDONLY, Mode::empty())?;
    Ok(pinned)
}

impl Export {
    /// Opens `directory`, as [`open_share`] does. Errors: those of [`Export::of`], too.
    pub fn new(
        directory: &Path,
        readonly: bool,
        handles: FileHandles,
        identity: Identity,
    ) -> Result<Export, Errno> {
        Export::of(open_share(directory)?, readonly, handles, identity)
    }

    /// Exports the directory of this `O_PATH` descriptor. Errors: EACCES if it cannot be read.
    pub fn of(
        directory: OwnedFd,
        readonly: bool,
        handles: FileHandles,
        identity: Identity,
    ) -> Result<Export, Errno> {
        let (root, _) = Node::new(directory)?;
        root.reopen(OFlag::O_RDONLY)?;
        Ok(Export {
            tree: Tree::new(root),
            readonly,
            identity,
            locators: InodeLocators::new(handles),
            model: Model::new(SecurityModel::default(), HostModes::default()),
            set_id_given: AtomicU64::new(1),
        })
    }

    /// The same directory under a security model; `modes` matter to the mapped ones. Errors:
    /// EOPNOTSUPP if the model needs extended attributes that the file system does not have.
    pub fn with_model(mut self, model: SecurityModel, modes: HostModes) -> Result<Export, Errno> {
        self.model = Model::new(model, modes);
        self.model.supported(self.tree.root())?;
        if self.model.by_name() {
            // A file that is found by its handle does not know its name.
            self.locators = InodeLocators::new(FileHandles::Never);
        }
        Ok(self)
    }

    /// The share's top directory.
    pub fn root(&self) -> &Node {
        self.tree.root()
    }

    /// Finds inodes again.
    pub fn locators(&self) -> &InodeLocators {
        &self.locators
    }

    /// The identity with which the daemon acts.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Errors: EROFS on a read-only share. Every handler that would change something calls it
    /// first.
    pub fn writable(&self) -> Result<(), Errno> {
        if self.readonly {
            Err(Errno::EROFS)
        } else {
            Ok(())
        }
    }

    /// Resolves a path below the root, as `aname` of Tattach gives it: empty and `/` mean the root,
    /// and no symbolic link is followed. Errors: ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG; EINTR as
    /// soon as `stopping` is not 0; EAGAIN with [`Lookup::Local`] at a mount point.
    pub fn directory_below(
        &self,
        path: &[u8],
        stopping: &AtomicUsize,
        lookup: Lookup,
    ) -> Result<(Node, Stat), Errno> {
        // The host's limit for a path, the NUL included: each name costs a few calls.
        if path.len() >= libc::PATH_MAX as usize {
            return Err(Errno::ENAMETOOLONG);
        }
        let mut way = WayUp::new(self.root(), stopping);
        let (mut node, _) = Node::new(self.root().as_fd().try_clone_to_owned().map_err(errno_of)?)?;
        let mut stat = Stat::default();
        self.stat((&node).into(), &mut stat)?;
        for bytes in path
            .split(|byte| *byte == b'/')
            .filter(|bytes| !bytes.is_empty())
        {
            way.go_on()?;
            match Component::new(bytes)? {
                Component::Current => {}
                Component::Parent => (node, stat) = self.parent(&node, &mut way, lookup)?,
                Component::Name(name) => {
                    (node, stat) = self.child(&node, &name, lookup)?;
                }
            }
            match stat.kind() {
                FileKind::Directory => {}
                FileKind::Symlink => return Err(Errno::ELOOP),
                FileKind::Regular | FileKind::Special => return Err(Errno::ENOTDIR),
            }
        }
        Ok((node, stat))
    }

    /// Finds where a pinned inode is now, as [`Tree::locate`].
    pub fn locate(&self, node: &Node) -> Result<(Node, Name), Errno> {
        self.tree.locate(node)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn export(directory: &Path) -> Export {
        let identity = Identity::of_process(Ids::default(), None).unwrap();
        Export::new(directory, false, FileHandles::Prefer, identity).unwrap()
    }

    #[test]
    fn an_attach_name_leads_to_a_directory_below() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/file"), "").unwrap();
        symlink("/etc", dir.path().join("a/link")).unwrap();
        let export = export(dir.path());
        let running = AtomicUsize::new(0);
        let found = |path: &[u8]| export.directory_below(path, &running, Lookup::Local);
        let id = |path: &[u8]| found(path).map(|(node, _)| node.id());
        assert_eq!(id(b""), Ok(export.root().id()));
        assert_eq!(id(b"/"), Ok(export.root().id()));
        assert_eq!(id(b"/../.."), Ok(export.root().id()));
        assert_eq!(id(b"a//b/"), id(b"/a/b"));
        assert_eq!(id(b"a/b/.."), id(b"a"));
        assert_eq!(id(b"a/link"), Err(Errno::ELOOP));
        assert_eq!(id(b"a/file"), Err(Errno::ENOTDIR));
        assert_eq!(id(b"missing"), Err(Errno::ENOENT));
        assert_eq!(id("a/../".repeat(819).as_bytes()), Ok(export.root().id()));
        assert_eq!(id(&[b'/'; 4096]), Err(Errno::ENAMETOOLONG));
        running.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(id(b"a/b"), Err(Errno::EINTR));
    }

    #[test]
    fn a_file_is_found_where_it_was_moved() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let export = export(dir.path());
        let name = Name::for_new(b"file").unwrap();
        let (file, _) = export.root().child(&name, Lookup::Blocking).unwrap();
        assert_eq!(export.locate(&file).unwrap().0.id(), export.root().id());

        fs::rename(dir.path().join("file"), dir.path().join("a/b/moved")).unwrap();
        let (directory, name) = export.locate(&file).unwrap();
        assert_eq!(
            directory.id(),
            export
                .directory_below(b"a/b", &AtomicUsize::new(0), Lookup::Local)
                .unwrap()
                .0
                .id()
        );
        assert_eq!(name.as_bytes(), b"moved");

        fs::remove_file(dir.path().join("a/b/moved")).unwrap();
        assert_eq!(export.locate(&file).unwrap_err(), Errno::ENOENT);
        // Somebody else's file by the name that the kernel shows for the unlinked one.
        fs::write(dir.path().join("a/b/moved (deleted)"), "").unwrap();
        assert_eq!(export.locate(&file).unwrap_err(), Errno::ENOENT);
    }
}
