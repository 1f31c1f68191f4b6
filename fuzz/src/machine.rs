//! Front-end, guest memory and the event loop around a connection, all on one thread.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use ring_driver::{Layout, Memory};
use vhost_user::{Connection, DeviceConfig, Handler, Poller, Source, State, Status};

/// Where the guest's memory is in the guest, and in the front-end.
pub const GUEST: u64 = 0x4000_0000;
pub const USER: u64 = 0x7f00_0000_0000;
pub const MEMORY_SIZE: u64 = 0x10_0000;
pub const RING_SIZE: u16 = 64;
/// The parts of the ring, from the start of memory.
pub const RING: Layout = Layout {
    table: 0,
    avail: 0x1000,
    used: 0x2000,
};
/// What is free for buffers.
pub const BUFFERS: u64 = 0x4000;

pub const INDIRECT_DESC: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;

/// A loop that has not come to rest after so many turns is spinning.
const MANY_TURNS: usize = 10_000;

struct Watched(Epoll);

impl Poller for Watched {
    fn watch(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()> {
        let flags = match source {
            Source::Save => EpollFlags::EPOLLOUT,
            _ => EpollFlags::EPOLLIN,
        };
        let event = EpollEvent::new(flags, source as u64);
        Ok(self.0.add(fd, event)?)
    }

    fn unwatch(&self, fd: BorrowedFd<'_>) {
        self.0.delete(fd).expect("was watched");
    }
}

/// The request numbers that setting up and migrating take.
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
}

pub fn u64s(fields: &[u64]) -> Vec<u8> {
    fields.iter().flat_map(|n| n.to_le_bytes()).collect()
}

pub fn u32s(fields: &[u32]) -> Vec<u8> {
    fields.iter().flat_map(|n| n.to_le_bytes()).collect()
}

pub fn eventfd() -> EventFd {
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    EventFd::from_value_and_flags(0, flags).expect("an eventfd")
}

/// A file that can be memory.
pub fn memory(size: u64) -> File {
    let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    file.set_len(size).expect("a size");
    file
}

/// The guest's memory by offset.
pub struct Shared(pub File);

impl Memory for Shared {
    fn read(&self, at: u64, bytes: &mut [u8]) {
        self.0.read_exact_at(bytes, at).expect("memory");
    }

    /// Memory keeps its size: what would go beyond its end is left out.
    fn write(&self, at: u64, bytes: &[u8]) {
        if at + bytes.len() as u64 <= MEMORY_SIZE {
            self.0.write_all_at(bytes, at).expect("memory");
        }
    }
}

pub struct Machine {
    socket: UnixStream,
    connection: Option<Connection>,
    watched: Rc<Watched>,
    pub memory: Shared,
    kick: EventFd,
    call: EventFd,
}

impl Machine {
    /// A connection over which nothing has been said yet.
    pub fn new(config: &DeviceConfig, handler: Rc<dyn Handler>) -> Machine {
        // Rust's runtime has it so, and so has the daemon; the fuzzer's own main function has not.
        // SAFETY: ignoring a signal installs no handler.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }.expect("a signal");
        let (socket, theirs) = UnixStream::pair().expect("sockets");
        socket.set_nonblocking(true).expect("a socket");
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll");
        let watched = Rc::new(Watched(epoll));
        let state = State::private().expect("memory");
        let connection = Connection::new(theirs, config, handler, watched.clone(), state);
        Machine {
            socket,
            connection: Some(connection.expect("a connection")),
            watched,
            memory: Shared(memory(MEMORY_SIZE)),
            kick: eventfd(),
            call: eventfd(),
        }
    }

    /// The messages that start a device, in their order.
    pub const STEPS: usize = 8;

    /// Sends one of the messages that start a device.
    pub fn step(&mut self, step: usize, features: u64, base: u16) {
        let memory = self.memory.0.try_clone().expect("a descriptor");
        match step {
            0 => self.send(request::SET_OWNER, &[], &[]),
            1 => self.send(request::SET_FEATURES, &u64s(&[features]), &[]),
            2 => {
                let payload = [u32s(&[1, 0]), u64s(&[GUEST, MEMORY_SIZE, USER, 0])].concat();
                self.send(request::SET_MEM_TABLE, &payload, &[memory.as_fd()]);
            }
            3 => self.send(
                request::SET_VRING_NUM,
                &u32s(&[0, u32::from(RING_SIZE)]),
                &[],
            ),
            4 => self.send(request::SET_VRING_BASE, &u32s(&[0, u32::from(base)]), &[]),
            5 => {
                let Layout { table, avail, used } = RING;
                let addresses = [USER + table, USER + used, USER + avail, u64::MAX];
                let payload = [u32s(&[0, 0]), u64s(&addresses)].concat();
                self.send(request::SET_VRING_ADDR, &payload, &[]);
            }
            6 => {
                let call = self
                    .call
                    .as_fd()
                    .try_clone_to_owned()
                    .expect("a descriptor");
                self.send(request::SET_VRING_CALL, &u64s(&[0]), &[call.as_fd()]);
            }
            _ => {
                let kick = self
                    .kick
                    .as_fd()
                    .try_clone_to_owned()
                    .expect("a descriptor");
                self.send(request::SET_VRING_KICK, &u64s(&[0]), &[kick.as_fd()]);
            }
        }
    }

    /// Starts the ring, of [`RING_SIZE`], with `base` as the next chain to be taken.
    pub fn start(&mut self, features: u64, base: u16) {
        for step in 0..Machine::STEPS {
            self.step(step, features, base);
            self.run();
        }
    }

    /// Stops the ring.
    pub fn stop(&mut self) {
        self.send(request::GET_VRING_BASE, &u32s(&[0, 0]), &[]);
        self.run();
    }

    /// Sends a message that says of itself what is true.
    pub fn send(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        let size = u32::try_from(payload.len()).expect("a short message");
        let mut message = u32s(&[request, 1, size]);
        message.extend_from_slice(payload);
        self.send_raw(&message, fds);
    }

    /// Sends bytes. The back-end waits for the rest of a message that has begun: end with
    /// [`Machine::hang_up`] if there is none.
    pub fn send_raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        // Fails if the back-end has hung up.
        let _ = sendmsg::<UnixAddr>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            if fds.is_empty() { &[] } else { &rights },
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
    }

    /// Says that nothing more comes.
    pub fn hang_up(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }

    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    pub fn kick(&self) {
        let _ = self.kick.write(1);
    }

    /// One turn of the loop; whether anything happened.
    pub fn turn(&mut self) -> bool {
        let found =
            (self.connection.as_ref()).is_some_and(|connection| !connection.prepare_sleep());
        let mut events = [EpollEvent::empty(); 4];
        let count = self.watched.0.wait(&mut events, EpollTimeout::ZERO);
        let count = count.expect("epoll");
        for event in &events[..count] {
            let sources = [Source::Control, Source::Kick, Source::Save, Source::Load];
            let source = sources[event.data() as usize];
            if let Some(connection) = &mut self.connection {
                if !matches!(connection.ready(source), Ok(Status::Open)) {
                    self.connection = None;
                }
            }
        }
        if let Some(connection) = &self.connection {
            connection.take_requests();
            if connection.notify().is_err() {
                self.connection = None;
            }
        }
        let mut replies = [0; 256];
        while self.socket.read(&mut replies).is_ok_and(|count| count > 0) {}
        let _ = self.call.read();
        found || count > 0
    }

    /// Turns until nothing happens any more.
    pub fn run(&mut self) {
        let turns = (0..MANY_TURNS).find(|_| !self.turn());
        assert!(turns.is_some(), "the loop does not come to rest");
    }

    /// Writes at an offset into the guest's memory, as far as there is any.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write(at, bytes);
    }

    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read(at, &mut bytes);
        bytes
    }
}

/// What this process has open, by number.
pub fn open_descriptors() -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("/proc");
    entries
        .flatten()
        .filter_map(|entry| {
            // The one that lists them is gone by then.
            let target = std::fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), target))
        })
        .filter(|(_, target)| !target.starts_with("/proc"))
        .collect()
}
