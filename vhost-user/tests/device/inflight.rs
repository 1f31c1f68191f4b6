//! The front-end keeps the table of requests in flight: when everything on this side has died, it
//! connects to another process, which answers them.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use ring_driver::Used;
use vm_memory::Bytes;

use crate::event_loop::{End, EventLoop};
use crate::front_end::{FrontEnd, Refused, protocol_feature, request};
use crate::handler::Echo;
use crate::machine::{FEATURES, MAX_QUEUE_SIZE, Machine, PROTOCOL_FEATURES, config, u32s, u64s};
use crate::random::Random;

const ROOM: usize = 5000;
const HEADER: u64 = 16;
const ENTRY: u64 = 16;

/// What the front-end keeps.
struct Region {
    file: File,
    size: u64,
    offset: u64,
    queue_size: u16,
}

impl Region {
    fn message(&self) -> Vec<u8> {
        let numbers = u32s(&[1 | u32::from(self.queue_size) << 16, 0]);
        [u64s(&[self.size, self.offset]), numbers].concat()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }
}

fn wanted(queues: u16, queue_size: u16) -> Vec<u8> {
    let numbers = u32s(&[u32::from(queues) | u32::from(queue_size) << 16, 0]);
    [u64s(&[0, 0]), numbers].concat()
}

impl Machine {
    fn get_inflight_fd(&mut self, queue_size: u16) -> Region {
        let acknowledged = std::mem::take(&mut self.front_end.acknowledged);
        let message = wanted(1, queue_size);
        self.front_end.send(request::GET_INFLIGHT_FD, &message, &[]);
        self.front_end.acknowledged = acknowledged;
        self.event_loop.turn();
        let reply = self.front_end.reply_with_file(request::GET_INFLIGHT_FD);
        let (reply, file) = reply.unwrap();
        let word = |at: usize| u64::from_ne_bytes(reply[at..at + 8].try_into().unwrap());
        assert_eq!(reply[16..], message[16..]);
        Region {
            file: file.unwrap(),
            size: word(0),
            offset: word(8),
            queue_size,
        }
    }

    fn set_inflight_fd(&mut self, region: &Region) -> Result<(), Refused> {
        let message = region.message();
        self.set(request::SET_INFLIGHT_FD, &message, &[region.file.as_fd()])
    }

    /// Everything on this side has died, and the front-end connects to a new process, as Cloud Hypervisor
    /// does: to go on with the next request that the driver makes.
    fn reconnect(&mut self, region: &Region, keep: bool) {
        self.kill();
        self.event_loop.abandon();
        self.connect(keep);
        self.set_inflight_fd(region).unwrap();
        self.start(self.ring.avail_idx);
    }

    /// A new process without a past.
    fn connect(&mut self, keep: bool) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.handler = Rc::new(Echo::default());
        self.handler.keep.set(keep);
        self.handler.room.set(Some(ROOM));
        self.handler.migrates.set(true);
        self.front_end = FrontEnd::new(ours);
        self.event_loop = EventLoop::new(theirs, &config(), self.handler.clone());
        self.negotiate(FEATURES);
        self.set_mem_table().unwrap();
    }
}

/// A machine whose handler keeps the requests with these heads, which are their texts, too.
fn busy(heads: &[u16]) -> (Machine, Region) {
    let mut machine = Machine::new();
    machine.connect(true);
    let region = machine.get_inflight_fd(256);
    machine.set_inflight_fd(&region).unwrap();
    machine.start(0);
    for &head in heads {
        machine.post_echo(head, &[head as u8; 5]);
    }
    machine.kick();
    machine.event_loop.run();
    assert_eq!(machine.kept(), texts(heads));
    (machine, region)
}

fn texts(heads: &[u16]) -> Vec<Vec<u8>> {
    heads.iter().map(|&head| vec![head as u8; 5]).collect()
}

fn entry(head: u16) -> u64 {
    HEADER + ENTRY * u64::from(head)
}

#[test]
fn it_is_offered_if_the_handler_wants_it() {
    let mut machine = Machine::new();
    machine.handler.room.set(Some(0));
    machine.ask_u64(request::GET_FEATURES);
    let offered = machine.ask_u64(request::GET_PROTOCOL_FEATURES);
    assert_eq!(
        offered,
        PROTOCOL_FEATURES | protocol_feature::INFLIGHT_SHMFD
    );
}

#[test]
fn the_region_has_the_layout_of_the_specification_and_a_room() {
    let (mut machine, region) = busy(&[4, 0]);
    let seals = fcntl(&region.file, FcntlArg::F_GET_SEALS).unwrap();
    let sealed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    assert_eq!(seals, sealed.bits());
    assert_eq!(region.size, region.file.metadata().unwrap().len());
    assert_eq!(region.offset, 0);
    let bytes = region.bytes();
    // features, version, desc_num, last_batch_head, used_idx
    let header = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0];
    assert_eq!(bytes[..16], header);
    let counter = |head| {
        let at = entry(head) as usize;
        assert_eq!(bytes[at..at + 8], [1, 0, 0, 0, 0, 0, 0, 0]);
        bytes[at + 8]
    };
    assert!(counter(4) < counter(0));

    let room = machine.event_loop.room().unwrap();
    assert!(room.len() >= ROOM && !room.is_empty());
    assert_eq!(room.start() + room.len(), region.size as usize);
    assert!(room.start() as u64 >= entry(256));
    room.slice()
        .write_slice(b"session", room.len() - 7)
        .unwrap();
    assert_eq!(region.bytes()[region.size as usize - 7..], *b"session");
    assert_eq!(machine.handler.adopted.borrow().len(), 1);

    machine.reconnect(&region, true);
    let adopted = machine.handler.adopted.borrow();
    let mut session = [0; 7];
    let at = adopted[0].len() - 7;
    adopted[0].slice().read_slice(&mut session, at).unwrap();
    assert_eq!(session, *b"session");
}

#[test]
fn what_was_in_flight_is_answered_by_another_process_once_and_in_order() {
    let (mut machine, region) = busy(&[4, 0, 2]);
    // Made available while nobody serves.
    machine.post_echo(6, &[6; 5]);
    machine.reconnect(&region, true);
    machine.event_loop.run();
    assert_eq!(machine.kept(), texts(&[4, 0, 2, 6]));
    let faults: Vec<_> = (machine.handler.resumed.take().iter())
        .map(|resumed| resumed.map(|resumed| resumed.faults))
        .collect();
    assert_eq!(faults, [Some(1), Some(1), Some(1), None]);
    // Two are answered, and the driver sees it; one more that it does not see.
    for place in [2, 0] {
        let request = machine.handler.kept.borrow_mut().remove(place);
        crate::handler::echo(request);
    }
    machine.event_loop.notify();
    assert_eq!(machine.used_heads(), [2, 4]);
    let request = machine.handler.kept.borrow_mut().remove(0);
    crate::handler::echo(request);
    machine.reconnect(&region, true);
    machine.event_loop.run();
    assert_eq!(machine.kept(), texts(&[0, 6]));
    machine.handler.answer();
    machine.event_loop.notify();
    assert_eq!(machine.used_heads(), [0, 6]);
    machine.reconnect(&region, false);
    machine.exercise();
    assert_eq!(machine.stop(), 7);
}

#[test]
fn a_process_that_takes_over_goes_on_with_the_region() {
    let (mut machine, region) = busy(&[4, 0]);
    machine.restart(true);
    machine.event_loop.run();
    assert_eq!(machine.kept(), texts(&[4, 0]));
    assert!(machine.event_loop.room().is_some());
    let request = machine.handler.kept.borrow_mut().remove(0);
    crate::handler::echo(request);
    machine.event_loop.notify();
    machine.post_echo(2, &[2; 5]);
    machine.kick();
    machine.event_loop.run();
    machine.reconnect(&region, true);
    machine.event_loop.run();
    assert_eq!(machine.kept(), texts(&[0, 2]));
    machine.handler.answer();
    machine.event_loop.notify();
    assert_eq!(machine.used_heads(), [4, 0, 2]);
}

#[test]
fn a_process_that_ends_in_order_leaves_nothing_in_flight() {
    let (mut machine, region) = busy(&[4, 0]);
    machine.event_loop.close();
    assert_eq!(machine.used_heads(), [4, 0]);
    // The front-end does not know that nobody has taken this one.
    machine.post_echo(6, &[6; 5]);
    machine.connect(true);
    machine.set_inflight_fd(&region).unwrap();
    machine.start(3);
    assert_eq!(machine.kept(), texts(&[6]));
    // A ring that was stopped goes on where it was.
    assert_eq!(machine.stop(), 3);
    machine.post_echo(8, &[8; 5]);
    machine.start(3);
    assert_eq!(machine.kept(), texts(&[8]));
}

#[test]
fn a_driver_that_has_begun_anew_gets_no_answers_to_what_it_has_not_asked() {
    let (mut machine, region) = busy(&[4, 0]);
    machine.ring.set_avail_idx(&machine.memory, 0);
    machine.ring.set_used_idx(&machine.memory, 0);
    machine.reconnect(&region, true);
    assert_eq!(machine.handler.handled.get(), 0);
    machine.handler.keep.set(false);
    machine.exercise();
    assert_eq!(machine.stop(), 3);
}

#[test]
fn a_ring_that_fails_forgets_what_was_in_flight() {
    let (mut machine, region) = busy(&[4, 0]);
    machine.post(2, &[ring_driver::readable(0, 4).then(2)]);
    machine.kick();
    machine.event_loop.run();
    machine.restart(true);
    machine.event_loop.run();
    assert_eq!(machine.handler.handled.get(), 0);
    machine.reconnect(&region, true);
    assert_eq!(machine.handler.handled.get(), 0);
}

#[test]
fn a_region_that_cannot_be_is_refused() {
    let mut machine = Machine::new();
    machine.connect(false);
    let good = machine.get_inflight_fd(128);
    let regions = [
        (good.size + 1, 0, 128, 1),
        (good.size, 4096, 128, 1),
        (1000, 0, 128, 1),
        (0, 0, 128, 1),
        (u64::MAX, 0, 128, 1),
        (4096, u64::MAX, 128, 1),
        (8192, 1, 128, 1),
        (good.size, 0, MAX_QUEUE_SIZE + 1, 1),
        (good.size, 0, 128, 2),
    ];
    for (size, offset, queue_size, queues) in regions {
        let mut message = wanted(queues, queue_size);
        message[..16].copy_from_slice(&u64s(&[size, offset]));
        let fd = good.file.as_fd();
        let set = machine.set(request::SET_INFLIGHT_FD, &message, &[fd]);
        assert_eq!(set, Err(Refused), "{size} {offset} {queue_size} {queues}");
    }
    machine.handler.refuses.set(true);
    assert_eq!(machine.set_inflight_fd(&good), Err(Refused));
    assert!(machine.event_loop.room().is_none());
    machine.start(0);
    machine.exercise();
    // Not while the ring runs.
    machine.handler.refuses.set(false);
    assert_eq!(machine.set_inflight_fd(&good), Err(Refused));
    machine.stop();
    machine.set_inflight_fd(&good).unwrap();
    machine.start(3);
    machine.exercise();
}

#[test]
fn a_table_for_a_smaller_ring_is_refused_when_the_ring_starts() {
    let mut machine = Machine::new();
    machine.connect(false);
    let small = machine.get_inflight_fd(64);
    machine.set_inflight_fd(&small).unwrap();
    machine.set_up_ring(0).unwrap();
    machine.set_own_fds();
    assert_eq!(machine.enable(true), Err(Refused));
    machine.enable(false).unwrap();
    let large = machine.get_inflight_fd(MAX_QUEUE_SIZE);
    machine.set_inflight_fd(&large).unwrap();
    machine.enable(true).unwrap();
    machine.exercise();
}

#[test]
fn what_cannot_be_answered_ends_the_connection() {
    for message in [
        wanted(2, 128),
        wanted(1, MAX_QUEUE_SIZE + 1),
        wanted(0, 128),
    ] {
        let mut machine = Machine::new();
        machine.connect(false);
        machine
            .front_end
            .send(request::GET_INFLIGHT_FD, &message, &[]);
        machine.event_loop.turn();
        assert!(matches!(machine.event_loop.end(), Some(End::Broken(_))));
    }
}

#[test]
fn any_region_is_used_or_begun_anew() {
    let mut random = Random(0x7654_3210_fedc_ba98);
    let (mut resumed, mut anew) = (0, 0);
    for _ in 0..300 {
        let (mut machine, region) = busy(&[4, 0, 2]);
        for _ in 0..=random.below(3) {
            let at = match random.below(3) {
                0 => random.below(HEADER),
                1 => entry(random.below(6) as u16) + random.below(ENTRY),
                _ => random.below(region.size),
            };
            let byte = [0, 1, 2, 128, 255][random.below(5) as usize];
            region.write(at, &[byte]);
        }
        machine.reconnect(&region, false);
        machine.event_loop.run();
        match machine.handler.resumed.take().len() {
            0 => anew += 1,
            _ => resumed += 1,
        }
        for Used { head, .. } in machine.take_used() {
            assert!(head < 128);
        }
        machine.stop();
    }
    assert!(resumed > 50 && anew > 10, "{resumed} {anew}");
}
