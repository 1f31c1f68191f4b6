//! Where a system call is made: here, on the loop, or on a worker.
//!
//! A hop to a worker costs more than most calls, and a call that waits on the loop delays all other
//! requests. Which of the two it is depends on the file system and on the call:
//!
//! | | [`Cost::Held`] | [`Cost::Read`] | [`Cost::Change`] | [`Cost::Wait`] |
//! |---|---|---|---|---|
//! | memory (tmpfs) | here | here, paced | here, paced | worker |
//! | local disk (ext4, xfs, ...) | here | worker | here, paced | worker |
//! | remote: network, FUSE, unknown | worker | worker | worker | worker |
//!
//! A remote file system may block for ever, and then it keeps the worker: so only some of the
//! workers are for these ([`Site::Remote`]), and the last quarter is left to other file systems.
//! Nothing is known yet of a file system behind a mount point, so only a call that may wait that
//! long crosses one (`Lookup::Local`).
//!
//! *Paced* means that calls which took long after all, because the journal was full, memory was
//! swapped out or large files were freed, send the next ones to workers for a while, and for twice
//! as long each time that it happens again. A single slow call does not: the thread may have been
//! preempted.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use coroutine::{Semaphore, Workers};
use foldhash::fast::RandomState;
use nix::sys::statfs::fstatfs;

/// The numbers of linux/magic.h, in 32 bits of a field whose type differs between C libraries, and
/// those of file systems that are not in Linux.
mod magic {
    pub const TMPFS: u32 = 0x0102_1994;
    pub const RAMFS: u32 = 0x8584_58f6;
    /// Those of ext2 and ext3, too.
    pub const EXT4: u32 = 0xef53;
    pub const XFS: u32 = 0x5846_5342;
    pub const BTRFS: u32 = 0x9123_683e;
    pub const F2FS: u32 = 0xf2f5_2010;
    pub const BCACHEFS: u32 = 0xca45_1a4e;
    pub const ZFS: u32 = 0x2fc1_2fc1;
    pub const JFS: u32 = 0x3153_464a;
    pub const NILFS: u32 = 0x3434;
    pub const EROFS: u32 = 0xe0f5_e1e2;
    pub const SQUASHFS: u32 = 0x7371_7368;
    pub const ISOFS: u32 = 0x9660;
    pub const UDF: u32 = 0x1501_3346;
    pub const FAT: u32 = 0x4d44;
    pub const EXFAT: u32 = 0x2011_bab0;
    pub const NTFS3: u32 = 0x7366_746e;
}

/// Major and minor number of a file system's device.
pub type Device = (u32, u32);

/// What a call asks of the file system, in terms of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// What the kernel holds in memory for a pinned inode: statx, an open for reading, a close.
    Held,
    /// What may have to be read first: a directory's entries, a link's target, attributes.
    Read,
    /// A change that is in memory when the call returns: of a name, an attribute, or a small write.
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

/// Where a file system keeps its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// The host's memory.
    Memory,
    /// A disk of this host.
    Disk,
    /// Network, FUSE or unknown: a call may block indefinitely.
    Remote,
}

impl Medium {
    /// The medium of an open file. May block. A file system that cannot be asked is remote.
    pub fn of(file: impl AsFd) -> Medium {
        fstatfs(file).map_or(Medium::Remote, |statfs| {
            Medium::of_type(statfs.filesystem_type().0 as u32)
        })
    }

    fn of_type(kind: u32) -> Medium {
        match kind {
            magic::TMPFS | magic::RAMFS => Medium::Memory,
            // Inodes in use are in memory, changes go to a log or a transaction first, and the rest
            // takes as long as a disk does. ZFS makes a writer wait when it has too much to write:
            // the pace notices that.
            magic::EXT4
            | magic::XFS
            | magic::BTRFS
            | magic::F2FS
            | magic::BCACHEFS
            | magic::ZFS
            | magic::JFS
            | magic::NILFS
            | magic::EROFS
            | magic::SQUASHFS
            | magic::ISOFS
            | magic::UDF
            | magic::FAT
            | magic::EXFAT
            | magic::NTFS3 => Medium::Disk,
            // overlayfs and eCryptfs are as slow as the file systems below them, which may be on a
            // network and which they do not tell. Cluster file systems (OCFS2, GFS2) ask other
            // hosts for each inode. Files of /proc and /sys run the code of any driver.
            _ => Medium::Remote,
        }
    }
}

/// Where a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// Here, on the loop.
    Here,
    /// Here, and its time is measured.
    Timed,
    /// On a worker.
    Worker,
    /// On one of the workers that may wait indefinitely.
    Remote,
}

/// Where calls are made, and what is known of the share's file systems.
pub struct Placement {
    workers: Workers,
    /// How many workers may wait for remote file systems.
    remote: Semaphore,
    root: (Device, Rc<FileSystem>),
    others: RefCell<HashMap<Device, Rc<FileSystem>, RandomState>>,
    /// For file systems of which nothing is known.
    unknown: Rc<FileSystem>,
}

/// What is known of a file system.
pub struct FileSystem {
    medium: Medium,
    reads: Pace,
    changes: Pace,
    /// By [`Transfer`]: whether it has not refused `RWF_NOWAIT` yet.
    nowait: [Cell<bool>; 2],
}

impl Placement {
    /// For a share whose root is on `device`, which is `medium`. Only `workers` block.
    pub fn new(workers: Workers, device: Device, medium: Medium) -> Placement {
        Placement {
            remote: Semaphore::new(remote_workers(workers.max_threads())),
            workers,
            root: (device, FileSystem::new(medium)),
            others: RefCell::default(),
            unknown: FileSystem::new(Medium::Remote),
        }
    }

    /// The pool whose completions the loop must run.
    pub fn workers(&self) -> &Workers {
        &self.workers
    }

    /// The guest has reached a file on `device` by crossing into it. A device number may stand for
    /// another file system than the last time, but not while the guest has one of its files.
    pub fn learn(&self, device: Device, medium: Medium) {
        let mut others = self.others.borrow_mut();
        if others
            .get(&device)
            .is_none_or(|known| known.medium != medium)
        {
            others.insert(device, FileSystem::new(medium));
        }
    }

    /// Whether `device` is that of the share's root, whose medium never changes.
    pub fn is_root(&self, device: Device) -> bool {
        self.root.0 == device
    }

    /// The file system on `device`.
    pub fn file_system(&self, device: Device) -> Rc<FileSystem> {
        if self.is_root(device) {
            return self.root.1.clone();
        }
        let others = self.others.borrow();
        others.get(&device).unwrap_or(&self.unknown).clone()
    }

    /// Whether a call on `device` may block indefinitely.
    pub fn is_remote(&self, device: Device) -> bool {
        self.file_system(device).medium == Medium::Remote
    }

    /// Makes a call of this cost on a file of `on`, at the site where it belongs.
    pub fn call<T: Send>(&self, on: &FileSystem, cost: Cost, call: impl FnOnce() -> T + Send) -> T {
        match on.site(cost) {
            Site::Timed => {
                let begin = Instant::now();
                let result = call();
                on.took(cost, begin.elapsed());
                result
            }
            site => self.call_at(site, call),
        }
    }

    /// Makes a call at this site, without measuring its time. While a worker makes it, other
    /// requests go on.
    pub fn call_at<T: Send>(&self, site: Site, call: impl FnOnce() -> T + Send) -> T {
        match site {
            Site::Here | Site::Timed => call(),
            Site::Worker => self.workers.offload(call),
            Site::Remote => {
                let _permit = self.remote.acquire();
                self.workers.offload(call)
            }
        }
    }
}

/// How many of all workers may wait for remote file systems: all but a quarter, which is at least
/// one if there are two.
fn remote_workers(all: usize) -> usize {
    all - (all / 4).max(1).min(all - 1)
}

impl FileSystem {
    fn new(medium: Medium) -> Rc<FileSystem> {
        Rc::new(FileSystem {
            medium,
            reads: Pace::default(),
            changes: Pace::default(),
            nowait: [Cell::new(true), Cell::new(true)],
        })
    }

    /// Where it keeps its files.
    pub fn medium(&self) -> Medium {
        self.medium
    }

    /// Where to make a call of this cost. Counts it for the pace.
    pub fn site(&self, cost: Cost) -> Site {
        let timed = |pace: &Pace| match pace.allows() {
            true => Site::Timed,
            false => Site::Worker,
        };
        match (self.medium, cost) {
            (Medium::Remote, _) => Site::Remote,
            (_, Cost::Held) => Site::Here,
            (Medium::Memory, Cost::Read) => timed(&self.reads),
            (_, Cost::Change) => timed(&self.changes),
            (Medium::Disk, Cost::Read) | (_, Cost::Wait) => Site::Worker,
        }
    }

    fn took(&self, cost: Cost, time: Duration) {
        match cost {
            Cost::Read => self.reads.took(time),
            _ => self.changes.took(time),
        }
    }

    /// Whether a transfer that does not wait is worth trying.
    pub fn tries_nowait(&self, transfer: Transfer) -> bool {
        self.nowait[transfer as usize].get()
    }

    /// Notes that it does not support transfers that do not wait (EOPNOTSUPP).
    pub fn refuses_nowait(&self, transfer: Transfer) {
        self.nowait[transfer as usize].set(false);
    }
}

/// A call that takes longer has waited for something, or its thread for the processor.
const LONG: Duration = Duration::from_millis(1);
/// After this many short calls in a row, a long one counts as the first.
const CALM: u32 = 64;
/// How many calls go to workers after a second long one: at first, and at most.
const FIRST_PAUSE: u32 = 64;
const LONGEST_PAUSE: u32 = 8192;

/// Whether calls of one kind have been short lately.
#[derive(Default)]
struct Pace {
    /// How many more calls go to workers.
    skip: Cell<u32>,
    /// The last pause; 0 for none.
    pause: Cell<u32>,
    /// How many more short calls it takes until a long one counts as the first.
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

    const COSTS: [Cost; 4] = [Cost::Held, Cost::Read, Cost::Change, Cost::Wait];

    #[test]
    fn each_medium_has_its_sites() {
        use Site::{Here, Remote, Timed, Worker};
        let sites = |medium| COSTS.map(|cost| FileSystem::new(medium).site(cost));
        assert_eq!(sites(Medium::Memory), [Here, Timed, Timed, Worker]);
        assert_eq!(sites(Medium::Disk), [Here, Worker, Timed, Worker]);
        assert_eq!(sites(Medium::Remote), [Remote; 4]);
    }

    #[test]
    fn what_nobody_knows_is_remote() {
        let workers = Workers::new(1).unwrap();
        let placement = Placement::new(workers, (8, 1), Medium::Memory);
        assert!(!placement.is_remote((8, 1)));
        assert!(placement.is_remote((0, 45)));
        placement.learn((0, 45), Medium::Disk);
        assert!(!placement.is_remote((0, 45)));
        // The number has come to another file system.
        placement.learn((0, 45), Medium::Remote);
        assert!(placement.is_remote((0, 45)));

        assert_eq!(Medium::of(File::open("/proc").unwrap()), Medium::Remote);
        assert_eq!(Medium::of_type(0x6573_5546), Medium::Remote);
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
        let file_system = FileSystem::new(Medium::Disk);
        file_system.refuses_nowait(Transfer::Write);
        assert!(!file_system.tries_nowait(Transfer::Write));
        assert!(file_system.tries_nowait(Transfer::Read));
    }

    #[test]
    fn changes_and_reads_have_each_their_pace() {
        let file_system = FileSystem::new(Medium::Memory);
        for _ in 0..2 {
            file_system.took(Cost::Change, LONG);
        }
        assert_eq!(file_system.site(Cost::Change), Site::Worker);
        assert_eq!(file_system.site(Cost::Read), Site::Timed);
        assert_eq!(file_system.site(Cost::Held), Site::Here);
    }
}
