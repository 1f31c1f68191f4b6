//! The ring's life: requests are popped and pushed, the driver is notified, and what it breaks
//! stops the ring. How the ring lies in memory is the business of `split`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use virtio_queue::QueueState;
use virtio_queue::desc::split::Descriptor;

use crate::chain::{self, Chain, Chains};
use crate::error::RingError;
use crate::log_limiter::LogLimiter;
use crate::memory::Memory;
use crate::prefetch;
use crate::signal::Call;
use crate::split::{Addresses, SplitRing};

/// How many requests are taken at once, if there are so many: to fetch what they begin with takes
/// little longer than for one.
const BATCH: usize = 16;
/// As long as most requests and replies are that have no payload.
const REQUEST: usize = 64;
const REPLY: usize = 192;
/// How many chains are kept for the next requests.
const SPARE_CHAINS: usize = 128;
/// After so many bytes the driver is notified without waiting for the end of the turn: it can work
/// on them while this side goes on, and a notification costs much less than they did.
const NOTIFY_AFTER: usize = 128 * 1024;

/// The ring and what is under way in it. Shared with the requests, which come back to it.
pub(crate) struct Ring {
    /// The ring, as long as it runs. Borrowed only within a call into this object, never while a
    /// handler runs.
    split: RefCell<Option<SplitRing>>,
    /// The next to be taken when it stopped.
    base: Cell<u16>,
    in_flight: Cell<u16>,
    call: RefCell<Option<Call>>,
    error: RefCell<Option<Call>>,
    /// Whether something was pushed that the driver may not know of, and how many bytes went to and
    /// fro with it.
    pushed: Cell<bool>,
    bytes: Cell<usize>,
    spare: RefCell<Chains>,
    breaks: LogLimiter,
}

impl Ring {
    pub(crate) fn new() -> Ring {
        Ring {
            split: RefCell::new(None),
            base: Cell::new(0),
            in_flight: Cell::new(0),
            call: RefCell::new(None),
            error: RefCell::new(None),
            pushed: Cell::new(false),
            bytes: Cell::new(0),
            spare: RefCell::default(),
            breaks: LogLimiter::default(),
        }
    }

    /// Takes another table of memory; a ring that is running goes on in it. Errors: the ring, which
    /// is at `addresses`, is not in it, and must be stopped.
    pub(crate) fn set_memory(
        &self,
        memory: &Rc<Memory>,
        addresses: Option<&Addresses>,
    ) -> Result<(), RingError> {
        match (addresses, &mut *self.split.borrow_mut()) {
            (Some(addresses), Some(split)) => split.move_to(addresses, memory),
            _ => Ok(()),
        }
    }

    pub(crate) fn set_call(&self, call: Option<Call>) {
        self.call.replace(call);
        self.publish();
        // For what was pushed while there was nothing to call with.
        if self.pushed.get() {
            self.signal();
        }
    }

    pub(crate) fn set_error(&self, error: Option<Call>) {
        self.error.replace(error);
    }

    pub(crate) fn is_running(&self) -> bool {
        self.split.borrow().is_some()
    }

    /// Makes the ring that `queue` describes usable, at `addresses`. Errors: as for
    /// [`SplitRing::new`].
    pub(crate) fn start(
        &self,
        queue: QueueState,
        addresses: &Addresses,
        memory: &Rc<Memory>,
    ) -> Result<(), RingError> {
        let split = SplitRing::new(queue, addresses, memory)?;
        self.split.replace(Some(split));
        Ok(())
    }

    /// Nothing is taken out any more. Returns the next that would have been.
    pub(crate) fn stop(&self) -> u16 {
        if let Some(mut split) = self.split.take() {
            split.publish();
            self.base.set(split.next_available());
        }
        self.base.get()
    }

    /// The driver has broken the ring: it stops, the front-end is told, and the rest goes on.
    pub(crate) fn fail(&self, error: &RingError) {
        if let Some(number) = self.breaks.count() {
            log::error!("the driver breaks the ring, which stops: {error} (number {number})");
        }
        self.stop();
        if let Some(error) = &*self.error.borrow() {
            error.signal();
        }
    }

    /// Takes the next requests, a batch at the most, and appends their chains to `into`; none if none
    /// is available. Errors: how the driver has broken the ring. What came before is taken.
    pub(crate) fn pop(&self, into: &mut Chains) -> Result<(), RingError> {
        let mut split = self.split.borrow_mut();
        let Some(split) = &mut *split else {
            return Ok(());
        };
        let mut heads = [0; BATCH];
        let heads = split.available(&mut heads)?;
        // A single request is read at once.
        if heads.len() > 1 {
            prefetch_beginnings(split, heads);
        }
        for &head in heads {
            into.push(self.pop_one(split, head)?);
        }
        Ok(())
    }

    fn pop_one(&self, split: &mut SplitRing, head: u16) -> Result<Box<Chain>, RingError> {
        if head >= split.size() {
            return Err(RingError::Head(head));
        }
        if self.in_flight.get() == split.size() {
            return Err(RingError::TooMany);
        }
        let spare = self.spare.borrow_mut().pop();
        let mut chain = spare.unwrap_or_else(|| Box::new(Chain::new()));
        chain.walk(split.memory(), split.descriptors(), head)?;
        chain.readable().prefetch(REQUEST);
        chain.writable().prefetch(REPLY);
        // Only now: a chain that was not understood was not taken.
        split.take();
        self.in_flight.set(self.in_flight.get() + 1);
        Ok(chain)
    }

    /// Gives a chain back to the driver. After the ring has been stopped nothing is written.
    pub(crate) fn push(&self, mut chain: Box<Chain>, used: u32) {
        self.in_flight.set(self.in_flight.get() - 1);
        let head = chain.head();
        let bytes = self.bytes.get() + chain.readable().len() + used as usize;
        chain.clear();
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_CHAINS {
            spare.push(chain);
        }
        drop(spare);
        let Some(split) = &mut *self.split.borrow_mut() else {
            return;
        };
        split.push(head, used);
        self.pushed.set(true);
        self.bytes.set(bytes);
        if bytes >= NOTIFY_AFTER {
            self.notify_of(split);
        }
    }

    /// Lets the driver see what was pushed, and tells it if it wants to know.
    pub(crate) fn notify(&self) {
        match &mut *self.split.borrow_mut() {
            Some(split) => self.notify_of(split),
            // It has stopped meanwhile: a call too many does no harm.
            None if self.pushed.get() => self.signal(),
            None => {}
        }
    }

    fn notify_of(&self, split: &mut SplitRing) {
        if self.pushed.get() {
            split.publish();
            self.bytes.set(0);
            // Without anything to call with, what was pushed is kept in mind.
            if self.call.borrow().is_some() {
                if split.wants_notification() {
                    self.signal();
                }
                self.pushed.set(false);
            }
        }
    }

    fn publish(&self) {
        if let Some(split) = &mut *self.split.borrow_mut() {
            split.publish();
        }
    }

    fn signal(&self) {
        if let Some(call) = &*self.call.borrow() {
            call.signal();
            self.pushed.set(false);
        }
    }

    /// Whether a request is available.
    pub(crate) fn has_requests(&self) -> bool {
        (self.split.borrow().as_ref()).is_some_and(SplitRing::has_requests)
    }

    /// Asks the driver not to notify: the ring is looked at without that.
    pub(crate) fn disable_kicks(&self) {
        if let Some(split) = &*self.split.borrow() {
            split.disable_kicks();
        }
    }

    /// Asks the driver to notify again. True if something is available already.
    pub(crate) fn enable_kicks(&self) -> bool {
        (self.split.borrow().as_ref()).is_some_and(SplitRing::enable_kicks)
    }
}

/// What the requests begin with.
fn prefetch_beginnings(split: &SplitRing, heads: &[u16]) {
    let (memory, table) = (split.memory(), split.descriptors());
    let size = size_of::<Descriptor>();
    let start = table.ptr_guard();
    // A hint, which may lead outside.
    for &head in heads {
        prefetch::for_reading(start.as_ptr().wrapping_add(usize::from(head) * size));
    }
    for &head in heads {
        chain::prefetch_table(memory, table, head);
    }
}
