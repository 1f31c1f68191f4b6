//! What another process has left: a session that was saved for another daemon, or the tables of a process that
//! has died, spoilt in any way.

use std::fs::File;
use std::os::fd::{IntoRawFd, RawFd};
use std::rc::Rc;

use arbitrary::{Result, Unstructured};
use coroutine::Workers;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use vhost_user::{Handler, Migration};
use vhost_user_9p::export::qid::Multidevs;
use vhost_user_9p::export::{Export, FileHandles, FileKind, Identity, Ids, InodeKey, Node};
use vhost_user_9p::server::Server;
use vhost_user_9p::server::limits::Limits;
use vhost_user_9p::server::throttle::Rates;
use vhost_user_9p::state::{
    Capacity, Claims, LockEntry, Memory, Pin, PlaceRecord, State, Target, Text,
};

use crate::machine::open_descriptors;
use crate::share::Share;

const LIMITS: Limits = Limits {
    fids: 16,
    xattr_bytes: 4096,
    locks: 16,
};

thread_local! {
    static SHARE: Share = {
        let share = Share::new();
        share.fill();
        share
    };
}

fn server(memory: &Memory, capacity: &Capacity) -> Rc<Server> {
    let identity = Identity::of_process(Ids::default(), None).expect("an identity");
    let export = SHARE.with(|share| {
        Export::new(&share.path(), false, FileHandles::Never, identity).expect("a share")
    });
    Server::new(
        export,
        Workers::new(1).expect("a worker"),
        Multidevs::Remap,
        64,
        (LIMITS, Rates::default()),
        State::new(memory, capacity),
    )
}

/// The first byte chooses between the two.
pub fn state(bytes: &[u8]) {
    let Some((choice, rest)) = bytes.split_first() else {
        return;
    };
    let before = open_descriptors().len();
    match choice % 2 {
        0 => load(rest),
        _ => {
            // Ends with the input.
            let _ = resume(&mut Unstructured::new(rest));
        }
    }
    let open = open_descriptors();
    assert_eq!(open.len(), before, "left over: {open:?}");
    SHARE.with(Share::check);
}

fn load(bytes: &[u8]) {
    let capacity = LIMITS.capacity();
    let memory = capacity.memory().expect("memory");
    let server = server(&memory, &capacity);
    let loaded = server.load(&mut &bytes[..]);
    if loaded.is_ok() {
        // What was taken can be given on, and is the same then.
        let (mut first, mut second) = (Vec::new(), Vec::new());
        server.save(&mut first).expect("a session");
        server.load(&mut &first[..]).expect("its own session");
        server.save(&mut second).expect("a session");
        assert_eq!(first.len(), second.len());
    }
    server.reset();
    end(&server);
}

fn end(server: &Server) {
    while coroutine::run_ready() + server.workers().wait_completed() > 0 {}
}

/// A state with any rows, of which some fit together, and descriptors that may be anything.
fn resume(input: &mut Unstructured<'_>) -> Result<()> {
    let capacity = LIMITS.capacity();
    let memory = capacity.memory().expect("memory");
    let mut before = Before {
        state: State::new(&memory, &capacity),
        given: Vec::new(),
        texts: Vec::new(),
    };
    before.state.begin();
    before.use_rows();
    before.state.set_msize(8192);
    while !input.is_empty() {
        if before.add(input).is_err() {
            break;
        }
    }
    // SAFETY: they were opened here, for this.
    let mut claims = unsafe { Claims::new(std::mem::take(&mut before.given)) };
    drop(before);
    let after = server(&memory, &capacity);
    let resumed = after.resume(&mut claims);
    drop(claims);
    if resumed.is_ok() {
        after.go_on();
        end(&after);
        let mut saved = Vec::new();
        after.save(&mut saved).expect("a session");
    }
    end(&after);
    after.reset();
    end(&after);
    Ok(())
}

/// The process that has died.
struct Before {
    state: State,
    given: Vec<RawFd>,
    texts: Vec<Text>,
}

/// How many rows of each table are used.
const ROWS: u32 = 8;

impl Before {
    /// Uses the rows once, so that the next process looks at them.
    fn use_rows(&self) {
        let state = &self.state;
        let inodes: Vec<_> = (0..ROWS).map(|_| state.inodes().take()).collect();
        let fids: Vec<_> = (0..ROWS).map(|_| state.fids().take()).collect();
        let locks: Vec<_> = (0..ROWS).map(|_| state.locks().take()).collect();
        drop((inodes, fids, locks));
    }

    fn add(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        match input.arbitrary::<u8>()? % 8 {
            0..3 => {
                let table = self.state.inodes().clone();
                let row = table.get(1 + few(input)? % ROWS).expect("a row");
                let (fd, key, kind) = self.file(input)?;
                row.describe(&key, kind);
                row.set_pin(match input.arbitrary::<u8>()? % 8 {
                    0..5 => Pin::Descriptor(fd),
                    5 => Pin::Descriptor(input.arbitrary::<u16>()?.into()),
                    6 => Pin::Handle(self.text(input)?),
                    _ => Pin::Name,
                });
                row.set_place(match input.arbitrary::<u8>()? % 2 {
                    0 => None,
                    _ => Some(PlaceRecord {
                        directory: few(input)?,
                        name: self.text(input)?,
                    }),
                });
            }
            3..6 => {
                let table = self.state.fids().clone();
                let row = table.get(1 + few(input)? % ROWS).expect("a row");
                row.describe(few(input)?, few(input)?, few(input)?);
                row.set_previous(few(input)?);
                row.set_target(match input.arbitrary::<u8>()? % 8 {
                    0..3 => Target::Walked(few(input)?),
                    3..6 => Target::Open(few(input)?, self.open(input)?),
                    6 => Target::Value(self.text(input)?),
                    _ => Target::Draft(self.text(input)?),
                });
            }
            6 => {
                let table = self.state.locks().clone();
                let row = table.get(1 + few(input)? % ROWS).expect("a row");
                row.describe(&LockEntry {
                    fid: few(input)?,
                    description: self.open(input)?,
                    client: self.text(input)?,
                    process: few(input)?,
                    kind: few(input)?,
                    start: input.arbitrary::<u16>()?.into(),
                    end: input.arbitrary()?,
                });
            }
            _ => {
                let len = usize::from(input.arbitrary::<u8>()?).min(input.len());
                self.texts.push(self.state.heap().keep(input.bytes(len)?));
            }
        }
        Ok(())
    }

    /// Mostly one of the strings that there are.
    fn text(&self, input: &mut Unstructured<'_>) -> Result<u32> {
        Ok(match input.arbitrary::<u8>()? {
            known @ 0..250 if !self.texts.is_empty() => {
                self.texts[usize::from(known) % self.texts.len()].reference()
            }
            _ => input.arbitrary::<u16>()?.into(),
        })
    }

    /// A descriptor of a file of the share, or of the directory outside, and what it should be recorded as.
    fn file(&mut self, input: &mut Unstructured<'_>) -> Result<(RawFd, InodeKey, FileKind)> {
        const NAMES: [&str; 6] = ["", "a", "d", "d/b", "out", "../outside/secret"];
        let name = NAMES[usize::from(input.arbitrary::<u8>()?) % NAMES.len()];
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let path = SHARE.with(|share| share.path().join(name));
        let fd = nix::fcntl::open(&path, flags, Mode::empty()).expect("it is there");
        let (node, _) = Node::new(fd.try_clone().expect("a descriptor")).expect("a file");
        let (key, kind) = (*node.key(), node.kind());
        let fd = fd.into_raw_fd();
        self.given.push(fd);
        let other = InodeKey {
            mount: input.arbitrary::<u8>()?.into(),
            ..key
        };
        Ok(match input.arbitrary::<u8>()? {
            0 => (fd, other, kind),
            1 => (fd, key, FileKind::Special),
            _ => (fd, key, kind),
        })
    }

    /// The descriptor of an open file, or a number.
    fn open(&mut self, input: &mut Unstructured<'_>) -> Result<RawFd> {
        const NAMES: [&str; 3] = ["a", "d", "d/b"];
        let choice = input.arbitrary::<u8>()?;
        if choice > 250 {
            return Ok(input.arbitrary::<u16>()?.into());
        }
        let path = SHARE.with(|share| share.path().join(NAMES[usize::from(choice) % NAMES.len()]));
        let fd = File::open(path).expect("it is there").into_raw_fd();
        self.given.push(fd);
        Ok(fd)
    }
}

fn few(input: &mut Unstructured<'_>) -> Result<u32> {
    Ok((input.arbitrary::<u8>()? % 8).into())
}
