//! The requests under way. One record for each: its tag, where it waits, and why it must end early:
//! a Tflush, a new session, or a stop of the device.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coroutine::WaitQueue;
use nix::errno::Errno;

/// Why a request gets no reply of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It is answered with an error.
    Errno(Errno),
    /// It was flushed while it waited: it gets no reply, because the Rflush is the answer. Not an
    /// errno: a file system of the host may return any number as one.
    Flushed,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::Errno(errno)
    }
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The time is over.
    Retry,
    /// The guest no longer wants the answer.
    Flushed,
    /// The session or the ring ends: answer at once.
    Stopped,
}

/// All requests of a session, by the guest's tags.
pub struct Requests {
    /// The record of each tag in use. As long as the largest tag so far; clients use the smallest
    /// free ones.
    tags: RefCell<Vec<Option<Rc<Record>>>>,
    /// The records that no tag has.
    free: RefCell<Vec<Rc<Record>>>,
    /// All records: as many as there ever were requests at once.
    records: RefCell<Vec<Rc<Record>>>,
    /// How many callers wait for the end of all requests.
    stopping: AtomicUsize,
}

/// A request that is under way.
#[derive(Default)]
struct Record {
    /// Tells the request apart from later ones with the same record.
    number: Cell<u64>,
    /// Why it must end, once that is known. It may not be waiting yet.
    end: Cell<Option<Wake>>,
    /// It waits here.
    waiting: WaitQueue,
    /// Those that flush it wait here for its end.
    flushing: WaitQueue,
}

/// A request that is under way, until this is dropped.
pub struct Running<'a> {
    requests: &'a Requests,
    tag: u16,
}

/// While it lives, no request waits.
pub struct Stopping<'a>(&'a Requests);

impl Requests {
    /// No request is under way.
    pub fn new() -> Requests {
        Requests {
            tags: RefCell::default(),
            records: RefCell::default(),
            free: RefCell::default(),
            stopping: AtomicUsize::new(0),
        }
    }

    /// Begins a request with this tag. Errors: EINVAL if the tag is in use.
    pub fn begin(&self, tag: u16) -> Result<Running<'_>, Errno> {
        let mut tags = self.tags.borrow_mut();
        if tags.len() <= usize::from(tag) {
            tags.resize(usize::from(tag) + 1, None);
        }
        let slot = &mut tags[usize::from(tag)];
        if slot.is_some() {
            return Err(Errno::EINVAL);
        }
        let free = self.free.borrow_mut().pop();
        let record = free.unwrap_or_else(|| self.another());
        // A stop marks all records, also free ones.
        record.end.set(None);
        *slot = Some(record);
        let requests = self;
        Ok(Running { requests, tag })
    }

    /// One more record.
    #[cold]
    fn another(&self) -> Rc<Record> {
        let record = Rc::<Record>::default();
        self.records.borrow_mut().push(record.clone());
        record
    }

    fn get(&self, tag: u16) -> Option<Rc<Record>> {
        self.tags.borrow().get(usize::from(tag))?.clone()
    }

    /// Ends the wait of the request `tag`, if it is under way and waits or is going to. Returns
    /// when it has been answered.
    pub fn flush(&self, tag: u16) {
        let Some(record) = self.get(tag) else { return };
        let number = record.number.get();
        record.end(Wake::Flushed);
        while record.number.get() == number {
            record.flushing.wait();
        }
    }

    /// Ends all waits, and those that would begin before the returned value is dropped.
    pub fn stop(&self) -> Stopping<'_> {
        self.stopping.fetch_add(1, Ordering::Relaxed);
        self.records
            .borrow()
            .iter()
            .for_each(|record| record.end(Wake::Stopped));
        Stopping(self)
    }

    /// How many callers wait for the end of all requests. A worker checks it between the calls of a
    /// request that takes many.
    pub fn stopping(&self) -> &AtomicUsize {
        &self.stopping
    }
}

impl Record {
    fn end(&self, why: Wake) {
        if self.end.get().is_none() {
            self.end.set(Some(why));
        }
        self.waiting.wake_all();
    }
}

impl Running<'_> {
    /// The guest's tag.
    pub fn tag(&self) -> u16 {
        self.tag
    }

    /// Waits for at most `time`, or not at all if the request must end.
    pub fn wait(&self, time: Duration) -> Wake {
        let record = self.record();
        if self.requests.stopping.load(Ordering::Relaxed) > 0 {
            record.end(Wake::Stopped);
        }
        if record.end.get().is_none() {
            record.waiting.wait_timeout(time);
        }
        record.end.get().unwrap_or(Wake::Retry)
    }

    fn record(&self) -> Rc<Record> {
        let record = self.requests.get(self.tag);
        record.expect("a request has its tag until it ends")
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let record = self.requests.tags.borrow_mut()[usize::from(self.tag)].take();
        if let Some(record) = record {
            record.number.set(record.number.get() + 1);
            record.flushing.wake_all();
            self.requests.free.borrow_mut().push(record);
        }
    }
}

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.stopping.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_free_again_with_the_end_of_its_request() {
        let requests = Requests::new();
        let running = requests.begin(7).unwrap();
        assert_eq!(requests.begin(7).err(), Some(Errno::EINVAL));
        assert!(requests.begin(8).is_ok());
        drop(running);
        assert!(requests.begin(7).is_ok());
        // One for each that was under way at once.
        assert_eq!(requests.records.borrow().len(), 2);
    }

    #[test]
    fn a_flush_ends_also_the_wait_that_is_not_begun() {
        let requests = Rc::new(Requests::new());
        let running = requests.begin(1).unwrap();
        let flushed = Rc::new(Cell::new(false));
        let (others, told) = (requests.clone(), flushed.clone());
        coroutine::spawn(move || {
            others.flush(1);
            told.set(true);
        })
        .unwrap();
        assert!(!flushed.get());
        assert_eq!(running.wait(Duration::MAX), Wake::Flushed);
        // Neither a second reason nor a second wait changes that.
        drop(requests.stop());
        assert_eq!(running.wait(Duration::MAX), Wake::Flushed);
        drop(running);
        // The next with the record is another request.
        let running = requests.begin(1).unwrap();
        coroutine::run_ready();
        assert!(flushed.get());
        assert_eq!(running.record().end.get(), None);
    }

    #[test]
    fn a_stop_does_not_end_what_begins_after_it() {
        let requests = Requests::new();
        drop([1, 2].map(|tag| requests.begin(tag)));
        drop(requests.stop());
        for running in [1, 2].map(|tag| requests.begin(tag).unwrap()) {
            assert_eq!(running.record().end.get(), None);
        }
    }

    #[test]
    fn a_stop_ends_what_begins_before_it_is_over() {
        let requests = Requests::new();
        let before = requests.begin(1).unwrap();
        let stopping = requests.stop();
        let during = requests.begin(2).unwrap();
        assert_eq!(before.wait(Duration::MAX), Wake::Stopped);
        assert_eq!(during.wait(Duration::MAX), Wake::Stopped);
        drop(stopping);
        let after = requests.begin(3).unwrap();
        assert_eq!(after.record().end.get(), None);
    }
}
