//! One front-end, from connect to disconnect.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};
use vm_memory::MmapRegion;

use crate::chain::Chains;
use crate::device::{Device, take_batch};
use crate::error::{Error, RingError};
use crate::inflight::Inflight;
use crate::interface::{DeviceConfig, Handler, Poller, Source};
use crate::log_limiter::LogLimiter;
use crate::ring::Ring;

/// How many requests are taken in one turn of the loop: a driver that never stops posting must not
/// starve everything else.
const BUDGET: usize = 256;

/// Whether the front-end is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The front-end is connected.
    Open,
    /// The front-end has closed its end.
    Disconnected,
}

/// A front-end's connection. Dropping it stops the ring, drains the requests in flight and resets the
/// device.
pub struct Connection {
    messages: BackendReqHandler<Mutex<Device>>,
    device: Arc<Mutex<Device>>,
    ring: Rc<Ring>,
    handler: Rc<dyn Handler>,
    poller: Rc<dyn Poller>,
    /// A duplicate of the socket, which the loop watches.
    socket: OwnedFd,
    /// Whether the kick descriptor must be cleared.
    kicked: Cell<bool>,
    refusals: LogLimiter,
    /// Empty; kept for its allocation.
    batch: Cell<Chains>,
}

impl Connection {
    /// Serves the front-end at the other end of `stream`. The process must ignore SIGPIPE, as Rust's
    /// runtime does: a notification to a pipe without a reader raises it. Errors: the socket or the
    /// loop cannot be used, or the ring size in `config` is invalid.
    pub fn new(
        stream: UnixStream,
        config: &DeviceConfig,
        handler: Rc<dyn Handler>,
        poller: Rc<dyn Poller>,
    ) -> Result<Connection, Error> {
        let ring = Rc::new(Ring::new());
        let inflight = MmapRegion::new(Inflight::bytes(config.max_queue_size))
            .map_err(|error| Error::State(io::Error::other(error)))?;
        let device = Device::new(
            config.clone(),
            handler.clone(),
            poller.clone(),
            ring.clone(),
            Rc::new(inflight),
        )
        .map_err(|_| Error::QueueSize(config.max_queue_size))?;
        // `vhost` requires an Arc; all of it stays on this thread.
        #[allow(clippy::arc_with_non_send_sync)]
        let device = Arc::new(Mutex::new(device));
        // `vhost` spins on EAGAIN instead of returning.
        stream.set_nonblocking(false).map_err(Error::Socket)?;
        let socket: OwnedFd = stream.try_clone().map_err(Error::Socket)?.into();
        poller
            .watch(socket.as_fd(), Source::Control)
            .map_err(Error::Watch)?;
        Ok(Connection {
            messages: BackendReqHandler::from_stream(stream, device.clone()),
            device,
            ring,
            handler,
            poller,
            socket,
            kicked: Cell::new(false),
            refusals: LogLimiter::default(),
            batch: Cell::default(),
        })
    }

    /// Call it when a descriptor of `source` is readable: handles one message, or notes that the driver
    /// has kicked. Errors: the connection has failed and must be dropped.
    ///
    /// A well-formed message that is refused leaves the connection open: the front-end learns of it
    /// if it asks for acknowledgements. A malformed message, or one that requires an answer and gets
    /// none, ends the connection.
    pub fn ready(&mut self, source: Source) -> Result<Status, Error> {
        if source == Source::Kick {
            self.kicked.set(true);
            return Ok(Status::Open);
        }
        match self.messages.handle_request() {
            Ok(()) => {}
            // SocketBroken: it closed the socket before or while an answer was sent.
            Err(ProtocolError::Disconnected | ProtocolError::SocketBroken(_)) => {
                return Ok(Status::Disconnected);
            }
            // Refused; the front-end has been told if it asks for acknowledgements.
            Err(ProtocolError::ReqHandlerError(error)) => {
                if let Some(number) = self.refusals.count() {
                    log::warn!("refused a vhost-user message: {error} (refusal {number})");
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Status::Open)
    }

    /// Whether there is a request to take; makes no system call.
    pub fn has_requests(&self) -> bool {
        self.ring.has_requests() && self.handler.takes()
    }

    /// Call it at every turn of the loop, whatever has woken it: takes requests out of the ring and
    /// gives them to the handler. Requests may come without a kick: the driver may be faster than its
    /// front-end, or have kicked a descriptor that was replaced.
    pub fn take_requests(&self) {
        if self.has_requests() {
            // Kicks stay off while the loop is awake.
            self.ring.disable_kicks();
            if let Err(error) = self.try_take_requests() {
                self.ring.fail(&error);
            }
        }
        self.leave_if_broken();
    }

    fn try_take_requests(&self) -> Result<(), RingError> {
        let mut batch = self.batch.take();
        let mut left = BUDGET;
        let result = loop {
            let taken = take_batch(&self.ring, &*self.handler, &mut batch);
            let Ok(count @ 1..) = taken else {
                break taken;
            };
            left = left.saturating_sub(count);
            if left == 0 || !self.handler.takes() {
                break taken;
            }
        };
        self.batch.replace(batch);
        result.map(drop)
    }

    /// Call it before the loop blocks. True: it may block, and a new request will kick it. False: a
    /// request is available already, and the handler accepts it.
    pub fn prepare_sleep(&self) -> bool {
        if self.kicked.take() {
            self.device().clear_kick();
        }
        !(self.ring.enable_kicks() && self.handler.takes())
    }

    /// Call it at the end of each turn of the loop: sends one notification for all requests completed
    /// since the last, if the driver wants one.
    pub fn notify(&self) -> Result<(), Error> {
        self.ring.notify();
        self.leave_if_broken();
        Ok(())
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        // Used on one thread, and never locked twice.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops watching the kick of a ring that has stopped: nothing clears it any more.
    fn leave_if_broken(&self) {
        if !self.ring.is_running() {
            self.device().unwatch();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.device().stop();
        self.handler.reset();
        self.poller.unwatch(self.socket.as_fd());
    }
}
