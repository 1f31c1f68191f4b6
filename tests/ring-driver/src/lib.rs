//! The driver's side of a split ring (virtio 1.2, 2.7), for tests, fuzzers and benches.
//!
//! ```text
//! table:  size × { address[8] len[4] flags[2] next[2] }
//! avail:  flags[2] idx[2] head[2] × size  used_event[2]
//! used:   flags[2] idx[2] { head[4] len[4] } × size  avail_event[2]
//! ```
//! It writes whatever it is told to, as a hostile driver would; which descriptors are free is the
//! caller's business. Guest memory is whatever implements [`Memory`].

/// The next descriptor continues the chain.
pub const NEXT: u16 = 1;
/// The device writes into the buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;
/// Flag of the available ring: the driver wants no notifications.
pub const NO_INTERRUPT: u16 = 1;
/// Flag of the used ring: the device wants no notifications.
pub const NO_NOTIFY: u16 = 1;

const DESCRIPTOR_SIZE: u64 = 16;
const FLAGS: u64 = 0;
const INDEX: u64 = 2;
const ENTRIES: u64 = 4;
const HEAD_SIZE: u64 = 2;
const USED_SIZE: u64 = 8;

/// Memory that driver and device share.
pub trait Memory {
    /// Copies bytes out of it.
    fn read(&self, address: u64, bytes: &mut [u8]);
    /// Copies bytes into it.
    fn write(&self, address: u64, bytes: &[u8]);
}

fn read_u16(memory: &impl Memory, address: u64) -> u16 {
    let mut bytes = [0; 2];
    memory.read(address, &mut bytes);
    u16::from_le_bytes(bytes)
}

/// A descriptor as it stands in a table.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Guest address of the buffer.
    pub address: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor, if `flags` says so.
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

/// The bytes of a table of descriptors.
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

/// The descriptors as one chain, in the order given, to be written from index `first` on.
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

/// A chain that the device has given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Its first descriptor.
    pub head: u16,
    /// Bytes that the device wrote.
    pub len: u32,
}

/// Guest addresses of the three parts of a ring.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The descriptor table.
    pub table: u64,
    /// The available ring.
    pub avail: u64,
    /// The used ring.
    pub used: u64,
}

/// A ring as its driver sees it.
pub struct Ring {
    /// Its number of descriptors, a power of two.
    pub size: u16,
    /// Where it is.
    pub layout: Layout,
    /// The index that the next available chain gets.
    pub avail_idx: u16,
    /// The index of the next used chain to be looked at.
    pub used_idx: u16,
}

impl Ring {
    /// A ring whose indices are both 0, as in zeroed memory.
    pub fn new(size: u16, layout: Layout) -> Ring {
        Ring {
            size,
            layout,
            avail_idx: 0,
            used_idx: 0,
        }
    }

    fn entry(&self, index: u16) -> u64 {
        u64::from(index % self.size)
    }

    /// Writes descriptors into the table, from index `first` on.
    pub fn describe(&self, memory: &impl Memory, first: u16, descriptors: &[Descriptor]) {
        let place = self.layout.table + DESCRIPTOR_SIZE * u64::from(first);
        memory.write(place, &table(descriptors));
    }

    /// Writes a head into the available ring without making it available.
    pub fn set_avail(&self, memory: &impl Memory, index: u16, head: u16) {
        let place = self.layout.avail + ENTRIES + HEAD_SIZE * self.entry(index);
        memory.write(place, &head.to_le_bytes());
    }

    /// Makes a chain available.
    pub fn publish(&mut self, memory: &impl Memory, head: u16) {
        self.set_avail(memory, self.avail_idx, head);
        self.set_avail_idx(memory, self.avail_idx.wrapping_add(1));
    }

    /// Sets the index of the available ring.
    pub fn set_avail_idx(&mut self, memory: &impl Memory, index: u16) {
        self.avail_idx = index;
        memory.write(self.layout.avail + INDEX, &index.to_le_bytes());
    }

    /// Sets the index of the used ring, which is the device's once it runs.
    pub fn set_used_idx(&mut self, memory: &impl Memory, index: u16) {
        self.used_idx = index;
        memory.write(self.layout.used + INDEX, &index.to_le_bytes());
    }

    /// Sets the flags of the available ring.
    pub fn set_avail_flags(&self, memory: &impl Memory, flags: u16) {
        memory.write(self.layout.avail + FLAGS, &flags.to_le_bytes());
    }

    /// Sets from which used index on the driver wants to be notified.
    pub fn set_used_event(&self, memory: &impl Memory, index: u16) {
        let place = self.layout.avail + ENTRIES + HEAD_SIZE * u64::from(self.size);
        memory.write(place, &index.to_le_bytes());
    }

    /// From which available index on the device wants to be notified.
    pub fn avail_event(&self, memory: &impl Memory) -> u16 {
        let place = self.layout.used + ENTRIES + USED_SIZE * u64::from(self.size);
        read_u16(memory, place)
    }

    /// The flags of the used ring.
    pub fn used_flags(&self, memory: &impl Memory) -> u16 {
        read_u16(memory, self.layout.used + FLAGS)
    }

    /// The chains that the device has given back since the last call. Panics if one begins outside of
    /// the ring.
    pub fn take_used(&mut self, memory: &impl Memory) -> Vec<Used> {
        let mut all = Vec::new();
        while self.used_idx != read_u16(memory, self.layout.used + INDEX) {
            let place = self.layout.used + ENTRIES + USED_SIZE * self.entry(self.used_idx);
            let mut element = [0; USED_SIZE as usize];
            memory.read(place, &mut element);
            let [a, b, c, d, len @ ..] = element;
            let head = u32::from_le_bytes([a, b, c, d]);
            assert!(head < u32::from(self.size), "{head} is no descriptor");
            all.push(Used {
                head: head as u16,
                len: u32::from_le_bytes(len),
            });
            self.used_idx = self.used_idx.wrapping_add(1);
        }
        all
    }
}
