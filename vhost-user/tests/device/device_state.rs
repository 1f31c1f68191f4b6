//! The device's state through a pipe: saved and loaded while the loop goes on, and told to the front-end
//! if it fails.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::pipe2;
use vhost_user::Source;

use crate::front_end::{Refused, feature, protocol_feature, request};
use crate::handler::Echo;
use crate::machine::{FEATURES, Machine, PROTOCOL_FEATURES, config, u32s, u64s};
use crate::random::Random;

const SAVE: u32 = 0;
const LOAD: u32 = 1;
/// Much longer than a pipe.
const LONG: usize = 1 << 20;

fn pipe() -> (File, OwnedFd) {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
    (read.into(), write)
}

/// A machine whose ring does not run, with a state.
fn machine(state: &[u8]) -> Machine {
    let mut machine = Machine::new();
    machine.handler.migrates.set(true);
    machine.handler.limit.set(LONG);
    machine.handler.state.replace(state.to_vec());
    machine.negotiate(FEATURES);
    machine
}

fn state() -> Vec<u8> {
    Random(0x1234_5678).bytes(LONG as u64 - 1)
}

impl Machine {
    fn transfer(&mut self, direction: u32, fd: impl AsFd) -> Result<(), Refused> {
        let payload = u32s(&[direction, 0]);
        match &self.ask_with(request::SET_DEVICE_STATE_FD, &payload, fd.as_fd())[..] {
            // Success, and no descriptor of the back-end's own.
            [0, 1, 0, 0, 0, 0, 0, 0] => Ok(()),
            [1, 1, 0, 0, 0, 0, 0, 0] => Err(Refused),
            other => panic!("{other:?}"),
        }
    }

    fn check(&mut self) -> Result<(), Refused> {
        match self.ask_u64(request::CHECK_DEVICE_STATE) {
            0 => Ok(()),
            _ => Err(Refused),
        }
    }

    /// Saves the state as QEMU does: reads until the end, then asks.
    fn save(&mut self) -> Vec<u8> {
        let (mut from, to) = pipe();
        self.transfer(SAVE, to).unwrap();
        let mut state = Vec::new();
        let mut piece = [0; 5000];
        loop {
            self.event_loop.turn();
            match from.read(&mut piece).unwrap() {
                0 => break,
                count => state.extend_from_slice(&piece[..count]),
            }
        }
        self.check().unwrap();
        state
    }

    /// Loads a state, as far as the back-end takes it.
    fn load(&mut self, state: &[u8]) -> Result<(), Refused> {
        let (from, to) = pipe();
        self.transfer(LOAD, from)?;
        let mut to = File::from(to);
        for piece in state.chunks(5000) {
            match to.write_all(piece) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
                Err(error) => panic!("{error}"),
            }
            self.event_loop.turn();
        }
        drop(to);
        self.check()
    }
}

#[test]
fn migration_is_offered_if_the_handler_has_a_state() {
    let mut machine = Machine::new();
    let migration = protocol_feature::LOG_SHMFD | protocol_feature::DEVICE_STATE;
    let both = |machine: &mut Machine| {
        let features = machine.ask_u64(request::GET_FEATURES);
        (features, machine.ask_u64(request::GET_PROTOCOL_FEATURES))
    };
    let all = (FEATURES | feature::LOG_ALL, PROTOCOL_FEATURES);
    assert_eq!(both(&mut machine), all);
    machine.handler.migrates.set(false);
    assert_eq!(
        both(&mut machine),
        (FEATURES, PROTOCOL_FEATURES & !migration)
    );
}

#[test]
fn a_state_is_not_for_whoever_has_not_agreed_on_it() {
    let mut machine = machine(&[]);
    let features = u64s(&[PROTOCOL_FEATURES & !protocol_feature::DEVICE_STATE]);
    machine
        .set(request::SET_PROTOCOL_FEATURES, &features, &[])
        .unwrap();
    let (from, to) = pipe();
    assert_eq!(machine.transfer(SAVE, to), Err(Refused));
    assert_eq!(machine.transfer(LOAD, from), Err(Refused));
    assert_eq!(machine.check(), Err(Refused));
}

#[test]
fn a_state_goes_from_one_device_to_another() {
    for state in [&[][..], b"short", &state()] {
        let mut source = machine(state);
        source.set_mem_table().unwrap();
        source.start(0);
        source.exercise();
        source.stop();
        assert_eq!(source.save(), state);
        let mut destination = machine(b"old");
        destination.load(state).unwrap();
        assert_eq!(*destination.handler.state.borrow(), state);
        // What follows changes nothing.
        destination.set_mem_table().unwrap();
        destination.start(0);
        destination.exercise();
        assert_eq!(destination.handler.resets.get(), 0);
        assert_eq!(*destination.handler.state.borrow(), state);
        // The source may go on.
        source.start(3);
        source.exercise();
        assert_eq!(source.stop(), 6);
        assert_eq!(source.save(), state);
        assert_eq!(source.handler.resets.get(), 0);
    }
}

#[test]
fn what_the_source_has_not_taken_is_taken_whatever_the_front_end_says() {
    for loaded in [true, false] {
        let mut machine = machine(b"old");
        machine.set_mem_table().unwrap();
        machine.ring.set_avail_idx(&machine.memory, 65_535);
        machine.ring.set_used_idx(&machine.memory, 65_535);
        for head in [4, 2] {
            machine.post_echo(head, b"hello");
        }
        if loaded {
            machine.load(b"new").unwrap();
        }
        // The next one that the driver makes.
        machine.start(1);
        let heads = if loaded { &[4, 2][..] } else { &[] };
        assert_eq!(machine.used_heads(), heads);
        machine.exercise();
        // Later the front-end knows.
        let base = machine.stop();
        assert_eq!(base, 4);
        machine.post_echo(4, b"skipped");
        machine.start(5);
        assert!(machine.used_heads().is_empty());
    }
}

#[test]
fn a_state_may_be_in_a_regular_file() {
    let state = state();
    let mut file = File::from(memfd_create("state", MFdFlags::MFD_CLOEXEC).unwrap());
    let mut source = machine(&state);
    source.transfer(SAVE, &file).unwrap();
    source.check().unwrap();
    let mut saved = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut saved).unwrap();
    assert!(saved == state);
    file.rewind().unwrap();
    let mut destination = machine(&[]);
    destination.transfer(LOAD, &file).unwrap();
    destination.check().unwrap();
    assert!(*destination.handler.state.borrow() == state);
}

#[test]
fn a_front_end_that_waits_blocks_nothing() {
    let mut source = machine(&state());
    let (from, to) = pipe();
    source.transfer(SAVE, to).unwrap();
    // It comes to rest, and answers.
    source.event_loop.run();
    source.ask_u64(request::GET_FEATURES);
    assert_eq!(source.event_loop.watches(), 2);
    source.set_mem_table().unwrap();
    source.start(0);
    source.exercise();
    source.stop();
    // Nobody has read it, and nobody will.
    assert_eq!(source.check(), Err(Refused));
    assert_eq!(source.event_loop.watches(), 1);
    drop(from);

    let mut destination = machine(b"old");
    let (from, to) = pipe();
    destination.transfer(LOAD, from).unwrap();
    let mut to = File::from(to);
    to.write_all(b"half").unwrap();
    destination.event_loop.run();
    assert_eq!(destination.check(), Err(Refused));
    assert_eq!(*destination.handler.state.borrow(), b"old");
    to.write_all(b"of it").unwrap_err();
}

#[test]
fn only_what_comes_before_the_question_or_the_start_counts() {
    let mut machine = machine(b"old");
    let (from, to) = pipe();
    machine.transfer(LOAD, from).unwrap();
    File::from(to).write_all(b"new").unwrap();
    // The question is handled first in this turn.
    machine.check().unwrap();
    assert_eq!(*machine.handler.state.borrow(), b"new");
    machine.check().unwrap();

    // The ring starts with it, even if nobody asks.
    // Once the ring runs, it is too late.
    let (from, to) = pipe();
    machine.transfer(LOAD, from).unwrap();
    let mut to = File::from(to);
    to.write_all(b"late").unwrap();
    machine.set_mem_table().unwrap();
    machine.start(0);
    machine.exercise();
    drop(to);
    machine.event_loop.run();
    assert_eq!(machine.check(), Err(Refused));
    assert_eq!(*machine.handler.state.borrow(), b"new");
}

#[test]
fn failures_are_told() {
    let mut machine = machine(b"old");
    assert_eq!(machine.check(), Err(Refused));
    // Longer than allowed, by one.
    machine.handler.limit.set(4999);
    assert_eq!(machine.load(&[1; 5000]), Err(Refused));
    assert_eq!(machine.load(&[1; 50_000]), Err(Refused));
    machine.load(&[1; 4999]).unwrap();
    machine.handler.limit.set(4998);
    let (_from, to) = pipe();
    assert_eq!(machine.transfer(SAVE, to), Err(Refused));
    assert_eq!(machine.check(), Err(Refused));
    // The handler cannot.
    machine.handler.limit.set(LONG);
    machine.handler.fails.set(true);
    assert_eq!(machine.load(b"new"), Err(Refused));
    let (_from, to) = pipe();
    assert_eq!(machine.transfer(SAVE, to), Err(Refused));
    machine.handler.fails.set(false);
    // The front-end has closed its end.
    let (from, to) = pipe();
    machine.transfer(SAVE, to).unwrap();
    drop(from);
    machine.event_loop.run();
    assert_eq!(machine.check(), Err(Refused));
    // The wrong end.
    let (from, _to) = pipe();
    machine.transfer(SAVE, from).unwrap();
    machine.event_loop.run();
    assert_eq!(machine.check(), Err(Refused));
    // Not while the ring runs.
    machine.set_mem_table().unwrap();
    machine.start(0);
    for direction in [SAVE, LOAD] {
        let (from, _to) = pipe();
        assert_eq!(machine.transfer(direction, from), Err(Refused));
    }
    machine.exercise();
    machine.stop();
    assert_eq!(machine.save(), [1; 4999]);
}

#[test]
fn the_last_transfer_counts() {
    let mut machine = machine(b"old");
    let (old, mut end) = {
        let (from, to) = pipe();
        (from, File::from(to))
    };
    machine.transfer(LOAD, old).unwrap();
    end.write_all(b"one").unwrap();
    machine.load(b"two").unwrap();
    end.write_all(b"more").unwrap_err();
    assert_eq!(*machine.handler.state.borrow(), b"two");
    let (from, to) = pipe();
    machine.transfer(LOAD, from).unwrap();
    machine.front_end.acknowledged = false;
    machine.front_end.send(request::RESET_DEVICE, &[], &[]);
    File::from(to).write_all(b"late").unwrap();
    assert_eq!(machine.event_loop.turn(), [Source::Control, Source::Load]);
    assert_eq!(machine.check(), Err(Refused));
    assert_eq!(*machine.handler.state.borrow(), b"two");
    let (from, _to) = pipe();
    machine.transfer(LOAD, from).unwrap();
    machine.event_loop.close();
}

#[test]
fn a_process_that_takes_over_knows_of_no_transfer() {
    let mut machine = machine(&state());
    let (from, to) = pipe();
    machine.transfer(SAVE, to).unwrap();
    machine.event_loop.run();
    machine.kill();
    machine.handler = Rc::new(Echo::default());
    machine.handler.migrates.set(true);
    let handler = machine.handler.clone();
    assert!(
        machine
            .event_loop
            .resume(&config(), handler, false)
            .unwrap()
    );
    assert_eq!(machine.check(), Err(Refused));
    drop(from);
}
