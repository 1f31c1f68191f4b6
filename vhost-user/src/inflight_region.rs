//! The region of INFLIGHT_SHMFD (vhost-user, "Inflight I/O tracking"): memory of this process's making
//! that the front-end keeps, and hands to the next process when this one and all that it left have gone.
//!
//! ```text
//! 0          the table of requests in flight, see `inflight`
//! ROOM       what the device's user keeps there, from the next page on
//! ```
//!
//! The file is sealed, so that nobody can cut it off. A region that comes back is not trusted: another
//! version of this program or another front-end may have made it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use crate::error::RingError;
use crate::inflight::Inflight;
use crate::memory::check_file;

/// What begins at a page does so on every host.
const ALIGNMENT: usize = 0x1_0000;

/// Where the room begins.
const fn room_start(queue_size: u16) -> usize {
    Inflight::bytes(queue_size).next_multiple_of(ALIGNMENT)
}

/// A new region for a ring of at most `queue_size` with `room` bytes behind the table, all of it zero,
/// which is a table without content. Errors: those of memfd_create(2), ftruncate(2) and fcntl(2).
pub(crate) fn create(queue_size: u16, room: usize) -> io::Result<(VhostUserInflight, File)> {
    let size = room_start(queue_size)
        .checked_add(room)
        .and_then(|size| size.checked_next_multiple_of(ALIGNMENT))
        .ok_or(io::ErrorKind::InvalidInput)? as u64;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"vhost-user-inflight", flags)?);
    file.set_len(size)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok((VhostUserInflight::new(size, 0, 1, queue_size), file))
}

/// A region that a front-end has handed over.
pub(crate) struct InflightRegion {
    memory: Rc<MmapRegion>,
    queue_size: u16,
}

impl InflightRegion {
    /// Maps the region that the front-end describes. Errors: InvalidInput if it is longer than its file
    /// or shorter than the table; those of fstat(2) and mmap(2).
    pub(crate) fn open(
        file: File,
        offset: u64,
        size: u64,
        queue_size: u16,
    ) -> io::Result<InflightRegion> {
        check_file(&file, offset, size)?;
        let length = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        let memory = MmapRegion::from_file(FileOffset::new(file, offset), length);
        let memory = Rc::new(memory.map_err(io::Error::other)?);
        let region = InflightRegion { memory, queue_size };
        region
            .table()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(region)
    }

    /// Its file, its offset and size there, and the size of its ring.
    pub(crate) fn described(&self) -> Option<(RawFd, u64, u64, u16)> {
        let place = self.memory.file_offset()?;
        let size = self.memory.size() as u64;
        Some((
            place.file().as_raw_fd(),
            place.start(),
            size,
            self.queue_size,
        ))
    }

    pub(crate) fn table(&self) -> Result<Inflight, RingError> {
        Inflight::new(self.memory.clone(), 0, self.queue_size)
    }

    pub(crate) fn room(&self) -> Room {
        let start = room_start(self.queue_size).min(self.memory.size());
        Room {
            memory: self.memory.clone(),
            start,
        }
    }
}

/// Memory that the front-end keeps for the device's user across everything that this process may
/// suffer. It is zero at first; later it holds what was written into it, by this process or by one
/// before, unless the front-end has changed it, which it may do at any time: the content is not trusted,
/// nor is the length.
#[derive(Clone, Debug)]
pub struct Room {
    memory: Rc<MmapRegion>,
    start: usize,
}

impl Room {
    /// The memory of which it is the end.
    pub fn memory(&self) -> &Rc<MmapRegion> {
        &self.memory
    }

    /// Where in that memory it begins, in bytes: a multiple of 65536.
    pub fn start(&self) -> usize {
        self.start
    }

    /// Its length in bytes: at least as many as asked for, if this program has made it.
    pub fn len(&self) -> usize {
        self.memory.size() - self.start
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its bytes.
    pub fn slice(&self) -> VolatileSlice<'_> {
        let all = self.memory.as_volatile_slice();
        all.offset(self.start).expect("the start is checked")
    }
}
