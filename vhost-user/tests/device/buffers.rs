//! Copying and I/O on the halves of a request.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost_user::{Readable, Request, Writable};

use crate::machine::{BUFFERS, Machine};
use ring_driver::{Descriptor, Used, readable, writable};

const ANSWERS: u64 = BUFFERS + 0x8_0000;

/// Posts a chain and returns the request that comes of it.
fn request(machine: &mut Machine, chain: &[Descriptor]) -> Request {
    machine.handler.keep.set(true);
    machine.post_indirect(0, chain);
    machine.kick();
    machine.event_loop.run();
    machine.handler.kept.borrow_mut().pop().expect("a request")
}

/// A request of `count` readable and as many writable pieces, which have gaps between them.
fn scattered(machine: &mut Machine, count: u64, len: u32) -> (Request, Vec<u8>) {
    let step = u64::from(len) + 1;
    let mut chain = Vec::new();
    let mut bytes = Vec::new();
    for n in 0..count {
        let piece: Vec<u8> = (0..u64::from(len)).map(|at| (n * 7 + at) as u8).collect();
        machine.memory.write(BUFFERS + 0x4_0000 + n * step, &piece);
        bytes.extend(piece);
        chain.push(readable(BUFFERS + 0x4_0000 + n * step, len));
    }
    for n in 0..count {
        chain.push(writable(ANSWERS + n * step, len));
    }
    machine.ring.size = 128;
    // A table of this length goes where no other is.
    let table = ring_driver::table(&ring_driver::chained(&chain, 0));
    let place = BUFFERS + 0x10_0000;
    machine.memory.write(place, &table);
    machine.handler.keep.set(true);
    machine.post(0, &[ring_driver::indirect(place, table.len() as u32)]);
    machine.kick();
    machine.event_loop.run();
    let request = machine.handler.kept.borrow_mut().pop().expect("a request");
    (request, bytes)
}

fn answers(machine: &Machine, count: u64, len: u32) -> Vec<u8> {
    (0..count)
        .flat_map(|n| {
            machine
                .memory
                .read(ANSWERS + n * (u64::from(len) + 1), len as usize)
        })
        .collect()
}

fn memfd() -> File {
    memfd_create("file", MFdFlags::MFD_CLOEXEC).unwrap().into()
}

#[test]
fn any_range_is_copied() {
    let mut machine = Machine::started();
    let (request, bytes) = scattered(&mut machine, 5, 3);
    assert_eq!(
        (request.readable().len(), request.writable().len()),
        (15, 15)
    );
    assert!(!request.readable().is_empty() && !request.writable().is_empty());
    for at in 0..20 {
        for len in 0..20 {
            let mut found = vec![0xaa; len];
            let count = request.readable().read_at(at, &mut found);
            let expected = bytes.get(at..).unwrap_or_default();
            let expected = &expected[..len.min(expected.len())];
            assert_eq!(&found[..count], expected);
            assert!(found[count..].iter().all(|&byte| byte == 0xaa));

            let before = answers(&machine, 5, 3);
            let from: Vec<u8> = (0..len).map(|n| (at * 20 + n) as u8).collect();
            let count = request.writable().write_at(at, &from);
            assert_eq!(count, expected.len());
            let mut after = before;
            let end = (at + count).min(15);
            after[at.min(15)..end].copy_from_slice(&from[..count]);
            assert_eq!(answers(&machine, 5, 3), after);
        }
    }
    assert_eq!(request.readable().read_at(usize::MAX, &mut [0; 4]), 0);
    assert_eq!(request.writable().write_at(usize::MAX, &[0; 4]), 0);
    request.complete(15);
    machine.event_loop.notify();
    assert_eq!(machine.take_used(), [Used { head: 0, len: 15 }]);
}

#[test]
fn empty_halves_are_empty() {
    let mut machine = Machine::started();
    let request = request(&mut machine, &[readable(BUFFERS, 0)]);
    assert!(request.readable().is_empty() && request.writable().is_empty());
    assert_eq!(request.readable().read_at(0, &mut [0; 4]), 0);
    assert_eq!(request.writable().write_at(0, &[0; 4]), 0);
    let file = memfd();
    let none = request.writable().read_from_file(file.as_fd(), 0, 10, 0, 0);
    assert_eq!(none.unwrap(), 0);
    let none = request.readable().write_to_file(file.as_fd(), 0, 10, 0, 0);
    assert_eq!(none.unwrap(), 0);
}

#[test]
fn any_range_goes_to_and_from_files() {
    let mut machine = Machine::started();
    let (request, bytes) = scattered(&mut machine, 7, 5);
    let file = memfd();
    for (at, len, offset) in [
        (0, 35, 0),
        (3, 20, 100),
        (34, 10, 7),
        (35, 1, 0),
        (99, 1, 0),
    ] {
        file.set_len(0).unwrap();
        let expected = bytes.get(at..).unwrap_or_default();
        let expected = &expected[..len.min(expected.len())];
        let readable: &Readable = request.readable();
        let count = readable.write_to_file(file.as_fd(), at, len, offset, 0);
        assert_eq!(count.unwrap(), expected.len());
        let mut found = vec![0; expected.len()];
        file.read_exact_at(&mut found, offset).unwrap();
        assert_eq!(found, expected);

        request.writable().write_at(0, &[0; 35]);
        let writable: &Writable = request.writable();
        let count = writable.read_from_file(file.as_fd(), at, len, offset, 0);
        assert_eq!(count.unwrap(), expected.len());
        let mut all = vec![0; 35];
        all[at.min(35)..][..expected.len()].copy_from_slice(expected);
        assert_eq!(answers(&machine, 7, 5), all);
    }
}

#[test]
fn a_short_file_and_errors_are_as_the_kernel_has_them() {
    let mut machine = Machine::started();
    let (request, _) = scattered(&mut machine, 2, 10);
    let file = memfd();
    file.write_all_at(b"short", 0).unwrap();
    let read = |at, offset| {
        let writable = request.writable();
        writable.read_from_file(file.as_fd(), at, 20, offset, 0)
    };
    assert_eq!(read(0, 0).unwrap(), 5);
    assert_eq!(read(0, 5).unwrap(), 0);
    // The wire has 64 bits, the kernel 63: −1 would be the file's own position.
    for offset in [u64::MAX, 1 << 63] {
        assert_eq!(
            read(0, offset).unwrap_err().raw_os_error(),
            Some(libc::EINVAL)
        );
    }
    let read_only = File::open("/dev/null").unwrap();
    let error = request
        .readable()
        .write_to_file(read_only.as_fd(), 0, 20, 0, 0)
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    let error = request
        .writable()
        .read_from_file(file.as_fd(), 0, 20, 0, 1 << 30)
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
}

#[test]
fn many_pieces_go_in_one_call() {
    let mut machine = Machine::started();
    for (count, len) in [(129, 3), (200, 3), (512, 2)] {
        let (request, bytes) = scattered(&mut machine, count, len);
        let all = bytes.len();
        let file = memfd();
        let written = request.readable().write_to_file(file.as_fd(), 0, all, 0, 0);
        assert_eq!(written.unwrap(), all);
        let read = request
            .writable()
            .read_from_file(file.as_fd(), 0, all, 0, 0);
        assert_eq!(read.unwrap(), all);
        assert!(answers(&machine, count, len) == bytes);
        request.complete(all as u32);
        machine.event_loop.notify();
    }
}

#[test]
fn halves_can_be_used_by_other_threads() {
    let mut machine = Machine::started();
    let (request, bytes) = scattered(&mut machine, 4, 4);
    let (readable, writable) = (request.readable(), request.writable());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut copy = [0; 16];
            readable.read_at(0, &mut copy);
            writable.write_at(0, &copy);
        });
    });
    assert_eq!(answers(&machine, 4, 4), bytes);
}

#[test]
fn memory_that_was_taken_away_is_still_there_for_the_request() {
    // It is drained before; but a request that is held on to does no harm.
    let mut machine = Machine::started();
    let (request, bytes) = scattered(&mut machine, 4, 4);
    machine.event_loop.close();
    let mut copy = [0; 16];
    request.readable().read_at(0, &mut copy);
    assert_eq!(copy[..], bytes);
    request.complete(0);
    assert_eq!(machine.take_used(), []);
}
