//! Where a system call is made: here, on the loop, or on a worker.
//!
//! A hop to a worker costs more than most calls, and a call that waits costs all other requests.
//! Which it will be depends on the file system and on what is asked of it:
//!
//! | | [`Cost::Held`] | [`Cost::Read`] | [`Cost::Change`] | [`Cost::Wait`] |
//! |---|---|---|---|---|
//! | memory (tmpfs) | here | here, paced | here, paced | worker |
//! | local disk (ext4, xfs, ...) | here | worker | here, paced | worker |
//! | network, FUSE, unknown | worker | worker | worker | worker |
//!
//! What is far may never answer, and then keeps the worker: the last quarter of the workers is left
//! to the other file systems (`Server::blocking_far`). Behind a mount is a file system of which nothing is
//! known yet, so only who may wait so long crosses one (`Lookup::Local`).
//!
//! *Paced* means that calls which took long after all, because the journal was full, memory was
//! swapped out or large files were freed, send the next ones to workers for a while, and for twice
//! as long each time that it happens again. One alone does not: the thread may have been interrupted.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use nix::sys::statfs::fstatfs;

/// The numbers of linux/magic.h, which fill 32 bits of a field whose type differs between C libraries.
mod magic {
    pub const TMPFS: u32 = 0x0102_1994;
    pub const RAMFS: u32 = 0x8584_58f6;
    /// Those of ext2 and ext3, too.
    pub const EXT4: u32 = 0xef53;
    pub const XFS: u32 = 0x5846_5342;
    pub const BTRFS: u32 = 0x9123_683e;
    pub const F2FS: u32 = 0xf2f5_2010;
}

/// Major and minor number of a file system's device.
pub type Device = (u32, u32);

/// What a call asks of the file system, as far as its time goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// What the kernel holds in memory for a pinned inode: statx, an open for reading, a close.
    Held,
    /// What may have to be read first: a directory's entries, a link's target, attributes.
    Read,
    /// A change that is in memory when the call returns: a name, an attribute, a small write.
    Change,
    /// Waits by its nature, or is known to: fsync, a read that misses the cache.
    Wait,
}

/// A direction of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// From a file.
    Read,
    /// To a file.
    Write,
}

/// What a file system's files are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// The host's memory.
    Memory,
    /// A disk of this host.
    Disk,
    /// Something else's hands: another host's, a program's, or nobody knows whose.
    Far,
}

impl Medium {
    /// The medium of an open file. May block. What cannot be asked is far.
    pub fn of(file: impl AsFd) -> Medium {
        fstatfs(file).map_or(Medium::Far, |statfs| {
            Medium::of_type(statfs.filesystem_type().0 as u32)
        })
    }

    fn of_type(kind: u32) -> Medium {
        match kind {
            magic::TMPFS | magic::RAMFS => Medium::Memory,
            magic::EXT4 | magic::XFS | magic::BTRFS | magic::F2FS => Medium::Disk,
            _ => Medium::Far,
        }
    }
}

/// What is known of the file systems of the share.
pub struct Placement {
    root: (Device, FileSystem),
    others: RefCell<HashMap<Device, FileSystem, RandomState>>,
}

struct FileSystem {
    medium: Medium,
    reads: Pace,
    changes: Pace,
    /// Whether it has not yet refused `RWF_NOWAIT`, by [`Transfer`].
    nowait: [Cell<bool>; 2],
}

impl Placement {
    /// For a share whose root is on `device`, which is `medium`.
    pub fn new(device: Device, medium: Medium) -> Placement {
        Placement {
            root: (device, FileSystem::new(medium)),
            others: RefCell::default(),
        }
    }

    /// The guest has reached a file on `device` by crossing into it. A number may stand for another
    /// file system than the last time, but not while the guest holds one of its files.
    pub fn learn(&self, device: Device, medium: Medium) {
        let mut others = self.others.borrow_mut();
        if others
            .get(&device)
            .is_none_or(|known| known.medium != medium)
        {
            others.insert(device, FileSystem::new(medium));
        }
    }

    /// Whether `device` is the share's own, whose medium never changes.
    pub fn is_root(&self, device: Device) -> bool {
        self.root.0 == device
    }

    /// What the files of `device` are in.
    pub fn medium(&self, device: Device) -> Medium {
        self.with(device, |known| known.medium)
            .unwrap_or(Medium::Far)
    }

    /// Makes the call if this is the place for it, else gives it back.
    pub fn here<T, F: FnOnce() -> T>(&self, device: Device, cost: Cost, call: F) -> Result<T, F> {
        let pace = |known: &FileSystem| match (known.medium, cost) {
            (Medium::Memory | Medium::Disk, Cost::Held) => Some(None),
            (Medium::Memory, Cost::Read) => known.reads.allows().then_some(Some(Cost::Read)),
            (Medium::Memory | Medium::Disk, Cost::Change) => {
                known.changes.allows().then_some(Some(Cost::Change))
            }
            _ => None,
        };
        match self.with(device, pace).flatten() {
            None => Err(call),
            Some(None) => Ok(call()),
            Some(Some(cost)) => {
                let begin = Instant::now();
                let result = call();
                let took = begin.elapsed();
                self.with(device, |known| match cost {
                    Cost::Read => known.reads.took(took),
                    _ => known.changes.took(took),
                });
                Ok(result)
            }
        }
    }

    /// Whether it is worth to ask for a transfer that does not wait.
    pub fn tries_nowait(&self, device: Device, transfer: Transfer) -> bool {
        self.with(device, |known| known.nowait[transfer as usize].get())
            .unwrap_or(true)
    }

    /// The file system knows no transfer that does not wait (EOPNOTSUPP).
    pub fn refuses_nowait(&self, device: Device, transfer: Transfer) {
        self.with(device, |known| known.nowait[transfer as usize].set(false));
    }

    fn with<T>(&self, device: Device, f: impl FnOnce(&FileSystem) -> T) -> Option<T> {
        if self.is_root(device) {
            return Some(f(&self.root.1));
        }
        self.others.borrow().get(&device).map(f)
    }
}

impl FileSystem {
    fn new(medium: Medium) -> FileSystem {
        FileSystem {
            medium,
            reads: Pace::default(),
            changes: Pace::default(),
            nowait: [Cell::new(true), Cell::new(true)],
        }
    }
}

/// A call that takes longer has waited for something, or its thread for the processor.
const LONG: Duration = Duration::from_millis(1);
/// After so many short calls in a row a long one counts as the first.
const CALM: u32 = 64;
/// How many calls are left to the workers after a second long one, at first and at the most.
const FIRST_PAUSE: u32 = 64;
const LONGEST_PAUSE: u32 = 8192;

/// Whether calls of one kind have been short lately.
#[derive(Default)]
struct Pace {
    /// How many more calls go to workers.
    skip: Cell<u32>,
    /// The last pause; 0 for none.
    pause: Cell<u32>,
    /// How many short calls more it takes until a long one counts as the first.
    alert: Cell<u32>,
}

impl Pace {
    fn allows(&self) -> bool {
        let skip = self.skip.get();
        self.skip.set(skip.saturating_sub(1));
        skip == 0
    }

    fn took(&self, time: Duration) {
        let alert = self.alert.get();
        if time < LONG {
            self.alert.set(alert.saturating_sub(1));
            return;
        }
        self.alert.set(CALM);
        let pause = match alert {
            0 => 0,
            _ => (self.pause.get() * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE),
        };
        self.pause.set(pause);
        self.skip.set(pause);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    const ROOT: Device = (8, 1);

    fn is_here(placement: &Placement, device: Device, cost: Cost) -> bool {
        placement.here(device, cost, || ()).is_ok()
    }

    #[test]
    fn each_medium_has_its_places() {
        let places = |medium| {
            let placement = Placement::new(ROOT, medium);
            [Cost::Held, Cost::Read, Cost::Change, Cost::Wait]
                .map(|cost| is_here(&placement, ROOT, cost))
        };
        assert_eq!(places(Medium::Memory), [true, true, true, false]);
        assert_eq!(places(Medium::Disk), [true, false, true, false]);
        assert_eq!(places(Medium::Far), [false; 4]);
    }

    #[test]
    fn what_nobody_knows_is_far() {
        let placement = Placement::new(ROOT, Medium::Memory);
        assert!(!is_here(&placement, (0, 45), Cost::Held));
        placement.learn((0, 45), Medium::Disk);
        assert!(is_here(&placement, (0, 45), Cost::Held));
        // The number has come to another file system.
        placement.learn((0, 45), Medium::Far);
        assert!(!is_here(&placement, (0, 45), Cost::Held));

        assert_eq!(Medium::of(File::open("/proc").unwrap()), Medium::Far);
        assert_eq!(Medium::of_type(0x6573_5546), Medium::Far);
        assert_eq!(Medium::of_type(magic::TMPFS), Medium::Memory);
        assert_eq!(Medium::of_type(magic::XFS), Medium::Disk);
    }

    #[test]
    fn long_calls_send_the_next_ones_away_for_a_while() {
        let pace = Pace::default();
        let pause = || (0..).find(|_| pace.allows()).unwrap();
        assert_eq!(pause(), 0);
        pace.took(LONG);
        assert_eq!(pause(), 0);
        pace.took(LONG);
        assert_eq!(pause(), FIRST_PAUSE);
        pace.took(LONG);
        assert_eq!(pause(), 2 * FIRST_PAUSE);
        for _ in 0..20 {
            pace.took(LONG);
        }
        assert_eq!(pause(), LONGEST_PAUSE);
        (0..CALM).for_each(|_| pace.took(Duration::ZERO));
        pace.took(LONG);
        assert_eq!(pause(), 0);
        pace.took(Duration::ZERO);
        pace.took(LONG);
        assert_eq!(pause(), FIRST_PAUSE);
    }

    #[test]
    fn what_a_file_system_refuses_is_not_tried_again() {
        let placement = Placement::new(ROOT, Medium::Disk);
        placement.learn((8, 2), Medium::Memory);
        placement.refuses_nowait(ROOT, Transfer::Write);
        assert!(!placement.tries_nowait(ROOT, Transfer::Write));
        assert!(placement.tries_nowait(ROOT, Transfer::Read));
        assert!(placement.tries_nowait((8, 2), Transfer::Write));
    }

    #[test]
    fn changes_and_reads_have_each_their_pace() {
        let placement = Placement::new(ROOT, Medium::Memory);
        for _ in 0..2 {
            placement.with(ROOT, |known| known.changes.took(LONG));
        }
        assert!(!is_here(&placement, ROOT, Cost::Change));
        assert!(is_here(&placement, ROOT, Cost::Read));
        assert!(is_here(&placement, ROOT, Cost::Held));
    }
}
