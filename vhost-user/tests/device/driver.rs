//! The driver's side of a split ring (virtio 1.2, 2.7).

use crate::guest_memory::GuestMemory;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
pub const NO_INTERRUPT: u16 = 1;
pub const NO_NOTIFY: u16 = 1;

/// The descriptor table, the available ring and the used ring, from the ring's base on.
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x5000;
/// How much room a ring takes, and an indirect table of each head.
pub const RING_SIZE: u64 = 0x8000;

#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// A readable descriptor that ends a chain.
pub fn readable(address: u64, len: u32) -> Descriptor {
    Descriptor {
        address,
        len,
        flags: 0,
        next: 0,
    }
}

/// A writable descriptor that ends a chain.
pub fn writable(address: u64, len: u32) -> Descriptor {
    Descriptor {
        flags: WRITE,
        ..readable(address, len)
    }
}

/// A reference to an indirect table of `len` bytes.
pub fn indirect(address: u64, len: u32) -> Descriptor {
    Descriptor {
        flags: INDIRECT,
        ..readable(address, len)
    }
}

impl Descriptor {
    /// The same, followed by another.
    pub fn then(self, next: u16) -> Descriptor {
        Descriptor {
            flags: self.flags | NEXT,
            next,
            ..self
        }
    }
}

/// Descriptors as they stand in memory.
pub fn table(descriptors: &[Descriptor]) -> Vec<u8> {
    descriptors
        .iter()
        .flat_map(|descriptor| {
            let mut bytes = descriptor.address.to_le_bytes().to_vec();
            bytes.extend(descriptor.len.to_le_bytes());
            bytes.extend(descriptor.flags.to_le_bytes());
            bytes.extend(descriptor.next.to_le_bytes());
            bytes
        })
        .collect()
}

/// The same chain, linked in the order given and beginning at index `first`.
pub fn chained(descriptors: &[Descriptor], first: u16) -> Vec<Descriptor> {
    let last = descriptors.len() - 1;
    descriptors
        .iter()
        .enumerate()
        .map(|(index, descriptor)| match index == last {
            true => *descriptor,
            false => descriptor.then(first + index as u16 + 1),
        })
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub head: u16,
    pub len: u32,
}

pub struct Ring {
    pub size: u16,
    pub base: u64,
    pub avail_idx: u16,
    pub used_idx: u16,
}

impl Ring {
    pub fn new(size: u16, base: u64) -> Ring {
        Ring {
            size,
            base,
            avail_idx: 0,
            used_idx: 0,
        }
    }

    pub fn table(&self) -> u64 {
        self.base
    }

    pub fn avail(&self) -> u64 {
        self.base + AVAIL
    }

    pub fn used(&self) -> u64 {
        self.base + USED
    }

    /// Writes descriptors into the table, from `first` on.
    pub fn describe(&self, memory: &GuestMemory, first: u16, descriptors: &[Descriptor]) {
        let place = self.table() + 16 * u64::from(first);
        memory.write(place, &table(descriptors));
    }

    /// Makes a chain available.
    pub fn publish(&mut self, memory: &GuestMemory, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        memory.write(self.avail() + 4 + 2 * slot, &head.to_le_bytes());
        self.set_avail_idx(memory, self.avail_idx.wrapping_add(1));
    }

    pub fn set_avail_idx(&mut self, memory: &GuestMemory, index: u16) {
        self.avail_idx = index;
        memory.write(self.avail() + 2, &index.to_le_bytes());
    }

    pub fn set_avail_flags(&self, memory: &GuestMemory, flags: u16) {
        memory.write(self.avail(), &flags.to_le_bytes());
    }

    /// From which used index on the driver wants to be notified.
    pub fn set_used_event(&self, memory: &GuestMemory, index: u16) {
        let place = self.avail() + 4 + 2 * u64::from(self.size);
        memory.write(place, &index.to_le_bytes());
    }

    /// From which available index on the device wants to be notified.
    pub fn avail_event(&self, memory: &GuestMemory) -> u16 {
        memory.read_u16(self.used() + 4 + 8 * u64::from(self.size))
    }

    pub fn used_flags(&self, memory: &GuestMemory) -> u16 {
        memory.read_u16(self.used())
    }

    /// What the device has given back since the last time.
    pub fn take_used(&mut self, memory: &GuestMemory) -> Vec<Used> {
        let mut all = Vec::new();
        while self.used_idx != memory.read_u16(self.used() + 2) {
            let slot = u64::from(self.used_idx % self.size);
            let place = self.used() + 4 + 8 * slot;
            all.push(Used {
                head: memory.read_u32(place) as u16,
                len: memory.read_u32(place + 4),
            });
            self.used_idx = self.used_idx.wrapping_add(1);
        }
        all
    }
}
