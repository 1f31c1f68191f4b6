//! A driver's side of one split ring (virtio 1.2, 2.7), in guest memory.
//!
//! ```text
//! table:  queue_size × { addr[8] len[4] flags[2] next[2] }
//! avail:  flags[2] idx[2] ring[2 × queue_size] used_event[2]
//! used:   flags[2] idx[2] { id[4] len[4] } × queue_size  avail_event[2]
//! ```
//! Ring and indirect tables are in the first memory region: others may come and go.
//! The driver keeps its own copy of the free list and of what is outstanding: what the back-end
//! writes is checked against it.

use std::sync::atomic::{Ordering, fence};

use crate::error::{Error, Result};
use crate::memory::GuestMemory;

/// The chain goes on with `next`.
pub const DESC_NEXT: u16 = 1;
/// The device writes into the buffer.
pub const DESC_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;

const DESC_LEN: usize = 16;
/// `avail.flags`: do not interrupt. `used.flags`: do not kick.
const NO_NOTIFICATION: u16 = 1;

/// A descriptor as it stands in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// `DESC_*` bits.
    pub flags: u16,
    /// Index of the next descriptor, if `flags` says so.
    pub next: u16,
}

impl Descriptor {
    fn to_bytes(self) -> [u8; DESC_LEN] {
        let mut bytes = [0; DESC_LEN];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// One buffer of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes into it (else it reads from it).
    pub writable: bool,
}

/// A chain that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// First descriptor of the chain.
    pub head: u16,
    /// Bytes that the device wrote.
    pub len: u32,
}

/// Guest addresses of the three parts.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The descriptor table.
    pub table: u64,
    /// The available ring.
    pub avail: u64,
    /// The used ring.
    pub used: u64,
}

/// The state of a descriptor that is the first of a chain.
#[derive(Clone, Copy, Debug)]
enum Head {
    /// Not the head of an outstanding chain.
    Idle,
    /// The chain takes so many descriptors of the table, linked by `links`.
    Chain(u16),
    /// Put together by hand in descriptors that the caller looks after.
    Raw,
}

/// The driver of the request queue.
pub struct Ring {
    layout: Layout,
    size: u16,
    event_idx: bool,
    /// Unused descriptors, as a list linked through `links`.
    first_free: u16,
    free: u16,
    links: Vec<u16>,
    heads: Vec<Head>,
    outstanding: usize,
    /// One indirect table per head, made when first used: address and room in descriptors.
    tables: Vec<Option<(u64, usize)>>,
    scratch: Vec<u8>,
    avail_idx: u16,
    /// `avail_idx` at the last look whether to kick.
    kicked_idx: u16,
    used_idx: u16,
}

impl Ring {
    /// Lays out a ring of `size` (a power of two) descriptors in guest memory, with both indices at `base`.
    pub fn new(memory: &mut GuestMemory, size: u16, event_idx: bool, base: u16) -> Result<Ring> {
        let entries = usize::from(size);
        let layout = Layout {
            table: memory.alloc_in(0, entries * DESC_LEN)?,
            avail: memory.alloc_in(0, 6 + 2 * entries)?,
            used: memory.alloc_in(0, 6 + 8 * entries)?,
        };
        let mut ring = Ring {
            layout,
            size,
            event_idx,
            first_free: 0,
            free: 0,
            links: vec![0; entries],
            heads: vec![Head::Idle; entries],
            outstanding: 0,
            tables: vec![None; entries],
            scratch: Vec::new(),
            avail_idx: 0,
            kicked_idx: 0,
            used_idx: 0,
        };
        ring.clear(memory, base)?;
        Ok(ring)
    }

    /// Forgets everything, as a driver does after a reset: both indices are `base` again.
    pub fn clear(&mut self, memory: &GuestMemory, base: u16) -> Result<()> {
        let entries = usize::from(self.size);
        memory.fill(self.layout.table, entries * DESC_LEN, 0)?;
        memory.fill(self.layout.avail, 6 + 2 * entries, 0)?;
        memory.fill(self.layout.used, 6 + 8 * entries, 0)?;
        for (index, link) in self.links.iter_mut().enumerate() {
            *link = index as u16 + 1;
        }
        self.heads.fill(Head::Idle);
        (self.first_free, self.free, self.outstanding) = (0, self.size, 0);
        (self.avail_idx, self.kicked_idx, self.used_idx) = (base, base, base);
        memory.store_u16(self.layout.avail + 2, base, Ordering::Release)?;
        memory.store_u16(self.layout.used + 2, base, Ordering::Release)?;
        self.mute(memory)
    }

    /// Where the parts are.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Number of descriptors in the table.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Chains that are with the device.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Descriptors of the table that are not in use.
    pub fn free(&self) -> u16 {
        self.free
    }

    /// The driver's next available index.
    pub fn avail_idx(&self) -> u16 {
        self.avail_idx
    }

    /// Makes a chain of `segments` and puts it into the available ring. Returns its head.
    /// With `indirect` the segments stand in a table of their own and take one descriptor of the ring.
    pub fn add(
        &mut self,
        memory: &mut GuestMemory,
        segments: &[Segment],
        indirect: bool,
    ) -> Result<u16> {
        let needed = if indirect { 1 } else { segments.len() };
        if needed == 0 || needed > usize::from(self.free) {
            return Err(Error::RingFull);
        }
        let head = self.first_free;
        if indirect {
            let table = self.indirect_table(memory, head, segments.len())?;
            self.write_indirect(memory, table, segments)?;
            let len = (segments.len() * DESC_LEN) as u32;
            self.write_descriptor(
                memory,
                head,
                Descriptor {
                    addr: table,
                    len,
                    flags: DESC_INDIRECT,
                    next: 0,
                },
            )?;
            self.first_free = self.links[usize::from(head)];
        } else {
            for (nth, segment) in segments.iter().enumerate() {
                let index = self.first_free;
                self.first_free = self.links[usize::from(index)];
                let last = nth + 1 == segments.len();
                let next = if last { 0 } else { self.first_free };
                self.write_descriptor(memory, index, descriptor(segment, next, last))?;
            }
        }
        self.free -= needed as u16;
        self.heads[usize::from(head)] = Head::Chain(needed as u16);
        self.publish(memory, head)?;
        Ok(head)
    }

    /// Takes `count` descriptors out of the free list, for a chain put together by hand.
    /// They stay taken: a ring with hand-made chains is for one test.
    pub fn take_descriptors(&mut self, count: u16) -> Result<Vec<u16>> {
        if count > self.free {
            return Err(Error::RingFull);
        }
        let mut taken = Vec::new();
        for _ in 0..count {
            taken.push(self.first_free);
            self.first_free = self.links[usize::from(self.first_free)];
        }
        self.free -= count;
        Ok(taken)
    }

    /// Writes one descriptor of the table, whatever it says.
    pub fn write_descriptor(
        &self,
        memory: &GuestMemory,
        index: u16,
        descriptor: Descriptor,
    ) -> Result<()> {
        memory.write(
            self.layout.table + u64::from(index) * DESC_LEN as u64,
            &descriptor.to_bytes(),
        )
    }

    /// Puts a hand-made chain into the available ring. `head` need not be in range.
    pub fn publish_raw(&mut self, memory: &GuestMemory, head: u16) -> Result<()> {
        if let Some(state) = self.heads.get_mut(usize::from(head)) {
            *state = Head::Raw;
        }
        self.publish(memory, head)
    }

    /// Sets the available index to any value, without entries to go with it.
    pub fn set_avail_idx(&mut self, memory: &GuestMemory, index: u16) -> Result<()> {
        self.avail_idx = index;
        memory.store_u16(self.layout.avail + 2, index, Ordering::Release)
    }

    /// Whether the device wants to be kicked for what was added since the last call.
    pub fn needs_kick(&mut self, memory: &GuestMemory) -> Result<bool> {
        fence(Ordering::SeqCst);
        let (old, new) = (self.kicked_idx, self.avail_idx);
        self.kicked_idx = new;
        if self.event_idx {
            let event = memory.load_u16(
                self.layout.used + 4 + 8 * u64::from(self.size),
                Ordering::Relaxed,
            )?;
            Ok(needs_event(event, new, old))
        } else {
            let flags = memory.load_u16(self.layout.used, Ordering::Relaxed)?;
            Ok(old != new && flags & NO_NOTIFICATION == 0)
        }
    }

    /// Takes the next chain that the device is done with.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Used>> {
        if memory.load_u16(self.layout.used + 2, Ordering::Acquire)? == self.used_idx {
            return Ok(None);
        }
        let mut element = [0; 8];
        let slot = u64::from(self.used_idx % self.size);
        memory.read(self.layout.used + 4 + 8 * slot, &mut element)?;
        let [a, b, c, d, len @ ..] = element;
        let (id, len) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(len));
        let broken = Error::BrokenUsed { head: id, len };
        let Ok(head) = u16::try_from(id) else {
            return Err(broken);
        };
        let Some(state) = self.heads.get_mut(usize::from(head)) else {
            return Err(broken);
        };
        match std::mem::replace(state, Head::Idle) {
            Head::Idle => return Err(broken),
            Head::Chain(count) => self.release(head, count),
            Head::Raw => {}
        }
        self.used_idx = self.used_idx.wrapping_add(1);
        self.outstanding = self.outstanding.saturating_sub(1);
        Ok(Some(Used { head, len }))
    }

    /// Asks for a notification of the next used element. True: one is there already.
    pub fn listen(&self, memory: &GuestMemory) -> Result<bool> {
        if self.event_idx {
            self.set_used_event(memory, self.used_idx)?;
        } else {
            memory.store_u16(self.layout.avail, 0, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        Ok(memory.load_u16(self.layout.used + 2, Ordering::Acquire)? != self.used_idx)
    }

    /// Asks for no more notifications: the driver looks by itself.
    pub fn mute(&self, memory: &GuestMemory) -> Result<()> {
        if self.event_idx {
            self.set_used_event(memory, self.used_idx.wrapping_sub(1))
        } else {
            memory.store_u16(self.layout.avail, NO_NOTIFICATION, Ordering::Relaxed)
        }
    }

    fn set_used_event(&self, memory: &GuestMemory, index: u16) -> Result<()> {
        memory.store_u16(
            self.layout.avail + 4 + 2 * u64::from(self.size),
            index,
            Ordering::Relaxed,
        )
    }

    /// Puts a head into the available ring and makes it visible.
    fn publish(&mut self, memory: &GuestMemory, head: u16) -> Result<()> {
        let slot = u64::from(self.avail_idx % self.size);
        memory.store_u16(self.layout.avail + 4 + 2 * slot, head, Ordering::Relaxed)?;
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.outstanding += 1;
        memory.store_u16(self.layout.avail + 2, self.avail_idx, Ordering::Release)
    }

    /// Gives the descriptors of a chain back to the free list; `links` still joins them.
    fn release(&mut self, head: u16, count: u16) {
        let mut last = head;
        for _ in 1..count {
            last = self.links[usize::from(last)];
        }
        self.links[usize::from(last)] = self.first_free;
        self.first_free = head;
        self.free += count;
    }

    fn indirect_table(&mut self, memory: &mut GuestMemory, head: u16, count: usize) -> Result<u64> {
        let slot = &mut self.tables[usize::from(head)];
        if let Some((table, room)) = *slot {
            if room >= count {
                return Ok(table);
            }
            memory.free(table, room * DESC_LEN);
            *slot = None;
        }
        let room = count.next_multiple_of(crate::memory::PAGE / DESC_LEN);
        let table = memory.alloc_in(0, room * DESC_LEN)?;
        *slot = Some((table, room));
        Ok(table)
    }

    fn write_indirect(
        &mut self,
        memory: &GuestMemory,
        table: u64,
        segments: &[Segment],
    ) -> Result<()> {
        self.scratch.clear();
        for (nth, segment) in segments.iter().enumerate() {
            let next = descriptor(segment, nth as u16 + 1, nth + 1 == segments.len());
            self.scratch.extend_from_slice(&next.to_bytes());
        }
        memory.write(table, &self.scratch)
    }
}

/// The bytes of an indirect table that holds these descriptors, for a table put together by hand.
pub fn table_bytes(descriptors: &[Descriptor]) -> Vec<u8> {
    descriptors
        .iter()
        .flat_map(|descriptor| descriptor.to_bytes())
        .collect()
}

fn descriptor(segment: &Segment, next: u16, last: bool) -> Descriptor {
    let next_flag = if last { 0 } else { DESC_NEXT };
    let write_flag = if segment.writable { DESC_WRITE } else { 0 };
    Descriptor {
        addr: segment.addr,
        len: segment.len,
        flags: next_flag | write_flag,
        next: if last { 0 } else { next },
    }
}

/// Whether going from `old` to `new` passes `event` (virtio 1.2, 2.7.10, `vring_need_event`).
fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(count: usize) -> Vec<Segment> {
        (0..count)
            .map(|n| Segment {
                addr: 0x10000 + n as u64,
                len: 1,
                writable: n > 0,
            })
            .collect()
    }

    /// Plays the device: marks the next available chain as used.
    fn complete(ring: &Ring, memory: &GuestMemory, used_idx: &mut u16, head: u16) {
        let slot = u64::from(*used_idx % ring.size);
        let element = [u32::from(head).to_le_bytes(), 7u32.to_le_bytes()].concat();
        memory
            .write(ring.layout.used + 4 + 8 * slot, &element)
            .unwrap();
        *used_idx = used_idx.wrapping_add(1);
        memory
            .store_u16(ring.layout.used + 2, *used_idx, Ordering::Release)
            .unwrap();
    }

    #[test]
    fn descriptors_are_reused_across_the_wrap_of_the_index() {
        let mut memory = GuestMemory::new(&[1 << 20]).unwrap();
        let mut ring = Ring::new(&mut memory, 8, true, 65530).unwrap();
        let mut used_idx = 65530;
        for round in 0..50 {
            let first = ring.add(&mut memory, &segments(5), false).unwrap();
            let second = ring.add(&mut memory, &segments(3), false).unwrap();
            assert!(matches!(
                ring.add(&mut memory, &segments(1), false),
                Err(Error::RingFull)
            ));
            let order = if round % 2 == 0 {
                [first, second]
            } else {
                [second, first]
            };
            for head in order {
                complete(&ring, &memory, &mut used_idx, head);
                assert_eq!(ring.pop(&memory).unwrap(), Some(Used { head, len: 7 }));
            }
            assert_eq!(ring.pop(&memory).unwrap(), None);
        }
        assert_eq!((ring.free(), ring.outstanding()), (8, 0));
    }

    #[test]
    fn an_indirect_chain_takes_one_descriptor() {
        let mut memory = GuestMemory::new(&[1 << 20]).unwrap();
        let mut ring = Ring::new(&mut memory, 8, false, 0).unwrap();
        ring.add(&mut memory, &segments(300), true).unwrap();
        assert_eq!(ring.free(), 7);
    }

    #[test]
    fn a_used_element_that_nobody_waits_for_is_an_error() {
        let mut memory = GuestMemory::new(&[1 << 20]).unwrap();
        let mut ring = Ring::new(&mut memory, 8, false, 0).unwrap();
        let head = ring.add(&mut memory, &segments(2), false).unwrap();
        let mut used_idx = 0;
        complete(&ring, &memory, &mut used_idx, head);
        complete(&ring, &memory, &mut used_idx, head);
        assert!(ring.pop(&memory).unwrap().is_some());
        assert!(matches!(ring.pop(&memory), Err(Error::BrokenUsed { .. })));
    }

    #[test]
    fn events_are_passed_once() {
        assert!(needs_event(0, 1, 0));
        assert!(!needs_event(1, 1, 0));
        assert!(needs_event(5, 10, 3));
        assert!(!needs_event(2, 10, 3));
        assert!(needs_event(65535, 1, 65530));
        assert!(!needs_event(0, 7, 7));
    }
}
