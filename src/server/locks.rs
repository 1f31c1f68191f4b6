//! Byte-range locks: what the session holds, and what it holds toward the host.
//!
//! The guest's kernel keeps the guest's processes apart before it asks. So toward the host the
//! session is one holder: for each inode that it has locked there is one open file description, with
//! the union of all its locks on it as open-file-description locks. They are in force against other
//! guests and processes of the host, and a lock is refused for their sake only.
//!
//! What a session holds is remembered by process and by the open file that was locked through, for
//! it ends with either: by an unlock of the process, or with the open file's last fid.

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

/// How many ranges of one inode a session may have. One request may be as many calls of the host, each
/// of which looks through all of them.
const MOST_RANGES: usize = 4096;

/// All that a session has locked.
pub struct Locks {
    inodes: RefCell<HashMap<InodeId, Rc<Mutex<Holder>>, RandomState>>,
    /// Processes and ranges.
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

/// What the session holds of one inode.
#[derive(Default)]
pub struct Holder {
    /// What the host knows the locks by: there from the first lock on.
    description: Option<Closing<OwnedFd>>,
    /// The processes that have locked something.
    processes: HashMap<Process, Record, RandomState>,
    /// How many they have.
    ranges: usize,
    /// Of all ranges of all processes.
    union: Union,
}

/// What one process holds of one inode.
struct Record {
    held: Vec<Held>,
    /// Itself and its ranges.
    share: Share,
}

struct Held {
    range: Range,
    through: Weak<OpenFile>,
}

/// A lock or an unlock that is noted, and that the host is to be told of.
pub struct Noted {
    process: Process,
    record: Record,
    /// What the process has held there.
    taken: Vec<Held>,
    /// How many of the last ranges of the record are there instead.
    given: usize,
    change: Change,
    /// The bytes that are locked in another way than before, as [`Union::apply`] orders them.
    pub pieces: Vec<Range>,
}

/// As long as it lives, what the session holds of the inode is kept in one place, be it nothing.
pub struct InUse<'a> {
    locks: &'a Locks,
    inode: InodeId,
    holder: Rc<Mutex<Holder>>,
}

impl Locks {
    /// None yet, and never more than `limit`.
    pub fn new(limit: usize) -> Locks {
        Locks {
            inodes: RefCell::default(),
            bound: Bound::new(limit, Errno::ENOLCK),
        }
    }

    /// What is held of an inode, for a request that is going to change that.
    pub fn of(&self, inode: InodeId) -> InUse<'_> {
        let mut inodes = self.inodes.borrow_mut();
        let new = || Rc::new(Mutex::new(Holder::default()));
        InUse {
            locks: self,
            inode,
            holder: inodes.entry(inode).or_insert_with(new).clone(),
        }
    }

    /// What is held of an inode, if something is.
    pub fn existing(&self, inode: InodeId) -> Option<InUse<'_>> {
        let holder = self.inodes.borrow().get(&inode)?.clone();
        Some(InUse {
            locks: self,
            inode,
            holder,
        })
    }

    /// The session has ended: all goes with the descriptions, not range by range.
    pub fn clear(&self) {
        self.inodes.take();
    }
}

impl InUse<'_> {
    /// One request at a time: it asks the host as well.
    pub fn lock(&self) -> MutexGuard<'_, Holder> {
        self.holder.lock()
    }
}

/// What nothing is held of is forgotten, with its description.
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
    /// The open file description that the locks are on.
    pub fn description(&self) -> Option<&OwnedFd> {
        self.description.as_deref()
    }

    /// From now on the locks are on this one.
    pub fn describe(&mut self, description: Closing<OwnedFd>) {
        self.description = Some(description);
    }

    /// What the host knows of.
    pub fn ranges(&self) -> Vec<Range> {
        self.union.ranges()
    }

    /// Whether the process has locked anything.
    pub fn has(&self, process: &Process) -> bool {
        self.processes.contains_key(process)
    }

    /// Notes that `process` locks a range through `through`, or unlocks it. As POSIX wants it, a
    /// range belongs to the process, whichever open file it was locked through. But flock(2) comes as
    /// a lock of the whole file, and that belongs to the open file: what is locked as a whole
    /// elsewhere stays when the whole is locked or unlocked here.
    ///
    /// Errors: ENOLCK if that makes more ranges than there may be, of the inode or in all: to unlock
    /// the middle of one makes two.
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
        let allowed = match given.len() > taken.len() && self.ranges + count > MOST_RANGES {
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

    /// The host has not agreed, or not to all. Returns what it is to be told then.
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

    /// Who holds nothing is forgotten.
    fn put(&mut self, process: Process, mut record: Record) {
        if !record.held.is_empty() {
            record.share.set(1 + record.held.len());
            self.ranges += record.held.len();
            self.processes.insert(process, record);
        }
    }

    /// Forgets what was locked through files that are not open any more, and tells which bytes are
    /// locked in another way now.
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

/// Locks bytes toward the host, or frees them. To be called on a worker. Errors: EAGAIN if another's
/// lock is in the way, those of fcntl(2).
pub fn set(description: impl AsFd, range: &Range) -> Result<(), Errno> {
    match fcntl(description, FcntlArg::F_OFD_SETLK(&flock(range))) {
        Ok(_) => Ok(()),
        Err(Errno::EACCES) => Err(Errno::EAGAIN),
        Err(error) => Err(error),
    }
}

/// Asks what stands in the way of a lock. To be called on a worker. Errors: those of fcntl(2).
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

/// Opens a file so that it can be locked in both ways, if the host allows that at all: a program
/// may flock a file exclusively that it has opened for reading only.
/// `O_NONBLOCK` in `more`: as for [`Node::reopen`].
pub fn open_for_locks(node: &Node, writable: bool, more: OFlag) -> Result<OwnedFd, Errno> {
    if writable {
        match node.reopen(OFlag::O_RDWR | more) {
            Err(Errno::EACCES | Errno::EROFS | Errno::EISDIR | Errno::EPERM | Errno::ETXTBSY) => {}
            result => return result,
        }
    }
    node.reopen(OFlag::O_RDONLY | more)
}
