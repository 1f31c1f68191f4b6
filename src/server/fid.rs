//! What the guest's fids stand for.

use std::cell::{Cell, Ref, RefCell};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;

use foldhash::fast::RandomState;
use nix::errno::Errno;
use protocol::xattr;

use super::closing::Closing;
use super::handle::Handle;
use super::inodes::Inode;
use super::limits::Share;
use super::redo::Redo;
use crate::export::acl;
use crate::export::xattr::XattrName;
use crate::state::{self, FidRecord, Heap, Record, Row, Table, Text};

/// A guest's handle for a file. A request keeps the fid that it works on, so a clunk meanwhile only
/// takes the guest's number away; the descriptor is closed after the last request.
#[derive(Debug)]
pub struct Fid {
    /// Its record.
    row: Row<FidRecord>,
    /// The user who attached, by the host's id: the owner of what is made through the fid.
    pub user: u32,
    /// Where `..` stops.
    pub root: Rc<Inode>,
    state: RefCell<State>,
    /// Where the walk onto itself that made it began: kept, so that it can be done again.
    previous: Option<Rc<Inode>>,
}

/// What a fid stands for.
#[derive(Clone, Debug)]
pub enum State {
    /// From attach or walk.
    Walked(Rc<Inode>),
    /// From lopen or lcreate.
    Open(Rc<OpenFile>),
    /// From xattrwalk: a value, or a list of names, as it was then.
    XattrValue(Rc<XattrValue>),
    /// From xattrcreate: a value that the guest writes and that the clunk sets.
    XattrDraft(Rc<XattrDraft>),
}

/// A file or directory opened for I/O.
#[derive(Debug)]
pub struct OpenFile {
    /// The inode, for everything that is not I/O.
    pub inode: Rc<Inode>,
    /// Whether something was locked through this file. Such locks end with it.
    pub locked: Cell<bool>,
    /// The row of the fid; 0 before it has one.
    pub fid_row: Cell<u32>,
    /// What I/O goes through.
    pub handle: Closing<Handle>,
}

impl OpenFile {
    /// An open file without locks.
    pub fn new(inode: Rc<Inode>, handle: Closing<Handle>) -> OpenFile {
        OpenFile {
            handle: handle.of(inode.clone()),
            inode,
            locked: Cell::new(false),
            fid_row: Cell::new(0),
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if self.locked.get() {
            self.handle.leave_locks(self.inode.key().id);
        }
    }
}

/// The extended attribute that the guest is reading.
#[derive(Debug)]
pub struct XattrValue {
    /// As it was when the guest asked.
    pub value: Vec<u8>,
    /// The same in the state.
    pub recorded: Text,
    /// Its bytes.
    pub _counted: Share,
}

/// The extended attribute that the guest is writing.
#[derive(Debug)]
pub struct XattrDraft {
    /// The file that is to get it.
    pub inode: Rc<Inode>,
    /// Its name.
    pub name: XattrName,
    /// `XATTR_CREATE`, `XATTR_REPLACE` or none.
    pub flags: u32,
    /// How many bytes the guest has announced.
    pub size: usize,
    /// The bytes so far.
    pub value: RefCell<Vec<u8>>,
    /// All this in the state.
    pub recorded: Text,
    /// The bytes that were announced.
    pub _counted: Share,
}

impl XattrDraft {
    /// Where the number of the bytes so far is in the record.
    const LENGTH: usize = 12;
    /// The record's length before the name.
    const HEADER: usize = 18;

    /// A draft without content.
    pub fn new(
        heap: &Rc<Heap>,
        inode: Rc<Inode>,
        name: XattrName,
        flags: u32,
        size: usize,
        counted: Share,
    ) -> XattrDraft {
        let bytes = name.as_bytes();
        let recorded = heap.reserve(XattrDraft::HEADER + bytes.len() + size);
        let words = [inode.row(), flags, size as u32, 0];
        recorded.write(0, words.map(u32::to_ne_bytes).as_flattened());
        recorded.write(16, &(bytes.len() as u16).to_ne_bytes());
        recorded.write(XattrDraft::HEADER, bytes);
        XattrDraft {
            inode,
            name,
            flags,
            size,
            value: RefCell::default(),
            recorded,
            _counted: counted,
        }
    }

    /// Records bytes that were written to the value from `start` on.
    pub fn record(&self, start: usize, bytes: &[u8], length: usize) {
        let value = XattrDraft::HEADER + self.name.as_bytes().len();
        self.recorded.write(value + start, bytes);
        self.recorded
            .write(XattrDraft::LENGTH, &(length as u32).to_ne_bytes());
    }

    /// The draft that another process has recorded; `inode` finds that of a row. None for anything
    /// else.
    pub fn adopt(
        recorded: Text,
        inode: impl FnOnce(u32) -> Option<Rc<Inode>>,
        count: impl FnOnce(usize) -> Option<Share>,
    ) -> Option<XattrDraft> {
        let bytes = recorded.bytes();
        let mut rest = bytes.as_slice();
        let mut word = || {
            let (word, after) = rest.split_first_chunk::<4>()?;
            rest = after;
            Some(u32::from_ne_bytes(*word))
        };
        let (row, flags, size, length) = (word()?, word()?, word()?, word()?);
        let (name_length, rest) = rest.split_first_chunk()?;
        let (name, value) = rest.split_at_checked(u16::from_ne_bytes(*name_length).into())?;
        if value.len() != size as usize {
            return None;
        }
        Some(XattrDraft {
            inode: inode(row)?,
            name: XattrName::new(name).ok()?,
            flags,
            size: value.len(),
            value: RefCell::new(value.get(..length as usize)?.to_vec()),
            recorded,
            _counted: count(value.len())?,
        })
    }

    /// Whether the attribute is to be removed. 9P has no message for that. Linux's client sends an
    /// empty value with `XATTR_REPLACE` for removexattr(2), and one without flags to remove an ACL;
    /// on the host, too, an empty ACL is none.
    pub fn is_removal(&self) -> bool {
        self.size == 0 && (self.flags == xattr::REPLACE || acl::is_list(self.name.as_bytes()))
    }
}

/// The file that a fid stands for.
#[derive(Clone, Debug)]
pub enum Target {
    /// Reached by a walk.
    Walked(Rc<Inode>),
    /// Opened.
    Open(Rc<OpenFile>),
}

impl Target {
    /// The inode.
    pub fn inode(&self) -> &Rc<Inode> {
        match self {
            Target::Walked(inode) => inode,
            Target::Open(open) => &open.inode,
        }
    }
}

/// What Tread and Twrite on a fid access.
#[derive(Clone, Debug)]
pub enum Content {
    /// An open file.
    File(Rc<OpenFile>),
    /// An attribute's value, to be read.
    XattrValue(Rc<XattrValue>),
    /// An attribute's value, to be written.
    XattrDraft(Rc<XattrDraft>),
}

impl Fid {
    /// The row of its record.
    pub fn row(&self) -> u32 {
        self.row.index()
    }

    /// A walk from the fid to itself begins. Returns where, if the process before has made it.
    pub fn walks_onto_itself(&self, redo: Redo) -> Option<Rc<Inode>> {
        match redo.is_possible() {
            true => self.previous.clone(),
            false => {
                self.row.set_previous(0);
                None
            }
        }
    }

    /// What it stands for.
    pub fn state(&self) -> Ref<'_, State> {
        self.state.borrow()
    }

    /// Removes its record: the guest has given it back.
    pub fn forget(&self) {
        self.row.clear();
    }

    fn record(&self) {
        self.row.set_target(match &*self.state.borrow() {
            State::Walked(inode) => state::Target::Walked(inode.row()),
            State::Open(open) => {
                open.fid_row.set(self.row());
                let fd = open.handle.as_fd().as_raw_fd();
                state::Target::Open(open.inode.row(), fd)
            }
            State::XattrValue(value) => state::Target::Value(value.recorded.reference()),
            State::XattrDraft(draft) => state::Target::Draft(draft.recorded.reference()),
        });
    }

    /// The file, open or not. Errors: EBADF for an attribute's fid.
    pub fn target(&self) -> Result<Target, Errno> {
        match &*self.state.borrow() {
            State::Walked(inode) => Ok(Target::Walked(inode.clone())),
            State::Open(open) => Ok(Target::Open(open.clone())),
            State::XattrValue(_) | State::XattrDraft(_) => Err(Errno::EBADF),
        }
    }

    /// The file, if nothing has been opened on the fid yet. Errors: EINVAL if it has.
    pub fn unopened(&self) -> Result<Rc<Inode>, Errno> {
        match &*self.state.borrow() {
            State::Walked(inode) => Ok(inode.clone()),
            State::Open(_) | State::XattrValue(_) | State::XattrDraft(_) => Err(Errno::EINVAL),
        }
    }

    /// The open file. Errors: EBADF if the fid is not open.
    pub fn open_file(&self) -> Result<Rc<OpenFile>, Errno> {
        match &*self.state.borrow() {
            State::Open(open) => Ok(open.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    /// What can be read or written through the fid. Errors: EBADF if it is not open.
    pub fn content(&self) -> Result<Content, Errno> {
        match &*self.state.borrow() {
            State::Walked(_) => Err(Errno::EBADF),
            State::Open(open) => Ok(Content::File(open.clone())),
            State::XattrValue(value) => Ok(Content::XattrValue(value.clone())),
            State::XattrDraft(draft) => Ok(Content::XattrDraft(draft.clone())),
        }
    }

    /// The attribute that is being written, if the fid is a draft.
    pub fn draft(&self) -> Option<Rc<XattrDraft>> {
        match &*self.state.borrow() {
            State::XattrDraft(draft) => Some(draft.clone()),
            _ => None,
        }
    }

    /// Turns the fid into an open file (lopen, lcreate). Errors: EINVAL if another request was
    /// first.
    pub fn open(&self, open: OpenFile) -> Result<(), Errno> {
        self.unopened()?;
        let walked = self.state.replace(State::Open(Rc::new(open)));
        self.record();
        drop(walked);
        Ok(())
    }

    /// Turns the fid into a draft (xattrcreate). Errors: EINVAL if another request was first.
    pub fn begin_draft(&self, draft: XattrDraft) -> Result<(), Errno> {
        self.unopened()?;
        let walked = self.state.replace(State::XattrDraft(Rc::new(draft)));
        self.record();
        drop(walked);
        Ok(())
    }
}

/// The fids by their numbers.
#[derive(Debug)]
pub struct Fids {
    table: RefCell<HashMap<u32, Rc<Fid>, RandomState>>,
    /// Those whose end is recorded when its reply has been made.
    ending: RefCell<Vec<Rc<Fid>>>,
    rows: Rc<Table<FidRecord>>,
    limit: usize,
}

impl Fids {
    /// An empty table that holds up to `limit` fids and records them in `rows`.
    pub fn new(limit: usize, rows: Rc<Table<FidRecord>>) -> Fids {
        Fids {
            table: RefCell::default(),
            ending: RefCell::default(),
            rows,
            limit,
        }
    }

    /// Errors: EBADF for an unknown number.
    pub fn get(&self, number: u32) -> Result<Rc<Fid>, Errno> {
        let table = self.table.borrow();
        table.get(&number).cloned().ok_or(Errno::EBADF)
    }

    /// Errors: EINVAL for a number that is in use or invalid; ENFILE if the table is full.
    pub fn check_free(&self, number: u32) -> Result<(), Errno> {
        let table = self.table.borrow();
        if number == protocol::NOFID || table.contains_key(&number) {
            return Err(Errno::EINVAL);
        }
        if table.len() >= self.limit {
            return Err(Errno::ENFILE);
        }
        Ok(())
    }

    /// Adds a fid of `user`, whose `..` stops at `root`. Errors: those of [`Fids::check_free`].
    pub fn insert(
        &self,
        number: u32,
        user: u32,
        root: Rc<Inode>,
        state: State,
    ) -> Result<(), Errno> {
        self.check_free(number)?;
        let row = self.rows.take();
        row.describe(number, user, root.row());
        let fid = Fid {
            row,
            user,
            root,
            state: RefCell::new(state),
            previous: None,
        };
        fid.record();
        self.table.borrow_mut().insert(number, Rc::new(fid));
        Ok(())
    }

    /// Adds a fid that another process has recorded. Errors: those of [`Fids::check_free`].
    pub fn adopt(
        &self,
        row: Row<FidRecord>,
        root: Rc<Inode>,
        state: State,
        previous: Option<Rc<Inode>>,
    ) -> Result<(), Errno> {
        let number = row.number();
        self.check_free(number)?;
        if let State::Open(open) = &state {
            open.fid_row.set(row.index());
        }
        let fid = Fid {
            user: row.user(),
            row,
            root,
            state: RefCell::new(state),
            previous,
        };
        self.table.borrow_mut().insert(number, Rc::new(fid));
        Ok(())
    }

    /// Lets `old` stand for another file, under the same number (a walk from a fid to itself). Errors:
    /// EBADF if it was clunked meanwhile, EINVAL if it was opened.
    pub fn replace(&self, number: u32, old: &Rc<Fid>, inode: Rc<Inode>) -> Result<(), Errno> {
        let previous = old.unopened()?;
        match self.table.borrow_mut().get_mut(&number) {
            Some(current) if Rc::ptr_eq(current, old) => {
                old.row.set_previous(previous.row());
                let fid = Fid {
                    row: old.row.hand_over(),
                    user: old.user,
                    root: old.root.clone(),
                    state: RefCell::new(State::Walked(inode)),
                    previous: Some(previous),
                };
                fid.record();
                *current = Rc::new(fid);
                Ok(())
            }
            _ => Err(Errno::EBADF),
        }
    }

    /// Removes a fid; its record stays until [`Fid::forget`]. Errors: EBADF for an unknown number.
    pub fn remove(&self, number: u32) -> Result<Rc<Fid>, Errno> {
        self.table.borrow_mut().remove(&number).ok_or(Errno::EBADF)
    }

    /// Keeps a fid that was removed by a request that failed. If the process dies before the reply is
    /// made, the request finds the fid again, and fails again.
    pub fn forget_later(&self, fid: Rc<Fid>) {
        self.ending.borrow_mut().push(fid);
    }

    /// Takes the fids that [`Fids::forget_later`] has kept.
    pub fn ending(&self) -> Vec<Rc<Fid>> {
        self.ending.take()
    }

    /// Whether there are such fids.
    pub fn are_ending(&self) -> bool {
        !self.ending.borrow().is_empty()
    }

    /// All, with their numbers.
    pub fn all(&self) -> Vec<(u32, Rc<Fid>)> {
        let table = self.table.borrow();
        let fids = table.iter().map(|(number, fid)| (*number, fid.clone()));
        fids.collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.borrow().len()
    }

    /// Removes all fids.
    pub fn clear(&self) -> impl Iterator<Item = Rc<Fid>> + use<> {
        self.table.take().into_values()
    }
}
