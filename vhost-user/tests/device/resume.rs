//! A process dies and another one goes on: the guest sees a pause and nothing else.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;
use nix::unistd::{pipe2, write};
use vhost_user::{Error, State};

use crate::event_loop::End;
use crate::front_end::{FrontEnd, feature, request};
use crate::guest_memory::Region;
use crate::handler::Echo;
use crate::machine::{BUFFERS, CONFIG_SPACE, FEATURES, Machine, config, count, u32s, u64s};
use crate::random::Random;
use crate::saved::{self, SavedState};
use ring_driver::{NO_INTERRUPT, Used, readable};

impl Machine {
    /// The process is killed: what it has not answered stays so.
    pub fn kill(&mut self) {
        self.event_loop.kill();
        self.handler
            .kept
            .take()
            .into_iter()
            .for_each(std::mem::forget);
    }

    /// Another process goes on, with a handler that keeps what it gets or answers it.
    pub fn resume(&mut self, keep: bool, faulty: bool) -> Result<bool, Error> {
        let before = std::mem::take(&mut self.handler);
        self.handler.room.set(before.room.get());
        self.handler.migrates.set(before.migrates.get());
        self.handler.keep.set(keep);
        let handler = self.handler.clone();
        self.event_loop.resume(&config(), handler, faulty)
    }

    #[track_caller]
    pub fn go_on(&mut self, keep: bool) {
        assert!(self.resume(keep, false).unwrap());
    }

    pub fn restart(&mut self, keep: bool) {
        self.kill();
        self.go_on(keep);
    }

    /// What the kept requests ask, in the order in which they came.
    pub fn kept(&self) -> Vec<Vec<u8>> {
        let kept = self.handler.kept.borrow();
        kept.iter()
            .map(|request| {
                let mut bytes = vec![0; request.readable().len()];
                request.readable().read_at(0, &mut bytes);
                bytes
            })
            .collect()
    }

    pub fn used_heads(&mut self) -> Vec<u16> {
        self.take_used().iter().map(|used| used.head).collect()
    }
}

/// A machine whose handler keeps the requests with these heads, which are their texts, too.
fn busy(heads: &[u16]) -> Machine {
    let mut machine = Machine::started();
    machine.handler.keep.set(true);
    for &head in heads {
        machine.post_echo(head, &[head as u8; 5]);
    }
    machine.kick();
    machine.event_loop.run();
    assert_eq!(machine.kept(), texts(heads));
    machine
}

fn texts(heads: &[u16]) -> Vec<Vec<u8>> {
    heads.iter().map(|&head| vec![head as u8; 5]).collect()
}

#[test]
fn a_state_without_a_connection_is_none() {
    let mut machine = Machine::started();
    machine.exercise();
    machine.event_loop.close();
    assert!(!machine.resume(false, true).unwrap());
    assert!(machine.event_loop.saved.descriptors().is_empty());
    machine.event_loop.saved = SavedState::new();
    assert!(!machine.resume(false, true).unwrap());
}

#[test]
fn memory_that_is_too_short_is_refused() {
    let memory = vm_memory::MmapRegion::new(State::SIZE - 1).unwrap();
    assert!(State::new(Rc::new(memory)).is_err());
}

#[test]
fn the_ring_goes_on() {
    let mut machine = Machine::started();
    machine.exercise();
    machine.restart(false);
    machine.exercise();
    machine.restart(false);
    machine.exercise();
    assert_eq!(machine.handler.resets.get(), 0);
    assert_eq!(machine.stop(), 9);
    machine.start(9);
    machine.exercise();
}

#[test]
fn the_connection_goes_on() {
    let mut machine = Machine::started();
    machine.restart(false);
    // What needs features that were agreed on before, and acknowledgements.
    let answer = machine.ask(
        request::GET_CONFIG,
        &[u32s(&[0, 16, 0]), vec![0; 16]].concat(),
    );
    assert_eq!(answer[12..][..CONFIG_SPACE.len()], *CONFIG_SPACE);
    let extra = Region::new(1 << 40, 1 << 40, 0x1000);
    machine.add_mem_reg(&extra).unwrap();
    machine.restart(false);
    machine.rem_mem_reg(&extra).unwrap();
    machine.rem_mem_reg(&extra).unwrap_err();
    machine.restart(false);
    machine.enable(false).unwrap();
    machine.restart(false);
    machine.enable(true).unwrap();
    machine.exercise();
    machine.restart(false);
    machine.set(request::RESET_DEVICE, &[], &[]).unwrap();
    machine.restart(false);
    assert_eq!(machine.stop(), 0);
}

#[test]
fn a_kill_after_any_message_changes_nothing() {
    for features in [FEATURES, FEATURES & !feature::PROTOCOL_FEATURES] {
        type Step = fn(&mut Machine);
        let steps: [Step; 9] = [
            |machine| machine.set_mem_table().unwrap(),
            |machine| {
                let size = u32s(&[0, machine.ring.size.into()]);
                machine.set(request::SET_VRING_NUM, &size, &[]).unwrap();
            },
            |machine| {
                let base = u32s(&[0, 65_534]);
                machine.set(request::SET_VRING_BASE, &base, &[]).unwrap();
            },
            |machine| machine.set_vring_addr().unwrap(),
            |machine| {
                let call = crate::machine::duplicate(&machine.call);
                machine
                    .set_vring_fd(request::SET_VRING_CALL, Some(call.as_fd()))
                    .unwrap();
            },
            |machine| {
                let error = crate::machine::duplicate(&machine.error);
                machine
                    .set_vring_fd(request::SET_VRING_ERR, Some(error.as_fd()))
                    .unwrap();
            },
            |machine| {
                let kick = crate::machine::duplicate(&machine.kick);
                machine
                    .set_vring_fd(request::SET_VRING_KICK, Some(kick.as_fd()))
                    .unwrap();
            },
            |machine| {
                if machine.front_end.acknowledged {
                    machine.enable(true).unwrap();
                }
            },
            |machine| {
                machine.ask_u64(request::GET_FEATURES);
            },
        ];
        for killed in 0..=steps.len() + 1 {
            let mut machine = Machine::new();
            machine.ring.set_avail_idx(&machine.memory, 65_534);
            machine.ring.set_used_idx(&machine.memory, 65_534);
            if killed == 0 {
                machine.restart(false);
            }
            machine.negotiate(features);
            if killed == 1 {
                machine.restart(false);
            }
            for (number, step) in steps.iter().enumerate() {
                step(&mut machine);
                if number + 2 == killed {
                    machine.restart(false);
                }
            }
            machine.exercise();
            assert_eq!(machine.stop(), 1, "killed after {killed}");
        }
    }
}

#[test]
fn what_was_in_flight_comes_again_in_order_and_is_answered_once() {
    let before = SystemTime::now();
    let mut machine = busy(&[4, 0, 2]);
    let after = SystemTime::now();
    machine.restart(true);
    // Without a kick.
    machine.event_loop.run();
    assert_eq!(machine.kept(), texts(&[4, 0, 2]));
    for resumed in machine.handler.resumed.take() {
        let resumed = resumed.expect("taken before");
        assert_eq!(resumed.faults, 0);
        let since = SystemTime::UNIX_EPOCH + resumed.since;
        // The clock is coarse.
        let tick = Duration::from_millis(20);
        assert!((before - tick..=after + tick).contains(&since));
    }
    machine.post_echo(6, &[6; 5]);
    machine.kick();
    machine.event_loop.run();
    assert_eq!(machine.handler.resumed.take(), [None]);
    // One is answered, but the driver does not see it when the process is killed.
    let request = machine.handler.kept.borrow_mut().remove(0);
    crate::handler::echo(request);
    assert_eq!(machine.take_used(), []);
    machine.restart(true);
    machine.event_loop.run();
    assert_eq!(machine.kept(), texts(&[4, 0, 2, 6]));
    // Two are answered, and the driver sees it.
    for _ in 0..2 {
        let request = machine.handler.kept.borrow_mut().remove(1);
        crate::handler::echo(request);
    }
    machine.event_loop.notify();
    assert_eq!(machine.used_heads(), [0, 2]);
    machine.restart(true);
    machine.event_loop.run();
    assert_eq!(machine.kept(), texts(&[4, 6]));
    machine.handler.answer();
    machine.event_loop.notify();
    assert_eq!(machine.used_heads(), [4, 6]);
    machine.restart(false);
    machine.exercise();
    assert_eq!(machine.handler.resumed.take(), [None; 3]);
    assert_eq!(machine.stop(), 7);
}

#[test]
fn a_kill_between_the_used_index_and_the_table_repeats_nothing() {
    let mut machine = busy(&[4, 0, 2, 6]);
    for _ in 0..3 {
        let request = machine.handler.kept.borrow_mut().remove(1);
        crate::handler::echo(request);
    }
    let image = machine.event_loop.saved.image();
    machine.event_loop.notify();
    for cleared in [&[][..], &[6], &[6, 2], &[6, 2, 0]] {
        machine.kill();
        machine.event_loop.saved.restore(&image);
        for &head in cleared {
            machine.event_loop.saved.set_entry(head, 0, &[0]);
        }
        machine.go_on(true);
        machine.event_loop.run();
        assert_eq!(machine.kept(), texts(&[4]), "{cleared:?} were cleared");
    }
    assert_eq!(machine.used_heads(), [0, 2, 6]);
    machine.handler.answer();
    machine.event_loop.notify();
    assert_eq!(machine.used_heads(), [4]);
    machine.handler.keep.set(false);
    machine.exercise();
}

#[test]
fn a_kill_in_the_middle_of_a_take_loses_nothing() {
    // The table does not say yet that it was taken.
    let mut machine = busy(&[4, 0]);
    machine.kill();
    machine.event_loop.saved.set_entry(0, 0, &[0]);
    machine.go_on(true);
    machine.event_loop.run();
    assert_eq!(machine.kept(), texts(&[4, 0]));
    let resumed = machine.handler.resumed.take();
    assert!(resumed[0].is_some() && resumed[1].is_none());
    machine.handler.answer();
    machine.event_loop.notify();
    assert_eq!(machine.used_heads(), [4, 0]);
}

#[test]
fn killed_at_random_each_request_is_answered_once() {
    let mut random = Random(0x1357_9bdf_0246_8ace);
    for round in 0..20 {
        let mut machine = Machine::started_with(match round % 2 {
            0 => FEATURES,
            _ => FEATURES & !feature::EVENT_IDX,
        });
        machine.handler.keep.set(true);
        let mut free: Vec<u16> = (0..64).map(|number| 2 * number).collect();
        let mut asked = vec![None; 128];
        let (mut posted, mut answered) = (0_u32, 0);
        let mut steps = 0;
        while steps < 300 || free.len() < 64 {
            steps += 1;
            match random.below(6) {
                0 | 1 if steps < 300 => {
                    for _ in 0..random.below(20) {
                        let Some(head) = free.pop() else { break };
                        machine.post_echo(head, &posted.to_le_bytes());
                        assert_eq!(asked[usize::from(head)].replace(posted), None);
                        posted += 1;
                    }
                    if random.below(2) == 0 {
                        machine.kick();
                    }
                }
                2 => {
                    let kept = machine.handler.kept.borrow().len() as u64;
                    for _ in 0..random.below(kept + 1) {
                        let mut kept = machine.handler.kept.borrow_mut();
                        let place = random.below(kept.len() as u64) as usize;
                        let request = kept.swap_remove(place);
                        drop(kept);
                        crate::handler::echo(request);
                    }
                }
                3 => {
                    machine.event_loop.turn();
                }
                4 => machine.event_loop.notify(),
                _ => machine.restart(true),
            }
            for Used { head, len } in machine.take_used() {
                let number = asked[usize::from(head)].take().expect("one answer");
                assert_eq!(len, 4);
                let (_, answer) = Machine::buffers(head);
                assert_eq!(machine.memory.read(answer, 4), u32::to_le_bytes(number));
                free.push(head);
                answered += 1;
            }
        }
        assert_eq!(posted, answered);
        assert_eq!(u32::from(machine.stop()), posted % 0x1_0000);
    }
}

#[test]
fn the_driver_is_notified_whether_it_wants_it_or_not() {
    for features in [FEATURES, FEATURES & !feature::EVENT_IDX] {
        let mut machine = Machine::started_with(features);
        machine.exercise();
        count(&machine.call);
        machine.ring.set_avail_flags(&machine.memory, NO_INTERRUPT);
        let far = machine.ring.used_idx.wrapping_add(100);
        machine.ring.set_used_event(&machine.memory, far);
        machine.restart(false);
        assert_eq!(count(&machine.call), 1);
        machine.event_loop.run();
        assert_eq!(count(&machine.call), 0);
    }
}

#[test]
fn a_kick_to_nobody_is_not_lost() {
    for features in [FEATURES, FEATURES & !feature::EVENT_IDX] {
        let mut machine = Machine::started_with(features);
        machine.exercise();
        machine.kill();
        machine.post_echo(0, b"hello");
        machine.kick();
        machine.go_on(false);
        machine.event_loop.run();
        assert_eq!(machine.take_used(), [Used { head: 0, len: 5 }]);
        // The process before was awake, and wanted no kicks.
        machine.post_echo(0, b"hello");
        machine.handler.full.set(true);
        machine.event_loop.turn();
        machine.restart(false);
        machine.event_loop.run();
        assert_eq!(machine.take_used(), [Used { head: 0, len: 5 }]);
        machine.exercise();
    }
}

#[test]
fn crashes_are_counted_for_what_was_under_way() {
    let mut machine = busy(&[4, 0]);
    let faults = |machine: &Machine| -> Vec<u8> {
        let resumed = machine.handler.resumed.take().into_iter();
        resumed.map(|resumed| resumed.unwrap().faults).collect()
    };
    for (faulty, expected) in [(true, 1), (false, 1), (true, 2), (true, 3)] {
        machine.kill();
        assert!(machine.resume(true, faulty).unwrap());
        machine.event_loop.run();
        assert_eq!(faults(&machine), [expected; 2]);
    }
    // A crash before they were taken again is not theirs.
    machine.restart(true);
    machine.kill();
    assert!(machine.resume(true, true).unwrap());
    machine.event_loop.run();
    assert_eq!(faults(&machine), [3, 3]);
    machine.handler.answer();
    machine.event_loop.notify();
    assert_eq!(machine.used_heads(), [4, 0]);
    machine.post_echo(4, b"again");
    machine.event_loop.run();
    machine.kill();
    assert!(machine.resume(true, true).unwrap());
    machine.event_loop.run();
    assert_eq!(faults(&machine), [1]);
}

#[test]
fn a_stop_answers_what_was_in_flight_before() {
    type Stop = fn(&mut Machine);
    let stops: [Stop; 4] = [
        |machine| assert_eq!(machine.stop(), 3),
        |machine| machine.enable(false).unwrap(),
        |machine| machine.set_mem_table().unwrap(),
        |machine| machine.event_loop.close(),
    ];
    for stop in stops {
        let mut machine = busy(&[4, 0, 2]);
        machine.restart(true);
        // Even if the handler takes no more.
        machine.handler.full.set(true);
        stop(&mut machine);
        assert_eq!(machine.handler.drained.get(), 3);
        machine.event_loop.notify();
        assert_eq!(machine.used_heads(), [4, 0, 2]);
    }
}

#[test]
fn a_stop_leaves_nothing_in_flight() {
    let mut machine = busy(&[4, 0, 2]);
    assert_eq!(machine.stop(), 3);
    assert_eq!(machine.used_heads(), [4, 0, 2]);
    machine.restart(true);
    machine.event_loop.run();
    assert_eq!(machine.handler.handled.get(), 0);
    machine.start(3);
    machine.restart(false);
    machine.exercise();
}

#[test]
fn a_message_that_was_being_handled_ends_the_connection() {
    let mut machine = busy(&[4, 0]);
    machine.kill();
    let saved = &machine.event_loop.saved;
    saved.set_word(saved::HANDLED, saved.word(saved::SEQUENCE));
    assert!(matches!(
        machine.resume(true, false),
        Err(Error::Interrupted)
    ));
    assert_eq!(machine.handler.handled.get(), 0);
}

#[test]
fn a_state_half_written_is_not_looked_at() {
    let mut machine = Machine::started();
    for at in 0..saved::FIXED + saved::REGION {
        machine.exercise();
        machine.kill();
        let saved = &machine.event_loop.saved;
        saved.set_word(saved.place(false, at), 0xdead_beef_dead_beef);
        machine.go_on(false);
    }
    machine.exercise();
}

#[test]
fn a_descriptor_that_is_named_twice_is_refused() {
    for (word, other) in [
        (saved::KICK, saved::CALL),
        (saved::CALL, saved::ERROR),
        (saved::FIXED + saved::REGION - 1, saved::KICK),
        (saved::SOCKET, saved::KICK),
    ] {
        let mut machine = Machine::started();
        machine.kill();
        let saved = &machine.event_loop.saved;
        saved.set_word(
            saved.place(true, word),
            saved.word(saved.place(true, other)),
        );
        assert!(machine.resume(true, false).is_err());
    }
}

#[test]
fn any_state_is_used_or_refused() {
    let mut random = Random(0x0fed_cba9_8765_4321);
    let (mut used, mut refused) = (0, 0);
    for _ in 0..500 {
        let mut machine = busy(&[4, 0]);
        machine.kill();
        let saved = &machine.event_loop.saved;
        for _ in 0..=random.below(3) {
            let at = match random.below(4) {
                0 => random.below(4),
                _ => saved.place(true, random.below(saved::FIXED + saved::REGION)),
            };
            let word = match random.below(4) {
                0 => random.below(u64::MAX),
                1 => u64::MAX,
                2 => saved.word(at) ^ 1 << random.below(64),
                _ => random.below(40),
            };
            saved.set_word(at, word);
        }
        match machine.resume(false, random.below(2) == 0) {
            Ok(true) => {
                used += 1;
                machine.event_loop.run();
            }
            Ok(false) => {}
            Err(_) => refused += 1,
        }
    }
    assert!(used > 50 && refused > 50, "{used} {refused}");
}

#[test]
fn a_spoilt_table_stops_the_ring_and_no_more() {
    type Spoil = fn(&SavedState);
    let spoils: [Spoil; 4] = [
        |saved| saved.set_header(8, &[2, 0]),
        |saved| saved.set_header(10, &[64, 0]),
        |saved| saved.set_header(14, &[100, 0]),
        |saved| saved.set_header(12, &[128, 0]),
    ];
    for (number, spoil) in spoils.into_iter().enumerate() {
        let mut machine = busy(&[4, 0]);
        let image = machine.event_loop.saved.image();
        let request = machine.handler.kept.borrow_mut().remove(0);
        crate::handler::echo(request);
        machine.event_loop.notify();
        machine.kill();
        machine.event_loop.saved.restore(&image);
        spoil(&machine.event_loop.saved);
        machine.go_on(false);
        machine.event_loop.run();
        assert_eq!(count(&machine.error), 1, "{number}");
        assert_eq!(machine.handler.handled.get(), 0);
        machine.ask_u64(request::GET_FEATURES);
        machine.stop();
        machine.start(2);
        assert_eq!(machine.used_heads(), [4]);
        machine.exercise();
    }
}

#[test]
fn a_request_that_is_spoilt_meanwhile_stops_the_ring() {
    let mut machine = busy(&[4, 0]);
    machine.kill();
    machine
        .ring
        .describe(&machine.memory, 0, &[readable(BUFFERS, 4).then(0)]);
    machine.go_on(true);
    machine.event_loop.run();
    assert_eq!(count(&machine.error), 1);
    assert_eq!(machine.kept(), texts(&[4]));
    machine.stop();
}

#[test]
fn a_ring_that_has_failed_stays_so() {
    let mut machine = Machine::started();
    machine.exercise();
    machine.post(0, &[readable(BUFFERS, 4).then(0)]);
    machine.kick();
    machine.event_loop.run();
    assert_eq!(count(&machine.error), 1);
    machine.restart(false);
    machine.post_echo(0, b"hello");
    machine.kick();
    machine.event_loop.run();
    assert_eq!(
        (machine.handler.handled.get(), count(&machine.error)),
        (0, 0)
    );
    assert_eq!(machine.event_loop.watches(), 1);
    assert_eq!(machine.stop(), 3);
    machine.start(4);
    assert_eq!(machine.take_used(), [Used { head: 0, len: 5 }]);
}

#[test]
fn kicks_may_come_from_a_timer_or_a_pipe() {
    let mut machine = Machine::started();
    machine.set_vring_fd(request::SET_VRING_KICK, None).unwrap();
    machine.restart(false);
    machine.post_echo(0, b"hello");
    while machine.ring.used_idx == 0 {
        machine.event_loop.turn_when_ready();
        machine.take_used();
    }
    let (read, pipe) = pipe2(OFlag::O_CLOEXEC).unwrap();
    machine
        .set_vring_fd(request::SET_VRING_KICK, Some(read.as_fd()))
        .unwrap();
    machine.restart(false);
    machine.event_loop.run();
    machine.post_echo(0, b"hello");
    write(&pipe, &[1]).unwrap();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), [Used { head: 0, len: 5 }]);
}

#[test]
fn a_device_that_lacks_a_feature_refuses() {
    let mut machine = Machine::started();
    machine.kill();
    let other = vhost_user::DeviceConfig {
        features: 0,
        ..config()
    };
    let handler = Rc::new(Echo::default());
    handler.migrates.set(true);
    assert!(machine.event_loop.resume(&other, handler, false).is_err());
}

#[test]
fn the_front_end_may_leave_afterwards() {
    let mut machine = busy(&[4]);
    machine.restart(true);
    let reply = machine.ask_u64(request::GET_PROTOCOL_FEATURES);
    machine
        .set(request::SET_PROTOCOL_FEATURES, &u64s(&[reply]), &[])
        .unwrap();
    machine.front_end = FrontEnd::new(UnixStream::pair().unwrap().0);
    machine.event_loop.run();
    assert!(matches!(machine.event_loop.end(), Some(End::Disconnected)));
    assert_eq!(machine.handler.resets.get(), 1);
    assert_eq!(machine.used_heads(), [4]);
    assert!(!machine.resume(false, false).unwrap());
}
