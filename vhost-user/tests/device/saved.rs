//! The state that a process leaves, read and written where it lies.

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::rc::Rc;

use vhost_user::State;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

/// Words before the copies of the configuration.
pub const SEQUENCE: u64 = 2;
pub const HANDLED: u64 = 3;
/// Words of a configuration.
pub const SOCKET: u64 = 0;
pub const KICK: u64 = 9;
pub const CALL: u64 = 10;
pub const ERROR: u64 = 11;
pub const REGIONS: u64 = 12;
const LOG: u64 = 13;
const LOG_CALL: u64 = 16;
const INFLIGHT: u64 = 18;
pub const FIXED: u64 = 22;
/// Words of a memory region, of which the last is its file.
pub const REGION: u64 = 5;
const SLOTS: u64 = 509;
const COPY: u64 = FIXED + SLOTS * REGION;
const COPIES: u64 = 8;

/// Bytes before the table of requests in flight, and of it: a header, the entries, then their origins.
const TABLE: u64 = (8 * (COPIES + 2 * COPY)).next_multiple_of(4096);
const HEADER: u64 = 16;
const ENTRY: u64 = 16;

/// Memory with a state in it, which both processes have.
pub struct SavedState(Rc<MmapRegion>);

impl SavedState {
    pub fn new() -> SavedState {
        SavedState(Rc::new(MmapRegion::new(State::SIZE).unwrap()))
    }

    /// As a process has it.
    pub fn state(&self) -> State {
        State::new(self.0.clone()).unwrap()
    }

    fn read(&self, at: u64, bytes: &mut [u8]) {
        let all = self.0.as_volatile_slice();
        all.read_slice(bytes, at as usize).unwrap();
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let all = self.0.as_volatile_slice();
        all.write_slice(bytes, at as usize).unwrap();
    }

    pub fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.read(8 * at, &mut bytes);
        u64::from_ne_bytes(bytes)
    }

    pub fn set_word(&self, at: u64, word: u64) {
        self.write(8 * at, &word.to_ne_bytes());
    }

    /// Where a word of the configuration is that is valid, or of the other one.
    pub fn place(&self, valid: bool, word: u64) -> u64 {
        let second = (self.word(SEQUENCE) % 2 == 1) == valid;
        COPIES + if second { COPY } else { 0 } + word
    }

    fn number(&self, word: u64) -> Option<RawFd> {
        RawFd::try_from(self.word(self.place(true, word))).ok()
    }

    /// The descriptors that are named.
    pub fn descriptors(&self) -> BTreeSet<RawFd> {
        if self.word(SEQUENCE) == 0 {
            return BTreeSet::new();
        }
        let count = self.word(self.place(true, REGIONS)).min(SLOTS);
        let files = (0..count).map(|region| FIXED + REGION * region + REGION - 1);
        ([SOCKET, KICK, CALL, ERROR, LOG, LOG_CALL, INFLIGHT]
            .into_iter()
            .chain(files))
        .filter_map(|word| self.number(word))
        .collect()
    }

    /// The descriptors of the same socket that are not named.
    pub fn duplicates(&self) -> Vec<RawFd> {
        let Some(socket) = self.number(self.place(true, SOCKET)) else {
            return Vec::new();
        };
        let link = |fd: RawFd| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok();
        let all = std::fs::read_dir("/proc/self/fd").unwrap();
        all.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .filter(|&fd| fd != socket && link(fd) == link(socket))
            .collect()
    }

    /// Everything, to bring it back.
    pub fn image(&self) -> Vec<u8> {
        let mut bytes = vec![0; State::SIZE];
        self.read(0, &mut bytes);
        bytes
    }

    pub fn restore(&self, image: &[u8]) {
        self.write(0, image);
    }

    /// A byte of the header of the table of requests in flight.
    pub fn set_header(&self, at: u64, bytes: &[u8]) {
        self.write(TABLE + at, bytes);
    }

    /// Bytes of an entry of it.
    pub fn set_entry(&self, head: u16, at: u64, bytes: &[u8]) {
        self.write(TABLE + HEADER + ENTRY * u64::from(head) + at, bytes);
    }
}
