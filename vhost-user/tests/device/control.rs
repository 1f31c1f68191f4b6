//! Negotiation, the configuration space, and what is refused.

use std::io::Write;
use std::os::unix::net::UnixStream;

use crate::event_loop::End;
use crate::front_end::{FrontEnd, Refused, feature, protocol_feature, request};
use crate::guest_memory::Region;
use crate::machine::{
    CONFIG_SPACE, FEATURES, MAX_QUEUE_SIZE, Machine, PROTOCOL_FEATURES, config, u32s, u64s,
};

#[test]
fn exactly_what_is_implemented_is_offered() {
    let mut machine = Machine::new();
    let offered = machine.ask_u64(request::GET_FEATURES);
    assert_eq!(offered, FEATURES | feature::LOG_ALL);
    let offered = machine.ask_u64(request::GET_PROTOCOL_FEATURES);
    assert_eq!(offered, PROTOCOL_FEATURES);
}

#[test]
fn what_was_not_offered_is_refused() {
    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    let features = u64s(&[FEATURES | 1 << 5]);
    let refused = machine.set(request::SET_FEATURES, &features, &[]);
    assert_eq!(refused, Err(Refused));
    let features = u64s(&[PROTOCOL_FEATURES | protocol_feature::MQ]);
    let refused = machine.set(request::SET_PROTOCOL_FEATURES, &features, &[]);
    assert_eq!(refused, Err(Refused));
    machine.set_mem_table().unwrap();
    machine.start(0);
    machine.exercise();
}

#[test]
fn features_of_a_running_ring_do_not_change() {
    let mut machine = Machine::started();
    let same = u64s(&[FEATURES]);
    machine.set(request::SET_FEATURES, &same, &[]).unwrap();
    let other = u64s(&[FEATURES & !feature::EVENT_IDX]);
    let refused = machine.set(request::SET_FEATURES, &other, &[]);
    assert_eq!(refused, Err(Refused));
    machine.exercise();
}

fn config_of(machine: &mut Machine, offset: u32, size: u32) -> Vec<u8> {
    let payload = [u32s(&[offset, size, 0]), vec![0; size as usize]].concat();
    // As User-mode Linux does: it wants an acknowledgement for everything, but an answer here
    // whose flags do not speak of it.
    machine.front_end.send(request::GET_CONFIG, &payload, &[]);
    machine.event_loop.turn();
    let reply = machine.front_end.reply(request::GET_CONFIG).unwrap();
    assert_eq!(reply[..4], offset.to_ne_bytes());
    let len = u32::from_ne_bytes(reply[4..8].try_into().unwrap());
    assert_eq!(len as usize, reply.len() - 12);
    reply[12..].to_vec()
}

#[test]
fn any_range_of_the_configuration_space_can_be_read() {
    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    let len = CONFIG_SPACE.len();
    for offset in 0..len {
        for size in 1..=len - offset {
            let found = config_of(&mut machine, offset as u32, size as u32);
            assert_eq!(found, CONFIG_SPACE[offset..][..size]);
        }
    }
    // What QEMU reads when it was told of a larger space.
    let padded = [CONFIG_SPACE, &[0; 256][len..]].concat();
    assert_eq!(config_of(&mut machine, 0, 256), padded);
    assert_eq!(config_of(&mut machine, 255, 1), [0]);
}

#[test]
fn a_long_configuration_space_can_be_read_to_its_end() {
    let space: Vec<u8> = (0..=256).map(|n| n as u8).collect();
    let mut machine = Machine::with_config(&vhost_user::DeviceConfig {
        config_space: space.clone(),
        ..config()
    });
    machine.negotiate(FEATURES);
    assert_eq!(config_of(&mut machine, 0, 257), space);
    assert_eq!(config_of(&mut machine, 255, 2), space[255..]);
    assert_eq!(config_of(&mut machine, 256, 2), []);
}

#[test]
fn what_lies_beyond_the_configuration_space_has_no_bytes() {
    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    for (offset, size) in [(256, 1), (0, 257), (255, 2), (4000, 96)] {
        assert_eq!(config_of(&mut machine, offset, size), []);
    }
    assert_eq!(config_of(&mut machine, 0, 6), CONFIG_SPACE);
}

#[test]
fn the_configuration_space_cannot_be_written() {
    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    let payload = [u32s(&[0, 1, 0]), vec![7]].concat();
    // A guest may try as often as it likes.
    let lines = crate::log_lines::count(|| {
        for _ in 0..1000 {
            let refused = machine.set(request::SET_CONFIG, &payload, &[]);
            assert_eq!(refused, Err(Refused));
        }
    });
    assert!((1..=10).contains(&lines), "{lines} lines");
    assert_eq!(config_of(&mut machine, 0, 6), CONFIG_SPACE);
}

#[test]
fn ring_sizes_are_powers_of_two_in_range() {
    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    for size in [0, 3, 100, 129, 1025, 2048, 32_768, 65_536, 65_664, u32::MAX] {
        let refused = machine.set(request::SET_VRING_NUM, &u32s(&[0, size]), &[]);
        assert_eq!(refused, Err(Refused), "{size}");
    }
    machine.set_mem_table().unwrap();
    let mut base = 0;
    for exponent in 0..=MAX_QUEUE_SIZE.ilog2() {
        machine.ring.size = 1 << exponent;
        // A new ring begins with zeroes.
        machine.ring.avail_idx = 0;
        machine.ring.used_idx = 0;
        machine
            .memory
            .write(machine.ring.layout.table, &[0; 0x8000]);
        machine.start(0);
        if machine.ring.size >= 128 {
            machine.exercise();
        }
        base = machine.stop();
    }
    assert_eq!(base, 3);
}

#[test]
fn a_ring_whose_size_was_refused_does_not_start() {
    // Without acknowledgements the front-end believes that its size was taken.
    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    machine.front_end.acknowledged = false;
    machine.set_mem_table().unwrap();
    machine.ring.size = 100;
    machine.start(0);
    machine.enable(true).unwrap();
    machine.post_echo(0, b"hello");
    machine.kick();
    machine.event_loop.run();
    assert_eq!(machine.take_used(), []);
    machine.ring.size = 128;
    machine.ring.set_avail_idx(&machine.memory, 0);
    machine.start(0);
    machine.enable(true).unwrap();
    machine.exercise();
}

#[test]
fn there_is_no_second_ring() {
    let mut machine = Machine::started();
    for (request, payload) in [
        (request::SET_VRING_NUM, u32s(&[1, 128])),
        (request::SET_VRING_BASE, u32s(&[1, 0])),
        (request::SET_VRING_ENABLE, u32s(&[1, 0])),
        (
            request::SET_VRING_ADDR,
            [u32s(&[1, 0]), u64s(&[0; 4])].concat(),
        ),
        (request::SET_VRING_KICK, u64s(&[1 | 1 << 8])),
        (request::SET_VRING_CALL, u64s(&[1 | 1 << 8])),
        (request::SET_VRING_ERR, u64s(&[1 | 1 << 8])),
    ] {
        assert_eq!(machine.set(request, &payload, &[]), Err(Refused));
    }
    machine.exercise();
}

#[test]
fn a_running_ring_is_not_set_up_again() {
    let mut machine = Machine::started();
    machine.exercise();
    for (request, payload) in [
        (request::SET_VRING_NUM, u32s(&[0, 64])),
        (request::SET_VRING_BASE, u32s(&[0, 7])),
        (
            request::SET_VRING_ADDR,
            [u32s(&[0, 0]), u64s(&[64; 4])].concat(),
        ),
    ] {
        assert_eq!(machine.set(request, &payload, &[]), Err(Refused));
    }
    // As QEMU does when it switches its log on.
    machine.set_vring_addr().unwrap();
    machine.exercise();
    assert_eq!(machine.stop(), 6);
}

#[test]
fn a_ring_outside_of_memory_does_not_start() {
    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    machine.set_mem_table().unwrap();
    machine.set_up_ring(0).unwrap();
    let elsewhere = [u32s(&[0, 0]), u64s(&[0x1000; 4])].concat();
    machine
        .set(request::SET_VRING_ADDR, &elsewhere, &[])
        .unwrap();
    machine.set_own_fds();
    assert_eq!(machine.enable(true), Err(Refused));
    machine.event_loop.run();
    machine.set_vring_addr().unwrap();
    machine.enable(true).unwrap();
    machine.exercise();
}

#[test]
fn a_ring_that_ends_beyond_memory_does_not_start() {
    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    machine.set_mem_table().unwrap();
    machine.set_up_ring(0).unwrap();
    machine.set_own_fds();
    let place = machine.memory.user_address(crate::machine::MEMORY);
    let end = place + crate::machine::MEMORY_SIZE;
    for parts in [
        [end - 2032, place, place],
        [place, end - 1024, place],
        [place, place, end - 256],
    ] {
        let payload = [u32s(&[0, 0]), u64s(&parts), u64s(&[0])].concat();
        machine.set(request::SET_VRING_ADDR, &payload, &[]).unwrap();
        assert_eq!(machine.enable(true), Err(Refused), "{parts:x?}");
        machine.enable(false).unwrap();
    }
}

#[test]
fn a_ring_that_is_not_aligned_does_not_start() {
    let mut machine = Machine::new();
    machine.negotiate(FEATURES);
    // Aligned in the front-end and in the guest, not in the file; and all but in the guest.
    for (guest, user) in [(0x10_0001, 0x10_0001), (0x20_0001, 0x20_0000)] {
        let region = Region::new(guest, user, 0x1_0000);
        machine.memory.regions.push(region);
    }
    machine.set_mem_table().unwrap();
    machine.set_up_ring(0).unwrap();
    machine.set_own_fds();
    let place = machine.memory.user_address(crate::machine::MEMORY);
    for parts in [
        [0x10_0010, place, place],
        [place, 0x10_0010, place],
        [place, place, 0x10_0010],
        [0x20_0010, place, place],
        [place, 0x20_0010, place],
        [place, place, 0x20_0010],
    ] {
        let payload = [u32s(&[0, 0]), u64s(&parts), u64s(&[0])].concat();
        machine.set(request::SET_VRING_ADDR, &payload, &[]).unwrap();
        assert_eq!(machine.enable(true), Err(Refused), "{parts:x?}");
        machine.enable(false).unwrap();
    }
    machine.start(0);
    machine.exercise();
}

#[test]
fn a_request_that_cannot_be_answered_ends_the_connection() {
    // Better than a front-end that waits for ever.
    type Case = (u32, Vec<u8>);
    let cases: [Case; 4] = [
        (request::GET_VRING_BASE, u32s(&[1, 0])),
        (request::GET_QUEUE_NUM, vec![]),
        (
            request::GET_INFLIGHT_FD,
            [u64s(&[0; 2]), u32s(&[1 | 128 << 16])].concat(),
        ),
        (request::SET_LOG_BASE, u64s(&[4096, 0])),
    ];
    for (request, payload) in cases {
        let mut machine = Machine::started();
        // Some front-ends acknowledge what they know, not what they were offered.
        let all = u64s(&[PROTOCOL_FEATURES | protocol_feature::INFLIGHT_SHMFD]);
        let refused = machine.set(request::SET_PROTOCOL_FEATURES, &all, &[]);
        assert_eq!(refused, Err(Refused));
        machine.front_end.send(request, &payload, &[]);
        machine.event_loop.turn();
        assert!(
            matches!(machine.event_loop.end(), Some(End::Broken(_))),
            "{request}"
        );
    }
}

#[test]
fn malformed_messages_cost_the_connection_at_most() {
    for code in 0..=50 {
        for len in [0, 1, 4, 8, 12, 20, 40, 100, 4096] {
            for byte in [0, 1, 0xff] {
                let mut machine = Machine::started();
                machine.front_end.send(code, &vec![byte; len], &[]);
                machine.event_loop.run();
            }
        }
    }
}

#[test]
fn malformed_headers_end_the_connection() {
    for (request, flags, size) in [
        (request::GET_FEATURES, 0, 0),
        (request::GET_FEATURES, 2, 0),
        (request::GET_FEATURES, 1 | 4, 0),
        (request::GET_FEATURES, 0xfff1, 0),
        (request::GET_FEATURES, 1, 4097),
        (request::SET_FEATURES, 1, u32::MAX),
        (1000, 1, 0),
    ] {
        let mut machine = Machine::started();
        machine.front_end.send_raw(request, flags, size, &[], &[]);
        machine.event_loop.run();
        assert!(
            matches!(machine.event_loop.end(), Some(End::Broken(_))),
            "{request} {flags:#x} {size}"
        );
        assert_eq!(machine.handler.resets.get(), 1);
    }
}

/// A front-end that is gone, whatever it left behind.
#[test]
fn a_front_end_may_leave_at_any_time() {
    let gone = || FrontEnd::new(UnixStream::pair().unwrap().0);

    let mut machine = Machine::started();
    machine.front_end = gone();
    machine.event_loop.run();
    assert!(matches!(machine.event_loop.end(), Some(End::Disconnected)));

    // It has not read the answer: ECONNRESET.
    let mut machine = Machine::started();
    machine.front_end.send(request::GET_FEATURES, &[], &[]);
    machine.event_loop.turn();
    machine.front_end = gone();
    machine.event_loop.run();
    let end = machine.event_loop.end();
    assert!(matches!(end, Some(End::Disconnected)), "{end:?}");

    // It does not wait for the answer: EPIPE.
    let mut machine = Machine::started();
    machine.front_end.send(request::GET_FEATURES, &[], &[]);
    machine.front_end = gone();
    machine.event_loop.run();
    let end = machine.event_loop.end();
    assert!(matches!(end, Some(End::Disconnected)), "{end:?}");
}

#[test]
fn half_a_message_ends_the_connection() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let handler = std::rc::Rc::new(crate::handler::Echo::default());
    let mut event_loop = crate::event_loop::EventLoop::new(theirs, &config(), handler);
    ours.write_all(&u32s(&[request::SET_FEATURES, 1])).unwrap();
    drop(ours);
    event_loop.run();
    assert!(matches!(event_loop.end(), Some(End::Broken(_))));
}

#[test]
fn a_socket_that_does_not_block_is_made_to() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let handler = std::rc::Rc::new(crate::handler::Echo::default());
    let other = theirs.try_clone().unwrap();
    let _event_loop = crate::event_loop::EventLoop::new(theirs, &config(), handler);
    let flags = nix::fcntl::fcntl(&other, nix::fcntl::FcntlArg::F_GETFL).unwrap();
    assert_eq!(flags & nix::fcntl::OFlag::O_NONBLOCK.bits(), 0);
    drop(ours);
}

#[test]
fn a_device_of_no_queue_size_is_refused() {
    for max_queue_size in [0, 100, 65_535] {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let config = vhost_user::DeviceConfig {
            max_queue_size,
            ..config()
        };
        let handler = std::rc::Rc::new(crate::handler::Echo::default());
        assert!(crate::event_loop::EventLoop::try_new(theirs, &config, handler).is_err());
    }
}
