//! A virtual machine on one thread: front-end, guest and back-end, and the loop that it runs in.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use ring_driver::{Descriptor, Layout, Ring, Used, chained, indirect, readable, table, writable};
use vhost_user::DeviceConfig;

use crate::event_loop::EventLoop;
use crate::front_end::{FrontEnd, Refused, feature, protocol_feature, request};
use crate::guest_memory::{GuestMemory, Region};
use crate::handler::Echo;

/// The device's own feature bit.
pub const DEVICE_FEATURE: u64 = 1 << 0;
pub const CONFIG_SPACE: &[u8] = b"\x04\x00host";
pub const MAX_QUEUE_SIZE: u16 = 1024;

pub const MEMORY: u64 = 0x4000_0000;
pub const MEMORY_SIZE: u64 = 0x20_0000;
const USER: u64 = 0x7f12_3450_0000;
/// Where the ring is.
pub const RING: Layout = Layout {
    table: MEMORY,
    avail: MEMORY + 0x4000,
    used: MEMORY + 0x5000,
};
/// Where indirect tables are: 0x400 bytes for each head.
const TABLES: u64 = MEMORY + 0x8000;
/// Where the buffers of requests are: behind the tables of 128 heads.
pub const BUFFERS: u64 = TABLES + 0x400 * 128;

pub const PROTOCOL_FEATURES: u64 = protocol_feature::CONFIG
    | protocol_feature::LOG_SHMFD
    | protocol_feature::DEVICE_STATE
    | protocol_feature::REPLY_ACK
    | protocol_feature::RESET_DEVICE
    | protocol_feature::CONFIGURE_MEM_SLOTS;
pub const FEATURES: u64 = feature::VERSION_1
    | feature::INDIRECT_DESC
    | feature::EVENT_IDX
    | feature::PROTOCOL_FEATURES
    | DEVICE_FEATURE;

pub fn config() -> DeviceConfig {
    DeviceConfig {
        features: DEVICE_FEATURE,
        config_space: CONFIG_SPACE.to_vec(),
        config_head: 2,
        max_queue_size: MAX_QUEUE_SIZE,
    }
}

pub fn eventfd() -> EventFd {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap()
}

/// How often an eventfd was written, which then counts anew.
pub fn count(eventfd: &EventFd) -> u64 {
    eventfd.read().unwrap_or(0)
}

/// Another descriptor of the same eventfd, which is not borrowed from the machine.
pub fn duplicate(eventfd: &EventFd) -> OwnedFd {
    eventfd.as_fd().try_clone_to_owned().unwrap()
}

pub fn u32s(fields: &[u32]) -> Vec<u8> {
    fields
        .iter()
        .flat_map(|field| field.to_ne_bytes())
        .collect()
}

pub fn u64s(fields: &[u64]) -> Vec<u8> {
    fields
        .iter()
        .flat_map(|field| field.to_ne_bytes())
        .collect()
}

pub struct Machine {
    pub front_end: FrontEnd,
    pub event_loop: EventLoop,
    pub handler: Rc<Echo>,
    pub memory: GuestMemory,
    pub ring: Ring,
    pub kick: EventFd,
    pub call: EventFd,
    pub error: EventFd,
}

impl Machine {
    /// A connection over which nothing has been said yet.
    pub fn new() -> Machine {
        Machine::with_config(&config())
    }

    pub fn with_config(config: &DeviceConfig) -> Machine {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let handler = Rc::new(Echo::default());
        handler.migrates.set(true);
        Machine {
            front_end: FrontEnd::new(ours),
            event_loop: EventLoop::new(theirs, config, handler.clone()),
            handler,
            memory: GuestMemory {
                regions: vec![Region::new(MEMORY, USER, MEMORY_SIZE)],
                ..GuestMemory::default()
            },
            ring: Ring::new(128, RING),
            kick: eventfd(),
            call: eventfd(),
            error: eventfd(),
        }
    }

    /// A machine whose ring runs, with all features.
    pub fn started() -> Machine {
        Machine::started_with(FEATURES)
    }

    pub fn started_with(features: u64) -> Machine {
        let mut machine = Machine::new();
        machine.negotiate(features);
        machine.set_mem_table().unwrap();
        machine.start(0);
        machine
    }

    // The front-end.

    /// A request that has an answer.
    #[track_caller]
    pub fn ask(&mut self, request: u32, payload: &[u8]) -> Vec<u8> {
        // The specification has no acknowledgement for these.
        let acknowledged = std::mem::take(&mut self.front_end.acknowledged);
        self.front_end.send(request, payload, &[]);
        self.front_end.acknowledged = acknowledged;
        self.event_loop.turn();
        self.front_end.reply(request).expect("an answer")
    }

    #[track_caller]
    pub fn ask_u64(&mut self, request: u32) -> u64 {
        u64::from_ne_bytes(self.ask(request, &[]).try_into().unwrap())
    }

    /// The same with a descriptor.
    #[track_caller]
    pub fn ask_with(&mut self, request: u32, payload: &[u8], fd: BorrowedFd<'_>) -> Vec<u8> {
        let acknowledged = std::mem::take(&mut self.front_end.acknowledged);
        self.front_end.send(request, payload, &[fd]);
        self.front_end.acknowledged = acknowledged;
        self.event_loop.turn();
        self.front_end.reply(request).expect("an answer")
    }

    /// A request that has none of its own.
    #[track_caller]
    pub fn set(
        &mut self,
        request: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), Refused> {
        self.front_end.send(request, payload, fds);
        self.event_loop.turn();
        let reply = self.front_end.reply(request);
        if !self.front_end.acknowledged {
            assert_eq!(reply, None);
            return Ok(());
        }
        match u64::from_ne_bytes(reply.expect("an acknowledgement").try_into().unwrap()) {
            0 => Ok(()),
            _ => Err(Refused),
        }
    }

    pub fn negotiate(&mut self, features: u64) {
        self.set(request::SET_OWNER, &[], &[]).unwrap();
        let offered = self.ask_u64(request::GET_FEATURES);
        assert_eq!(features & !offered, 0);
        if features & feature::PROTOCOL_FEATURES != 0 {
            let offered = self.ask_u64(request::GET_PROTOCOL_FEATURES);
            self.set(request::SET_PROTOCOL_FEATURES, &u64s(&[offered]), &[])
                .unwrap();
            self.front_end.acknowledged = true;
        }
        self.set(request::SET_FEATURES, &u64s(&[features]), &[])
            .unwrap();
    }

    pub fn set_mem_table(&mut self) -> Result<(), Refused> {
        let mut payload = u32s(&[self.memory.regions.len() as u32, 0]);
        for region in &self.memory.regions {
            payload.extend(region.to_bytes());
        }
        let files: Vec<_> = self
            .memory
            .regions
            .iter()
            .map(|region| region.file.try_clone().unwrap())
            .collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        self.set(request::SET_MEM_TABLE, &payload, &fds)
    }

    pub fn add_mem_reg(&mut self, region: &Region) -> Result<(), Refused> {
        let payload = [u64s(&[0]), region.to_bytes()].concat();
        self.set(request::ADD_MEM_REG, &payload, &[region.file.as_fd()])
    }

    pub fn rem_mem_reg(&mut self, region: &Region) -> Result<(), Refused> {
        let payload = [u64s(&[0]), region.to_bytes()].concat();
        self.set(request::REM_MEM_REG, &payload, &[])
    }

    /// Everything about the ring but its start.
    pub fn set_up_ring(&mut self, base: u16) -> Result<(), Refused> {
        let size = self.ring.size.into();
        self.set(request::SET_VRING_NUM, &u32s(&[0, size]), &[])?;
        self.set(request::SET_VRING_BASE, &u32s(&[0, base.into()]), &[])?;
        self.set_vring_addr()
    }

    pub fn set_vring_addr(&mut self) -> Result<(), Refused> {
        // User-mode Linux: no log.
        self.set_vring_addr_and_log(0, u64::MAX)
    }

    pub fn set_vring_addr_and_log(&mut self, flags: u32, log: u64) -> Result<(), Refused> {
        let mut payload = u32s(&[0, flags]);
        let Layout { table, avail, used } = self.ring.layout;
        for part in [table, used, avail] {
            payload.extend(u64s(&[self.memory.user_address(part)]));
        }
        payload.extend(u64s(&[log]));
        self.set(request::SET_VRING_ADDR, &payload, &[])
    }

    /// Gives ring 0 a descriptor, or says that there is none.
    #[track_caller]
    pub fn set_vring_fd(
        &mut self,
        request: u32,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), Refused> {
        match fd {
            Some(fd) => self.set(request, &u64s(&[0]), &[fd]),
            None => self.set(request, &u64s(&[1 << 8]), &[]),
        }
    }

    #[track_caller]
    pub fn set_own_fds(&mut self) {
        for (request, fd) in [
            (request::SET_VRING_ERR, duplicate(&self.error)),
            (request::SET_VRING_CALL, duplicate(&self.call)),
            (request::SET_VRING_KICK, duplicate(&self.kick)),
        ] {
            self.set_vring_fd(request, Some(fd.as_fd())).unwrap();
        }
    }

    pub fn enable(&mut self, enable: bool) -> Result<(), Refused> {
        self.set(request::SET_VRING_ENABLE, &u32s(&[0, enable.into()]), &[])
    }

    /// Starts the ring with `base` as the next chain to be taken.
    pub fn start(&mut self, base: u16) {
        self.set_up_ring(base).unwrap();
        self.set_own_fds();
        if self.front_end.acknowledged {
            self.enable(true).unwrap();
        }
        self.event_loop.run();
    }

    /// Stops the ring and returns the next chain that would have been taken.
    pub fn stop(&mut self) -> u16 {
        let reply = self.ask(request::GET_VRING_BASE, &u32s(&[0, 0]));
        assert_eq!(reply[..4], 0_u32.to_ne_bytes());
        u32::from_ne_bytes(reply[4..].try_into().unwrap()) as u16
    }

    // The guest.

    /// Puts a chain together at `head` and makes it available.
    pub fn post(&mut self, head: u16, descriptors: &[Descriptor]) {
        let chain = chained(descriptors, head);
        self.ring.describe(&self.memory, head, &chain);
        self.ring.publish(&self.memory, head);
    }

    /// The same in an indirect table.
    pub fn post_indirect(&mut self, head: u16, descriptors: &[Descriptor]) {
        let place = TABLES + 0x400 * u64::from(head);
        let bytes = table(&chained(descriptors, 0));
        self.memory.write(place, &bytes);
        self.post(head, &[indirect(place, bytes.len() as u32)]);
    }

    /// Makes available a request of `bytes`, to be echoed in the same number, at heads `head` and
    /// `head + 1`.
    pub fn post_echo(&mut self, head: u16, bytes: &[u8]) {
        let (question, answer) = Machine::buffers(head);
        let len = bytes.len() as u32;
        self.memory.write(question, bytes);
        self.post(head, &[readable(question, len), writable(answer, len)]);
    }

    /// Where `post_echo` has its two buffers, of 1024 bytes each.
    pub fn buffers(head: u16) -> (u64, u64) {
        let question = BUFFERS + 0x800 * u64::from(head);
        (question, question + 0x400)
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    pub fn take_used(&mut self) -> Vec<Used> {
        self.ring.take_used(&self.memory)
    }

    /// An echo there and back.
    #[track_caller]
    pub fn exercise(&mut self) {
        for (head, text) in [(0, &b"hello"[..]), (2, b"world!"), (126, b"")] {
            self.post_echo(head, text);
            self.kick();
            self.event_loop.turn();
            let len = text.len() as u32;
            assert_eq!(self.take_used(), [Used { head, len }]);
            let (_, answer) = Machine::buffers(head);
            assert_eq!(self.memory.read(answer, text.len()), text);
        }
    }
}
