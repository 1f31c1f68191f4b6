//! What the rows hold. A row is filled before the store that marks it used, and later changes with a
//! single store, so that it is consistent at every instant.

use std::os::fd::RawFd;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64};

use super::heap::Reference;
use super::table::{Record, Table};
use crate::export::{FileKind, InodeId, InodeKey};

/// An inode that the guest has reached.
#[repr(C)]
#[derive(Default)]
pub struct InodeRecord {
    /// [`Pin`]; 0 for a free row.
    pin: AtomicU64,
    /// The row of the directory in the upper half, its name in the heap in the lower; 0 for none.
    place: AtomicU64,
    device: AtomicU64,
    inode: AtomicU64,
    mount: AtomicU64,
    birth_seconds: AtomicI64,
    /// One more than the nanoseconds; 0 if the birth is not known.
    birth_nanoseconds: AtomicU32,
    /// Of [`FILE_KINDS`].
    kind: AtomicU32,
}

const FILE_KINDS: [FileKind; 4] = [
    FileKind::Regular,
    FileKind::Directory,
    FileKind::Symlink,
    FileKind::Special,
];

/// How the inode's file is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// By this descriptor.
    Descriptor(RawFd),
    /// By a file handle, which is in the heap.
    Handle(u32),
    /// By its place.
    Name,
}

/// The place of an inode: the row of its directory, and the name in the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceRecord {
    /// A row of inodes.
    pub directory: u32,
    /// A string.
    pub name: u32,
}

const KIND: u32 = 32;

impl InodeRecord {
    /// Writes what never changes. The row is not used before [`InodeRecord::set_pin`].
    pub fn describe(&self, key: &InodeKey, kind: FileKind) {
        let (major, minor) = key.id.device;
        let (seconds, nanoseconds) = key.birth.map_or((0, 0), |(s, n)| (s, n + 1));
        self.place.store(0, Relaxed);
        let kind = FILE_KINDS.iter().position(|known| *known == kind);
        self.kind.store(kind.unwrap_or_default() as u32, Relaxed);
        self.device
            .store(u64::from(major) << 32 | u64::from(minor), Relaxed);
        self.inode.store(key.id.inode, Relaxed);
        self.mount.store(key.mount, Relaxed);
        self.birth_seconds.store(seconds, Relaxed);
        self.birth_nanoseconds.store(nanoseconds, Relaxed);
    }

    /// The inode's identity.
    pub fn key(&self) -> InodeKey {
        let device = self.device.load(Relaxed);
        let nanoseconds = self.birth_nanoseconds.load(Relaxed).checked_sub(1);
        InodeKey {
            id: InodeId {
                device: ((device >> 32) as u32, device as u32),
                inode: self.inode.load(Relaxed),
            },
            mount: self.mount.load(Relaxed),
            birth: nanoseconds.map(|n| (self.birth_seconds.load(Relaxed), n)),
        }
    }

    /// Changes how the file is reached.
    pub fn set_pin(&self, pin: Pin) {
        let (kind, value) = match pin {
            Pin::Descriptor(fd) => (1, fd as u32),
            Pin::Handle(handle) => (2, handle),
            Pin::Name => (3, 0),
        };
        self.pin.store(kind << KIND | u64::from(value), Release);
    }

    /// How the file is reached. None for bits that mean nothing.
    pub fn pin(&self) -> Option<Pin> {
        let pin = self.pin.load(Relaxed);
        match pin >> KIND {
            1 => Some(Pin::Descriptor(pin as u32 as RawFd)),
            2 => Some(Pin::Handle(pin as u32)),
            3 => Some(Pin::Name),
            _ => None,
        }
    }

    /// Changes where the file was last seen.
    pub fn set_place(&self, place: Option<PlaceRecord>) {
        let place = place.map_or(0, |place| {
            u64::from(place.directory) << 32 | u64::from(place.name)
        });
        self.place.store(place, Release);
    }

    /// Where the file was last seen.
    pub fn place(&self) -> Option<PlaceRecord> {
        let place = self.place.load(Relaxed);
        (place != 0).then_some(PlaceRecord {
            directory: (place >> 32) as u32,
            name: place as u32,
        })
    }

    /// The file's type. None for bits that mean nothing.
    pub fn kind(&self) -> Option<FileKind> {
        FILE_KINDS.get(self.kind.load(Relaxed) as usize).copied()
    }
}

// SAFETY: atomics alone, aligned to 8 bytes.
unsafe impl Record for InodeRecord {
    fn clear(&self) {
        self.pin.store(0, Release);
    }

    fn is_used(&self) -> bool {
        self.pin.load(Relaxed) != 0
    }
}

/// A fid.
#[repr(C)]
#[derive(Default)]
pub struct FidRecord {
    /// [`Target`]; 0 for a free row.
    target: AtomicU64,
    number: AtomicU32,
    user: AtomicU32,
    /// The row of the directory where `..` stops.
    root: AtomicU32,
    /// Where a walk of the fid onto itself began; 0 if there was none.
    previous: AtomicU32,
}

/// What a fid stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// This row of inodes.
    Walked(u32),
    /// An open file of this inode, by this descriptor.
    Open(u32, RawFd),
    /// The value of an attribute, in the heap.
    Value(u32),
    /// An attribute that is being written, in the heap.
    Draft(u32),
}

const STATE: u32 = 61;
const FD: u32 = 32;
const FD_MASK: u64 = (1 << (STATE - FD)) - 1;

impl FidRecord {
    /// Writes what never changes. The row is not used before [`FidRecord::set_target`].
    pub fn describe(&self, number: u32, user: u32, root: u32) {
        self.number.store(number, Relaxed);
        self.user.store(user, Relaxed);
        self.root.store(root, Relaxed);
        self.previous.store(0, Relaxed);
    }

    /// Sets where a walk of the fid onto itself begins.
    pub fn set_previous(&self, inode: u32) {
        self.previous.store(inode, Release);
    }

    /// Where the last walk of the fid onto itself began; 0 if there was none.
    pub fn previous(&self) -> u32 {
        self.previous.load(Relaxed)
    }

    /// The guest's number.
    pub fn number(&self) -> u32 {
        self.number.load(Relaxed)
    }

    /// The user, by the host's id.
    pub fn user(&self) -> u32 {
        self.user.load(Relaxed)
    }

    /// The row of the inode where `..` stops.
    pub fn root(&self) -> u32 {
        self.root.load(Relaxed)
    }

    /// Changes what the fid stands for.
    pub fn set_target(&self, target: Target) {
        let (state, fd, value) = match target {
            Target::Walked(inode) => (1, 0, inode),
            // The kernel gives no descriptor out beyond 2^29: fs.nr_open is smaller.
            Target::Open(inode, fd) => (2, fd as u64 & FD_MASK, inode),
            Target::Value(value) => (3, 0, value),
            Target::Draft(draft) => (4, 0, draft),
        };
        self.target
            .store(state << STATE | fd << FD | u64::from(value), Release);
    }

    /// What the fid stands for. None for bits that mean nothing.
    pub fn target(&self) -> Option<Target> {
        let target = self.target.load(Relaxed);
        let value = target as u32;
        match target >> STATE {
            1 => Some(Target::Walked(value)),
            2 => Some(Target::Open(value, (target >> FD & FD_MASK) as RawFd)),
            3 => Some(Target::Value(value)),
            4 => Some(Target::Draft(value)),
            _ => None,
        }
    }
}

// SAFETY: atomics alone, aligned to 8 bytes.
unsafe impl Record for FidRecord {
    fn clear(&self) {
        self.target.store(0, Release);
    }

    fn is_used(&self) -> bool {
        self.target.load(Relaxed) != 0
    }
}

/// A locked range.
#[repr(C)]
#[derive(Default)]
pub struct LockRecord {
    /// The row of the fid through which it was locked; 0 for a free row.
    fid: AtomicU32,
    /// The description that holds the inode's locks on the host.
    description: AtomicI32,
    start: AtomicU64,
    end: AtomicU64,
    /// The guest's name, in the heap.
    client: AtomicU32,
    /// The process there.
    process: AtomicU32,
    /// 1 for a read lock, 2 for a write lock.
    kind: AtomicU32,
    _reserved: AtomicU32,
}

/// What a [`LockRecord`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockEntry {
    /// The row of the fid through which it was locked.
    pub fid: u32,
    /// The description that holds the inode's locks on the host.
    pub description: RawFd,
    /// The guest's name, in the heap.
    pub client: Reference,
    /// The process there.
    pub process: u32,
    /// 1 for a read lock, 2 for a write lock.
    pub kind: u32,
    /// The first byte.
    pub start: u64,
    /// The last byte.
    pub end: u64,
}

impl LockRecord {
    /// Writes everything.
    pub fn describe(&self, lock: &LockEntry) {
        self.description.store(lock.description, Relaxed);
        self.client.store(lock.client, Relaxed);
        self.process.store(lock.process, Relaxed);
        self.kind.store(lock.kind, Relaxed);
        self.start.store(lock.start, Relaxed);
        self.end.store(lock.end, Relaxed);
        self.fid.store(lock.fid, Release);
    }

    /// Changes the description.
    pub fn set_description(&self, description: RawFd) {
        self.description.store(description, Release);
    }

    /// Everything.
    pub fn entry(&self) -> LockEntry {
        LockEntry {
            fid: self.fid.load(Relaxed),
            description: self.description.load(Relaxed),
            client: self.client.load(Relaxed),
            process: self.process.load(Relaxed),
            kind: self.kind.load(Relaxed),
            start: self.start.load(Relaxed),
            end: self.end.load(Relaxed),
        }
    }
}

// SAFETY: atomics alone, aligned to 8 bytes.
unsafe impl Record for LockRecord {
    fn clear(&self) {
        self.fid.store(0, Release);
    }

    fn is_used(&self) -> bool {
        self.fid.load(Relaxed) != 0
    }
}

/// What exists once.
#[repr(C)]
#[derive(Default)]
pub struct Header {
    /// Identifies the memory.
    pub magic: AtomicU64,
    /// Of the format.
    pub version: AtomicU32,
    /// The agreed size of a message; 0 before Tversion.
    pub msize: AtomicU32,
    _reserved: AtomicU32,
}

// SAFETY: atomics alone, aligned to 8 bytes.
unsafe impl Record for Header {
    fn clear(&self) {}

    fn is_used(&self) -> bool {
        true
    }
}

/// A file system. Its row is its index in qids.
#[repr(transparent)]
#[derive(Default)]
pub struct DeviceRecord(AtomicU64);

impl DeviceRecord {
    /// Writes the device.
    pub fn set(&self, (major, minor): (u32, u32)) {
        // Above the kernel's 12 bits of a major number there is room for the mark of use.
        let device = 1 << 63 | u64::from(major) << 32 | u64::from(minor);
        self.0.store(device, Release);
    }

    /// The device.
    pub fn get(&self) -> (u32, u32) {
        let device = self.0.load(Relaxed);
        ((device >> 32) as u32 & (u32::MAX >> 1), device as u32)
    }
}

// SAFETY: one atomic, aligned to 8 bytes.
unsafe impl Record for DeviceRecord {
    fn clear(&self) {
        self.0.store(0, Release);
    }

    fn is_used(&self) -> bool {
        self.0.load(Relaxed) != 0
    }
}

impl Table<DeviceRecord> {
    /// Records the file system with this index in qids. That of the share, which has index 0, is not
    /// recorded.
    pub fn set(&self, index: u64, device: (u32, u32)) {
        let index = u32::try_from(index).unwrap_or(0);
        if let Some(row) = self.get(index) {
            row.set(device);
            self.set_end(index);
        }
    }

    /// The file systems in the order of their indices, from 1 on.
    pub fn all(&self) -> impl Iterator<Item = (u32, u32)> {
        let rows = (1..=self.end()).filter_map(|index| self.get(index));
        rows.map(DeviceRecord::get)
    }
}
