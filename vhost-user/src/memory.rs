//! The guest's memory as the front-end describes it.
//!
//! The front-end sends regions: a file, and where a part of it is mapped in the guest (physical
//! address) and in the front-end itself (user address). The guest's descriptors hold physical
//! addresses, the control messages give the ring's parts by user addresses.
//!
//! A region is refused if it is longer than its file: an access beyond the end of a file raises SIGBUS,
//! which would end the process. A front-end can still truncate the file later, and a file system (huge
//! pages, a full tmpfs) can be overcommitted: the next access to such a page ends this process, as it
//! would end the front-end. The guest can cause neither.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::ptr::NonNull;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{
    ByteValued, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestRegionMmap, MmapRegion, VolatileSlice, guest_memory,
};

/// The maximum number of regions: as many as QEMU has memory slots.
pub(crate) const MAX_SLOTS: usize = 509;

/// A table of regions, mapped into this process. It is immutable: changes make a new table, and
/// requests in flight keep the one they were popped with.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    mapped: GuestMemoryMmap,
    regions: Vec<Region>,
}

#[derive(Clone)]
struct Region {
    guest: u64,
    user: u64,
    size: u64,
    mapping: Arc<GuestRegionMmap>,
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

impl Memory {
    /// Maps a whole table. Errors: InvalidInput for regions that overlap or are longer than their
    /// files, those of fstat(2) and mmap(2).
    pub(crate) fn new(table: &[VhostUserMemoryRegion], files: Vec<File>) -> io::Result<Memory> {
        if table.len() != files.len() {
            return Err(refused("a region without a file"));
        }
        let mut memory = Memory::default();
        for (region, file) in table.iter().zip(files) {
            memory = memory.with_region(region, file)?;
        }
        Ok(memory)
    }

    /// The table with one more region. Errors: as for [`Memory::new`], and too many regions.
    pub(crate) fn with_region(
        &self,
        region: &VhostUserMemoryRegion,
        file: File,
    ) -> io::Result<Memory> {
        // The message is packed: its fields cannot be borrowed.
        let (guest, user) = (region.guest_phys_addr, region.user_addr);
        let (size, offset) = (region.memory_size, region.mmap_offset);
        if self.regions.len() >= MAX_SLOTS {
            return Err(refused("too many memory regions"));
        }
        if user.checked_add(size).is_none() {
            return Err(refused("a memory region beyond the address space"));
        }
        if self
            .regions
            .iter()
            .any(|other| overlap(other.user, other.size, user, size))
        {
            return Err(refused("memory regions that overlap in the front-end"));
        }
        let length = usize::try_from(size).map_err(|_| refused("a memory region too large"))?;
        check_file(&file, offset, size)?;
        let mapping = MmapRegion::from_file(FileOffset::new(file, offset), length)
            .map_err(io::Error::other)?;
        let mapping = GuestRegionMmap::new(mapping, GuestAddress(guest))
            .ok_or_else(|| refused("a memory region beyond the guest's address space"))?;
        let mapping = Arc::new(mapping);
        let mut regions = self.regions.clone();
        regions.push(Region {
            guest,
            user,
            size,
            mapping,
        });
        Memory::from_regions(regions)
    }

    /// The table without a region. Errors: there is no such region.
    pub(crate) fn without_region(&self, guest: u64, user: u64, size: u64) -> io::Result<Memory> {
        let mut regions = self.regions.clone();
        let place = regions
            .iter()
            .position(|region| (region.guest, region.user, region.size) == (guest, user, size))
            .ok_or_else(|| refused("no such memory region"))?;
        regions.remove(place);
        Memory::from_regions(regions)
    }

    fn from_regions(mut regions: Vec<Region>) -> io::Result<Memory> {
        regions.sort_by_key(|region| region.guest);
        if regions.is_empty() {
            return Ok(Memory::default());
        }
        let mappings = regions
            .iter()
            .map(|region| region.mapping.clone())
            .collect();
        let mapped = GuestMemoryMmap::from_arc_regions(mappings).map_err(io::Error::other)?;
        Ok(Memory { mapped, regions })
    }

    /// The regions as the front-end has described them, each with the descriptor of its file.
    pub(crate) fn described(&self) -> impl Iterator<Item = (VhostUserMemoryRegion, RawFd)> {
        self.regions.iter().filter_map(|region| {
            let file = region.mapping.file_offset()?;
            let described =
                VhostUserMemoryRegion::new(region.guest, region.size, region.user, file.start());
            Some((described, file.file().as_raw_fd()))
        })
    }

    /// Whether there are regions, and nobody has written to any of their files. So it is if the
    /// front-end maps them as private copies; it is not once this process has read them.
    pub(crate) fn is_unwritten(&self) -> bool {
        !self.regions.is_empty() && self.regions.iter().all(Region::is_unwritten)
    }

    /// Translates a user address of the front-end into a physical address of the guest.
    pub(crate) fn guest_address(&self, user: u64) -> Option<u64> {
        self.regions
            .iter()
            .find(|region| {
                user.checked_sub(region.user)
                    .is_some_and(|at| at < region.size)
            })
            .map(|region| region.guest + (user - region.user))
    }

    /// The address in this process of the `len` bytes at a physical address, if one region holds them
    /// all: readable and writable as long as the table lives.
    pub(crate) fn contiguous(&self, address: u64, len: usize) -> Option<NonNull<u8>> {
        // There are few regions, and the last holds most of the guest's memory.
        let region = self
            .regions
            .iter()
            .rev()
            .find(|region| region.guest <= address)?;
        let at = address - region.guest;
        if at > region.size || region.size - at < len as u64 {
            return None;
        }
        // At most the region's length, which is a usize.
        NonNull::new(region.mapping.as_ptr().wrapping_add(at as usize))
    }

    /// The guest's physical address of a byte of this table in this process. None: it is of another.
    pub(crate) fn address_of(&self, byte: *const u8) -> Option<u64> {
        self.regions.iter().rev().find_map(|region| {
            let start = region.mapping.as_ptr().addr();
            let at = byte.addr().checked_sub(start)? as u64;
            (at < region.size).then(|| region.guest + at)
        })
    }

    /// The same as a slice.
    pub(crate) fn slice(&self, address: u64, len: usize) -> Option<VolatileSlice<'_>> {
        let start = self.contiguous(address, len)?;
        // SAFETY: `contiguous` found these `len` bytes in a region whose mapping `self` holds, and `self`
        // is borrowed as long as the slice lives.
        Some(unsafe { VolatileSlice::new(start.as_ptr(), len) })
    }

    /// The `len` bytes at a physical address, one slice for each region.
    pub(crate) fn slices(
        &self,
        address: u64,
        len: u32,
    ) -> impl Iterator<Item = Result<VolatileSlice<'_>, guest_memory::Error>> {
        GuestMemoryBackend::get_slices(&self.mapped, GuestAddress(address), len as usize)
    }

    /// Copies an object out of the guest's memory. Errors: not all of it is memory.
    pub(crate) fn read<T: ByteValued>(&self, address: u64) -> Result<T, guest_memory::Error> {
        self.mapped.read_obj(GuestAddress(address))
    }
}

impl Region {
    /// Whether the whole file is a hole.
    fn is_unwritten(&self) -> bool {
        let file = self.mapping.file_offset().map(FileOffset::file);
        file.and_then(|file| file.metadata().ok())
            .is_some_and(|metadata| metadata.is_file() && metadata.blocks() == 0)
    }
}

/// Errors: the file does not hold `size` bytes from `offset` on; those of fstat(2).
pub(crate) fn check_file(file: &File, offset: u64, size: u64) -> io::Result<()> {
    let metadata = file.metadata()?;
    // A device has no length; its driver checks the range in mmap(2) (/dev/dax).
    if metadata.file_type().is_char_device() {
        return Ok(());
    }
    match offset.checked_add(size) {
        Some(end) if end <= metadata.len() => Ok(()),
        _ => Err(refused("a memory region that is longer than its file")),
    }
}

fn overlap(a: u64, a_size: u64, b: u64, b_size: u64) -> bool {
    a < b + b_size && b < a + a_size
}
