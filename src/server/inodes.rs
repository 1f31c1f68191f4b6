//! The inodes that fids stand for, and their descriptors.
//!
//! However many fids a guest has for a file, there is one [`Inode`] for it. It is pinned by an
//! `O_PATH` descriptor, so that no rename or unlink redirects it. A guest may walk to more files
//! than a process may have descriptors: above a budget, inodes that were not used lately exchange
//! theirs for an [`InodeLocator`], by which they are found again when needed. An inode that could
//! not be found again, because it has lost its last name, keeps its descriptor.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd};
use std::rc::{Rc, Weak};

use coroutine::WaitQueue;
use foldhash::fast::RandomState;
use nix::errno::Errno;

use super::closing::{CloseQueue, is_large};
use super::placement::Device;
use crate::export::handle::InodeLocator;
use crate::export::{DEEPEST, FileKind, InodeKey, Node};
use crate::state::{InodeEntry, State};

/// A file of the share that the guest has reached.
#[derive(Debug)]
pub struct Inode {
    /// Removed before the descriptor is closed.
    entry: InodeEntry,
    key: InodeKey,
    pin: RefCell<Pin>,
    /// Where it was last seen. An inode keeps the directory of its dentry alive, that directory the
    /// one above, and so on. There must be no cycle, or its inodes would never be freed. Only
    /// [`Inode::moved_to`] sets it, and only if the way up from the directory does not lead back to
    /// this inode, whatever the guest and the host rename.
    place: RefCell<Option<Dentry>>,
    /// How many inodes were last seen in this directory.
    pub(super) children: Cell<usize>,
    /// Whether it was used since the last eviction looked at it.
    pub(super) used: Cell<bool>,
    /// Whether it was seen to be so large that freeing it takes long.
    large: Cell<bool>,
    inodes: Weak<Inodes>,
}

/// How the file is reached.
#[derive(Debug)]
pub enum Pin {
    /// By a descriptor.
    Pinned(Rc<Node>),
    /// By a locator.
    Evicted(Rc<InodeLocator>),
}

/// A directory and a name in it.
#[derive(Clone, Debug)]
pub struct Dentry {
    /// The directory.
    pub directory: Rc<Inode>,
    /// The name there.
    pub name: Box<[u8]>,
}

impl PartialEq for Dentry {
    fn eq(&self, other: &Dentry) -> bool {
        Rc::ptr_eq(&self.directory, &other.directory) && self.name == other.name
    }
}

impl Dentry {
    /// Counts this dentry.
    fn entered(&self) {
        let children = &self.directory.children;
        children.set(children.get() + 1);
        if let Some(inodes) = self.directory.inodes.upgrade() {
            inodes.dentries.set(inodes.dentries.get() + 1);
        }
    }

    /// Returns the directory, which has one child less.
    fn left(self) -> Rc<Inode> {
        let children = &self.directory.children;
        children.set(children.get() - 1);
        if let Some(inodes) = self.directory.inodes.upgrade() {
            inodes.dentries.set(inodes.dentries.get() - 1);
        }
        self.directory
    }
}

/// All inodes of a session, by key. Fids keep them alive.
pub struct Inodes {
    this: Weak<Inodes>,
    state: Rc<State>,
    table: RefCell<HashMap<InodeKey, Weak<Inode>, RandomState>>,
    /// The pinned inodes, the one that was looked at longest ago first; some have been freed.
    held: RefCell<VecDeque<Weak<Inode>>>,
    pinned_count: Cell<usize>,
    pub(super) evicted_count: Cell<usize>,
    /// How many inodes have a dentry. Each keeps at most one directory alive that no fid stands
    /// for.
    dentries: Cell<usize>,
    /// How many may have one.
    max_dentries: usize,
    /// Descriptors of open files, which cannot be evicted.
    open: Rc<Cell<usize>>,
    /// The descriptors to be closed.
    close_queue: Rc<CloseQueue>,
    /// How many descriptors of both kinds there may be; the others are the daemon's own.
    pub(super) budget: usize,
    /// The number of descriptors above which to evict: higher than the budget if the last try found
    /// none to evict.
    pub(super) eviction_threshold: Cell<usize>,
    pub(super) evicting: Cell<bool>,
    /// The remote file systems on which eviction is under way.
    pub(super) evicting_remote: RefCell<Vec<Device>>,
    /// Woken when either eviction ends.
    pub(super) eviction_ended: WaitQueue,
}

/// Counts one descriptor of an open file.
#[derive(Debug)]
pub struct OpenDescriptor(Rc<Cell<usize>>);

impl Inode {
    /// The inode's identity.
    pub fn key(&self) -> &InodeKey {
        &self.key
    }

    /// The row of its record.
    pub fn row(&self) -> u32 {
        self.entry.index()
    }

    /// The pinned file, unless it is evicted.
    pub fn held(&self) -> Option<Rc<Node>> {
        self.used.set(true);
        self.peek()
    }

    pub fn is_pinned(&self) -> bool {
        matches!(&*self.pin.borrow(), Pin::Pinned(_))
    }

    /// The directory where it was last seen.
    pub fn above(&self) -> Option<Rc<Inode>> {
        let place = self.place.borrow();
        place.as_ref().map(|place| place.directory.clone())
    }

    pub fn peek(&self) -> Option<Rc<Node>> {
        match &*self.pin.borrow() {
            Pin::Pinned(node) => Some(node.clone()),
            Pin::Evicted(_) => None,
        }
    }

    /// How it can be found again, if it is evicted.
    pub fn locator(&self) -> Option<Rc<InodeLocator>> {
        match &*self.pin.borrow() {
            Pin::Pinned(_) => None,
            Pin::Evicted(locator) => Some(locator.clone()),
        }
    }

    /// Notes that the file has this many blocks.
    pub fn note_size(&self, blocks: u64) {
        if is_large(blocks) {
            self.large.set(true);
        }
    }

    /// Where it was last seen.
    pub fn place(&self) -> Option<Dentry> {
        self.place.borrow().clone()
    }

    /// Notes where it is now. Notes nothing if that would make a cycle, or if too many dentries are
    /// known.
    pub fn moved_to(&self, place: Dentry) {
        if self
            .place
            .borrow()
            .as_ref()
            .is_some_and(|known| *known == place)
        {
            return;
        }
        let kept = self.has_room() && self.ends_above(&place.directory);
        let place = kept.then_some(place);
        if let Some(place) = &place {
            place.entered();
        }
        // The old dentry may be the last owner of a directory: it is not dropped while the cell is
        // borrowed.
        let old = self.place.replace(place).map(Dentry::left);
        self.record_place();
        drop(old);
    }

    fn record_place(&self) {
        let place = self.place.borrow();
        let place = place
            .as_ref()
            .map(|place| (place.directory.row(), &*place.name));
        self.entry.moved(place);
    }

    fn has_room(&self) -> bool {
        let room = |inodes: Rc<Inodes>| inodes.dentries.get() < inodes.max_dentries;
        self.place.borrow().is_some() || self.inodes.upgrade().is_some_and(room)
    }

    /// Whether the way up from `directory` ends without this inode. If it leads here, the inode
    /// just below this one has been moved since it was seen here, because this inode is below it
    /// now: its dentry is forgotten, and the way ends there.
    fn ends_above(&self, directory: &Rc<Inode>) -> bool {
        if std::ptr::eq(&raw const **directory, self) {
            return false;
        }
        let known_there = |place: &Option<Dentry>| {
            let known = place.as_ref().map(|place| &place.directory);
            known.is_some_and(|known| Rc::ptr_eq(known, directory))
        };
        // An inode without children ends no way up, and one that stays in its directory makes no
        // new one.
        if self.children.get() == 0 || known_there(&self.place.borrow()) {
            return true;
        }
        let mut below = directory.clone();
        for _ in 0..DEEPEST {
            let above = match &*below.place.borrow() {
                Some(place) => place.directory.clone(),
                None => return true,
            };
            if std::ptr::eq(&raw const *above, self) {
                let _this = below.place.take().map(Dentry::left);
                below.record_place();
                return true;
            }
            below = above;
        }
        false
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        if let Some(inodes) = self.inodes.upgrade() {
            inodes.forget(self);
            if self.large.get() {
                if let Pin::Pinned(node) = &*self.pin.borrow() {
                    inodes.close_queue.unpin(node.clone());
                }
            }
        }
        // A chain of directories, each kept only by the one below, is freed in a loop: it may be
        // deeper than the stack.
        let mut above = self.place.take().map(Dentry::left);
        while let Some(inode) = above.and_then(Rc::into_inner) {
            above = inode.place.take().map(Dentry::left);
        }
    }
}

impl Inodes {
    /// An empty table. `budget` is the most descriptors to keep open, `max_dentries` the most
    /// dentries to remember. The inodes are recorded in `state`.
    pub fn new(budget: usize, max_dentries: usize, state: Rc<State>) -> Rc<Inodes> {
        Rc::new_cyclic(|this| Inodes {
            this: this.clone(),
            state,
            table: RefCell::default(),
            held: RefCell::default(),
            pinned_count: Cell::new(0),
            evicted_count: Cell::new(0),
            dentries: Cell::new(0),
            max_dentries,
            open: Rc::default(),
            close_queue: Rc::default(),
            budget,
            eviction_threshold: Cell::new(budget),
            evicting: Cell::new(false),
            evicting_remote: RefCell::default(),
            eviction_ended: WaitQueue::new(),
        })
    }

    /// The inode of a file that was found at `place`. If it is known already, the descriptor just
    /// opened is closed, unless the inode had been evicted.
    pub fn admit(&self, node: Node, place: Option<Dentry>) -> Rc<Inode> {
        let key = *node.key();
        let known = self.get(&key);
        let inode = match known {
            Some(inode) => {
                self.hold(&inode, node);
                inode
            }
            None => {
                let fd = node.as_fd().as_raw_fd();
                let entry = InodeEntry::new(&self.state, &key, node.kind(), fd);
                self.add(entry, key, Pin::Pinned(Rc::new(node)))
            }
        };
        if let Some(place) = place {
            inode.moved_to(place);
        }
        inode
    }

    /// Adds an inode with its record.
    pub fn add(&self, entry: InodeEntry, key: InodeKey, pin: Pin) -> Rc<Inode> {
        let inode = Rc::new(Inode {
            entry,
            key,
            pin: RefCell::new(pin),
            place: RefCell::default(),
            children: Cell::new(0),
            used: Cell::new(true),
            large: Cell::new(false),
            inodes: self.this.clone(),
        });
        self.table.borrow_mut().insert(key, Rc::downgrade(&inode));
        match inode.is_pinned() {
            true => self.count_held(&inode),
            false => self.evicted_count.set(self.evicted_count.get() + 1),
        }
        inode
    }

    /// Adds an inode that is not found, and stays so.
    pub fn add_lost(&self, key: InodeKey, kind: FileKind) -> Rc<Inode> {
        let entry = InodeEntry::lost(&self.state, &key, kind);
        self.add(entry, key, Pin::Evicted(Rc::new(InodeLocator::Name(None))))
    }

    /// The inode, if the guest has reached it.
    pub fn get(&self, key: &InodeKey) -> Option<Rc<Inode>> {
        self.table.borrow().get(key)?.upgrade()
    }

    /// Counts one more open file, until the returned value is dropped. Errors: ENFILE if there are
    /// as many as there may be. Part of the budget is left for inodes, or no other file could be
    /// looked at.
    pub fn count_open(&self) -> Result<OpenDescriptor, Errno> {
        let open = self.open.get();
        if open >= self.budget - self.budget / 8 {
            return Err(Errno::ENFILE);
        }
        self.open.set(open + 1);
        Ok(OpenDescriptor(self.open.clone()))
    }

    /// Counts an open file of another process, whose limit may have been another.
    pub fn count_adopted(&self) -> OpenDescriptor {
        self.open.set(self.open.get() + 1);
        OpenDescriptor(self.open.clone())
    }

    /// How many descriptors of open files and locks there are.
    pub fn open_files(&self) -> usize {
        self.open.get()
    }

    /// The queue of descriptors to close: open files, lock descriptions, inodes of large files.
    pub fn close_queue(&self) -> &Rc<CloseQueue> {
        &self.close_queue
    }

    /// Whether the guest may have one more descriptor of any kind.
    pub fn has_room(&self) -> bool {
        self.descriptors() < self.budget
    }

    /// Gives an evicted inode a descriptor again.
    pub fn hold(&self, inode: &Rc<Inode>, node: Node) -> Rc<Node> {
        if let Some(node) = inode.held() {
            return node;
        }
        let node = Rc::new(node);
        inode.entry.pinned(node.as_fd().as_raw_fd());
        inode.pin.replace(Pin::Pinned(node.clone()));
        self.evicted_count.set(self.evicted_count.get() - 1);
        self.count_held(inode);
        node
    }

    pub fn evict(&self, inode: &Inode, locator: InodeLocator) {
        match &locator {
            InodeLocator::Handle(handle, _) => inode.entry.evicted(Some(&handle.to_bytes())),
            InodeLocator::Name(_) => inode.entry.evicted(None),
        }
        inode.pin.replace(Pin::Evicted(Rc::new(locator)));
        self.pinned_count.set(self.pinned_count.get() - 1);
        self.evicted_count.set(self.evicted_count.get() + 1);
    }

    fn count_held(&self, inode: &Rc<Inode>) {
        self.pinned_count.set(self.pinned_count.get() + 1);
        let mut held = self.held.borrow_mut();
        held.push_back(Rc::downgrade(inode));
        // Most inodes are freed before an eviction looks at them.
        if held.len() > 64 + 2 * self.pinned_count.get() {
            held.retain(|inode| inode.strong_count() > 0);
        }
    }

    fn forget(&self, inode: &Inode) {
        let count = match &*inode.pin.borrow() {
            Pin::Pinned(_) => &self.pinned_count,
            Pin::Evicted(_) => &self.evicted_count,
        };
        count.set(count.get() - 1);
        let mut table = self.table.borrow_mut();
        // A later inode with the same key may have taken the entry, and is alive. The address of
        // this one says nothing: it may have been moved out of its `Rc` to be dropped.
        if table
            .get(&inode.key)
            .is_some_and(|entry| entry.strong_count() == 0)
        {
            table.remove(&inode.key);
        }
    }

    pub fn is_over_threshold(&self) -> bool {
        self.descriptors() > self.eviction_threshold.get()
    }

    pub fn descriptors(&self) -> usize {
        self.pinned_count.get() + self.open.get()
    }

    /// Up to `most` of the `wanted` inodes that were not used since the last look and that no
    /// request uses now.
    pub fn idle(&self, most: usize, mut wanted: impl FnMut(&Inode) -> bool) -> Vec<Rc<Inode>> {
        let mut held = self.held.borrow_mut();
        let mut idle = Vec::new();
        // Twice around: inodes that were used lately are skipped once.
        for _ in 0..2 * held.len() {
            if idle.len() == most {
                break;
            }
            let Some(inode) = held.pop_front() else { break };
            let Some(inode) = inode.upgrade() else {
                continue;
            };
            let in_use = match &*inode.pin.borrow() {
                Pin::Pinned(node) => Rc::strong_count(node) > 1,
                // Pinned again, it has a second entry.
                Pin::Evicted(_) => continue,
            };
            if in_use || !wanted(&inode) || inode.used.replace(false) {
                held.push_back(Rc::downgrade(&inode));
            } else {
                idle.push(inode);
            }
        }
        idle
    }

    /// Puts an inode back that was idle but cannot be evicted.
    pub fn keep(&self, inode: &Rc<Inode>) {
        self.held.borrow_mut().push_back(Rc::downgrade(inode));
    }
}

impl std::fmt::Debug for Inodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inodes")
            .field("held", &self.pinned_count.get())
            .field("evicted", &self.evicted_count.get())
            .field("open", &self.open.get())
            .finish_non_exhaustive()
    }
}

impl Drop for OpenDescriptor {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
