//! Waits that can be ended early: by Tflush, by a new session, or because the device stops.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use coroutine::WaitQueue;
use nix::errno::Errno;

/// What a handler returns if its request was flushed while it waited: it gets no reply. An errno
/// that no system call shows to a program.
pub const FLUSHED: Errno = Errno::ERESTART;

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
pub struct Interrupts(RefCell<HashMap<u16, Rc<Wait>>>);

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
        self.0.borrow_mut().insert(tag, wait.clone());
        Waiting {
            interrupts: self,
            tag,
            wait,
        }
    }

    /// Ends the wait of the request `tag`, if it waits.
    pub fn flush(&self, tag: u16) {
        if let Some(wait) = self.0.borrow().get(&tag) {
            wait.end(Wake::Flushed);
        }
    }

    /// Ends all waits.
    pub fn stop(&self) {
        self.0
            .borrow()
            .values()
            .for_each(|wait| wait.end(Wake::Stopped));
    }

    /// Lets all that wait try again.
    pub fn retry(&self) {
        self.0.borrow().values().for_each(|wait| {
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

impl Waiting<'_> {
    /// Waits for `time` at the most.
    pub fn wait(&self, time: Duration) -> Wake {
        if self.wait.end.get().is_none() {
            self.wait.queue.wait_timeout(time);
        }
        self.wait.end.get().unwrap_or(Wake::Retry)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.interrupts.0.borrow_mut().remove(&self.tag);
    }
}
