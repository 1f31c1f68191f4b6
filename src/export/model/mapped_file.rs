//! The model mapped-file: attributes in text files beside the host files.
//!
//! The attributes of `DIR/NAME` are in `DIR/.virtfs_metadata/NAME`, those of the share's root in
//! `.virtfs_metadata_root` there; hard links of a file share one by hard links. One line for each
//! attribute, the numbers decimal and as a C int prints:
//!
//! ```text
//! virtfs.uid=1000
//! virtfs.gid=1000
//! virtfs.mode=25008
//! virtfs.rdev=2049
//! ```
//!
//! Attributes belong to names here: whatever is done to a name is done to its metadata as well. The
//! guest can neither see nor reach these files. (hw/9pfs/9p-local.c in QEMU.)

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, renameat};
use nix::sys::stat::{FileStat, Mode, fstatat, major, minor, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::attributes::Attributes;
use super::change::chown;
use super::host;
use super::mapped::{ByName, ModeOf, Store};
use super::metadata::{LONGEST, Orphans, format, parse};
use super::xattrs::Xattrs;
use crate::export::directory::{DirectoryStream, entries};
use crate::export::name::Name;
use crate::export::node::{FileKind, InodeId, Lookup, Node, Stat, errno_of};
use crate::export::place::{Located, Place};
use crate::export::tree::Tree;

/// Holds the metadata of the files beside it.
const DIRECTORY: &CStr = c".virtfs_metadata";
/// Holds the metadata of the share's root, in it.
const ROOT: &CStr = c".virtfs_metadata_root";

/// Attributes in text files.
#[derive(Debug, Default)]
pub(super) struct MappedFile {
    orphans: Mutex<Orphans>,
}

/// Where a file is now.
// It lives on the stack during one lookup.
#[allow(clippy::large_enum_variant)]
enum Found<'a> {
    Root,
    /// Where it was last seen.
    Seen(Place<'a>),
    Elsewhere(Node, Name),
    /// It has lost its name.
    Nowhere,
}

impl Found<'_> {
    /// The place whose metadata it has, if it has a place.
    fn place(&self) -> Option<Place<'_>> {
        match self {
            Found::Seen(place) => Some(*place),
            Found::Elsewhere(directory, name) => Some(Place { directory, name }),
            Found::Root | Found::Nowhere => None,
        }
    }
}

impl MappedFile {
    fn orphans(&self) -> MutexGuard<'_, Orphans> {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the attributes of a file that is about to lose its name and may still be in use.
    fn farewell(&self, node: &Node, attributes: Attributes) {
        if attributes != Attributes::default() {
            self.orphans().insert(*node.key(), attributes);
        }
    }
}

impl Store for MappedFile {
    fn supported(&self, _: &Node) -> Result<(), Errno> {
        Ok(())
    }

    fn xattrs(&self) -> Xattrs {
        Xattrs::User
    }

    fn load(&self, tree: &Tree, file: Located<'_>) -> Result<Attributes, Errno> {
        let found = find(tree, file)?;
        match found.place() {
            Some(at) => load(at),
            None if matches!(found, Found::Root) => read(tree.root(), ROOT),
            None => Ok(self.orphans().get(file.node.key()).unwrap_or_default()),
        }
    }

    fn load_at(&self, _: &Node, at: Place<'_>) -> Result<Attributes, Errno> {
        load(at)
    }

    fn init(&self, node: &Node, at: Place<'_>, attributes: &Attributes) -> Result<(), Errno> {
        self.orphans().forget(node.key());
        let metadata = metadata(at.directory)?.ok_or(Errno::ENOTDIR)?;
        replace(&metadata, at.name.as_c_str(), attributes)
    }

    fn update(&self, tree: &Tree, file: Located<'_>, changes: &Attributes) -> Result<(), Errno> {
        let key = file.node.key();
        if let Some(kept) = self.orphans().get_mut(key) {
            *kept = changes.over(*kept);
        }
        let found = find(tree, file)?;
        match found.place() {
            Some(at) => update(file.node, at, changes)?,
            None if matches!(found, Found::Root) => {
                let attributes = changes.over(read(tree.root(), ROOT)?);
                write(tree.root(), ROOT, &attributes)?;
            }
            None => {
                let mut orphans = self.orphans();
                if orphans.get(key).is_none() {
                    orphans.insert(*key, *changes);
                }
            }
        }
        // The file itself was not touched, but its change time has to move.
        chown(file.node, None, None)
    }

    fn modes_in<'a>(&'a self, directory: BorrowedFd<'a>) -> Result<ModeOf<'a>, Errno> {
        Ok(match metadata(directory)? {
            Some(metadata) => Box::new(move |name| read(&metadata, name).ok()?.mode),
            None => Box::new(|_| None),
        })
    }

    fn by_name(&self) -> Option<&dyn ByName> {
        Some(self)
    }
}

impl ByName for MappedFile {
    fn prepare(&self, directory: &Node) -> Result<(), Errno> {
        prepare(directory)
    }

    fn link(&self, tree: &Tree, file: Located<'_>, to: Place<'_>) -> Result<(), Errno> {
        self.prepare(to.directory)?;
        host::link(file.node, to.directory, to.name)?;
        let carry = || match find(tree, file)?.place() {
            Some(from) => link_metadata(from, to),
            None => {
                let kept = self.orphans().get(file.node.key()).unwrap_or_default();
                let metadata = metadata(to.directory)?.ok_or(Errno::ENOTDIR)?;
                replace(&metadata, to.name.as_c_str(), &kept)
            }
        };
        carry().inspect_err(|_| {
            let _ = host::unlink(to.directory, to.name, UnlinkatFlags::NoRemoveDir);
        })
    }

    fn rename(&self, tree: &Tree, from: Place<'_>, to: Place<'_>) -> Result<(), Errno> {
        let (moved, _) = named(from)?;
        let replaced = match named(to) {
            Ok((node, _)) => Some((node, load(to)?)),
            Err(Errno::ENOENT) => None,
            Err(error) => return Err(error),
        };
        if self.owns(tree, &moved, from.directory)? {
            return Err(Errno::ENOENT);
        }
        if let Some((node, _)) = &replaced {
            if self.owns(tree, node, to.directory)? {
                return Err(Errno::ENOENT);
            }
            // Two names of one file: nothing happens, or only their case changes.
            if node.id() == moved.id() {
                return host::rename(from.directory, from.name, to.directory, to.name);
            }
            if node.kind() == FileKind::Directory {
                self.strip(node)?;
            }
        }
        self.prepare(to.directory)?;
        host::rename(from.directory, from.name, to.directory, to.name)?;
        if let Err(error) = move_metadata(from, to) {
            if replaced.is_none() {
                let _ = host::rename(to.directory, to.name, from.directory, from.name);
            }
            return Err(error);
        }
        if let Some((node, attributes)) = replaced {
            self.farewell(&node, attributes);
        }
        Ok(())
    }

    fn unlink(&self, tree: &Tree, at: Place<'_>, flag: UnlinkatFlags) -> Result<(), Errno> {
        let (node, _) = named(at)?;
        if self.owns(tree, &node, at.directory)? {
            return Err(Errno::ENOENT);
        }
        let attributes = load(at)?;
        if matches!(flag, UnlinkatFlags::RemoveDir) && node.kind() == FileKind::Directory {
            self.strip(&node)?;
        }
        host::unlink(at.directory, at.name, flag)?;
        self.farewell(&node, attributes);
        match metadata(at.directory)? {
            Some(metadata) => remove(&metadata, at.name.as_c_str()),
            None => Ok(()),
        }
    }

    fn hides(&self, name: &[u8]) -> bool {
        // FAT and other file systems without extended attributes may not distinguish case.
        [DIRECTORY, ROOT]
            .iter()
            .any(|own| name.eq_ignore_ascii_case(own.to_bytes()))
    }

    fn owns(&self, tree: &Tree, node: &Node, directory: &Node) -> Result<bool, Errno> {
        // Such file systems have other aliases for a file as well (VIRTFS~1).
        let own = match node.kind() {
            FileKind::Directory => DIRECTORY,
            FileKind::Regular if directory.id() == tree.root().id() => ROOT,
            _ => return Ok(false),
        };
        Ok(look(directory, own)?.is_some_and(|stat| id(&stat) == node.id()))
    }

    fn hidden_links(&self, directory: &Node) -> u32 {
        match look(directory, DIRECTORY) {
            Ok(Some(stat)) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => 1,
            _ => 0,
        }
    }
}

impl MappedFile {
    /// Removes the hidden files of a directory that contains nothing else, so that it can be
    /// removed. Errors: ENOTEMPTY if it contains something else.
    fn strip(&self, directory: &Node) -> Result<(), Errno> {
        let mut hidden = Vec::new();
        each_name(directory.reopen(OFlag::O_RDONLY)?, |name| {
            if !self.hides(name.to_bytes()) {
                return Err(Errno::ENOTEMPTY);
            }
            hidden.push(name.to_owned());
            Ok(())
        })?;
        for name in hidden {
            match open_below(directory, &name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)? {
                Some(metadata) => {
                    let mut files = Vec::new();
                    each_name(metadata.try_clone().map_err(errno_of)?, |name| {
                        files.push(name.to_owned());
                        Ok(())
                    })?;
                    for file in files {
                        remove(&metadata, &file)?;
                    }
                    unlinkat(directory, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
                }
                None => remove(directory, &name)?,
            }
        }
        Ok(())
    }
}

/// The file whose name is about to change. Errors: EBUSY for a mount point, as the kernel would
/// answer, without asking what is mounted there; those of openat2(2).
fn named(at: Place<'_>) -> Result<(Node, Stat), Errno> {
    match at.directory.child(at.name, Lookup::Local) {
        Err(Errno::EAGAIN) => Err(Errno::EBUSY),
        result => result,
    }
}

/// Finds where a file is now.
fn find<'a>(tree: &Tree, file: Located<'a>) -> Result<Found<'a>, Errno> {
    let node = file.node;
    if node.id() == tree.root().id() {
        return Ok(Found::Root);
    }
    if let Some(place) = file.seen {
        if place.directory.child_key(place.name) == Ok(*node.key()) {
            return Ok(Found::Seen(place));
        }
    }
    match tree.locate(node) {
        Ok((directory, name)) => Ok(Found::Elsewhere(directory, name)),
        // The kernel tells no path that is longer than a page.
        Err(Errno::ENOENT | Errno::ENAMETOOLONG) => Ok(Found::Nowhere),
        Err(error) => Err(error),
    }
}

/// Pins the metadata directory beside the files of `directory`, if there is one.
fn metadata(directory: impl AsFd) -> Result<Option<OwnedFd>, Errno> {
    open_below(directory, DIRECTORY, OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// The stored attributes of a name.
fn load(at: Place<'_>) -> Result<Attributes, Errno> {
    let path = [DIRECTORY.to_bytes(), at.name.as_bytes()].join(&b'/');
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    read(at.directory, &path)
}

/// Stores some attributes of a file and keeps the others.
fn update(node: &Node, at: Place<'_>, changes: &Attributes) -> Result<(), Errno> {
    let attributes = changes.over(load(at)?);
    prepare(at.directory)?;
    let metadata = metadata(at.directory)?.ok_or(Errno::ENOTDIR)?;
    let name = at.name.as_c_str();
    let shared = look(&metadata, name)?.is_some_and(|stat| stat.st_nlink > 1);
    if shared && node.stat()?.0.stx_nlink == 1 {
        // The host has replaced the file: the metadata is another file's as well.
        replace(&metadata, name, &attributes)
    } else {
        write(&metadata, name, &attributes)
    }
}

/// Creates the metadata directory beside the files of `directory`, unless it exists.
fn prepare(directory: &Node) -> Result<(), Errno> {
    match mkdirat(directory, DIRECTORY, Mode::S_IRWXU) {
        Err(Errno::EEXIST) => Ok(()),
        result => result,
    }
}

/// Opens a file that the host may have put there, without following a link or waiting for a fifo.
/// None: it does not exist.
fn open_below(directory: impl AsFd, path: &CStr, flags: OFlag) -> Result<Option<OwnedFd>, Errno> {
    let mut how = OpenHow::new()
        .flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    if flags.contains(OFlag::O_CREAT) {
        how = how.mode(Mode::S_IRUSR | Mode::S_IWUSR);
    }
    match openat2(&directory, path, how) {
        Ok(fd) => Ok(Some(fd)),
        // A lease: this is a regular file, so wait for the release.
        Err(Errno::EAGAIN) if flags.contains(OFlag::O_NONBLOCK) => {
            let pinned = open_below(directory.as_fd(), path, OFlag::O_PATH)?;
            let Some((node, _)) = pinned.map(Node::new).transpose()? else {
                return Ok(None);
            };
            let access = flags & OFlag::O_ACCMODE;
            node.reopen(access).map(Some)
        }
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The attributes in a metadata file; none if it does not exist.
fn read(directory: impl AsFd, path: &CStr) -> Result<Attributes, Errno> {
    let Some(fd) = open_below(directory, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)? else {
        return Ok(Attributes::default());
    };
    let file = File::from(fd);
    if !file.metadata().map_err(errno_of)?.is_file() {
        return Ok(Attributes::default());
    }
    let mut text = [0; LONGEST];
    let length = file.read_at(&mut text, 0).map_err(errno_of)?;
    Ok(parse(&text[..length]))
}

/// Writes a metadata file in place: hard links share it.
fn write(directory: impl AsFd, path: &CStr, attributes: &Attributes) -> Result<(), Errno> {
    write_with(directory, path, attributes, OFlag::O_CREAT)
}

/// Creates a new metadata file and replaces any other.
fn replace(directory: impl AsFd, path: &CStr, attributes: &Attributes) -> Result<(), Errno> {
    remove(&directory, path)?;
    if *attributes == Attributes::default() {
        return Ok(());
    }
    write_with(directory, path, attributes, OFlag::O_CREAT | OFlag::O_EXCL)
}

fn write_with(
    directory: impl AsFd,
    path: &CStr,
    attributes: &Attributes,
    flags: OFlag,
) -> Result<(), Errno> {
    let flags = flags | OFlag::O_WRONLY | OFlag::O_NONBLOCK;
    // Something is there that is not a metadata file.
    let file = File::from(open_below(directory, path, flags)?.ok_or(Errno::EIO)?);
    if !file.metadata().map_err(errno_of)?.is_file() {
        return Err(Errno::EIO);
    }
    let text = format(attributes);
    file.write_all_at(text.as_bytes(), 0)
        .and_then(|()| file.set_len(text.len() as u64))
        .map_err(errno_of)
}

/// Removes a metadata file, if it exists.
fn remove(directory: impl AsFd, name: &CStr) -> Result<(), Errno> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::ENOENT) => Ok(()),
        result => result,
    }
}

/// Shares a file's metadata with its second name.
fn link_metadata(from: Place<'_>, to: Place<'_>) -> Result<(), Errno> {
    let there = metadata(to.directory)?.ok_or(Errno::ENOTDIR)?;
    let (old, new) = (from.name.as_c_str(), to.name.as_c_str());
    remove(&there, new)?;
    match metadata(from.directory)? {
        None => Ok(()),
        Some(here) => match linkat(here, old, there, new, AtFlags::empty()) {
            Err(Errno::ENOENT) => Ok(()),
            result => result,
        },
    }
}

/// Moves metadata with its file.
fn move_metadata(from: Place<'_>, to: Place<'_>) -> Result<(), Errno> {
    let there = metadata(to.directory)?.ok_or(Errno::ENOTDIR)?;
    let (old, new) = (from.name.as_c_str(), to.name.as_c_str());
    let Some(here) = metadata(from.directory)? else {
        return remove(&there, new);
    };
    match renameat(&here, old, &there, new) {
        // Nothing happens if both are one file.
        Ok(()) => remove(&here, old),
        Err(Errno::ENOENT) => remove(&there, new),
        Err(error) => Err(error),
    }
}

/// The attributes of the file with this name in a directory, if it exists.
fn look(directory: impl AsFd, name: &CStr) -> Result<Option<FileStat>, Errno> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn id(stat: &FileStat) -> InodeId {
    InodeId {
        // The kernel's device numbers have 12 and 20 bits.
        device: (major(stat.st_dev) as u32, minor(stat.st_dev) as u32),
        inode: stat.st_ino,
    }
}

/// Calls `f` with every name in a directory, except `.` and `..`, until it fails.
fn each_name(
    directory: OwnedFd,
    mut f: impl FnMut(&CStr) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let stream = DirectoryStream::new(directory);
    let mut records = vec![0; 32 * 1024];
    let mut offset = 0;
    loop {
        let length = stream.read(offset, &mut records)?;
        if length == 0 {
            return Ok(());
        }
        for entry in entries(&records[..length]) {
            offset = entry.next;
            if !matches!(entry.name, b"." | b"..") {
                f(&CString::new(entry.name).map_err(|_| Errno::EINVAL)?)?;
            }
        }
    }
}
