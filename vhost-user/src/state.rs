//! The device's state in memory that outlives this process: from it another process goes on with the
//! connection ([`Connection::resume`](crate::Connection::resume)).
//!
//! ```text
//! 0        magic u64, version u64, sequence u64, handled u64
//! COPIES   2 × the configuration, at most COPY bytes
//! TABLE    the table of requests in flight, see `inflight`, unless the front-end keeps it
//! ```
//!
//! All numbers are u64 in the host's byte order, except for those of the table. The configuration is
//! written after each message, into the copy that is not valid; then `sequence` is increased, whose
//! lowest bit says which copy is valid. So each of the two is complete at every instant. A `sequence`
//! of 0 says that there is no connection. `handled` is the sequence at which the last message began: it
//! equals `sequence` while a message is handled.
//!
//! Descriptors are saved as numbers: the other process is given the same table of descriptors.

use std::io;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{MmapRegion, VolatileMemory};

use crate::error::{Error, RingError};
use crate::inflight::Inflight;
use crate::memory::MAX_SLOTS;
use crate::split::Addresses;

const MAGIC: u64 = u64::from_be_bytes(*b"vu-state");
const VERSION: u64 = 2;
const WORD: usize = size_of::<u64>();

/// Where the fields are.
const PLACE_OF_MAGIC: usize = 0;
const PLACE_OF_VERSION: usize = WORD;
const SEQUENCE: usize = 2 * WORD;
const HANDLED: usize = 3 * WORD;
const COPIES: usize = 64;
const COPY: usize = WORD * (FIXED + MAX_SLOTS * REGION);
const TABLE: usize = (COPIES + 2 * COPY).next_multiple_of(4096);

/// Words of a configuration without regions, and of a region.
const FIXED: usize = 22;
const REGION: usize = 5;

/// The largest ring (virtio 1.2, 2.7).
const MAX_QUEUE_SIZE: u16 = 32_768;

const READY: u64 = 1 << 0;
const PLACED: u64 = 1 << 1;
const ENABLED: u64 = 1 << 2;
const STARTED: u64 = 1 << 3;
const USED_LOGGED: u64 = 1 << 4;

/// Stands for a descriptor that there is not.
const NONE: u64 = u64::MAX;

/// Memory for the state of a connection, from which another process can go on with it.
#[derive(Clone)]
pub struct State {
    memory: Rc<MmapRegion>,
}

/// The configuration of a device.
pub(crate) struct Saved {
    pub(crate) socket: RawFd,
    pub(crate) features: u64,
    pub(crate) protocol_features: u64,
    pub(crate) regions: Vec<(VhostUserMemoryRegion, RawFd)>,
    pub(crate) size: u16,
    /// Whether the last size was accepted.
    pub(crate) ready: bool,
    /// The next request to take, unless the ring runs.
    pub(crate) base: u16,
    pub(crate) addresses: Option<Addresses>,
    pub(crate) kick: Option<RawFd>,
    pub(crate) call: Option<RawFd>,
    pub(crate) error: Option<RawFd>,
    /// The file of the dirty log, the log's offset in it, and its size.
    pub(crate) log: Option<(RawFd, u64, u64)>,
    pub(crate) log_call: Option<RawFd>,
    /// Where the used ring begins in the log, if its pages are marked.
    pub(crate) used_place: Option<u64>,
    /// The file of the region for requests in flight, the region's offset in it and its size, and the
    /// size of its ring.
    pub(crate) inflight: Option<(RawFd, u64, u64, u16)>,
    pub(crate) enabled: bool,
    pub(crate) started: bool,
}

fn invalid(why: &'static str) -> Error {
    Error::State(io::Error::new(io::ErrorKind::InvalidData, why))
}

impl State {
    /// How many bytes a state takes. Most are never touched, and so have no pages.
    pub const SIZE: usize = (TABLE + Inflight::bytes(MAX_QUEUE_SIZE)).next_multiple_of(4096);

    /// A state at the beginning of `memory`, which is mapped readable and writable: shared memory that
    /// is zeroed, or was left by another process. Nothing but this crate writes to its first
    /// [`State::SIZE`] bytes. Errors: it has not as many.
    pub fn new(memory: Rc<MmapRegion>) -> Result<State, Error> {
        if memory.size() < State::SIZE {
            return Err(invalid("the memory is too short"));
        }
        let state = State { memory };
        state.word(0)?;
        Ok(state)
    }

    /// A state that ends with this process. Errors: those of mmap(2).
    pub fn private() -> Result<State, Error> {
        let memory = MmapRegion::new(State::SIZE);
        let memory = memory.map_err(|error| Error::State(io::Error::other(error)))?;
        State::new(Rc::new(memory))
    }

    fn word(&self, at: usize) -> Result<&AtomicU64, Error> {
        self.memory
            .get_atomic_ref(at)
            .map_err(|_| invalid("the memory is not aligned"))
    }

    /// Says that there is no connection.
    pub(crate) fn forget(&self) -> Result<(), Error> {
        self.word(SEQUENCE)?.store(0, Release);
        self.word(PLACE_OF_MAGIC)?.store(MAGIC, Relaxed);
        self.word(PLACE_OF_VERSION)?.store(VERSION, Relaxed);
        self.word(HANDLED)?.store(0, Release);
        Ok(())
    }

    /// Notes that a message is being handled, until the next [`State::save`].
    pub(crate) fn begin(&self) -> Result<(), Error> {
        let sequence = self.word(SEQUENCE)?.load(Relaxed);
        self.word(HANDLED)?.store(sequence, Release);
        Ok(())
    }

    /// Saves a configuration, which replaces the one before in one instant.
    pub(crate) fn save(&self, saved: &Saved) -> Result<(), Error> {
        let sequence = self.word(SEQUENCE)?.load(Relaxed);
        // 0 has its own meaning; nobody counts so far.
        let sequence = sequence.wrapping_add(1).max(1);
        let mut at = copy(sequence);
        saved.write(|word| {
            self.word(at)?.store(word, Relaxed);
            at += WORD;
            Ok(())
        })?;
        self.word(SEQUENCE)?.store(sequence, Release);
        Ok(())
    }

    /// The configuration that another process has saved last. None: there was no connection. Errors: it
    /// is invalid, or a message was being handled.
    pub(crate) fn load(&self) -> Result<Option<Saved>, Error> {
        let sequence = self.word(SEQUENCE)?.load(Acquire);
        if sequence == 0 {
            return Ok(None);
        }
        if self.word(PLACE_OF_MAGIC)?.load(Relaxed) != MAGIC {
            return Err(invalid("the memory holds something else"));
        }
        if self.word(PLACE_OF_VERSION)?.load(Relaxed) != VERSION {
            return Err(invalid("its version is unknown"));
        }
        if self.word(HANDLED)?.load(Relaxed) == sequence {
            return Err(Error::Interrupted);
        }
        let mut at = copy(sequence);
        let saved = Saved::read(|| {
            let word = self.word(at)?.load(Relaxed);
            at += WORD;
            Ok(word)
        })?;
        Ok(Some(saved))
    }

    /// The table of requests in flight for a ring of this size.
    pub(crate) fn inflight(&self, size: u16) -> Result<Inflight, RingError> {
        Inflight::new(self.memory.clone(), TABLE, size)
    }
}

/// Where the copy of a sequence number is.
fn copy(sequence: u64) -> usize {
    match sequence % 2 {
        0 => COPIES,
        _ => COPIES + COPY,
    }
}

impl Saved {
    fn write(&self, mut put: impl FnMut(u64) -> Result<(), Error>) -> Result<(), Error> {
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        let flags = flag(self.ready, READY)
            | flag(self.addresses.is_some(), PLACED)
            | flag(self.enabled, ENABLED)
            | flag(self.started, STARTED)
            | flag(self.used_place.is_some(), USED_LOGGED);
        let (log, log_offset, log_size) = match self.log {
            Some((file, offset, size)) => (Some(file), offset, size),
            None => (None, 0, 0),
        };
        let (inflight, inflight_offset, inflight_size, queue_size) = match self.inflight {
            Some((file, offset, size, queue_size)) => (Some(file), offset, size, queue_size),
            None => (None, 0, 0, 0),
        };
        let descriptor = |fd: Option<RawFd>| fd.map_or(NONE, |fd| fd as u64);
        let addresses = self.addresses.unwrap_or_default();
        let fixed: [u64; FIXED] = [
            descriptor(Some(self.socket)),
            self.features,
            self.protocol_features,
            self.size.into(),
            self.base.into(),
            flags,
            addresses.descriptors,
            addresses.available,
            addresses.used,
            descriptor(self.kick),
            descriptor(self.call),
            descriptor(self.error),
            self.regions.len() as u64,
            descriptor(log),
            log_offset,
            log_size,
            descriptor(self.log_call),
            self.used_place.unwrap_or_default(),
            descriptor(inflight),
            inflight_offset,
            inflight_size,
            queue_size.into(),
        ];
        for word in fixed {
            put(word)?;
        }
        for (region, file) in &self.regions {
            let words: [u64; REGION] = [
                region.guest_phys_addr,
                region.memory_size,
                region.user_addr,
                region.mmap_offset,
                descriptor(Some(*file)),
            ];
            for word in words {
                put(word)?;
            }
        }
        Ok(())
    }

    fn read(mut next: impl FnMut() -> Result<u64, Error>) -> Result<Saved, Error> {
        let required = |fd: Option<RawFd>| fd.ok_or_else(|| invalid("a descriptor is missing"));
        let mut fixed = [0; FIXED];
        for word in &mut fixed {
            *word = next()?;
        }
        let [
            socket,
            features,
            protocol_features,
            size,
            base,
            flags,
            descriptors,
            available,
            used,
            kick,
            call,
            error,
            count,
            log,
            log_offset,
            log_size,
            log_call,
            used_place,
            inflight,
            inflight_offset,
            inflight_size,
            queue_size,
        ] = fixed;
        let inflight = match descriptor(inflight)? {
            Some(file) => Some((file, inflight_offset, inflight_size, short(queue_size)?)),
            None => None,
        };
        if count > MAX_SLOTS as u64 {
            return Err(invalid("too many memory regions"));
        }
        let mut regions = Vec::new();
        for _ in 0..count {
            let (guest, size, user, offset) = (next()?, next()?, next()?, next()?);
            let file = required(descriptor(next()?)?)?;
            regions.push((VhostUserMemoryRegion::new(guest, size, user, offset), file));
        }
        let placed = Addresses {
            descriptors,
            available,
            used,
        };
        Ok(Saved {
            socket: required(descriptor(socket)?)?,
            features,
            protocol_features,
            regions,
            size: short(size)?,
            ready: flags & READY != 0,
            base: short(base)?,
            addresses: (flags & PLACED != 0).then_some(placed),
            kick: descriptor(kick)?,
            call: descriptor(call)?,
            error: descriptor(error)?,
            log: descriptor(log)?.map(|file| (file, log_offset, log_size)),
            log_call: descriptor(log_call)?,
            used_place: (flags & USED_LOGGED != 0).then_some(used_place),
            inflight,
            enabled: flags & ENABLED != 0,
            started: flags & STARTED != 0,
        })
    }
}

fn short(word: u64) -> Result<u16, Error> {
    u16::try_from(word).map_err(|_| invalid("a number beyond 16 bits"))
}

fn descriptor(word: u64) -> Result<Option<RawFd>, Error> {
    match word {
        NONE => Ok(None),
        _ => RawFd::try_from(word)
            .map(Some)
            .map_err(|_| invalid("a descriptor that cannot be")),
    }
}
