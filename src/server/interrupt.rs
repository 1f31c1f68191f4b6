//! Waits that can be ended early: by Tflush, by a new session, or because the device stops.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use coroutine::WaitQueue;
use nix::errno::Errno;

/// A request was flushed while it waited: it gets no reply, for its Rflush is the answer. Not an
/// errno: a file system of the host may return any number as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flushed;

/// Why a request that may wait has no reply of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It is answered with an error.
    Errno(Errno),
    /// It is not answered.
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
    /// What is waited for may be there now.
    Retry,
    /// The guest does not want the answer any more.
    Flushed,
    /// The session or the ring ends: answer at once.
    Stopped,
}

/// The requests that wait, by tag.
#[derive(Default)]
pub struct Interrupts {
    waiting: RefCell<HashMap<u16, Rc<Wait>>>,
    /// The requests whose end is waited for: a tag as often as it is being flushed.
    flushing: RefCell<Vec<u16>>,
    /// How many wait for the end of all requests.
    stopping: AtomicUsize,
}

/// As long as it lives, one request does not wait.
pub struct Flushing<'a> {
    interrupts: &'a Interrupts,
    tag: u16,
}

/// As long as it lives, no request waits.
pub struct Stopping<'a>(&'a Interrupts);

#[derive(Default)]
struct Wait {
    queue: WaitQueue,
    /// Why it is to end, once it is known for good.
    end: Cell<Option<Wake>>,
}

/// A request that may wait, from its first to its last wait.
pub struct Waiting<'a> {
    interrupts: &'a Interrupts,
    tag: u16,
    wait: Rc<Wait>,
}

impl Interrupts {
    /// The request `tag` may have to wait.
    pub fn begin(&self, tag: u16) -> Waiting<'_> {
        let wait = Rc::new(Wait::default());
        self.waiting.borrow_mut().insert(tag, wait.clone());
        Waiting {
            interrupts: self,
            tag,
            wait,
        }
    }

    /// Ends the wait of the request `tag`, if it waits, or when it begins to before the value
    /// returned is dropped.
    pub fn flush(&self, tag: u16) -> Flushing<'_> {
        self.flushing.borrow_mut().push(tag);
        if let Some(wait) = self.waiting.borrow().get(&tag) {
            wait.end(Wake::Flushed);
        }
        Flushing {
            interrupts: self,
            tag,
        }
    }

    /// Ends all waits, and those that would begin until the value returned is dropped: a request
    /// may be on its way to its first wait.
    pub fn stop(&self) -> Stopping<'_> {
        self.stopping.fetch_add(1, Ordering::Relaxed);
        self.waiting
            .borrow()
            .values()
            .for_each(|wait| wait.end(Wake::Stopped));
        Stopping(self)
    }

    /// How many wait for the end of all requests: what a worker looks at between the calls of one
    /// that makes many.
    pub fn stopping(&self) -> &AtomicUsize {
        &self.stopping
    }

    /// Lets all that wait try again.
    pub fn retry(&self) {
        self.waiting.borrow().values().for_each(|wait| {
            wait.queue.wake_all();
        });
    }
}

impl Wait {
    fn end(&self, why: Wake) {
        if self.end.get().is_none() {
            self.end.set(Some(why));
        }
        self.queue.wake_all();
    }
}

impl Drop for Flushing<'_> {
    fn drop(&mut self) {
        let mut flushing = self.interrupts.flushing.borrow_mut();
        if let Some(place) = flushing.iter().position(|tag| *tag == self.tag) {
            flushing.swap_remove(place);
        }
    }
}

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.stopping.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Waiting<'_> {
    /// Waits for `time` at the most.
    pub fn wait(&self, time: Duration) -> Wake {
        if self.interrupts.flushing.borrow().contains(&self.tag) {
            self.wait.end(Wake::Flushed);
        }
        if self.interrupts.stopping.load(Ordering::Relaxed) > 0 {
            self.wait.end(Wake::Stopped);
        }
        if self.wait.end.get().is_none() {
            self.wait.queue.wait_timeout(time);
        }
        self.wait.end.get().unwrap_or(Wake::Retry)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.interrupts.waiting.borrow_mut().remove(&self.tag);
    }
}
