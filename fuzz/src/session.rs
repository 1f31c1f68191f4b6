//! A whole session: 9P requests to a server with a share, as many at once as the input says.

use std::rc::Rc;

use arbitrary::{Result, Unstructured};
use coroutine::Workers;
use protocol::{
    HEADER_LEN, NOFID, NOTAG, Names, Tattach, Tauth, Tclunk, Tflush, Tfsync, Tgetattr, Tgetlock,
    Time, Tlcreate, Tlink, Tlock, Tlopen, Tmessage, Tmkdir, Tmknod, Tread, Treaddir, Treadlink,
    Tremove, Trename, Trenameat, Tsetattr, Tstatfs, Tsymlink, Tunlinkat, Tversion, Twalk, Twrite,
    Txattrcreate, Txattrwalk, kind,
};
use ring_driver::{Ring, Used, readable, writable};
use vhost_user::DeviceConfig;
use vhost_user_9p::export::qid::Multidevs;
use vhost_user_9p::export::{Export, FileHandles, Identity, Ids};
use vhost_user_9p::server::Server;
use vhost_user_9p::server::limits::Limits;
use vhost_user_9p::server::throttle::Rates;
use vhost_user_9p::state::State;

use crate::machine::{BUFFERS, GUEST, Machine, RING, RING_SIZE, VERSION_1, open_descriptors};
use crate::share::Share;

const RLERROR: u8 = 7;
/// Two descriptors for each request.
const SLOTS: u16 = RING_SIZE / 2;
/// The place of one request: a half for the question, a half for the answer.
const SLOT_SIZE: u64 = 0x4000;
const ROOM: u32 = 0x2000;
/// So few that inodes have to be found again.
const FEW_DESCRIPTORS: usize = 4;
/// So few that they are reached, but for fids, without which nothing else is.
const LIMITS: Limits = Limits {
    fids: 256,
    xattr_bytes: 4096,
    locks: 16,
};
const DIALECT: &[u8] = b"9P2000.L";

struct World {
    machine: Machine,
    server: Rc<Server>,
    share: Share,
    ring: Ring,
    /// What was asked in each slot and not answered yet.
    asked: Vec<Option<Asked>>,
    /// What is open between two sessions.
    open: usize,
}

#[derive(Clone, Copy)]
struct Asked {
    kind: u8,
    tag: Option<u16>,
    room: u32,
}

thread_local! {
    static WORLD: std::cell::RefCell<Option<World>> = const { std::cell::RefCell::new(None) };
}

/// A list of requests. The server and its share stay for the next input of this thread.
pub fn session(bytes: &[u8]) {
    WORLD.with_borrow_mut(|world| {
        let world = world.get_or_insert_with(World::new);
        world.share.fill();
        world.begin();
        let mut input = Unstructured::new(bytes);
        while !input.is_empty() {
            // Ends with the input.
            if world.step(&mut input).is_err() {
                break;
            }
        }
        world.end();
    });
}

impl World {
    fn new() -> World {
        let share = Share::new();
        share.fill();
        let identity = Identity::of_process(Ids::default(), None).expect("an identity");
        let export =
            Export::new(&share.path(), false, FileHandles::Prefer, identity).expect("a share");
        let workers = Workers::new(2).expect("workers");
        let server = Server::new(
            export,
            workers,
            Multidevs::Remap,
            FEW_DESCRIPTORS,
            (LIMITS, Rates::default()),
            State::private(&LIMITS.capacity()).expect("memory"),
        );
        let config = DeviceConfig {
            features: 1,
            config_space: b"\x04\x00host".to_vec(),
            config_head: 2,
            max_queue_size: RING_SIZE,
        };
        let mut machine = Machine::new(&config, server.clone());
        machine.start(VERSION_1, 0);
        let mut world = World {
            machine,
            server,
            share,
            ring: Ring::new(RING_SIZE, RING),
            asked: vec![None; SLOTS.into()],
            open: 0,
        };
        // What the server keeps for good is opened by the first who needs it.
        world.begin();
        let attach = Tattach {
            fid: 0,
            afid: NOFID,
            uname: b"",
            aname: b"",
            n_uname: 0,
        };
        world.say(1, &Tmessage::Attach(attach));
        world.run();
        // More inodes than descriptors: one for each mount stays, by which they are found again.
        let ways: [&[&[u8]]; 6] = [
            &[b"a"],
            &[b"d"],
            &[b"d", b"e"],
            &[b"d", b"b"],
            &[b"d", b"link"],
            &[b"out"],
        ];
        for (newfid, way) in (1..).zip(ways) {
            let walk = Twalk {
                fid: 0,
                newfid,
                names: Names::from_slice(way).expect("a short way"),
            };
            world.say(1, &Tmessage::Walk(walk));
            world.run();
        }
        world.begin();
        world.open = open_descriptors().len();
        world
    }

    /// Begins a session, which ends what was there.
    fn begin(&mut self) {
        self.say(0xfffe, &version());
        self.run();
        assert!(self.asked.iter().all(Option::is_none), "all was to end");
    }

    fn end(&mut self) {
        self.run();
        self.begin();
        let open = open_descriptors();
        assert_eq!(open.len(), self.open, "left over: {open:?}");
        self.share.check();
    }

    /// Encodes a message, and posts it with room for any answer.
    fn say(&mut self, tag: u16, message: &Tmessage<'_>) {
        let mut frame = Vec::new();
        if message.encode(tag, &mut frame).is_ok() {
            self.post(&frame, &[], ROOM);
        }
    }

    fn post(&mut self, frame: &[u8], payload: &[u8], room: u32) {
        let Some(slot) = self.asked.iter().position(Option::is_none) else {
            // All is waiting for something: a new session ends that, but needs a slot itself.
            return;
        };
        let place = BUFFERS + SLOT_SIZE * slot as u64;
        self.machine.write(place, frame);
        self.machine.write(place + frame.len() as u64, payload);
        let len = (frame.len() + payload.len()) as u32;
        let head = 2 * slot as u16;
        let answer = GUEST + place + SLOT_SIZE / 2;
        let chain = [
            readable(GUEST + place, len).then(head + 1),
            writable(answer, room),
        ];
        self.ring.describe(&self.machine.memory, head, &chain);
        self.ring.publish(&self.machine.memory, head);
        self.asked[slot] = Some(Asked {
            kind: frame.get(4).copied().unwrap_or(0),
            tag: frame
                .get(5..7)
                .map(|tag| u16::from_le_bytes([tag[0], tag[1]])),
            room,
        });
    }

    /// Lets the server work until it only waits.
    fn run(&mut self) {
        self.machine.kick();
        loop {
            let happened = self.machine.turn();
            coroutine::run_timers();
            let done = coroutine::run_ready() + self.server.workers().wait_completed();
            if done == 0 && !happened {
                break;
            }
        }
        assert!(self.machine.is_connected(), "a guest's words break nothing");
        self.take();
    }

    /// Checks the answers that have come.
    fn take(&mut self) {
        for Used { head, len } in self.ring.take_used(&self.machine.memory) {
            assert_eq!(head % 2, 0, "a head that was never posted");
            let asked = self.asked[usize::from(head / 2)].take();
            let asked = asked.expect("one answer to each request");
            let place = BUFFERS + SLOT_SIZE * u64::from(head / 2) + SLOT_SIZE / 2;
            asked.check(len, self.machine.read(place));
        }
    }

    /// One request, and most often the answer to it.
    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let choice: u8 = input.arbitrary()?;
        let tag = u16::from(input.arbitrary::<u8>()? % 16);
        if self.asked.iter().filter(|slot| slot.is_none()).count() < 4 {
            self.begin();
        }
        if choice % 64 == 63 {
            let room = [0, 6, 7, 10, 11, 24, 160, ROOM][usize::from(input.arbitrary::<u8>()? % 8)];
            let len = usize::from(input.arbitrary::<u8>()?).min(input.len());
            let mut frame = input.bytes(len)?.to_vec();
            if let (Some(size), true) = (frame.first_chunk_mut::<4>(), choice >= 128) {
                *size = (len as u32).to_le_bytes();
            }
            self.post(&frame, &[], room);
        } else {
            let payload = [0xA5; 300];
            let mut frame = Vec::new();
            let message = message(choice % 64, input)?;
            let encoded = message.encode(tag, &mut frame);
            assert!(encoded.is_ok(), "{message:?}");
            let payload = match message {
                Tmessage::Write(Twrite { count, .. }) => &payload[..count as usize],
                _ => &[],
            };
            self.post(&frame, payload, ROOM);
        }
        // The rest piles up, to run at once.
        if choice < 192 {
            self.run();
        }
        Ok(())
    }
}

impl Asked {
    fn check(self, len: u32, answer: [u8; HEADER_LEN]) {
        assert!(len <= self.room, "more than there is room for");
        if len == 0 {
            let silent = self.kind == kind::TLOCK || self.room < 11 || self.tag.is_none();
            assert!(silent, "no answer to a message of type {}", self.kind);
            return;
        }
        let size = u32::from_le_bytes([answer[0], answer[1], answer[2], answer[3]]);
        assert_eq!(size, len, "used length and size field");
        let kind = answer[4];
        assert!(
            kind == RLERROR || kind == self.kind.wrapping_add(1),
            "{kind}"
        );
        let tag = u16::from_le_bytes([answer[5], answer[6]]);
        assert_eq!(tag, self.tag.unwrap_or(NOTAG), "the tag of the request");
    }
}

fn version() -> Tmessage<'static> {
    Tmessage::Version(Tversion {
        msize: ROOM,
        version: DIALECT,
    })
}

/// Few fids, that they may meet.
fn fid(input: &mut Unstructured<'_>) -> Result<u32> {
    Ok(match input.arbitrary::<u8>()? {
        few @ 0..240 => u32::from(few % 6),
        _ => NOFID,
    })
}

const LONG: [u8; 256] = [b'x'; 256];

/// Few names, of what is there, of what is not, and of what must never be.
fn name(input: &mut Unstructured<'_>) -> Result<&'static [u8]> {
    const NAMES: [&[u8]; 16] = [
        b"a",
        b"b",
        b"c",
        b"d",
        b"e",
        b"out",
        b"link",
        b"secret",
        b"..",
        b".",
        b"",
        b"d/b",
        b"../outside/secret",
        b"a\0b",
        LONG.first_chunk::<255>().expect("shorter"),
        &LONG,
    ];
    Ok(NAMES[usize::from(input.arbitrary::<u8>()?) % NAMES.len()])
}

fn attribute(input: &mut Unstructured<'_>) -> Result<&'static [u8]> {
    const NAMES: [&[u8]; 6] = [
        b"user.a",
        b"user.b",
        b"",
        b"security.capability",
        b"system.posix_acl_access",
        b"nonsense",
    ];
    Ok(NAMES[usize::from(input.arbitrary::<u8>()?) % NAMES.len()])
}

/// Mostly small, sometimes at an edge.
fn number(input: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match input.arbitrary::<u8>()? {
        small @ 0..224 => u64::from(small),
        224..232 => 0x1_0000_0000,
        232..240 => u64::MAX,
        240..248 => i64::MAX as u64,
        _ => input.arbitrary()?,
    })
}

fn short(input: &mut Unstructured<'_>) -> Result<u32> {
    Ok(u32::from(input.arbitrary::<u16>()?))
}

fn count(input: &mut Unstructured<'_>) -> Result<u32> {
    Ok(match input.arbitrary::<u8>()? {
        small @ 0..240 => 8 * u32::from(small),
        _ => input.arbitrary()?,
    })
}

fn names(input: &mut Unstructured<'_>) -> Result<Names<'static>> {
    let mut names = Names::new();
    for _ in 0..input.arbitrary::<u8>()? % 5 {
        names.push(name(input)?);
    }
    Ok(names)
}

/// Only root's own ids, or those of a user who is nobody in particular.
fn id(input: &mut Unstructured<'_>) -> Result<u32> {
    Ok([0, 0, 1000, u32::MAX][usize::from(input.arbitrary::<u8>()? % 4)])
}

fn time(input: &mut Unstructured<'_>) -> Result<Time> {
    Ok(Time {
        sec: number(input)?,
        nsec: number(input)?,
    })
}

fn message(choice: u8, u: &mut Unstructured<'_>) -> Result<Tmessage<'static>> {
    use Tmessage as T;
    Ok(match choice {
        0 => match u.arbitrary::<u8>()? % 4 {
            0 => version(),
            1 => T::Version(Tversion {
                msize: short(u)?,
                version: DIALECT,
            }),
            _ => T::Version(Tversion {
                msize: ROOM,
                version: name(u)?,
            }),
        },
        1 => T::Auth(Tauth {
            afid: fid(u)?,
            uname: name(u)?,
            aname: name(u)?,
            n_uname: id(u)?,
        }),
        2..=5 => T::Attach(Tattach {
            fid: fid(u)?,
            afid: if choice == 2 { fid(u)? } else { NOFID },
            uname: b"",
            aname: if choice == 3 { name(u)? } else { b"" },
            n_uname: id(u)?,
        }),
        6 | 7 => T::Flush(Tflush {
            oldtag: u16::from(u.arbitrary::<u8>()? % 16),
        }),
        8..=15 => T::Walk(Twalk {
            fid: fid(u)?,
            newfid: fid(u)?,
            names: names(u)?,
        }),
        16 | 17 => T::Clunk(Tclunk { fid: fid(u)? }),
        18..=20 => T::Lopen(Tlopen {
            fid: fid(u)?,
            flags: if choice == 20 {
                u.arbitrary()?
            } else {
                short(u)?
            },
        }),
        21..=23 => T::Lcreate(Tlcreate {
            fid: fid(u)?,
            name: name(u)?,
            flags: short(u)?,
            mode: short(u)?,
            gid: id(u)?,
        }),
        24 | 25 => T::Read(Tread {
            fid: fid(u)?,
            offset: number(u)?,
            count: count(u)?,
        }),
        26..=28 => T::Write(Twrite {
            fid: fid(u)?,
            // Sparse, on a file system in memory.
            offset: number(u)?,
            count: u.arbitrary::<u8>()?.into(),
        }),
        29 => T::Fsync(Tfsync {
            fid: fid(u)?,
            datasync: short(u)?,
        }),
        30 | 31 => T::Readdir(Treaddir {
            fid: fid(u)?,
            offset: number(u)?,
            count: count(u)?,
        }),
        32 => T::Mkdir(Tmkdir {
            dfid: fid(u)?,
            name: name(u)?,
            mode: short(u)?,
            gid: id(u)?,
        }),
        33 => T::Mknod(Tmknod {
            dfid: fid(u)?,
            name: name(u)?,
            // No devices: what they do is the host's.
            mode: short(u)? & !0o60_000 | 0o10_000,
            major: 0,
            minor: 0,
            gid: id(u)?,
        }),
        34 => T::Symlink(Tsymlink {
            dfid: fid(u)?,
            name: name(u)?,
            target: name(u)?,
            gid: id(u)?,
        }),
        35 => T::Readlink(Treadlink { fid: fid(u)? }),
        36 | 37 => T::Link(Tlink {
            dfid: fid(u)?,
            fid: fid(u)?,
            name: name(u)?,
        }),
        38 | 39 => T::Rename(Trename {
            fid: fid(u)?,
            dfid: fid(u)?,
            name: name(u)?,
        }),
        40..=42 => T::Renameat(Trenameat {
            olddirfid: fid(u)?,
            oldname: name(u)?,
            newdirfid: fid(u)?,
            newname: name(u)?,
        }),
        43 | 44 => T::Unlinkat(Tunlinkat {
            dirfid: fid(u)?,
            name: name(u)?,
            flags: short(u)?,
        }),
        45 => T::Remove(Tremove { fid: fid(u)? }),
        46 | 47 => T::Getattr(Tgetattr {
            fid: fid(u)?,
            mask: number(u)?,
        }),
        48..=50 => T::Setattr(Tsetattr {
            fid: fid(u)?,
            valid: short(u)?,
            mode: short(u)?,
            uid: id(u)?,
            gid: id(u)?,
            size: number(u)?,
            atime: time(u)?,
            mtime: time(u)?,
        }),
        51 => T::Statfs(Tstatfs { fid: fid(u)? }),
        52..=54 => T::Xattrwalk(Txattrwalk {
            fid: fid(u)?,
            newfid: fid(u)?,
            name: attribute(u)?,
        }),
        55..=57 => T::Xattrcreate(Txattrcreate {
            fid: fid(u)?,
            name: attribute(u)?,
            size: number(u)?,
            flags: short(u)? % 4,
        }),
        58..=60 => T::Lock(Tlock {
            fid: fid(u)?,
            kind: u.arbitrary::<u8>()? % 4,
            flags: short(u)? % 4,
            start: number(u)?,
            length: number(u)?,
            proc_id: u.arbitrary::<u8>()?.into(),
            client_id: b"guest",
        }),
        _ => T::Getlock(Tgetlock {
            fid: fid(u)?,
            kind: u.arbitrary::<u8>()? % 4,
            start: number(u)?,
            length: number(u)?,
            proc_id: u.arbitrary::<u8>()?.into(),
            client_id: b"guest",
        }),
    })
}
