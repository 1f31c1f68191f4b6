//! The close of files. It may wait for a server or free a large file, so it is made where a call of
//! its cost is made, never by a drop.
//!
//! Whoever is the last to have an open file or a description with locks drops a [`Closing`], which
//! leaves the descriptor here; the request closes it that drops it, or the next that ends.

use std::cell::RefCell;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::sys::stat::fstat;

use super::Server;
use super::handle::Handle;
use super::inodes::{Inode, OpenDescriptor};
use super::placement::{Cost, Device, Medium};
use crate::export::{InodeId, Node};

/// What a file has at least whose end takes a worker's time: to free so much takes less than
/// a call may take on the loop.
const LARGE: u64 = 8 << 20;
/// Bytes in a block, as stat(2) counts them.
const BLOCK: u64 = 512;

/// Whether to end a file of so many blocks may take long, if it has lost its last name by then.
pub fn is_large(blocks: u64) -> bool {
    blocks >= LARGE / BLOCK
}

/// Descriptors that nobody has any more and that are not closed yet.
#[derive(Debug, Default)]
pub struct Leaving(RefCell<Vec<Left>>);

/// What only the close is left to be done with.
#[derive(Debug)]
struct Left {
    what: What,
    device: Device,
    /// Held as long as the file: to drop it may be what ends the file.
    inode: Option<Rc<Inode>>,
    _counted: Option<OpenDescriptor>,
}

/// A descriptor that is not closed yet.
#[derive(Debug)]
pub enum What {
    /// It is.
    Closed,
    /// An open file.
    File(Handle),
    /// A description for locks, of which it has none any more.
    Description(OwnedFd),
    /// What was locked through an open file that is one no more.
    Locks(InodeId),
    /// Nothing to wait for, but it may be the last of the file. A request may have it still.
    Pin(Rc<Node>),
}

/// What a close can be left with.
pub trait Closable {
    /// As it is left.
    fn left(self) -> What;
}

impl Closable for Handle {
    fn left(self) -> What {
        What::File(self)
    }
}

/// A description for locks.
impl Closable for OwnedFd {
    fn left(self) -> What {
        What::Description(self)
    }
}

/// A descriptor whose close may wait; it is not closed when this is dropped, but left to
/// [`Server::close_left`].
#[derive(Debug)]
pub struct Closing<T: Closable> {
    value: Option<T>,
    device: Device,
    inode: Option<Rc<Inode>>,
    counted: Option<OpenDescriptor>,
    leaving: Rc<Leaving>,
}

impl<T: Closable> Closing<T> {
    /// A descriptor of a file on `device`.
    pub fn new(value: T, device: Device, counted: OpenDescriptor, leaving: Rc<Leaving>) -> Self {
        Closing {
            value: Some(value),
            device,
            inode: None,
            counted: Some(counted),
            leaving,
        }
    }

    /// The file is this one.
    pub fn of(mut self, inode: Rc<Inode>) -> Self {
        self.inode = Some(inode);
        self
    }
}

impl Closing<Handle> {
    /// What was locked through it is to be freed.
    pub fn leave_locks(&self, inode: InodeId) {
        self.leaving.0.borrow_mut().push(Left {
            what: What::Locks(inode),
            device: inode.device,
            inode: None,
            _counted: None,
        });
    }
}

impl<T: Closable> Deref for Closing<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("it is there until the drop")
    }
}

impl<T: Closable> Drop for Closing<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.leaving.0.borrow_mut().push(Left {
                what: value.left(),
                device: self.device,
                inode: self.inode.take(),
                _counted: self.counted.take(),
            });
        }
    }
}

impl Leaving {
    /// The pinned file may have lost its last name, and this may be the last descriptor of it.
    pub fn unpin(&self, node: Rc<Node>) {
        self.0.borrow_mut().push(Left {
            device: node.id().device,
            what: What::Pin(node),
            inode: None,
            _counted: None,
        });
    }

    fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Those from the place `first` on that nobody has any more.
    fn take_from(&self, first: usize) -> Vec<Left> {
        let mut list = self.0.borrow_mut();
        let first = first.min(list.len());
        let mut taken = list.split_off(first);
        if !taken.iter().all(Left::is_unused) {
            let (unused, used) = taken.into_iter().partition(Left::is_unused);
            list.extend::<Vec<_>>(used);
            taken = unused;
        }
        taken
    }

    /// Those of one device that nobody has any more; the others are another request's, which may
    /// be faster.
    fn take_some(&self) -> Vec<Left> {
        let mut list = self.0.borrow_mut();
        let Some(device) = list
            .iter()
            .rfind(|left| left.is_unused())
            .map(|left| left.device)
        else {
            return Vec::new();
        };
        list.extract_if(.., |left| left.device == device && left.is_unused())
            .collect()
    }
}

impl Left {
    fn is_unused(&self) -> bool {
        match &self.what {
            What::Pin(node) => Rc::strong_count(node) == 1,
            _ => true,
        }
    }

    /// What its close asks of a file system that is not remote.
    fn cost(&self) -> Cost {
        match &self.what {
            What::File(Handle::File(file)) => {
                let plain = match file.writable {
                    true => Cost::Change,
                    false => Cost::Held,
                };
                self.cost_of_end(&file.fd, plain)
            }
            What::Description(description) => self.cost_of_end(description, Cost::Held),
            What::Pin(node) => self.cost_of_end(&**node, Cost::Held),
            What::File(Handle::Directory(_)) | What::Locks(_) | What::Closed => Cost::Held,
        }
    }

    fn cost_of_end(&self, file: impl AsFd, plain: Cost) -> Cost {
        let Ok(stat) = fstat(file) else {
            return plain;
        };
        let blocks = stat.st_blocks as u64;
        if let Some(inode) = &self.inode {
            // Its own descriptor may be the last.
            inode.note_size(blocks);
        }
        match stat.st_nlink {
            0 if is_large(blocks) => Cost::Wait,
            0 => Cost::Change,
            _ => plain,
        }
    }

    fn take(&mut self) -> Option<Closed> {
        match std::mem::replace(&mut self.what, What::Closed) {
            What::Closed | What::Locks(_) => None,
            What::File(handle) => Some(Closed::File(handle)),
            What::Description(description) => Some(Closed::Description(description)),
            What::Pin(node) => Rc::into_inner(node).map(Closed::Pin),
        }
    }
}

/// What a worker can drop.
#[allow(dead_code, reason = "they are dropped, and nothing else")]
enum Closed {
    File(Handle),
    Description(OwnedFd),
    Pin(Node),
}

impl Server {
    /// Drops a value, a fid that the guest has given back, and closes what it leaves.
    pub(super) fn let_go<T>(&self, value: T) {
        let leaving = self.session.inodes.leaving();
        // Its own, and none that another request waits for.
        let first = leaving.len();
        drop(value);
        if leaving.len() > first {
            self.close(leaving.take_from(first));
        }
    }

    /// Closes the files that were let go and that no request has any more. To be called when a
    /// request has ended.
    #[inline]
    pub(super) fn close_left(&self) {
        if self.session.inodes.leaving().len() > 0 {
            self.close_unused();
        }
    }

    fn close_unused(&self) {
        loop {
            match self.session.inodes.leaving().take_some() {
                some if some.is_empty() => return,
                some => self.close(some),
            }
        }
    }

    fn close(&self, mut list: Vec<Left>) {
        while let Some(device) = list.last().map(|left| left.device) {
            let mut now = list;
            list = match now.iter().all(|left| left.device == device) {
                true => Vec::new(),
                false => now.extract_if(.., |left| left.device != device).collect(),
            };
            let leaving = self.session.inodes.leaving();
            self.close_on(device, &mut now);
            let first = leaving.len();
            // With their inodes, which may leave something, too.
            drop(now);
            list.extend(leaving.take_from(first));
        }
    }

    fn close_on(&self, device: Device, list: &mut [Left]) {
        for left in &*list {
            if let What::Locks(inode) = left.what {
                self.free_locks_of_closed(inode);
            }
        }
        let on = self.placement.file_system(device);
        let is_remote = on.medium() == Medium::Remote;
        let mut cost = Cost::Held;
        // What is remote goes to a worker whatever it costs, and is not asked here.
        for left in list.iter().filter(|_| !is_remote) {
            cost = match (cost, left.cost()) {
                (Cost::Wait, _) | (_, Cost::Wait) => Cost::Wait,
                (Cost::Change, _) | (_, Cost::Change) => Cost::Change,
                _ => Cost::Held,
            };
        }
        let closed: Vec<Closed> = list.iter_mut().filter_map(Left::take).collect();
        if !closed.is_empty() {
            self.placement.call(&on, cost, move || drop(closed));
        }
    }
}
