//! A thousand random requests, direct and indirect, held against a model; requests that lead out of
//! the guest's memory.

use std::collections::HashMap;

use crate::machine::{BUFFERS, FEATURES, MEMORY, MEMORY_SIZE, Machine, count};
use crate::random::Random;
use ring_driver::{Descriptor, Used, readable, writable};

/// Cuts a range into up to `most` descriptors.
fn cut(
    random: &mut Random,
    address: u64,
    len: u64,
    most: u64,
    kind: fn(u64, u32) -> Descriptor,
) -> Vec<Descriptor> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while (pieces.len() as u64) < most - 1 && at < len {
        let piece = random.below(len - at + 1);
        pieces.push(kind(address + at, piece as u32));
        at += piece;
    }
    pieces.push(kind(address + at, (len - at) as u32));
    pieces
}

/// What the model expects of a request.
struct Expected {
    question: Vec<u8>,
    room: u64,
    answer: u64,
}

/// Each request has eight heads and this much memory to itself.
const HEADS: u16 = 8;
const ROOM: u64 = 0x2000;

fn post(machine: &mut Machine, random: &mut Random, slot: u16) -> Expected {
    let head = slot * HEADS;
    let place = BUFFERS + u64::from(slot) * ROOM;
    let answer = place + ROOM / 2 + random.below(64);
    let len = random.below(ROOM / 2);
    let question = random.bytes(len);
    let room = random.below(ROOM / 2 - 64);
    machine.memory.write(place, &question);
    // What the device must not touch.
    machine.memory.write(answer, &vec![0xee; room as usize]);
    let indirect = random.below(2) == 0;
    let most = if indirect { 20 } else { 4 };
    let mut chain = cut(random, place, len, most, readable);
    chain.extend(cut(random, answer, room, most, writable));
    if indirect {
        machine.post_indirect(head, &chain);
    } else {
        machine.post(head, &chain);
    }
    Expected {
        question,
        room,
        answer,
    }
}

#[track_caller]
fn check(machine: &Machine, expected: &Expected, used: Used) {
    let len = expected.question.len().min(expected.room as usize);
    assert_eq!(used.len as usize, len);
    let found = machine.memory.read(expected.answer, expected.room as usize);
    assert!(found[..len] == expected.question[..len]);
    assert!(found[len..].iter().all(|&byte| byte == 0xee));
}

fn compare_with_model(features: u64, seed: u64) {
    let mut machine = Machine::started_with(features);
    let mut random = Random(seed);
    let mut under_way: HashMap<u16, Expected> = HashMap::new();
    let mut posted = 0;
    let mut answered = 0;
    while answered < 1000 {
        // Some are posted, the device takes its time over some of them, ...
        machine.handler.keep.set(random.below(2) == 0);
        for _ in 0..random.below(8) {
            let slot = random.below(16) as u16;
            if posted < 1000 && !under_way.contains_key(&(slot * HEADS)) {
                let expected = post(&mut machine, &mut random, slot);
                under_way.insert(slot * HEADS, expected);
                posted += 1;
            }
        }
        machine.kick();
        machine.event_loop.run();
        // ... and answers them in another order.
        if random.below(3) == 0 {
            machine.handler.kept.borrow_mut().reverse();
            machine.handler.answer();
            machine.event_loop.run();
        }
        for used in machine.take_used() {
            let expected = under_way.remove(&used.head).expect("answered once");
            check(&machine, &expected, used);
            answered += 1;
        }
    }
    assert_eq!(under_way.len(), 0);
    assert_eq!(machine.stop(), 1000);
}

#[test]
fn a_thousand_random_requests_are_answered_as_the_model_says() {
    compare_with_model(FEATURES, 0x9e37_79b9_7f4a_7c15);
}

#[test]
fn and_without_event_idx() {
    let features = FEATURES & !crate::front_end::feature::EVENT_IDX;
    compare_with_model(features, 0xdead_beef_cafe_f00d);
}

/// Addresses and lengths that are not all in memory.
const OUTSIDE: [(u64, u32); 7] = [
    (0x1000, 1),
    (1 << 62, 16),
    (BUFFERS, u32::MAX),
    (MEMORY - 1, 2),
    (MEMORY + MEMORY_SIZE - 1, 2),
    (u64::MAX - 1, 16),
    (u64::MAX, u32::MAX),
];

#[test]
fn a_buffer_outside_of_memory_costs_that_request_only() {
    let (question, answer) = (BUFFERS, BUFFERS + 0x400);
    for (address, len) in OUTSIDE {
        // Two bytes are there before it on either side, and what is behind it does not count.
        let requests = [
            (
                vec![
                    readable(question, 2),
                    readable(address, len),
                    readable(question + 2, 2),
                    writable(answer, 8),
                ],
                (2, true),
                (8, false),
            ),
            (
                vec![
                    readable(question, 4),
                    writable(answer, 2),
                    writable(address, len),
                    writable(answer + 2, 2),
                ],
                (4, false),
                (2, true),
            ),
            (
                vec![readable(address, len), writable(answer, 8)],
                (0, true),
                (8, false),
            ),
            (
                vec![readable(address, len), writable(address, len)],
                (0, true),
                (0, true),
            ),
        ];
        for (chain, readable, writable) in requests {
            for indirect in [false, true] {
                let mut machine = Machine::started();
                machine.exercise();
                machine.memory.write(question, b"abcd");
                machine.memory.write(answer, &[0xee; 8]);
                machine.handler.keep.set(true);
                match indirect {
                    true => machine.post_indirect(0, &chain),
                    false => machine.post(0, &chain),
                }
                machine.post_echo(40, b"hello");
                machine.kick();
                machine.event_loop.run();
                {
                    let kept = machine.handler.kept.borrow();
                    let (asked, room) = (kept[0].readable(), kept[0].writable());
                    assert_eq!((asked.len(), asked.is_cut()), readable, "{address:#x}");
                    assert_eq!((room.len(), room.is_cut()), writable, "{address:#x}");
                    assert!(!kept[1].readable().is_cut() && !kept[1].writable().is_cut());
                }
                machine.handler.answer();
                machine.event_loop.run();
                let len = readable.0.min(writable.0);
                let used = [(0, len as u32), (40, 5)].map(|(head, len)| Used { head, len });
                assert_eq!(machine.take_used(), used, "{address:#x}");
                let mut expected = [0xee; 8];
                expected[..len].copy_from_slice(&b"abcd"[..len]);
                assert_eq!(machine.memory.read(answer, 8), expected);
                assert_eq!(count(&machine.error), 0, "{address:#x}");
                // The next request in the same place is whole again.
                machine.handler.keep.set(false);
                machine.post_echo(0, b"whole");
                machine.kick();
                machine.event_loop.run();
                assert_eq!(machine.take_used(), [Used { head: 0, len: 5 }]);
            }
        }
    }
}
