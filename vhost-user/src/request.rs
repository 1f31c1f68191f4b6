//! A request, from pop to push.

use std::rc::Rc;

use crate::buffers::{Readable, Writable};
use crate::chain::Chain;
use crate::inflight::Resumed;
use crate::ring::Ring;

/// A descriptor chain that the driver has made available. Only its owner can complete it; dropping it
/// completes it with length 0.
///
/// A half whose descriptors point outside of the guest's memory ends before them and is marked as
/// [cut](Readable::is_cut): refuse such a request; the ring keeps running.
///
/// A request stays on the ring's thread; other threads may use its halves:
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
    /// Present until the request is completed. Boxed, so that moving a request is cheap.
    chain: Option<Box<Chain>>,
}

impl Request {
    pub(crate) fn new(ring: Rc<Ring>, chain: Box<Chain>) -> Request {
        Request {
            ring,
            chain: Some(chain),
        }
    }

    fn chain(&self) -> &Chain {
        self.chain
            .as_ref()
            .expect("completing takes the chain, and consumes the request")
    }

    /// The buffers that the driver has written.
    pub fn readable(&self) -> &Readable {
        self.chain().readable()
    }

    /// The buffers for the answer.
    pub fn writable(&self) -> &Writable {
        self.chain().writable()
    }

    /// What is known of the request if an earlier process has taken it and died, or left, before it
    /// answered it. None for a request that is taken for the first time.
    pub fn resumed(&self) -> Option<&Resumed> {
        self.chain().resumed()
    }

    /// Returns the chain to the driver with the first `used` bytes of its writable half written; `used`
    /// is at most its length. The driver sees it at [`Connection::notify`](crate::Connection::notify)
    /// at the latest, which also notifies it.
    pub fn complete(mut self, used: u32) {
        debug_assert!(used as usize <= self.writable().len());
        self.push(used);
    }

    fn push(&mut self, used: u32) {
        if let Some(chain) = self.chain.take() {
            let used = used.min(u32::try_from(chain.writable().len()).unwrap_or(u32::MAX));
            self.ring.push(chain, used);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.push(0);
    }
}
