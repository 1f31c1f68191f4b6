//! The directory that is shared, and where a file is below it.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlink};

use super::name::Name;
use super::node::{Lookup, Node};

/// The files of an export, as they are on the host.
#[derive(Debug)]
pub struct Tree {
    root: Node,
}

impl Tree {
    /// The tree below this directory.
    pub fn new(root: Node) -> Tree {
        Tree { root }
    }

    /// The top directory.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// Finds where a pinned inode is now: its directory and its name there. Messages that name a
    /// file by its fid but act on its name (Tremove, Trename) need it. Errors: ENOENT if it has no
    /// name below the root any more, EBUSY for the root itself.
    pub fn locate(&self, node: &Node) -> Result<(Node, Name), Errno> {
        if node.id() == self.root.id() {
            return Err(Errno::EBUSY);
        }
        let path = readlink(node.proc_path().as_c_str())?;
        let root = readlink(self.root.proc_path().as_c_str())?;
        let below = Path::new(&path)
            .strip_prefix(&root)
            .map_err(|_| Errno::ENOENT)?;
        let name = below.file_name().ok_or(Errno::ENOENT)?;
        let name = Name::for_new(name.as_bytes())?;
        let above = match below.parent() {
            Some(above) if above != Path::new("") => above,
            _ => Path::new("."),
        };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let (directory, _) = Node::new(openat2(&self.root, above, how)?)?;
        // The kernel's text may be outdated by now, or end in " (deleted)": trust only the inode.
        match directory.child(&name, Lookup::Blocking) {
            Ok((found, _)) if found.id() == node.id() => Ok((directory, name)),
            Ok(_) | Err(Errno::ENOENT) => Err(Errno::ENOENT),
            Err(error) => Err(error),
        }
    }
}
