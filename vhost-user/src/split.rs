//! The split virtqueue where it lies in guest memory (virtio 1.2, 2.7), all numbers little-endian:
//!
//! ```text
//! descriptors  size × { address u64, len u32, flags u16, next u16 }           driver writes
//! available    flags u16, idx u16, size × head u16, used_event u16            driver writes
//! used         flags u16, idx u16, size × { id u32, len u32 }, avail_event u16  device writes
//! ```
//!
//! Looking a guest address up costs more than the access itself, so it is done once, when the ring
//! starts. The driver's cache lines are touched as rarely as possible: the available index is read
//! again only when all requests up to it are taken, and the used index is written for many requests
//! at once.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU16, AtomicU32, fence};

use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::desc::split::{Descriptor, VirtqUsedElem};
use virtio_queue::{Queue, QueueState};
use vm_memory::VolatileSlice;

use crate::dirty_log::DirtyLog;
use crate::error::RingError;
use crate::inflight::{Inflight, Lost};
use crate::memory::Memory;

/// The ring's parts by user address of the front-end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// Bytes before the entries of both rings: flags and idx.
const HEADER: usize = 4;
const FLAGS: usize = 0;
const INDEX: usize = 2;
const HEAD_SIZE: usize = 2;
const USED_SIZE: usize = size_of::<VirtqUsedElem>();
const EVENT_SIZE: usize = 2;
/// After so many requests the used index is published, so that the driver can process them meanwhile.
const PUBLISH_AFTER: u16 = 16;

/// One part of the ring: `len` bytes at `start`, which lie in `memory` and so are mapped, readable and
/// writable, as long as the part lives.
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
        // The region's guest address need not be aligned.
        if start.addr().get() % align != 0 {
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

/// Where the pages of the used ring are marked when they are written.
pub(crate) struct UsedLog {
    log: Rc<DirtyLog>,
    /// The physical address that stands for the ring's first byte.
    start: u64,
}

impl UsedLog {
    pub(crate) fn new(log: Rc<DirtyLog>, start: u64) -> UsedLog {
        UsedLog { log, start }
    }

    fn mark(&self, at: usize, len: usize) {
        self.log
            .mark(self.start.saturating_add(at as u64), len as u64);
    }
}

/// A ring in use.
pub(crate) struct SplitRing {
    /// Its size, whether EVENT_IDX was negotiated, the next request to take and the next used index.
    queue: QueueState,
    descriptors: Part,
    available: Part,
    used: Part,
    /// The available index as last read.
    seen_available: u16,
    /// The used index as last published, and as of the last notification.
    published: u16,
    notified: u16,
    inflight: Inflight,
    used_log: Option<UsedLog>,
    /// What an earlier process has taken and not answered, to be taken again.
    lost: VecDeque<Lost>,
}

impl SplitRing {
    /// The ring that `queue` describes, except for its addresses, which come from `addresses`. If
    /// `inflight` has content, it says which requests were taken before, and so which is the next.
    /// Errors: the size is invalid, a part is not in `memory`, or not aligned, or that content is
    /// invalid.
    pub(crate) fn new(
        queue: QueueState,
        addresses: &Addresses,
        memory: &Rc<Memory>,
        mut inflight: Inflight,
    ) -> Result<SplitRing, RingError> {
        let (mut queue, [descriptors, available, used]) = place(queue, addresses, memory)?;
        // vhost-user has no message for the used index: it stands in the ring.
        queue.next_used = u16::from_le(used.u16(INDEX).load(Acquire));
        if inflight.size() < queue.size {
            return Err(RingError::Inflight("it belongs to a smaller ring"));
        }
        let lost = match inflight.open(queue.next_used)? {
            None => VecDeque::new(),
            Some(lost) => {
                // At most the table's size, which is a u16.
                queue.next_avail = queue.next_used.wrapping_add(lost.len() as u16);
                let index = u16::from_le(available.u16(INDEX).load(Acquire));
                let more = index.wrapping_sub(queue.next_avail);
                // The driver may have begun anew meanwhile.
                if !lost.is_empty() && lost.len() + usize::from(more) > queue.size.into() {
                    return Err(RingError::Inflight("it belongs to another ring"));
                }
                lost.into()
            }
        };
        Ok(SplitRing {
            queue,
            descriptors,
            available,
            used,
            seen_available: queue.next_avail,
            published: queue.next_used,
            notified: queue.next_used,
            inflight,
            used_log: None,
            lost,
        })
    }

    /// Moves to another memory table. Errors: as for [`SplitRing::new`].
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

    /// The memory that holds the ring and the buffers of its descriptors.
    pub(crate) fn memory(&self) -> &Rc<Memory> {
        &self.descriptors.memory
    }

    /// The descriptor table.
    pub(crate) fn descriptors(&self) -> VolatileSlice<'_> {
        self.descriptors.slice()
    }

    /// The index of the next request to take.
    #[cfg(test)]
    pub(crate) fn next_available(&self) -> u16 {
        self.queue.next_avail
    }

    /// Whether a request is available or lost, or the available index is invalid.
    pub(crate) fn has_requests(&self) -> bool {
        self.has_lost()
            || self.seen_available != self.queue.next_avail
            || u16::from_le(self.available.u16(INDEX).load(Relaxed)) != self.queue.next_avail
    }

    /// Whether a request that an earlier process has taken is to be taken again.
    pub(crate) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// The request that an earlier process has taken before all others; [`SplitRing::retake`] takes
    /// it.
    pub(crate) fn lost(&self) -> Option<Lost> {
        self.lost.front().copied()
    }

    /// Takes what [`SplitRing::lost`] returned.
    pub(crate) fn retake(&mut self) {
        if let Some(lost) = self.lost.pop_front() {
            self.inflight.retake(lost.head);
        }
    }

    /// The heads of the next requests, as many as are available and fit into `heads`. Each is read
    /// once and not checked; [`SplitRing::check`] and [`SplitRing::take`] follow. Errors: more requests are
    /// available than the ring holds.
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
        if count > 0 {
            self.inflight.look_at_clock();
        }
        for (head, index) in heads[..count].iter_mut().zip(0..) {
            *head = self.head(self.queue.next_avail.wrapping_add(index));
        }
        Ok(&heads[..count])
    }

    /// The entry of a free-running index.
    fn entry(&self, index: u16) -> usize {
        // The size is a power of two. `%` would take a division, four for each request.
        usize::from(index & (self.queue.size - 1))
    }

    fn head(&self, index: u16) -> u16 {
        let place = HEADER + HEAD_SIZE * self.entry(index);
        u16::from_le(self.available.u16(place).load(Relaxed))
    }

    /// Errors: no request that may be taken begins at `head`.
    pub(crate) fn check(&self, head: u16) -> Result<(), RingError> {
        if head >= self.queue.size {
            Err(RingError::Head(head))
        } else if self.inflight.holds(head) {
            Err(RingError::InFlight(head))
        } else {
            Ok(())
        }
    }

    /// Takes the next available request, which begins at `head` and was checked.
    pub(crate) fn take(&mut self, head: u16) {
        self.inflight.take(head);
        self.queue.next_avail = self.queue.next_avail.wrapping_add(1);
    }

    /// Returns a request with `len` bytes written. The driver sees it after [`SplitRing::publish`] at the
    /// latest.
    pub(crate) fn push(&mut self, head: u16, len: u32) {
        let place = HEADER + USED_SIZE * self.entry(self.queue.next_used);
        self.used.u32(place).store(u32::from(head).to_le(), Relaxed);
        self.used.u32(place + 4).store(len.to_le(), Relaxed);
        self.queue.next_used = self.queue.next_used.wrapping_add(1);
        self.inflight.push(head);
        if self.queue.next_used.wrapping_sub(self.published) >= PUBLISH_AFTER {
            self.publish();
        }
    }

    /// Shows the driver all requests that were pushed.
    pub(crate) fn publish(&mut self) {
        let next = self.queue.next_used;
        let count = next.wrapping_sub(self.published);
        if count > 0 {
            self.used.u16(INDEX).store(next.to_le(), Release);
            self.inflight.publish(count, next);
            if self.used_log.is_some() {
                self.mark_pushed();
            }
            self.published = next;
        }
    }

    /// Marks the entries that were pushed since the last publication, and the index.
    #[cold]
    #[inline(never)]
    fn mark_pushed(&self) {
        let Some(log) = &self.used_log else {
            return;
        };
        log.mark(FLAGS, HEADER);
        let mut index = self.published;
        while index != self.queue.next_used {
            log.mark(HEADER + USED_SIZE * self.entry(index), USED_SIZE);
            index = index.wrapping_add(1);
        }
    }

    pub(crate) fn set_log(&mut self, log: Option<UsedLog>) {
        self.used_log = log;
    }

    /// Marks all of the used ring in its log.
    pub(crate) fn mark_used(&self) {
        if let Some(log) = &self.used_log {
            log.mark(FLAGS, used_len(self.queue.size));
        }
    }

    /// The ring stops: shows the driver what was pushed. Returns the index of the next request to take.
    pub(crate) fn stop(&mut self) -> u16 {
        self.publish();
        self.queue.next_avail
    }

    /// The ring has failed: forgets what is in flight.
    pub(crate) fn forget(&mut self) {
        self.inflight.clear();
    }

    /// Whether the driver wants a notification for what was published since the last call.
    pub(crate) fn wants_notification(&mut self) -> bool {
        // The used index must be visible before used_event is read.
        fence(SeqCst);
        if !self.queue.event_idx_enabled {
            let flags = u16::from_le(self.available.u16(FLAGS).load(Relaxed));
            return u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0;
        }
        let place = HEADER + HEAD_SIZE * usize::from(self.queue.size);
        let event = u16::from_le(self.available.u16(place).load(Relaxed));
        let old = std::mem::replace(&mut self.notified, self.published);
        // The specification's vring_need_event: whether the index has passed `event` since `old`.
        self.published.wrapping_sub(event).wrapping_sub(1) < self.published.wrapping_sub(old)
    }

    /// Asks the driver for no kicks.
    pub(crate) fn disable_kicks(&self) {
        // With EVENT_IDX it kicks once, and then only after the event is set again.
        if !self.queue.event_idx_enabled {
            let flags = (VRING_USED_F_NO_NOTIFY as u16).to_le();
            self.used.u16(FLAGS).store(flags, Relaxed);
            if self.used_log.is_some() {
                self.mark_kicks();
            }
        }
    }

    /// Where the driver is asked for kicks by index.
    fn event_place(&self) -> usize {
        HEADER + USED_SIZE * usize::from(self.queue.size)
    }

    /// Marks what asks the driver for kicks.
    #[cold]
    #[inline(never)]
    fn mark_kicks(&self) {
        if let Some(log) = &self.used_log {
            let place = match self.queue.event_idx_enabled {
                true => self.event_place(),
                false => FLAGS,
            };
            log.mark(place, EVENT_SIZE);
        }
    }

    /// Asks the driver for a kick at the next request. True if one is available already.
    pub(crate) fn enable_kicks(&self) -> bool {
        if self.queue.event_idx_enabled {
            let next = self.queue.next_avail.to_le();
            self.used.u16(self.event_place()).store(next, Relaxed);
        } else {
            self.used.u16(FLAGS).store(0, Relaxed);
        }
        if self.used_log.is_some() {
            self.mark_kicks();
        }
        // The driver writes its index and then reads the event; this side does the reverse.
        fence(SeqCst);
        self.has_requests()
    }
}

/// Bytes of the used ring of a queue of this size.
pub(crate) fn used_len(size: u16) -> usize {
    HEADER + usize::from(size) * USED_SIZE + EVENT_SIZE
}

/// Finds the queue and its descriptor table, available and used ring at these addresses of the
/// front-end. `Queue` checks its size and the alignment in the guest. `Queue::is_valid` is not used:
/// it accepts a part that spans regions, and logs errors itself.
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
    let used = used_len(queue.size);
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
