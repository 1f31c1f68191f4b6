//! The inodes that fids stand for, and their descriptors.
//!
//! However many fids a guest has on a file, there is one [`Inode`] for it. It is held by an
//! `O_PATH` descriptor, so that no rename and no unlink can redirect it. A guest may walk to more
//! files than a process may have descriptors: above a budget those that were not used lately give
//! theirs up for a [`Trace`], by which they are found again when they are asked for. One that could
//! not be found, because it has lost its last name, keeps its descriptor.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};
use std::time::Duration;

use coroutine::WaitQueue;
use foldhash::fast::RandomState;
use nix::errno::Errno;

use super::call::Actor;
use super::closing::{Closable, Closing, Leaving, is_large};
use super::fid::OpenFile;
use super::placement::{Cost, Device, Site};
use super::{InFlight, Server};
use crate::export::handle::Trace;
use crate::export::{DEEPEST, InodeKey, Lookup, Name, Node};

/// A file of the share that the guest has reached.
#[derive(Debug)]
pub struct Inode {
    key: InodeKey,
    pin: RefCell<Pin>,
    /// Where it was seen last. An inode keeps the directory of its place, that one the directory of
    /// its own, and so on, which must end: two that kept each other would live for ever.
    /// [`Inode::moved_to`] alone sets it, and only if the way from the directory does not come back
    /// to the inode, so there is no cycle, whatever names the guest and the host give.
    place: RefCell<Option<Place>>,
    /// How many were seen last in this directory.
    children: Cell<usize>,
    /// Since the last look for descriptors to give up.
    used: Cell<bool>,
    /// Whether it was seen to be so large that its end takes long.
    large: Cell<bool>,
    inodes: Weak<Inodes>,
}

#[derive(Debug)]
enum Pin {
    Held(Rc<Node>),
    GivenUp(Rc<Trace>),
}

/// A directory and a name in it.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory.
    pub directory: Rc<Inode>,
    /// The name there.
    pub name: Box<[u8]>,
}

impl Place {
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
    held_count: Cell<usize>,
    given_up: Cell<usize>,
    /// How many have a place. Each keeps one directory at the most that no fid stands for.
    places: Cell<usize>,
    /// How many may have one.
    most_places: usize,
    /// Descriptors of open files, which are nobody's to give up.
    open: Rc<Cell<usize>>,
    /// What is to be closed.
    leaving: Rc<Leaving>,
    /// How many descriptors of both kinds there may be: the rest is the daemon's own.
    budget: usize,
    /// The number from which on to look for some to give up: more than the budget if there were
    /// none the last time.
    crowd: Cell<usize>,
    relieving: Cell<bool>,
    /// The remote file systems of which some are being given up.
    evicting_remote: RefCell<Vec<Device>>,
    /// Woken at the end of both.
    relieved: WaitQueue,
}

/// As long as it lives, some request gives descriptors up; others wait for that.
struct Relieving<'a>(&'a Inodes);

/// As long as it lives, descriptors on this file system are given up; others need not wait for that.
struct EvictingRemote(Rc<Inodes>, Device);

/// Counts one descriptor of an open file.
#[derive(Debug)]
pub struct OpenDescriptor(Rc<Cell<usize>>);

impl Inode {
    /// The inode's identity.
    pub fn key(&self) -> &InodeKey {
        &self.key
    }

    /// The pinned file, if it is held.
    fn held(&self) -> Option<Rc<Node>> {
        self.used.set(true);
        self.peek()
    }

    fn is_held(&self) -> bool {
        matches!(&*self.pin.borrow(), Pin::Held(_))
    }

    /// The directory where it was seen last.
    fn above(&self) -> Option<Rc<Inode>> {
        let place = self.place.borrow();
        place.as_ref().map(|place| place.directory.clone())
    }

    fn peek(&self) -> Option<Rc<Node>> {
        match &*self.pin.borrow() {
            Pin::Held(node) => Some(node.clone()),
            Pin::GivenUp(_) => None,
        }
    }

    /// How it can be found again, if it is not held.
    fn trace(&self) -> Option<Rc<Trace>> {
        match &*self.pin.borrow() {
            Pin::Held(_) => None,
            Pin::GivenUp(trace) => Some(trace.clone()),
        }
    }

    /// It was seen to have so many blocks.
    pub fn note_size(&self, blocks: u64) {
        if is_large(blocks) {
            self.large.set(true);
        }
    }

    /// Where it was seen last.
    pub fn place(&self) -> Option<Place> {
        self.place.borrow().clone()
    }

    /// Remembers where it is now, or nothing of where it is if that cannot be without a cycle, or if
    /// of too many the places are known.
    pub fn moved_to(&self, place: Place) {
        let kept = self.has_room() && self.ends_above(&place.directory);
        let place = kept.then_some(place);
        if let Some(place) = &place {
            place.entered();
        }
        // The old one may be the last to know of a directory: not dropped while it is borrowed.
        let _old = self.place.replace(place).map(Place::left);
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
        let known_there = |place: &Option<Place>| {
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
                let _this = below.place.take().map(Place::left);
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
                && let Pin::Held(node) = &*self.pin.borrow()
            {
                inodes.leaving.unpin(node.clone());
            }
        }
        // A chain of directories, each known only by the one below, ends without recursion: it may
        // be deeper than the stack.
        let mut above = self.place.take().map(Place::left);
        while let Some(inode) = above.and_then(Rc::into_inner) {
            above = inode.place.take().map(Place::left);
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
            held_count: Cell::new(0),
            given_up: Cell::new(0),
            places: Cell::new(0),
            most_places,
            open: Rc::default(),
            leaving: Rc::default(),
            budget,
            crowd: Cell::new(budget),
            relieving: Cell::new(false),
            evicting_remote: RefCell::default(),
            relieved: WaitQueue::new(),
        })
    }

    /// The inode of a file that was found, seen at `place`. If it is known already, the descriptor
    /// just opened is not needed, unless it had been given up.
    pub fn admit(&self, node: Node, place: Option<Place>) -> Rc<Inode> {
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
                    pin: RefCell::new(Pin::Held(Rc::new(node))),
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
    fn has_room(&self) -> bool {
        self.descriptors() < self.budget
    }

    /// An inode whose descriptor was given up has this one from now on.
    fn hold(&self, inode: &Rc<Inode>, node: Node) -> Rc<Node> {
        if let Some(node) = inode.held() {
            return node;
        }
        let node = Rc::new(node);
        inode.pin.replace(Pin::Held(node.clone()));
        self.given_up.set(self.given_up.get() - 1);
        self.count_held(inode);
        node
    }

    fn give_up(&self, inode: &Inode, trace: Trace) {
        inode.pin.replace(Pin::GivenUp(Rc::new(trace)));
        self.held_count.set(self.held_count.get() - 1);
        self.given_up.set(self.given_up.get() + 1);
    }

    fn count_held(&self, inode: &Rc<Inode>) {
        self.held_count.set(self.held_count.get() + 1);
        let mut held = self.held.borrow_mut();
        held.push_back(Rc::downgrade(inode));
        // Most inodes end before anyone looks for descriptors.
        if held.len() > 64 + 2 * self.held_count.get() {
            held.retain(|inode| inode.strong_count() > 0);
        }
    }

    fn forget(&self, inode: &Inode) {
        let count = match &*inode.pin.borrow() {
            Pin::Held(_) => &self.held_count,
            Pin::GivenUp(_) => &self.given_up,
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

    fn crowded(&self) -> bool {
        self.descriptors() > self.crowd.get()
    }

    fn descriptors(&self) -> usize {
        self.held_count.get() + self.open.get()
    }

    /// Up to `most` of the `wanted` inodes that nobody has used since the last look, and no request
    /// uses now.
    fn idle(&self, most: usize, mut wanted: impl FnMut(&Inode) -> bool) -> Vec<Rc<Inode>> {
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
                Pin::Held(node) => Rc::strong_count(node) > 1,
                // Held again, it has a second entry.
                Pin::GivenUp(_) => continue,
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
    fn keep(&self, inode: &Rc<Inode>) {
        self.held.borrow_mut().push_back(Rc::downgrade(inode));
    }
}

impl std::fmt::Debug for Inodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inodes")
            .field("held", &self.held_count.get())
            .field("given_up", &self.given_up.get())
            .field("open", &self.open.get())
            .finish_non_exhaustive()
    }
}

impl Drop for Relieving<'_> {
    fn drop(&mut self) {
        self.0.relieving.set(false);
        self.0.relieved.wake_all();
    }
}

impl Drop for EvictingRemote {
    fn drop(&mut self) {
        let EvictingRemote(inodes, device) = self;
        inodes
            .evicting_remote
            .borrow_mut()
            .retain(|other| other != device);
        inodes.relieved.wake_all();
    }
}

impl Drop for OpenDescriptor {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Server {
    /// The pinned file of an inode, found again if its descriptor was given up. Errors: ESTALE if
    /// the host has removed it, or moved it where it cannot be found.
    pub(super) fn hold(&self, inode: &Rc<Inode>) -> Result<Rc<Node>, Errno> {
        match inode.held() {
            Some(node) => Ok(node),
            None => {
                let keeps = self.room().is_ok();
                let node = self.with_descriptors(|| match inode.held() {
                    // Another request was faster, while this one waited for a descriptor.
                    Some(node) => Ok(node),
                    None => {
                        let mut steps = DEEPEST;
                        Ok(self.found_again(inode, self.find(inode, &mut steps)?, keeps))
                    }
                })?;
                self.relieve();
                Ok(node)
            }
        }
    }

    /// The pinned file of an open one, which its own descriptor always leads to.
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

    /// The pinned file of an inode that had given its descriptor up. Where there is no room for
    /// another, only the request keeps it.
    fn found_again(&self, inode: &Rc<Inode>, node: Node, keeps: bool) -> Rc<Node> {
        match keeps {
            true => self.session.inodes.hold(inode, node),
            false => inode.held().unwrap_or_else(|| Rc::new(node)),
        }
    }

    /// Before a descriptor is made that the guest is going to keep. Errors: ENFILE if it has as many
    /// as it may, and none of them can be given up.
    #[inline]
    pub(super) fn room(&self) -> Result<(), Errno> {
        match self.session.inodes.has_room() {
            true => Ok(()),
            false => self.make_room(),
        }
    }

    #[cold]
    fn make_room(&self) -> Result<(), Errno> {
        /// Each looks at an eighth of all. What was given up may have gone to another request.
        const TRIES: usize = 16;
        for _ in 0..TRIES {
            self.give_up_descriptors();
            if self.session.inodes.has_room() {
                return Ok(());
            }
        }
        Err(Errno::ENFILE)
    }

    /// Counts a descriptor that is about to be opened for the guest. Errors: ENFILE.
    pub(super) fn count_open(&self) -> Result<OpenDescriptor, Errno> {
        self.room()?;
        self.session.inodes.count_open()
    }

    /// Takes a descriptor over that was counted before: it will be closed where that may wait.
    pub(super) fn closing<T: Closable>(
        &self,
        value: T,
        device: Device,
        counted: OpenDescriptor,
    ) -> Closing<T> {
        let leaving = self.session.inodes.leaving.clone();
        Closing::new(value, device, counted, leaving)
    }

    /// Follows the inode's trace, and before it those of the directories that it depends on, which
    /// do not keep what is opened on the way. Errors: ENAMETOOLONG if that takes more than `steps`, of
    /// which it takes its own away; EINTR if it takes many, and the session is to end.
    fn find(&self, inode: &Rc<Inode>, steps: &mut usize) -> Result<Node, Errno> {
        // From the inode up to the first that needs no directory to be found.
        let mut chain = Vec::new();
        let mut top = None;
        let mut remote = false;
        let mut next = Some(inode.clone());
        while let Some(inode) = next.take() {
            remote |= self.placement.is_remote(inode.key.id.device);
            let Some(trace) = inode.trace() else {
                top = inode.peek();
                break;
            };
            *steps = steps.checked_sub(1).ok_or(Errno::ENAMETOOLONG)?;
            let mut name = None;
            if let Trace::Name(_) = *trace
                && let Some(place) = inode.place()
            {
                name = Name::for_new(&place.name).ok();
                next = Some(place.directory);
            }
            chain.push((trace, inode.key, name));
        }
        let traces = self.export.traces();
        let links: Vec<(&Trace, &InodeKey, Option<&Name>)> = chain
            .iter()
            .rev()
            .map(|(trace, key, name)| (&**trace, key, name.as_ref()))
            .collect();
        let (top, stopping) = (top.as_deref(), self.session.requests.stopping());
        let follow = || traces.follow_all(top, links, stopping);
        let site = match remote {
            true => Site::Remote,
            false => Site::Worker,
        };
        self.placement.call_at(site, follow)
    }

    /// Gives descriptors up if there are too many. Called after new ones were made, when nothing
    /// is borrowed.
    pub(super) fn relieve(&self) {
        let inodes = &self.session.inodes;
        // Whoever comes while this is being done has nothing to wait for.
        if inodes.crowded() && !inodes.relieving.get() && self.evict_local(1) == 0 {
            self.evict_remote();
        }
    }

    /// Runs `open`, which makes descriptors, and again if there were none left but some could be
    /// given up.
    pub(super) fn with_descriptors<T>(
        &self,
        mut open: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        /// What was given up may have gone to another request before this one came to it.
        const TRIES: usize = 16;
        for _ in 1..TRIES {
            match open() {
                Err(Errno::EMFILE | Errno::ENFILE) if self.give_up_descriptors() => {}
                result => return result,
            }
        }
        open()
    }

    /// Whether it is worth to try again: some were given up, by this request or another meanwhile.
    fn give_up_descriptors(&self) -> bool {
        /// How often it is looked whether there is something local to give up by now, while a remote file system
        /// is asked.
        const LOOK_AGAIN: Duration = Duration::from_millis(100);
        /// Batches.
        const ALL: usize = 8;
        let inodes = &self.session.inodes;
        let before = inodes.descriptors();
        let mut asked_remote = false;
        loop {
            if inodes.relieving.get() {
                inodes.relieved.wait();
                return true;
            }
            if self.evict_local(ALL) > 0 {
                return true;
            }
            if !asked_remote {
                self.evict_remote();
                asked_remote = true;
            }
            if inodes.evicting_remote.borrow().is_empty() {
                return inodes.descriptors() < before;
            }
            inodes.relieved.wait_timeout(LOOK_AGAIN);
            if inodes.descriptors() < before {
                return true;
            }
        }
    }

    /// At least so many in one go, for each takes a few calls on a worker.
    fn batch(&self) -> usize {
        const BATCH: usize = 16;
        BATCH.max(self.session.inodes.budget / 8)
    }

    /// Gives up a batch of what is on file systems that do answer, and says how many. Others wait for
    /// the end. At the most so many batches are looked at.
    fn evict_local(&self, batches: usize) -> usize {
        let inodes = &self.session.inodes;
        inodes.relieving.set(true);
        let _relieving = Relieving(inodes);
        let local = |inode: &Inode| self.remote_device(inode).is_none();
        for _ in 0..batches {
            let idle = self.idle(local);
            let given_up = self.give_up(&idle, None);
            if given_up > 0 || idle.is_empty() {
                return given_up;
            }
        }
        0
    }

    /// Begins to give up what is on a file system that may never answer: not in the way of any
    /// request, and of no other file system.
    fn evict_remote(&self) {
        let inodes = &self.session.inodes;
        let mut device = None;
        let idle = self.idle(|inode| match self.remote_device(inode) {
            Some(remote)
                if device.is_none() && !inodes.evicting_remote.borrow().contains(&remote) =>
            {
                device = Some(remote);
                true
            }
            remote => remote.is_some() && remote == device,
        });
        let (Some(device), Some(server)) = (device, InFlight::of(self)) else {
            return;
        };
        inodes.evicting_remote.borrow_mut().push(device);
        let relieving = EvictingRemote(server.session.inodes.clone(), device);
        let spawned = coroutine::spawn(move || {
            let _relieving = relieving;
            let given_up = AssertUnwindSafe(|| server.give_up(&idle, Some(device)));
            if catch_unwind(given_up).is_err() {
                log::error!("descriptors are not given up by a fault of this program");
            }
        });
        if let Err(failed) = spawned {
            log::warn!("no coroutine to give descriptors up: {failed}");
        }
    }

    /// Some of the wanted inodes to give up. What is found by its name needs its directory, which
    /// goes last.
    fn idle(&self, mut wanted: impl FnMut(&Inode) -> bool) -> Vec<Rc<Inode>> {
        let (inodes, batch) = (&self.session.inodes, self.batch());
        let mut idle = Vec::new();
        if self.export.traces().by_name() {
            let leaf = |inode: &Inode| inode.children.get() == 0;
            idle = inodes.idle(batch, |inode| leaf(inode) && wanted(inode));
        }
        if idle.is_empty() {
            idle = inodes.idle(batch, wanted);
        }
        idle
    }

    /// The remote file system that has to be asked before the inode can be given
    /// up: its own, or one of a directory by which it is found.
    fn remote_device(&self, inode: &Inode) -> Option<Device> {
        /// What is deeper below what was given up is taken for remote.
        const DEPTH: usize = 64;
        let remote = |inode: &Inode| {
            let device = inode.key.id.device;
            self.placement.is_remote(device).then_some(device)
        };
        let device = remote(inode);
        if device.is_some() {
            return device;
        }
        let mut next = inode.above();
        for _ in 0..DEPTH {
            let above = next?;
            let device = remote(&above);
            if device.is_some() {
                return device;
            }
            if above.is_held() {
                return None;
            }
            next = above.above();
        }
        Some(inode.key.id.device)
    }

    /// Gives these up, which a file system has to be asked about, `remote` if it may block indefinitely.
    /// Returns how many could be.
    fn give_up(&self, idle: &[Rc<Inode>], remote: Option<Device>) -> usize {
        let inodes = &self.session.inodes;
        let traces = self.export.traces();
        let nodes: Vec<_> = idle.iter().map(|inode| inode.peek()).collect();
        // Directories that have given their descriptors up, and go on without. All together cost no more
        // than one may that a request waits for.
        let mut visited: HashMap<InodeKey, Option<Rc<Node>>, RandomState> = HashMap::default();
        let mut steps = DEEPEST;
        let places: Vec<_> = idle
            .iter()
            .map(|inode| {
                let Place { directory, name } = inode.place()?;
                let name = Name::for_new(&name).ok()?;
                let node = match directory.peek() {
                    None if traces.by_name() => visited
                        .entry(directory.key)
                        .or_insert_with(|| self.find(&directory, &mut steps).ok().map(Rc::new))
                        .clone(),
                    held => held,
                };
                Some((node?, name))
            })
            .collect();
        drop(visited);
        let files: Vec<_> = nodes
            .iter()
            .zip(&places)
            .map(|(node, place)| {
                let place = place.as_ref().map(|(directory, name)| (&**directory, name));
                (node.as_deref(), place)
            })
            .collect();
        let find = || -> Vec<Option<Trace>> {
            files
                .iter()
                .map(|(node, place)| traces.of((*node)?, *place))
                .collect()
        };
        let found = match remote {
            _ if idle.is_empty() => Vec::new(),
            None => self.placement.call_at(Site::Worker, find),
            Some(_) => self.placement.call_at(Site::Remote, find),
        };
        drop(files);
        drop(places);
        let mut given_up = 0;
        for ((inode, node), trace) in idle.iter().zip(nodes).zip(found) {
            // Only this list and the inode itself have it.
            let alone = node.is_some_and(|node| Rc::strong_count(&node) == 2);
            match trace {
                Some(trace) if alone && !inode.used.get() => {
                    inodes.give_up(inode, trace);
                    given_up += 1;
                }
                _ => inodes.keep(inode),
            }
        }
        inodes.crowd.set(match given_up {
            0 => inodes.descriptors() + self.batch(),
            _ => inodes.budget,
        });
        log::debug!("{given_up} of {} idle descriptors given up", idle.len());
        given_up
    }

    /// What a name stands for that is about to lose it: found while it can be, for a fid of the
    /// guest may stand for it too. To be called on a worker, and what it returns to be given to
    /// [`Server::keep_found`] afterwards.
    pub(super) fn find_before_removal(
        &self,
    ) -> impl Fn(&Node, &Name) -> Option<Node> + Send + use<> {
        let needed = self.session.inodes.given_up.get() > 0;
        move |directory, name| {
            // Nothing that is mounted on loses its name.
            let found = needed.then(|| directory.child(name, Lookup::Local));
            found?.ok().map(|(node, _)| node)
        }
    }

    /// Lets the inode that was found keep the descriptor, if it had given up its own.
    pub(super) fn keep_found(&self, found: Option<Node>) {
        let Some(node) = found else { return };
        match self.session.inodes.get(node.key()) {
            Some(inode) if self.room().is_ok() => drop(self.session.inodes.hold(&inode, node)),
            // The file's last descriptor may be this one.
            _ => self.session.inodes.leaving.unpin(Rc::new(node)),
        }
    }

    /// What a name stands for that a file was moved to, if the file may depend on that to be
    /// found again. To be called on a worker, and what it returns to be given to
    /// [`Server::note_move`] afterwards.
    pub(super) fn find_after_move(
        &self,
    ) -> impl Fn(&Node, &Name) -> Option<InodeKey> + Send + use<> {
        let needed = self.export.traces().by_name();
        move |directory, name| needed.then(|| directory.child_key(name).ok())?
    }

    /// Remembers the place that a file was moved to.
    pub(super) fn note_move(&self, moved: Option<InodeKey>, directory: &Rc<Inode>, name: &Name) {
        if let Some(inode) = moved.and_then(|key| self.session.inodes.get(&key)) {
            inode.moved_to(Place {
                directory: directory.clone(),
                name: name.as_bytes().into(),
            });
        }
    }
}
