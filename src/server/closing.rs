//! Closing files. A close may wait for a server or free a large file, so it runs where a call of
//! its cost runs, never in a `drop`.
//!
//! The last owner of an open file, or of a description with locks, drops a [`Closing`], which
//! queues the descriptor here. The request that dropped it closes it, or the next request that
//! ends.

use std::cell::RefCell;
use std::mem::take;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::sys::stat::fstat;

use super::Server;
use super::handle::Handle;
use super::inodes::{Inode, OpenDescriptor};
use super::placement::{Cost, Device, Medium};
use crate::export::{InodeId, Node};

/// The size from which a worker frees a file: freeing less takes no longer than a call may take on
/// the loop.
const LARGE: u64 = 8 << 20;
/// Bytes in a block, as stat(2) counts them.
const BLOCK: u64 = 512;

/// Whether freeing a file of this many blocks may take long, once its last name is gone.
pub fn is_large(blocks: u64) -> bool {
    blocks >= LARGE / BLOCK
}

/// Descriptors that have no owner any more and are not closed yet.
#[derive(Debug, Default)]
pub struct CloseQueue(RefCell<Vec<PendingClose>>);

/// One descriptor to close.
#[derive(Debug)]
struct PendingClose {
    what: What,
    device: Device,
    /// Kept until the file is closed: dropping the inode may free the file.
    inode: Option<Rc<Inode>>,
    _counted: Option<OpenDescriptor>,
}

/// A descriptor that is to be closed.
#[derive(Debug)]
pub enum What {
    /// It is closed.
    Closed,
    /// An open file.
    File(Handle),
    /// A description whose locks are gone.
    Description(OwnedFd),
    /// The locks that were taken through a file that is closed.
    Locks(InodeId),
    /// An `O_PATH` descriptor: closing it does not wait, but it may be the file's last. A request
    /// may still use it.
    Pin(Rc<Node>),
}

/// A value that ends with a close.
pub trait Closable {
    /// What to close.
    fn left(self) -> What;
}

impl Closable for Handle {
    fn left(self) -> What {
        What::File(self)
    }
}

/// A description that holds locks.
impl Closable for OwnedFd {
    fn left(self) -> What {
        What::Description(self)
    }
}

/// A descriptor whose close may wait. Dropping this queues it for [`Server::close_pending`].
#[derive(Debug)]
pub struct Closing<T: Closable> {
    value: Option<T>,
    device: Device,
    inode: Option<Rc<Inode>>,
    counted: Option<OpenDescriptor>,
    close_queue: Rc<CloseQueue>,
}

impl<T: Closable> Closing<T> {
    /// A descriptor of a file on `device`.
    pub fn new(
        value: T,
        device: Device,
        counted: OpenDescriptor,
        close_queue: Rc<CloseQueue>,
    ) -> Self {
        Closing {
            value: Some(value),
            device,
            inode: None,
            counted: Some(counted),
            close_queue,
        }
    }

    /// Names the file's inode.
    pub fn of(mut self, inode: Rc<Inode>) -> Self {
        self.inode = Some(inode);
        self
    }
}

impl Closing<Handle> {
    /// Queues the release of the locks that were taken through the file.
    pub fn leave_locks(&self, inode: InodeId) {
        self.close_queue.0.borrow_mut().push(PendingClose {
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
            self.close_queue.0.borrow_mut().push(PendingClose {
                what: value.left(),
                device: self.device,
                inode: self.inode.take(),
                _counted: self.counted.take(),
            });
        }
    }
}

impl CloseQueue {
    /// The pinned file may have lost its last name, and this may be its last descriptor.
    pub fn unpin(&self, node: Rc<Node>) {
        self.0.borrow_mut().push(PendingClose {
            device: node.id().device,
            what: What::Pin(node),
            inode: None,
            _counted: None,
        });
    }

    fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// Takes the entries from `first` on that have no owner.
    fn take_from(&self, first: usize) -> Vec<PendingClose> {
        let mut list = self.0.borrow_mut();
        let first = first.min(list.len());
        let mut taken = list.split_off(first);
        if !taken.iter().all(PendingClose::is_unused) {
            let (unused, used) = taken.into_iter().partition(PendingClose::is_unused);
            list.extend::<Vec<_>>(used);
            taken = unused;
        }
        taken
    }

    /// Takes the entries of one device that have no owner. Those of other devices are left to
    /// another request, which may be faster.
    fn take_some(&self) -> Vec<PendingClose> {
        let mut list = self.0.borrow_mut();
        let Some(device) = list
            .iter()
            .rfind(|left| left.is_unused())
            .map(|left| left.device)
        else {
            return Vec::new();
        };
        let is_meant = |left: &PendingClose| left.device == device && left.is_unused();
        let (taken, kept) = take(&mut *list).into_iter().partition(is_meant);
        *list = kept;
        taken
    }
}

impl PendingClose {
    fn is_unused(&self) -> bool {
        match &self.what {
            What::Pin(node) => Rc::strong_count(node) == 1,
            _ => true,
        }
    }

    /// The cost of the close on a file system that is not remote.
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
            // The inode's own descriptor may be the last.
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

/// What a worker drops.
#[allow(dead_code, reason = "they are dropped, and nothing else")]
enum Closed {
    File(Handle),
    Description(OwnedFd),
    Pin(Node),
}

impl Server {
    /// Drops a value, such as a fid that the guest has clunked, and closes what it owned.
    pub(super) fn release<T>(&self, value: T) {
        let close_queue = self.session.inodes.close_queue();
        // Only what this value owned: another request may wait for the rest.
        let first = close_queue.len();
        drop(value);
        if close_queue.len() > first {
            self.close(close_queue.take_from(first));
        }
    }

    /// Closes the files that were released and that no request uses any more. Call it when a
    /// request has ended.
    #[inline]
    pub(super) fn close_pending(&self) {
        if self.session.fids.are_ending() {
            self.release(self.session.fids.ending());
        }
        if self.session.inodes.close_queue().len() > 0 {
            self.close_unused();
        }
    }

    fn close_unused(&self) {
        loop {
            match self.session.inodes.close_queue().take_some() {
                some if some.is_empty() => return,
                some => self.close(some),
            }
        }
    }

    fn close(&self, mut list: Vec<PendingClose>) {
        while let Some(device) = list.last().map(|left| left.device) {
            let is_there = |left: &PendingClose| left.device == device;
            let (mut now, others) = match list.iter().all(is_there) {
                true => (list, Vec::new()),
                false => list.into_iter().partition(is_there),
            };
            list = others;
            let close_queue = self.session.inodes.close_queue();
            self.close_on(device, &mut now);
            let first = close_queue.len();
            // Dropping their inodes may queue more.
            drop(now);
            list.extend(close_queue.take_from(first));
        }
    }

    fn close_on(&self, device: Device, list: &mut [PendingClose]) {
        for left in &*list {
            if let What::Locks(inode) = left.what {
                self.free_locks_of_closed(inode);
            }
        }
        let on = self.placement.file_system(device);
        let is_remote = on.medium() == Medium::Remote;
        let mut cost = Cost::Held;
        // On a remote file system a worker makes the close whatever it costs, so the file is not
        // looked at.
        for left in list.iter().filter(|_| !is_remote) {
            cost = match (cost, left.cost()) {
                (Cost::Wait, _) | (_, Cost::Wait) => Cost::Wait,
                (Cost::Change, _) | (_, Cost::Change) => Cost::Change,
                _ => Cost::Held,
            };
        }
        let closed: Vec<Closed> = list.iter_mut().filter_map(PendingClose::take).collect();
        if !closed.is_empty() {
            self.placement.call(&on, cost, move || drop(closed));
        }
    }
}
