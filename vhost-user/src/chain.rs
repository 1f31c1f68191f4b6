//! One walk over the descriptors of a request.
//!
//! Each descriptor is copied once, as the guest may change it meanwhile. A chain whose descriptors are
//! ambiguous is an error. A buffer outside of the guest's memory is not: its half of the chain ends
//! before it, and only that request fails. Drivers produce such buffers from memory that they do not
//! share, as User-mode Linux does with its page of zeros.

use std::rc::Rc;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{VolatileMemory, VolatileSlice};

use crate::buffers::{Readable, Segments, Writable};
use crate::dirty_log::DirtyLog;
use crate::error::ChainError;
use crate::inflight::Resumed;
use crate::memory::Memory;
use crate::prefetch;

/// The maximum number of descriptors in an indirect table. The specification allows no chain longer
/// than the ring, but Linux ignores the ring's size, and QEMU and the kernel accept up to 1024, the
/// limit of one system call.
const MAX_INDIRECT: u32 = 1024;
/// Bytes of a descriptor.
const DESCRIPTOR_SIZE: u32 = size_of::<Descriptor>() as u32;

/// The memory of a request. The ring reuses completed chains.
pub(crate) struct Chain {
    head: u16,
    /// Set if another process has taken it before.
    resumed: Option<Resumed>,
    /// Keeps the memory of both halves mapped.
    memory: Option<Rc<Memory>>,
    readable: Readable,
    writable: Writable,
}

/// Chains, each in the box that is handed on.
#[allow(clippy::vec_box)]
pub(crate) type Chains = Vec<Box<Chain>>;

impl Chain {
    pub(crate) fn new() -> Chain {
        Chain {
            head: 0,
            resumed: None,
            memory: None,
            readable: Readable(Segments::new()),
            writable: Writable::new(),
        }
    }

    /// The index of its first descriptor.
    pub(crate) fn head(&self) -> u16 {
        self.head
    }

    pub(crate) fn resumed(&self) -> Option<&Resumed> {
        self.resumed.as_ref()
    }

    pub(crate) fn set_resumed(&mut self, resumed: Resumed) {
        self.resumed = Some(resumed);
        // The process before may have written anything.
        self.writable.untrack();
    }

    /// Notes from now on what is written.
    pub(crate) fn track(&mut self) {
        self.writable.track();
    }

    /// Marks the pages that were written.
    pub(crate) fn mark(&self, log: &DirtyLog) {
        let Some(memory) = &self.memory else {
            return;
        };
        let written = self.writable.written();
        for piece in self.writable.segments.pieces(0, written) {
            // A segment lies in one region of this memory.
            if let Some(address) = memory.address_of(piece.iov_base.cast()) {
                log.mark(address, piece.iov_len as u64);
            }
        }
    }

    pub(crate) fn readable(&self) -> &Readable {
        &self.readable
    }

    pub(crate) fn writable(&self) -> &Writable {
        &self.writable
    }

    /// Empties the chain and releases the guest's memory.
    pub(crate) fn clear(&mut self) {
        self.readable.0.clear();
        self.writable.segments.clear();
        self.memory = None;
        self.resumed = None;
    }

    /// Collects the readable and the writable memory of the chain that begins with descriptor `head`
    /// of the ring's `table`. A half that points outside of `memory` is cut there; the descriptors
    /// that follow are still checked.
    ///
    /// Accepted, as other devices do: descriptors of length 0 at any address; a chain that continues in
    /// an indirect table; an indirect table without the feature.
    pub(crate) fn walk(
        &mut self,
        memory: &Rc<Memory>,
        table: VolatileSlice<'_>,
        head: u16,
    ) -> Result<(), ChainError> {
        self.clear();
        self.head = head;
        let memory = &**self.memory.insert(memory.clone());
        let (readable, writable) = (&mut self.readable.0, &mut self.writable.segments);
        let mut table = Table::Mapped(table);
        let mut indirect = false;
        let mut index = head;
        let mut left = table.len();
        loop {
            left = left.checked_sub(1).ok_or(ChainError::Loop)?;
            let descriptor = table.descriptor(memory, index)?;
            let address = descriptor.addr().0;
            if descriptor.refers_to_indirect_table() {
                if indirect || descriptor.has_next() {
                    return Err(ChainError::Nested);
                }
                let bytes = descriptor.len();
                let len = bytes / DESCRIPTOR_SIZE;
                if bytes % DESCRIPTOR_SIZE != 0 || !(1..=MAX_INDIRECT).contains(&len) {
                    return Err(ChainError::Table(bytes));
                }
                table = match memory.slice(address, bytes as usize) {
                    Some(slice) => Table::Mapped(slice),
                    None => Table::Scattered { address, len },
                };
                indirect = true;
                index = 0;
                left = len;
                continue;
            }
            let segments = if descriptor.is_write_only() {
                &mut *writable
            } else if writable.is_unused() {
                &mut *readable
            } else {
                return Err(ChainError::Order);
            };
            // SAFETY: `self.memory` holds the memory. Only `clear` releases it, and empties the segments
            // first.
            unsafe { segments.push(memory, address, descriptor.len()) };
            if u32::try_from(segments.len()).is_err() {
                return Err(ChainError::TooLong);
            }
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
        }
    }
}

/// A descriptor table.
enum Table<'a> {
    /// Contiguous in this process.
    Mapped(VolatileSlice<'a>),
    /// At a physical address, across regions or not in memory.
    Scattered { address: u64, len: u32 },
}

impl Table<'_> {
    fn len(&self) -> u32 {
        match self {
            Table::Mapped(slice) => slice.len() as u32 / DESCRIPTOR_SIZE,
            Table::Scattered { len, .. } => *len,
        }
    }

    #[inline]
    fn descriptor(&self, memory: &Memory, index: u16) -> Result<Descriptor, ChainError> {
        match self {
            Table::Mapped(slice) => slice
                .get_ref::<Descriptor>(usize::from(index) * DESCRIPTOR_SIZE as usize)
                .map(|descriptor| descriptor.load())
                .map_err(|_| ChainError::Index(index)),
            Table::Scattered { address, len } if u32::from(index) < *len => {
                scattered(memory, *address, index)
            }
            Table::Scattered { .. } => Err(ChainError::Index(index)),
        }
    }
}

#[cold]
fn scattered(memory: &Memory, table: u64, index: u16) -> Result<Descriptor, ChainError> {
    let at = u64::from(index) * u64::from(DESCRIPTOR_SIZE);
    let address = table.checked_add(at).ok_or(ChainError::Address(table))?;
    memory
        .read(address)
        .map_err(|_| ChainError::Address(address))
}

/// Prefetches the indirect table of a chain, if it has one. A hint only: [`Chain::walk`] reads and
/// checks the descriptor again.
pub(crate) fn prefetch_table(memory: &Memory, table: VolatileSlice<'_>, head: u16) {
    if let Ok(first) = Table::Mapped(table).descriptor(memory, head) {
        if first.refers_to_indirect_table() {
            if let Some(start) = memory.contiguous(first.addr().0, 1) {
                prefetch::for_reading(start.as_ptr());
            }
        }
    }
}
