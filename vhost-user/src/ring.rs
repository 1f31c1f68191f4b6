//! The ring at run time: pops and pushes requests, notifies the driver, and stops when the driver
//! violates its rules. `split` has the ring's layout in memory.

use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::Rc;

use virtio_queue::QueueState;
use virtio_queue::desc::split::Descriptor;

use crate::chain::{self, Chain, Chains};
use crate::dirty_log::DirtyLog;
use crate::error::RingError;
use crate::inflight::Inflight;
use crate::log_limiter::LogLimiter;
use crate::memory::Memory;
use crate::prefetch;
use crate::signal::Call;
use crate::split::{Addresses, SplitRing, UsedLog};

/// How many requests are taken at once, at most: prefetching all of them takes little longer than
/// one.
const BATCH: usize = 16;
/// The length of most requests and replies without payload.
const REQUEST: usize = 64;
const REPLY: usize = 192;
/// How many chains are kept for the next requests.
const SPARE_CHAINS: usize = 128;
/// After so many bytes the driver is notified before the end of the turn: it can process them
/// meanwhile, and a notification costs much less than they did.
const NOTIFY_AFTER: usize = 128 * 1024;

/// The ring and the requests in flight, which share it and return to it.
pub(crate) struct Ring {
    /// The ring while it runs. Borrowed only within a call of this object, never while a handler runs.
    split: RefCell<Option<SplitRing>>,
    /// The next request to take when the ring stopped.
    base: Cell<u16>,
    call: RefCell<Option<Call>>,
    error: RefCell<Option<Call>>,
    /// Where the pages are marked that are written, if the front-end asks for it.
    log: RefCell<Option<Rc<DirtyLog>>>,
    /// Whether `log` is there.
    logs: Cell<bool>,
    /// Where the used ring begins in the log, if the front-end asks for its pages, too.
    used_place: Cell<Option<u64>>,
    /// What tells the front-end that pages were marked.
    log_call: RefCell<Option<Call>>,
    /// Whether requests were pushed that the driver has not been notified of, and how many bytes they
    /// transferred.
    pushed: Cell<bool>,
    bytes: Cell<usize>,
    spare: RefCell<Chains>,
    violations: LogLimiter,
}

impl Ring {
    pub(crate) fn new() -> Ring {
        Ring {
            split: RefCell::new(None),
            base: Cell::new(0),
            call: RefCell::new(None),
            error: RefCell::new(None),
            log: RefCell::new(None),
            logs: Cell::new(false),
            used_place: Cell::new(None),
            log_call: RefCell::new(None),
            pushed: Cell::new(false),
            bytes: Cell::new(0),
            spare: RefCell::default(),
            violations: LogLimiter::default(),
        }
    }

    /// Moves a running ring to another memory table. Errors: the ring, which is at `addresses`, is not
    /// in it, and must be stopped.
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
        // For requests pushed while there was no call descriptor.
        if self.pushed.get() {
            self.signal();
        }
    }

    pub(crate) fn set_error(&self, error: Option<Call>) {
        self.error.replace(error);
    }

    /// Marks in `log`, from now on, what requests have written and are completed; none if there is no
    /// log. `used_place` is where the used ring begins in the log if its pages are marked, too.
    ///
    /// Requests in flight are marked when they are completed, and so in the last log, whoever writes
    /// for them and when. Once this has returned, no earlier log changes any more.
    pub(crate) fn set_log(&self, log: Option<Rc<DirtyLog>>, used_place: Option<u64>) {
        self.logs.set(log.is_some());
        self.log.replace(log);
        self.used_place.set(used_place);
        if let Some(split) = &mut *self.split.borrow_mut() {
            split.set_log(self.used_log());
        }
    }

    fn used_log(&self) -> Option<UsedLog> {
        let log = self.log.borrow().clone()?;
        Some(UsedLog::new(log, self.used_place.get()?))
    }

    pub(crate) fn set_log_call(&self, call: Option<Call>) {
        self.log_call.replace(call);
    }

    /// Marks all of the used ring: an earlier process may have written what it has not marked.
    pub(crate) fn mark_used(&self) {
        if let Some(split) = &*self.split.borrow() {
            split.mark_used();
        }
    }

    /// The descriptors to signal: of the driver, and of the front-end if the ring fails, or if pages
    /// were marked in the log.
    pub(crate) fn signalled(&self) -> [Option<RawFd>; 3] {
        [&self.call, &self.error, &self.log_call]
            .map(|one| one.borrow().as_ref().map(Call::as_raw_fd))
    }

    /// The next request to take when the ring stopped.
    pub(crate) fn base(&self) -> u16 {
        self.base.get()
    }

    /// A ring that had failed in another process stays so.
    pub(crate) fn set_base(&self, base: u16) {
        self.base.set(base);
    }

    pub(crate) fn is_running(&self) -> bool {
        self.split.borrow().is_some()
    }

    /// Starts the ring that `queue` describes, at `addresses`. `inflight` says what was taken before,
    /// and from now on what is in flight. Errors: as for [`SplitRing::new`].
    pub(crate) fn start(
        &self,
        queue: QueueState,
        addresses: &Addresses,
        memory: &Rc<Memory>,
        inflight: Inflight,
    ) -> Result<(), RingError> {
        let mut split = SplitRing::new(queue, addresses, memory, inflight)?;
        split.set_log(self.used_log());
        self.split.replace(Some(split));
        Ok(())
    }

    /// Stops the ring. Returns the index of the next request to take.
    pub(crate) fn stop(&self) -> u16 {
        if let Some(mut split) = self.split.take() {
            self.base.set(split.stop());
        }
        self.base.get()
    }

    /// The driver has violated the ring's rules: stops the ring and tells the front-end.
    pub(crate) fn fail(&self, error: &RingError) {
        if let Some(number) = self.violations.count() {
            log::error!(
                "the ring stops, as the driver violates its rules: {error} (violation {number})"
            );
        }
        if let Some(mut split) = self.split.take() {
            self.base.set(split.stop());
            split.forget();
        }
        if let Some(error) = &*self.error.borrow() {
            error.signal();
        }
    }

    /// Takes the next requests, at most a batch, and appends their chains to `into`. Those that an
    /// earlier process has taken come first. Errors: how the driver violates the ring's rules; the
    /// requests before are taken.
    pub(crate) fn pop(&self, into: &mut Chains) -> Result<(), RingError> {
        let mut split = self.split.borrow_mut();
        let Some(split) = &mut *split else {
            return Ok(());
        };
        if split.has_lost() {
            return self.pop_lost(split, into);
        }
        let mut heads = [0; BATCH];
        let heads = split.available(&mut heads)?;
        // A single request is read at once.
        if heads.len() > 1 {
            prefetch_beginnings(split, heads);
        }
        for &head in heads {
            split.check(head)?;
            into.push(self.read(split, head)?);
            // Only now: a malformed chain is not taken.
            split.take(head);
        }
        Ok(())
    }

    #[cold]
    fn pop_lost(&self, split: &mut SplitRing, into: &mut Chains) -> Result<(), RingError> {
        for _ in 0..BATCH {
            let Some(lost) = split.lost() else {
                break;
            };
            let mut chain = self.read(split, lost.head)?;
            chain.set_resumed(lost.resumed);
            into.push(chain);
            split.retake();
        }
        Ok(())
    }

    /// Reads the chain that begins at `head`.
    fn read(&self, split: &SplitRing, head: u16) -> Result<Box<Chain>, RingError> {
        let spare = self.spare.borrow_mut().pop();
        let mut chain = spare.unwrap_or_else(|| Box::new(Chain::new()));
        chain.walk(split.memory(), split.descriptors(), head)?;
        if self.logs.get() {
            chain.track();
        }
        chain.readable().prefetch(REQUEST);
        chain.writable().prefetch(REPLY);
        Ok(chain)
    }

    #[cold]
    #[inline(never)]
    fn mark(&self, chain: &Chain) {
        if let Some(log) = &*self.log.borrow() {
            chain.mark(log);
            if let Some(call) = &*self.log_call.borrow() {
                call.signal();
            }
        }
    }

    /// Returns a chain to the driver. Writes nothing if the ring has been stopped.
    pub(crate) fn push(&self, mut chain: Box<Chain>, used: u32) {
        // Before the driver, and so the front-end, can see the answer.
        if self.logs.get() {
            self.mark(&chain);
        }
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

    /// Publishes what was pushed, and notifies the driver if it wants that.
    pub(crate) fn notify(&self) {
        match &mut *self.split.borrow_mut() {
            Some(split) => self.notify_of(split),
            // The ring has stopped meanwhile: a spurious notification does no harm.
            None if self.pushed.get() => self.signal(),
            None => {}
        }
    }

    fn notify_of(&self, split: &mut SplitRing) {
        if self.pushed.get() {
            split.publish();
            self.bytes.set(0);
            // Without a call descriptor the notification stays pending.
            if self.call.borrow().is_some() {
                if split.wants_notification() {
                    self.signal();
                }
                self.pushed.set(false);
            }
        }
    }

    /// Notifies the driver, whether it wants that or not.
    pub(crate) fn announce(&self) {
        self.pushed.set(true);
        self.signal();
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

    /// Whether a request that an earlier process has taken is to be taken again.
    pub(crate) fn has_lost(&self) -> bool {
        (self.split.borrow().as_ref()).is_some_and(SplitRing::has_lost)
    }

    /// Whether a request is available.
    pub(crate) fn has_requests(&self) -> bool {
        (self.split.borrow().as_ref()).is_some_and(SplitRing::has_requests)
    }

    /// Asks the driver for no kicks: the loop polls the ring.
    pub(crate) fn disable_kicks(&self) {
        if let Some(split) = &*self.split.borrow() {
            split.disable_kicks();
        }
    }

    /// Asks the driver for kicks again. True if a request is available already.
    pub(crate) fn enable_kicks(&self) -> bool {
        (self.split.borrow().as_ref()).is_some_and(SplitRing::enable_kicks)
    }
}

/// Prefetches the first descriptors of the requests, and their indirect tables.
fn prefetch_beginnings(split: &SplitRing, heads: &[u16]) {
    let (memory, table) = (split.memory(), split.descriptors());
    let size = size_of::<Descriptor>();
    let start = table.ptr_guard();
    // Heads are not checked yet: a hint may point outside of the table.
    for &head in heads {
        prefetch::for_reading(start.as_ptr().wrapping_add(usize::from(head) * size));
    }
    for &head in heads {
        chain::prefetch_table(memory, table, head);
    }
}
