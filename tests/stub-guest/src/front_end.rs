//! The front-end: negotiates, shares memory, runs one request queue.
//!
//! It speaks to the back-end in the order of User-mode Linux and QEMU: owner, features, protocol
//! features, memory table, then for the ring call, size, base, addresses, kick, enable.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::control::{Control, protocol_feature, request};
use crate::error::{Error, Result};
use crate::memory::GuestMemory;
use crate::ring::{Ring, Segment, Used};

/// 9P's own bit: the config space holds a mount tag.
pub const FEATURE_MOUNT_TAG: u64 = 1 << 0;
/// Pages that the device writes are marked in a log: only for a migration.
pub const FEATURE_LOG_ALL: u64 = 1 << 26;
/// Chains may stand in indirect tables.
pub const FEATURE_INDIRECT_DESC: u64 = 1 << 28;
/// Notifications are asked for by index.
pub const FEATURE_EVENT_IDX: u64 = 1 << 29;
/// vhost-user's own bit: there are protocol features, and rings begin disabled.
pub const FEATURE_PROTOCOL_FEATURES: u64 = 1 << 30;
/// The device follows virtio 1.0.
pub const FEATURE_VERSION_1: u64 = 1 << 32;

/// What the back-end writes to when it has used a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFd {
    /// An eventfd, as QEMU's.
    EventFd,
    /// A pipe.
    Pipe,
    /// One end of a stream socket pair, as User-mode Linux's.
    SocketPair,
    /// None: the driver looks at the used ring all the time.
    Absent,
}

/// How the front-end behaves. `Options::default()` is a Linux guest under QEMU.
#[derive(Clone, Debug)]
pub struct Options {
    /// The ring that requests go through. A 9P device has ring 0 alone; those of a file system device
    /// (virtio-fs) begin at 1.
    pub ring: u8,
    /// Descriptors in the ring.
    pub queue_size: u16,
    /// Virtio feature bits to accept, of those offered.
    pub features: u64,
    /// Protocol feature bits to accept, of those offered.
    pub protocol_features: u64,
    /// What the back-end notifies.
    pub call: CallFd,
    /// Whether the back-end gets a kick fd.
    pub kick: bool,
    /// Where both ring indices begin.
    pub base: u16,
    /// Sizes of the memory regions in bytes.
    pub regions: Vec<usize>,
    /// The longest wait for anything.
    pub timeout: Duration,
    /// Looks at the used ring before the driver asks for a notification and sleeps.
    pub spin: u32,
    /// How long a wait looks at the used ring before it sleeps, the notification being asked for all
    /// the while: what a virtual processor does whose guest is idle, while KVM's halt polling keeps
    /// it from sleeping, and what a Linux driver asks for.
    pub halt_poll: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            ring: 0,
            queue_size: 128,
            features: !FEATURE_LOG_ALL,
            protocol_features: u64::MAX,
            call: CallFd::EventFd,
            kick: true,
            base: 0,
            regions: vec![96 << 20],
            timeout: Duration::from_secs(20),
            spin: 1,
            halt_poll: Duration::ZERO,
        }
    }
}

impl Options {
    /// These options without the feature bits in `features`.
    pub fn without(mut self, features: u64) -> Self {
        self.features &= !features;
        self
    }
}

/// A vhost-user front-end that is connected to a back-end.
pub struct FrontEnd {
    control: Control,
    memory: GuestMemory,
    ring: Ring,
    options: Options,
    offered: u64,
    features: u64,
    protocol_features: u64,
    call: Option<OwnedFd>,
    kick: Option<EventFd>,
    error: EventFd,
}

impl FrontEnd {
    /// Connects to the back-end that listens at `path`, negotiates and starts the ring.
    pub fn connect(path: &Path, options: Options) -> Result<FrontEnd> {
        let stream =
            UnixStream::connect(path).map_err(Error::io("connect to the vhost-user socket"))?;
        FrontEnd::new(stream, options)
    }

    /// Negotiates over a connected socket and starts the ring.
    pub fn new(stream: UnixStream, options: Options) -> Result<FrontEnd> {
        let mut front_end = FrontEnd::negotiate(stream, options)?;
        front_end.start(front_end.options.base)?;
        Ok(front_end)
    }

    /// Negotiates features and shares memory, without starting the ring.
    pub fn negotiate(stream: UnixStream, options: Options) -> Result<FrontEnd> {
        let (control, offered, features, protocol_features) = introduce(stream, &options)?;
        let mut memory = GuestMemory::new(&options.regions)?;
        let event_idx = features & FEATURE_EVENT_IDX != 0;
        let ring = Ring::new(&mut memory, options.queue_size, event_idx, options.base)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let error = EventFd::from_value_and_flags(0, flags).map_err(Error::io("eventfd"))?;
        let mut front_end = FrontEnd {
            control,
            memory,
            ring,
            options,
            offered,
            features,
            protocol_features,
            call: None,
            kick: None,
            error,
        };
        front_end.control.set_u64(request::SET_FEATURES, features)?;
        front_end.set_mem_table()?;
        Ok(front_end)
    }

    /// Goes over to another connection, to the same or to another back-end, with guest memory and
    /// ring as they are: what is in the available ring is there still. [`start`](Self::start) goes
    /// on. Errors: the back-end offers other features.
    pub fn reconnect(&mut self, stream: UnixStream) -> Result<()> {
        self.go_over(stream).map(drop)
    }

    /// [`reconnect`](Self::reconnect), with the connection before, which is still open.
    pub fn go_over(&mut self, stream: UnixStream) -> Result<Control> {
        let (control, offered, features, protocol_features) = introduce(stream, &self.options)?;
        if features != self.features {
            return Err(Error::NotOffered("the same features"));
        }
        let before = std::mem::replace(&mut self.control, control);
        self.offered = offered;
        self.protocol_features = protocol_features;
        self.control.set_u64(request::SET_FEATURES, features)?;
        self.set_mem_table()?;
        Ok(before)
    }

    /// Starts the ring, which begins at index `base`.
    pub fn start(&mut self, base: u16) -> Result<()> {
        self.send_call()?;
        self.control
            .set_vring(request::SET_VRING_NUM, u32::from(self.ring.size()))?;
        self.control
            .set_vring(request::SET_VRING_BASE, u32::from(base))?;
        self.send_addresses()?;
        self.control
            .set_vring_fd(request::SET_VRING_ERR, Some(self.error.as_fd()))?;
        self.replace_kick()?;
        self.enable(true)
    }

    /// Enables or disables the ring, if the back-end knows of that.
    pub fn enable(&mut self, on: bool) -> Result<()> {
        if self.features & FEATURE_PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        self.control
            .set_vring(request::SET_VRING_ENABLE, u32::from(on))
    }

    /// Stops the ring (GET_VRING_BASE) and returns the index where it stopped. The chains that were
    /// completed on the way are in the used ring.
    pub fn stop(&mut self) -> Result<u16> {
        self.control.get_vring_base()
    }

    /// Resets the device (RESET_DEVICE) and forgets the ring's state, as a driver that is unloaded.
    pub fn reset(&mut self) -> Result<()> {
        self.control.set(request::RESET_DEVICE, &[], &[])?;
        self.ring.clear(&self.memory, self.options.base)
    }

    /// Brings the device up again after a [`reset`](Self::reset).
    pub fn restart(&mut self) -> Result<()> {
        self.control.set_u64(request::SET_FEATURES, self.features)?;
        self.set_mem_table()?;
        self.start(self.options.base)
    }

    /// Sends the memory table as it is now.
    pub fn set_mem_table(&mut self) -> Result<()> {
        self.begin_set_mem_table()?;
        self.control.end_set(request::SET_MEM_TABLE)
    }

    /// Sends the memory table as it is now, and leaves its acknowledgement for
    /// [`Control::end_set`].
    pub fn begin_set_mem_table(&mut self) -> Result<()> {
        let regions: Vec<_> = self.memory.regions().collect();
        self.control.begin_set_mem_table(&regions)
    }

    /// Adds a region of `size` bytes to the guest's memory with ADD_MEM_REG. Returns its index.
    pub fn plug_memory(&mut self, size: usize) -> Result<usize> {
        let index = self.memory.add_region(size)?;
        if let Some((info, fd)) = self.memory.regions().nth(index) {
            self.control.add_region(&info, fd)?;
        }
        Ok(index)
    }

    /// Tells the back-end with REM_MEM_REG that the region is gone. Here it stays as it is.
    pub fn unplug_memory(&mut self, index: usize) -> Result<()> {
        self.begin_unplug_memory(index)?;
        self.control.end_set(request::REM_MEM_REG)
    }

    /// [`unplug_memory`](Self::unplug_memory), with the acknowledgement left for
    /// [`Control::end_set`].
    pub fn begin_unplug_memory(&mut self, index: usize) -> Result<()> {
        match self.memory.regions().nth(index) {
            Some((info, _)) => self.control.begin_remove_region(&info),
            None => Err(Error::BadAddress(0)),
        }
    }

    /// Gives the back-end a fresh kick fd, or none if the options say so.
    pub fn replace_kick(&mut self) -> Result<()> {
        let kick = if self.options.kick {
            Some(
                EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)
                    .map_err(Error::io("eventfd"))?,
            )
        } else {
            None
        };
        self.control.set_vring_fd(
            request::SET_VRING_KICK,
            kick.as_ref().map(|kick| kick.as_fd()),
        )?;
        self.kick = kick;
        Ok(())
    }

    /// Gives the back-end another call fd while the ring runs.
    pub fn replace_call(&mut self, call: CallFd) -> Result<()> {
        self.options.call = call;
        self.send_call()
    }

    /// `size` bytes of the config space from `offset`.
    pub fn config(&mut self, offset: u32, size: u32) -> Result<Vec<u8>> {
        self.control.get_config(offset, size)
    }

    /// The feature bits that the back-end offers.
    pub fn offered_features(&self) -> u64 {
        self.offered
    }

    /// The feature bits that are in force.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The protocol feature bits that are in force.
    pub fn protocol_features(&self) -> u64 {
        self.protocol_features
    }

    /// The options that this front-end was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The control socket, for messages of the caller's own.
    pub fn control(&mut self) -> &mut Control {
        &mut self.control
    }

    /// Guest memory.
    pub fn memory(&mut self) -> &mut GuestMemory {
        &mut self.memory
    }

    /// The ring and the memory that it is in, for chains put together by hand.
    pub fn ring(&mut self) -> (&mut Ring, &mut GuestMemory) {
        (&mut self.ring, &mut self.memory)
    }

    /// Chains that are with the device.
    pub fn outstanding(&self) -> usize {
        self.ring.outstanding()
    }

    /// Makes a chain and puts it into the available ring, without a kick. Returns its head.
    pub fn post(&mut self, segments: &[Segment], indirect: bool) -> Result<u16> {
        self.ring.add(&mut self.memory, segments, indirect)
    }

    /// Kicks the device if it wants to hear of what was posted since the last kick.
    pub fn kick(&mut self) -> Result<()> {
        if self.ring.needs_kick(&self.memory)? {
            self.force_kick()
        } else {
            Ok(())
        }
    }

    /// Kicks the device, wanted or not.
    pub fn force_kick(&self) -> Result<()> {
        match &self.kick {
            Some(kick) => kick.write(1).map(drop).map_err(Error::io("kick")),
            None => Ok(()),
        }
    }

    /// The next chain that the device is done with, if there is one.
    pub fn try_used(&mut self) -> Result<Option<Used>> {
        self.ring.pop(&self.memory)
    }

    /// Waits for the next chain that the device is done with.
    pub fn wait_used(&mut self) -> Result<Used> {
        self.wait_used_for(self.options.timeout)
    }

    /// [`wait_used`](Self::wait_used) with a timeout of its own.
    pub fn wait_used_for(&mut self, timeout: Duration) -> Result<Used> {
        for _ in 0..self.options.spin {
            if let Some(used) = self.try_used()? {
                return Ok(used);
            }
            std::hint::spin_loop();
        }
        if let Some(used) = self.poll_used()? {
            return Ok(used);
        }
        let deadline = Instant::now() + timeout;
        let mut closed = false;
        loop {
            let ready = self.call.is_some() && self.ring.listen(&self.memory)?;
            if let Some(used) = self.try_used()? {
                self.ring.mute(&self.memory)?;
                return Ok(used);
            }
            if closed {
                return Err(Error::Disconnected);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout("used buffer"));
            }
            if !ready {
                closed = self.sleep(left)?;
            }
        }
    }

    fn poll_used(&mut self) -> Result<Option<Used>> {
        if self.options.halt_poll.is_zero() {
            return Ok(None);
        }
        self.ring.listen(&self.memory)?;
        let begin = Instant::now();
        while begin.elapsed() < self.options.halt_poll {
            for _ in 0..16 {
                if let Some(used) = self.try_used()? {
                    return Ok(Some(used));
                }
                std::hint::spin_loop();
            }
        }
        Ok(None)
    }

    /// Waits for a notification and consumes it, with no look at the ring.
    pub fn wait_call(&mut self, timeout: Duration) -> Result<()> {
        let Some(call) = &self.call else {
            return Err(Error::NotOffered("a call fd"));
        };
        if poll_for(&mut [PollFd::new(call.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
            return Err(Error::Timeout("notification"));
        }
        drain(call)
    }

    /// Waits until the back-end reports the ring as broken through its error fd.
    pub fn wait_ring_error(&mut self, timeout: Duration) -> Result<()> {
        if poll_for(
            &mut [PollFd::new(self.error.as_fd(), PollFlags::POLLIN)],
            timeout,
        )? == 0
        {
            return Err(Error::Timeout("error on the ring"));
        }
        self.error
            .read()
            .map(drop)
            .map_err(Error::io("read of the error fd"))
    }

    /// Waits until there is an answer on the control socket, which stays there, or its end.
    pub fn wait_answer(&mut self, timeout: Duration) -> Result<()> {
        let flags = PollFlags::POLLIN;
        if poll_for(&mut [PollFd::new(self.control.as_fd(), flags)], timeout)? == 0 {
            return Err(Error::Timeout("answer on the vhost-user socket"));
        }
        Ok(())
    }

    /// Waits until the back-end closes the control socket.
    pub fn wait_closed(&mut self, timeout: Duration) -> Result<()> {
        let flags = PollFlags::POLLHUP;
        if poll_for(&mut [PollFd::new(self.control.as_fd(), flags)], timeout)? == 0 {
            return Err(Error::Timeout("end of the connection"));
        }
        Ok(())
    }

    /// Sleeps until a notification, the end of the connection (true) or the timeout.
    fn sleep(&mut self, timeout: Duration) -> Result<bool> {
        let Some(call) = &self.call else {
            std::thread::yield_now();
            let mut control = [PollFd::new(self.control.as_fd(), PollFlags::POLLHUP)];
            return Ok(poll_for(&mut control, Duration::ZERO)? > 0);
        };
        let mut fds = [
            PollFd::new(call.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.control.as_fd(), PollFlags::POLLHUP),
        ];
        poll_for(&mut fds, timeout)?;
        if fds[0].any() == Some(true) {
            drain(call)?;
        }
        Ok(fds[1].any() == Some(true))
    }

    /// Lets the back-end mark in the first `size` bytes of `log` which pages it writes, those of the used
    /// ring included, as QEMU does when it migrates a guest.
    pub fn start_log(&mut self, log: BorrowedFd<'_>, size: u64) -> Result<()> {
        let payload = [size.to_le_bytes(), 0_u64.to_le_bytes()].concat();
        (self.control).send(request::SET_LOG_BASE, 0, &payload, &[log.as_raw_fd()])?;
        self.control.receive(request::SET_LOG_BASE)?;
        let features = self.features | FEATURE_LOG_ALL;
        self.control.set_u64(request::SET_FEATURES, features)?;
        self.send_addresses_and_log(1, self.ring.layout().used)
    }

    fn send_addresses(&mut self) -> Result<()> {
        self.send_addresses_and_log(0, u64::MAX)
    }

    fn send_addresses_and_log(&mut self, flags: u64, log: u64) -> Result<()> {
        let layout = self.ring.layout();
        let ring = u64::from(self.options.ring) | flags << 32;
        let mut payload = ring.to_le_bytes().to_vec();
        for address in [layout.table, layout.used, layout.avail] {
            payload.extend_from_slice(&self.memory.user_address(address)?.to_le_bytes());
        }
        payload.extend_from_slice(&log.to_le_bytes());
        self.control.set(request::SET_VRING_ADDR, &payload, &[])
    }

    fn send_call(&mut self) -> Result<()> {
        let (ours, theirs) = match self.options.call {
            CallFd::EventFd => {
                let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
                let call = EventFd::from_value_and_flags(0, flags).map_err(Error::io("eventfd"))?;
                let other = call
                    .as_fd()
                    .try_clone_to_owned()
                    .map_err(Error::io("dup of the call fd"))?;
                (Some(other), Some(OwnedFd::from(call)))
            }
            CallFd::Pipe => {
                let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
                let (reading, writing) = nix::unistd::pipe2(flags).map_err(Error::io("pipe"))?;
                (Some(reading), Some(writing))
            }
            CallFd::SocketPair => {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)
                    .map_err(Error::io("socketpair"))?;
                (Some(ours), Some(theirs))
            }
            CallFd::Absent => (None, None),
        };
        self.control.set_vring_fd(
            request::SET_VRING_CALL,
            theirs.as_ref().map(|fd| fd.as_fd()),
        )?;
        self.call = ours;
        Ok(())
    }
}

/// Negotiates up to the features, which are not sent yet: what the back-end offers, the features and
/// the protocol features.
fn introduce(stream: UnixStream, options: &Options) -> Result<(Control, u64, u64, u64)> {
    let mut control = Control::new(stream, options.timeout)?;
    control.set_ring(options.ring);
    control.set(request::SET_OWNER, &[], &[])?;
    let offered = control.get_u64(request::GET_FEATURES)?;
    let features = offered & options.features;
    if features & FEATURE_VERSION_1 == 0 && options.features & FEATURE_VERSION_1 != 0 {
        return Err(Error::NotOffered("VIRTIO_F_VERSION_1"));
    }
    let mut protocol_features = 0;
    if features & FEATURE_PROTOCOL_FEATURES != 0 {
        let offered = control.get_u64(request::GET_PROTOCOL_FEATURES)?;
        protocol_features = offered & options.protocol_features;
        control.set_u64(request::SET_PROTOCOL_FEATURES, protocol_features)?;
        control.set_reply_ack(protocol_features & protocol_feature::REPLY_ACK != 0);
    }
    Ok((control, offered, features, protocol_features))
}

/// Empties a call fd, which does not block.
fn drain(call: &OwnedFd) -> Result<()> {
    let mut bytes = [0; 4096];
    match nix::unistd::read(call, &mut bytes) {
        Ok(0) => Err(Error::Disconnected),
        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
        Err(errno) => Err(Error::io("read of the call fd")(errno)),
    }
}

/// poll(2) that goes on after a signal; the number of ready descriptors.
pub(crate) fn poll_for(fds: &mut [PollFd<'_>], timeout: Duration) -> Result<i32> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up: a poll of 0 ms before the deadline would spin.
        let millis = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        match poll(
            fds,
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX),
        ) {
            Err(Errno::EINTR) => {}
            other => return other.map_err(Error::io("poll")),
        }
    }
}
