//! A FUSE client for a virtio-fs device (virtio 1.2, 5.11; linux/fuse.h), as far as the benches need
//! one: what they measure the 9P daemon beside.
//!
//! Requests and replies begin with their length, as 9P's frames do, so that the [`Client`]
//! below posts and gathers both.

use crate::client::{Client as Frames, Completion, Reply};
use crate::error::{Error, Result};
use crate::front_end::{
    FEATURE_EVENT_IDX, FEATURE_INDIRECT_DESC, FEATURE_PROTOCOL_FEATURES, FEATURE_VERSION_1,
    FrontEnd, Options,
};

/// The node that every other is found from.
pub const ROOT: u64 = 1;
/// The first ring for requests; ring 0 is for those with priority.
pub const REQUEST_RING: u8 = 1;

const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
const MAJOR: u32 = 7;
const MINOR: u32 = 38;
/// Asks in INIT for writes and reads of more than a page (FUSE_BIG_WRITES, FUSE_MAX_PAGES), and reads
/// that overtake each other (FUSE_ASYNC_READ, FUSE_PARALLEL_DIROPS).
const INIT_FLAGS: u32 = 1 << 0 | 1 << 5 | 1 << 18 | 1 << 22;

/// What is asked for; the numbers of linux/fuse.h.
#[allow(missing_docs, reason = "names of the kernel's header")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Opcode {
    Lookup = 1,
    Forget = 2,
    Getattr = 3,
    Unlink = 10,
    Open = 14,
    Read = 15,
    Write = 16,
    Release = 18,
    Init = 26,
    Opendir = 27,
    Readdir = 28,
    Releasedir = 29,
    Create = 35,
    BatchForget = 42,
}

impl Opcode {
    /// Bytes of a whole reply without payload; 0 if none comes.
    fn reply(self) -> usize {
        let body = match self {
            Opcode::Forget | Opcode::BatchForget => return 0,
            Opcode::Lookup => ENTRY,
            Opcode::Getattr => 104,
            Opcode::Open | Opcode::Opendir => 16,
            Opcode::Create => ENTRY + 16,
            Opcode::Write => 8,
            Opcode::Init => 64,
            Opcode::Unlink
            | Opcode::Read
            | Opcode::Readdir
            | Opcode::Release
            | Opcode::Releasedir => 0,
        };
        OUT_HEADER + body
    }
}

/// Bytes of `fuse_entry_out`.
const ENTRY: usize = 128;

/// The arguments behind a request's header, put together field by field.
#[derive(Clone, Debug, Default)]
pub struct Arguments(Vec<u8>);

impl Arguments {
    /// None.
    pub fn new() -> Arguments {
        Arguments::default()
    }

    /// Appends a `u32`.
    pub fn u32(mut self, value: u32) -> Arguments {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends a `u64`.
    pub fn u64(mut self, value: u64) -> Arguments {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends a name and its end.
    pub fn name(mut self, name: &str) -> Arguments {
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self
    }

    /// `fuse_getattr_in` for a node.
    pub fn getattr() -> Arguments {
        Arguments::new().u64(0).u64(0)
    }

    /// `fuse_open_in`.
    pub fn open(flags: u32) -> Arguments {
        Arguments::new().u32(flags).u32(0)
    }

    /// `fuse_read_in` and `fuse_write_in`, which are alike.
    pub fn transfer(handle: u64, offset: u64, size: u32) -> Arguments {
        let place = Arguments::new().u64(handle).u64(offset);
        place.u32(size).u32(0).u64(0).u64(0)
    }

    /// `fuse_release_in`.
    pub fn release(handle: u64) -> Arguments {
        Arguments::new().u64(handle).u64(0).u64(0)
    }

    /// `fuse_create_in` and the name.
    pub fn create(name: &str, flags: u32, mode: u32) -> Arguments {
        let how = Arguments::new().u32(flags).u32(mode);
        how.u32(0).u32(0).name(name)
    }
}

/// A FUSE client with its own front-end.
pub struct Client {
    frames: Frames,
    frame: Vec<u8>,
}

impl Client {
    /// The options of a front-end for a virtio-fs device, as far as they have to differ.
    pub fn options(options: Options) -> Options {
        Options {
            ring: REQUEST_RING,
            features: FEATURE_VERSION_1
                | FEATURE_INDIRECT_DESC
                | FEATURE_EVENT_IDX
                | FEATURE_PROTOCOL_FEATURES,
            // REPLY_ACK
            protocol_features: 1 << 3,
            ..options
        }
    }

    /// A client over a front-end whose ring runs, after INIT.
    pub fn new(front_end: FrontEnd) -> Result<Client> {
        let mut client = Client {
            frames: Frames::new(front_end),
            frame: Vec::new(),
        };
        let mut arguments = Arguments::new().u32(MAJOR).u32(MINOR);
        arguments = arguments.u32(128 << 10).u32(INIT_FLAGS);
        arguments.0.resize(64, 0);
        let reply = client.call(Opcode::Init, 0, &arguments)?;
        if body(&reply)?.len() < 64 {
            return Err(Error::NotOffered("FUSE 7.23"));
        }
        Ok(client)
    }

    /// Puts a request for `node` into the ring and returns its handle for the wait. `sent` is the data
    /// of a WRITE, `received` how much a READ or READDIR may return.
    pub fn submit(
        &mut self,
        opcode: Opcode,
        node: u64,
        arguments: &Arguments,
        sent: &[u8],
        received: usize,
    ) -> Result<u16> {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        let length = IN_HEADER + arguments.0.len() + sent.len();
        frame.extend_from_slice(&(length as u32).to_le_bytes());
        frame.extend_from_slice(&(opcode as u32).to_le_bytes());
        // One number for all: the ring tells replies apart.
        frame.extend_from_slice(&1_u64.to_le_bytes());
        frame.extend_from_slice(&node.to_le_bytes());
        // Owner, group, process: root's, and none.
        frame.extend_from_slice(&[0; 16]);
        frame.extend_from_slice(&arguments.0);
        let tag = self
            .frames
            .submit_pages(&frame, sent, opcode.reply(), received);
        self.frame = frame;
        tag
    }

    /// Waits for whichever request comes back next.
    pub fn wait_any(&mut self) -> Result<Completion> {
        self.frames.wait_any()
    }

    /// Requests that are with the device.
    pub fn outstanding(&self) -> usize {
        self.frames.outstanding()
    }

    /// Gives a reply's memory back.
    pub fn recycle(&mut self, reply: Reply) {
        self.frames.recycle(reply);
    }

    /// Sends one request without payload and waits for its reply.
    pub fn call(&mut self, opcode: Opcode, node: u64, arguments: &Arguments) -> Result<Reply> {
        let tag = self.submit(opcode, node, arguments, &[], 0)?;
        self.frames.wait(tag)
    }

    /// Looks a name up: its node.
    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<u64> {
        let reply = self.call(Opcode::Lookup, parent, &Arguments::new().name(name))?;
        u64_at(&reply, 0)
    }

    /// Opens a node: its handle.
    pub fn open(&mut self, node: u64, flags: u32) -> Result<u64> {
        let reply = self.call(Opcode::Open, node, &Arguments::open(flags))?;
        u64_at(&reply, 0)
    }
}

/// What follows a reply's header. Errors: [`Error::Errno`] if it tells one.
pub fn body(reply: &Reply) -> Result<&[u8]> {
    let frame = reply.frame();
    let (Some(body), Some(error)) = (frame.get(OUT_HEADER..), frame.get(4..8)) else {
        return Err(Error::Control {
            request: 0,
            problem: "a FUSE reply without a header",
        });
    };
    let error = error.try_into().map_or(0, i32::from_le_bytes);
    if error == 0 {
        Ok(body)
    } else {
        Err(Error::Errno(error.unsigned_abs()))
    }
}

/// The `u64` at byte `at` of a reply's body.
pub fn u64_at(reply: &Reply, at: usize) -> Result<u64> {
    let field = body(reply)?.get(at..at + 8);
    let bytes = field.and_then(|field| field.try_into().ok());
    bytes.map(u64::from_le_bytes).ok_or(Error::Control {
        request: 0,
        problem: "a FUSE reply that is too short",
    })
}
