//! A file that a request works on.

use std::ops::Deref;
use std::os::fd::AsFd;
use std::rc::Rc;

use nix::errno::Errno;

use super::Server;
use super::call::Actor;
use super::fid::{Fid, OpenFile, Target};
use super::inodes::Inode;
use super::placement::{Cost, Site};
use crate::export::handle::InodeLocator;
use crate::export::{DEEPEST, InodeKey, Located, Name, Node, Place};

/// A pinned file, and where it was last seen if the export finds files by their names.
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

    /// The inode's pinned file. Finds it again if its descriptor was evicted. Errors: ESTALE if the
    /// host has removed it, or moved it where it cannot be found.
    pub(super) fn hold(&self, inode: &Rc<Inode>) -> Result<Rc<Node>, Errno> {
        match inode.held() {
            Some(node) => Ok(node),
            None => {
                let keeps = self.room().is_ok();
                let node = self.with_descriptors(|| match inode.held() {
                    // Another request was first, while this one waited for a descriptor.
                    Some(node) => Ok(node),
                    None => {
                        let mut steps = DEEPEST;
                        Ok(self.found_again(inode, self.find(inode, &mut steps)?, keeps))
                    }
                })?;
                self.evict_if_needed();
                Ok(node)
            }
        }
    }

    /// The pinned file of an open one. Its own descriptor always leads there.
    pub(super) fn hold_open(&self, open: &OpenFile) -> Result<Rc<Node>, Errno> {
        if let Some(node) = open.inode.held() {
            return Ok(node);
        }
        let keeps = self.room().is_ok();
        let (device, fd) = (open.inode.key().id.device, open.handle.as_fd());
        let (node, _) = self.with_descriptors(|| {
            self.call(device, Cost::Held, Actor::Daemon, || Node::of_open_file(fd))
        })?;
        Ok(self.found_again(&open.inode, node, keeps))
    }

    /// Pins a file that was found again. If there is no room for another descriptor, only the
    /// request keeps it.
    fn found_again(&self, inode: &Rc<Inode>, node: Node, keeps: bool) -> Rc<Node> {
        match keeps {
            true => self.session.inodes.hold(inode, node),
            false => inode.held().unwrap_or_else(|| Rc::new(node)),
        }
    }

    /// Follows the inode's locator, and before it those of the directories that it depends on. What
    /// is opened on the way is not kept. Errors: ENAMETOOLONG if that takes more than `steps`,
    /// which it reduces by its own; EINTR if it takes many and the session is to end.
    pub(super) fn find(&self, inode: &Rc<Inode>, steps: &mut usize) -> Result<Node, Errno> {
        // From the inode up to the first that is found without a directory.
        let mut chain = Vec::new();
        let mut top = None;
        let mut remote = false;
        let mut next = Some(inode.clone());
        while let Some(inode) = next.take() {
            remote |= self.placement.is_remote(inode.key().id.device);
            let Some(locator) = inode.locator() else {
                top = inode.peek();
                break;
            };
            *steps = steps.checked_sub(1).ok_or(Errno::ENAMETOOLONG)?;
            let mut name = None;
            if let InodeLocator::Name(_) = *locator {
                if let Some(place) = inode.place() {
                    name = Name::for_new(&place.name).ok();
                    next = Some(place.directory);
                }
            }
            chain.push((locator, *inode.key(), name));
        }
        let locators = self.export.locators();
        let links: Vec<(&InodeLocator, &InodeKey, Option<&Name>)> = chain
            .iter()
            .rev()
            .map(|(locator, key, name)| (&**locator, key, name.as_ref()))
            .collect();
        let (top, stopping) = (top.as_deref(), self.session.requests.stopping());
        let follow = || locators.follow_all(top, links, stopping);
        let site = match remote {
            true => Site::Remote,
            false => Site::Worker,
        };
        self.placement.call_at(site, follow)
    }
}
