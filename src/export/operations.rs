//! The operations on the files of the export, as the guest sees them under its security model.
//!
//! Handlers do everything with files through these, in one closure on a worker. Errors, where
//! nothing else is said: those of the system call that the method is named after.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::UnlinkatFlags;

use super::Export;
use super::acl;
use super::directory::DirectoryStream;
use super::identity::Owner;
use super::model::{Change, Model, NewFile, has_set_id, host};
use super::name::Name;
use super::node::{FileKind, Lookup, Node, Stat};
use super::place::{Located, Place};
use super::way_up::WayUp;
use super::xattr::XattrName;

impl Export {
    /// Whether operations profit from knowing where a file was last seen ([`Located`]).
    pub fn goes_by_names(&self) -> bool {
        self.model.by_name()
    }

    /// Whether the kernel's caches have the answer of [`Export::stat`], so that it takes no worker.
    pub fn stat_is_immediate(&self) -> bool {
        match &self.model {
            Model::Host(_) => true,
            Model::Mapped(mapped) => mapped.beside_inode(),
        }
    }

    /// Whether the guest's view of the files differs from what they are on the host.
    pub fn is_mapped(&self) -> bool {
        matches!(self.model, Model::Mapped(_))
    }

    /// The file's attributes as the guest sees them now, even if it has no name any more.
    pub fn stat(&self, file: Located<'_>, into: &mut Stat) -> Result<(), Errno> {
        match &self.model {
            Model::Host(_) => file.node.stat_into(into),
            Model::Mapped(mapped) => mapped.stat(&self.tree, file).map(|stat| *into = stat),
        }
    }

    /// Looks one name up below a directory, as [`Node::child`]. Errors: EAGAIN with
    /// [`Lookup::Cached`] wherever it takes more than the kernel's caches, and with
    /// [`Lookup::Local`] at a mount point.
    pub fn child(
        &self,
        directory: &Node,
        name: &Name,
        lookup: Lookup,
    ) -> Result<(Node, Stat), Errno> {
        match &self.model {
            Model::Host(_) => directory.child(name, lookup),
            Model::Mapped(mapped) => mapped.child(&self.tree, directory, name, lookup),
        }
    }

    /// The directory above this one, as [`Node::parent`].
    pub fn parent(
        &self,
        directory: &Node,
        way: &mut WayUp<'_>,
        lookup: Lookup,
    ) -> Result<(Node, Stat), Errno> {
        let (parent, stat) = directory.parent(way, lookup)?;
        match &self.model {
            Model::Host(_) => Ok((parent, stat)),
            Model::Mapped(mapped) => {
                let stat = mapped.stat(&self.tree, (&parent).into())?;
                Ok((parent, stat))
            }
        }
    }

    /// Opens a file for `user`. Errors: ELOOP for a symbolic link, ENXIO for a device, fifo or
    /// socket, which belong to the guest's kernel; EAGAIN with `O_NONBLOCK`, before anything is
    /// done, if someone holds a lease on it ([`Node::reopen`]).
    pub fn open(
        &self,
        file: Located<'_>,
        flags: OFlag,
        user: u32,
    ) -> Result<(OwnedFd, Stat), Errno> {
        let node = file.node;
        match &self.model {
            Model::Host(_) if flags.contains(OFlag::O_TRUNC) => {
                let open = || node.reopen(flags);
                let fd = host::changing_content(&self.identity, node, user, open)?;
                Ok((fd, node.stat()?))
            }
            Model::Host(_) => Ok((node.reopen(flags)?, node.stat()?)),
            Model::Mapped(mapped) => mapped.open(&self.tree, file, flags, user),
        }
    }

    /// Creates a regular file and opens it. Unless `exclusive`, opens one that exists, for which
    /// `O_NONBLOCK` means the same as for [`Export::open`]. After EMFILE or ENFILE it can be called
    /// again with the same `made`, which is None at first; otherwise pass what it is then to
    /// [`Export::undo_create`].
    #[allow(clippy::too_many_arguments)]
    pub fn create(
        &self,
        directory: Located<'_>,
        name: &Name,
        flags: OFlag,
        exclusive: bool,
        mode: u32,
        owner: Owner,
        made: &mut Option<OwnedFd>,
    ) -> Result<(OwnedFd, Node, Stat), Errno> {
        /// How often a file may vanish between "it exists" and its opening.
        const TRIES: usize = 16;
        for _ in 0..TRIES {
            // Always exclusive on the host: a file that exists is pinned and looked at before it is
            // opened, so that no link is followed and no fifo blocks.
            let new = flags - OFlag::O_NONBLOCK;
            let created = match &self.model {
                Model::Host(host) => {
                    let (identity, directory) = (&self.identity, directory.node);
                    host.create(identity, directory, name, new, mode, owner, made)
                }
                // Removes what it cannot finish.
                Model::Mapped(mapped) => {
                    mapped.create(&self.tree, directory, name, new, mode, owner)
                }
            };
            match created {
                Err(Errno::EEXIST) if !exclusive => {}
                result => return result,
            }
            let existing = self.identity.acting(owner.uid, || {
                let directory = directory.node;
                // A call that must not wait for a lease must not wait behind a mount point either.
                let lookup = match flags.contains(OFlag::O_NONBLOCK) {
                    true => Lookup::Local,
                    false => Lookup::Blocking,
                };
                let (node, _) = self.child(directory, name, lookup)?;
                let file = Located {
                    node: &node,
                    seen: Some(Place { directory, name }),
                };
                let (fd, stat) = self.open(file, flags, owner.uid)?;
                Ok((fd, node, stat))
            });
            match existing {
                Err(Errno::ENOENT) => {}
                result => return result,
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Finishes and opens a file that a process may have created just before it died: one that was
    /// created `since` this time since the epoch. Errors: EEXIST if the file is older.
    pub fn create_again(
        &self,
        directory: Located<'_>,
        name: &Name,
        flags: OFlag,
        mode: u32,
        owner: Owner,
        since: Duration,
    ) -> Result<(OwnedFd, Node, Stat), Errno> {
        let (node, stat) = created_since(directory.node, name, since)?;
        if node.kind() != FileKind::Regular {
            return Err(Errno::EEXIST);
        }
        match &self.model {
            Model::Host(_) => Ok((host::open_created(&node, flags)?, node, stat)),
            Model::Mapped(mapped) => {
                let stat = mapped.create_again(&self.tree, directory, name, mode, owner, &node)?;
                Ok((node.reopen(flags)?, node, stat))
            }
        }
    }

    /// [`Export::create_again`] for a file that is not opened.
    pub fn make_again(
        &self,
        directory: Located<'_>,
        name: &Name,
        file: &NewFile<'_>,
        owner: Owner,
        since: Duration,
    ) -> Result<Stat, Errno> {
        let (node, stat) = created_since(directory.node, name, since)?;
        match &self.model {
            Model::Host(_) if host::is_alike(&node, &stat, file) => Ok(stat),
            Model::Host(_) => Err(Errno::EEXIST),
            Model::Mapped(mapped) => {
                mapped.make_again(&self.tree, directory, name, file, owner, &node)
            }
        }
    }

    /// Removes a file that [`Export::create`] has created and could not pin.
    pub fn undo_create(&self, directory: &Node, name: &Name, made: OwnedFd) {
        // The name may belong to another file by now.
        let is_there = Node::new(made)
            .is_ok_and(|(node, _)| directory.child_key(name).as_ref() == Ok(node.key()));
        if is_there {
            if let Err(error) = host::unlink(directory, name, UnlinkatFlags::NoRemoveDir) {
                log::warn!("{name:?} could not be finished and is left behind: {error}");
            }
        }
    }

    /// Creates a file without opening it: mkdir(2), mknod(2), symlink(2).
    pub fn make(
        &self,
        directory: Located<'_>,
        name: &Name,
        file: &NewFile<'_>,
        owner: Owner,
    ) -> Result<Stat, Errno> {
        match &self.model {
            Model::Host(host) => host.make(&self.identity, directory.node, name, file, owner),
            Model::Mapped(mapped) => mapped.make(&self.tree, directory, name, file, owner),
        }
    }

    /// The target of a symbolic link. `O_NONBLOCK` in `more` means the same as for
    /// [`Export::open`]. Errors: EINVAL for any other file.
    pub fn readlink(&self, file: Located<'_>, more: OFlag) -> Result<Vec<u8>, Errno> {
        match &self.model {
            Model::Host(_) => host::readlink(file.node),
            Model::Mapped(mapped) => mapped.readlink(&self.tree, file, more),
        }
    }

    /// Gives a pinned file another name. Errors: ENOENT if it has lost its last one.
    pub fn link(&self, file: Located<'_>, directory: &Node, name: &Name) -> Result<(), Errno> {
        match &self.model {
            Model::Host(_) => host::link(file.node, directory, name),
            Model::Mapped(mapped) => mapped.link(&self.tree, file, directory, name),
        }
    }

    /// Moves a name to another.
    pub fn rename(&self, from: &Node, old: &Name, to: &Node, new: &Name) -> Result<(), Errno> {
        match &self.model {
            Model::Host(_) => host::rename(from, old, to, new),
            Model::Mapped(mapped) => mapped.rename(&self.tree, from, old, to, new),
        }
    }

    /// Removes a name; with `RemoveDir` that of an empty directory.
    pub fn unlink(&self, directory: &Node, name: &Name, flag: UnlinkatFlags) -> Result<(), Errno> {
        match &self.model {
            Model::Host(_) => host::unlink(directory, name, flag),
            Model::Mapped(mapped) => mapped.unlink(&self.tree, directory, name, flag),
        }
    }

    /// Changes attributes for `user`; changes before the one that fails are made. `writable` is the
    /// fid's own descriptor, which may still be written when the file's mode does not permit
    /// opening it again. `O_NONBLOCK` in `more` means the same as for [`Export::open`]. Errors:
    /// those of chown(2), chmod(2), truncate(2) and utimensat(2).
    pub fn set_attributes(
        &self,
        file: Located<'_>,
        writable: Option<BorrowedFd<'_>>,
        change: &Change,
        user: u32,
        more: OFlag,
    ) -> Result<(), Errno> {
        // truncate(2) waits for the holder of a lease on the file. A file that is open for writing
        // has none and gets none.
        let _writer = match (change.size, writable) {
            (Some(_), None) if more.contains(OFlag::O_NONBLOCK) => {
                match file.node.reopen(OFlag::O_WRONLY | more) {
                    Err(Errno::EMFILE | Errno::ENFILE) => return Err(Errno::EAGAIN),
                    Err(Errno::EAGAIN) => return Err(Errno::EAGAIN),
                    // The truncation reports what is wrong.
                    result => result.ok(),
                }
            }
            _ => None,
        };
        let result = match &self.model {
            Model::Host(_) => {
                host::set_attributes(&self.identity, file.node, writable, change, user)
            }
            Model::Mapped(mapped) => {
                mapped.set_attributes(&self.tree, file, writable, change, user)
            }
        };
        if change.mode.is_some_and(|mode| mode & 0o6000 != 0) {
            self.set_id_given.fetch_add(1, Ordering::Release);
        }
        result
    }

    /// A number that is incremented when a file may have got a set-id bit that a write must clear
    /// ([`Export::drop_set_id`]). Who has seen 0 or an older number must look again.
    pub fn set_id_given(&self) -> u64 {
        self.set_id_given.load(Ordering::Acquire)
    }

    /// Handles the set-id bits of a file that `user` is going to write: clears them itself, or
    /// returns the file's group if [`Identity::changing_content`] has to make the write, so that
    /// the kernel clears them. Otherwise the kernel clears all that it may.
    ///
    /// [`Identity::changing_content`]: super::identity::Identity::changing_content
    pub fn drop_set_id(&self, file: Located<'_>, user: u32) -> Result<Option<u32>, Errno> {
        match &self.model {
            Model::Host(_) => {
                let stat = file.node.stat()?.0;
                Ok(has_set_id(stat.stx_mode.into()).then_some(stat.stx_gid))
            }
            Model::Mapped(mapped) => mapped.drop_set_id(&self.tree, file, user).map(|()| None),
        }
    }

    /// Reads whole entries of an open directory of `device`, as [`DirectoryStream::read`].
    pub fn read_directory(
        &self,
        device: (u32, u32),
        stream: &DirectoryStream,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Errno> {
        match &self.model {
            Model::Host(_) => stream.read(offset, buffer),
            Model::Mapped(mapped) => mapped.read_directory(device, stream, offset, buffer),
        }
    }

    /// The value of an extended attribute. Errors: EOPNOTSUPP for one that the guest cannot have,
    /// those of getxattr(2).
    pub fn xattr(&self, node: &Node, name: &XattrName) -> Result<Vec<u8>, Errno> {
        self.model.xattrs().get(node, name)
    }

    /// The names of all extended attributes, each ended by a NUL. Errors: those of listxattr(2).
    pub fn xattr_names(&self, node: &Node) -> Result<Vec<u8>, Errno> {
        self.model.xattrs().list(node)
    }

    /// Sets an extended attribute for `user`. Errors: EOPNOTSUPP for one that the guest cannot
    /// have, EACCES for one of the model's own, those of setxattr(2).
    pub fn set_xattr(
        &self,
        node: &Node,
        name: &XattrName,
        value: &[u8],
        flags: u32,
        user: u32,
    ) -> Result<(), Errno> {
        self.changing_xattr(name, user, || {
            self.model.xattrs().set(node, name, value, flags)
        })
    }

    /// Removes an extended attribute. Errors: as [`Export::set_xattr`], those of removexattr(2).
    pub fn remove_xattr(&self, node: &Node, name: &XattrName, user: u32) -> Result<(), Errno> {
        self.changing_xattr(name, user, || self.model.xattrs().remove(node, name))
    }

    /// An access control list changes the mode, from which the host would clear set-group-id: the
    /// guest's kernel has decided about that.
    fn changing_xattr(
        &self,
        name: &XattrName,
        user: u32,
        change: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        match acl::is_list(name.as_bytes()) {
            true => self.identity.changing_mode(user, change),
            false => change(),
        }
    }
}

/// The file with this name. Errors: EEXIST if it is older than `since`, those of openat2(2).
fn created_since(directory: &Node, name: &Name, since: Duration) -> Result<(Node, Stat), Errno> {
    let (node, stat) = directory.child(name, Lookup::Local)?;
    match stat.created_since(since) {
        true => Ok((node, stat)),
        false => Err(Errno::EEXIST),
    }
}
