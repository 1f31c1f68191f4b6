//! A request, from pop to push.

use std::rc::Rc;

use crate::buffers::{Readable, Writable};
use crate::chain::Chain;
use crate::ring::Ring;

/// A descriptor chain that the driver has made available. Whoever has it is the only one to
/// answer it; dropped without being completed, it is completed with length 0.
///
/// A half whose descriptors lead outside of the guest's memory ends before them and
/// [says so](Readable::is_cut): such a request is to be refused, and the ring goes on.
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
    /// There until the request is completed. Apart, so that to hand a request on costs nothing.
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
            .expect("only completing takes the chain away, and the request too")
    }

    /// What the driver has written.
    pub fn readable(&self) -> &Readable {
        self.chain().readable()
    }

    /// Where the answer goes.
    pub fn writable(&self) -> &Writable {
        self.chain().writable()
    }

    /// Gives the chain back to the driver, `used` bytes of its writable memory written: no more than
    /// there are. The driver sees it at [`Connection::notify`](crate::Connection::notify) at the
    /// latest, and is notified there.
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
