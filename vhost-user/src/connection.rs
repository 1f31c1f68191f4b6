//! One front-end, from connect to disconnect.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};

use crate::device::Device;
use crate::ring::{Ring, RingError};
use crate::{DeviceConfig, Error, Handler, Poller, Source};

/// Requests that one event may take out of the ring before the loop has its turn: a driver that
/// posts without end must not keep other things from happening.
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
    /// Brings the loop back to a ring that was left before it was empty.
    again: EventFd,
    left_early: Cell<bool>,
}

impl Connection {
    /// Serves the front-end at the other end of `stream`, which has to be blocking. Errors: the
    /// socket or the loop cannot be used.
    pub fn new(
        stream: UnixStream,
        config: &DeviceConfig,
        handler: Rc<dyn Handler>,
        poller: Rc<dyn Poller>,
    ) -> Result<Connection, Error> {
        let ring = Ring::new(config.max_queue_size)
            .map_err(|error| Error::Socket(std::io::Error::other(error)))?;
        let ring = Rc::new(ring);
        let device = Device::new(
            config.clone(),
            handler.clone(),
            poller.clone(),
            ring.clone(),
        );
        // The crate wants an Arc of something shared; all of it stays on this thread.
        #[allow(clippy::arc_with_non_send_sync)]
        let device = Arc::new(Mutex::new(device));
        let socket = stream.try_clone().map_err(Error::Socket)?.into();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let again =
            EventFd::from_value_and_flags(0, flags).map_err(|error| Error::Socket(error.into()))?;
        let connection = Connection {
            messages: BackendReqHandler::from_stream(stream, device.clone()),
            device,
            ring,
            handler,
            poller,
            socket,
            again,
            left_early: Cell::new(false),
        };
        connection
            .poller
            .watch(connection.socket.as_fd(), Source::Control)
            .map_err(Error::Watch)?;
        let again = connection.again.as_fd();
        connection
            .poller
            .watch(again, Source::Kick)
            .map_err(Error::Watch)?;
        Ok(connection)
    }

    /// To be called when a descriptor of `source` is readable: handles one message, or takes
    /// requests out of the ring. Errors: the connection is of no use any more and has to be
    /// dropped.
    pub fn ready(&mut self, source: Source) -> Result<Status, Error> {
        if source == Source::Control {
            match self.messages.handle_request() {
                Ok(()) => {}
                Err(ProtocolError::Disconnected) => return Ok(Status::Disconnected),
                // Refused, and the front-end was told so if it had asked to be.
                Err(ProtocolError::ReqHandlerError(error)) => {
                    log::warn!("a vhost-user message was refused: {error}");
                }
                Err(error) => return Err(error.into()),
            }
        }
        // Also after a message: the driver may have been faster than its front-end, or its
        // notification have gone with a descriptor that was replaced.
        self.empty_ring();
        Ok(Status::Open)
    }

    /// To be called at the end of a turn of the loop: one notification for all requests completed
    /// since the last, if the driver wants one.
    pub fn notify(&self) -> Result<(), Error> {
        let was_running = self.ring.is_running();
        self.ring.notify();
        if was_running && !self.ring.is_running() {
            self.device().unwatch();
        }
        Ok(())
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        // Used on one thread, and never while it is held.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn empty_ring(&self) {
        if !self.ring.is_running() {
            return;
        }
        if let Err(error) = self.try_empty_ring() {
            self.ring.fail(&error);
        }
        if !self.ring.is_running() {
            self.device().unwatch();
        }
    }

    fn try_empty_ring(&self) -> Result<(), RingError> {
        if self.left_early.replace(false) {
            // Only set while the counter is not 0.
            let _ = self.again.read();
        }
        self.ring.disable_kicks()?;
        let mut budget = BUDGET;
        loop {
            while self.ring.is_running()
                && let Some(request) = self.ring.pop()?
            {
                self.handler.handle(request);
                budget -= 1;
                if budget == 0 {
                    // Cannot fail: the counter is 0.
                    self.left_early.set(self.again.write(1).is_ok());
                    return Ok(());
                }
            }
            if let Some(kick) = self.device().kick() {
                kick.clear();
            }
            // From here on a new request brings a new notification; one that came before is
            // taken out now.
            if !self.ring.is_running() || !self.ring.enable_kicks()? {
                return Ok(());
            }
            self.ring.disable_kicks()?;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.device().stop();
        self.handler.reset();
        self.poller.unwatch(self.socket.as_fd());
        self.poller.unwatch(self.again.as_fd());
    }
}
