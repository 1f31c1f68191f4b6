//! The split virtqueue where it lies in guest memory (virtio 1.2, 2.7), all numbers little-endian:
//!
//! ```text
//! descriptors  size × { address u64, len u32, flags u16, next u16 }           driver writes
//! available    flags u16, idx u16, size × head u16, used_event u16            driver writes
//! used         flags u16, idx u16, size × { id u32, len u32 }, avail_event u16  device writes
//! ```
//!
//! Looking a guest address up costs more than what is done at it, so that is done once, when the
//! ring is started. The driver's cache lines are touched as seldom as may be: the available index is
//! read again only when all it told of is taken, and the used index is written for many at once.

use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU16, AtomicU32, fence};

use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::desc::split::{Descriptor, VirtqUsedElem};
use virtio_queue::{Queue, QueueState};
use vm_memory::VolatileSlice;

use crate::error::RingError;
use crate::memory::Memory;

/// Where the front-end has put the ring, in its own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// Bytes before the entries of both rings: flags and index.
const HEADER: usize = 4;
const FLAGS: usize = 0;
const INDEX: usize = 2;
const HEAD_SIZE: usize = 2;
const USED_SIZE: usize = size_of::<VirtqUsedElem>();
const EVENT_SIZE: usize = 2;
/// After so many the driver is told of what is done, so that it can go on while this side does.
const PUBLISH_AFTER: u16 = 16;

/// One part of the ring: `len` bytes from `start` on, which lie in `memory` and so are mapped, readable
/// and writable, as long as the part lives.
struct Part {
    start: NonNull<u8>,
    len: usize,
    memory: Rc<Memory>,
}

impl Part {
    /// The `len` bytes at the guest's physical address `address`. Errors: they are not in one region, or
    /// not aligned.
    fn find(
        memory: &Rc<Memory>,
        address: u64,
        len: usize,
        align: usize,
    ) -> Result<Part, RingError> {
        let start = memory
            .contiguous(address, len)
            .ok_or(RingError::Address(address))?;
        // A region need not begin at a multiple of the alignment.
        if !start.addr().get().is_multiple_of(align) {
            return Err(RingError::Alignment(address));
        }
        let memory = memory.clone();
        Ok(Part { start, len, memory })
    }

    fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: `start` and `len` are what `contiguous` found in `memory`, which keeps them mapped as
        // long as `self` is borrowed.
        unsafe { VolatileSlice::new(self.start.as_ptr(), self.len) }
    }

    fn u16(&self, at: usize) -> &AtomicU16 {
        assert!(at + size_of::<u16>() <= self.len);
        let place = self.start.as_ptr().wrapping_add(at).cast::<u16>();
        assert!(place.is_aligned());
        // SAFETY: aligned and within the `len` bytes, by the assertions; `memory` keeps them mapped as
        // long as `self` is borrowed. The guest writes there at the same time: its accesses count as
        // atomic ones, and this process makes no others.
        unsafe { AtomicU16::from_ptr(place) }
    }

    fn u32(&self, at: usize) -> &AtomicU32 {
        assert!(at + size_of::<u32>() <= self.len);
        let place = self.start.as_ptr().wrapping_add(at).cast::<u32>();
        assert!(place.is_aligned());
        // SAFETY: aligned and within the `len` bytes, by the assertions; `memory` keeps them mapped as
        // long as `self` is borrowed. The guest reads there at the same time: its accesses count as
        // atomic ones, and this process makes no others.
        unsafe { AtomicU32::from_ptr(place) }
    }
}

/// A ring in use.
pub(crate) struct SplitRing {
    /// Its size, whether EVENT_IDX was agreed on, the next to be taken and the next to be given back.
    queue: QueueState,
    descriptors: Part,
    available: Part,
    used: Part,
    /// Up to where the driver is known to have made requests available.
    seen_available: u16,
    /// Up to where the driver can see what was given back, and up to where it was notified.
    published: u16,
    notified: u16,
}

impl SplitRing {
    /// The ring that `queue` describes, at `addresses`: those that the queue has do not matter. Errors: the
    /// queue is of no valid size, a part is not in `memory`, or not aligned.
    pub(crate) fn new(
        queue: QueueState,
        addresses: &Addresses,
        memory: &Rc<Memory>,
    ) -> Result<SplitRing, RingError> {
        let (mut queue, [descriptors, available, used]) = place(queue, addresses, memory)?;
        // What was given back stands in the ring itself.
        queue.next_used = u16::from_le(used.u16(INDEX).load(Acquire));
        Ok(SplitRing {
            queue,
            descriptors,
            available,
            used,
            seen_available: queue.next_avail,
            published: queue.next_used,
            notified: queue.next_used,
        })
    }

    /// Goes on in another table of memory. Errors: as for [`SplitRing::new`].
    pub(crate) fn move_to(
        &mut self,
        addresses: &Addresses,
        memory: &Rc<Memory>,
    ) -> Result<(), RingError> {
        let (queue, [descriptors, available, used]) = place(self.queue, addresses, memory)?;
        self.queue = queue;
        (self.descriptors, self.available, self.used) = (descriptors, available, used);
        Ok(())
    }

    pub(crate) fn size(&self) -> u16 {
        self.queue.size
    }

    /// What the ring is in, and the addresses in its descriptors lead to.
    pub(crate) fn memory(&self) -> &Rc<Memory> {
        &self.descriptors.memory
    }

    /// The descriptor table.
    pub(crate) fn descriptors(&self) -> VolatileSlice<'_> {
        self.descriptors.slice()
    }

    /// The index of the next request to be taken.
    pub(crate) fn next_available(&self) -> u16 {
        self.queue.next_avail
    }

    /// Whether there is a next request, or the ring is broken.
    pub(crate) fn has_requests(&self) -> bool {
        self.seen_available != self.queue.next_avail
            || u16::from_le(self.available.u16(INDEX).load(Relaxed)) != self.queue.next_avail
    }

    /// The first descriptors of the next requests, as many as there are and have room in `heads`.
    /// Each is read once and not checked, and is still to be [taken](SplitRing::take). Errors: the
    /// driver has made more available than there can be.
    pub(crate) fn available<'a>(&mut self, heads: &'a mut [u16]) -> Result<&'a [u16], RingError> {
        if self.seen_available == self.queue.next_avail {
            let index = u16::from_le(self.available.u16(INDEX).load(Acquire));
            let count = index.wrapping_sub(self.queue.next_avail);
            if count > self.queue.size {
                return Err(RingError::Runaway(count, self.queue.size));
            }
            self.seen_available = index;
        }
        let count = self.seen_available.wrapping_sub(self.queue.next_avail);
        let count = heads.len().min(count.into());
        for (head, index) in heads[..count].iter_mut().zip(0..) {
            *head = self.head(self.queue.next_avail.wrapping_add(index));
        }
        Ok(&heads[..count])
    }

    /// Where what has this running number is in a ring.
    fn entry(&self, index: u16) -> usize {
        // The size is a power of two. Its remainder would take a division, four for each request.
        usize::from(index & (self.queue.size - 1))
    }

    fn head(&self, index: u16) -> u16 {
        let place = HEADER + HEAD_SIZE * self.entry(index);
        u16::from_le(self.available.u16(place).load(Relaxed))
    }

    /// Takes the next of the requests that were found.
    pub(crate) fn take(&mut self) {
        self.queue.next_avail = self.queue.next_avail.wrapping_add(1);
    }

    /// Gives a request back, `len` bytes written. The driver sees it after
    /// [`SplitRing::publish`] at the latest.
    pub(crate) fn push(&mut self, head: u16, len: u32) {
        let place = HEADER + USED_SIZE * self.entry(self.queue.next_used);
        self.used.u32(place).store(u32::from(head).to_le(), Relaxed);
        self.used.u32(place + 4).store(len.to_le(), Relaxed);
        self.queue.next_used = self.queue.next_used.wrapping_add(1);
        if self.queue.next_used.wrapping_sub(self.published) >= PUBLISH_AFTER {
            self.publish();
        }
    }

    /// Lets the driver see what was given back.
    pub(crate) fn publish(&mut self) {
        if self.published != self.queue.next_used {
            self.used
                .u16(INDEX)
                .store(self.queue.next_used.to_le(), Release);
            self.published = self.queue.next_used;
        }
    }

    /// Whether the driver wants to be notified of what was published since the last time.
    pub(crate) fn wants_notification(&mut self) -> bool {
        // What was published is visible before the driver's wish is read.
        fence(SeqCst);
        if !self.queue.event_idx_enabled {
            let flags = u16::from_le(self.available.u16(FLAGS).load(Relaxed));
            return u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0;
        }
        let place = HEADER + HEAD_SIZE * usize::from(self.queue.size);
        let event = u16::from_le(self.available.u16(place).load(Relaxed));
        let old = std::mem::replace(&mut self.notified, self.published);
        // vring_need_event of the specification: whether `event` is among those since `old`.
        self.published.wrapping_sub(event).wrapping_sub(1) < self.published.wrapping_sub(old)
    }

    /// Asks the driver not to notify.
    pub(crate) fn disable_kicks(&self) {
        // With EVENT_IDX it notifies once, and then not before it is asked again.
        if !self.queue.event_idx_enabled {
            let flags = (VRING_USED_F_NO_NOTIFY as u16).to_le();
            self.used.u16(FLAGS).store(flags, Relaxed);
        }
    }

    /// Asks the driver to notify of the next request. True if there is one already.
    pub(crate) fn enable_kicks(&self) -> bool {
        if self.queue.event_idx_enabled {
            let place = HEADER + USED_SIZE * usize::from(self.queue.size);
            let next = self.queue.next_avail.to_le();
            self.used.u16(place).store(next, Relaxed);
        } else {
            self.used.u16(FLAGS).store(0, Relaxed);
        }
        // The driver reads the wish after it has written the index, this side the other way round.
        fence(SeqCst);
        self.has_requests()
    }
}

/// Finds the queue at these addresses of the front-end, and its descriptors, available and used ring.
/// `Queue` checks its size and the alignment in the guest, but is not asked whether it `is_valid`: it
/// would let a part lie across regions, and write an error of its own into the log.
fn place(
    queue: QueueState,
    addresses: &Addresses,
    memory: &Rc<Memory>,
) -> Result<(QueueState, [Part; 3]), RingError> {
    let guest = |user| memory.guest_address(user).ok_or(RingError::Address(user));
    let queue = QueueState {
        desc_table: guest(addresses.descriptors)?,
        avail_ring: guest(addresses.available)?,
        used_ring: guest(addresses.used)?,
        ..queue
    };
    let queue = Queue::try_from(queue).map_err(RingError::Queue)?.state();
    let count = usize::from(queue.size);
    let descriptors = count * size_of::<Descriptor>();
    let available = HEADER + count * HEAD_SIZE + EVENT_SIZE;
    let used = HEADER + count * USED_SIZE + EVENT_SIZE;
    let parts = [
        Part::find(
            memory,
            queue.desc_table,
            descriptors,
            align_of::<Descriptor>(),
        )?,
        Part::find(memory, queue.avail_ring, available, align_of::<AtomicU16>())?,
        Part::find(memory, queue.used_ring, used, align_of::<AtomicU32>())?,
    ];
    Ok((queue, parts))
}
