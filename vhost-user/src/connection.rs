//! One front-end, from connect to disconnect.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};

use crate::chain::Chains;
use crate::device::Device;
use crate::error::{Error, RingError};
use crate::interface::{DeviceConfig, Handler, Poller, Source};
use crate::log_limiter::LogLimiter;
use crate::request::Request;
use crate::ring::Ring;

/// How many requests are taken in one turn of the loop: a driver that posts without end must not
/// keep other things from happening.
const BUDGET: usize = 256;

/// Whether the front-end is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is.
    Open,
    /// It has closed its end.
    Disconnected,
}

/// A front-end's connection. Dropped, it stops the ring, drains what is under way and resets the
/// device.
pub struct Connection {
    messages: BackendReqHandler<Mutex<Device>>,
    device: Arc<Mutex<Device>>,
    ring: Rc<Ring>,
    handler: Rc<dyn Handler>,
    poller: Rc<dyn Poller>,
    /// The socket again, to be watched.
    socket: OwnedFd,
    /// Whether the driver's kick is to be taken back.
    kicked: Cell<bool>,
    refusals: LogLimiter,
    /// Empty; kept for its memory.
    batch: Cell<Chains>,
}

impl Connection {
    /// Serves the front-end at the other end of `stream`. A notification to a pipe that nobody reads
    /// any more raises SIGPIPE, which the process must ignore, as Rust's runtime has it do. Errors:
    /// the socket or the loop cannot be used, or `config` has a wrong size.
    pub fn new(
        stream: UnixStream,
        config: &DeviceConfig,
        handler: Rc<dyn Handler>,
        poller: Rc<dyn Poller>,
    ) -> Result<Connection, Error> {
        let ring = Rc::new(Ring::new());
        let device = Device::new(
            config.clone(),
            handler.clone(),
            poller.clone(),
            ring.clone(),
        )
        .map_err(|_| Error::QueueSize(config.max_queue_size))?;
        // The crate wants an Arc of something shared; all of it stays on this thread.
        #[allow(clippy::arc_with_non_send_sync)]
        let device = Arc::new(Mutex::new(device));
        // The crate asks again and again for what is not there yet, instead of coming back later.
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

    /// To be called when a descriptor of `source` is readable: handles one message, or notes that
    /// the driver has kicked. Errors: the connection is of no use any more and has to be dropped.
    ///
    /// A request that is well-formed but refused leaves the connection open: the front-end is told
    /// so if it asks for acknowledgements. What is malformed, or has to have an answer and gets
    /// none, ends it.
    pub fn ready(&mut self, source: Source) -> Result<Status, Error> {
        if source == Source::Kick {
            self.kicked.set(true);
            return Ok(Status::Open);
        }
        match self.messages.handle_request() {
            Ok(()) => {}
            // The second: it has left before it read, or while it was sent, an answer.
            Err(ProtocolError::Disconnected | ProtocolError::SocketBroken(_)) => {
                return Ok(Status::Disconnected);
            }
            // Refused, and the front-end was told so if it had asked to be.
            Err(ProtocolError::ReqHandlerError(error)) => {
                if let Some(number) = self.refusals.count() {
                    log::warn!("a vhost-user message is refused: {error} (number {number})");
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Status::Open)
    }

    /// Whether there is a request to be taken; costs no call.
    pub fn has_requests(&self) -> bool {
        self.ring.has_requests() && self.handler.takes()
    }

    /// To be called at every turn of the loop, whatever has woken it: takes requests out of the ring
    /// and gives them to the handler. The driver may have been faster than its front-end, or its
    /// kick have gone with a descriptor that was replaced.
    pub fn take_requests(&self) {
        if self.has_requests() {
            // They stay off while the loop is awake.
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
            let result = self.ring.pop(&mut batch);
            let count = batch.len();
            // What was taken before the ring broke is answered.
            for chain in batch.drain(..) {
                self.handler.handle(Request::new(self.ring.clone(), chain));
            }
            left = left.saturating_sub(count);
            if result.is_err() || count == 0 || left == 0 || !self.handler.takes() {
                break result;
            }
        };
        self.batch.replace(batch);
        result
    }

    /// Before the loop blocks: true if it may, and from now on a request brings a kick; false if one
    /// is there already, and the handler takes it.
    pub fn prepare_sleep(&self) -> bool {
        if self.kicked.take() {
            self.device().clear_kick();
        }
        !(self.ring.enable_kicks() && self.handler.takes())
    }

    /// To be called at the end of a turn of the loop: one notification for all requests completed
    /// since the last, if the driver wants one.
    pub fn notify(&self) -> Result<(), Error> {
        self.ring.notify();
        self.leave_if_broken();
        Ok(())
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        // Used on one thread, and never while it is held.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the watch over a ring that does not run any more: nobody reads its notifications.
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
