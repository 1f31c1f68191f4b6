//! Copying and I/O on guest memory.
//!
//! The guest may change its memory at any time. Bytes that must be checked are copied out once. The
//! kernel moves payload between guest memory and files; this process never reads it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use libc::{c_int, iovec};
use vm_memory::VolatileSlice;

use crate::memory::Memory;
use crate::prefetch;

/// The maximum number of segments in one system call (limits.h).
const IOV_MAX: usize = 1024;
/// As many segments as Linux's 9p driver uses; they fit on the stack.
const FEW: usize = 130;
const NOTHING: iovec = iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// Segments of guest memory that are mapped into this process.
///
/// Invariant: every segment is mapped, readable and writable, until [`clear`](Segments::clear), by the
/// contract of [`push`](Segments::push).
pub(crate) struct Segments {
    list: Vec<iovec>,
    len: usize,
    /// Whether a descriptor pointed outside of the guest's memory. The list ends before it.
    cut: bool,
}

// SAFETY: the segments stay mapped on every thread. No Rust reference to their bytes is ever made: they
// are copied with volatile accesses or passed to the kernel, as the guest may write to them at any time.
unsafe impl Send for Segments {}
// SAFETY: a shared reference cannot change the list. The bytes it points to are only accessed with
// volatile accesses or by the kernel, so concurrent access by several threads is no different from
// concurrent access by the guest.
unsafe impl Sync for Segments {}

impl Segments {
    /// An empty list.
    pub(crate) fn new() -> Segments {
        Segments {
            list: Vec::new(),
            len: 0,
            cut: false,
        }
    }

    /// Empties the list but keeps its allocation for the next request.
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.len = 0;
        self.cut = false;
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether no descriptor with a length has been pushed.
    pub(crate) fn is_unused(&self) -> bool {
        self.len == 0 && !self.cut
    }

    /// Appends `len` bytes of `memory`, starting at the guest's physical address `address`. If not all
    /// of them are memory, the list is cut: it ends before them, because what follows would be at a
    /// wrong offset.
    ///
    /// # Safety
    /// `memory` must live until these segments are [cleared](Segments::clear) or never used again.
    pub(crate) unsafe fn push(&mut self, memory: &Memory, address: u64, len: u32) {
        if len == 0 || self.cut {
            return;
        }
        let bytes = len as usize;
        if let Some(start) = memory.contiguous(address, bytes) {
            self.list.push(iovec {
                iov_base: start.as_ptr().cast(),
                iov_len: bytes,
            });
            self.len += bytes;
            return;
        }
        let (pieces, before) = (self.list.len(), self.len);
        for piece in memory.slices(address, len) {
            let Ok(slice) = piece else {
                self.list.truncate(pieces);
                self.len = before;
                self.cut = true;
                return;
            };
            self.list.push(iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
            self.len += slice.len();
        }
    }

    /// Hints that the first `len` bytes will be used, as far as the first segment holds them.
    fn prefetch(&self, len: usize, hint: fn(*const u8)) {
        let Some(first) = self.list.first() else {
            return;
        };
        let start = first.iov_base.cast::<u8>().cast_const();
        for at in (0..len.min(first.iov_len)).step_by(prefetch::LINE) {
            hint(start.wrapping_add(at));
        }
    }

    /// The segments from byte `at` on, at most `len` bytes.
    pub(crate) fn pieces(&self, at: usize, len: usize) -> impl Iterator<Item = iovec> {
        let (mut skip, mut left) = (at, len);
        self.list.iter().filter_map(move |segment| {
            let skipped = skip.min(segment.iov_len);
            skip -= skipped;
            let iov_len = (segment.iov_len - skipped).min(left);
            left -= iov_len;
            let iov_base = segment.iov_base.cast::<u8>().wrapping_add(skipped).cast();
            (iov_len > 0).then_some(iovec { iov_base, iov_len })
        })
    }

    /// Calls `copy` for each piece of the `len` bytes from `at` on, with the piece's offset from `at`.
    /// Returns the number of bytes.
    fn for_each(
        &self,
        at: usize,
        len: usize,
        mut copy: impl FnMut(VolatileSlice<'_>, usize),
    ) -> usize {
        let len = len.min(self.len.saturating_sub(at));
        // Nearly everything copied is a message in one piece.
        if let Some(first) = self.list.first() {
            if at + len <= first.iov_len {
                let start = first.iov_base.cast::<u8>().wrapping_add(at);
                // SAFETY: within the first segment, which is mapped while `self` is borrowed; the slice does
                // not leave this call.
                copy(unsafe { VolatileSlice::new(start, len) }, 0);
                return len;
            }
        }
        let mut done = 0;
        for piece in self.pieces(at, len) {
            // SAFETY: within a segment, which is mapped while `self` is borrowed; the slice does not
            // leave this call.
            let slice = unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) };
            copy(slice, done);
            done += piece.iov_len;
        }
        done
    }

    fn transfer(
        &self,
        fd: BorrowedFd<'_>,
        at: usize,
        len: usize,
        offset: u64,
        flags: c_int,
        call: unsafe extern "C" fn(c_int, *const iovec, c_int, libc::off_t, c_int) -> isize,
    ) -> io::Result<usize> {
        let offset = libc::off_t::try_from(offset)
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut few = [NOTHING; FEW];
        let mut many;
        let pieces = if self.list.len() <= FEW {
            let mut count = 0;
            for piece in self.pieces(at, len) {
                few[count] = piece;
                count += 1;
            }
            &few[..count]
        } else {
            many = Vec::with_capacity(self.list.len().min(IOV_MAX));
            many.extend(self.pieces(at, len).take(IOV_MAX));
            &many[..]
        };
        loop {
            // SAFETY: `call` is preadv2 or pwritev2. It accesses `pieces`, which is a slice, and the
            // memory they point to: parts of segments, which are mapped readable and writable while
            // `self` is borrowed.
            let result = unsafe {
                call(
                    fd.as_raw_fd(),
                    pieces.as_ptr(),
                    pieces.len() as c_int,
                    offset,
                    flags,
                )
            };
            if let Ok(done) = usize::try_from(result) {
                return Ok(done);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// The buffers that the driver has written for the device.
pub struct Readable(pub(crate) Segments);

impl Readable {
    /// Hints that the first `len` bytes will be read.
    pub(crate) fn prefetch(&self, len: usize) {
        self.0.prefetch(len, prefetch::for_reading);
    }

    /// Whether a descriptor pointed outside of the guest's memory. This half ends before it.
    pub fn is_cut(&self) -> bool {
        self.0.cut
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Copies bytes from `at` on out of guest memory, as many as there are; returns their number.
    pub fn read_at(&self, at: usize, into: &mut [u8]) -> usize {
        let len = into.len();
        self.0.for_each(at, len, |slice, done| {
            slice.copy_to(&mut into[done..]);
        })
    }

    /// pwritev2(2): writes up to `len` bytes from `at` on to `fd` at `offset`, with `RWF_*`
    /// flags; returns the number of bytes written. One call takes at most 1024 pieces: call again for
    /// the rest. Errors: those of the system call except EINTR; EINVAL for an offset beyond 63 bits.
    pub fn write_to_file(
        &self,
        fd: BorrowedFd<'_>,
        at: usize,
        len: usize,
        offset: u64,
        flags: c_int,
    ) -> io::Result<usize> {
        self.0.transfer(fd, at, len, offset, flags, libc::pwritev2)
    }
}

/// The buffers that the device writes for the driver.
pub struct Writable {
    pub(crate) segments: Segments,
    /// Whether `written` is kept, as it is while the guest's pages are logged.
    tracked: bool,
    /// No byte from here on was written. Relaxed: whoever completes the request has learnt of the writes
    /// of other threads before.
    written: AtomicUsize,
}

impl Writable {
    pub(crate) fn new() -> Writable {
        Writable {
            segments: Segments::new(),
            tracked: false,
            written: AtomicUsize::new(0),
        }
    }

    /// Notes from now on what is written. Nothing was written yet.
    #[cold]
    #[inline(never)]
    pub(crate) fn track(&mut self) {
        self.tracked = true;
        self.written = AtomicUsize::new(0);
    }

    /// Does not note what is written, or what was: it may be everything.
    pub(crate) fn untrack(&mut self) {
        self.tracked = false;
    }

    /// The first part, outside of which nothing was written.
    pub(crate) fn written(&self) -> usize {
        match self.tracked {
            true => self.written.load(Relaxed),
            false => self.len(),
        }
    }

    /// Notes that up to `len` bytes from `at` on are written, as many as there are.
    #[inline]
    fn note_written(&self, at: usize, len: usize) {
        if self.tracked {
            self.note(at, len);
        }
    }

    #[cold]
    #[inline(never)]
    fn note(&self, at: usize, len: usize) {
        let len = len.min(self.len().saturating_sub(at));
        if len > 0 {
            self.written.fetch_max(at + len, Relaxed);
        }
    }

    /// Hints that the first `len` bytes will be written.
    pub(crate) fn prefetch(&self, len: usize) {
        self.segments.prefetch(len, prefetch::for_writing);
    }

    /// Whether a descriptor pointed outside of the guest's memory. This half ends before it.
    pub fn is_cut(&self) -> bool {
        self.segments.cut
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.segments.len
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.segments.len == 0
    }

    /// Copies bytes into guest memory from `at` on, as many as fit; returns their number.
    pub fn write_at(&self, at: usize, from: &[u8]) -> usize {
        self.note_written(at, from.len());
        self.segments.for_each(at, from.len(), |slice, done| {
            slice.copy_from(&from[done..]);
        })
    }

    /// preadv2(2): reads up to `len` bytes from `fd` at `offset` into the buffers from `at` on, with
    /// `RWF_*` flags; returns the number of bytes read, 0 at the end of the file. One call fills at
    /// most 1024 pieces: call again for the rest. Errors: those of the system call except EINTR;
    /// EINVAL for an offset beyond 63 bits.
    pub fn read_from_file(
        &self,
        fd: BorrowedFd<'_>,
        at: usize,
        len: usize,
        offset: u64,
        flags: c_int,
    ) -> io::Result<usize> {
        let result = (self.segments).transfer(fd, at, len, offset, flags, libc::preadv2);
        let written = match &result {
            Ok(done) => *done,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            // It may have failed in the middle.
            Err(_) => len,
        };
        self.note_written(at, written);
        result
    }
}
