//! A thousand random requests, direct and indirect, held against a model.

use std::collections::HashMap;

use crate::driver::{Descriptor, Used, readable, writable};
use crate::machine::{BUFFERS, FEATURES, Machine};
use crate::random::Random;

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
