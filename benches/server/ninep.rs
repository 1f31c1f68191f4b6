//! Our daemon and a 9P client.

use std::time::{Duration, Instant};

use protocol::{
    DirEntry, Names, Tclunk, Tgetattr, Tlcreate, Tlopen, Tmessage, Tread, Treaddir, Tunlinkat,
    Twalk, getattr, open,
};
use stub_guest::client::twrite;
use stub_guest::daemon::Launch;
use stub_guest::{Attach, Client, Daemon, FrontEnd, Options, Reply};

use crate::Result;
use crate::peer::{HALT_POLL, Peer, connect};
use crate::workload::{
    COMPONENT, COMPONENTS, DIRECTORY, ENTRIES, FILE, LISTING, Operation, Tree, WRITTEN, name_of,
    offset,
};

pub struct Ours {
    client: Client,
    daemon: Daemon,
    started_in: Duration,
    fids: Fids,
    lanes: Vec<Lane>,
    received: Option<Reply>,
    data: Vec<u8>,
}

/// What all lanes use.
struct Fids {
    root: u32,
    file: u32,
    directory: u32,
    /// Open for reading, and another file for writing.
    read: u32,
    write: u32,
}

struct Lane {
    name: String,
    /// A fid that only its operation uses.
    fid: u32,
    listing: Listing,
}

/// How far a directory is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listing {
    /// So many entries are known, the next ones begin at this cookie.
    Open(usize, u64),
    /// All are known.
    Complete(usize),
    Closed,
}

impl Ours {
    pub fn start(binary: &str, tree: &Tree) -> Result<Ours> {
        let begin = Instant::now();
        let daemon = Launch::new(binary).share(tree.root()).by_path().start()?;
        let stream = connect(daemon.socket(), begin)?;
        let started_in = begin.elapsed();
        let options = Options {
            halt_poll: HALT_POLL,
            ..Options::default()
        };
        let mut client = Client::new(FrontEnd::new(stream, options)?);
        let root = client.mount(&Attach::default())?;
        let fids = Fids {
            root,
            file: client.walk_path(root, FILE)?,
            directory: client.walk_path(root, DIRECTORY)?,
            read: client.walk_path(root, FILE)?,
            write: client.walk_path(root, WRITTEN)?,
        };
        client.lopen(fids.read, open::RDONLY)?;
        client.lopen(fids.write, open::RDWR)?;
        Ok(Ours {
            client,
            daemon,
            started_in,
            fids,
            lanes: Vec::new(),
            received: None,
            data: vec![7; 480 << 10],
        })
    }
}

/// The messages of an operation, one after the other, and the payload of a Twrite.
fn request<'a>(
    fids: &Fids,
    lane: &'a Lane,
    data: &'a [u8],
    (operation, step): (Operation, usize),
    n: u64,
) -> Option<(Tmessage<'a>, &'a [u8])> {
    let fid = lane.fid;
    let name = lane.name.as_bytes();
    let opening = Tmessage::Lopen(Tlopen {
        fid,
        flags: open::RDONLY,
    });
    let closing = Tmessage::Clunk(Tclunk { fid });
    let message = match (operation, step) {
        (Operation::Getattr, 0) => attributes(fids.file),
        (Operation::Lookup, 0) => walk(fids.root, fid, &[FILE]),
        (Operation::Walk, 0) => walk(fids.root, fid, &[COMPONENT; COMPONENTS]),
        (Operation::Lookup | Operation::Walk, 1) => attributes(fid),
        (Operation::Lookup | Operation::Walk, 2) => closing,
        (Operation::Open, 0) => walk(fids.file, fid, &[]),
        (Operation::Open, 1) => opening,
        (Operation::Open, 2) => closing,
        (Operation::Create, 0) => walk(fids.root, fid, &[]),
        (Operation::Create, 1) => Tmessage::Lcreate(Tlcreate {
            fid,
            name,
            flags: open::RDWR,
            mode: 0o644,
            gid: 0,
        }),
        (Operation::Create, 2) => return Some((twrite(fid, 0, &data[..4096]), &data[..4096])),
        (Operation::Create, 3) => closing,
        (Operation::Create, 4) => Tmessage::Unlinkat(Tunlinkat {
            dirfid: fids.root,
            name,
            flags: 0,
        }),
        (Operation::Read(count), 0) => Tmessage::Read(Tread {
            fid: fids.read,
            offset: offset(n, count),
            count,
        }),
        (Operation::Write(count), 0) => {
            let data = &data[..count as usize];
            return Some((twrite(fids.write, offset(n, count), data), data));
        }
        (Operation::List, 0) => walk(fids.directory, fid, &[]),
        (Operation::List, 1) => opening,
        (Operation::List, _) => match lane.listing {
            Listing::Open(_, offset) => Tmessage::Readdir(Treaddir {
                fid,
                offset,
                count: LISTING,
            }),
            Listing::Complete(_) => closing,
            Listing::Closed => return None,
        },
        _ => return None,
    };
    Some((message, &[]))
}

fn attributes(fid: u32) -> Tmessage<'static> {
    Tmessage::Getattr(Tgetattr {
        fid,
        mask: getattr::BASIC,
    })
}

fn walk(fid: u32, newfid: u32, path: &[&'static str]) -> Tmessage<'static> {
    let mut names = Names::new();
    for name in path {
        names.push(name.as_bytes());
    }
    Tmessage::Walk(Twalk { fid, newfid, names })
}

impl Peer for Ours {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    fn started_in(&self) -> Duration {
        self.started_in
    }

    fn prepare(&mut self, lanes: usize) -> Result<()> {
        while self.lanes.len() < lanes {
            self.lanes.push(Lane {
                name: name_of(self.lanes.len()),
                fid: self.client.alloc_fid(),
                listing: Listing::Open(0, 0),
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
            lane.listing = Listing::Open(0, 0);
        }
        let request = request(&self.fids, lane, &self.data, (operation, step), n);
        let sent = request.map(|(message, payload)| self.client.submit(&message, payload));
        Ok(sent.transpose()?)
    }

    fn receive(&mut self) -> Result<u16> {
        let completion = self.client.wait_any()?;
        let reply = completion.reply?;
        reply.message()?;
        self.received = Some(reply);
        Ok(completion.tag)
    }

    fn deliver(&mut self, operation: Operation, lane: usize, step: usize) -> Result<()> {
        let Some(reply) = self.received.take() else {
            return Ok(());
        };
        let lane = &mut self.lanes[lane];
        match operation {
            Operation::Read(count) if reply.payload().len() != count as usize => {
                return Err("a short read".into());
            }
            Operation::List if step > 2 => {
                lane.listing = match lane.listing {
                    Listing::Open(listed, _) => {
                        let entries = DirEntry::decode_all(reply.payload());
                        let mut last = None;
                        let mut count = listed;
                        for entry in entries {
                            last = Some(entry?.offset);
                            count += 1;
                        }
                        last.map_or(Listing::Complete(count), |last| Listing::Open(count, last))
                    }
                    Listing::Complete(count) if count != ENTRIES + 2 => {
                        return Err(format!("{count} entries are listed").into());
                    }
                    _ => Listing::Closed,
                };
            }
            _ => {}
        }
        self.client.recycle(reply);
        Ok(())
    }
}
