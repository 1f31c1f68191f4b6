//! A file that a request works on.

use std::ops::Deref;
use std::rc::Rc;

use nix::errno::Errno;

use super::Server;
use super::fid::{Fid, Target};
use super::inodes::Inode;
use crate::export::{Located, Name, Node, Place};

/// A pinned file, and where it was seen last if the export finds files by their names.
#[derive(Debug)]
pub struct Held {
    node: Rc<Node>,
    seen: Option<(Rc<Node>, Name)>,
}

impl Held {
    /// The file alone.
    pub fn into_node(self) -> Rc<Node> {
        self.node
    }

    /// As the export's operations take it.
    pub fn located(&self) -> Located<'_> {
        Located {
            node: &self.node,
            seen: self
                .seen
                .as_ref()
                .map(|(directory, name)| Place { directory, name }),
        }
    }
}

impl Deref for Held {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl Server {
    /// The file behind a fid, open or not. Errors: those of [`Server::hold`], EBADF for an
    /// attribute's fid.
    pub(super) fn held(&self, fid: &Fid) -> Result<Held, Errno> {
        let target = fid.target()?;
        let node = match &target {
            Target::Walked(inode) => self.hold(inode)?,
            Target::Open(open) => self.hold_open(open)?,
        };
        Ok(Held {
            node,
            seen: self.seen(target.inode()),
        })
    }

    fn seen(&self, inode: &Inode) -> Option<(Rc<Node>, Name)> {
        if !self.export.goes_by_names() {
            return None;
        }
        let place = inode.place()?;
        let directory = self.hold(&place.directory).ok()?;
        Some((directory, Name::for_new(&place.name).ok()?))
    }
}
