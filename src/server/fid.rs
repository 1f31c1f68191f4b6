//! What the guest's fids stand for.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use foldhash::fast::RandomState;
use nix::errno::Errno;
use protocol::xattr;

use super::closing::Closing;
use super::handle::Handle;
use super::inodes::Inode;
use super::limits::Share;
use crate::export::acl;
use crate::export::xattr::XattrName;

/// A guest's handle for a file. A request keeps the fid that it works on, so a clunk meanwhile only
/// takes the guest's number away; the descriptor is closed after the last request.
#[derive(Debug)]
pub struct Fid {
    /// The user who attached, by the host's id: the owner of what is made through the fid.
    pub user: u32,
    /// Where `..` stops.
    pub root: Rc<Inode>,
    state: RefCell<State>,
}

#[derive(Clone, Debug)]
enum State {
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
    /// The bytes that were announced.
    pub _counted: Share,
}

impl XattrDraft {
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
    /// A fid for a file that was walked to.
    pub fn walked(user: u32, root: Rc<Inode>, inode: Rc<Inode>) -> Fid {
        Fid {
            user,
            root,
            state: RefCell::new(State::Walked(inode)),
        }
    }

    /// A fid for the value of an attribute.
    pub fn xattr_value(user: u32, root: Rc<Inode>, value: XattrValue) -> Fid {
        Fid {
            user,
            root,
            state: RefCell::new(State::XattrValue(Rc::new(value))),
        }
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
        self.state.replace(State::Open(Rc::new(open)));
        Ok(())
    }

    /// Turns the fid into a draft (xattrcreate). Errors: EINVAL if another request was first.
    pub fn begin_draft(&self, draft: XattrDraft) -> Result<(), Errno> {
        self.unopened()?;
        self.state.replace(State::XattrDraft(Rc::new(draft)));
        Ok(())
    }
}

/// The fids by their numbers.
#[derive(Debug)]
pub struct Fids {
    table: RefCell<HashMap<u32, Rc<Fid>, RandomState>>,
    limit: usize,
}

impl Fids {
    /// An empty table that holds up to `limit` fids.
    pub fn new(limit: usize) -> Fids {
        Fids {
            table: RefCell::default(),
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

    /// Adds a fid. Errors: those of [`Fids::check_free`].
    pub fn insert(&self, number: u32, fid: Fid) -> Result<(), Errno> {
        self.check_free(number)?;
        self.table.borrow_mut().insert(number, Rc::new(fid));
        Ok(())
    }

    /// Replaces `old` by `new` under the same number (a walk from a fid to itself). Errors: EBADF
    /// if it was clunked meanwhile, EINVAL if it was opened.
    pub fn replace(&self, number: u32, old: &Rc<Fid>, new: Fid) -> Result<(), Errno> {
        old.unopened()?;
        match self.table.borrow_mut().get_mut(&number) {
            Some(current) if Rc::ptr_eq(current, old) => {
                *current = Rc::new(new);
                Ok(())
            }
            _ => Err(Errno::EBADF),
        }
    }

    /// Removes a fid. Errors: EBADF for an unknown number.
    pub fn remove(&self, number: u32) -> Result<Rc<Fid>, Errno> {
        self.table.borrow_mut().remove(&number).ok_or(Errno::EBADF)
    }

    /// Removes all fids.
    pub fn clear(&self) -> impl Iterator<Item = Rc<Fid>> + use<> {
        self.table.take().into_values()
    }
}
