//! The ring beside another implementation's: whatever a driver does, both take the same requests
//! with the same buffers, leave the same bytes in the used ring and want the same notifications.
//! `virtio-queue`'s is the one that other devices in Rust are built on.

use std::fs::File;
use std::rc::Rc;

use proptest::collection::vec;
use proptest::prelude::*;
use ring_driver::Layout;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, MmapRegion};

use crate::buffers::Segments;
use crate::chain::Chain;
use crate::inflight::Inflight;
use crate::memory::Memory;
use crate::split::{Addresses, SplitRing};

const MEMORY: usize = 0x10000;
const LAYOUT: Layout = Layout {
    table: 0x1000,
    avail: 0x2000,
    used: 0x3000,
};
const BUFFERS: u64 = 0x8000;
/// Where the front-end sees the memory.
const USER: u64 = 0x7000_0000;
const SIZE: u16 = 8;

/// What a driver and a device do.
#[derive(Clone, Debug)]
enum Step {
    /// The driver makes a chain of these lengths available, the first `readable` of them so.
    Add { lens: Vec<u32>, readable: usize },
    /// The driver says from which used index on it wants to be notified, relative to what it saw.
    Event(u16),
    /// The device takes a request.
    Take,
    /// The device gives one that it has taken back.
    Give(u32),
    /// The device shows what it gave back, and asks whether to notify.
    Publish,
    /// The device wants kicks, or not.
    Kicks(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (vec(1u32..200, 1..4), 0usize..4)
            .prop_map(|(lens, readable)| Step::Add { readable: readable.min(lens.len()), lens }),
        1 => (0u16..4).prop_map(Step::Event),
        4 => Just(Step::Take),
        4 => (0u32..1000).prop_map(Step::Give),
        2 => Just(Step::Publish),
        1 => any::<bool>().prop_map(Step::Kicks),
    ]
}

/// One memory, seen as each side wants it.
struct Side {
    memory: GuestMemoryMmap,
    ours: Rc<Memory>,
}

impl Side {
    fn new() -> Side {
        let file: File = nix::sys::memfd::memfd_create(c"ring", nix::sys::memfd::MFdFlags::empty())
            .unwrap()
            .into();
        file.set_len(MEMORY as u64).unwrap();
        let region = VhostUserMemoryRegion::new(0, MEMORY as u64, USER, 0);
        let ours = Memory::new(&[region], vec![file.try_clone().unwrap()]).unwrap();
        let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
        Side {
            memory: GuestMemoryMmap::from_ranges_with_files([range]).unwrap(),
            ours: Rc::new(ours),
        }
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }
}

/// Both memories: the driver writes the same into them.
struct Both<'a>([&'a Side; 2]);

impl ring_driver::Memory for Both<'_> {
    fn read(&self, address: u64, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0[0].bytes(address, bytes.len()));
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        for side in self.0 {
            side.memory
                .write_slice(bytes, GuestAddress(address))
                .unwrap();
        }
    }
}

struct Driver<'a> {
    memory: Both<'a>,
    ring: ring_driver::Ring,
    free: Vec<u16>,
    /// The chains that the device has, by their first descriptor.
    chains: Vec<(u16, Vec<u16>)>,
}

impl Driver<'_> {
    fn add(&mut self, lens: &[u32], readable: usize) {
        if self.free.len() < lens.len() {
            return;
        }
        let chain = self.free.split_off(self.free.len() - lens.len());
        for (place, (&index, &len)) in chain.iter().zip(lens).enumerate() {
            let address = BUFFERS + 0x400 * u64::from(index);
            let buffer = match place < readable {
                true => ring_driver::readable(address, len),
                false => ring_driver::writable(address, len),
            };
            let descriptor = match chain.get(place + 1) {
                Some(&next) => buffer.then(next),
                None => buffer,
            };
            self.ring.describe(&self.memory, index, &[descriptor]);
        }
        self.ring.publish(&self.memory, chain[0]);
        self.chains.push((chain[0], chain));
    }

    /// The device has given this chain back.
    fn reuse(&mut self, head: u16) {
        let place = self
            .chains
            .iter()
            .position(|(first, _)| *first == head)
            .unwrap();
        self.free.extend(self.chains.remove(place).1);
    }
}

/// Address, length and direction of all buffers of a request.
type Buffers = (Vec<(u64, usize)>, Vec<(u64, usize)>);

fn our_buffers(ring: &SplitRing, head: u16) -> Buffers {
    let memory = ring.memory();
    let base = memory.contiguous(0, MEMORY).unwrap().addr().get();
    let mut chain = Chain::new();
    chain.walk(memory, ring.descriptors(), head).unwrap();
    let places = |segments: &Segments| {
        let place = |piece: libc::iovec| ((piece.iov_base.addr() - base) as u64, piece.iov_len);
        segments.pieces(0, segments.len()).map(place).collect()
    };
    (
        places(&chain.readable().0),
        places(&chain.writable().segments),
    )
}

fn check(steps: &[Step], start: u16, event_idx: bool) {
    let (left, right) = (Side::new(), Side::new());
    let mut driver = Driver {
        memory: Both([&left, &right]),
        ring: ring_driver::Ring::new(SIZE, LAYOUT),
        free: (0..SIZE).collect(),
        chains: Vec::new(),
    };
    // A ring that has been in use, to see the indices wrap.
    driver.ring.set_avail_idx(&driver.memory, start);
    driver.ring.set_used_idx(&driver.memory, start);

    let addresses = Addresses {
        descriptors: USER + LAYOUT.table,
        available: USER + LAYOUT.avail,
        used: USER + LAYOUT.used,
    };
    let state = QueueState {
        max_size: SIZE,
        size: SIZE,
        next_avail: start,
        event_idx_enabled: event_idx,
        ready: true,
        ..QueueState::default()
    };
    let region = MmapRegion::new(Inflight::bytes(SIZE)).unwrap();
    let inflight = Inflight::new(Rc::new(region), 0, SIZE).unwrap();
    let mut ours = SplitRing::new(state, &addresses, &left.ours, inflight).unwrap();
    let memory = &right.memory;
    let mut theirs = Queue::new(SIZE).unwrap();
    theirs
        .try_set_desc_table_address(GuestAddress(LAYOUT.table))
        .unwrap();
    theirs
        .try_set_avail_ring_address(GuestAddress(LAYOUT.avail))
        .unwrap();
    theirs
        .try_set_used_ring_address(GuestAddress(LAYOUT.used))
        .unwrap();
    theirs.set_event_idx(event_idx);
    theirs.set_next_avail(start);
    theirs.set_next_used(start);
    theirs.set_ready(true);
    assert!(theirs.is_valid(memory));

    let mut taken = Vec::new();
    let mut given = Vec::new();
    for step in steps {
        match step {
            Step::Add { lens, readable } => driver.add(lens, *readable),
            Step::Event(ahead) => {
                let seen = u16::from_le_bytes(left.bytes(LAYOUT.used + 2, 2).try_into().unwrap());
                let event = seen.wrapping_add(*ahead);
                driver.ring.set_used_event(&driver.memory, event);
            }
            Step::Take => {
                let mut room = [0];
                let head = ours.available(&mut room).unwrap().first().copied();
                let chain = theirs.pop_descriptor_chain(memory);
                assert_eq!(head, chain.as_ref().map(|chain| chain.head_index()));
                if let (Some(head), Some(chain)) = (head, chain) {
                    let place = |descriptor: virtio_queue::desc::split::Descriptor| {
                        (descriptor.addr().0, descriptor.len() as usize)
                    };
                    let buffers: Buffers = (
                        chain.clone().readable().map(place).collect(),
                        chain.writable().map(place).collect(),
                    );
                    assert_eq!(our_buffers(&ours, head), buffers);
                    ours.check(head).unwrap();
                    ours.take(head);
                    taken.push(head);
                }
                assert_eq!(ours.next_available(), theirs.next_avail());
            }
            Step::Give(len) => {
                if let Some(head) = taken.pop() {
                    ours.push(head, *len);
                    theirs.add_used(memory, head, *len).unwrap();
                    given.push(head);
                }
            }
            Step::Publish => {
                ours.publish();
                let used = 4 + 8 * usize::from(SIZE);
                assert_eq!(
                    left.bytes(LAYOUT.used, used),
                    right.bytes(LAYOUT.used, used)
                );
                // The other one knows no flag by which a driver says that it wants none.
                assert_eq!(
                    ours.wants_notification(),
                    theirs.needs_notification(memory).unwrap()
                );
                given.drain(..).for_each(|head| driver.reuse(head));
            }
            Step::Kicks(true) => {
                let more = theirs.enable_notification(memory).unwrap();
                assert_eq!(ours.enable_kicks(), more);
            }
            Step::Kicks(false) => {
                ours.disable_kicks();
                theirs.disable_notification(memory).unwrap();
            }
        }
        let event = LAYOUT.used + 4 + 8 * u64::from(SIZE);
        assert_eq!(left.bytes(event, 2), right.bytes(event, 2));
    }
}

proptest! {
    #[test]
    fn both_rings_do_the_same(
        steps in vec(step(), 1..200),
        start in prop_oneof![Just(0u16), Just(65_530), any::<u16>()],
        event_idx in any::<bool>(),
    ) {
        check(&steps, start, event_idx);
    }
}
