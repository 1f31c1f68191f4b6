//! What must outlive the process that serves: everything that the guest has built up, as plain data in
//! shared memory.
//!
//! A supervisor has the same memory, and the same table of descriptors, as the process that serves. When
//! that process dies, by a fault or by SIGKILL, the next one learns here which descriptor is what, and
//! continues (`server::resume`). A crash may come between any two stores, so the data is consistent at
//! every instant.
//!
//! A guest may have compromised the process before: the content is checked like a request.
//!
//! - `table`: rows of plain data; `records`: what they hold.
//! - `heap`: names, file handles, attributes.
//! - `claims`: the descriptors, each of which is taken over once.

mod claims;
mod heap;
mod records;
mod table;

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, ftruncate,
    memfd_create,
};
use rustix::io::Errno;
use vm_memory::{FileOffset, MmapRegion};

pub use claims::Claims;
pub use heap::{Heap, Reference, Text};
pub use records::{
    DeviceRecord, FidRecord, Header, InodeRecord, LockEntry, LockRecord, Pin, PlaceRecord, Target,
};
pub use table::{Record, Row, Table};

use crate::export::{FILE_SYSTEMS, FileKind, InodeKey};

const MAGIC: u64 = u64::from_le_bytes(*b"9p-state");
/// Of the format of everything in this module.
pub const VERSION: u32 = 1;
/// Each part of the memory begins at a multiple of this.
const ALIGNMENT: usize = 4096;

/// More than all requests of a ring can keep.
const UNDER_WAY: usize = 1 << 16;

/// How much there may be.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Fids.
    pub fids: usize,
    /// Locked ranges.
    pub locks: usize,
    /// Bytes of attributes.
    pub xattr_bytes: usize,
    /// Bytes for the device.
    pub device: usize,
}

/// Where everything lies in the memory, in bytes.
struct Layout {
    fids: usize,
    inodes: usize,
    locks: usize,
    devices: usize,
    heap: usize,
    end: usize,
    /// In rows.
    counts: [u32; 3],
}

impl Capacity {
    fn layout(&self) -> Layout {
        let rows = |count: usize| u32::try_from(count).unwrap_or(u32::MAX / 2);
        // Requests under way keep what they work on, also if it is removed or replaced meanwhile.
        let fids = rows(self.fids.saturating_add(UNDER_WAY));
        // A fid has two, and its file may keep the directory above.
        let inodes = rows(self.fids.saturating_mul(3).saturating_add(UNDER_WAY));
        let locks = rows(self.locks.saturating_mul(2).saturating_add(UNDER_WAY));
        let mut end = Table::<Header>::size(1).next_multiple_of(ALIGNMENT);
        let mut next = |size: usize| {
            let start = end;
            end = (start + size).next_multiple_of(ALIGNMENT);
            start
        };
        // The longest name and handle fit, and an attribute takes at most twice its size.
        let heap = (inodes as usize + locks as usize) * 512 + 4 * self.xattr_bytes + (1 << 20);
        Layout {
            fids: next(Table::<FidRecord>::size(fids)),
            inodes: next(Table::<InodeRecord>::size(inodes)),
            locks: next(Table::<LockRecord>::size(locks)),
            devices: next(Table::<DeviceRecord>::size(FILE_SYSTEMS as u32)),
            heap: next(heap),
            end,
            counts: [fids, inodes, locks],
        }
    }

    /// Empty memory of that size, for this process, all that are forked from it, and the programs that
    /// they become; not for those where the size of files is limited to less (setrlimit(2)). Pages are
    /// allocated when they are written. Errors: those of memfd_create(2), ftruncate(2) and mmap(2).
    pub fn memory(&self) -> Result<Memory, Error> {
        let file = |size: usize| {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = File::from(memfd_create(NAME, flags)?);
            ftruncate(&file, size as u64)?;
            // What a process has mapped is there as long as it lives, whatever another one does.
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            fcntl_add_seals(&file, seals)?;
            Ok::<_, Errno>(file)
        };
        let [tables, device] = self.sizes();
        match file(tables).and_then(|tables| Ok([tables, file(device)?])) {
            Ok(files) => self.mapped(files),
            Err(Errno::FBIG) => Ok(Memory {
                tables: map(None, tables)?,
                device: map(None, device)?,
            }),
            Err(error) => Err(Error::File(error.into())),
        }
    }

    /// The sizes of the two files of a memory, in bytes.
    pub fn sizes(&self) -> [usize; 2] {
        [self.layout().end, self.device.next_multiple_of(ALIGNMENT)]
    }

    /// The memory that another program has left in these files, which are its own from now on. Errors: they
    /// are not of the right size, or can shrink.
    pub fn mapped(&self, files: [File; 2]) -> Result<Memory, Error> {
        let [tables, device] = self.sizes();
        let check = |file: File, size: usize| {
            let seals = fcntl_get_seals(&file).map_err(|error| Error::File(error.into()))?;
            let found = file.metadata().map_err(Error::File)?.len();
            match seals.contains(SealFlags::SHRINK) && found == size as u64 {
                true => map(Some(file), size),
                false => Err(Error::Damaged("it has another size")),
            }
        };
        let [tables_file, device_file] = files;
        Ok(Memory {
            tables: check(tables_file, tables)?,
            device: check(device_file, device)?,
        })
    }
}

fn map(file: Option<File>, size: usize) -> Result<Rc<MmapRegion>, Error> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = match file {
        Some(_) => libc::MAP_SHARED,
        None => libc::MAP_SHARED | libc::MAP_ANONYMOUS,
    };
    let file = file.map(|file| FileOffset::new(file, 0));
    let region = MmapRegion::build(file, size, access, kind | libc::MAP_NORESERVE)?;
    Ok(Rc::new(region))
}

/// What /proc/PID/maps calls the memory.
const NAME: &str = "vhost-user-9p";

/// Memory in which a state is kept.
#[derive(Clone, Debug)]
pub struct Memory {
    tables: Rc<MmapRegion>,
    device: Rc<MmapRegion>,
}

impl Memory {
    fn header(&self) -> Table<Header> {
        Table::at(&self.tables, 0, 1)
    }

    fn files(&self) -> Option<[&File; 2]> {
        let [tables, device] = [&self.tables, &self.device].map(|region| region.file_offset());
        Some([tables?.file(), device?.file()])
    }

    /// The descriptors of the two files; None if there are none.
    pub fn descriptors(&self) -> Option<[RawFd; 2]> {
        Some(self.files()?.map(AsRawFd::as_raw_fd))
    }

    /// Empties it, or replaces it by empty one. Errors: those of fallocate(2) and mmap(2).
    pub fn clear(&mut self, capacity: &Capacity) -> Result<(), Error> {
        let Some(files) = self.files() else {
            *self = capacity.memory()?;
            return Ok(());
        };
        for (file, size) in files.into_iter().zip(capacity.sizes()) {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file, flags, 0, size as u64).map_err(|error| Error::File(error.into()))?;
        }
        Ok(())
    }
}

/// What the guest has built up.
pub struct State {
    header: Rc<Table<Header>>,
    fids: Rc<Table<FidRecord>>,
    inodes: Rc<Table<InodeRecord>>,
    locks: Rc<Table<LockRecord>>,
    devices: Rc<Table<DeviceRecord>>,
    heap: Rc<Heap>,
    device: Rc<MmapRegion>,
}

/// Why a process cannot continue with the state of another.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be mapped.
    #[error("cannot map the state: {0}")]
    Map(#[from] vm_memory::mmap::MmapRegionError),
    /// There is no memory for it.
    #[error("no memory for the state: {0}")]
    File(io::Error),
    /// It has another version.
    #[error("the state has version {0}, not {VERSION}")]
    Version(u32),
    /// Something did not fit.
    #[error("the state had no room for some files or locks")]
    Incomplete,
    /// It is inconsistent.
    #[error("the state is damaged: {0}")]
    Damaged(&'static str),
    /// A descriptor that it names cannot be used.
    #[error("a descriptor of the state cannot be used: {0}")]
    Descriptor(#[from] io::Error),
}

impl State {
    /// The state in a memory of that capacity, with its content.
    pub fn new(memory: &Memory, capacity: &Capacity) -> State {
        let layout = capacity.layout();
        let all = &memory.tables;
        let [fids, inodes, locks] = layout.counts;
        let heap = Heap::at(all, layout.heap, layout.end - layout.heap);
        State {
            header: Rc::new(memory.header()),
            fids: Rc::new(Table::at(all, layout.fids, fids)),
            inodes: Rc::new(Table::at(all, layout.inodes, inodes)),
            locks: Rc::new(Table::at(all, layout.locks, locks)),
            devices: Rc::new(Table::at(all, layout.devices, FILE_SYSTEMS as u32)),
            heap: Rc::new(heap),
            device: memory.device.clone(),
        }
    }

    /// What exists once.
    pub fn header(&self) -> &Header {
        self.header.get(1).expect("the table has one row")
    }

    /// Notes the agreed size of a message; 0 for no session.
    pub fn set_msize(&self, msize: u32) {
        self.header().msize.store(msize, Relaxed);
    }

    /// The memory for the device's state.
    pub fn device(&self) -> &Rc<MmapRegion> {
        &self.device
    }

    /// Whether a process has begun to serve with it.
    pub fn is_begun(&self) -> bool {
        self.header().magic.load(Relaxed) == MAGIC
    }

    /// Marks the state as that of a process that serves.
    pub fn begin(&self) {
        self.header().version.store(VERSION, Relaxed);
        self.header().magic.store(MAGIC, Relaxed);
    }

    /// Errors: no process can continue with it.
    pub fn check(&self) -> Result<(), Error> {
        let version = self.header().version.load(Relaxed);
        match version {
            VERSION => Ok(()),
            other => Err(Error::Version(other)),
        }
    }

    /// Fids.
    pub fn fids(&self) -> &Rc<Table<FidRecord>> {
        &self.fids
    }

    /// Inodes.
    pub fn inodes(&self) -> &Rc<Table<InodeRecord>> {
        &self.inodes
    }

    /// Locks.
    pub fn locks(&self) -> &Rc<Table<LockRecord>> {
        &self.locks
    }

    /// File systems, by their index in qids.
    pub fn devices(&self) -> &Rc<Table<DeviceRecord>> {
        &self.devices
    }

    /// Strings.
    pub fn heap(&self) -> &Rc<Heap> {
        &self.heap
    }

    /// A state that ends with this process. Errors: those of mmap(2).
    pub fn private(capacity: &Capacity) -> Result<State, Error> {
        let state = State::new(&capacity.memory()?, capacity);
        state.begin();
        Ok(state)
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

/// The record of an inode, removed when this is dropped.
#[derive(Debug)]
pub struct InodeEntry {
    row: Row<InodeRecord>,
    heap: Rc<Heap>,
    name: RefCell<Option<Text>>,
    handle: RefCell<Option<Text>>,
}

impl InodeEntry {
    /// An inode that is pinned by a descriptor.
    pub fn new(state: &State, key: &InodeKey, kind: FileKind, fd: RawFd) -> InodeEntry {
        let row = state.inodes.take();
        row.describe(key, kind);
        row.set_pin(Pin::Descriptor(fd));
        InodeEntry::adopted(row, state.heap.clone(), None)
    }

    /// An inode that is not found.
    pub fn lost(state: &State, key: &InodeKey, kind: FileKind) -> InodeEntry {
        let row = state.inodes.take();
        row.describe(key, kind);
        row.set_pin(Pin::Name);
        InodeEntry::adopted(row, state.heap.clone(), None)
    }

    /// An inode that another process has recorded, with its handle.
    pub fn adopted(row: Row<InodeRecord>, heap: Rc<Heap>, handle: Option<Text>) -> InodeEntry {
        InodeEntry {
            row,
            heap,
            name: RefCell::default(),
            handle: RefCell::new(handle),
        }
    }

    /// The row's number.
    pub fn index(&self) -> u32 {
        self.row.index()
    }

    /// The inode has a descriptor again.
    pub fn pinned(&self, fd: RawFd) {
        self.row.set_pin(Pin::Descriptor(fd));
        self.handle.take();
    }

    /// The inode is found by a handle from now on, or by its name. Call it before its descriptor is
    /// closed.
    pub fn evicted(&self, handle: Option<&[u8]>) {
        let handle = handle.map(|handle| self.heap.keep(handle));
        self.row.set_pin(match &handle {
            Some(handle) => Pin::Handle(handle.reference()),
            None => Pin::Name,
        });
        self.handle.replace(handle);
    }

    /// Where the inode was last seen: the row of the directory, and the name there.
    pub fn moved(&self, place: Option<(u32, &[u8])>) {
        let place = place.map(|(directory, name)| (directory, self.heap.keep(name)));
        self.row
            .set_place(place.as_ref().map(|(directory, name)| PlaceRecord {
                directory: *directory,
                name: name.reference(),
            }));
        self.name.replace(place.map(|(_, name)| name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::InodeId;

    const CAPACITY: Capacity = Capacity {
        fids: 4,
        locks: 4,
        xattr_bytes: 4096,
        device: 4096,
    };

    fn key(inode: u64) -> InodeKey {
        let device = (8, 1);
        InodeKey {
            id: InodeId { device, inode },
            mount: 21,
            birth: Some((-5, 999_999_999)),
        }
    }

    #[test]
    fn rows_are_found_by_the_next_process() {
        let memory = CAPACITY.memory().unwrap();
        let before = State::new(&memory, &CAPACITY);
        assert!(!before.is_begun());
        before.begin();
        let first = InodeEntry::new(&before, &key(1), FileKind::Directory, 7);
        let second = InodeEntry::new(&before, &key(2), FileKind::Regular, 8);
        second.moved(Some((first.index(), b"old")));
        second.moved(Some((first.index(), b"name")));
        let third = InodeEntry::new(&before, &key(3), FileKind::Symlink, 9);
        drop(first);
        second.evicted(None);
        let fid = before.fids().take();
        fid.describe(1, 1000, second.index());
        fid.set_target(Target::Open(second.index(), 12));
        // The process dies: nothing is freed.
        std::mem::forget((second, third, fid));

        let after = State::new(&memory, &CAPACITY);
        assert!(after.is_begun());
        after.check().unwrap();
        let rows = after.inodes().adopt().unwrap();
        let found: Vec<_> = rows.iter().map(|row| (row.index(), row.key())).collect();
        assert_eq!(found, [(2, key(2)), (3, key(3))]);
        assert_eq!(rows[0].kind(), Some(FileKind::Regular));
        assert_eq!(rows[0].pin(), Some(Pin::Name));
        assert_eq!(rows[1].pin(), Some(Pin::Descriptor(9)));
        let place = rows[0].place().unwrap();
        assert_eq!(place.directory, 1);
        let names = after.heap().adopt(&[place.name]).unwrap();
        assert_eq!(names[0].bytes(), b"name");
        // The row in between is free, and so is the block of the old name.
        assert_eq!(
            InodeEntry::new(&after, &key(4), FileKind::Special, 1).index(),
            1
        );
        assert_ne!(after.heap().keep(b"other").reference(), place.name);
        let fids = after.fids().adopt().unwrap();
        assert_eq!(fids[0].target(), Some(Target::Open(2, 12)));
        assert_eq!(
            (fids[0].number(), fids[0].user(), fids[0].root()),
            (1, 1000, 2)
        );
    }

    #[test]
    fn a_table_that_was_too_small_is_not_adopted() {
        let memory = CAPACITY.memory().unwrap();
        let state = State::new(&memory, &CAPACITY);
        let rows: Vec<_> = (0..CAPACITY.fids + UNDER_WAY)
            .map(|_| state.fids().take())
            .collect();
        let next = || State::new(&memory, &CAPACITY).fids().adopt();
        assert!(next().is_some());
        let none = state.fids().take();
        assert_eq!(none.index(), 0);
        none.set_target(Target::Walked(1));
        drop(none);
        assert!(next().is_none());
        drop(rows);
        assert_ne!(state.fids().take().index(), 0);
    }

    #[test]
    fn strings_that_overlap_are_none() {
        let memory = CAPACITY.memory().unwrap();
        let heap = State::new(&memory, &CAPACITY).heap().clone();
        let long = heap.keep(&[7; 100]);
        let short = heap.keep(b"x");
        let (long, short) = {
            let references = (long.reference(), short.reference());
            std::mem::forget((long, short));
            references
        };
        let next = || State::new(&memory, &CAPACITY).heap().clone();
        assert!(next().adopt(&[long, long]).is_none());
        assert!(next().adopt(&[long, long + 1]).is_none());
        assert!(next().adopt(&[0]).is_none());
        assert!(next().adopt(&[u32::MAX]).is_none());
        let heap = next();
        let texts = heap.adopt(&[short, long]).unwrap();
        assert_eq!(texts[1].bytes(), [7; 100]);
        texts[1].write(98, b"abc");
        assert_eq!(texts[1].bytes()[97..], [7, b'a', b'b']);
        drop(texts);
        assert_eq!(heap.keep(&[0; 100]).reference(), long);
    }

    #[test]
    fn a_descriptor_is_had_once() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        use std::os::fd::IntoRawFd;
        let (reader, writer) = (reader.into_raw_fd(), writer.into_raw_fd());
        // SAFETY: nobody else owns the two.
        let mut claims = unsafe { Claims::new([reader, writer]) };
        let taken = claims.take(writer).unwrap();
        assert!(claims.take(writer).is_err());
        drop(claims);
        // The other end was closed.
        assert_eq!(
            nix::unistd::write(&taken, b"x"),
            Err(nix::errno::Errno::EPIPE)
        );
    }
}
