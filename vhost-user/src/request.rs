//! A request, from pop to push.

use std::rc::Rc;

use crate::buffers::{Readable, Segments, Writable};
use crate::memory::Memory;
use crate::ring::Ring;

/// A descriptor chain that the driver has made available. Whoever has it is the only one to
/// answer it; dropped without being completed, it is completed with length 0.
///
/// It stays on the thread of the ring; its halves may be used by others:
///
/// ```compile_fail
/// fn moved<T: Send>() {}
/// moved::<vhost_user::Request>();
/// ```
/// ```
/// fn shared<T: Send + Sync>() {}
/// shared::<vhost_user::Readable>();
/// shared::<vhost_user::Writable>();
/// ```
pub struct Request {
    ring: Rc<Ring>,
    head: u16,
    /// Keeps mapped what the halves lead to.
    _memory: Rc<Memory>,
    /// Both are there until the request is completed.
    halves: Option<(Readable, Writable)>,
}

impl Request {
    pub(crate) fn new(
        ring: Rc<Ring>,
        head: u16,
        memory: Rc<Memory>,
        readable: Segments,
        writable: Segments,
    ) -> Request {
        Request {
            ring,
            head,
            _memory: memory,
            halves: Some((Readable(readable), Writable(writable))),
        }
    }

    fn halves(&self) -> &(Readable, Writable) {
        self.halves
            .as_ref()
            .expect("only completing takes the buffers away, and the request too")
    }

    /// What the driver has written.
    pub fn readable(&self) -> &Readable {
        &self.halves().0
    }

    /// Where the answer goes.
    pub fn writable(&self) -> &Writable {
        &self.halves().1
    }

    /// Gives the chain back to the driver, `used` bytes of its writable memory written: no more than
    /// there are. The driver sees it at [`Connection::notify`](crate::Connection::notify) at the
    /// latest, and is notified there.
    pub fn complete(mut self, used: u32) {
        debug_assert!(used as usize <= self.writable().len());
        self.push(used);
    }

    fn push(&mut self, used: u32) {
        if let Some((Readable(readable), Writable(writable))) = self.halves.take() {
            let used = used.min(u32::try_from(writable.len()).unwrap_or(u32::MAX));
            self.ring.push(self.head, used, readable, writable);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.push(0);
    }
}
