//! The inodes that fids stand for, and their descriptors.
//!
//! However many fids a guest has on a file, there is one [`Inode`] for it. It is held by an
//! `O_PATH` descriptor, so that no rename and no unlink can redirect it. A guest may walk to more
//! files than a process may have descriptors: above a budget those that were not used lately give
//! theirs up for a [`InodeLocator`], by which they are found again when they are asked for. One that could
//! not be found, because it has lost its last name, keeps its descriptor.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::{Rc, Weak};

use coroutine::WaitQueue;
use foldhash::fast::RandomState;
use nix::errno::Errno;

use super::closing::{Leaving, is_large};
use super::placement::Device;
use crate::export::handle::InodeLocator;
use crate::export::{DEEPEST, InodeKey, Node};

/// A file of the share that the guest has reached.
#[derive(Debug)]
pub struct Inode {
    key: InodeKey,
    pin: RefCell<Pin>,
    /// Where it was seen last. An inode keeps the directory of its place, that one the directory of
    /// its own, and so on, which must end: two that kept each other would live for ever.
    /// [`Inode::moved_to`] alone sets it, and only if the way from the directory does not come back
    /// to the inode, so there is no cycle, whatever names the guest and the host give.
    place: RefCell<Option<Dentry>>,
    /// How many were seen last in this directory.
    pub(super) children: Cell<usize>,
    /// Since the last look for descriptors to give up.
    pub(super) used: Cell<bool>,
    /// Whether it was seen to be so large that its end takes long.
    large: Cell<bool>,
    inodes: Weak<Inodes>,
}

#[derive(Debug)]
enum Pin {
    Pinned(Rc<Node>),
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

impl Dentry {
    /// Counts it.
    fn entered(&self) {
        let children = &self.directory.children;
        children.set(children.get() + 1);
        if let Some(inodes) = self.directory.inodes.upgrade() {
            inodes.places.set(inodes.places.get() + 1);
        }
    }

    /// The directory, which has one child less.
    fn left(self) -> Rc<Inode> {
        let children = &self.directory.children;
        children.set(children.get() - 1);
        if let Some(inodes) = self.directory.inodes.upgrade() {
            inodes.places.set(inodes.places.get() - 1);
        }
        self.directory
    }
}

/// All inodes of a session, found by what they are. They live by the fids that stand for them.
pub struct Inodes {
    this: Weak<Inodes>,
    table: RefCell<HashMap<InodeKey, Weak<Inode>, RandomState>>,
    /// Those that are held, the one that was longest not looked at first; some have ended.
    held: RefCell<VecDeque<Weak<Inode>>>,
    pinned_count: Cell<usize>,
    pub(super) evicted_count: Cell<usize>,
    /// How many have a place. Each keeps one directory at the most that no fid stands for.
    places: Cell<usize>,
    /// How many may have one.
    most_places: usize,
    /// Descriptors of open files, which are nobody's to give up.
    open: Rc<Cell<usize>>,
    /// What is to be closed.
    leaving: Rc<Leaving>,
    /// How many descriptors of both kinds there may be: the rest is the daemon's own.
    pub(super) budget: usize,
    /// The number from which on to look for some to give up: more than the budget if there were
    /// none the last time.
    pub(super) eviction_threshold: Cell<usize>,
    pub(super) evicting: Cell<bool>,
    /// The remote file systems of which some are being given up.
    pub(super) evicting_remote: RefCell<Vec<Device>>,
    /// Woken at the end of both.
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

    /// The pinned file, if it is held.
    pub fn held(&self) -> Option<Rc<Node>> {
        self.used.set(true);
        self.peek()
    }

    pub fn is_pinned(&self) -> bool {
        matches!(&*self.pin.borrow(), Pin::Pinned(_))
    }

    /// The directory where it was seen last.
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

    /// How it can be found again, if it is not held.
    pub fn locator(&self) -> Option<Rc<InodeLocator>> {
        match &*self.pin.borrow() {
            Pin::Pinned(_) => None,
            Pin::Evicted(locator) => Some(locator.clone()),
        }
    }

    /// It was seen to have so many blocks.
    pub fn note_size(&self, blocks: u64) {
        if is_large(blocks) {
            self.large.set(true);
        }
    }

    /// Where it was seen last.
    pub fn place(&self) -> Option<Dentry> {
        self.place.borrow().clone()
    }

    /// Remembers where it is now, or nothing of where it is if that cannot be without a cycle, or if
    /// of too many the places are known.
    pub fn moved_to(&self, place: Dentry) {
        let kept = self.has_room() && self.ends_above(&place.directory);
        let place = kept.then_some(place);
        if let Some(place) = &place {
            place.entered();
        }
        // The old one may be the last to know of a directory: not dropped while it is borrowed.
        let _old = self.place.replace(place).map(Dentry::left);
    }

    fn has_room(&self) -> bool {
        let room = |inodes: Rc<Inodes>| inodes.places.get() < inodes.most_places;
        self.place.borrow().is_some() || self.inodes.upgrade().is_some_and(room)
    }

    /// Whether the way up from `directory` ends without this inode. If it leads here, the one below
    /// this was moved away since it was seen here, for this is below it now: what is known of its
    /// place is forgotten, and the way ends.
    fn ends_above(&self, directory: &Rc<Inode>) -> bool {
        if std::ptr::eq(&raw const **directory, self) {
            return false;
        }
        let known_there = |place: &Option<Dentry>| {
            let known = place.as_ref().map(|place| &place.directory);
            known.is_some_and(|known| Rc::ptr_eq(known, directory))
        };
        // What was seen below nothing ends no way, and what stays in its directory makes no new one.
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
            if self.large.get()
                && let Pin::Pinned(node) = &*self.pin.borrow()
            {
                inodes.leaving.unpin(node.clone());
            }
        }
        // A chain of directories, each known only by the one below, ends without recursion: it may
        // be deeper than the stack.
        let mut above = self.place.take().map(Dentry::left);
        while let Some(inode) = above.and_then(Rc::into_inner) {
            above = inode.place.take().map(Dentry::left);
        }
    }
}

impl Inodes {
    /// None yet. `budget` is how many descriptors are to be open at the most, `most_places` of how
    /// many inodes the places are remembered.
    pub fn new(budget: usize, most_places: usize) -> Rc<Inodes> {
        Rc::new_cyclic(|this| Inodes {
            this: this.clone(),
            table: RefCell::default(),
            held: RefCell::default(),
            pinned_count: Cell::new(0),
            evicted_count: Cell::new(0),
            places: Cell::new(0),
            most_places,
            open: Rc::default(),
            leaving: Rc::default(),
            budget,
            eviction_threshold: Cell::new(budget),
            evicting: Cell::new(false),
            evicting_remote: RefCell::default(),
            eviction_ended: WaitQueue::new(),
        })
    }

    /// The inode of a file that was found, seen at `place`. If it is known already, the descriptor
    /// just opened is not needed, unless it had been given up.
    pub fn admit(&self, node: Node, place: Option<Dentry>) -> Rc<Inode> {
        let key = *node.key();
        let known = self.get(&key);
        let inode = match known {
            Some(inode) => {
                self.hold(&inode, node);
                inode
            }
            None => {
                let inode = Rc::new(Inode {
                    key,
                    pin: RefCell::new(Pin::Pinned(Rc::new(node))),
                    place: RefCell::default(),
                    children: Cell::new(0),
                    used: Cell::new(true),
                    large: Cell::new(false),
                    inodes: self.this.clone(),
                });
                self.table.borrow_mut().insert(key, Rc::downgrade(&inode));
                self.count_held(&inode);
                inode
            }
        };
        if let Some(place) = place {
            inode.moved_to(place);
        }
        inode
    }

    /// The inode, if the guest has it.
    pub fn get(&self, key: &InodeKey) -> Option<Rc<Inode>> {
        self.table.borrow().get(key)?.upgrade()
    }

    /// One more open file, until the value returned is dropped. Errors: ENFILE if there are as many
    /// as there may be. Some of the budget is left to inodes, or no other file could be looked at.
    pub fn count_open(&self) -> Result<OpenDescriptor, Errno> {
        let open = self.open.get();
        if open >= self.budget - self.budget / 8 {
            return Err(Errno::ENFILE);
        }
        self.open.set(open + 1);
        Ok(OpenDescriptor(self.open.clone()))
    }

    /// What is to be closed: open files, lock descriptions, inodes of large files.
    pub fn leaving(&self) -> &Rc<Leaving> {
        &self.leaving
    }

    /// Whether the guest may have one more descriptor, of whatever kind.
    pub fn has_room(&self) -> bool {
        self.descriptors() < self.budget
    }

    /// An inode whose descriptor was given up has this one from now on.
    pub fn hold(&self, inode: &Rc<Inode>, node: Node) -> Rc<Node> {
        if let Some(node) = inode.held() {
            return node;
        }
        let node = Rc::new(node);
        inode.pin.replace(Pin::Pinned(node.clone()));
        self.evicted_count.set(self.evicted_count.get() - 1);
        self.count_held(inode);
        node
    }

    pub fn evict(&self, inode: &Inode, locator: InodeLocator) {
        inode.pin.replace(Pin::Evicted(Rc::new(locator)));
        self.pinned_count.set(self.pinned_count.get() - 1);
        self.evicted_count.set(self.evicted_count.get() + 1);
    }

    fn count_held(&self, inode: &Rc<Inode>) {
        self.pinned_count.set(self.pinned_count.get() + 1);
        let mut held = self.held.borrow_mut();
        held.push_back(Rc::downgrade(inode));
        // Most inodes end before anyone looks for descriptors.
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
        // A later inode with the same key may have taken the entry: that one lives. Where this one is
        // says nothing, for it may have been moved out of its `Rc` to be dropped.
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

    /// Up to `most` of the `wanted` inodes that nobody has used since the last look, and no request
    /// uses now.
    pub fn idle(&self, most: usize, mut wanted: impl FnMut(&Inode) -> bool) -> Vec<Rc<Inode>> {
        let mut held = self.held.borrow_mut();
        let mut idle = Vec::new();
        // Twice around: those that were used lately are passed over once.
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
                // Held again, it has a second entry.
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

    /// Takes back those that were idle but have to stay.
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
