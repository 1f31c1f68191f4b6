//! Serves requests of one kind, sixteen at a time and on one thread, for a tool that counts
//! instructions: what is counted is the same on a busy machine.
//!
//! `requests NAME COUNT`

use std::process::ExitCode;
use std::rc::Rc;

use coroutine::Workers;
use fuzz_harness::machine::{
    BUFFERS, EVENT_IDX, GUEST, INDIRECT_DESC, Machine, RING, RING_SIZE, VERSION_1,
};
use protocol::{
    NOFID, NOTAG, Names, Rlerror, Rmessage, Tattach, Tclunk, Tgetattr, Tmessage, Tversion, Twalk,
    getattr,
};
use ring_driver::{Ring, indirect, readable, table, writable};
use tempfile::TempDir;
use vhost_user::DeviceConfig;
use vhost_user_9p::export::{Export, FileHandles, Identity, Ids, Multidevs};
use vhost_user_9p::server::Server;
use vhost_user_9p::server::limits::Limits;
use vhost_user_9p::server::throttle::Rates;
use vhost_user_9p::state::State;

/// Requests at once.
const BATCH: u16 = 16;
/// Room of a request for its indirect table, itself and its reply.
const SLOT_SIZE: u64 = 0x4000;
const REQUEST: u64 = 0x40;
const REPLY: u64 = 0x2000;

/// The fid of the share's root; those that requests have for themselves come behind.
const ROOT: u32 = 0;
const FIRST_OWN: u32 = 1;

/// A message, for a fid of its own.
type Step = fn(u32) -> Tmessage<'static>;

/// The messages of an operation, one after the other: as many as divide the ring. None that takes
/// openat2(2), which many a valgrind does not know.
const OPERATIONS: &[(&str, &[Step])] = &[
    ("refused", &[|_| attributes(NOFID)]),
    ("getattr", &[|_| attributes(ROOT)]),
    ("clone-clunk", &[clone_root, clunk]),
];

fn attributes(fid: u32) -> Tmessage<'static> {
    Tmessage::Getattr(Tgetattr {
        fid,
        mask: getattr::BASIC,
    })
}

fn clone_root(newfid: u32) -> Tmessage<'static> {
    Tmessage::Walk(Twalk {
        fid: ROOT,
        newfid,
        names: Names::new(),
    })
}

fn clunk(fid: u32) -> Tmessage<'static> {
    Tmessage::Clunk(Tclunk { fid })
}

struct Session {
    machine: Machine,
    server: Rc<Server>,
    ring: Ring,
    _share: TempDir,
}

impl Session {
    fn begin() -> Session {
        // Where no call has to be made by another thread.
        let share = TempDir::new_in("/dev/shm").expect("a directory in memory");
        let identity = Identity::of_process(Ids::default(), None).expect("an identity");
        let export =
            Export::new(share.path(), false, FileHandles::Never, identity).expect("a share");
        let limits = Limits {
            fids: 1024,
            xattr_bytes: 1024,
            locks: 1024,
        };
        let workers = Workers::new(1).expect("workers");
        let bounds = (limits, Rates::default());
        let state = State::private(&limits.capacity()).expect("memory");
        let server = Server::new(export, workers, Multidevs::Remap, 1024, bounds, state);
        let config = DeviceConfig {
            features: 1,
            config_space: b"\x04\x00host".to_vec(),
            config_head: 2,
            max_queue_size: RING_SIZE,
        };
        let mut machine = Machine::new(&config, server.clone());
        machine.start(VERSION_1 | EVENT_IDX | INDIRECT_DESC, 0);
        let mut session = Session {
            machine,
            server,
            ring: Ring::new(RING_SIZE, RING),
            _share: share,
        };
        let version = Tmessage::Version(Tversion {
            msize: 8192,
            version: b"9P2000.L",
        });
        session.say(NOTAG, &version);
        let attach = Tmessage::Attach(Tattach {
            fid: ROOT,
            afid: NOFID,
            uname: b"",
            aname: b"",
            n_uname: 0,
        });
        session.say(0, &attach);
        session
    }

    /// Says one thing, and waits for the answer.
    fn say(&mut self, tag: u16, message: &Tmessage<'_>) {
        self.put(0, tag, message);
        let next = self.ring.avail_idx;
        self.ring.set_avail(&self.machine.memory, next, 0);
        self.serve(1);
        while self.server.workers().wait_completed() > 0 {
            self.machine.run();
        }
        self.check(0);
    }

    /// Puts a message into a slot.
    fn put(&self, slot: u16, tag: u16, message: &Tmessage<'_>) {
        let place = place_of(slot);
        let mut frame = Vec::new();
        message.encode(tag, &mut frame).expect("a short message");
        let len = frame.len() as u32;
        self.machine.write(place + REQUEST, &frame);
        let (request, reply) = (GUEST + place + REQUEST, GUEST + place + REPLY);
        let room = (SLOT_SIZE - REPLY) as u32;
        let descriptors = table(&[readable(request, len).then(1), writable(reply, room)]);
        self.machine.write(place, &descriptors);
        let chain = indirect(GUEST + place, descriptors.len() as u32);
        self.ring.describe(&self.machine.memory, slot, &[chain]);
    }

    /// Lets what the ring's next entries say be served.
    fn serve(&mut self, count: u16) {
        let next = self.ring.avail_idx.wrapping_add(count);
        self.ring.set_avail_idx(&self.machine.memory, next);
        self.machine.kick();
        self.machine.run();
    }

    /// Panics if the reply in a slot is an error.
    fn check(&self, slot: u16) {
        let reply: [u8; 11] = self.machine.read(place_of(slot) + REPLY);
        if let Ok((_, Rmessage::Lerror(Rlerror { ecode }))) = Rmessage::decode(&reply) {
            panic!("slot {slot}: errno {ecode}");
        }
    }
}

fn place_of(slot: u16) -> u64 {
    BUFFERS + SLOT_SIZE * u64::from(slot)
}

fn run(name: &str, steps: &[Step], count: usize) {
    let mut session = Session::begin();
    let slots = BATCH * steps.len() as u16;
    assert!(RING_SIZE % slots == 0);
    for slot in 0..slots {
        let step = steps[usize::from(slot / BATCH)];
        let own = FIRST_OWN + u32::from(slot % BATCH);
        session.put(slot, slot, &step(own));
    }
    // What stands in the ring stays: only its index moves.
    for ahead in 0..RING_SIZE {
        let index = session.ring.avail_idx.wrapping_add(ahead);
        let memory = &session.machine.memory;
        session.ring.set_avail(memory, index, ahead % slots);
    }
    let hops = session.server.workers().hops();
    for _ in 0..count.div_ceil(BATCH.into()) * steps.len() {
        session.serve(BATCH);
    }
    let workers = session.server.workers();
    assert_eq!((workers.outstanding(), workers.hops()), (0, hops), "{name}");
    if name != "refused" {
        (0..slots).for_each(|slot| session.check(slot));
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [name, count] = &arguments[..] {
        if let Some((name, steps)) = OPERATIONS.iter().find(|(known, _)| known == name) {
            if let Ok(count) = count.parse() {
                run(name, steps, count);
                return ExitCode::SUCCESS;
            }
        }
    }
    for (name, _) in OPERATIONS {
        println!("{name}");
    }
    ExitCode::from(2)
}
