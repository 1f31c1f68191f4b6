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
use std::collections::hash_map::Entry;
use std::mem::take;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
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
use crate::state::{Heap, LockEntry, LockRecord, Row, State, Table, Text};

/// How many ranges of one inode a session may have. One request may take as many calls to the host,
/// each of which looks through all of them.
const MAX_RANGES: usize = 4096;

/// The kinds of locks in the state.
const READ: u32 = 1;
const WRITE: u32 = 2;

/// Everything that a session has locked.
pub struct Locks {
    inodes: RefCell<HashMap<InodeId, Rc<Mutex<Holder>>, RandomState>>,
    /// Counts processes and ranges.
    bound: Bound,
    /// Where the ranges are recorded, and the names of the guests.
    rows: Rc<Table<LockRecord>>,
    heap: Rc<Heap>,
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

/// A range that another process has recorded.
pub struct HeldBefore {
    /// The record.
    pub row: Row<LockRecord>,
    /// The name of the guest's process.
    pub client: Rc<Text>,
    /// The bytes.
    pub range: Range,
    /// The open file through which they were locked.
    pub through: Rc<OpenFile>,
}

/// A range, who has locked it, and the row of the fid through which it was.
pub struct HeldRange {
    /// The guest's process.
    pub process: Process,
    /// The bytes.
    pub range: Range,
    /// The row.
    pub fid_row: u32,
}

/// The range of a record. None for one that means nothing.
pub fn range_of(entry: &LockEntry) -> Option<Range> {
    let kind = match entry.kind {
        READ => Kind::Read,
        WRITE => Kind::Write,
        _ => return None,
    };
    let start = i64::try_from(entry.start).ok()?;
    let end = i64::try_from(entry.end).ok()?;
    (start <= end).then_some(Range { kind, start, end })
}

/// What one process holds on one inode.
struct Record {
    held: Vec<Held>,
    /// The guest's name in the state.
    client: Rc<Text>,
    /// Counts the process and its ranges.
    share: Share,
}

struct Held {
    /// Not used before the host has agreed.
    row: Row<LockRecord>,
    range: Range,
    through: Through,
}

/// The open file through which something was locked, and the row of its fid.
#[derive(Clone)]
struct Through(Weak<OpenFile>, u32);

impl Through {
    fn new(open: &Rc<OpenFile>) -> Through {
        Through(Rc::downgrade(open), open.fid_row.get())
    }

    fn is(&self, other: &Through) -> bool {
        self.0.ptr_eq(&other.0)
    }

    fn is_closed(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl Held {
    fn record(&self, process: &Process, client: &Text, description: RawFd) {
        self.row.describe(&LockEntry {
            fid: self.through.1,
            description,
            client: client.reference(),
            process: process.number,
            kind: match self.range.kind {
                Kind::Write => WRITE,
                Kind::Read | Kind::Free => READ,
            },
            start: self.range.start as u64,
            end: self.range.end as u64,
        });
    }
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
    /// An empty table, for up to `limit` processes and ranges, which are recorded in `state`.
    pub fn new(limit: usize, state: &State) -> Locks {
        Locks {
            inodes: RefCell::default(),
            bound: Bound::new(limit, Errno::ENOLCK),
            rows: state.locks().clone(),
            heap: state.heap().clone(),
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

    /// Takes over what another process has recorded of an inode, with the description that holds the
    /// locks. What the host knows may differ by a request that
    /// was under way. Errors:
    /// ENOLCK for more than there may be.
    pub fn adopt(
        &self,
        inode: InodeId,
        description: Closing<OwnedFd>,
        ranges: Vec<HeldBefore>,
    ) -> Result<(), Errno> {
        let mut holder = Holder::default();
        let mut change = Change::default();
        for HeldBefore {
            row,
            client,
            range,
            through,
        } in ranges
        {
            change.add(&range);
            through.locked.set(true);
            let process = Process {
                client: client.bytes().into(),
                number: row.entry().process,
            };
            let record = match holder.processes.entry(process) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(Record {
                    held: Vec::new(),
                    client,
                    share: self.bound.take(1)?,
                }),
            };
            let through = Through::new(&through);
            record.held.push(Held {
                row,
                range,
                through,
            });
            record.share.set(1 + record.held.len());
            holder.ranges += 1;
        }
        holder.union.apply(&change);
        holder.describe(description);
        self.inodes
            .borrow_mut()
            .insert(inode, Rc::new(Mutex::new(holder)));
        Ok(())
    }

    /// The inodes with locks.
    pub fn locked(&self) -> Vec<InodeId> {
        self.inodes.borrow().keys().copied().collect()
    }

    /// All ranges.
    pub fn held(&self) -> Vec<HeldRange> {
        let mut all = Vec::new();
        for holder in self.inodes.borrow().values() {
            for (process, record) in &holder.lock().processes {
                all.extend(record.held.iter().map(|held| HeldRange {
                    process: process.clone(),
                    range: held.range,
                    fid_row: held.through.1,
                }));
            }
        }
        all
    }

    /// How many processes and ranges there are.
    pub fn used(&self) -> usize {
        self.bound.used()
    }

    /// How many inodes are locked, or are about to be.
    pub fn files(&self) -> usize {
        self.inodes.borrow().len()
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
        for held in self.processes.values().flat_map(|record| &record.held) {
            held.row.set_description(description.as_raw_fd());
        }
        self.description = Some(description);
    }

    fn raw_description(&self) -> RawFd {
        self.description.as_ref().map_or(-1, |fd| fd.as_raw_fd())
    }

    /// The ranges that the host knows.
    pub fn ranges(&self) -> Vec<Range> {
        self.union.ranges()
    }

    /// All bytes: the ranges that the host knows, and free ones in between.
    pub fn all(&self) -> Vec<Range> {
        let mut all = Vec::new();
        let mut next = Some(0);
        for range in self.union.ranges() {
            if let Some(start) = next.filter(|start| *start < range.start) {
                let (kind, end) = (Kind::Free, range.start - 1);
                all.push(Range { kind, start, end });
            }
            all.push(range);
            next = range.end.checked_add(1);
        }
        let (kind, end) = (Kind::Free, i64::MAX);
        all.extend(next.map(|start| Range { kind, start, end }));
        all
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
        let through = Through::new(through);
        let mut record = match self.processes.remove(&process) {
            Some(record) => record,
            None => Record {
                held: Vec::new(),
                client: Rc::new(locks.heap.keep(&process.client)),
                share: locks.bound.take(0)?,
            },
        };
        self.ranges -= record.held.len();
        let is_meant = |held: &Held| {
            let elsewhere = range.is_whole() && held.range.is_whole();
            held.range.overlaps(range) && (!elsewhere || held.through.is(&through))
        };
        let (taken, kept) = take(&mut record.held).into_iter().partition(is_meant);
        record.held = kept;
        let taken: Vec<Held> = taken;
        let left = |held: &Held| {
            let through = held.through.clone();
            let left = held.range.without(range);
            left.map(move |range| Held {
                row: locks.rows.take(),
                range,
                through: through.clone(),
            })
        };
        let mut given: Vec<Held> = taken.iter().flat_map(left).collect();
        if range.kind != Kind::Free {
            let range = *range;
            let row = locks.rows.take();
            given.push(Held {
                row,
                range,
                through,
            });
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
        let Noted {
            process,
            record,
            taken,
            given,
            ..
        } = noted;
        let description = self.raw_description();
        for held in record.held.iter().rev().take(given) {
            held.record(&process, &record.client, description);
        }
        // Only now, so that a crash in between leaves no gap.
        drop(taken);
        self.put(process, record);
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
            record.held.retain(|held| {
                let is_closed = held.through.is_closed();
                if is_closed {
                    change.remove(&held.range);
                }
                !is_closed
            });
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
