//! Evicting descriptors: a guest may walk to more files than a process may have descriptors.
//!
//! Above a threshold, inodes that were not used lately give up their descriptors for an
//! [`InodeLocator`], those on local file systems first. For each remote file system one coroutine
//! of its own evicts descriptors, and no request waits for it.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use foldhash::fast::RandomState;
use nix::errno::Errno;

use super::closing::{Closable, Closing};
use super::inodes::{Dentry, Inode, Inodes, OpenDescriptor};
use super::placement::{Device, Site};
use super::{InFlight, Server};
use crate::export::handle::InodeLocator;
use crate::export::{DEEPEST, InodeKey, Name, Node};

/// While it lives, a request evicts descriptors; others wait for it.
struct Evicting<'a>(&'a Inodes);

/// While it lives, descriptors on this file system are being evicted; others need not wait for it.
struct EvictingRemote(Rc<Inodes>, Device);

impl Drop for Evicting<'_> {
    fn drop(&mut self) {
        self.0.evicting.set(false);
        self.0.eviction_ended.wake_all();
    }
}

impl Drop for EvictingRemote {
    fn drop(&mut self) {
        let EvictingRemote(inodes, device) = self;
        inodes
            .evicting_remote
            .borrow_mut()
            .retain(|other| other != device);
        inodes.eviction_ended.wake_all();
    }
}

impl Server {
    /// Makes room for a descriptor that the guest is going to keep. Errors: ENFILE if it has as
    /// many as it may, and none can be evicted.
    #[inline]
    pub(super) fn room(&self) -> Result<(), Errno> {
        match self.session.inodes.has_room() {
            true => Ok(()),
            false => self.make_room(),
        }
    }

    #[cold]
    fn make_room(&self) -> Result<(), Errno> {
        /// Each try looks at an eighth of all inodes. Another request may have taken the room that
        /// was made.
        const TRIES: usize = 16;
        for _ in 0..TRIES {
            self.evict_some();
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

    /// Takes over a descriptor that was counted before: it will be closed where the close may wait.
    pub(super) fn closing<T: Closable>(
        &self,
        value: T,
        device: Device,
        counted: OpenDescriptor,
    ) -> Closing<T> {
        let close_queue = self.session.inodes.close_queue().clone();
        Closing::new(value, device, counted, close_queue)
    }

    /// Evicts descriptors if there are too many. Called after new ones were opened, when nothing is
    /// borrowed.
    pub(super) fn evict_if_needed(&self) {
        let inodes = &self.session.inodes;
        // A request that comes while another evicts has nothing to wait for.
        if inodes.is_over_threshold() && !inodes.evicting.get() && self.evict_local(1) == 0 {
            self.evict_remote();
        }
    }

    /// Runs `open`, which opens descriptors. Runs it again if there were none left but some could
    /// be evicted.
    pub(super) fn with_descriptors<T>(
        &self,
        mut open: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        /// Another request may have taken the descriptors that were freed.
        const TRIES: usize = 16;
        for _ in 1..TRIES {
            match open() {
                Err(Errno::EMFILE | Errno::ENFILE) if self.evict_some() => {}
                result => return result,
            }
        }
        open()
    }

    /// Whether another try is worth it: this request or another has evicted some meanwhile.
    fn evict_some(&self) -> bool {
        /// How often to look for something local to evict while a remote file system is being
        /// asked.
        const LOOK_AGAIN: Duration = Duration::from_millis(100);
        /// Batches.
        const ALL: usize = 8;
        let inodes = &self.session.inodes;
        let before = inodes.descriptors();
        let mut asked_remote = false;
        loop {
            if inodes.evicting.get() {
                inodes.eviction_ended.wait();
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
            inodes.eviction_ended.wait_timeout(LOOK_AGAIN);
            if inodes.descriptors() < before {
                return true;
            }
        }
    }

    /// At least this many at once, because each takes a few calls on a worker.
    fn batch(&self) -> usize {
        const BATCH: usize = 16;
        BATCH.max(self.session.inodes.budget / 8)
    }

    /// Evicts one batch of descriptors on local file systems and returns how many. Other requests
    /// wait for the end. Looks at up to this many batches.
    fn evict_local(&self, batches: usize) -> usize {
        let inodes = &self.session.inodes;
        inodes.evicting.set(true);
        let _evicting = Evicting(inodes);
        let local = |inode: &Inode| self.remote_device(inode).is_none();
        for _ in 0..batches {
            let idle = self.idle(local);
            let evicted = self.evict_idle(&idle, None);
            if evicted > 0 || idle.is_empty() {
                return evicted;
            }
        }
        0
    }

    /// Starts to evict descriptors on a file system that may never answer. It holds up no request
    /// and no other file system.
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
        let evicting = EvictingRemote(server.session.inodes.clone(), device);
        let spawned = coroutine::spawn(move || {
            let _evicting = evicting;
            let evicted = AssertUnwindSafe(|| server.evict_idle(&idle, Some(device)));
            if catch_unwind(evicted).is_err() {
                log::error!("descriptors are not evicted, because of a fault of this program");
            }
        });
        if let Err(failed) = spawned {
            log::warn!("no coroutine to evict descriptors: {failed}");
        }
    }

    /// Some of the wanted inodes to evict. An inode that is found by its name needs its directory,
    /// so directories go last.
    fn idle(&self, mut wanted: impl FnMut(&Inode) -> bool) -> Vec<Rc<Inode>> {
        let (inodes, batch) = (&self.session.inodes, self.batch());
        let mut idle = Vec::new();
        if self.export.locators().by_name() {
            let leaf = |inode: &Inode| inode.children.get() == 0;
            idle = inodes.idle(batch, |inode| leaf(inode) && wanted(inode));
        }
        if idle.is_empty() {
            idle = inodes.idle(batch, wanted);
        }
        idle
    }

    /// The remote file system that must be asked before the inode can be evicted: its own, or that
    /// of a directory by which it is found.
    fn remote_device(&self, inode: &Inode) -> Option<Device> {
        /// What is deeper below evicted directories counts as remote.
        const DEPTH: usize = 64;
        let remote = |inode: &Inode| {
            let device = inode.key().id.device;
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
            if above.is_pinned() {
                return None;
            }
            next = above.above();
        }
        Some(inode.key().id.device)
    }

    /// Evicts these, for which a file system must be asked; `remote` if it may block indefinitely.
    /// Returns how many were evicted.
    fn evict_idle(&self, idle: &[Rc<Inode>], remote: Option<Device>) -> usize {
        let inodes = &self.session.inodes;
        let locators = self.export.locators();
        let nodes: Vec<_> = idle.iter().map(|inode| inode.peek()).collect();
        // Evicted directories stay evicted. Following all of them costs no more than following one
        // for a request.
        let mut visited: HashMap<InodeKey, Option<Rc<Node>>, RandomState> = HashMap::default();
        let mut steps = DEEPEST;
        let places: Vec<_> = idle
            .iter()
            .map(|inode| {
                let Dentry { directory, name } = inode.place()?;
                let name = Name::for_new(&name).ok()?;
                let node = match directory.peek() {
                    None if locators.by_name() => visited
                        .entry(*directory.key())
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
        let find = || -> Vec<Option<InodeLocator>> {
            files
                .iter()
                .map(|(node, place)| locators.of((*node)?, *place))
                .collect()
        };
        let found = match remote {
            _ if idle.is_empty() => Vec::new(),
            None => self.placement.call_at(Site::Worker, find),
            Some(_) => self.placement.call_at(Site::Remote, find),
        };
        drop(files);
        drop(places);
        let mut evicted = 0;
        for ((inode, node), locator) in idle.iter().zip(nodes).zip(found) {
            // Only this list and the inode own it.
            let alone = node.is_some_and(|node| Rc::strong_count(&node) == 2);
            match locator {
                Some(locator) if alone && !inode.used.get() => {
                    inodes.evict(inode, locator);
                    evicted += 1;
                }
                _ => inodes.keep(inode),
            }
        }
        inodes.eviction_threshold.set(match evicted {
            0 => inodes.descriptors() + self.batch(),
            _ => inodes.budget,
        });
        log::debug!("{evicted} of {} idle descriptors evicted", idle.len());
        evicted
    }
}
