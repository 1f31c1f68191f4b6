//! The requests under way, by the guest's tags.

use std::cell::{Cell, RefCell};

use coroutine::WaitQueue;
use nix::errno::Errno;

/// Which tags are in use, and by which request: the number a request is given tells it apart from
/// a later one with the same tag.
pub struct Tags {
    /// Indexed by tag; 0 is free. Half a mebibyte of which only the pages in use exist.
    running: RefCell<Box<[u64]>>,
    last: Cell<u64>,
    ended: WaitQueue,
}

impl Tags {
    /// No request is under way.
    pub fn new() -> Tags {
        Tags {
            running: RefCell::new(vec![0; usize::from(u16::MAX) + 1].into_boxed_slice()),
            last: Cell::new(0),
            ended: WaitQueue::new(),
        }
    }

    /// A request with this tag begins; it ends when the value returned is dropped. Errors: EINVAL
    /// if the tag is in use.
    pub fn begin(&self, tag: u16) -> Result<Running<'_>, Errno> {
        let slot = &mut self.running.borrow_mut()[usize::from(tag)];
        if *slot != 0 {
            return Err(Errno::EINVAL);
        }
        self.last.set(self.last.get() + 1);
        *slot = self.last.get();
        Ok(Running { tags: self, tag })
    }

    /// Waits until the request that has this tag now, if any, has been answered.
    pub fn wait_for(&self, tag: u16) {
        let request = self.current(tag);
        while request != 0 && self.current(tag) == request {
            self.ended.wait();
        }
    }

    fn current(&self, tag: u16) -> u64 {
        self.running.borrow()[usize::from(tag)]
    }
}

/// A tag in use.
pub struct Running<'a> {
    tags: &'a Tags,
    tag: u16,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.tags.running.borrow_mut()[usize::from(self.tag)] = 0;
        self.tags.ended.wake_all();
    }
}
