//! The ring as a hostile driver fills it, and rewrites it while it is read.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use arbitrary::{Result, Unstructured};
use ring_driver::{Descriptor, Memory, Ring, table};
use vhost_user::{DeviceConfig, Handler, Request};

use crate::machine::{
    BUFFERS, EVENT_IDX, GUEST, INDIRECT_DESC, MEMORY_SIZE, Machine, RING, RING_SIZE, Shared,
    VERSION_1, open_descriptors,
};

/// More than this is not echoed.
const MUCH: usize = 0x8000;

/// Echoes what a request says, one in three only when it must.
#[derive(Default)]
struct Echo {
    kept: RefCell<Vec<Request>>,
    count: RefCell<usize>,
}

fn echo(request: Request) {
    let mut bytes = vec![0; request.readable().len().min(MUCH)];
    assert_eq!(request.readable().read_at(0, &mut bytes), bytes.len());
    let written = request.writable().write_at(0, &bytes);
    assert_eq!(written, bytes.len().min(request.writable().len()));
    request.complete(written as u32);
}

impl Handler for Echo {
    fn handle(&self, request: Request) {
        *self.count.borrow_mut() += 1;
        if *self.count.borrow() % 3 == 0 {
            self.kept.borrow_mut().push(request);
            assert!(self.kept.borrow().len() <= usize::from(RING_SIZE));
        } else {
            echo(request);
        }
    }

    fn drain(&self) {
        self.kept.take().into_iter().for_each(echo);
    }

    fn reset(&self) {
        assert!(self.kept.borrow().is_empty(), "drained before it is reset");
    }
}

/// A driver's doings.
pub fn ring(bytes: &[u8]) {
    let before = open_descriptors();
    let config = DeviceConfig {
        features: 1,
        config_space: Vec::new(),
        config_head: 2,
        max_queue_size: RING_SIZE,
    };
    let handler = Rc::new(Echo::default());
    let mut machine = Machine::new(&config, handler.clone());
    // Ends with the input.
    let _ = drive(&mut machine, &handler, &mut Unstructured::new(bytes));
    machine.run();
    assert!(machine.is_connected(), "a ring breaks no connection");
    machine.stop();
    assert!(handler.kept.borrow().is_empty(), "a stop drains");
    drop(machine);
    assert_eq!(open_descriptors(), before, "descriptors are left over");
}

fn drive(machine: &mut Machine, echo: &Echo, input: &mut Unstructured<'_>) -> Result<()> {
    let event_idx = if input.arbitrary()? { EVENT_IDX } else { 0 };
    let features = VERSION_1 | INDIRECT_DESC | event_idx;
    machine.start(features, 0);
    let mut ring = Ring::new(RING_SIZE, RING);
    let mut scribble = None;
    while !input.is_empty() {
        match input.arbitrary::<u8>()? % 12 {
            0..=2 => {
                let index = input.arbitrary::<u8>()? % 16;
                ring.describe(&machine.memory, index.into(), &[descriptor(input)?]);
            }
            3 | 4 => {
                let place = place(input)?;
                let index = input.arbitrary::<u8>()? % 16;
                machine.write(place + 16 * u64::from(index), &table(&[descriptor(input)?]));
            }
            5 | 6 => {
                let head = u16::from(input.arbitrary::<u8>()? % 80);
                ring.publish(&machine.memory, head);
            }
            7 => {
                // Any field of the three rings, the index of avail among them.
                let at =
                    [RING.table, RING.avail, RING.used][usize::from(input.arbitrary::<u8>()? % 3)];
                let offset = u64::from(input.arbitrary::<u8>()?);
                machine.write(at + offset, &input.arbitrary::<[u8; 2]>()?);
            }
            8 => {
                let at = u64::from(input.arbitrary::<u16>()? % 0x3000);
                scribble = Some((at, input.arbitrary::<[u8; 2]>()?));
            }
            9 => {
                ring = Ring::new(RING_SIZE, RING);
                machine.stop();
                machine.write(0, &[0; BUFFERS as usize]);
                machine.start(features, 0);
            }
            10 => echo.drain(),
            _ => {
                machine.kick();
                match scribble.take() {
                    Some((at, bytes)) => run_scribbled(machine, at, bytes),
                    None => machine.run(),
                }
            }
        }
    }
    machine.kick();
    Ok(())
}

/// An offset at which an indirect table may be.
fn place(input: &mut Unstructured<'_>) -> Result<u64> {
    Ok(BUFFERS + 0x100 * u64::from(input.arbitrary::<u8>()? % 8))
}

fn descriptor(input: &mut Unstructured<'_>) -> Result<Descriptor> {
    let address = match input.arbitrary::<u8>()? {
        0..96 => GUEST + place(input)?,
        96..176 => GUEST + 0x8000 + 0x100 * u64::from(input.arbitrary::<u8>()?),
        176..192 => GUEST + u64::from(input.arbitrary::<u16>()?),
        192..208 => GUEST + MEMORY_SIZE - u64::from(input.arbitrary::<u8>()?),
        208..224 => u64::MAX - u64::from(input.arbitrary::<u8>()?),
        _ => input.arbitrary()?,
    };
    let len = match input.arbitrary::<u8>()? {
        tables @ 0..64 => 16 * u32::from(tables % 32),
        small @ 64..192 => u32::from(small),
        192..224 => input.arbitrary::<u16>()?.into(),
        224..240 => u32::MAX,
        _ => input.arbitrary()?,
    };
    // NEXT, WRITE, INDIRECT; rarely what has no meaning.
    let flags = match input.arbitrary::<u8>()? {
        flags @ 0..240 => u16::from(flags % 8),
        _ => input.arbitrary()?,
    };
    let next = u16::from(input.arbitrary::<u8>()? % 18);
    Ok(Descriptor {
        address,
        len,
        flags,
        next,
    })
}

/// Runs while another thread writes `bytes` and zeros by turns.
fn run_scribbled(machine: &mut Machine, at: u64, bytes: [u8; 2]) {
    let memory = Shared(machine.memory.0.try_clone().expect("a descriptor"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let scribbler = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                memory.write(at, &bytes);
                memory.write(at, &[0, 0]);
            }
        });
        // Not until the ring is at rest: one that changes for ever may never be.
        for _ in 0..16 {
            machine.turn();
        }
        done.store(true, Ordering::Relaxed);
        // The scope waits for the closure's end alone, and what the thread has besides would look
        // like a leak.
        scribbler.join().expect("nothing in it panics");
    });
}
