//! virtiofsd and a FUSE client.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use stub_guest::fuse::{Arguments, Client, Opcode, ROOT, body, u64_at};
use stub_guest::{Error, FrontEnd, Options, Reply};
use tempfile::TempDir;

use crate::Result;
use crate::peer::{HALT_POLL, Peer, connect};
use crate::workload::{
    COMPONENT, COMPONENTS, DIRECTORY, ENTRIES, FILE, LISTING, Operation, Tree, WRITTEN, name_of,
    offset,
};

pub struct Virtiofsd {
    name: &'static str,
    client: Client,
    child: Child,
    started_in: Duration,
    nodes: Nodes,
    lanes: Vec<Lane>,
    received: Option<Reply>,
    data: Vec<u8>,
    /// Where its socket is.
    _directory: TempDir,
}

/// What all lanes use.
struct Nodes {
    file: u64,
    directory: u64,
    written: u64,
    /// Handles of the open files.
    read: u64,
    write: u64,
}

#[derive(Default)]
struct Lane {
    name: String,
    /// What the operation has found and opened.
    nodes: Vec<u64>,
    handle: u64,
    listing: Listing,
}

/// How far a directory is listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Listing {
    /// So many entries are known, the next ones begin at this cookie.
    Open(usize, u64),
    /// All are known.
    Complete(usize),
    #[default]
    Closed,
}

impl Virtiofsd {
    pub fn start(
        name: &'static str,
        binary: &Path,
        threads: usize,
        tree: &Tree,
    ) -> Result<Virtiofsd> {
        let directory = TempDir::new()?;
        let socket = directory.path().join("socket");
        let begin = Instant::now();
        let child = Command::new(binary)
            .arg("--socket-path")
            .arg(&socket)
            .arg("--shared-dir")
            .arg(tree.root())
            .arg(format!("--thread-pool-size={threads}"))
            .args(["--cache=auto", "--log-level=error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let stream = connect(&socket, begin)?;
        let started_in = begin.elapsed();
        let options = Client::options(Options {
            halt_poll: HALT_POLL,
            ..Options::default()
        });
        let mut client = Client::new(FrontEnd::new(stream, options)?)?;
        let (file, written) = (client.lookup(ROOT, FILE)?, client.lookup(ROOT, WRITTEN)?);
        let nodes = Nodes {
            file,
            directory: client.lookup(ROOT, DIRECTORY)?,
            written,
            read: client.open(file, libc::O_RDONLY as u32)?,
            write: client.open(written, libc::O_RDWR as u32)?,
        };
        Ok(Virtiofsd {
            name,
            client,
            child,
            started_in,
            nodes,
            lanes: Vec::new(),
            received: None,
            data: vec![7; 480 << 10],
            _directory: directory,
        })
    }
}

/// What is sent for one step.
struct Request<'a> {
    opcode: Opcode,
    node: u64,
    arguments: Arguments,
    sent: &'a [u8],
    received: usize,
}

fn request(opcode: Opcode, node: u64, arguments: Arguments) -> Request<'static> {
    Request {
        opcode,
        node,
        arguments,
        sent: &[],
        received: 0,
    }
}

/// The requests of an operation, one after the other.
fn step_of<'a>(
    nodes: &Nodes,
    lane: &Lane,
    data: &'a [u8],
    (operation, step): (Operation, usize),
    n: u64,
) -> Option<Request<'a>> {
    use Opcode::*;
    let found = |at: usize| lane.nodes.get(at).copied().unwrap_or(ROOT);
    let name = |name: &str| Arguments::new().name(name);
    let opening = Arguments::open(libc::O_RDONLY as u32);
    let closing = Arguments::release(lane.handle);
    let request = match (operation, step) {
        (Operation::Getattr, 0) => request(Getattr, nodes.file, Arguments::getattr()),
        (Operation::Lookup, 0) => request(Lookup, ROOT, name(FILE)),
        (Operation::Lookup, 1) => request(Forget, found(0), Arguments::new().u64(1)),
        (Operation::Walk, ..COMPONENTS) => {
            let parent = step.checked_sub(1).map_or(ROOT, found);
            request(Lookup, parent, name(COMPONENT))
        }
        (Operation::Walk, COMPONENTS) => {
            let count = Arguments::new().u32(COMPONENTS as u32).u32(0);
            let all = lane
                .nodes
                .iter()
                .fold(count, |all, node| all.u64(*node).u64(1));
            request(BatchForget, 0, all)
        }
        (Operation::Open, 0) => request(Open, nodes.file, opening),
        (Operation::Open, 1) => request(Release, nodes.file, closing),
        (Operation::Create, 0) => {
            let how = Arguments::create(&lane.name, libc::O_RDWR as u32, libc::S_IFREG | 0o644);
            request(Create, ROOT, how)
        }
        (Operation::Create, 1) => Request {
            sent: &data[..4096],
            ..request(Write, found(0), Arguments::transfer(lane.handle, 0, 4096))
        },
        (Operation::Create, 2) => request(Release, found(0), closing),
        (Operation::Create, 3) => request(Unlink, ROOT, name(&lane.name)),
        (Operation::Create, 4) => request(Forget, found(0), Arguments::new().u64(1)),
        (Operation::Read(count), 0) => Request {
            received: count as usize,
            ..request(
                Read,
                nodes.file,
                Arguments::transfer(nodes.read, offset(n, count), count),
            )
        },
        (Operation::Write(count), 0) => Request {
            sent: &data[..count as usize],
            ..request(
                Write,
                nodes.written,
                Arguments::transfer(nodes.write, offset(n, count), count),
            )
        },
        (Operation::List, 0) => request(Opendir, nodes.directory, opening),
        (Operation::List, _) => match lane.listing {
            Listing::Open(_, offset) => Request {
                received: LISTING as usize,
                ..request(
                    Readdir,
                    nodes.directory,
                    Arguments::transfer(lane.handle, offset, LISTING),
                )
            },
            Listing::Complete(_) => request(Releasedir, nodes.directory, closing),
            Listing::Closed => return None,
        },
        _ => return None,
    };
    Some(request)
}

impl Peer for Virtiofsd {
    fn name(&self) -> &'static str {
        self.name
    }

    fn pid(&self) -> u32 {
        // In its sandbox it is the only child of the one that was started.
        let started = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{started}/task/{started}/children"));
        let first = |text: String| text.split_whitespace().next()?.parse().ok();
        children.ok().and_then(first).unwrap_or(started)
    }

    fn started_in(&self) -> Duration {
        self.started_in
    }

    fn prepare(&mut self, lanes: usize) -> Result<()> {
        while self.lanes.len() < lanes {
            self.lanes.push(Lane {
                name: format!("{}-{}", name_of(self.lanes.len()), self.name),
                ..Lane::default()
            });
        }
        Ok(())
    }

    fn send(
        &mut self,
        operation: Operation,
        lane: usize,
        n: u64,
        step: usize,
    ) -> Result<Option<u16>> {
        let lane = &mut self.lanes[lane];
        if step == 0 {
            lane.nodes.clear();
            lane.listing = Listing::Open(0, 0);
        }
        let request = step_of(&self.nodes, lane, &self.data, (operation, step), n);
        let Some(request) = request else {
            return Ok(None);
        };
        let tag = self.client.submit(
            request.opcode,
            request.node,
            &request.arguments,
            request.sent,
            request.received,
        )?;
        Ok(Some(tag))
    }

    fn receive(&mut self) -> Result<u16> {
        let completion = self.client.wait_any()?;
        self.received = match completion.reply {
            Ok(reply) => Some(reply),
            // What is forgotten is not answered.
            Err(Error::Flushed) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(completion.tag)
    }

    fn deliver(&mut self, operation: Operation, lane: usize, step: usize) -> Result<()> {
        let Some(reply) = self.received.take() else {
            return Ok(());
        };
        let body = body(&reply)?;
        let lane = &mut self.lanes[lane];
        match (operation, step) {
            (Operation::Lookup, 1) | (Operation::Walk, _) => lane.nodes.push(u64_at(&reply, 0)?),
            (Operation::Create, 1) => {
                lane.nodes.push(u64_at(&reply, 0)?);
                // Behind the entry.
                lane.handle = u64_at(&reply, 128)?;
            }
            (Operation::Open | Operation::List, 1) => lane.handle = u64_at(&reply, 0)?,
            (Operation::List, _) => {
                lane.listing = match lane.listing {
                    Listing::Open(listed, _) => list(body, listed)?,
                    Listing::Complete(count) if count != ENTRIES + 2 => {
                        return Err(format!("{count} entries are listed").into());
                    }
                    _ => Listing::Closed,
                }
            }
            (Operation::Read(count), _) if body.len() != count as usize => {
                return Err("a short read".into());
            }
            _ => {}
        }
        self.client.recycle(reply);
        Ok(())
    }
}

/// Counts the entries (`struct fuse_dirent`) of a reply, behind `listed` others.
fn list(mut entries: &[u8], listed: usize) -> Result<Listing> {
    const HEADER: usize = 24;
    let (mut count, mut last) = (listed, None);
    while let (Some(offset), Some(length)) = (entries.get(8..16), entries.get(16..20)) {
        last = Some(u64::from_le_bytes(offset.try_into()?));
        let length = u32::from_le_bytes(length.try_into()?) as usize;
        let size = (HEADER + length).next_multiple_of(8);
        entries = entries.get(size..).ok_or("an entry is cut off")?;
        count += 1;
    }
    Ok(last.map_or(Listing::Complete(count), |last| Listing::Open(count, last)))
}

impl Drop for Virtiofsd {
    fn drop(&mut self) {
        // Its child, if it has one, ends when the connection does.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
