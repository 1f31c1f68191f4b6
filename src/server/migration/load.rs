//! Loading a session that another daemon has saved.

use std::collections::HashMap;
use std::io;
use std::rc::Rc;

use nix::errno::Errno;

use super::OnError;
use super::format::{self, File, Kind, Lock, Session, Target};
use crate::export::xattr::XattrName;
use crate::export::{FileKind, InodeId, InodeKey, Lookup, Name, Node};
use crate::server::Server;
use crate::server::fid::{State, XattrDraft, XattrValue};
use crate::server::handlers::CLIENT_MAX;
use crate::server::inodes::{Dentry, Inode};
use crate::server::limits::{MAX_MSIZE, MIN_MSIZE};
use crate::server::locks::Process;
use crate::server::placement::{Device, Site};
use crate::server::ranges::{self, Range};

/// The major number of file systems that are not found here: no device has it.
const NOWHERE: u32 = 0x7fff_ffff;

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// What the operator is told of a file.
fn describe(session: &Session, file: &File) -> String {
    let mut names = Vec::new();
    let mut place = file.place.as_ref();
    while let Some((directory, name)) = place {
        names.push(name.escape_ascii().to_string());
        // Directories come before what is in them, as was checked.
        place = session.files[*directory as usize].place.as_ref();
    }
    names.reverse();
    match names.is_empty() {
        true => format!("a file without a name (inode number {})", file.inode),
        false => names.join("/"),
    }
}

/// The files that were found.
struct Files<'a> {
    server: &'a Server,
    session: &'a Session,
    found: Vec<Result<Rc<Inode>, Errno>>,
    /// The file systems that are known here, by their indices in qids.
    devices: HashMap<u32, Device>,
    lost: HashMap<u32, Rc<Inode>>,
}

impl Server {
    /// Continues with a session, in a server that has none. Errors: it is damaged, the share is another
    /// directory, or there is a file that is not found and must be. Call [`Handler::reset`] then.
    ///
    /// [`Handler::reset`]: vhost_user::Handler::reset
    pub(super) fn load_session(&self, session: &Session) -> io::Result<()> {
        check(session)?;
        let mut files = Files {
            server: self,
            session,
            found: Vec::new(),
            devices: HashMap::new(),
            lost: HashMap::new(),
        };
        files.find_all()?;
        files.set_devices();
        for fid in &session.fids {
            let root = files.get(fid.root)?;
            let state = files.state(fid)?;
            let fids = &self.session.fids;
            fids.insert(fid.number, fid.user, root, state)
                .map_err(|_| {
                    invalid("two fids with one number, or more than --limit-fids allows")
                })?;
            self.evict_if_needed();
        }
        for lock in &session.locks {
            self.load_lock(lock)?;
        }
        self.set_msize(session.msize);
        log::info!(
            "continues a session with {} fids and {} locks",
            session.fids.len(),
            session.locks.len()
        );
        Ok(())
    }

    fn load_lock(&self, lock: &Lock) -> io::Result<()> {
        let fid = self.session.fids.get(lock.fid);
        // One that was not opened again has no locks.
        let Ok(open) = fid.and_then(|fid| fid.open_file()) else {
            return Ok(());
        };
        let kind = match lock.write {
            true => ranges::Kind::Write,
            false => ranges::Kind::Read,
        };
        let (Ok(start), Ok(end)) = (i64::try_from(lock.start), i64::try_from(lock.end)) else {
            return Err(invalid("a lock of bytes that there cannot be"));
        };
        if start > end || lock.client.len() > CLIENT_MAX {
            return Err(invalid("a lock of no bytes, or of nobody"));
        }
        let process = Process {
            client: lock.client.clone().into(),
            number: lock.process,
        };
        if let Err(error) = self.take_lock(&open, process, &Range { kind, start, end }) {
            // Another daemon or a program of the host was first.
            log::warn!("a lock of the guest is lost: {error}");
        }
        Ok(())
    }
}

/// Errors: something refers to nothing.
fn check(session: &Session) -> io::Result<()> {
    if session.msize != 0 && !(MIN_MSIZE..=MAX_MSIZE).contains(&session.msize) {
        return Err(invalid("a message size that there cannot be"));
    }
    let count = session.files.len();
    let exists = |file: u32| (file as usize) < count;
    for (index, file) in session.files.iter().enumerate() {
        let below = |(directory, _): &(u32, Vec<u8>)| (*directory as usize) < index;
        if file.file_system >= session.file_systems || !file.place.as_ref().is_none_or(below) {
            return Err(invalid(
                "a file in a directory or a file system that there is not",
            ));
        }
    }
    for fid in &session.fids {
        let file = match &fid.target {
            Target::Walked(file) | Target::Open(file, _) => *file,
            Target::Draft(draft) => draft.file,
            Target::Value(_) => fid.root,
        };
        if !exists(file) || !exists(fid.root) {
            return Err(invalid("a fid of a file that there is not"));
        }
    }
    match count {
        0 => Err(invalid("a session without a share")),
        _ => Ok(()),
    }
}

impl Files<'_> {
    fn find_all(&mut self) -> io::Result<()> {
        let root = self.server.export.root();
        let expected = &self.session.files[0];
        if !is_same(expected, root) {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!(
                    "the share here is another directory: its inode number is {}, not {}",
                    root.id().inode,
                    expected.inode
                ),
            ));
        }
        self.devices.insert(0, root.id().device);
        for file in &self.session.files {
            let found = self.find(file);
            self.found.push(found);
            self.server.evict_if_needed();
        }
        Ok(())
    }

    /// Finds a file whose directory was looked for before. Errors: ESTALE if another one is there.
    fn find(&mut self, file: &File) -> Result<Rc<Inode>, Errno> {
        let server = self.server;
        let top = server.export.root();
        let directory = match &file.place {
            Some((directory, name)) => {
                let directory = self.found[*directory as usize].clone()?;
                Some((directory, Name::for_new(name)?))
            }
            None if self.found.is_empty() => {
                // The root.
                let (node, _) = server.placement.call_at(Site::Worker, || top.duplicate())?;
                return server.admit(node, None, top.id().device);
            }
            None => None,
        };
        let by_handle = self.by_handle(file);
        let node = match (by_handle, &directory) {
            (Some(node), _) => node,
            (None, Some((directory, name))) => {
                let above = server.hold(directory)?;
                let above: &Node = &above;
                let find = || above.child(name, Lookup::Blocking);
                server.placement.call_at(Site::Remote, find)?.0
            }
            (None, None) => return Err(Errno::ESTALE),
        };
        let device = node.id().device;
        let known = *self.devices.entry(file.file_system).or_insert(device);
        if known != device || !is_same(file, &node) {
            return Err(Errno::ESTALE);
        }
        let from = directory
            .as_ref()
            .map_or(top.id().device, |(directory, _)| directory.key().id.device);
        let place = directory.map(|(directory, name)| Dentry {
            directory,
            name: name.as_bytes().into(),
        });
        server.admit(node, place, from)
    }

    /// None: handles are not used, or this one leads to no file or another one.
    fn by_handle(&self, file: &File) -> Option<Node> {
        let handle = file.handle.as_ref().filter(|_| file.file_system == 0)?;
        let top = self.server.export.root();
        let key = InodeKey {
            id: InodeId {
                inode: file.inode,
                ..top.id()
            },
            mount: top.key().mount,
            birth: file.birth,
        };
        let locators = self.server.export.locators();
        let stopping = self.server.session.requests.stopping();
        let follow = || {
            let locator = locators.adopt(Some(handle), Some(top));
            locators.follow_all(None, [(&locator, &key, None)], stopping)
        };
        self.server.placement.call_at(Site::Remote, follow).ok()
    }

    /// The file systems get the same indices in qids.
    fn set_devices(&self) {
        let server = self.server;
        let devices = server.session.state.devices().clone();
        let device = |index| self.devices.get(&index).copied();
        let known: Vec<_> = (1..self.session.file_systems)
            .map(|index| device(index).unwrap_or((NOWHERE, index)))
            .collect();
        for (index, device) in (1..).zip(&known) {
            devices.set(index, *device);
        }
        let fresh = server.new_qids();
        let recorded = fresh.recorded(known, move |index, device| devices.set(index, device));
        server.session.qids.replace(recorded);
    }

    /// A file that a fid stands for. Errors: it is not found, and must be.
    fn get(&mut self, index: u32) -> io::Result<Rc<Inode>> {
        let error = match &self.found[index as usize] {
            Ok(inode) => return Ok(inode.clone()),
            Err(error) => *error,
        };
        self.lose(index, error)
    }

    /// Stands for a file that is not found. Errors: it must be.
    fn lose(&mut self, index: u32, error: Errno) -> io::Result<Rc<Inode>> {
        let file = &self.session.files[index as usize];
        if let Some(lost) = self.lost.get(&index) {
            return Ok(lost.clone());
        }
        let what = describe(self.session, file);
        if self.server.migration.get().on_error == OnError::Abort {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{what} is not found here: {error}"),
            ));
        }
        log::warn!("{what} is not found here, and the guest gets errors for it: {error}");
        let key = InodeKey {
            // Not that of another file.
            id: InodeId {
                device: (NOWHERE, index),
                inode: file.inode,
            },
            mount: 0,
            birth: file.birth,
        };
        let lost = self.server.session.inodes.add_lost(key, kind_of(file.kind));
        self.lost.insert(index, lost.clone());
        Ok(lost)
    }

    fn state(&mut self, fid: &format::Fid) -> io::Result<State> {
        let server = self.server;
        let count = |size| {
            let counted = server.session.xattr_bytes.take(size);
            counted.map_err(|_| invalid("more bytes of attributes than --limit-xattr-bytes allows"))
        };
        let heap = server.session.state.heap();
        Ok(match &fid.target {
            Target::Walked(file) => State::Walked(self.get(*file)?),
            Target::Open(file, flags) => {
                let inode = self.get(*file)?;
                match server.open_again(&inode, *flags, fid.user) {
                    Ok(open) => State::Open(Rc::new(open)),
                    Err(error) => State::Walked(self.lose(*file, error)?),
                }
            }
            Target::Value(value) => State::XattrValue(Rc::new(XattrValue {
                value: value.clone(),
                recorded: heap.keep(value),
                _counted: count(value.len())?,
            })),
            Target::Draft(draft) => {
                let size = draft.size as usize;
                if draft.value.len() > size {
                    return Err(invalid("an attribute that is longer than announced"));
                }
                let counted = count(size)?;
                let name = XattrName::new(&draft.name);
                let name = name.map_err(|_| invalid("an attribute without a name"))?;
                let inode = self.get(draft.file)?;
                let new = XattrDraft::new(heap, inode, name, draft.flags, size, counted);
                new.record(0, &draft.value, draft.value.len());
                new.value.replace(draft.value.clone());
                State::XattrDraft(Rc::new(new))
            }
        })
    }
}

/// Whether a file that was found is the one that was saved. Its device may have another number here.
fn is_same(file: &File, node: &Node) -> bool {
    let births = file.birth.zip(node.key().birth);
    node.id().inode == file.inode
        && node.kind() == kind_of(file.kind)
        && births.is_none_or(|(there, here)| there == here)
}

fn kind_of(kind: Kind) -> FileKind {
    match kind {
        Kind::Regular => FileKind::Regular,
        Kind::Directory => FileKind::Directory,
        Kind::Symlink => FileKind::Symlink,
        Kind::Special => FileKind::Special,
    }
}
