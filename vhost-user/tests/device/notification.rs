//! Kicks and calls: none is lost, none blocks, none is superfluous.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::fcntl::OFlag;
use nix::unistd::{pipe2, write};

use crate::front_end::{feature, request};
use crate::machine::{FEATURES, Machine, count, duplicate, eventfd};
use ring_driver::{NO_INTERRUPT, NO_NOTIFY};

#[test]
fn the_kick_may_be_replaced_while_the_ring_runs() {
    let mut machine = Machine::started();
    let watches = machine.event_loop.watches();
    let old = std::mem::replace(&mut machine.kick, eventfd());
    let new = duplicate(&machine.kick);
    machine
        .set_vring_fd(request::SET_VRING_KICK, Some(new.as_fd()))
        .unwrap();
    assert_eq!(machine.event_loop.watches(), watches);
    machine.exercise();
    old.write(1).unwrap();
    assert_eq!(machine.event_loop.turn(), []);
}

#[test]
fn a_kick_does_not_get_lost_with_the_descriptor_it_went_to() {
    let mut machine = Machine::started();
    machine.post_echo(0, b"hello");
    machine.kick();
    let new = eventfd();
    machine
        .set_vring_fd(request::SET_VRING_KICK, Some(new.as_fd()))
        .unwrap();
    machine.event_loop.run();
    assert_eq!(machine.take_used().len(), 1);
}

#[test]
fn kicks_may_come_through_pipes_and_sockets() {
    let mut machine = Machine::started();
    let (read, pipe) = pipe2(OFlag::O_CLOEXEC).unwrap();
    machine
        .set_vring_fd(request::SET_VRING_KICK, Some(read.as_fd()))
        .unwrap();
    for _ in 0..3 {
        machine.post_echo(0, b"hello");
        write(&pipe, &[1; 200]).unwrap();
        machine.event_loop.run();
        assert_eq!(machine.take_used().len(), 1);
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    machine
        .set_vring_fd(request::SET_VRING_KICK, Some(theirs.as_fd()))
        .unwrap();
    machine.post_echo(0, b"hello");
    write(&ours, &[1]).unwrap();
    machine.event_loop.run();
    assert_eq!(machine.take_used().len(), 1);
}

#[test]
fn a_kick_that_has_come_to_its_end_is_left_alone() {
    let mut machine = Machine::started();
    let (read, pipe) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut writers = [Some(pipe), Some(ours.into())];
    for (kick, writer) in [read, theirs.into()].iter().zip(&mut writers) {
        machine
            .set_vring_fd(request::SET_VRING_KICK, Some(kick.as_fd()))
            .unwrap();
        machine.post_echo(0, b"hello");
        write(writer.as_ref().unwrap(), &[1]).unwrap();
        *writer = None;
        // Comes to rest, although the descriptor is readable for ever.
        machine.event_loop.run();
        assert_eq!(machine.take_used().len(), 1);
    }
    let kick = duplicate(&machine.kick);
    machine
        .set_vring_fd(request::SET_VRING_KICK, Some(kick.as_fd()))
        .unwrap();
    machine.exercise();
    machine.stop();
}

#[test]
fn without_a_kick_the_ring_is_looked_at_all_the_same() {
    let mut machine = Machine::started();
    machine.set_vring_fd(request::SET_VRING_KICK, None).unwrap();
    for round in 1..=3 {
        machine.post_echo(0, b"hello");
        while machine.handler.handled.get() < round {
            machine.event_loop.turn_when_ready();
        }
        assert_eq!(machine.take_used().len(), 1);
    }
    let base = machine.stop();
    assert_eq!(base, 3);
    // Nobody looks any more.
    machine.event_loop.run();
    machine.start(base);
    machine.exercise();
}

#[test]
fn a_kick_that_cannot_be_watched_is_refused() {
    let mut machine = Machine::started();
    let file = std::fs::File::open("/dev/null").unwrap();
    let directory = std::fs::File::open("/").unwrap();
    for fd in [file.as_fd(), directory.as_fd()] {
        assert!(
            machine
                .set_vring_fd(request::SET_VRING_KICK, Some(fd))
                .is_err()
        );
    }
    machine.exercise();
}

#[test]
fn one_turn_calls_once() {
    let mut machine = Machine::started();
    for head in 0..50 {
        machine.post_echo(2 * head, b"hello");
    }
    machine.kick();
    machine.event_loop.turn();
    assert_eq!(machine.take_used().len(), 50);
    assert_eq!(count(&machine.call), 1);
    machine.event_loop.notify();
    assert_eq!(count(&machine.call), 0);
}

#[test]
fn a_driver_is_called_of_many_bytes_before_the_turn_ends() {
    const LENGTH: u32 = 48 * 1024;
    let mut machine = Machine::started_with(FEATURES & !feature::EVENT_IDX);
    for head in 0..7 {
        machine.post(
            head,
            &[ring_driver::readable(crate::machine::BUFFERS, LENGTH)],
        );
    }
    machine.kick();
    machine.event_loop.turn();
    assert_eq!(machine.take_used().len(), 7);
    // Of three, of another three, and of the last at the end of the turn.
    assert_eq!(count(&machine.call), 3);
}

#[test]
fn a_driver_without_event_idx_may_not_want_to_be_called() {
    let mut machine = Machine::started_with(FEATURES & !feature::EVENT_IDX);
    machine.ring.set_avail_flags(&machine.memory, NO_INTERRUPT);
    machine.exercise();
    assert_eq!(count(&machine.call), 0);
    machine.ring.set_avail_flags(&machine.memory, 0);
    machine.event_loop.notify();
    assert_eq!(count(&machine.call), 0);
    machine.exercise();
    assert_eq!(count(&machine.call), 3);
}

#[test]
fn a_driver_with_event_idx_is_called_when_it_wants_to_be() {
    let mut machine = Machine::started();
    let mut calls = Vec::new();
    for round in 0..12_u16 {
        if round % 4 == 0 {
            // Tell me of the fourth from here.
            machine.ring.set_used_event(&machine.memory, round + 3);
        }
        machine.post_echo(0, b"hello");
        machine.kick();
        machine.event_loop.turn();
        calls.push(count(&machine.call));
    }
    assert_eq!(calls, [0, 0, 0, 1].repeat(3));
}

#[test]
fn the_driver_is_asked_for_kicks_only_before_the_loop_sleeps() {
    let mut machine = Machine::started_with(FEATURES & !feature::EVENT_IDX);
    assert_eq!(machine.ring.used_flags(&machine.memory), 0);
    machine.exercise();
    assert_eq!(machine.ring.used_flags(&machine.memory), NO_NOTIFY);
    machine.event_loop.run();
    assert_eq!(machine.ring.used_flags(&machine.memory), 0);
    machine.stop();

    let mut machine = Machine::started();
    assert_eq!(machine.ring.avail_event(&machine.memory), 0);
    machine.exercise();
    machine.event_loop.run();
    assert_eq!(machine.ring.avail_event(&machine.memory), 3);
}

#[test]
fn a_request_without_a_kick_is_found_before_the_loop_sleeps() {
    for features in [FEATURES, FEATURES & !feature::EVENT_IDX] {
        let mut machine = Machine::started_with(features);
        machine.exercise();
        // As a driver that was not asked to kick does.
        machine.post_echo(0, b"hello");
        machine.event_loop.turn_when_ready();
        assert_eq!(machine.take_used().len(), 1);
    }
}

#[test]
fn the_driver_is_not_asked_for_kicks_while_there_is_more_to_do() {
    let mut machine = Machine::new();
    machine.negotiate(FEATURES & !feature::EVENT_IDX);
    machine.set_mem_table().unwrap();
    machine.ring.size = 1024;
    machine.start(0);
    for head in 0..1000 {
        machine.post(head, &[ring_driver::readable(crate::machine::BUFFERS, 1)]);
    }
    machine.kick();
    machine.event_loop.turn();
    assert_eq!(machine.ring.used_flags(&machine.memory), NO_NOTIFY);
    machine.event_loop.run();
    assert_eq!(machine.ring.used_flags(&machine.memory), 0);
}

#[test]
fn a_call_that_nobody_reads_blocks_nothing() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (read, pipe) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let features = FEATURES & !feature::EVENT_IDX;
    for (fd, mut reader) in [
        (theirs.into(), Box::new(ours) as Box<dyn Read>),
        (pipe, Box::new(std::fs::File::from(read))),
    ] {
        let mut machine = Machine::started_with(features);
        machine
            .set_vring_fd(request::SET_VRING_CALL, Some(fd.as_fd()))
            .unwrap();
        // More than a pipe of 64 KiB or the socket's buffer holds.
        for _ in 0..20_000 {
            machine.post_echo(0, b"");
            machine.kick();
            machine.event_loop.turn();
        }
        assert_eq!(machine.take_used().len(), 20_000);
        // The driver reads: what it finds tells it of everything.
        let mut bytes = [0; 8];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), 1);
    }
}

#[test]
fn a_call_that_nobody_can_read_breaks_nothing() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (read, pipe) = pipe2(OFlag::O_CLOEXEC).unwrap();
    drop((ours, read));
    for fd in [theirs.into(), pipe] {
        let mut machine = Machine::started();
        machine
            .set_vring_fd(request::SET_VRING_CALL, Some(fd.as_fd()))
            .unwrap();
        machine.exercise();
    }
}

#[test]
fn a_call_that_comes_late_tells_of_everything() {
    let mut machine = Machine::started();
    machine.set_vring_fd(request::SET_VRING_CALL, None).unwrap();
    machine.exercise();
    machine.event_loop.notify();
    machine.event_loop.notify();
    let call = duplicate(&machine.call);
    machine
        .set_vring_fd(request::SET_VRING_CALL, Some(call.as_fd()))
        .unwrap();
    assert_eq!(count(&machine.call), 1);
    machine.exercise();
}

#[test]
fn the_call_may_be_replaced_while_the_ring_runs() {
    let mut machine = Machine::started();
    machine.exercise();
    let old = std::mem::replace(&mut machine.call, eventfd());
    count(&old);
    let new = duplicate(&machine.call);
    machine
        .set_vring_fd(request::SET_VRING_CALL, Some(new.as_fd()))
        .unwrap();
    machine.ring.set_used_event(&machine.memory, 3);
    machine.exercise();
    assert_eq!((count(&old), count(&machine.call)), (0, 1));
}
