//! The log of dirty pages: a front-end that copies the guest's memory while the guest writes, and takes
//! from the log what it has to copy again, ends with the same memory.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use ring_driver::{Descriptor, Layout, Ring, Used, readable, writable};
use vhost_user::Request;

use crate::event_loop::End;
use crate::front_end::{Refused, feature, request};
use crate::guest_memory::Region;
use crate::machine::{
    BUFFERS, FEATURES, MEMORY, MEMORY_SIZE, Machine, RING, count, duplicate, eventfd, u64s,
};
use crate::random::Random;

const PAGE: u64 = 0x1000;
/// VHOST_VRING_F_LOG.
const LOG_USED: u32 = 1;
/// A second region, directly behind the first in the guest, and nowhere else.
const MORE: u64 = MEMORY + MEMORY_SIZE;
const MORE_SIZE: u64 = 0x4_0000;
const END: u64 = MORE + MORE_SIZE;

fn memfd(len: u64) -> File {
    let file = File::from(memfd_create("log", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

/// A log as the front-end sees it.
struct Log {
    file: File,
    offset: u64,
    size: u64,
}

impl Log {
    /// One that covers all memory. Like Cloud Hypervisor's, it has no round size.
    fn new() -> Log {
        Log {
            file: memfd(0x1_0000),
            offset: 0,
            size: END / PAGE / 8,
        }
    }

    fn pages(&self) -> BTreeSet<u64> {
        let mut bytes = vec![0; self.size as usize];
        self.file.read_exact_at(&mut bytes, self.offset).unwrap();
        let some = (0..).zip(bytes).filter(|(_, byte)| *byte != 0);
        some.flat_map(|(at, byte)| {
            let bits = (0..8).filter(move |bit| byte & 1 << bit != 0);
            bits.map(move |bit| 8 * at + bit)
        })
        .collect()
    }

    /// What is marked, which is not marked any more.
    fn take(&self) -> BTreeSet<u64> {
        let pages = self.pages();
        let none = vec![0; self.size as usize];
        self.file.write_all_at(&none, self.offset).unwrap();
        pages
    }

    fn message(&self) -> Vec<u8> {
        u64s(&[self.size, self.offset])
    }
}

impl Machine {
    fn set_log_base(&mut self, log: &Log) {
        self.ask_with(request::SET_LOG_BASE, &log.message(), log.file.as_fd());
    }

    fn set_features(&mut self, features: u64) {
        self.set(request::SET_FEATURES, &u64s(&[features]), &[])
            .unwrap();
    }

    /// As QEMU and Cloud Hypervisor do it: the log, then LOG_ALL, then the used ring.
    fn start_log(&mut self, features: u64, log: &Log) {
        self.set_log_base(log);
        self.set_features(features | feature::LOG_ALL);
        let used = self.ring.layout.used;
        self.set_vring_addr_and_log(LOG_USED, used).unwrap();
    }

    /// A request that the handler keeps.
    fn keep(&mut self, head: u16, descriptors: &[Descriptor]) -> Request {
        self.handler.keep.set(true);
        // What was completed is given back first.
        self.event_loop.notify();
        self.post(head, descriptors);
        self.kick();
        self.event_loop.run();
        self.handler.kept.borrow_mut().pop().unwrap()
    }
}

fn page(address: u64) -> u64 {
    address / PAGE
}

fn logging() -> (Machine, Log) {
    let mut machine = Machine::started();
    let log = Log::new();
    machine.set_log_base(&log);
    machine.set_features(FEATURES | feature::LOG_ALL);
    (machine, log)
}

#[test]
fn exactly_what_is_written_is_marked_before_the_answer_can_be_seen() {
    let (mut machine, log) = logging();
    let buffers: Vec<u64> = (0..4).map(|number| BUFFERS + number * 4 * PAGE).collect();
    let descriptors = [
        readable(buffers[0], 64),
        // The last byte of a page, and two pages more.
        writable(buffers[1] + PAGE - 1, 1 + 2 * PAGE as u32),
        writable(buffers[2] + 5, 3 * PAGE as u32),
        writable(buffers[3], 64),
    ];
    let request = machine.keep(0, &descriptors);
    assert_eq!(log.pages(), BTreeSet::new());
    request.writable().write_at(0, b"123");
    request.complete(3);
    // Nothing is published yet.
    assert_eq!(machine.take_used(), []);
    let first = page(buffers[1]);
    assert_eq!(log.take(), BTreeSet::from([first, first + 1]));
    machine.event_loop.notify();
    assert_eq!(machine.take_used(), [Used { head: 0, len: 3 }]);
    // The used ring is not asked for.
    assert_eq!(log.pages(), BTreeSet::new());

    // A file that is shorter than the buffers.
    let request = machine.keep(0, &descriptors);
    let file = memfd(2 * PAGE);
    let read =
        |at, len, offset| (request.writable()).read_from_file(file.as_fd(), at, len, offset, 0);
    assert_eq!(read(1, 5 * PAGE as usize, 0).unwrap(), 2 * PAGE as usize);
    assert_eq!(read(0, 1, 1 << 40).unwrap(), 0);
    // What is written beyond the answer counts, too.
    request.writable().write_at(0, b"error");
    request.complete(5);
    assert_eq!(log.take(), BTreeSet::from([first, first + 1, first + 2]));

    // By another thread, up to the last byte.
    let request = machine.keep(0, &descriptors);
    let written = std::thread::scope(|scope| {
        let into = request.writable();
        let write = move || into.write_at(into.len() - 1, b"!");
        scope.spawn(write).join().unwrap()
    });
    assert_eq!(written, 1);
    drop(request);
    let second = page(buffers[2]);
    let last = page(buffers[3]);
    let pages = (first..=first + 2).chain(second..=second + 3).chain([last]);
    assert_eq!(log.take(), pages.collect());

    // A read that fails may have written before.
    let request = machine.keep(0, &descriptors);
    let directory = File::open("/").unwrap();
    let failed = request
        .writable()
        .read_from_file(directory.as_fd(), 1, 1, 0, 0);
    assert_ne!(failed.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    request.complete(0);
    assert_eq!(log.take(), BTreeSet::from([first, first + 1]));

    machine.set_features(FEATURES);
    machine.handler.keep.set(false);
    machine.event_loop.notify();
    machine.take_used();
    machine.exercise();
    assert_eq!(log.pages(), BTreeSet::new());
}

#[test]
fn what_a_killed_process_may_not_have_marked_is_marked() {
    let mut machine = Machine::started();
    let log = Log::new();
    machine.start_log(FEATURES, &log);
    let buffer = BUFFERS + 0x1_0000;
    let request = machine.keep(0, &[writable(buffer, 2 * PAGE as u32)]);
    request.writable().write_at(PAGE as usize, b"lost");
    std::mem::forget(request);
    log.take();
    machine.restart(false);
    assert_eq!(log.take(), BTreeSet::from([page(RING.used)]));
    machine.event_loop.run();
    assert_eq!(machine.take_used(), [Used { head: 0, len: 0 }]);
    let pages = [page(RING.used), page(buffer), page(buffer) + 1];
    assert_eq!(log.take(), BTreeSet::from(pages));
}

#[test]
fn what_was_in_flight_when_the_log_is_switched_on_is_marked() {
    let mut machine = Machine::started();
    let log = Log::new();
    let buffer = BUFFERS + 0x1_0000;
    let descriptors = [writable(buffer, 3 * PAGE as u32)];
    let early = machine.keep(0, &descriptors);
    early.writable().write_at(2 * PAGE as usize, b"before");
    machine.start_log(FEATURES, &log);
    early.complete(3 * PAGE as u32);
    let pages: BTreeSet<u64> = (page(buffer)..page(buffer) + 3).collect();
    assert_eq!(log.take(), pages);
    machine.event_loop.notify();
    assert_eq!(log.take(), BTreeSet::from([page(RING.used)]));
}

#[test]
fn another_log_takes_over_from_one_moment_to_the_next() {
    let (mut machine, first) = logging();
    let buffer = BUFFERS + 0x1_0000;
    let request = machine.keep(0, &[writable(buffer, 8)]);
    request.writable().write_at(0, b"old");
    // In the middle of its file, and of a page.
    let second = Log {
        offset: 3001,
        ..Log::new()
    };
    machine.set_log_base(&second);
    request.writable().write_at(0, b"new");
    request.complete(3);
    machine.event_loop.notify();
    assert_eq!(first.pages(), BTreeSet::new());
    assert_eq!(second.pages(), BTreeSet::from([page(buffer)]));
    let mut bytes = vec![0; second.file.metadata().unwrap().len() as usize];
    second.file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
}

#[test]
fn the_used_ring_is_marked_where_the_front_end_says() {
    for features in [FEATURES, FEATURES & !feature::EVENT_IDX] {
        let mut machine = Machine::started_with(features);
        let log = Log::new();
        machine.start_log(features, &log);
        // An address that need not be memory.
        machine.set_vring_addr_and_log(LOG_USED, 0x5_0ffe).unwrap();
        machine.event_loop.run();
        let first = page(0x5_0000);
        log.take();
        // Asks for kicks, in the flags or behind the entries.
        machine.event_loop.turn();
        let events = features & feature::EVENT_IDX != 0;
        let place = if events { first + 1 } else { first };
        assert_eq!(log.take(), BTreeSet::from([place]));
        machine.post(0, &[readable(BUFFERS, 8)]);
        machine.kick();
        machine.event_loop.run();
        // The index and the entry are on different pages.
        assert_eq!(log.take(), BTreeSet::from([first, first + 1]));
        machine.set_vring_addr().unwrap();
        log.take();
        machine.take_used();
        machine.post(0, &[readable(BUFFERS, 8)]);
        machine.kick();
        machine.event_loop.run();
        assert_eq!(log.take(), BTreeSet::new());
    }
}

#[test]
fn a_used_ring_beyond_the_log_is_refused() {
    let (mut machine, log) = logging();
    let end = log.size * 8 * PAGE;
    let used = 4 + 8 * 128 + 2;
    for place in [end - used + 1, end, u64::MAX - 3, u64::MAX] {
        assert_eq!(
            machine.set_vring_addr_and_log(LOG_USED, place),
            Err(Refused)
        );
    }
    machine
        .set_vring_addr_and_log(LOG_USED, end - used)
        .unwrap();
    machine.exercise();
}

#[test]
fn a_log_that_cannot_be_mapped_ends_the_connection() {
    // There is no answer that says so.
    for (size, offset) in [(0x1_0001, 0), (1, 0x1_0000), (0, 0), (2, u64::MAX)] {
        let mut machine = Machine::started();
        let log = Log {
            size,
            offset,
            ..Log::new()
        };
        let file = log.file.as_fd();
        (machine.front_end).send(request::SET_LOG_BASE, &log.message(), &[file]);
        machine.event_loop.turn();
        assert!(matches!(machine.event_loop.end(), Some(End::Broken(_))));
    }
}

#[test]
fn a_log_that_is_too_short_has_what_it_can() {
    let mut machine = Machine::started();
    let buffer = BUFFERS + 0x1_0000;
    let log = Log {
        size: page(buffer) / 8,
        ..Log::new()
    };
    machine.set_log_base(&log);
    machine.set_features(FEATURES | feature::LOG_ALL);
    let request = machine.keep(0, &[writable(BUFFERS, 8), writable(buffer, 8)]);
    request.writable().write_at(0, &[1; 16]);
    request.complete(16);
    assert_eq!(log.pages(), BTreeSet::from([page(BUFFERS)]));
}

#[test]
fn the_front_end_is_told_that_pages_were_marked() {
    let (mut machine, log) = logging();
    let told = eventfd();
    let other = duplicate(&told);
    machine
        .set(request::SET_LOG_FD, &[], &[other.as_fd()])
        .unwrap();
    machine.exercise();
    assert_eq!(count(&told), 3);
    machine.event_loop.run();
    assert_eq!(count(&told), 0);
    machine.restart(false);
    machine.exercise();
    assert_eq!(count(&told), 3);
    machine.set_features(FEATURES);
    machine.exercise();
    assert_eq!(count(&told), 0);
    // Whoever asks for no acknowledgement gets none.
    machine.front_end.acknowledged = false;
    machine
        .set(request::SET_LOG_FD, &[], &[other.as_fd()])
        .unwrap();
    assert!(!log.pages().is_empty());
}

#[test]
fn a_malformed_set_log_fd_ends_the_connection() {
    let eventfd = eventfd();
    let one = eventfd.as_fd();
    for (flags, payload, fds) in [
        (1, &[][..], &[][..]),
        (1, &[], &[one, one]),
        (1, &[0; 8], &[one]),
        (2, &[], &[one]),
        (5, &[], &[one]),
    ] {
        let mut machine = Machine::started();
        let size = payload.len() as u32;
        (machine.front_end).send_raw(request::SET_LOG_FD, flags, size, payload, fds);
        machine.event_loop.turn();
        assert!(machine.event_loop.end().is_some(), "{flags} {payload:?}");
    }
}

/// A device that writes all over its buffers.
fn answer(request: Request, random: &mut Random) {
    let len = request.writable().len() as u64;
    let file = memfd(random.below(2 * len + 1));
    let count = random.below(100);
    let bytes = random.bytes(count);
    file.write_all_at(&bytes, 0).unwrap();
    let (at, count) = (random.below(len), 1 + random.below(2 * len));
    let into = request.writable();
    match random.below(5) {
        0 => drop(into.write_at(at as usize, &random.bytes(count))),
        1 => drop(into.read_from_file(file.as_fd(), at as usize, count as usize, 0, 0)),
        2 => std::thread::scope(|scope| {
            let read = || into.read_from_file(file.as_fd(), at as usize, count as usize, 0, 0);
            scope.spawn(move || read().unwrap()).join().unwrap();
            into.write_at(0, b"header");
        }),
        3 => drop(into.write_at(0, b"nothing more")),
        _ => {}
    }
    match random.below(4) {
        0 => drop(request),
        _ => {
            let used = random.below(len + 1) as u32;
            request.complete(used);
        }
    }
}

/// What the front-end has at the destination.
struct Copy(Vec<u8>);

impl Copy {
    fn update(&mut self, machine: &Machine, pages: impl IntoIterator<Item = u64>) {
        for page in pages {
            let address = page * PAGE;
            let at = (address - MEMORY) as usize;
            let bytes = machine.memory.read(address, PAGE as usize);
            self.0[at..][..PAGE as usize].copy_from_slice(&bytes);
        }
    }

    /// What the guest and the device have written.
    fn synchronise(&mut self, machine: &mut Machine, log: &mut Log, random: &mut Random) {
        self.update(machine, machine.memory.written.take());
        let pages = match random.below(2) {
            // QEMU takes the bits away, Cloud Hypervisor gives another log.
            0 => log.take(),
            _ => {
                let next = Log::new();
                machine.set_log_base(&next);
                std::mem::replace(log, next).take()
            }
        };
        let memory = page(MEMORY)..page(END);
        assert!(pages.iter().all(|page| memory.contains(page)));
        self.update(machine, pages);
    }
}

#[test]
fn the_copy_of_a_migrated_guest_is_complete() {
    let mut random = Random(0x0123_4567_89ab_cdef);
    for round in 0..8 {
        let features = match round % 2 {
            0 => FEATURES,
            _ => FEATURES & !feature::EVENT_IDX,
        };
        let mut machine = Machine::new();
        let more = Region::new(MORE, 0x6000_0000_0000, MORE_SIZE);
        machine.memory.regions.push(more);
        // The used ring begins on one page and ends on the next.
        let used = RING.used + 0xe00;
        machine.ring = Ring::new(128, Layout { used, ..RING });
        machine.negotiate(features);
        machine.set_mem_table().unwrap();
        machine.start(0);
        machine.handler.keep.set(true);

        let mut log = Log::new();
        let mut copy = None;
        let mut free: Vec<u16> = (0..32).map(|number| 4 * number).collect();
        let mut steps = 0;
        while steps < 400 || free.len() < 32 {
            steps += 1;
            if steps == 100 {
                // With requests in flight, some of which are half written.
                for request in machine.handler.kept.borrow().iter() {
                    request.writable().write_at(0, &random.bytes(0x1800));
                }
                machine.start_log(features, &log);
                machine.memory.written.take();
                let all = machine.memory.read(MEMORY, (END - MEMORY) as usize);
                copy = Some(Copy(all));
            }
            match random.below(9) {
                0 | 1 if steps < 400 => {
                    for _ in 0..random.below(8) {
                        let Some(head) = free.pop() else { break };
                        let buffer = |random: &mut Random| {
                            let len = 1 + random.below(0x3000);
                            let start = BUFFERS + random.below(END - BUFFERS - len);
                            (start, len as u32)
                        };
                        let descriptors: Vec<Descriptor> = (0..3)
                            .map(|_| buffer(&mut random))
                            .map(|(start, len)| writable(start, len))
                            .collect();
                        if random.below(2) == 0 {
                            machine.post(head, &descriptors);
                        } else {
                            machine.post_indirect(head, &descriptors);
                        }
                    }
                    machine.kick();
                }
                2..5 => {
                    let count = machine.handler.kept.borrow().len() as u64;
                    for _ in 0..random.below(count + 1) {
                        let mut kept = machine.handler.kept.borrow_mut();
                        let place = random.below(kept.len() as u64) as usize;
                        let request = kept.swap_remove(place);
                        drop(kept);
                        answer(request, &mut random);
                    }
                }
                5 => drop(machine.event_loop.turn()),
                6 => machine.event_loop.notify(),
                7 if random.below(4) == 0 => {
                    // It has written, but not answered.
                    for request in machine.handler.kept.borrow().iter() {
                        let at = random.below(request.writable().len() as u64) as usize;
                        request.writable().write_at(at, b"lost");
                    }
                    machine.restart(true);
                }
                _ => {
                    if let Some(copy) = &mut copy {
                        copy.synchronise(&mut machine, &mut log, &mut random);
                    }
                }
            }
            free.extend(machine.used_heads());
        }
        machine.stop();
        let mut copy = copy.unwrap();
        copy.synchronise(&mut machine, &mut log, &mut random);
        let all = machine.memory.read(MEMORY, (END - MEMORY) as usize);
        let differs = |page: &usize| all[page << 12..][..0x1000] != copy.0[page << 12..][..0x1000];
        let missing: Vec<usize> = (0..all.len() >> 12).filter(differs).collect();
        assert!(
            missing.is_empty(),
            "round {round}: {missing:?} were not marked"
        );
    }
}
