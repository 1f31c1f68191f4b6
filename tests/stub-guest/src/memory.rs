//! Guest memory: shared regions that the back-end maps too, and the pages in them.
//!
//! ```text
//! guest addresses   0x10000            gap            next
//!                   ├── region 0 ──────┤     ├── region 1 ──────┤
//! memfd             file 0 at offset 0       file 1 at one page   ← offsets differ on purpose
//! ```
//! Every access is checked against the regions and goes through raw pointers: the back-end may write
//! the same bytes at any time, so no Rust reference to guest memory ever exists, except to atomics.

use std::hash::{DefaultHasher, Hasher};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::error::{Error, Result};

/// Size of a guest page in bytes.
pub const PAGE: usize = 4096;

/// Guest address of the first region.
const FIRST_ADDRESS: u64 = 0x1_0000;
/// Unmapped guest addresses between two regions.
const GAP: u64 = 0x10_0000;

/// What the back-end must know to map one region: the fields of `VHOST_USER_SET_MEM_TABLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// Guest physical address of the first byte.
    pub guest_address: u64,
    /// Length in bytes.
    pub size: u64,
    /// The front-end's own virtual address of the first byte; ring addresses are given in these.
    pub user_address: u64,
    /// Where the region begins in its file, in bytes.
    pub mmap_offset: u64,
}

/// One region: a memfd and our mapping of it.
struct Region {
    file: OwnedFd,
    base: NonNull<u8>,
    info: RegionInfo,
    pages: PageSet,
}

// SAFETY: `base` points to a mapping that this value owns and that is not bound to a thread.
unsafe impl Send for Region {}

impl Region {
    fn new(guest_address: u64, size: usize, mmap_offset: u64) -> Result<Region> {
        let size = size.next_multiple_of(PAGE);
        let length = NonZeroUsize::new(size).ok_or(Error::OutOfMemory(size))?;
        let file = memfd_create(c"stub-guest", MFdFlags::MFD_CLOEXEC)
            .map_err(Error::io("memfd_create"))?;
        let offset = i64::try_from(mmap_offset).map_err(|_| Error::BadAddress(mmap_offset))?;
        nix::unistd::ftruncate(&file, offset + size as i64)
            .map_err(Error::io("ftruncate of guest memory"))?;
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing else refers to it.
        let base = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                &file,
                offset,
            )
        }
        .map_err(Error::io("mmap of guest memory"))?
        .cast::<u8>();
        let info = RegionInfo {
            guest_address,
            size: size as u64,
            user_address: base.as_ptr() as u64,
            mmap_offset,
        };
        Ok(Region {
            file,
            base,
            info,
            pages: PageSet::new(size / PAGE),
        })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `base` and `size` are those of the mapping made in `new`, which ends here.
        let unmapped = unsafe { munmap(self.base.cast(), self.info.size as usize) };
        debug_assert!(unmapped.is_ok(), "munmap of guest memory: {unmapped:?}");
    }
}

/// The memory of the stub guest.
pub struct GuestMemory {
    regions: Vec<Region>,
    /// The region that the next allocation tries first: buffers spread over all of them.
    turn: usize,
    /// What regions were before they moved.
    left: Vec<Region>,
}

impl GuestMemory {
    /// Makes one region for each size (in bytes, rounded up to pages), with gaps between them.
    pub fn new(sizes: &[usize]) -> Result<GuestMemory> {
        let mut memory = GuestMemory {
            regions: Vec::new(),
            turn: 0,
            left: Vec::new(),
        };
        for &size in sizes {
            memory.add_region(size)?;
        }
        Ok(memory)
    }

    /// Appends a region and returns its index. The back-end learns of it only when it is told.
    pub fn add_region(&mut self, size: usize) -> Result<usize> {
        let index = self.regions.len();
        let address = self.regions.last().map_or(FIRST_ADDRESS, |last| {
            last.info.guest_address + last.info.size + GAP
        });
        self.regions
            .push(Region::new(address, size, (index * PAGE) as u64)?);
        Ok(index)
    }

    /// The regions as the back-end must be told of them, with their files.
    pub fn regions(&self) -> impl Iterator<Item = (RegionInfo, BorrowedFd<'_>)> {
        self.regions
            .iter()
            .map(|region| (region.info, region.file.as_fd()))
    }

    /// Allocates `bytes` in a row, on a page of their own. Regions take turns.
    pub fn alloc(&mut self, bytes: usize) -> Result<u64> {
        let count = self.regions.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            if let Ok(address) = self.alloc_in(index, bytes) {
                self.turn = (index + 1) % count;
                return Ok(address);
            }
        }
        Err(Error::OutOfMemory(bytes))
    }

    /// Allocates `bytes` in a row in the region with that index.
    pub fn alloc_in(&mut self, index: usize, bytes: usize) -> Result<u64> {
        let region = self
            .regions
            .get_mut(index)
            .ok_or(Error::OutOfMemory(bytes))?;
        let first = region
            .pages
            .take(pages_for(bytes))
            .ok_or(Error::OutOfMemory(bytes))?;
        Ok(region.info.guest_address + (first * PAGE) as u64)
    }

    /// Gives back what [`alloc`](Self::alloc) returned for the same number of bytes.
    pub fn free(&mut self, address: u64, bytes: usize) {
        for region in &mut self.regions {
            let info = region.info;
            if address >= info.guest_address && address - info.guest_address < info.size {
                region.pages.give(
                    (address - info.guest_address) as usize / PAGE,
                    pages_for(bytes),
                );
            }
        }
    }

    /// Copies `bytes` into guest memory.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let to = self.pointer(address, bytes.len())?;
        // SAFETY: `pointer` proved that the range lies in a live mapping of ours; `bytes` cannot
        // overlap it, since no reference to guest memory exists.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies bytes out of guest memory.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<()> {
        let from = self.pointer(address, into.len())?;
        // SAFETY: `pointer` proved that the range lies in a live mapping of ours; `into` cannot
        // overlap it, since no reference to guest memory exists.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Appends `len` bytes of guest memory to `out`.
    pub fn append_to(&self, address: u64, len: usize, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.resize(start + len, 0);
        self.read(address, &mut out[start..])
    }

    /// Fills guest memory with one byte value.
    pub fn fill(&self, address: u64, len: usize, value: u8) -> Result<()> {
        let to = self.pointer(address, len)?;
        // SAFETY: `pointer` proved that the range lies in a live mapping of ours.
        unsafe { to.as_ptr().write_bytes(value, len) };
        Ok(())
    }

    /// Reads a 16-bit value that both sides access.
    pub fn load_u16(&self, address: u64, ordering: Ordering) -> Result<u16> {
        Ok(u16::from_le(self.atomic_u16(address)?.load(ordering)))
    }

    /// Writes a 16-bit value that both sides access.
    pub fn store_u16(&self, address: u64, value: u16, ordering: Ordering) -> Result<()> {
        self.atomic_u16(address)?.store(value.to_le(), ordering);
        Ok(())
    }

    /// A guest address as the front-end's own virtual address.
    pub fn user_address(&self, address: u64) -> Result<u64> {
        Ok(self.pointer(address, 1)?.as_ptr() as u64)
    }

    /// A hash of all bytes of all regions, to see whether anything was written in between.
    pub fn fingerprint(&self) -> Result<u64> {
        self.fingerprint_of(0..self.regions.len())
    }

    /// The same for the regions with these indices.
    pub fn fingerprint_of(&self, indices: Range<usize>) -> Result<u64> {
        Ok(hash_of(self.regions.get(indices).unwrap_or_default()))
    }

    /// A copy of all bytes, by region: guest address of the first, and the bytes.
    pub fn snapshot(&self) -> Result<Vec<(u64, Vec<u8>)>> {
        let regions = self.regions.iter().map(|region| {
            let info = region.info;
            let mut bytes = vec![0; info.size as usize];
            self.read(info.guest_address, &mut bytes)?;
            Ok((info.guest_address, bytes))
        });
        regions.collect()
    }

    /// Empties all regions, so that their files are as if nothing had ever been written to them.
    pub fn empty(&self) -> Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for Region { file, info, .. } in &self.regions {
            let end = (info.mmap_offset + info.size) as i64;
            fallocate(file, flags, 0, end).map_err(Error::io("fallocate of guest memory"))?;
        }
        Ok(())
    }

    /// Puts every region into another file and another place of our address space. For the guest
    /// nothing changes; the back-end, which must not use the memory, has to be told. Returns a hash of
    /// the old places.
    pub fn relocate(&mut self) -> Result<u64> {
        let hash = self.fingerprint()?;
        let mut moved = Vec::new();
        for region in &self.regions {
            let info = region.info;
            moved.push(Region::new(
                info.guest_address,
                info.size as usize,
                info.mmap_offset,
            )?);
        }
        for (old, new) in self.regions.iter_mut().zip(&mut moved) {
            // SAFETY: both mappings are ours and of this size, and they are different ones.
            unsafe {
                new.base
                    .copy_from_nonoverlapping(old.base, old.info.size as usize)
            };
            std::mem::swap(&mut old.pages, &mut new.pages);
        }
        self.left = std::mem::replace(&mut self.regions, moved);
        Ok(hash)
    }

    /// The hash of the places that the last [`relocate`](Self::relocate) left, as it is now.
    pub fn fingerprint_of_left(&self) -> u64 {
        hash_of(&self.left)
    }

    /// Allocates nothing more in the region with that index. What is allocated there now must not
    /// be freed any more.
    pub fn retire(&mut self, index: usize) {
        if let Some(region) = self.regions.get_mut(index) {
            region.pages.taken.fill(true);
        }
    }

    fn atomic_u16(&self, address: u64) -> Result<&AtomicU16> {
        let pointer = self.pointer(address, 2)?.cast::<u16>();
        if !pointer.is_aligned() {
            return Err(Error::BadAddress(address));
        }
        // SAFETY: `pointer` proved that it lies in a mapping, which lives as long as `self`, and it is
        // aligned. Both sides access the rings' 16-bit fields atomically while the device runs.
        Ok(unsafe { AtomicU16::from_ptr(pointer.as_ptr()) })
    }

    /// Where `len` bytes of guest memory are in our address space, if one region holds them all.
    fn pointer(&self, address: u64, len: usize) -> Result<NonNull<u8>> {
        for region in &self.regions {
            let Some(offset) = address.checked_sub(region.info.guest_address) else {
                continue;
            };
            if offset < region.info.size && len as u64 <= region.info.size - offset {
                // SAFETY: `offset` is inside of the mapping.
                return Ok(unsafe { region.base.add(offset as usize) });
            }
        }
        Err(Error::BadAddress(address))
    }
}

fn hash_of(regions: &[Region]) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut chunk = vec![0; 64 * PAGE];
    for region in regions {
        let size = region.info.size as usize;
        for at in (0..size).step_by(chunk.len()) {
            let part = &mut chunk[..(size - at).min(64 * PAGE)];
            // SAFETY: these bytes lie in the region's mapping, which lives as long as the region; `part`
            // cannot overlap it, since no reference to guest memory exists.
            unsafe {
                region
                    .base
                    .add(at)
                    .copy_to_nonoverlapping(NonNull::from(&mut *part).cast(), part.len())
            };
            hasher.write(part);
        }
    }
    hasher.finish()
}

/// Pages that hold so many bytes; at least one.
fn pages_for(bytes: usize) -> usize {
    bytes.div_ceil(PAGE).max(1)
}

/// Which pages of a region are taken. Next fit: a search begins where the last one ended.
struct PageSet {
    taken: Vec<bool>,
    next: usize,
}

impl PageSet {
    fn new(count: usize) -> PageSet {
        PageSet {
            taken: vec![false; count],
            next: 0,
        }
    }

    /// Takes `count` free pages in a row and returns the first.
    fn take(&mut self, count: usize) -> Option<usize> {
        let total = self.taken.len();
        let first = self
            .search(self.next, total, count)
            .or_else(|| self.search(0, total, count))?;
        self.taken[first..first + count].fill(true);
        self.next = first + count;
        Some(first)
    }

    fn give(&mut self, first: usize, count: usize) {
        let end = (first + count).min(self.taken.len());
        self.taken[first..end].fill(false);
    }

    fn search(&self, from: usize, to: usize, count: usize) -> Option<usize> {
        let mut run = 0;
        for page in from..to {
            run = if self.taken[page] { 0 } else { run + 1 };
            if run == count {
                return Some(page + 1 - count);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_do_not_overlap_and_come_back() {
        let mut pages = PageSet::new(10);
        assert_eq!(pages.take(4), Some(0));
        assert_eq!(pages.take(4), Some(4));
        assert_eq!(pages.take(4), None);
        pages.give(2, 3);
        assert_eq!(pages.take(3), Some(2));
        assert_eq!(pages.take(2), Some(8));
        assert_eq!(pages.take(1), None);
    }

    #[test]
    fn regions_have_gaps_and_offsets() {
        let mut memory = GuestMemory::new(&[PAGE, 2 * PAGE]).unwrap();
        let infos: Vec<RegionInfo> = memory.regions().map(|(info, _)| info).collect();
        assert_eq!(infos[0].mmap_offset, 0);
        assert_eq!(infos[1].mmap_offset, PAGE as u64);
        let end = infos[0].guest_address + infos[0].size;
        assert!(infos[1].guest_address > end);
        assert!(
            memory.write(end - 1, &[1, 2]).is_err(),
            "a range must not leave its region"
        );
        assert!(memory.read(end, &mut [0]).is_err());
        assert!(
            memory
                .load_u16(infos[0].guest_address + 1, Ordering::Relaxed)
                .is_err()
        );

        let address = memory.alloc_in(1, PAGE + 1).unwrap();
        memory.write(address + 10, b"abc").unwrap();
        let mut file = [0; 3];
        let (info, fd) = memory.regions().nth(1).unwrap();
        let at = info.mmap_offset + (address + 10 - info.guest_address);
        nix::sys::uio::pread(fd, &mut file, at as i64).unwrap();
        assert_eq!(&file, b"abc", "the file holds what the mapping holds");
    }

    #[test]
    fn fingerprint_sees_one_byte() {
        let mut memory = GuestMemory::new(&[4 * PAGE]).unwrap();
        let address = memory.alloc(3 * PAGE).unwrap();
        let before = memory.fingerprint().unwrap();
        assert_eq!(before, memory.fingerprint().unwrap());
        memory.fill(address + 5000, 1, 7).unwrap();
        assert_ne!(before, memory.fingerprint().unwrap());
    }
}
