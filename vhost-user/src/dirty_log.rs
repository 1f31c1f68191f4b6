//! The log of the guest's pages that this process has written, which the front-end reads while it
//! migrates the guest (vhost-user, "Migration").
//!
//! A bit for each page of 4096 bytes, from physical address 0 on: bit `page % 8` of byte `page / 8`. The
//! front-end takes the bits away while they are set here, then copies the pages. So a page is marked
//! after it was written: a bit that was set before could be taken, and the page copied, too early.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Release;

use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::log_limiter::LogLimiter;
use crate::memory::check_file;

/// Bytes of a page, whatever the host's pages are.
const PAGE: u64 = 0x1000;
const PAGES_PER_BYTE: u64 = 8;

/// A log in memory that is shared with the front-end.
pub(crate) struct DirtyLog {
    /// The file from its beginning on, as a log need not begin at a page of the host.
    region: MmapRegion,
    offset: u64,
    size: u64,
    outside: LogLimiter,
}

impl DirtyLog {
    /// The log in the `size` bytes of `file` from `offset` on. Errors: InvalidInput if the file is
    /// shorter; those of fstat(2) and mmap(2).
    pub(crate) fn new(file: File, offset: u64, size: u64) -> io::Result<DirtyLog> {
        check_file(&file, offset, size)?;
        let end = offset.checked_add(size).map(usize::try_from);
        let Some(Ok(end)) = end else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let region =
            MmapRegion::from_file(FileOffset::new(file, 0), end).map_err(io::Error::other)?;
        Ok(DirtyLog {
            region,
            offset,
            size,
            outside: LogLimiter::default(),
        })
    }

    /// Its file, offset and size.
    pub(crate) fn described(&self) -> Option<(RawFd, u64, u64)> {
        let file = self.region.file_offset()?.file();
        Some((file.as_raw_fd(), self.offset, self.size))
    }

    /// Whether it has bits for the `len` bytes at a physical address.
    pub(crate) fn covers(&self, address: u64, len: u64) -> bool {
        let last = address.checked_add(len.saturating_sub(1));
        last.is_some_and(|last| last / PAGE / PAGES_PER_BYTE < self.size)
    }

    /// Marks the pages of the `len` bytes at a physical address, all of which have been written. Pages
    /// that have no bit are ignored, as the front-end does not ask for them.
    pub(crate) fn mark(&self, address: u64, len: u64) {
        if len == 0 {
            return;
        }
        let first = address / PAGE;
        let last = address.saturating_add(len - 1) / PAGE;
        for byte in first / PAGES_PER_BYTE..=last / PAGES_PER_BYTE {
            if byte >= self.size {
                self.tell_outside(address, len);
                return;
            }
            let from = first.saturating_sub(byte * PAGES_PER_BYTE);
            let to = (last - byte * PAGES_PER_BYTE).min(PAGES_PER_BYTE - 1);
            self.set(byte, 0xff << from & 0xff >> (PAGES_PER_BYTE - 1 - to));
        }
    }

    fn set(&self, byte: u64, bits: u8) {
        let at = (self.offset + byte) as usize;
        if let Ok(byte) = self.region.get_atomic_ref::<AtomicU8>(at) {
            // Also if the bits are set: the front-end may be taking them away.
            byte.fetch_or(bits, Release);
        }
    }

    #[cold]
    fn tell_outside(&self, address: u64, len: u64) {
        if let Some(number) = self.outside.count() {
            log::warn!(
                "the front-end's log of dirty pages is too short for {len} bytes at {address:#x}: \
                 the guest may not survive its migration (page {number})"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proptest::prelude::*;

    use super::*;

    fn file(size: u64) -> File {
        let file: File = memfd_create(c"log", MFdFlags::MFD_CLOEXEC).unwrap().into();
        file.set_len(size).unwrap();
        file
    }

    fn marked(file: &File, offset: u64, size: u64) -> Vec<u64> {
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, offset).unwrap();
        (0..size * 8)
            .filter(|page| bytes[(page / 8) as usize] & 1 << (page % 8) != 0)
            .collect()
    }

    #[test]
    fn a_log_that_is_longer_than_its_file_is_refused() {
        assert!(DirtyLog::new(file(4096), 0, 4097).is_err());
        assert!(DirtyLog::new(file(4096), 1, 4096).is_err());
        assert!(DirtyLog::new(file(4096), u64::MAX, 1).is_err());
        assert!(DirtyLog::new(file(4096), u64::MAX, u64::MAX).is_err());
        assert!(DirtyLog::new(file(4096), 1, 4095).is_ok());
    }

    #[test]
    fn pages_that_have_no_bit_are_ignored() {
        let file = file(100);
        let log = DirtyLog::new(file.try_clone().unwrap(), 3, 2).unwrap();
        log.mark(15 << 12, 0x2000);
        log.mark(16 << 12, 1);
        log.mark(u64::MAX, u64::MAX);
        log.mark(0, 0);
        assert_eq!(marked(&file, 3, 2), [15]);
        assert_eq!(marked(&file, 0, 100).len(), 1);
        assert!(log.covers(15 << 12, 0x1000) && !log.covers(15 << 12, 0x1001));
        assert!(!log.covers(u64::MAX, 2));
    }

    proptest! {
        #[test]
        fn each_page_that_was_written_is_marked(
            address in 0_u64..40 << 12,
            len in 1_u64..30 << 12,
            offset in 0_u64..20,
        ) {
            let file = file(offset + 9);
            let log = DirtyLog::new(file.try_clone().unwrap(), offset, 9).unwrap();
            log.mark(address, len);
            let expected: Vec<u64> = (address >> 12..=(address + len - 1) >> 12).collect();
            prop_assert_eq!(marked(&file, offset, 9), expected);
            prop_assert!(marked(&file, 0, offset).is_empty());
        }
    }
}
