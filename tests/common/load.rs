//! A load: many requests of all kinds at once, each with its one right answer.
//!
//! Whatever can be done only once is done so that a second time would show: a directory is made,
//! a name removed, a fid given back, a line appended to a log.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use protocol::{
    DirEntry, Names, Rmessage, Tclunk, Tflush, Tfsync, Tgetattr, Tgetlock, Tlcreate, Tmessage,
    Tmkdir, Tread, Treaddir, Treadlink, Tsetattr, Tstatfs, Tunlinkat, Twalk, Twrite, Txattrwalk,
    getattr, lock, open, setattr,
};
use stub_guest::messages::{Lock, tlock};
use stub_guest::{Client, Error, Reply, Result};

use super::random::Random;
use super::{NO_ID, host_set, host_value, no_change, pattern};

const CONTENT: usize = 200_000;
const ENTRIES: usize = 20;
const SLOT: usize = 6000;
const XATTR: &str = "user.load";
const LINE: usize = 16;

/// One request of a load.
#[derive(Debug)]
pub struct Posted {
    /// By which the client knows it.
    pub tag: u16,
    kind: Kind,
    /// Tells it from all others of the load.
    serial: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Getattr,
    Walk(u32),
    WalkNowhere,
    Read {
        at: usize,
        count: usize,
    },
    Write {
        slot: usize,
    },
    Append,
    Readdir,
    Statfs,
    Readlink,
    Xattrwalk(u32),
    Mkdir,
    Lcreate(u32),
    Unlink,
    Setattr,
    Fsync,
    Getlock,
    /// Waits: the host has the lock.
    Lock,
    Flush {
        oldtag: u16,
    },
    Clunk(u32),
}

impl Posted {
    /// Whether its answer may not come before [`Load::let_go`].
    pub fn waits(&self) -> bool {
        matches!(self.kind, Kind::Lock | Kind::Flush { .. })
    }
}

/// A request that is to be posted.
#[derive(Debug)]
pub struct Planned {
    kind: Kind,
    serial: u64,
}

/// A share that is prepared for loads, and a session's fids on it.
pub struct Load {
    share: PathBuf,
    content: Vec<u8>,
    has_xattrs: bool,
    /// Holds the lock that the guest waits for, while it is there.
    holder: Option<File>,
    /// The byte of the file that it locks: another one for each load, as the guest gets some.
    turn: u64,
    root: u32,
    data: u32,
    own: u32,
    log: u32,
    directory: u32,
    link: u32,
    locked: u32,
    serial: u64,
    random: Random,
    /// The lines that must be in the log.
    lines: HashSet<u64>,
    /// Fids that requests have made.
    made: Vec<u32>,
}

impl Load {
    /// Prepares a share.
    pub fn prepare(share: &Path, seed: u64) -> Load {
        fs::write(share.join("data"), pattern(CONTENT)).unwrap();
        for name in ["own", "log", "locked"] {
            fs::write(share.join(name), b"").unwrap();
        }
        fs::create_dir(share.join("directory")).unwrap();
        for n in 0..ENTRIES {
            fs::write(share.join("directory").join(format!("entry-{n}")), b"").unwrap();
        }
        symlink("a target", share.join("link")).unwrap();
        host_set(&share.join("data"), XATTR, b"a value");
        Load::on(share, seed)
    }

    /// For a share that is prepared. Two that use it have different seeds.
    pub fn on(share: &Path, seed: u64) -> Load {
        Load {
            share: share.into(),
            content: pattern(CONTENT),
            has_xattrs: host_value(&share.join("data"), XATTR).is_some(),
            holder: None,
            turn: 0,
            root: 0,
            data: 0,
            own: 0,
            log: 0,
            directory: 0,
            link: 0,
            locked: 0,
            serial: seed << 32,
            random: Random(seed << 8 | 1),
            lines: HashSet::new(),
            made: Vec::new(),
        }
    }

    /// Opens what the requests are about in a session that has just begun.
    pub fn begin(&mut self, client: &mut Client, root: u32) {
        let mut fid = |name, flags: Option<u32>| {
            let fid = client.walk_path(root, name).unwrap();
            if let Some(flags) = flags {
                client.lopen(fid, flags).unwrap();
            }
            fid
        };
        self.root = root;
        self.data = fid("data", Some(open::RDWR));
        self.own = fid("own", Some(open::RDWR));
        self.log = fid("log", Some(open::WRONLY | open::APPEND));
        self.directory = fid("directory", Some(open::RDONLY | open::DIRECTORY));
        self.link = fid("link", None);
        self.locked = fid("locked", Some(open::RDWR));
    }

    /// A number below `limit`, the same at every run.
    pub fn random(&mut self, limit: usize) -> usize {
        self.random.below(limit as u64) as usize
    }

    /// Makes `count` requests that can be posted with [`post`](Self::post), in any order. What they
    /// need is done here: nothing of it has to be waited for later. From here to
    /// [`let_go`](Self::let_go) a lock has to be waited for.
    pub fn plan(&mut self, client: &mut Client, count: usize) -> Vec<Planned> {
        self.turn += 1;
        let holder = OpenOptions::new()
            .write(true)
            .open(self.share.join("locked"))
            .unwrap();
        let write_lock = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: self.turn as i64,
            l_len: 1,
            l_pid: 0,
        };
        fcntl(&holder, FcntlArg::F_OFD_SETLK(&write_lock)).unwrap();
        self.holder = Some(holder);
        (0..count).map(|slot| self.plan_one(client, slot)).collect()
    }

    fn plan_one(&mut self, client: &mut Client, slot: usize) -> Planned {
        self.serial += 1;
        let serial = self.serial;
        let clone = |client: &mut Client| {
            let fid = client.alloc_fid();
            client.walk::<&str>(self.root, fid, &[]).unwrap();
            fid
        };
        let kind = match self.random.below(20) {
            0 => Kind::Getattr,
            1 => Kind::Walk(client.alloc_fid()),
            2 => Kind::WalkNowhere,
            3 | 4 => {
                let at = self.random.below(CONTENT as u64) as usize;
                let count = 1 + self.random.below(60_000) as usize;
                Kind::Read { at, count }
            }
            5 | 6 => Kind::Write { slot },
            7 => Kind::Append,
            8 => Kind::Readdir,
            9 => Kind::Statfs,
            10 => Kind::Readlink,
            11 if self.has_xattrs => Kind::Xattrwalk(client.alloc_fid()),
            12 => Kind::Mkdir,
            13 => Kind::Lcreate(clone(client)),
            14 => {
                fs::write(self.share.join(format!("gone-{serial}")), b"").unwrap();
                Kind::Unlink
            }
            15 => Kind::Setattr,
            16 => Kind::Fsync,
            17 => Kind::Getlock,
            18 => Kind::Lock,
            _ => Kind::Clunk(clone(client)),
        };
        Planned { kind, serial }
    }

    /// Puts a planned request into the ring. Some flush one of those `before`.
    pub fn post(&mut self, client: &mut Client, planned: Planned, before: &[Posted]) -> Posted {
        let Planned { mut kind, serial } = planned;
        if kind == Kind::Statfs && !before.is_empty() {
            let oldtag = before[self.random.below(before.len() as u64) as usize].tag;
            kind = Kind::Flush { oldtag };
        }
        let tag = self.submit(client, kind, serial).unwrap();
        Posted { tag, kind, serial }
    }

    fn submit(&self, client: &mut Client, kind: Kind, serial: u64) -> Result<u16> {
        let own_name = name(kind, serial).into_bytes();
        let mut names = Names::new();
        let mut payload = Vec::new();
        let message = match kind {
            Kind::Getattr => Tmessage::Getattr(Tgetattr {
                fid: self.data,
                mask: getattr::ALL,
            }),
            Kind::Walk(newfid) => {
                assert!(names.push(b"directory") && names.push(b"entry-7"));
                Tmessage::Walk(Twalk {
                    fid: self.root,
                    newfid,
                    names,
                })
            }
            Kind::WalkNowhere => {
                assert!(names.push(b"nowhere"));
                Tmessage::Walk(Twalk {
                    fid: self.root,
                    newfid: u32::MAX - 7,
                    names,
                })
            }
            Kind::Read { at, count } => Tmessage::Read(Tread {
                fid: self.data,
                offset: at as u64,
                count: count as u32,
            }),
            Kind::Write { slot } => {
                payload = written(serial);
                Tmessage::Write(Twrite {
                    fid: self.own,
                    offset: (slot * SLOT) as u64,
                    count: payload.len() as u32,
                })
            }
            Kind::Append => {
                payload = line(serial);
                Tmessage::Write(Twrite {
                    fid: self.log,
                    offset: 0,
                    count: payload.len() as u32,
                })
            }
            Kind::Readdir => Tmessage::Readdir(Treaddir {
                fid: self.directory,
                offset: 0,
                count: 8000,
            }),
            Kind::Statfs => Tmessage::Statfs(Tstatfs { fid: self.root }),
            Kind::Readlink => Tmessage::Readlink(Treadlink { fid: self.link }),
            Kind::Xattrwalk(newfid) => Tmessage::Xattrwalk(Txattrwalk {
                fid: self.data,
                newfid,
                name: XATTR.as_bytes(),
            }),
            Kind::Mkdir => Tmessage::Mkdir(Tmkdir {
                dfid: self.root,
                name: &own_name,
                mode: 0o755,
                gid: NO_ID,
            }),
            Kind::Lcreate(fid) => Tmessage::Lcreate(Tlcreate {
                fid,
                name: &own_name,
                flags: open::WRONLY | open::EXCL,
                mode: 0o644,
                gid: NO_ID,
            }),
            Kind::Unlink => Tmessage::Unlinkat(Tunlinkat {
                dirfid: self.root,
                name: &own_name,
                flags: 0,
            }),
            Kind::Setattr => Tmessage::Setattr(Tsetattr {
                valid: setattr::MTIME,
                ..no_change(self.data)
            }),
            Kind::Fsync => Tmessage::Fsync(Tfsync {
                fid: self.own,
                datasync: 0,
            }),
            Kind::Getlock => Tmessage::Getlock(Tgetlock {
                fid: self.data,
                kind: lock::WRLCK,
                start: 1,
                length: 2,
                proc_id: 3,
                client_id: b"load",
            }),
            Kind::Lock => {
                let lock = Lock {
                    start: self.turn,
                    length: 1,
                    ..Lock::whole(lock::RDLCK)
                };
                return client.submit(&tlock(self.locked, lock::BLOCK, &lock), &[]);
            }
            Kind::Flush { oldtag } => Tmessage::Flush(Tflush { oldtag }),
            Kind::Clunk(fid) => Tmessage::Clunk(Tclunk { fid }),
        };
        client.submit(&message, &payload)
    }

    /// The host gives its lock up: nothing of the load waits for ever any more.
    pub fn let_go(&mut self) {
        self.holder = None;
    }

    /// Asserts that a request got its one right answer, or one that says that it was cancelled if
    /// one of `all` was a flush of it; and on the host, that it did what it says.
    #[track_caller]
    pub fn check(&mut self, posted: &Posted, reply: Result<Reply>, all: &[Posted]) {
        if let (Kind::Lock, Err(Error::Flushed)) = (posted.kind, &reply) {
            let flush = Kind::Flush { oldtag: posted.tag };
            assert!(
                all.iter().any(|other| other.kind == flush),
                "a lock was cancelled that nobody flushed"
            );
            return;
        }
        let reply = reply.unwrap_or_else(|error| panic!("{posted:?}: {error}"));
        let Posted { kind, serial, .. } = *posted;
        let message = reply.message();
        let right = match (kind, &message) {
            (Kind::WalkNowhere, Err(error)) => error.errno() == Some(libc::ENOENT),
            (Kind::Getattr, Ok(Rmessage::Getattr(r))) => r.size == CONTENT as u64,
            (Kind::Walk(_), Ok(Rmessage::Walk(r))) => r.qids.len() == 2,
            (Kind::Read { at, count }, Ok(Rmessage::Read(_))) => {
                let end = CONTENT.min(at + count);
                reply.payload() == &self.content[at..end]
            }
            (Kind::Write { .. }, Ok(Rmessage::Write(r))) => {
                r.count as usize == written(serial).len() && self.is_in_effect(posted) == Some(true)
            }
            (Kind::Append, Ok(Rmessage::Write(r))) => {
                self.lines.insert(serial) && r.count as usize == LINE
            }
            (Kind::Readdir, Ok(Rmessage::Readdir(_))) => {
                let entries: HashSet<Vec<u8>> = DirEntry::decode_all(reply.payload())
                    .map(|entry| entry.unwrap().name.to_vec())
                    .collect();
                entries.len() == ENTRIES + 2 && entries.contains(b"entry-7".as_slice())
            }
            (Kind::Readlink, Ok(Rmessage::Readlink(r))) => r.target == b"a target",
            (Kind::Xattrwalk(_), Ok(Rmessage::Xattrwalk(r))) => r.size == 7,
            (Kind::Mkdir, Ok(Rmessage::Mkdir(_)))
            | (Kind::Lcreate(_), Ok(Rmessage::Lcreate(_)))
            | (Kind::Unlink, Ok(Rmessage::Unlinkat(_))) => self.is_in_effect(posted) == Some(true),
            (Kind::Statfs, Ok(Rmessage::Statfs(r))) => r.namelen >= 255,
            (Kind::Setattr, Ok(Rmessage::Setattr(_)))
            | (Kind::Fsync, Ok(Rmessage::Fsync(_)))
            | (Kind::Flush { .. }, Ok(Rmessage::Flush(_)))
            | (Kind::Clunk(_), Ok(Rmessage::Clunk(_))) => true,
            (Kind::Getlock, Ok(Rmessage::Getlock(r))) => r.kind == lock::UNLCK,
            (Kind::Lock, Ok(Rmessage::Lock(r))) => {
                matches!(r.status, lock::BLOCKED | lock::SUCCESS)
            }
            _ => false,
        };
        assert!(right, "{posted:?} was answered with {message:?}");
        if let Kind::Walk(fid) | Kind::Xattrwalk(fid) | Kind::Lcreate(fid) = kind {
            self.made.push(fid);
        }
        self.tidy(posted);
    }

    /// Asserts that a request was refused because its session is gone, and that nothing was done.
    #[track_caller]
    pub fn check_refused(&mut self, posted: &Posted, reply: Result<Reply>) {
        let reply = reply.unwrap_or_else(|error| panic!("{posted:?}: {error}"));
        let message = reply.message();
        let right = match (posted.kind, &message) {
            (Kind::Flush { .. }, Ok(Rmessage::Flush(_))) => true,
            (_, Err(error)) => error.errno() == Some(libc::EBADF),
            _ => false,
        };
        assert!(right, "{posted:?} was answered with {message:?}");
        self.check_not_done(posted);
        self.tidy(posted);
    }

    /// Asserts that the host shows nothing of a request.
    #[track_caller]
    pub fn check_not_done(&self, posted: &Posted) {
        assert_ne!(
            self.is_in_effect(posted),
            Some(true),
            "{posted:?} was not answered, and done"
        );
    }

    /// Asserts that the log has a line of every append that was answered, and no other. Gives the
    /// fids of the load back if its session is there still.
    #[track_caller]
    pub fn end(&mut self, client: Option<&mut Client>) {
        let log = fs::read(self.share.join("log")).unwrap();
        let lines = log.chunks_exact(LINE);
        let rest = lines.remainder();
        assert!(rest.is_empty(), "half a line in the log");
        let mut missing = std::mem::take(&mut self.lines);
        for found in lines {
            let serial = std::str::from_utf8(found).unwrap().trim().parse().unwrap();
            assert!(missing.remove(&serial), "line {serial} of the log");
        }
        assert!(missing.is_empty(), "not in the log: {missing:?}");
        fs::write(self.share.join("log"), b"").unwrap();
        let made = std::mem::take(&mut self.made);
        if let Some(client) = client {
            for fid in made {
                client.clunk(fid).unwrap();
            }
        }
    }

    /// Removes whatever loads have left whose answers nobody has seen.
    pub fn sweep(&mut self) {
        for entry in fs::read_dir(&self.share).unwrap() {
            let entry = entry.unwrap();
            match entry.file_name().as_encoded_bytes() {
                [b'm', b'a', b'd', b'e', b'-', ..] => fs::remove_dir(entry.path()).unwrap(),
                [b'n', b'e', b'w', b'-', ..] | [b'g', b'o', b'n', b'e', b'-', ..] => {
                    fs::remove_file(entry.path()).unwrap();
                }
                _ => {}
            }
        }
        fs::write(self.share.join("log"), b"").unwrap();
        self.lines.clear();
        self.made.clear();
    }

    /// Whether the host shows that a request was done. None: it cannot be seen.
    fn is_in_effect(&self, posted: &Posted) -> Option<bool> {
        let Posted { kind, serial, .. } = *posted;
        let exists = self.share.join(name(kind, serial)).exists();
        match kind {
            Kind::Mkdir | Kind::Lcreate(_) => Some(exists),
            Kind::Unlink => Some(!exists),
            Kind::Write { slot } => {
                let own = fs::read(self.share.join("own")).unwrap();
                let expected = written(serial);
                let at = slot * SLOT;
                Some(own.get(at..at + expected.len()) == Some(&expected[..]))
            }
            Kind::Append => {
                let log = fs::read(self.share.join("log")).unwrap();
                let line = line(serial);
                Some(log.chunks(LINE).any(|found| found == line))
            }
            _ => None,
        }
    }

    /// Removes what a request has left on the host.
    fn tidy(&self, posted: &Posted) {
        let path = self.share.join(name(posted.kind, posted.serial));
        match posted.kind {
            Kind::Mkdir => drop(fs::remove_dir(path)),
            Kind::Lcreate(_) | Kind::Unlink => drop(fs::remove_file(path)),
            _ => {}
        }
    }
}

/// The name of the file that a request makes or removes.
fn name(kind: Kind, serial: u64) -> String {
    match kind {
        Kind::Mkdir => format!("made-{serial}"),
        Kind::Lcreate(_) => format!("new-{serial}"),
        _ => format!("gone-{serial}"),
    }
}

/// What a write writes: more than a page, and another one for each.
fn written(serial: u64) -> Vec<u8> {
    serial
        .to_le_bytes()
        .repeat(SLOT / 8 - serial as usize % 100)
}

/// What an append appends.
fn line(serial: u64) -> Vec<u8> {
    format!("{serial:>width$}", width = LINE).into_bytes()
}
