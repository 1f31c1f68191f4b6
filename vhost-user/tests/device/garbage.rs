//! Random rings: whatever a driver writes, the device serves it or stops it.

use crate::front_end::request;
use crate::machine::{BUFFERS, MEMORY, MEMORY_SIZE, Machine, count};
use crate::random::Random;
use ring_driver::{INDIRECT, NEXT, WRITE};

/// A number that is more often than not near to what means something.
fn address(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => random.below(u64::MAX),
        1 => MEMORY + MEMORY_SIZE - random.below(64),
        2 => MEMORY + random.below(0x8000),
        _ => BUFFERS + 16 * random.below(64),
    }
}

/// Mostly one that there is.
fn index(random: &mut Random) -> u16 {
    match random.below(16) {
        0 => random.below(1 << 16) as u16,
        _ => random.below(128) as u16,
    }
}

fn descriptor(random: &mut Random) -> Vec<u8> {
    let len = match random.below(8) {
        0 => random.below(1 << 32) as u32,
        1 => 0,
        _ => 16 * random.below(40) as u32,
    };
    let flags = match random.below(8) {
        0 => random.below(1 << 16) as u16,
        1 | 2 => INDIRECT,
        3 | 4 => WRITE | NEXT,
        5 => WRITE,
        _ => NEXT,
    };
    let next = index(random);
    let mut bytes = address(random).to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

#[test]
fn random_rings_are_served_or_stopped() {
    let mut random = Random(0x0123_4567_89ab_cdef);
    let (mut served, mut stopped) = (0, 0);
    for _ in 0..2000 {
        let mut machine = Machine::started();
        // Nothing is done for what it asks: that may be gigabytes.
        machine.handler.keep.set(true);
        let table: Vec<u8> = (0..128).flat_map(|_| descriptor(&mut random)).collect();
        machine.memory.write(machine.ring.layout.table, &table);
        let tables: Vec<u8> = (0..128).flat_map(|_| descriptor(&mut random)).collect();
        machine.memory.write(BUFFERS, &tables);
        for _ in 0..random.below(4) {
            machine.ring.publish(&machine.memory, index(&mut random));
        }
        if random.below(16) == 0 {
            let index = random.below(1 << 16) as u16;
            machine.ring.set_avail_idx(&machine.memory, index);
        }
        machine.kick();
        machine.event_loop.run();
        served += machine.handler.kept.take().len();
        stopped += count(&machine.error);
        machine.ask_u64(request::GET_FEATURES);
        machine.stop();
    }
    assert!(served > 100 && stopped > 100, "{served} {stopped}");
}
