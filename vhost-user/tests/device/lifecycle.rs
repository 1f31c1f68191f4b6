//! Start, stop, reset and the end: when the front-end has its answer, nothing is under way.

use std::os::unix::net::UnixStream;

use crate::event_loop::End;
use crate::front_end::{FrontEnd, feature, request};
use crate::machine::{FEATURES, Machine, count};
use ring_driver::{Used, readable};

#[test]
fn the_ring_goes_on_where_it_was_stopped() {
    let mut machine = Machine::started();
    machine.exercise();
    assert_eq!(machine.stop(), 3);
    machine.start(3);
    machine.exercise();
    machine.exercise();
    assert_eq!(machine.stop(), 9);
    assert_eq!(machine.stop(), 9);
}

#[test]
fn a_stopped_ring_starts_with_the_next_kick_descriptor_only() {
    let mut machine = Machine::started();
    machine.exercise();
    machine.stop();
    machine.post_echo(0, b"hello");
    machine.kick();
    machine.enable(true).unwrap();
    machine.set_up_ring(3).unwrap();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), []);
    machine.set_own_fds();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), [Used { head: 0, len: 5 }]);
}

#[test]
fn what_the_handler_does_not_take_stays_in_the_ring() {
    let mut machine = Machine::started();
    machine.exercise();
    machine.handler.full.set(true);
    machine.post_echo(0, b"hello");
    machine.kick();
    // Without spinning.
    machine.event_loop.run();
    assert_eq!(
        (machine.take_used(), machine.handler.handled.get()),
        (vec![], 3)
    );
    // Also for the one who starts the ring again.
    assert_eq!(machine.stop(), 3);
    machine.start(3);
    machine.event_loop.run();
    assert_eq!(machine.take_used(), []);
    // Without another kick.
    machine.handler.full.set(false);
    machine.event_loop.run();
    assert_eq!(machine.take_used(), [Used { head: 0, len: 5 }]);
}

#[test]
fn the_ring_goes_on_beyond_16_bits() {
    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    machine.set_mem_table().unwrap();
    machine.ring.set_avail_idx(&machine.memory, 65_534);
    machine.ring.set_used_idx(&machine.memory, 65_534);
    machine.start(65_534);
    machine.exercise();
    assert_eq!(machine.stop(), 1);
}

#[test]
fn a_ring_that_never_ran_stops_where_it_would_have_begun() {
    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    assert_eq!(machine.stop(), 0);
    machine.set_mem_table().unwrap();
    machine.set_up_ring(77).unwrap();
    assert_eq!(machine.stop(), 77);
}

/// A machine with three requests under way.
fn busy() -> Machine {
    let mut machine = Machine::started();
    machine.handler.keep.set(true);
    for head in [0, 2, 4] {
        machine.post_echo(head, b"hello");
    }
    machine.kick();
    machine.event_loop.run();
    assert_eq!(machine.handler.kept.borrow().len(), 3);
    assert_eq!(machine.take_used(), []);
    machine
}

/// Asserts that what was under way has been answered and announced, and that nothing follows.
#[track_caller]
fn assert_drained(machine: &mut Machine) {
    assert_eq!(machine.handler.drained.get(), 3);
    let used: Vec<u16> = machine.take_used().iter().map(|used| used.head).collect();
    assert_eq!(used, [0, 2, 4]);
    assert_eq!(count(&machine.call), 1);
    machine.post_echo(6, b"too late");
    machine.kick();
    let before = machine.memory.image();
    machine.event_loop.run();
    assert!(machine.memory.image() == before);
    assert_eq!(machine.handler.handled.get(), 3);
    assert_eq!(machine.handler.kept.borrow().len(), 0);
}

#[test]
fn stop_drains() {
    let mut machine = busy();
    assert_eq!(machine.stop(), 3);
    assert_drained(&mut machine);
    // The request that came too late is not lost.
    machine.handler.keep.set(false);
    machine.start(3);
    assert_eq!(machine.take_used(), [Used { head: 6, len: 8 }]);
}

#[test]
fn disable_drains() {
    let mut machine = busy();
    machine.enable(false).unwrap();
    // User-mode Linux stops a ring by this alone, with another message as a barrier.
    assert_drained(&mut machine);
    machine.ask_u64(request::GET_FEATURES);
    machine.handler.keep.set(false);
    machine.enable(true).unwrap();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), [Used { head: 6, len: 8 }]);
    machine.exercise();
    machine.enable(false).unwrap();
    machine.set_up_ring(7).unwrap();
    machine.enable(true).unwrap();
    machine.exercise();
}

#[test]
fn reset_drains_and_forgets() {
    let mut machine = busy();
    machine.set(request::RESET_DEVICE, &[], &[]).unwrap();
    assert_eq!(machine.handler.resets.get(), 1);
    assert_drained(&mut machine);
    machine.handler.keep.set(false);
    assert_eq!(machine.stop(), 0);
    // Not without having been put somewhere, ...
    machine.set_own_fds();
    machine.enable(true).unwrap();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), []);
    // ... nor without having been enabled.
    machine.set(request::RESET_DEVICE, &[], &[]).unwrap();
    machine.set_up_ring(4).unwrap();
    machine.set_own_fds();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), []);
    machine.negotiate(FEATURES);
    machine.enable(true).unwrap();
    machine.exercise();
}

#[test]
fn reset_owner_only_stops_the_ring() {
    // Deprecated: the specification has back-ends disable the rings, or ignore it.
    let mut machine = busy();
    machine.set(request::RESET_OWNER, &[], &[]).unwrap();
    assert_drained(&mut machine);
    assert_eq!(machine.handler.resets.get(), 0);
    machine.handler.keep.set(false);
    machine.set_own_fds();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), []);
    machine.enable(true).unwrap();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), [Used { head: 6, len: 8 }]);
}

#[test]
fn disconnect_drains_and_resets() {
    let mut machine = busy();
    machine.front_end = FrontEnd::new(UnixStream::pair().unwrap().0);
    machine.event_loop.turn();
    assert!(matches!(machine.event_loop.end(), Some(End::Disconnected)));
    assert_eq!(machine.handler.resets.get(), 1);
    assert_drained(&mut machine);
}

#[test]
fn drop_drains_and_resets() {
    let mut machine = busy();
    machine.event_loop.close();
    assert_eq!(machine.handler.resets.get(), 1);
    assert_drained(&mut machine);
}

#[test]
fn a_ring_without_protocol_features_starts_enabled() {
    let mut machine = Machine::started_with(FEATURES & !feature::PROTOCOL_FEATURES);
    machine.exercise();
    assert_eq!(machine.stop(), 3);
    machine.start(3);
    machine.exercise();
}

#[test]
fn a_ring_with_protocol_features_waits_to_be_enabled() {
    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    machine.set_mem_table().unwrap();
    machine.set_up_ring(0).unwrap();
    machine.set_own_fds();
    machine.post_echo(0, b"hello");
    machine.kick();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), []);
    machine.enable(true).unwrap();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), [Used { head: 0, len: 5 }]);
}

#[test]
fn a_request_that_is_dropped_is_given_back() {
    let mut machine = busy();
    machine.handler.kept.borrow_mut().clear();
    machine.event_loop.notify();
    let used: Vec<Used> = [0, 2, 4].map(|head| Used { head, len: 0 }).into();
    assert_eq!(machine.take_used(), used);
    assert_eq!(count(&machine.call), 1);
}

#[test]
fn answers_may_come_in_any_order() {
    let mut machine = busy();
    machine.handler.kept.borrow_mut().reverse();
    machine.handler.answer();
    machine.event_loop.notify();
    let heads: Vec<u16> = machine.take_used().iter().map(|used| used.head).collect();
    assert_eq!(heads, [4, 2, 0]);
    machine.handler.keep.set(false);
    machine.exercise();
}

/// A machine with so much to do that it comes back to it after other events.
fn flooded() -> Machine {
    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    machine.set_mem_table().unwrap();
    machine.ring.size = 1024;
    machine.start(0);
    machine.handler.keep.set(true);
    for head in 0..1000 {
        machine.post(head, &[readable(crate::machine::BUFFERS, 1)]);
    }
    machine.kick();
    machine
}

#[test]
fn a_long_queue_does_not_keep_other_events_waiting() {
    let mut machine = flooded();
    let turns = machine.event_loop.run();
    assert!(turns > 1);
    assert_eq!(machine.handler.handled.get(), 1000);
}

#[test]
fn a_ring_that_is_stopped_early_is_left_alone() {
    type Stop = fn(&mut Machine);
    let stops: [Stop; 3] = [
        |machine| machine.enable(false).unwrap(),
        |machine| machine.set(request::RESET_DEVICE, &[], &[]).unwrap(),
        |machine| {
            machine.stop();
        },
    ];
    for stop in stops {
        let mut machine = flooded();
        machine.event_loop.turn();
        let handled = machine.handler.handled.get();
        assert!((1..1000).contains(&handled));
        stop(&mut machine);
        let handled = machine.handler.handled.get();
        // Comes to rest.
        machine.event_loop.run();
        assert_eq!(machine.handler.handled.get(), handled);
    }
}
