//! The memory table: what is taken, what is refused, and what happens to requests meanwhile.

use std::fs::File;
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::event_loop::End;
use crate::front_end::{Refused, request};
use crate::guest_memory::Region;
use crate::machine::{
    BUFFERS, FEATURES, MEMORY, MEMORY_SIZE, Machine, count, duplicate, eventfd, u32s,
};
use ring_driver::{Used, readable, writable};

/// A place for regions that nothing else is near to.
const ELSEWHERE: u64 = 0x10_0000_0000;
const USER_ELSEWHERE: u64 = 0x6000_0000_0000;

fn region_elsewhere(index: u64, size: u64) -> Region {
    Region::new(
        ELSEWHERE + index * 0x10_0000,
        USER_ELSEWHERE + index * 0x10_0000,
        size,
    )
}

/// The memory moves into another file, at another place in the front-end.
fn move_memory(machine: &mut Machine) {
    let image = machine.memory.read(MEMORY, MEMORY_SIZE as usize);
    machine.memory.regions[0] = Region::new(MEMORY, USER_ELSEWHERE, MEMORY_SIZE);
    machine.memory.write(MEMORY, &image);
}

#[test]
fn the_table_may_be_sent_again_while_the_ring_runs() {
    let mut machine = Machine::started();
    machine.exercise();
    machine.set_mem_table().unwrap();
    machine.exercise();
    assert_eq!(machine.handler.handled.get(), 6);
    assert_eq!(machine.stop(), 6);
}

#[test]
fn memory_that_takes_the_ring_away_stops_it_until_it_comes_back() {
    let mut machine = Machine::started();
    machine.exercise();
    // The front-end has it elsewhere now, where the ring's addresses do not lead.
    let old = machine.memory.regions.pop().unwrap();
    machine
        .memory
        .regions
        .push(Region::new(MEMORY, USER_ELSEWHERE, MEMORY_SIZE));
    assert_eq!(machine.set_mem_table(), Err(Refused));
    machine.memory.regions[0] = old;
    machine.post_echo(0, b"hello");
    machine.kick();
    let before = machine.memory.image();
    machine.event_loop.run();
    assert!(machine.memory.image() == before);
    machine.set_mem_table().unwrap();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), [Used { head: 0, len: 5 }]);
    machine.exercise();
}

#[test]
fn a_stopped_ring_may_move_with_its_memory() {
    let mut machine = Machine::started();
    machine.exercise();
    let base = machine.stop();
    move_memory(&mut machine);
    machine.set_mem_table().unwrap();
    machine.start(base);
    machine.exercise();
}

/// A machine with a request under way.
fn busy() -> Machine {
    let mut machine = Machine::started();
    machine.handler.keep.set(true);
    machine.post_echo(0, b"hello");
    machine.kick();
    machine.event_loop.run();
    assert_eq!(machine.handler.kept.borrow().len(), 1);
    machine
}

#[test]
fn a_new_table_waits_for_what_is_under_way() {
    let mut machine = busy();
    machine.set_mem_table().unwrap();
    assert_eq!(machine.handler.drained.get(), 1);
    assert_eq!(machine.take_used(), [Used { head: 0, len: 5 }]);
    let (_, answer) = Machine::buffers(0);
    assert_eq!(machine.memory.read(answer, 5), b"hello");
    // The driver is told, too.
    assert_eq!(count(&machine.call), 1);
    machine.handler.keep.set(false);
    machine.exercise();
}

#[test]
fn what_is_under_way_is_announced_before_its_memory_goes() {
    let mut machine = busy();
    let other = Region::new(ELSEWHERE, USER_ELSEWHERE, 0x1000);
    let old = std::mem::replace(&mut machine.memory.regions[0], other);
    assert_eq!(machine.set_mem_table(), Err(Refused));
    assert_eq!((count(&machine.call), count(&machine.error)), (1, 0));
    machine.memory.regions[0] = old;
    assert_eq!(machine.take_used(), [Used { head: 0, len: 5 }]);
}

#[test]
fn memory_that_is_taken_away_waits_for_what_is_under_way() {
    let mut machine = busy();
    let more = region_elsewhere(0, 0x1000);
    machine.add_mem_reg(&more).unwrap();
    assert_eq!(machine.handler.drained.get(), 0);
    machine.rem_mem_reg(&more).unwrap();
    assert_eq!(machine.handler.drained.get(), 1);
    assert_eq!(machine.take_used(), [Used { head: 0, len: 5 }]);
    assert_eq!(count(&machine.call), 1);
    machine.handler.keep.set(false);
    machine.exercise();
}

#[test]
fn memory_may_come_and_go_while_the_ring_runs() {
    let mut machine = Machine::started();
    for index in 0..3 {
        machine.exercise();
        let more = region_elsewhere(index, 0x1000);
        machine.add_mem_reg(&more).unwrap();
        let place = more.guest;
        machine.memory.regions.push(more);
        machine.memory.write(place, b"far");
        machine.post(0, &[readable(place, 3), writable(place + 0x800, 3)]);
        machine.kick();
        machine.event_loop.turn();
        assert_eq!(machine.take_used(), [Used { head: 0, len: 3 }]);
        assert_eq!(machine.memory.read(place + 0x800, 3), b"far");
        let more = machine.memory.regions.pop().unwrap();
        machine.rem_mem_reg(&more).unwrap();
    }
    machine.exercise();
    // Memory that was there, but is no more.
    machine.post(0, &[readable(ELSEWHERE, 3), writable(BUFFERS, 3)]);
    machine.kick();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), [Used { head: 0, len: 0 }]);
    assert_eq!(count(&machine.error), 0);
    machine.exercise();
}

#[test]
fn regions_may_be_neighbours_in_the_front_end_and_not_in_the_guest() {
    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    machine.set_mem_table().unwrap();
    let user = machine.memory.user_address(MEMORY);
    let below = Region::new(MEMORY - 0x10_0000, user - 0x1000, 0x1000);
    machine.add_mem_reg(&below).unwrap();
    // The ring is at the very beginning of its region.
    machine.start(0);
    machine.exercise();
}

#[test]
fn the_ring_may_be_in_memory_that_is_added_later() {
    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    machine.set_up_ring(0).unwrap();
    machine.set_own_fds();
    assert_eq!(machine.enable(true), Err(Refused));
    machine.add_mem_reg(&region_elsewhere(0, 0x1000)).unwrap();
    let region = machine.memory.regions.remove(0);
    machine.add_mem_reg(&region).unwrap();
    machine.memory.regions.push(region);
    machine.exercise();
}

#[test]
fn as_many_regions_are_taken_as_are_promised() {
    let mut machine = Machine::started();
    let slots = machine.ask_u64(request::GET_MAX_MEM_SLOTS);
    assert_eq!(slots, 509);
    let one = region_elsewhere(0, 0x1000);
    let region = |index: u64| Region {
        guest: ELSEWHERE + index * 0x2000,
        user: USER_ELSEWHERE + index * 0x2000,
        file: one.file.try_clone().unwrap(),
        ..one
    };
    for index in 1..slots {
        machine.add_mem_reg(&region(index)).unwrap();
    }
    assert_eq!(machine.add_mem_reg(&region(slots)), Err(Refused));
    machine.exercise();
    for index in 1..slots {
        machine.rem_mem_reg(&region(index)).unwrap();
    }
    assert_eq!(machine.rem_mem_reg(&region(1)), Err(Refused));
    machine.exercise();
}

#[test]
fn a_buffer_may_cross_from_one_region_into_the_next() {
    let mut machine = Machine::started();
    // Next to each other in the guest, nowhere else.
    let regions = [0, 1, 2].map(|index| {
        Region::new(
            ELSEWHERE + index * 0x1000,
            USER_ELSEWHERE + index * 0x10_0000,
            0x1000,
        )
    });
    for region in regions {
        machine.add_mem_reg(&region).unwrap();
        machine.memory.regions.push(region);
    }
    let bytes: Vec<u8> = (0..0x1400).map(|n| (n % 251) as u8).collect();
    let place = ELSEWHERE + 0xe00;
    machine.memory.write(place, &bytes);
    machine.post(0, &[readable(place, 0x1400), writable(BUFFERS, 0x2000)]);
    machine.kick();
    machine.event_loop.turn();
    assert_eq!(
        machine.take_used(),
        [Used {
            head: 0,
            len: 0x1400
        }]
    );
    assert!(machine.memory.read(BUFFERS, 0x1400) == bytes);

    machine.memory.write(BUFFERS + 0x4000, &bytes);
    let (from, to) = (BUFFERS + 0x4000, ELSEWHERE + 0x800);
    machine.post(0, &[readable(from, 0x1400), writable(to, 0x1400)]);
    machine.kick();
    machine.event_loop.turn();
    assert_eq!(
        machine.take_used(),
        [Used {
            head: 0,
            len: 0x1400
        }]
    );
    assert!(machine.memory.read(to, 0x1400) == bytes);

    // Over the end of the last: nothing of such a buffer counts.
    machine.handler.keep.set(true);
    machine.post(0, &[readable(ELSEWHERE + 0xfff, 0x2002)]);
    machine.kick();
    machine.event_loop.turn();
    assert_eq!(count(&machine.error), 0);
    let kept = machine.handler.kept.take();
    let readable = kept[0].readable();
    assert_eq!((readable.len(), readable.is_cut()), (0, true));
}

#[test]
fn regions_that_are_longer_than_their_files_are_refused() {
    // To touch what lies behind the end of a file would end the process.
    let mut machine = Machine::started();
    for missing in [1, 0x1000, 0x2000] {
        let short = region_elsewhere(0, 0x2000);
        let len = short.file.metadata().unwrap().len();
        short.file.set_len(len - missing).unwrap();
        assert_eq!(machine.add_mem_reg(&short), Err(Refused), "{missing}");
    }
    machine.exercise();

    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    machine.memory.regions[0].file.set_len(0x2000).unwrap();
    assert_eq!(machine.set_mem_table(), Err(Refused));
}

#[test]
fn regions_that_overlap_are_refused() {
    let mut machine = Machine::started();
    let user = machine.memory.user_address(MEMORY);
    let end = MEMORY + MEMORY_SIZE;
    for (guest, at) in [
        (MEMORY, USER_ELSEWHERE),
        (MEMORY - 0x1000, USER_ELSEWHERE),
        (end - 0x1000, USER_ELSEWHERE),
        (ELSEWHERE, user),
        (ELSEWHERE, user - 0x1000),
        (ELSEWHERE, user + MEMORY_SIZE - 0x1000),
    ] {
        let region = Region::new(guest, at, 0x2000);
        assert_eq!(
            machine.add_mem_reg(&region),
            Err(Refused),
            "{guest:#x} {at:#x}"
        );
        machine.memory.regions.push(region);
        assert_eq!(machine.set_mem_table(), Err(Refused), "{guest:#x} {at:#x}");
        machine.memory.regions.pop();
    }
    machine.exercise();
    // Next to each other is fine.
    for (guest, at) in [(end, user + MEMORY_SIZE), (MEMORY - 0x2000, user - 0x2000)] {
        machine
            .add_mem_reg(&Region::new(guest, at, 0x2000))
            .unwrap();
    }
    machine.exercise();
}

#[test]
fn regions_that_wrap_around_or_have_no_size_are_refused() {
    let regions = [
        Region::new(u64::MAX - 0xfff, USER_ELSEWHERE, 0x2000),
        Region::new(ELSEWHERE, u64::MAX - 0xfff, 0x2000),
        Region {
            offset: u64::MAX - 0xfff,
            ..region_elsewhere(0, 0x2000)
        },
        Region {
            size: 0,
            ..region_elsewhere(0, 0x2000)
        },
    ];
    for region in regions {
        let mut machine = Machine::started();
        assert_eq!(machine.add_mem_reg(&region), Err(Refused));
        machine.exercise();
        // Malformed, in the eyes of the crate that reads the messages.
        let payload = [u32s(&[1, 0]), region.to_bytes()].concat();
        machine
            .front_end
            .send(request::SET_MEM_TABLE, &payload, &[region.file.as_fd()]);
        machine.event_loop.run();
        let end = machine.event_loop.end();
        assert!(matches!(end, Some(End::Broken(_))), "{end:?}");
    }
}

#[test]
fn what_is_not_memory_is_refused() {
    let sealed = region_elsewhere(0, 0x1000);
    let flags = MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_CLOEXEC;
    let file = File::from(memfd_create("sealed", flags).unwrap());
    file.set_len(0x2000).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap();
    let sealed = Region { file, ..sealed };
    let with_file = |file: File| Region {
        file,
        ..region_elsewhere(0, 0x1000)
    };
    let (pipe, _writer) = nix::unistd::pipe().unwrap();
    let mut machine = Machine::started();
    for region in [
        sealed,
        with_file(File::open("/").unwrap()),
        with_file(pipe.into()),
        with_file(duplicate(&eventfd()).into()),
        with_file(File::open("/proc/self/maps").unwrap()),
        // Not on a page.
        Region {
            offset: 0x10,
            ..region_elsewhere(0, 0x1000)
        },
    ] {
        assert_eq!(machine.add_mem_reg(&region), Err(Refused));
    }
    machine.exercise();
}
