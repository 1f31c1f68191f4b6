//! The split virtqueue: pop, push, notify.
//!
//! Indices, addresses and memory barriers are `virtio-queue`'s; taking a chain out is done here,
//! because that crate passes over in silence what a driver must not do.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use libc::iovec;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::buffers::Segments;
use crate::chain::{self, ChainError};
use crate::memory::Memory;
use crate::request::Request;
use crate::signal::Call;
use crate::tally::Tally;

/// How many lists of segments are kept for the next requests.
const SPARE_LISTS: usize = 256;

/// How a driver breaks its ring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// More is available than the ring has.
    #[error("{0} requests are available in a ring of {1}")]
    Runaway(u16, u16),
    /// More is under way than the ring has.
    #[error("more requests than the ring has descriptors")]
    TooMany,
    /// A chain begins outside of the ring.
    #[error("a chain begins at descriptor {0}, outside of the ring")]
    Head(u16),
    /// A chain is malformed.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The ring is not in the guest's memory, or cannot be used.
    #[error("the ring cannot be used: {0}")]
    Queue(#[from] virtio_queue::Error),
    /// The ring is not in the guest's memory.
    #[error("the ring is not in the guest's memory: {0}")]
    Memory(#[from] vm_memory::guest_memory::Error),
}

/// Where the front-end has put the ring, in its own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

impl Addresses {
    /// Puts `queue` where the front-end has it. Errors: that is not in the guest's memory, or not
    /// aligned.
    fn place(&self, queue: &mut Queue, memory: &Memory) -> Result<(), RingError> {
        let guest = |user| {
            let missing = vm_memory::guest_memory::Error::InvalidGuestAddress(GuestAddress(user));
            memory
                .guest_address(user)
                .map(GuestAddress)
                .ok_or(RingError::Memory(missing))
        };
        queue.try_set_desc_table_address(guest(self.descriptors)?)?;
        queue.try_set_avail_ring_address(guest(self.available)?)?;
        queue.try_set_used_ring_address(guest(self.used)?)?;
        queue.set_ready(true);
        if !queue.is_valid(memory.mapped()) {
            return Err(virtio_queue::Error::QueueNotReady.into());
        }
        Ok(())
    }
}

/// The ring and what is under way in it. Shared with the requests, which come back to it.
pub(crate) struct Ring {
    /// Borrowed only within a call into this object, never while a handler runs.
    queue: RefCell<Queue>,
    memory: RefCell<Arc<Memory>>,
    running: Cell<bool>,
    in_flight: Cell<u16>,
    call: RefCell<Option<Call>>,
    error: RefCell<Option<Call>>,
    /// Whether something was pushed that the driver may not know of.
    pushed: Cell<bool>,
    spare: RefCell<Vec<Vec<iovec>>>,
    breaks: Tally,
}

impl Ring {
    pub(crate) fn new(max_size: u16) -> Result<Ring, RingError> {
        Ok(Ring {
            queue: RefCell::new(Queue::new(max_size)?),
            memory: RefCell::default(),
            running: Cell::new(false),
            in_flight: Cell::new(0),
            call: RefCell::new(None),
            error: RefCell::new(None),
            pushed: Cell::new(false),
            spare: RefCell::default(),
            breaks: Tally::default(),
        })
    }

    /// Takes another table of memory; a ring that is running goes on in it. Errors: the ring, which
    /// is at `addresses`, is not in it, and must be stopped.
    pub(crate) fn set_memory(
        &self,
        memory: Arc<Memory>,
        addresses: Option<&Addresses>,
    ) -> Result<(), RingError> {
        let result = match addresses {
            Some(addresses) if self.running.get() => {
                addresses.place(&mut self.queue.borrow_mut(), &memory)
            }
            _ => Ok(()),
        };
        self.memory.replace(memory);
        result
    }

    pub(crate) fn set_call(&self, call: Option<Call>) {
        self.call.replace(call);
        // For what was pushed while there was nothing to call with.
        if self.pushed.get() {
            self.signal();
        }
    }

    pub(crate) fn set_error(&self, error: Option<Call>) {
        self.error.replace(error);
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.get()
    }

    /// Makes the ring usable: `size` descriptors at `addresses`, of which `base` is the next to be
    /// taken. Errors: the ring is not in the guest's memory, or not aligned.
    pub(crate) fn start(
        &self,
        size: u16,
        addresses: &Addresses,
        base: u16,
        event_idx: bool,
    ) -> Result<(), RingError> {
        let memory = self.memory.borrow();
        let mut queue = self.queue.borrow_mut();
        queue.reset();
        queue.try_set_size(size)?;
        addresses.place(&mut queue, &memory)?;
        queue.set_event_idx(event_idx);
        queue.set_next_avail(base);
        let used = queue.used_idx(memory.mapped(), Ordering::Acquire)?.0;
        queue.set_next_used(used);
        self.running.set(true);
        Ok(())
    }

    /// Nothing is taken out any more. Returns the next that would have been.
    pub(crate) fn stop(&self) -> u16 {
        self.running.set(false);
        self.queue.borrow().next_avail()
    }

    /// The driver has broken the ring: it stops, the front-end is told, and the rest goes on.
    pub(crate) fn fail(&self, error: &RingError) {
        if let Some(number) = self.breaks.count() {
            log::error!("the driver breaks the ring, which stops: {error} (number {number})");
        }
        self.running.set(false);
        if let Some(error) = &*self.error.borrow() {
            error.signal();
        }
    }

    /// The next request, if one is available.
    pub(crate) fn pop(self: &Rc<Ring>) -> Result<Option<Request>, RingError> {
        let memory = self.memory.borrow().clone();
        let mut queue = self.queue.borrow_mut();
        let next = queue.next_avail();
        let available = queue
            .avail_idx(memory.mapped(), Ordering::Acquire)?
            .0
            .wrapping_sub(next);
        if available == 0 {
            return Ok(None);
        }
        if available > queue.size() {
            return Err(RingError::Runaway(available, queue.size()));
        }
        if self.in_flight.get() == queue.size() {
            return Err(RingError::TooMany);
        }
        // flags, idx, then the ring of 16-bit heads. The ring was checked to lie in memory.
        let place = queue.avail_ring() + 4 + 2 * u64::from(next % queue.size());
        let head = u16::from_le(memory.mapped().read_obj(GuestAddress(place))?);
        if head >= queue.size() {
            return Err(RingError::Head(head));
        }
        let mut readable = Segments::new(self.take_list(), memory.clone());
        let mut writable = Segments::new(self.take_list(), memory);
        chain::walk(
            queue.desc_table(),
            queue.size(),
            head,
            &mut readable,
            &mut writable,
        )?;
        // Only now: a chain that was not understood was not taken.
        queue.set_next_avail(next.wrapping_add(1));
        self.in_flight.set(self.in_flight.get() + 1);
        Ok(Some(Request::new(self.clone(), head, readable, writable)))
    }

    /// Gives a chain back to the driver. After the ring has been stopped nothing is written.
    pub(crate) fn push(&self, head: u16, used: u32, one: Vec<iovec>, other: Vec<iovec>) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.keep_lists([one, other]);
        if !self.running.get() {
            return;
        }
        let memory = self.memory.borrow();
        let result = self
            .queue
            .borrow_mut()
            .add_used(memory.mapped(), head, used);
        match result {
            Ok(()) => self.pushed.set(true),
            Err(error) => self.fail(&error.into()),
        }
    }

    /// Tells the driver of what was pushed since the last time, if it wants to know.
    pub(crate) fn notify(&self) {
        // Without anything to call with, what was pushed is kept in mind.
        if !self.pushed.get() || self.call.borrow().is_none() {
            return;
        }
        match self.wants_notification() {
            Ok(true) => self.signal(),
            Ok(false) => self.pushed.set(false),
            Err(error) => {
                self.pushed.set(false);
                self.fail(&error);
            }
        }
    }

    fn signal(&self) {
        if let Some(call) = &*self.call.borrow() {
            call.signal();
            self.pushed.set(false);
        }
    }

    fn wants_notification(&self) -> Result<bool, RingError> {
        let memory = self.memory.borrow();
        let mut queue = self.queue.borrow_mut();
        // Fences, too: what was pushed is visible before the driver's wish is read.
        let wanted = queue.needs_notification(memory.mapped())?;
        if queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags = GuestAddress(queue.avail_ring());
        let flags: u16 = memory.mapped().load(flags, Ordering::Relaxed)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver not to notify while the ring is being emptied.
    pub(crate) fn disable_kicks(&self) -> Result<(), RingError> {
        let memory = self.memory.borrow();
        Ok(self
            .queue
            .borrow_mut()
            .disable_notification(memory.mapped())?)
    }

    /// Asks the driver to notify again. True if something has become available in between.
    pub(crate) fn enable_kicks(&self) -> Result<bool, RingError> {
        let memory = self.memory.borrow();
        Ok(self
            .queue
            .borrow_mut()
            .enable_notification(memory.mapped())?)
    }

    fn take_list(&self) -> Vec<iovec> {
        self.spare.borrow_mut().pop().unwrap_or_default()
    }

    fn keep_lists(&self, lists: [Vec<iovec>; 2]) {
        let mut spare = self.spare.borrow_mut();
        for list in lists {
            if spare.len() < SPARE_LISTS {
                spare.push(list);
            }
        }
    }
}
