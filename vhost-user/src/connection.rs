//! One front-end, from connect to disconnect.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};

use crate::chain::Chains;
use crate::device::{Device, take_batch};
use crate::endpoint;
use crate::error::{Error, RingError};
use crate::inflight_region::Room;
use crate::interface::{DeviceConfig, Handler, Poller, Source};
use crate::log_limiter::LogLimiter;
use crate::messages;
use crate::ring::Ring;
use crate::state::State;

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
    state: State,
    /// A duplicate of the socket, which the loop watches.
    socket: OwnedFd,
    /// Whether the kick descriptor must be cleared.
    kicked: Cell<bool>,
    refusals: LogLimiter,
    /// Empty; kept for its allocation.
    batch: Cell<Chains>,
}

/// What a connection is made of before there is a socket.
struct Parts {
    device: Arc<Mutex<Device>>,
    ring: Rc<Ring>,
    handler: Rc<dyn Handler>,
    poller: Rc<dyn Poller>,
    state: State,
}

impl Parts {
    fn new(
        config: &DeviceConfig,
        handler: Rc<dyn Handler>,
        poller: Rc<dyn Poller>,
        state: State,
    ) -> Result<Parts, Error> {
        let ring = Rc::new(Ring::new());
        let device = Device::new(
            config.clone(),
            handler.clone(),
            poller.clone(),
            ring.clone(),
            state.clone(),
        )
        .map_err(|_| Error::QueueSize(config.max_queue_size))?;
        // `vhost` requires an Arc; all of it stays on this thread.
        #[allow(clippy::arc_with_non_send_sync)]
        let device = Arc::new(Mutex::new(device));
        Ok(Parts {
            device,
            ring,
            handler,
            poller,
            state,
        })
    }

    fn connect(
        self,
        messages: BackendReqHandler<Mutex<Device>>,
        socket: OwnedFd,
    ) -> Result<Connection, Error> {
        self.poller
            .watch(socket.as_fd(), Source::Control)
            .map_err(Error::Watch)?;
        Ok(Connection {
            messages,
            device: self.device,
            ring: self.ring,
            handler: self.handler,
            poller: self.poller,
            state: self.state,
            socket,
            kicked: Cell::new(false),
            refusals: LogLimiter::default(),
            batch: Cell::default(),
        })
    }
}

impl Connection {
    /// Serves the front-end at the other end of `stream`. `state` is where another process finds what it
    /// needs to go on if this one dies; [`State::private`] if none is to. The process must ignore
    /// SIGPIPE, as Rust's runtime does: a notification to a pipe without a reader raises it. Errors:
    /// the socket or the loop cannot be used, or the ring size in `config` is invalid.
    pub fn new(
        stream: UnixStream,
        config: &DeviceConfig,
        handler: Rc<dyn Handler>,
        poller: Rc<dyn Poller>,
        state: State,
    ) -> Result<Connection, Error> {
        let parts = Parts::new(config, handler, poller, state)?;
        // `vhost` spins on EAGAIN instead of returning.
        stream.set_nonblocking(false).map_err(Error::Socket)?;
        let socket = stream.try_clone().map_err(Error::Socket)?.into();
        let messages = BackendReqHandler::from_stream(stream, parts.device.clone());
        let connection = parts.connect(messages, socket)?;
        connection.state.forget()?;
        connection.save()?;
        Ok(connection)
    }

    /// Goes on with the connection of another process, which has died, as `state` describes it. None:
    /// there was no connection. `config` is what it was then.
    ///
    /// Descriptors are those of that process's table: `claim` returns the one with a number, and fails
    /// if there is none or it was claimed before. Descriptors that are not claimed are not needed.
    /// `faulty` says that the process died by its own fault: [`Resumed::faults`](crate::Resumed) counts
    /// that.
    ///
    /// The requests that were in flight come first, in the order in which they were taken. The driver
    /// is notified, as an earlier notification may have been lost. A saved ring that cannot be any
    /// more, as its driver has written over it, stops as any other.
    ///
    /// Errors: the state is invalid; a message was being handled, and the front-end may wait for an
    /// answer for ever; as for [`Connection::new`]. The connection has been dropped then.
    pub fn resume(
        config: &DeviceConfig,
        handler: Rc<dyn Handler>,
        poller: Rc<dyn Poller>,
        state: State,
        claim: &mut dyn FnMut(RawFd) -> io::Result<OwnedFd>,
        faulty: bool,
    ) -> Result<Option<Connection>, Error> {
        let Some(saved) = state.load()? else {
            return Ok(None);
        };
        let parts = Parts::new(config, handler, poller, state)?;
        let socket = claim(saved.socket).map_err(Error::Claim)?;
        let (features, protocol_features) = (saved.features, saved.protocol_features);
        let device = parts.device.clone();
        let messages = endpoint::resume(socket.as_fd(), device, features, protocol_features)?;
        let connection = parts.connect(messages, socket)?;
        connection.device().restore(&saved, claim, faulty)?;
        Ok(Some(connection))
    }

    /// Call it when a descriptor of `source` is ready: handles one message, notes that the driver has
    /// kicked, or transfers a part of the device's state. Errors: the connection has failed and must be dropped.
    ///
    /// A well-formed message that is refused leaves the connection open: the front-end learns of it
    /// if it asks for acknowledgements. A malformed message, or one that requires an answer and gets
    /// none, ends the connection.
    pub fn ready(&mut self, source: Source) -> Result<Status, Error> {
        match source {
            Source::Control => {}
            Source::Kick => {
                self.kicked.set(true);
                return Ok(Status::Open);
            }
            Source::Save | Source::Load => {
                self.device().advance_transfer();
                return Ok(Status::Open);
            }
        }
        self.state.begin()?;
        let result = match messages::is_set_log_fd(self.socket.as_fd()) {
            true => messages::set_log_fd(self.socket.as_fd(), &self.device()),
            false => self.messages.handle_request(),
        };
        match result {
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
        self.save()?;
        Ok(Status::Open)
    }

    /// What the front-end keeps for the handler; None before it has handed it over.
    pub fn room(&self) -> Option<Room> {
        self.device().room()
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
        self.leave_if_broken()
    }

    /// Saves what another process needs to go on.
    fn save(&self) -> Result<(), Error> {
        let saved = self.device().saved(self.socket.as_raw_fd());
        self.state.save(&saved)
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        // Used on one thread, and never locked twice.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops watching the kick of a ring that has stopped: nothing clears it any more.
    fn leave_if_broken(&self) -> Result<(), Error> {
        if !self.ring.is_running() && self.device().unwatch() {
            self.save()?;
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.device().cancel_transfer();
        self.device().stop();
        self.handler.reset();
        self.poller.unwatch(self.socket.as_fd());
        if let Err(error) = self.state.forget() {
            log::error!("{error}");
        }
    }
}
