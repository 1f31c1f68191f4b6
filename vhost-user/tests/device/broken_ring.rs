//! A driver that breaks its ring: the ring stops, the front-end is told, everything else goes on.

use std::os::fd::AsFd;

use crate::front_end::request;
use crate::guest_memory::Region;
use crate::log_lines;
use crate::machine::{BUFFERS, Machine, count, duplicate};
use ring_driver::{Descriptor, Used, WRITE, chained, indirect, readable, table, writable};

/// Where the tests here put tables by hand.
const TABLE: u64 = BUFFERS + 0x1_0000;

/// Writes an indirect table by hand and refers to it with `len` bytes.
fn by_table(machine: &mut Machine, descriptors: &[Descriptor], len: u32) {
    machine.memory.write(TABLE, &table(descriptors));
    raw(machine, &[indirect(TABLE, len)]);
}

/// Descriptors as they are, from index 0 on, which is made available.
fn raw(machine: &mut Machine, descriptors: &[Descriptor]) {
    machine.ring.describe(&machine.memory, 0, descriptors);
    machine.ring.publish(&machine.memory, 0);
}

fn ask() -> Descriptor {
    readable(BUFFERS, 16)
}

fn answer() -> Descriptor {
    writable(BUFFERS + 64, 16)
}

type Breakage = fn(&mut Machine);

const BREAKAGES: [(&str, Breakage); 23] = [
    ("the first head behind the ring", |machine| {
        machine.ring.publish(&machine.memory, 128);
    }),
    ("the largest head", |machine| {
        machine.ring.publish(&machine.memory, u16::MAX);
    }),
    ("one request more than the ring has", |machine| {
        machine.ring.set_avail_idx(&machine.memory, 3 + 129);
    }),
    ("an available index that went back", |machine| {
        machine.ring.set_avail_idx(&machine.memory, 2);
    }),
    ("a next behind the ring", |machine| {
        raw(machine, &[ask().then(128), answer()]);
    }),
    ("a descriptor that follows itself", |machine| {
        raw(machine, &[ask().then(0)]);
    }),
    ("a chain that returns to its beginning", |machine| {
        raw(machine, &[ask().then(1), ask().then(0)]);
    }),
    ("a writable chain that returns", |machine| {
        raw(
            machine,
            &[ask().then(1), answer().then(2), answer().then(1)],
        );
    }),
    ("readable behind writable", |machine| {
        raw(machine, &[answer().then(1), ask()]);
    }),
    ("readable between writable", |machine| {
        raw(
            machine,
            &[ask().then(1), answer().then(2), ask().then(3), answer()],
        );
    }),
    ("a table outside of memory", |machine| {
        raw(machine, &[indirect(0x1000, 32)]);
    }),
    ("a table at the end of all addresses", |machine| {
        raw(machine, &[indirect(u64::MAX - 15, 32)]);
    }),
    ("a table of no descriptors", |machine| {
        by_table(machine, &[ask()], 0);
    }),
    ("a table of one and a half", |machine| {
        by_table(machine, &[ask()], 24);
    }),
    ("a table of 1025", |machine| {
        by_table(machine, &[ask()], 16 * 1025);
    }),
    ("a table of 4 GiB", |machine| {
        by_table(machine, &[ask()], !15);
    }),
    ("a table in a table", |machine| {
        by_table(machine, &[ask().then(1), indirect(TABLE, 32)], 32);
    }),
    ("a table that is followed", |machine| {
        machine.memory.write(TABLE, &table(&[ask()]));
        raw(machine, &[indirect(TABLE, 16).then(1), answer()]);
    }),
    ("a chain that leaves its table", |machine| {
        by_table(machine, &[ask().then(2), answer(), answer()], 32);
    }),
    (
        "a chain that goes round behind an address outside",
        |machine| {
            raw(machine, &[readable(0x1000, 1).then(1), ask().then(0)]);
        },
    ),
    ("readable behind writable outside of memory", |machine| {
        raw(machine, &[writable(0x1000, 1).then(1), ask()]);
    }),
    ("a chain that goes round in its table", |machine| {
        by_table(machine, &[ask().then(1), ask().then(0)], 32);
    }),
    ("readable behind writable across tables", |machine| {
        machine.memory.write(TABLE, &table(&[ask()]));
        raw(machine, &[answer().then(1), indirect(TABLE, 16)]);
    }),
];

/// Asserts that the ring has stopped at its chain number 3, in every respect.
#[track_caller]
fn assert_broken(machine: &mut Machine, what: &str) {
    assert_eq!(count(&machine.error), 1, "{what}");
    assert_eq!(machine.take_used(), [], "{what}");
    assert_eq!(machine.handler.handled.get(), 3, "{what}");
    // Nothing helps.
    let before = machine.memory.image();
    machine.kick();
    machine.event_loop.run();
    machine.ask_u64(request::GET_FEATURES);
    assert!(machine.memory.image() == before, "{what}");
    assert_eq!(machine.handler.handled.get(), 3, "{what}");
    assert_eq!(count(&machine.error), 0, "{what}");
}

#[test]
fn every_broken_ring_stops_and_can_be_started_again() {
    for (what, breakage) in BREAKAGES {
        let mut machine = Machine::started();
        machine.exercise();
        breakage(&mut machine);
        machine.kick();
        machine.event_loop.run();
        assert!(machine.event_loop.end().is_none(), "{what}");
        assert_broken(&mut machine, what);
        // What was not taken is not counted.
        assert_eq!(machine.stop(), 3, "{what}");
        machine.ring.set_avail_idx(&machine.memory, 3);
        machine.start(3);
        machine.exercise();
    }
}

#[test]
fn a_broken_ring_stays_broken_until_it_is_stopped() {
    let mut machine = Machine::started();
    machine.exercise();
    raw(&mut machine, &[ask().then(0)]);
    machine.kick();
    machine.event_loop.run();
    machine.enable(true).unwrap();
    machine.set_mem_table().unwrap();
    let kick = duplicate(&machine.kick);
    machine
        .set_vring_fd(request::SET_VRING_KICK, Some(kick.as_fd()))
        .unwrap();
    assert_broken(&mut machine, "told to go on");
    machine.ring.set_avail_idx(&machine.memory, 3);
    machine.enable(false).unwrap();
    machine.enable(true).unwrap();
    machine.exercise();
}

#[test]
fn what_is_under_way_when_the_ring_breaks_ends_quietly() {
    let mut machine = Machine::started();
    machine.handler.keep.set(true);
    for head in [2, 4] {
        machine.post_echo(head, b"hello");
    }
    raw(&mut machine, &[ask().then(0)]);
    machine.kick();
    machine.event_loop.run();
    assert_eq!(count(&machine.error), 1);
    machine.handler.answer();
    machine.event_loop.notify();
    assert_eq!(machine.take_used(), []);
    machine.stop();
    machine.event_loop.run();
}

#[test]
fn what_was_answered_before_the_ring_breaks_is_announced() {
    let mut machine = Machine::started();
    machine.post_echo(2, b"hello");
    raw(&mut machine, &[ask().then(0)]);
    machine.kick();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), [Used { head: 2, len: 5 }]);
    assert_eq!((count(&machine.call), count(&machine.error)), (1, 1));
}

#[test]
fn what_comes_before_a_broken_request_is_answered_and_what_is_behind_is_not() {
    for (what, breakage) in BREAKAGES {
        let mut machine = Machine::started();
        machine.exercise();
        // They are looked at together.
        let heads = [20, 22, 24, 26];
        for head in heads {
            machine.post_echo(head, b"hello");
        }
        let next = machine.ring.avail_idx + 1;
        breakage(&mut machine);
        let one = machine.ring.avail_idx == next;
        if one {
            machine.post_echo(30, b"never");
        }
        machine.kick();
        machine.event_loop.run();
        assert_eq!(count(&machine.error), 1, "{what}");
        // An index that cannot be says nothing of any request.
        let answered: &[u16] = if one { &heads } else { &[] };
        let used = machine.take_used();
        assert!(
            used.iter()
                .map(|used| used.head)
                .eq(answered.iter().copied()),
            "{what}: {used:?}"
        );
    }
}

#[test]
fn a_driver_cannot_make_a_request_available_twice() {
    let mut machine = Machine::started();
    machine.handler.keep.set(true);
    for head in 0..128 {
        machine.post(head, &[ask()]);
    }
    machine.kick();
    machine.event_loop.run();
    assert_eq!(count(&machine.error), 0);
    machine.post(0, &[ask()]);
    machine.kick();
    machine.event_loop.run();
    assert_eq!(count(&machine.error), 1);
    assert_eq!(machine.handler.handled.get(), 128);
    assert_eq!(machine.stop(), 128);
}

#[test]
fn a_chain_of_more_than_4_gib_breaks_the_ring() {
    // The used length has 32 bits. No memory is touched, and none of the file's pages exists.
    const SIZE: u64 = 16 << 20;
    for kind in [readable, writable] {
        for (pieces, expected) in [(255, 0), (256, 1)] {
            let mut machine = Machine::started();
            machine.handler.keep.set(true);
            let large = Region::new(1 << 40, 1 << 40, SIZE);
            machine.add_mem_reg(&large).unwrap();
            let chain = vec![kind(1 << 40, SIZE as u32); pieces];
            let chain = chained(&chain, 0);
            by_table(&mut machine, &chain, 16 * pieces as u32);
            machine.kick();
            machine.event_loop.run();
            let error = count(&machine.error);
            assert_eq!(error, expected);
            assert_eq!(machine.handler.kept.take().len() as u64, 1 - expected);
        }
    }
}

#[test]
fn a_driver_cannot_flood_the_log() {
    let mut machine = Machine::started();
    let lines = log_lines::count(|| {
        for _ in 0..1000 {
            machine.ring.publish(&machine.memory, 500);
            machine.kick();
            machine.event_loop.run();
            assert_eq!(count(&machine.error), 1);
            machine.enable(false).unwrap();
            machine.ring.set_avail_idx(&machine.memory, 0);
            machine.enable(true).unwrap();
        }
    });
    assert!((1..=10).contains(&lines), "{lines} lines");
}

// What is unusual, but right.

#[test]
fn a_table_may_follow_descriptors_and_be_marked_writable() {
    let mut machine = Machine::started();
    machine.memory.write(BUFFERS, b"0123456789abcdef");
    machine.memory.write(TABLE, &table(&[answer()]));
    let marked = Descriptor {
        flags: ring_driver::INDIRECT | WRITE,
        ..indirect(TABLE, 16)
    };
    raw(&mut machine, &[ask().then(1), marked]);
    machine.kick();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), [Used { head: 0, len: 16 }]);
    assert_eq!(machine.memory.read(BUFFERS + 64, 16), b"0123456789abcdef");
}

#[test]
fn a_table_may_be_longer_than_the_ring() {
    let mut machine = Machine::started();
    let mut descriptors: Vec<_> = (0..1000)
        .map(|n| readable(BUFFERS + n, 1).then(n as u16 + 1))
        .collect();
    descriptors.push(writable(BUFFERS + 0x4000, 2000));
    let bytes: Vec<u8> = (0..1000).map(|n| (n % 253) as u8).collect();
    machine.memory.write(BUFFERS, &bytes);
    by_table(&mut machine, &descriptors, 16 * 1001);
    machine.kick();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), [Used { head: 0, len: 1000 }]);
    assert!(machine.memory.read(BUFFERS + 0x4000, 1000) == bytes);
}

#[test]
fn a_chain_may_take_the_whole_ring() {
    let mut machine = Machine::started();
    let mut chain: Vec<_> = (0..64).map(|n| readable(BUFFERS + n, 1)).collect();
    chain.extend((0..64).map(|n| writable(BUFFERS + 0x800 + n, 1)));
    let bytes: Vec<u8> = (1..=64).collect();
    machine.memory.write(BUFFERS, &bytes);
    machine.post(0, &chain);
    machine.kick();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), [Used { head: 0, len: 64 }]);
    assert_eq!(machine.memory.read(BUFFERS + 0x800, 64), bytes);
}

#[test]
fn descriptors_may_be_empty() {
    // Even where there is no memory: nobody goes there.
    let mut machine = Machine::started();
    machine.memory.write(BUFFERS, b"0123456789abcdef");
    let chain = [
        readable(0, 0),
        ask(),
        writable(BUFFERS, 0),
        answer(),
        writable(1, 0),
    ];
    machine.post(0, &chain);
    machine.kick();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), [Used { head: 0, len: 16 }]);
    assert_eq!(machine.memory.read(BUFFERS + 64, 16), b"0123456789abcdef");
}

#[test]
fn a_chain_may_be_readable_or_writable_only() {
    let mut machine = Machine::started();
    for chain in [[ask()], [answer()], [readable(BUFFERS, 0)]] {
        machine.post(0, &chain);
        machine.kick();
        machine.event_loop.run();
        assert_eq!(machine.take_used(), [Used { head: 0, len: 0 }]);
    }
}

#[test]
fn a_table_is_read_although_it_was_not_agreed_on() {
    // As QEMU and the kernel do.
    let features = crate::machine::FEATURES & !crate::front_end::feature::INDIRECT_DESC;
    let mut machine = Machine::started_with(features);
    machine.post_indirect(0, &[ask(), answer()]);
    machine.kick();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), [Used { head: 0, len: 16 }]);
}
