//! Byte-range locks: what the session holds, and what it holds toward the host.
//!
//! The guest's kernel resolves conflicts between the guest's own processes before it asks. So
//! toward the host the session is one holder: for each inode that it has locked there is one open
//! file description, which holds the union of all its locks on that inode as open-file-description
//! locks. They conflict with other guests and with processes of the host, and only those can cause
//! a lock to be refused.
//!
//! What a session holds is remembered by process and by the open file through which it was locked,
//! because either ends it: an unlock by the process, or the clunk of the open file's fid.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};

use coroutine::{Mutex, MutexGuard};
use foldhash::fast::RandomState;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::closing::Closing;
use super::fid::OpenFile;
use super::limits::{Bound, Share};
use super::ranges::{Change, Kind, Range, Union};
use crate::export::{InodeId, Node};

/// How many ranges of one inode a session may have. One request may take as many calls to the host,
/// each of which looks through all of them.
const MAX_RANGES: usize = 4096;

/// Everything that a session has locked.
pub struct Locks {
    inodes: RefCell<HashMap<InodeId, Rc<Mutex<Holder>>, RandomState>>,
    /// Counts processes and ranges.
    bound: Bound,
}

/// A process of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    /// The guest's name.
    pub client: Box<[u8]>,
    /// The number there.
    pub number: u32,
}

/// What the session holds on one inode.
#[derive(Default)]
pub struct Holder {
    /// The description that holds the locks on the host, from the first lock on.
    description: Option<Closing<OwnedFd>>,
    /// The processes that hold locks.
    processes: HashMap<Process, Record, RandomState>,
    /// The number of their ranges.
    ranges: usize,
    /// The union of all ranges of all processes.
    union: Union,
}

/// What one process holds on one inode.
struct Record {
    held: Vec<Held>,
    /// Counts the process and its ranges.
    share: Share,
}

struct Held {
    range: Range,
    through: Weak<OpenFile>,
}

/// A lock or an unlock that is recorded and that the host is still to be asked for.
pub struct Noted {
    process: Process,
    record: Record,
    /// What the process held there before.
    taken: Vec<Held>,
    /// How many ranges at the end of the record replace them.
    given: usize,
    change: Change,
    /// The bytes whose lock changes, in the order of [`Union::apply`].
    pub pieces: Vec<Range>,
}

/// While it lives, the session's holder of this inode stays in the table, even if it holds nothing.
pub struct InUse<'a> {
    locks: &'a Locks,
    inode: InodeId,
    holder: Rc<Mutex<Holder>>,
}

impl Locks {
    /// An empty table, for up to `limit` processes and ranges.
    pub fn new(limit: usize) -> Locks {
        Locks {
            inodes: RefCell::default(),
            bound: Bound::new(limit, Errno::ENOLCK),
        }
    }

    /// The holder of an inode, for a request that is going to change it.
    pub fn of(&self, inode: InodeId) -> InUse<'_> {
        let mut inodes = self.inodes.borrow_mut();
        let new = || Rc::new(Mutex::new(Holder::default()));
        InUse {
            locks: self,
            inode,
            holder: inodes.entry(inode).or_insert_with(new).clone(),
        }
    }

    /// The holder of an inode, if there is one.
    pub fn existing(&self, inode: InodeId) -> Option<InUse<'_>> {
        let holder = self.inodes.borrow().get(&inode)?.clone();
        Some(InUse {
            locks: self,
            inode,
            holder,
        })
    }

    /// The session has ended: the locks end with their descriptions, not range by range.
    pub fn clear(&self) {
        self.inodes.take();
    }
}

impl InUse<'_> {
    /// One request at a time, because it also asks the host.
    pub fn lock(&self) -> MutexGuard<'_, Holder> {
        self.holder.lock()
    }
}

/// A holder that holds nothing is removed, with its description.
impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let unused = Rc::strong_count(&self.holder) == 2
            && self
                .holder
                .try_lock()
                .is_some_and(|holder| holder.processes.is_empty());
        if unused {
            self.locks.inodes.borrow_mut().remove(&self.inode);
        }
    }
}

impl Holder {
    /// The open file description that holds the locks.
    pub fn description(&self) -> Option<&OwnedFd> {
        self.description.as_deref()
    }

    /// Sets the description that holds the locks.
    pub fn describe(&mut self, description: Closing<OwnedFd>) {
        self.description = Some(description);
    }

    /// The ranges that the host knows.
    pub fn ranges(&self) -> Vec<Range> {
        self.union.ranges()
    }

    /// Whether the process holds a lock.
    pub fn has(&self, process: &Process) -> bool {
        self.processes.contains_key(process)
    }

    /// Records that `process` locks or unlocks a range through `through`. As POSIX demands, a range
    /// belongs to the process, through whichever open file it was locked. But flock(2) arrives as a
    /// lock of the whole file, and that belongs to the open file: a whole-file lock through another
    /// file stays when the whole file is locked or unlocked through this one.
    ///
    /// Errors: ENOLCK if that makes too many ranges, of the inode or in all: unlocking the middle
    /// of one makes two.
    pub fn note(
        &mut self,
        locks: &Locks,
        process: Process,
        through: &Rc<OpenFile>,
        range: &Range,
    ) -> Result<Noted, Errno> {
        let through = Rc::downgrade(through);
        let mut record = match self.processes.remove(&process) {
            Some(record) => record,
            None => Record {
                held: Vec::new(),
                share: locks.bound.take(0)?,
            },
        };
        self.ranges -= record.held.len();
        let is_meant = |held: &mut Held| {
            let elsewhere = range.is_whole() && held.range.is_whole();
            held.range.overlaps(range) && (!elsewhere || held.through.ptr_eq(&through))
        };
        let taken: Vec<Held> = record.held.extract_if(.., is_meant).collect();
        let left = |held: &Held| {
            let through = held.through.clone();
            let left = held.range.without(range);
            left.map(move |range| Held {
                range,
                through: through.clone(),
            })
        };
        let mut given: Vec<Held> = taken.iter().flat_map(left).collect();
        if range.kind != Kind::Free {
            let range = *range;
            given.push(Held { range, through });
        }
        let count = record.held.len() + given.len();
        let allowed = match given.len() > taken.len() && self.ranges + count > MAX_RANGES {
            true => Err(Errno::ENOLCK),
            false => locks.bound.allows(&record.share, 1 + count),
        };
        if let Err(error) = allowed {
            record.held.extend(taken);
            self.put(process, record);
            return Err(error);
        }
        let mut change = Change::default();
        taken.iter().for_each(|held| change.remove(&held.range));
        given.iter().for_each(|held| change.add(&held.range));
        let pieces = self.union.apply(&change);
        let count = given.len();
        record.held.extend(given);
        Ok(Noted {
            process,
            record,
            taken,
            given: count,
            change,
            pieces,
        })
    }

    /// The host has agreed.
    pub fn keep(&mut self, noted: Noted) {
        self.put(noted.process, noted.record);
    }

    /// The host has refused, at least in part. Returns what it must be told to undo it.
    pub fn take_back(&mut self, noted: Noted) -> Vec<Range> {
        let Noted {
            process,
            mut record,
            taken,
            given,
            change,
            ..
        } = noted;
        record.held.truncate(record.held.len() - given);
        record.held.extend(taken);
        self.put(process, record);
        self.union.apply(&change.back())
    }

    /// A process that holds nothing is forgotten.
    fn put(&mut self, process: Process, mut record: Record) {
        if !record.held.is_empty() {
            record.share.set(1 + record.held.len());
            self.ranges += record.held.len();
            self.processes.insert(process, record);
        }
    }

    /// Forgets what was locked through files that are closed by now, and returns the bytes whose
    /// lock changes.
    pub fn forget_closed(&mut self) -> Vec<Range> {
        let mut change = Change::default();
        self.ranges = 0;
        self.processes.retain(|_, record| {
            let is_closed = |held: &mut Held| held.through.strong_count() == 0;
            for held in record.held.extract_if(.., is_closed) {
                change.remove(&held.range);
            }
            record.share.set(1 + record.held.len());
            self.ranges += record.held.len();
            !record.held.is_empty()
        });
        self.union.apply(&change)
    }
}

/// Locks or unlocks bytes on the host. Call it on a worker. Errors: EAGAIN if another holder's lock
/// conflicts, those of fcntl(2).
pub fn set(description: impl AsFd, range: &Range) -> Result<(), Errno> {
    match fcntl(description, FcntlArg::F_OFD_SETLK(&flock(range))) {
        Ok(_) => Ok(()),
        Err(Errno::EACCES) => Err(Errno::EAGAIN),
        Err(error) => Err(error),
    }
}

/// Asks which lock conflicts. Call it on a worker. Errors: those of fcntl(2).
pub fn probe(description: impl AsFd, range: &Range) -> Result<Option<Range>, Errno> {
    let mut flock = flock(range);
    fcntl(description, FcntlArg::F_OFD_GETLK(&mut flock))?;
    let kind = match i32::from(flock.l_type) {
        libc::F_UNLCK => return Ok(None),
        libc::F_RDLCK => Kind::Read,
        _ => Kind::Write,
    };
    Range::new(kind, flock.l_start as u64, flock.l_len as u64).map(Some)
}

fn flock(range: &Range) -> libc::flock {
    let kind = match range.kind {
        Kind::Free => libc::F_UNLCK,
        Kind::Read => libc::F_RDLCK,
        Kind::Write => libc::F_WRLCK,
    };
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: range.start,
        l_len: range.length() as i64,
        // Required to be 0 for locks of open file descriptions.
        l_pid: 0,
    }
}

/// Opens a file so that it can be locked for reading and for writing, if the host allows that: a
/// program may flock a file exclusively that it has opened only for reading. `O_NONBLOCK` in
/// `more`: as for [`Node::reopen`].
pub fn open_for_locks(node: &Node, writable: bool, more: OFlag) -> Result<OwnedFd, Errno> {
    if writable {
        match node.reopen(OFlag::O_RDWR | more) {
            Err(Errno::EACCES | Errno::EROFS | Errno::EISDIR | Errno::EPERM | Errno::ETXTBSY) => {}
            result => return result,
        }
    }
    node.reopen(OFlag::O_RDONLY | more)
}
