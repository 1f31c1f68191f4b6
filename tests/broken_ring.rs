//! A driver that breaks the rules of the ring: the device stops, the daemon goes on. One that names a
//! buffer outside of its memory loses that request alone.

mod common;

use std::time::Duration;

use common::{BINARY, Guest};
use nix::errno::Errno;
use protocol::{
    Header, NOTAG, Rlerror, Rmessage, Rread, Tgetattr, Tmessage, Tmkdir, Tread, Twrite, getattr,
};
use stub_guest::control::request;
use stub_guest::front_end::FEATURE_INDIRECT_DESC;
use stub_guest::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, Segment, table_bytes};
use stub_guest::{Attach, Client, Daemon, Error, FrontEnd, Options, Result};

/// Addresses for a chain put together by hand.
struct Buffers {
    /// A whole Tgetattr of the root.
    request: u64,
    len: u32,
    /// A page for a reply.
    reply: u64,
    /// A page for an indirect table.
    table: u64,
}

/// Something wrong to do with the ring.
type Breakage = fn(&mut FrontEnd, &Buffers) -> Result<()>;

/// Writes descriptors from index 0 on and makes them available from `head` on.
fn chain(front_end: &mut FrontEnd, descriptors: &[Descriptor], head: u16) -> Result<()> {
    let (ring, memory) = front_end.ring();
    ring.take_descriptors(descriptors.len() as u16)?;
    for (index, descriptor) in descriptors.iter().enumerate() {
        ring.write_descriptor(memory, index as u16, *descriptor)?;
    }
    ring.publish_raw(memory, head)
}

/// Makes available a chain that stands in an indirect table, of which `len` bytes count.
fn indirect(
    front_end: &mut FrontEnd,
    buffers: &Buffers,
    table: &[Descriptor],
    len: u32,
) -> Result<()> {
    front_end
        .memory()
        .write(buffers.table, &table_bytes(table))?;
    chain(
        front_end,
        &[Descriptor {
            addr: buffers.table,
            len,
            flags: DESC_INDIRECT,
            next: 0,
        }],
        0,
    )
}

fn ask(buffers: &Buffers, next: u16) -> Descriptor {
    Descriptor {
        addr: buffers.request,
        len: buffers.len,
        flags: DESC_NEXT,
        next,
    }
}

fn reply(buffers: &Buffers) -> Descriptor {
    Descriptor {
        addr: buffers.reply,
        len: 4096,
        flags: DESC_WRITE,
        next: 0,
    }
}

const BREAKAGES: [(&str, Breakage); 12] = [
    ("a head beyond the table", |f, b| {
        chain(f, &[ask(b, 1), reply(b)], 128)
    }),
    ("the largest head", |f, b| {
        chain(f, &[ask(b, 1), reply(b)], 65_535)
    }),
    ("a next beyond the table", |f, b| {
        chain(f, &[ask(b, 128)], 0)
    }),
    ("a chain that bites its tail", |f, b| {
        chain(f, &[ask(b, 1), ask(b, 0)], 0)
    }),
    ("a descriptor that follows itself", |f, b| {
        chain(f, &[ask(b, 0)], 0)
    }),
    ("readable after writable", |f, b| {
        let writable = Descriptor {
            flags: DESC_WRITE | DESC_NEXT,
            next: 1,
            ..reply(b)
        };
        chain(
            f,
            &[
                writable,
                Descriptor {
                    flags: 0,
                    ..ask(b, 0)
                },
            ],
            0,
        )
    }),
    ("an avail index that ran away", |f, _| {
        let (ring, memory) = f.ring();
        let index = ring.avail_idx().wrapping_add(ring.size() + 1);
        ring.set_avail_idx(memory, index)
    }),
    ("an indirect table of an odd length", |f, b| {
        indirect(f, b, &[ask(b, 1), reply(b)], 33)
    }),
    ("an empty indirect table", |f, b| {
        indirect(f, b, &[ask(b, 1), reply(b)], 0)
    }),
    ("a table in a table", |f, b| {
        let inner = Descriptor {
            addr: b.table,
            len: 32,
            flags: DESC_INDIRECT,
            next: 0,
        };
        indirect(f, b, &[ask(b, 1), inner], 32)
    }),
    ("an indirect table outside of memory", |f, _| {
        chain(
            f,
            &[Descriptor {
                addr: 1 << 60,
                len: 32,
                flags: DESC_INDIRECT,
                next: 0,
            }],
            0,
        )
    }),
    ("an indirect table whose chain leaves it", |f, b| {
        indirect(f, b, &[ask(b, 7), reply(b)], 32)
    }),
];

/// A client that has mounted, and buffers beside those of its own.
fn prepare(daemon: &mut Daemon, options: Options) -> (Client, Buffers) {
    let mut client = daemon.client_with(options).unwrap();
    let root = client.mount(&Attach::default()).unwrap();
    let mut frame = Vec::new();
    let message = Tmessage::Getattr(Tgetattr {
        fid: root,
        mask: getattr::ALL,
    });
    message.encode(1, &mut frame).unwrap();
    let memory = client.front_end().memory();
    let (request, reply, table) = (
        memory.alloc(4096).unwrap(),
        memory.alloc(4096).unwrap(),
        memory.alloc(4096).unwrap(),
    );
    memory.write(request, &frame).unwrap();
    (
        client,
        Buffers {
            request,
            len: frame.len() as u32,
            reply,
            table,
        },
    )
}

/// Asserts that the device reports the broken ring, or hangs up, and uses nothing.
#[track_caller]
fn stops(front_end: &mut FrontEnd, what: &str) {
    front_end.force_kick().unwrap();
    let reported = front_end.wait_ring_error(Duration::from_secs(10));
    let closed = reported.is_err() && front_end.wait_closed(Duration::ZERO).is_ok();
    assert!(reported.is_ok() || closed, "{what}: nothing was reported");
    assert!(
        matches!(front_end.try_used(), Ok(None)),
        "{what}: something was used"
    );
}

#[test]
fn a_broken_ring_stops_the_device_and_not_the_daemon() {
    let mut daemon = Daemon::start(BINARY).unwrap();
    for (what, breakage) in BREAKAGES {
        let (client, buffers) = prepare(&mut daemon, Options::default());
        let mut front_end = client.into_front_end();
        breakage(&mut front_end, &buffers).unwrap();
        stops(&mut front_end, what);
        drop(front_end);
        daemon
            .mount()
            .unwrap_or_else(|error| panic!("after {what}: {error}"));
    }
}

#[test]
fn an_indirect_table_that_was_not_agreed_on_does_no_harm() {
    // Served, as QEMU does, or refused: both are right.
    let mut daemon = Daemon::start(BINARY).unwrap();
    let options = Options::default().without(FEATURE_INDIRECT_DESC);
    let (client, buffers) = prepare(&mut daemon, options);
    let mut front_end = client.into_front_end();
    let table = [ask(&buffers, 1), reply(&buffers)];
    indirect(&mut front_end, &buffers, &table, 32).unwrap();
    front_end.force_kick().unwrap();
    front_end.control().get_u64(request::GET_FEATURES).unwrap();
    drop(front_end);
    daemon.mount().unwrap();
}

#[test]
fn a_broken_ring_is_mended_by_a_reset() {
    let mut daemon = Daemon::start(BINARY).unwrap();
    let (client, buffers) = prepare(&mut daemon, Options::default());
    let mut front_end = client.into_front_end();
    chain(&mut front_end, &[ask(&buffers, 128)], 0).unwrap();
    stops(&mut front_end, "a next beyond the table");
    if front_end.wait_closed(Duration::ZERO).is_ok() {
        return;
    }
    front_end.reset().unwrap();
    front_end.restart().unwrap();
    let mut client = Client::new(front_end);
    client.mount(&Attach::default()).unwrap();
}

#[test]
fn a_ring_that_breaks_under_load_is_left_alone() {
    let mut daemon = Daemon::start(BINARY).unwrap();
    let options = Options {
        regions: vec![16 << 20],
        ..Options::default()
    };
    let (mut client, _) = prepare(&mut daemon, options);
    let message = Tmessage::Getattr(Tgetattr {
        fid: 0,
        mask: getattr::ALL,
    });
    for _ in 0..100 {
        client.submit(&message, &[]).unwrap();
    }
    let mut front_end = client.into_front_end();
    let (ring, memory) = front_end.ring();
    ring.publish_raw(memory, 5000).unwrap();
    front_end.force_kick().unwrap();
    let reported = front_end.wait_ring_error(Duration::from_secs(10));
    assert!(
        reported.is_ok() || front_end.wait_closed(Duration::ZERO).is_ok(),
        "{reported:?}"
    );
    // The answer to a reset means that nothing is written any more.
    if front_end
        .control()
        .set(request::RESET_DEVICE, &[], &[])
        .is_ok()
    {
        let before = front_end.memory().fingerprint().unwrap();
        front_end.control().get_u64(request::GET_FEATURES).unwrap();
        assert_eq!(front_end.memory().fingerprint().unwrap(), before);
    }
    drop(front_end);
    daemon.mount().unwrap();
}

#[test]
fn a_chain_with_nothing_to_read_or_nothing_to_write_is_a_bad_request_only() {
    let mut guest = Guest::new();
    for writable in [11, 100, 5000] {
        let handle = guest.client.submit_frame(&[], writable).unwrap();
        let reply = guest.client.wait(handle).unwrap();
        let code = reply
            .message()
            .err()
            .and_then(|error| error.errno())
            .map(Errno::from_raw);
        assert_eq!(code, Some(Errno::EPROTO));
    }
    let mut frame = Vec::new();
    let message = Tmessage::Getattr(Tgetattr {
        fid: guest.root,
        mask: getattr::ALL,
    });
    message.encode(1, &mut frame).unwrap();
    let handle = guest.client.submit_frame(&frame, 0).unwrap();
    assert!(matches!(guest.client.wait(handle), Err(Error::Flushed)));
    guest.client.getattr(guest.root, getattr::ALL).unwrap();
}

/// The tag of requests that are put together by hand.
const TAG: u16 = 7;
/// Where no memory is.
const OUTSIDE: u64 = 1 << 60;

fn frame(message: &Tmessage<'_>) -> Vec<u8> {
    let mut frame = Vec::new();
    message.encode(TAG, &mut frame).unwrap();
    frame
}

#[test]
fn a_buffer_outside_of_memory_costs_that_request_only() {
    let mut guest = Guest::new();
    let file = guest.file("file", "as it was");
    let fid = guest.open("file", libc::O_RDWR as u32);
    let root = guest.root;
    let getattr_of_root = Tmessage::Getattr(Tgetattr {
        fid: root,
        mask: getattr::ALL,
    });
    let (offset, count) = (0, 4096);
    let write = frame(&Tmessage::Write(Twrite { fid, offset, count }));
    let read = frame(&Tmessage::Read(Tread { fid, offset, count }));
    let mkdir = frame(&Tmessage::Mkdir(Tmkdir {
        dfid: root,
        name: b"made",
        mode: 0o755,
        gid: 0,
    }));
    let memory = guest.client.front_end().memory();
    let (request, reply) = (memory.alloc(4096).unwrap(), memory.alloc(4096).unwrap());
    let sent = |addr, len| Segment {
        addr,
        len,
        writable: false,
    };
    let room = |addr, len| Segment {
        addr,
        len,
        writable: true,
    };
    let all = |frame: &[u8]| sent(request, frame.len() as u32);
    let header = Rread::PAYLOAD as u32;
    // What the device writes: EFAULT with this tag, or nothing.
    let cases = [
        (
            "a zero-copy write from a page that is not shared",
            &write,
            vec![all(&write), sent(OUTSIDE, count), room(reply, header)],
            Some(TAG),
        ),
        (
            "a zero-copy read into a page that is not shared",
            &read,
            vec![all(&read), room(reply, header), room(OUTSIDE, count)],
            Some(TAG),
        ),
        (
            "a request outside of memory",
            &mkdir,
            vec![sent(0x10, 100), room(reply, 4096)],
            Some(NOTAG),
        ),
        (
            "half a header, and the rest outside",
            &mkdir,
            vec![sent(request, 5), sent(u64::MAX - 10, 100), room(reply, 20)],
            Some(NOTAG),
        ),
        (
            "a reply that leaves memory",
            &mkdir,
            vec![all(&mkdir), room(reply, u32::MAX)],
            None,
        ),
        (
            "a reply outside of memory",
            &mkdir,
            vec![all(&mkdir), room(OUTSIDE, 4096)],
            None,
        ),
        (
            "too little room for an error before what is outside",
            &mkdir,
            vec![all(&mkdir), room(reply, 10), room(OUTSIDE, 4096)],
            None,
        ),
        (
            "request and reply outside",
            &mkdir,
            vec![sent(OUTSIDE, 100), room(OUTSIDE, 100)],
            None,
        ),
    ];
    for indirect in [false, true] {
        for (what, frame, segments, tag) in &cases {
            let front_end = guest.client.front_end();
            front_end.memory().write(request, frame).unwrap();
            front_end.memory().write(reply, &[0xee; 4096]).unwrap();
            front_end.post(segments, indirect).unwrap();
            front_end.force_kick().unwrap();
            let used = front_end.wait_used().unwrap();
            let mut found = vec![0; 4096];
            front_end.memory().read(reply, &mut found).unwrap();
            let (written, untouched) = found.split_at(used.len as usize);
            assert!(untouched.iter().all(|&byte| byte == 0xee), "{what}");
            match tag {
                Some(tag) => {
                    let ecode = Errno::EFAULT as u32;
                    let mut expected = Vec::new();
                    Rmessage::Lerror(Rlerror { ecode })
                        .encode(*tag, &mut expected)
                        .unwrap();
                    assert_eq!(written, expected, "{what}");
                    assert_eq!(Header::decode(written).unwrap().size, used.len, "{what}");
                }
                None => assert_eq!(used.len, 0, "{what}"),
            }
            // The ring goes on.
            guest.client.call(&getattr_of_root).unwrap();
        }
    }
    assert!(!guest.path("made").exists(), "nothing was done");
    assert_eq!(std::fs::read(file).unwrap(), b"as it was");
}
