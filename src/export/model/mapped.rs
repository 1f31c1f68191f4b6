//! What both mapped models have in common: the guest's files belong to the daemon on the host.
//!
//! Everything except a directory is a regular file on the host: that of a symbolic link contains
//! its target, that of a device, fifo or socket nothing. A [`Store`] keeps the attributes.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fmt::Debug;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::mkdirat;
use nix::unistd::UnlinkatFlags;

use super::attributes::{Attributes, without_set_id};
use super::change::{Change, chown, resize};
use super::host;
use super::options::{HostModes, NewFile};
use super::xattrs::Xattrs;
use crate::export::directory::{self, DirectoryStream};
use crate::export::identity::Owner;
use crate::export::name::Name;
use crate::export::node::{FileKind, Lookup, Node, Stat, errno_of, permissions};
use crate::export::place::{Located, Place};
use crate::export::tree::Tree;

/// Longest target of a symbolic link, without its NUL (limits.h: PATH_MAX).
const TARGET_MAX: u64 = 4095;
/// Whose writes clear no set-id bits.
const ROOT: u32 = 0;

/// Stores what the guest has set. Only [`Mapped`] calls it.
pub(super) trait Store: Debug + Send + Sync {
    /// Whether the file system of `root` has what the store needs. Errors: EOPNOTSUPP.
    fn supported(&self, root: &Node) -> Result<(), Errno>;

    /// The guest's extended attributes.
    fn xattrs(&self) -> Xattrs;

    /// What is stored of a file, wherever it is now: nothing if the guest has set nothing.
    fn load(&self, tree: &Tree, file: Located<'_>) -> Result<Attributes, Errno>;

    /// What is stored of a file that was just found at a place.
    fn load_at(&self, node: &Node, at: Place<'_>) -> Result<Attributes, Errno>;

    /// Stores the attributes of a new file and replaces whatever was stored there.
    fn init(&self, node: &Node, at: Place<'_>, attributes: &Attributes) -> Result<(), Errno>;

    /// Stores some attributes of a pinned file and keeps the others.
    fn update(&self, tree: &Tree, file: Located<'_>, changes: &Attributes) -> Result<(), Errno>;

    /// A function from the names in a directory to the stored modes.
    fn modes_in<'a>(&'a self, directory: BorrowedFd<'a>) -> Result<ModeOf<'a>, Errno>;

    /// The store, if it stores attributes by name. Otherwise they are with the inode: the kernel
    /// mostly has them in memory with it, and a worker would cost more than a rare read from the
    /// disk.
    fn by_name(&self) -> Option<&dyn ByName> {
        None
    }
}

/// A store in files of its own beside the guest's, which follow every name. No name changes while
/// another call is under way.
pub(super) trait ByName {
    /// Prepares a directory for a new name.
    fn prepare(&self, directory: &Node) -> Result<(), Errno>;

    /// Gives a file another name.
    fn link(&self, tree: &Tree, file: Located<'_>, to: Place<'_>) -> Result<(), Errno>;

    /// Moves a name to another.
    fn rename(&self, tree: &Tree, from: Place<'_>, to: Place<'_>) -> Result<(), Errno>;

    /// Removes a name.
    fn unlink(&self, tree: &Tree, at: Place<'_>, flag: UnlinkatFlags) -> Result<(), Errno>;

    /// Whether a name, in any directory, is the store's own and does not exist for the guest.
    fn hides(&self, name: &[u8]) -> bool;

    /// Whether a file that was found by another name is the store's own all the same.
    fn owns(&self, tree: &Tree, node: &Node, directory: &Node) -> Result<bool, Errno>;

    /// How many of a directory's links come from hidden files.
    fn hidden_links(&self, directory: &Node) -> u32;
}

/// The stored mode of the file with this name.
pub(super) type ModeOf<'a> = Box<dyn Fn(&CStr) -> Option<u32> + 'a>;

/// A mapped model in use.
#[derive(Debug)]
pub(in crate::export) struct Mapped {
    store: Box<dyn Store>,
    modes: HostModes,
    /// The locks of the file systems, if attributes are stored by name.
    names: Option<Mutex<HashMap<Device, Names>>>,
}

/// Major and minor number.
type Device = (u32, u32);

/// Held shared to look at files of one file system, and exclusively to change names there. One that
/// hangs holds up no other.
type Names = Arc<RwLock<()>>;

fn looking(names: &Option<Names>) -> Option<RwLockReadGuard<'_, ()>> {
    let names = names.as_ref()?;
    Some(names.read().unwrap_or_else(PoisonError::into_inner))
}

fn changing(names: &Option<Names>) -> Option<RwLockWriteGuard<'_, ()>> {
    let names = names.as_ref()?;
    Some(names.write().unwrap_or_else(PoisonError::into_inner))
}

impl Mapped {
    pub(super) fn new(store: impl Store + 'static, modes: HostModes) -> Mapped {
        Mapped {
            names: store.by_name().map(|_| Mutex::default()),
            store: Box::new(store),
            modes,
        }
    }

    pub(in crate::export) fn beside_inode(&self) -> bool {
        !self.by_name()
    }

    pub(super) fn by_name(&self) -> bool {
        self.names.is_some()
    }

    pub(super) fn supported(&self, root: &Node) -> Result<(), Errno> {
        self.store.supported(root)
    }

    pub(in crate::export) fn xattrs(&self) -> Xattrs {
        self.store.xattrs()
    }

    /// The lock of a file system, if it needs one.
    fn names_of(&self, device: Device) -> Option<Names> {
        /// More than most shares have file systems.
        const MANY: usize = 64;
        let mut names = self
            .names
            .as_ref()?
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if names.len() > MANY {
            names.retain(|_, names| Arc::strong_count(names) > 1);
        }
        Some(names.entry(device).or_default().clone())
    }

    /// Errors: ENOENT for a file that is not the guest's.
    fn visible(&self, name: &Name) -> Result<(), Errno> {
        match self.hides(name.as_bytes()) {
            true => Err(Errno::ENOENT),
            false => Ok(()),
        }
    }

    fn hides(&self, name: &[u8]) -> bool {
        self.store.by_name().is_some_and(|names| names.hides(name))
    }

    fn prepare(&self, directory: &Node) -> Result<(), Errno> {
        match self.store.by_name() {
            Some(names) => names.prepare(directory),
            None => Ok(()),
        }
    }

    /// The file's attributes as the guest sees them.
    pub(in crate::export) fn stat(&self, tree: &Tree, file: Located<'_>) -> Result<Stat, Errno> {
        let names = self.names_of(file.node.id().device);
        let _looking = looking(&names);
        self.view(tree, file)
    }

    fn view(&self, tree: &Tree, file: Located<'_>) -> Result<Stat, Errno> {
        let attributes = self.store.load(tree, file)?;
        self.lay_over(file.node, attributes)
    }

    fn lay_over(&self, node: &Node, attributes: Attributes) -> Result<Stat, Errno> {
        let mut stat = attributes.seen_in(node.stat()?);
        // A directory has one link from its parent, one from itself, and one from each
        // subdirectory; file systems that count otherwise say 1.
        if node.kind() == FileKind::Directory && stat.0.stx_nlink > 2 {
            if let Some(names) = self.store.by_name() {
                stat.0.stx_nlink -= names.hidden_links(node);
            }
        }
        Ok(stat)
    }

    pub(in crate::export) fn child(
        &self,
        tree: &Tree,
        directory: &Node,
        name: &Name,
        lookup: Lookup,
    ) -> Result<(Node, Stat), Errno> {
        if lookup == Lookup::Cached && self.by_name() {
            return Err(Errno::EAGAIN);
        }
        self.visible(name)?;
        let names = self.names_of(directory.id().device);
        let mut _looking = looking(&names);
        let here = match lookup {
            Lookup::Blocking => Lookup::Local,
            lookup => lookup,
        };
        let found = match directory.child(name, here) {
            Err(Errno::EAGAIN) if lookup != here => {
                // A mount point, whose name does not change while it is one. What is mounted there
                // may make us wait.
                drop(_looking);
                let found = directory.child(name, lookup);
                _looking = looking(&names);
                found
            }
            found => found,
        };
        let (node, _) = found?;
        if let Some(names) = self.store.by_name() {
            if names.owns(tree, &node, directory)? {
                return Err(Errno::ENOENT);
            }
        }
        let attributes = self.store.load_at(&node, Place { directory, name })?;
        drop(_looking);
        let stat = self.lay_over(&node, attributes)?;
        Ok((node, stat))
    }

    pub(in crate::export) fn open(
        &self,
        tree: &Tree,
        file: Located<'_>,
        flags: OFlag,
        user: u32,
    ) -> Result<(OwnedFd, Stat), Errno> {
        let stat = self.stat(tree, file)?;
        match stat.kind() {
            FileKind::Regular | FileKind::Directory => {}
            FileKind::Symlink => return Err(Errno::ELOOP),
            FileKind::Special => return Err(Errno::ENXIO),
        }
        if !flags.contains(OFlag::O_TRUNC) {
            return Ok((file.node.reopen(flags)?, stat));
        }
        let fd = file.node.reopen(flags)?;
        self.drop_set_id(tree, file, user)?;
        Ok((fd, self.stat(tree, file)?))
    }

    pub(in crate::export) fn create(
        &self,
        tree: &Tree,
        directory: Located<'_>,
        name: &Name,
        flags: OFlag,
        mode: u32,
        owner: Owner,
    ) -> Result<(OwnedFd, Node, Stat), Errno> {
        self.visible(name)?;
        let names = self.names_of(directory.node.id().device);
        let _changing = changing(&names);
        let mode = libc::S_IFREG | mode & 0o7777;
        let attributes = self.new_attributes(tree, directory, mode, owner)?;
        self.make_file(directory.node, name, flags, attributes, b"")
    }

    pub(in crate::export) fn make(
        &self,
        tree: &Tree,
        directory: Located<'_>,
        name: &Name,
        file: &NewFile<'_>,
        owner: Owner,
    ) -> Result<Stat, Errno> {
        self.visible(name)?;
        let names = self.names_of(directory.node.id().device);
        let _changing = changing(&names);
        let (attributes, content) = self.stored(tree, directory, file, owner)?;
        if let NewFile::Directory { .. } = file {
            return self.make_directory(directory.node, name, attributes);
        }
        let flags = OFlag::O_WRONLY;
        let (_, _, stat) = self.make_file(directory.node, name, flags, attributes, content)?;
        Ok(stat)
    }

    /// Finishes what [`Mapped::create`] has begun in a process that died.
    pub(in crate::export) fn create_again(
        &self,
        tree: &Tree,
        directory: Located<'_>,
        name: &Name,
        mode: u32,
        owner: Owner,
        made: &Node,
    ) -> Result<Stat, Errno> {
        let kind = libc::S_IFREG;
        let device = 0;
        let file = NewFile::Node { kind, mode, device };
        self.make_again(tree, directory, name, &file, owner, made)
    }

    /// Finishes what [`Mapped::make`] has begun in a process that died.
    pub(in crate::export) fn make_again(
        &self,
        tree: &Tree,
        directory: Located<'_>,
        name: &Name,
        file: &NewFile<'_>,
        owner: Owner,
        made: &Node,
    ) -> Result<Stat, Errno> {
        self.visible(name)?;
        let names = self.names_of(directory.node.id().device);
        let _changing = changing(&names);
        let (attributes, content) = self.stored(tree, directory, file, owner)?;
        let is_directory = matches!(file, NewFile::Directory { .. });
        match (is_directory, made.kind()) {
            (true, FileKind::Directory) => {}
            (false, FileKind::Regular) if content.is_empty() => {}
            (false, FileKind::Regular) => {
                let mut file = File::from(made.reopen(OFlag::O_WRONLY | OFlag::O_TRUNC)?);
                file.write_all(content).map_err(errno_of)?;
            }
            _ => return Err(Errno::EEXIST),
        }
        self.prepare(directory.node)?;
        let directory = directory.node;
        self.keep(made, Place { directory, name }, attributes)
    }

    /// What is stored of a new file: its attributes, and the content of the file that stands for a
    /// symbolic link.
    fn stored<'a>(
        &self,
        tree: &Tree,
        directory: Located<'_>,
        file: &NewFile<'a>,
        owner: Owner,
    ) -> Result<(Attributes, &'a [u8]), Errno> {
        let attributes = |mode| self.new_attributes(tree, directory, mode, owner);
        match *file {
            NewFile::Directory { mode } => Ok((attributes(libc::S_IFDIR | mode & 0o7777)?, b"")),
            NewFile::Node { kind, mode, device } => {
                let mut attributes = attributes(kind | mode & 0o7777)?;
                if matches!(kind, libc::S_IFCHR | libc::S_IFBLK) {
                    // As mknod(2): the kernel's device numbers have 32 bits.
                    u32::try_from(device).map_err(|_| Errno::EINVAL)?;
                    attributes.rdev = Some(device);
                }
                Ok((attributes, b""))
            }
            NewFile::Symlink { target } => {
                // As symlink(2).
                match target.to_bytes().len() as u64 {
                    0 => return Err(Errno::ENOENT),
                    1..=TARGET_MAX => {}
                    _ => return Err(Errno::ENAMETOOLONG),
                }
                Ok((attributes(libc::S_IFLNK | 0o777)?, target.to_bytes()))
            }
        }
    }

    /// The initial attributes of a new file. As on the host, a directory with the set-group-id bit
    /// passes its group to what is created in it, and the bit to directories (inode_init_owner in
    /// Linux).
    fn new_attributes(
        &self,
        tree: &Tree,
        directory: Located<'_>,
        mode: u32,
        owner: Owner,
    ) -> Result<Attributes, Errno> {
        let mut attributes = Attributes {
            uid: (owner.uid != protocol::NONUNAME).then_some(owner.uid),
            gid: (owner.gid != u32::MAX).then_some(owner.gid),
            mode: Some(mode),
            rdev: None,
        };
        let above = self.view(tree, directory)?.0;
        if u32::from(above.stx_mode) & libc::S_ISGID != 0 {
            attributes.gid = Some(above.stx_gid);
            if mode & libc::S_IFMT == libc::S_IFDIR {
                attributes.mode = Some(mode | libc::S_ISGID);
            }
        }
        Ok(attributes)
    }

    fn make_file(
        &self,
        directory: &Node,
        name: &Name,
        flags: OFlag,
        attributes: Attributes,
        content: &[u8],
    ) -> Result<(OwnedFd, Node, Stat), Errno> {
        self.prepare(directory)?;
        let mut file = File::from(directory.create(name, flags, self.modes.file)?);
        let finish = || {
            file.write_all(content).map_err(errno_of)?;
            let fd = OwnedFd::from(file);
            let (node, _) = Node::of_open_file(&fd)?;
            let stat = self.keep(&node, Place { directory, name }, attributes)?;
            Ok((fd, node, stat))
        };
        finish().inspect_err(|_| undo(directory, name, UnlinkatFlags::NoRemoveDir))
    }

    fn make_directory(
        &self,
        directory: &Node,
        name: &Name,
        attributes: Attributes,
    ) -> Result<Stat, Errno> {
        self.prepare(directory)?;
        mkdirat(
            directory,
            name.as_c_str(),
            permissions(self.modes.directory),
        )?;
        let finish = || {
            let (node, _) = directory.child(name, Lookup::Local)?;
            self.keep(&node, Place { directory, name }, attributes)
        };
        finish().inspect_err(|_| undo(directory, name, UnlinkatFlags::RemoveDir))
    }

    fn keep(&self, node: &Node, at: Place<'_>, attributes: Attributes) -> Result<Stat, Errno> {
        self.store.init(node, at, &attributes)?;
        self.lay_over(node, attributes)
    }

    pub(in crate::export) fn readlink(
        &self,
        tree: &Tree,
        file: Located<'_>,
        more: OFlag,
    ) -> Result<Vec<u8>, Errno> {
        let node = file.node;
        match self.stat(tree, file)?.kind() {
            FileKind::Symlink if node.kind() == FileKind::Symlink => host::readlink(node),
            FileKind::Symlink => {
                let mut target = Vec::new();
                File::from(node.reopen(OFlag::O_RDONLY | more)?)
                    .take(TARGET_MAX)
                    .read_to_end(&mut target)
                    .map_err(errno_of)?;
                Ok(target)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    pub(in crate::export) fn link(
        &self,
        tree: &Tree,
        file: Located<'_>,
        directory: &Node,
        name: &Name,
    ) -> Result<(), Errno> {
        self.visible(name)?;
        let names = self.names_of(directory.id().device);
        let _changing = changing(&names);
        match self.store.by_name() {
            Some(names) => names.link(tree, file, Place { directory, name }),
            None => host::link(file.node, directory, name),
        }
    }

    pub(in crate::export) fn rename(
        &self,
        tree: &Tree,
        from: &Node,
        old: &Name,
        to: &Node,
        new: &Name,
    ) -> Result<(), Errno> {
        self.visible(old)?;
        self.visible(new)?;
        // Both are on one file system, or the rename fails.
        let names = self.names_of(to.id().device);
        let _changing = changing(&names);
        let place = |directory, name| Place { directory, name };
        match self.store.by_name() {
            Some(names) => names.rename(tree, place(from, old), place(to, new)),
            None => host::rename(from, old, to, new),
        }
    }

    pub(in crate::export) fn unlink(
        &self,
        tree: &Tree,
        directory: &Node,
        name: &Name,
        flag: UnlinkatFlags,
    ) -> Result<(), Errno> {
        self.visible(name)?;
        let names = self.names_of(directory.id().device);
        let _changing = changing(&names);
        match self.store.by_name() {
            Some(names) => names.unlink(tree, Place { directory, name }, flag),
            None => host::unlink(directory, name, flag),
        }
    }

    /// In the order of the host's models. What the kernel does there with the set-id bits is done
    /// here.
    pub(in crate::export) fn set_attributes(
        &self,
        tree: &Tree,
        file: Located<'_>,
        writable: Option<BorrowedFd<'_>>,
        change: &Change,
        user: u32,
    ) -> Result<(), Errno> {
        let node = file.node;
        let names = self.names_of(node.id().device);
        let changing = changing(&names);
        let before = self.view(tree, file)?;
        let mode = u32::from(before.0.stx_mode);
        let mut changes = Attributes {
            uid: change.uid,
            gid: change.gid,
            ..Attributes::default()
        };
        if let Some(permissions) = change.mode {
            let new = mode & libc::S_IFMT | permissions & 0o7777;
            changes.mode = Some(new);
        } else if change.uid.is_some() || change.gid.is_some() {
            changes.mode = dropped(mode);
        }
        if changes != Attributes::default() {
            self.store.update(tree, file, &changes)?;
        }
        // The rest does not concern names, and a truncation may wait.
        drop(changing);
        if change.touch {
            chown(node, None, None)?;
        }
        if let Some(size) = change.size {
            resize(node, before.kind(), writable, size)?;
            self.drop_set_id(tree, file, user)?;
        }
        change.set_times(node)
    }

    /// Clears the set-id bits of a file that `user` writes.
    pub(in crate::export) fn drop_set_id(
        &self,
        tree: &Tree,
        file: Located<'_>,
        user: u32,
    ) -> Result<(), Errno> {
        // The guest's root has CAP_FSETID.
        if user == ROOT {
            return Ok(());
        }
        let names = self.names_of(file.node.id().device);
        let _changing = changing(&names);
        let mode = self.view(tree, file)?.0.stx_mode.into();
        match dropped(mode) {
            None => Ok(()),
            mode => {
                let changes = Attributes {
                    mode,
                    ..Attributes::default()
                };
                self.store.update(tree, file, &changes)
            }
        }
    }

    /// Whole entries as the guest sees them: without hidden files, and with the kind that the file
    /// has for the guest.
    pub(in crate::export) fn read_directory(
        &self,
        device: Device,
        stream: &DirectoryStream,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Errno> {
        let names = self.names_of(device);
        let _looking = looking(&names);
        let mode_of = self.store.modes_in(stream.as_fd())?;
        let mut offset = offset;
        loop {
            let length = stream.read(offset, buffer)?;
            let records = &mut buffer[..length];
            let Some(last) = directory::entries(records).last() else {
                return Ok(0);
            };
            offset = last.next;
            let left = directory::edit(records, |name, kind| match kind {
                _ if self.hides(name.to_bytes()) => None,
                // If the file system does not tell the kind, the guest asks.
                libc::DT_REG => Some(mode_of(name).map_or(kind, kind_of_entry)),
                kind => Some(kind),
            });
            // An empty result would mean the end.
            if left > 0 {
                return Ok(left);
            }
        }
    }
}

/// The mode after the set-id bits were cleared, if there were any.
fn dropped(mode: u32) -> Option<u32> {
    let left = without_set_id(mode);
    (left != mode).then_some(left)
}

/// `DT_*` of a regular file of the host whose stored mode is this.
fn kind_of_entry(mode: u32) -> u8 {
    match mode & libc::S_IFMT {
        libc::S_IFLNK => libc::DT_LNK,
        libc::S_IFCHR => libc::DT_CHR,
        libc::S_IFBLK => libc::DT_BLK,
        libc::S_IFIFO => libc::DT_FIFO,
        libc::S_IFSOCK => libc::DT_SOCK,
        _ => libc::DT_REG,
    }
}

/// Removes a new file whose attributes cannot be stored.
fn undo(directory: &Node, name: &Name, flag: UnlinkatFlags) {
    if let Err(error) = host::unlink(directory, name, flag) {
        log::warn!("{name:?} could not be finished and is left behind: {error}");
    }
}
