//! The front-end's messages, with descriptors, in any order: the connection may end, no more.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use arbitrary::{Result, Unstructured};
use nix::fcntl::OFlag;
use ring_driver::{Layout, Ring, readable, writable};
use vhost_user::{DeviceConfig, Handler, Migration, Request};

use crate::machine::{
    BUFFERS, GUEST, INDIRECT_DESC, MEMORY_SIZE, Machine, RING, RING_SIZE, USER, VERSION_1, eventfd,
    memory, open_descriptors, request, u32s, u64s,
};

/// Keeps every other request until it has to let go.
#[derive(Default)]
struct Keeper(RefCell<Vec<Request>>);

impl Handler for Keeper {
    fn handle(&self, request: Request) {
        let mut kept = self.0.borrow_mut();
        request.writable().write_at(7, b"some bytes");
        if kept.len() % 2 == 0 {
            kept.push(request);
        }
    }

    fn room(&self) -> Option<usize> {
        Some(100)
    }

    fn migration(&self) -> Option<&dyn Migration> {
        Some(self)
    }

    fn drain(&self) {
        self.0.borrow_mut().clear();
    }

    fn reset(&self) {
        assert!(self.0.borrow().is_empty(), "drained before it is reset");
    }
}

impl Migration for Keeper {
    fn limit(&self) -> usize {
        0x8000
    }

    fn save(&self, into: &mut dyn Write) -> io::Result<()> {
        into.write_all(&[1; 0x8000])
    }

    fn load(&self, from: &mut dyn Read) -> io::Result<()> {
        let mut state = Vec::new();
        let length = from.read_to_end(&mut state)?;
        assert!(length <= self.limit());
        Ok(())
    }
}

/// A list of messages, from a front-end that means well or not.
pub fn control(bytes: &[u8]) {
    let before = open_descriptors();
    let config = DeviceConfig {
        features: 1,
        config_space: b"\x04\x00host".to_vec(),
        config_head: 2,
        max_queue_size: 1024,
    };
    let mut machine = Machine::new(&config, Rc::new(Keeper::default()));
    // Ends with the input.
    let _ = messages(&mut machine, &mut Unstructured::new(bytes));
    machine.hang_up();
    machine.run();
    assert!(!machine.is_connected(), "a front-end has left");
    drop(machine);
    assert_eq!(open_descriptors(), before, "descriptors are left over");
}

fn messages(machine: &mut Machine, input: &mut Unstructured<'_>) -> Result<()> {
    while !input.is_empty() && machine.is_connected() {
        let choice: u8 = input.arbitrary()?;
        match choice {
            // What a front-end would say.
            0..64 => {
                let features = VERSION_1 | INDIRECT_DESC | flag(input)? << 29 | flag(input)? << 30;
                let step = usize::from(choice) % Machine::STEPS;
                machine.step(step, features, 0);
            }
            // A chain in the ring.
            64..80 => {
                let mut ring = Ring::new(RING_SIZE, RING);
                let chain = [
                    readable(GUEST + BUFFERS, 16).then(1),
                    writable(GUEST + BUFFERS, 0x2000),
                ];
                ring.describe(&machine.memory, 0, &chain);
                ring.set_avail_idx(&machine.memory, choice.into());
                machine.kick();
            }
            80..88 => {
                let bytes = input.arbitrary::<[u8; 12]>()?;
                machine.send_raw(&bytes, &[]);
                machine.hang_up();
            }
            88..112 => migration(machine, input, choice % 8)?,
            _ => message(machine, input, u32::from(choice) % 48)?,
        }
        machine.run();
    }
    Ok(())
}

/// What a front-end says that migrates its guest, or comes back after a crash.
fn migration(machine: &mut Machine, input: &mut Unstructured<'_>, step: u8) -> Result<()> {
    match step {
        0 => {
            machine.send(request::GET_FEATURES, &[], &[]);
            let all = 1 << 1 | 1 << 3 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 19;
            machine.send(request::SET_PROTOCOL_FEATURES, &u64s(&[all]), &[]);
        }
        1 => {
            let features = VERSION_1 | INDIRECT_DESC | flag(input)? << 26 | flag(input)? << 30;
            machine.send(request::SET_FEATURES, &u64s(&[features]), &[]);
        }
        2 => {
            let log = memory(0x10_0000);
            let (size, offset) = (u64::from(input.arbitrary::<u32>()?) % 0x10_0100, 0);
            machine.send(
                request::SET_LOG_BASE,
                &u64s(&[size, offset]),
                &[log.as_fd()],
            );
        }
        3 => {
            let Layout { table, avail, used } = RING;
            let place = match input.arbitrary::<u8>()? {
                0..128 => GUEST + used,
                other => u64::from(other) << 20,
            };
            let addresses = [USER + table, USER + used, USER + avail, place];
            let payload = [u32s(&[0, flag(input)? as u32]), u64s(&addresses)].concat();
            machine.send(request::SET_VRING_ADDR, &payload, &[]);
        }
        4 => {
            let told = eventfd();
            machine.send(request::SET_LOG_FD, &[], &[told.as_fd()]);
        }
        5 => {
            let numbers = u32s(&[1 | u32::from(RING_SIZE) << 16, 0]);
            let message = [u64s(&[0, 0]), numbers].concat();
            machine.send(request::GET_INFLIGHT_FD, &message, &[]);
        }
        6 => {
            let region = memory(0x2_0000);
            let header = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, RING_SIZE as u8, 0];
            region.write_all_at(&header, 0).expect("memory");
            let count = usize::from(input.arbitrary::<u8>()?);
            let bytes = input.bytes(count.min(input.len()))?;
            region.write_all_at(bytes, 12).expect("memory");
            let numbers = u32s(&[1 | u32::from(RING_SIZE) << 16, 0]);
            let message = [u64s(&[0x2_0000, 0]), numbers].concat();
            machine.send(request::SET_INFLIGHT_FD, &message, &[region.as_fd()]);
        }
        _ => {
            let direction = flag(input)? as u32;
            let message = u32s(&[direction, 0]);
            let (read, write) = nix::unistd::pipe2(OFlag::O_NONBLOCK).expect("a pipe");
            let end = if direction == 0 { &write } else { &read };
            machine.send(request::SET_DEVICE_STATE_FD, &message, &[end.as_fd()]);
            machine.run();
            let mut bytes = vec![0; usize::from(input.arbitrary::<u16>()?)];
            if direction == 0 {
                // A pipe holds all of it.
                let _ = nix::unistd::read(&read, &mut bytes);
            } else {
                let _ = nix::unistd::write(&write, &bytes);
            }
            if flag(input)? != 0 {
                drop((read, write));
            }
            machine.send(request::CHECK_DEVICE_STATE, &[], &[]);
        }
    }
    Ok(())
}

fn flag(input: &mut Unstructured<'_>) -> Result<u64> {
    Ok(u64::from(input.arbitrary::<bool>()?))
}

/// One message of any fields and descriptors.
fn message(machine: &mut Machine, input: &mut Unstructured<'_>, request: u32) -> Result<()> {
    let flags = match input.arbitrary::<u8>()? {
        0..128 => 1,
        128..224 => 9,
        other => u32::from(other),
    };
    let mut payload = Vec::new();
    for _ in 0..input.int_in_range(0..=12)? {
        payload.extend(field(input)?);
    }
    let mut files = Vec::new();
    for _ in 0..input.int_in_range(0..=4)? {
        files.push(file(input)?);
    }
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let size = payload.len() as u32;
    let lie = match input.arbitrary::<u8>()? {
        0..240 => size,
        other => size.wrapping_add_signed(i32::from(other) - 247),
    };
    let mut message = u32s(&[request, flags, lie]);
    message.extend_from_slice(&payload);
    machine.send_raw(&message, &fds);
    if lie != size {
        machine.hang_up();
    }
    Ok(())
}

fn field(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    Ok(match input.arbitrary::<u8>()? {
        small @ 0..64 => u32s(&[u32::from(small)]),
        64..80 => u32s(&[u32::MAX]),
        80..96 => u64s(&[0]),
        96..112 => u64s(&[GUEST]),
        112..128 => u64s(&[USER]),
        128..144 => u64s(&[USER + u64::from(input.arbitrary::<u16>()?)]),
        144..160 => u64s(&[MEMORY_SIZE]),
        160..176 => u64s(&[0x1000]),
        176..192 => u64s(&[u64::MAX]),
        192..208 => u64s(&[GUEST + MEMORY_SIZE]),
        208..224 => u64s(&[0x100]),
        224..240 => u64s(&[1 << (input.arbitrary::<u8>()? % 64)]),
        _ => u64s(&[input.arbitrary()?]),
    })
}

fn file(input: &mut Unstructured<'_>) -> Result<OwnedFd> {
    Ok(match input.arbitrary::<u8>()? % 6 {
        0 | 1 => memory(MEMORY_SIZE).into(),
        2 => eventfd().into(),
        3 => memory(0x1000).into(),
        4 => nix::unistd::pipe().expect("a pipe").1,
        _ => File::open("/").expect("the root").into(),
    })
}
