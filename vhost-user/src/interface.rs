//! What the user of this crate brings along: the device's description, its handler and the event loop.

use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

use crate::inflight_region::Room;
use crate::request::Request;

/// What the device is.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// The device's own virtio feature bits. VERSION_1, INDIRECT_DESC, EVENT_IDX and the protocol's
    /// own bit are added.
    pub features: u64,
    /// The configuration space. The driver reads zeroes beyond its end.
    pub config_space: Vec<u8>,
    /// How many of its bytes drivers read at first: a front-end that passes their reads on asks for
    /// no more then, and later for the rest.
    pub config_head: usize,
    /// The largest ring that is accepted; a power of two, at most 32768.
    pub max_queue_size: u16,
}

/// What the device does.
pub trait Handler {
    /// Takes a request over. It must be completed once, now or later; one that is dropped is
    /// completed with length 0.
    fn handle(&self, request: Request);

    /// Whether the handler accepts requests now. Otherwise they stay in the ring, and the loop must
    /// call again once it accepts them.
    fn takes(&self) -> bool {
        true
    }

    /// Returns when every request taken over has been completed: the memory or the ring that they
    /// use goes away next. Called before the ring is stopped, disabled or reset, before memory is
    /// replaced or removed, and when the connection ends.
    fn drain(&self);

    /// The driver has gone, or starts anew: forget its state.
    fn reset(&self);

    /// How many bytes the front-end is to keep for the handler, to hand them to the process that follows
    /// if this one dies. None: the front-end is not asked to track the requests in flight (the protocol
    /// feature INFLIGHT_SHMFD).
    fn room(&self) -> Option<usize> {
        None
    }

    /// The front-end has handed over a [`Room`]: a new one, or that of a process before, whose requests in
    /// flight follow when the ring starts. Errors: its content cannot be used; the front-end is told,
    /// and nothing is taken from it.
    fn adopt(&self, room: Room) -> io::Result<()> {
        drop(room);
        Ok(())
    }

    /// What saves and loads the device's state. None: the front-end is not offered that, nor a log of dirty
    /// pages (the protocol features DEVICE_STATE and LOG_SHMFD, and LOG_ALL): the guest is not
    /// migrated. It is always the one or the other.
    fn migration(&self) -> Option<&dyn Migration> {
        None
    }
}

/// The state that the device takes along when its guest is migrated, or restored from a snapshot.
///
/// The ring is stopped meanwhile, and no request is in flight. Whoever is called must not call the
/// [`Connection`](crate::Connection).
pub trait Migration {
    /// How many bytes a state has at most.
    fn limit(&self) -> usize;

    /// Writes the state. The device goes on as if nothing had happened: the migration may fail. Errors:
    /// there is none that another process could use; those of `into`, which ends at the limit. The
    /// front-end is told.
    fn save(&self, into: &mut dyn Write) -> io::Result<()>;

    /// Replaces the state by one that another process has saved, up to the end of `from`, which is not
    /// trusted. It comes before the front-end sets up anything else, or after; it lasts until
    /// [`Handler::reset`]. Errors: it cannot be used; the front-end is told.
    fn load(&self, from: &mut dyn Read) -> io::Result<()>;
}

/// What a watched descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The front-end's messages.
    Control,
    /// The driver's notifications.
    Kick,
    /// A pipe for the device's state, which is watched for whether it is writable.
    Save,
    /// A pipe with a state of the device.
    Load,
}

/// The event loop. Each of its turns calls [`Connection::ready`](crate::Connection::ready) for each
/// ready descriptor, then [`Connection::take_requests`](crate::Connection::take_requests) and
/// finally [`Connection::notify`](crate::Connection::notify). Before it blocks it asks
/// [`Connection::prepare_sleep`](crate::Connection::prepare_sleep).
pub trait Poller {
    /// Starts to watch whether `fd` is readable, or writable for [`Source::Save`]. Errors: those of the
    /// loop, which are those of epoll_ctl(2): EPERM for a file that never blocks.
    fn watch(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()>;
    /// Stops watching `fd`, which is still open and was watched.
    fn unwatch(&self, fd: BorrowedFd<'_>);
}
