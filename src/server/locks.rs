//! Byte-range locks: who owns them, and what they are on the host.
//!
//! A lock belongs to a process of the guest, as POSIX wants it: two fids of one process do not
//! stand in each other's way. Each owner has an open file description of its own for each inode
//! that it locks, and its locks are open-file-description locks on it: in force against other
//! owners, other guests and processes of the host alike, and ended by the kernel when the
//! description is closed, however that comes about. It is closed with the last fid through which
//! the owner has locked.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::closing::Closing;
use super::fid::OpenFile;
use super::limits::{Bound, Share};
use crate::export::{InodeId, Node};

/// A process of the guest, on one inode.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    inode: InodeId,
    client: Box<[u8]>,
    process: u32,
}

/// An owner of locks on one inode.
#[derive(Debug)]
pub struct Owner {
    key: Key,
    description: Closing<OwnedFd>,
    held: RefCell<Vec<Range>>,
    /// Itself and its ranges.
    share: RefCell<Share>,
}

/// Some bytes and how they are locked. The end is the last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub kind: i32,
    /// The first byte.
    pub start: i64,
    /// The last byte, `i64::MAX` for the end of the file wherever it is.
    pub end: i64,
}

/// All owners of a session. They live by the open files that they have locked through.
#[derive(Debug)]
pub struct Locks {
    owners: RefCell<HashMap<Key, Weak<Owner>>>,
    /// Owners and ranges.
    bound: Bound,
}

impl Range {
    /// From a start and a length as the protocol has them, 0 being up to the end. Errors: EINVAL
    /// for a range that begins, EOVERFLOW for one that ends behind the largest offset.
    pub fn new(kind: i32, start: u64, length: u64) -> Result<Range, Errno> {
        let start = i64::try_from(start).map_err(|_| Errno::EINVAL)?;
        let end = match length {
            0 => i64::MAX,
            _ => i64::try_from(length - 1)
                .ok()
                .and_then(|more| start.checked_add(more))
                .ok_or(Errno::EOVERFLOW)?,
        };
        Ok(Range { kind, start, end })
    }

    /// How many bytes; 0 means up to the end.
    pub fn length(&self) -> u64 {
        if self.end == i64::MAX {
            0
        } else {
            (self.end - self.start + 1) as u64
        }
    }

    fn overlaps(&self, other: &Range) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    fn flock(&self) -> libc::flock {
        libc::flock {
            l_type: self.kind as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: self.start,
            l_len: self.length() as i64,
            // Required to be 0 for locks of open file descriptions.
            l_pid: 0,
        }
    }

    /// The parts of this range that `hole` leaves over.
    fn without(self, hole: &Range) -> impl Iterator<Item = Range> {
        let before = (self.start < hole.start).then(|| Range {
            end: self.end.min(hole.start - 1),
            ..self
        });
        let behind = (self.end > hole.end).then(|| Range {
            start: self.start.max(hole.end + 1),
            ..self
        });
        before.into_iter().chain(behind)
    }
}

impl Locks {
    /// None yet, and never more than `limit`.
    pub fn new(limit: usize) -> Locks {
        Locks {
            owners: RefCell::default(),
            bound: Bound::new(limit, Errno::ENOLCK),
        }
    }

    /// Whether the owner may lock, or unlock, `range`. Errors: ENOLCK if that makes more ranges than
    /// there may be: to unlock the middle of one makes two.
    pub fn allow(&self, owner: &Owner, range: &Range) -> Result<(), Errno> {
        let ranges = owner.after(range).count();
        self.bound.allows(&owner.share.borrow(), 1 + ranges)
    }

    /// The owner of the locks that `process` of the guest `client` takes through `file`; made if
    /// there is none. `open` makes the open file description. Errors: those of open(2), ENOLCK if there
    /// are as many as there may be.
    pub fn owner(
        &self,
        file: &OpenFile,
        client: &[u8],
        process: u32,
        open: impl FnOnce() -> Result<Closing<OwnedFd>, Errno>,
    ) -> Result<Rc<Owner>, Errno> {
        let key = Key {
            inode: file.inode.key().id,
            client: client.into(),
            process,
        };
        let owner = match self.find(&key) {
            Some(owner) => owner,
            None => {
                let share = RefCell::new(self.bound.take(1)?);
                let description = open()?;
                // Another request may have been faster while this one was opening.
                self.find(&key).unwrap_or_else(|| {
                    let held = RefCell::default();
                    let owner = Rc::new(Owner {
                        key: key.clone(),
                        description,
                        held,
                        share,
                    });
                    let mut owners = self.owners.borrow_mut();
                    owners.retain(|_, owner| owner.strong_count() > 0);
                    owners.insert(key, Rc::downgrade(&owner));
                    owner
                })
            }
        };
        let mut through = file.owners.borrow_mut();
        if !through.iter().any(|other| Rc::ptr_eq(other, &owner)) {
            through.push(owner.clone());
        }
        Ok(owner)
    }

    /// The owner, if it has locked through any file.
    pub fn existing(&self, inode: InodeId, client: &[u8], process: u32) -> Option<Rc<Owner>> {
        self.find(&Key {
            inode,
            client: client.into(),
            process,
        })
    }

    fn find(&self, key: &Key) -> Option<Rc<Owner>> {
        self.owners.borrow().get(key)?.upgrade()
    }

    /// Whose the lock is that the kernel has found in the way of `asking`: the guest's name and
    /// the process there; None if it is the host's, or another guest's.
    pub fn holder(
        &self,
        inode: InodeId,
        asking: Option<&Owner>,
        found: &Range,
    ) -> Option<(Box<[u8]>, u32)> {
        let holds = |owner: &Rc<Owner>| {
            let held = owner.held.borrow();
            held.iter()
                .any(|held| held.kind == found.kind && held.overlaps(found))
        };
        self.owners
            .borrow()
            .values()
            .filter_map(Weak::upgrade)
            .filter(|owner| owner.key.inode == inode)
            .filter(|owner| asking.is_none_or(|asking| asking.key != owner.key))
            .find(holds)
            .map(|owner| (owner.key.client.clone(), owner.key.process))
    }
}

impl Owner {
    /// Which inode its locks are on.
    pub fn inode(&self) -> InodeId {
        self.key.inode
    }

    /// Takes or releases a lock. To be called on a worker. Errors: EAGAIN if another's is in the
    /// way, those of fcntl(2).
    pub fn set(description: impl AsFd, range: &Range) -> Result<(), Errno> {
        match fcntl(description, FcntlArg::F_OFD_SETLK(&range.flock())) {
            Ok(_) => Ok(()),
            Err(Errno::EACCES) => Err(Errno::EAGAIN),
            Err(error) => Err(error),
        }
    }

    /// Asks what stands in the way of a lock. To be called on a worker. Errors: those of fcntl(2).
    pub fn probe(description: impl AsFd, range: &Range) -> Result<Option<Range>, Errno> {
        let mut flock = range.flock();
        fcntl(description, FcntlArg::F_OFD_GETLK(&mut flock))?;
        if i32::from(flock.l_type) == libc::F_UNLCK {
            return Ok(None);
        }
        let found = Range::new(
            flock.l_type.into(),
            flock.l_start as u64,
            flock.l_len as u64,
        )?;
        Ok(Some(found))
    }

    /// Remembers what [`Owner::set`] has done.
    pub fn note(&self, range: Range) {
        let ranges: Vec<Range> = self.after(&range).collect();
        self.share.borrow_mut().set(1 + ranges.len());
        self.held.replace(ranges);
    }

    /// What would be held after `range`.
    fn after(&self, range: &Range) -> impl Iterator<Item = Range> {
        let held = self.held.borrow().clone();
        let kept = held.into_iter().flat_map(|other| other.without(range));
        kept.chain(Some(*range).filter(|range| range.kind != libc::F_UNLCK))
    }

    /// The open file description that the locks are on.
    pub fn description(&self) -> &OwnedFd {
        &self.description
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

#[cfg(test)]
mod tests {
    use super::super::inodes::Inodes;
    use super::*;

    fn range(kind: i32, start: i64, end: i64) -> Range {
        Range { kind, start, end }
    }

    #[test]
    fn ranges_are_cut_as_the_kernel_cuts_them() {
        let directory = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(directory.path().join("file")).unwrap();
        let key = Key {
            inode: InodeId {
                device: (0, 0),
                inode: 1,
            },
            client: [].into(),
            process: 1,
        };
        let owner = Owner {
            key,
            description: Closing::new(
                file.into(),
                (0, 0),
                Inodes::new(8, 1).count_open().unwrap(),
                Rc::default(),
            ),
            held: RefCell::default(),
            share: RefCell::new(Bound::new(9, Errno::ENOLCK).take(1).unwrap()),
        };
        let (read, write, none) = (libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK);
        owner.note(range(write, 0, i64::MAX));
        owner.note(range(none, 10, 19));
        owner.note(range(read, 5, 30));
        owner.note(range(none, 0, 0));
        let mut held = owner.held.borrow().clone();
        held.sort_by_key(|range| range.start);
        assert_eq!(
            held,
            [
                range(write, 1, 4),
                range(read, 5, 30),
                range(write, 31, i64::MAX)
            ]
        );
    }

    #[test]
    fn lengths_and_ends_agree() {
        assert_eq!(Range::new(0, 5, 0).unwrap().end, i64::MAX);
        assert_eq!(Range::new(0, 5, 1).unwrap(), range(0, 5, 5));
        assert_eq!(Range::new(0, 5, 10).unwrap().length(), 10);
        assert_eq!(Range::new(0, 5, 0).unwrap().length(), 0);
        assert_eq!(Range::new(0, 1 << 63, 1), Err(Errno::EINVAL));
        assert_eq!(Range::new(0, i64::MAX as u64, 2), Err(Errno::EOVERFLOW));
        assert_eq!(Range::new(0, 0, 1 << 63).unwrap().end, i64::MAX);
    }
}
