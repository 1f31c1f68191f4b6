//! Continuing after the process before has died: the session is built again from its state.
//!
//! A guest may have compromised that process, so everything is checked: rows that refer to no other
//! row, numbers that mean nothing, descriptors that are not there or lead to another file.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::Server;
use super::fid::{OpenFile, State, XattrDraft, XattrValue};
use super::handle::{File, Handle};
use super::inodes::{Dentry, Inode, Pin};
use super::locks::{self, HeldBefore};
use super::placement::Medium;
use crate::export::directory::DirectoryStream;
use crate::export::{FileKind, InodeId, InodeKey, Node};
use crate::state::{
    self, Claims, Error, FidRecord, InodeEntry, InodeRecord, LockRecord, Reference, Row, Target,
    Text,
};

/// All of a kind, by the numbers of their rows.
type ByRow<T> = HashMap<u32, T>;

/// An inode that is being taken over.
struct Found {
    inode: Rc<Inode>,
    kind: FileKind,
    place: Option<state::PlaceRecord>,
}

fn damaged(why: &'static str) -> impl Fn() -> Error {
    move || Error::Damaged(why)
}

impl Server {
    /// Takes over the session that another process has left in the state, with its descriptors. Call
    /// it before anything else. Errors: there is something wrong with the state; the session is
    /// incomplete then, and nothing but the drop of the server makes sense.
    pub fn resume(&self, claims: &mut Claims) -> Result<(), Error> {
        let session = &self.session;
        let state = &session.state;
        state.check()?;
        let inodes = state.inodes().adopt().ok_or(Error::Incomplete)?;
        let fids = state.fids().adopt().ok_or(Error::Incomplete)?;
        let locks = state.locks().adopt().ok_or(Error::Incomplete)?;
        let mut texts = self.adopt_texts(&inodes, &fids, &locks)?;
        self.adopt_devices();
        session.msize.set(state.header().msize.load(Relaxed));

        let found = self.adopt_inodes(inodes, &mut texts, claims)?;
        adopt_places(&found, &texts)?;
        let open = self.adopt_fids(fids, &found, &mut texts, claims)?;
        self.adopt_locks(locks, &open, &texts, claims)?;
        Ok(())
    }

    /// Whether another process has left a state.
    pub fn has_state(&self) -> bool {
        self.session.state.is_begun()
    }

    /// Begins to record a state that another process can take over.
    pub fn begin_state(&self) {
        self.session.state.begin();
    }

    /// Goes on after [`Server::resume`], when descriptors that nobody has claimed are closed.
    pub fn go_on(&self) {
        self.tell_adopted_locks();
    }

    fn adopt_devices(&self) {
        let devices = self.session.state.devices().clone();
        let known: Vec<_> = devices.all().collect();
        let fresh = self.new_qids();
        let recorded = fresh.recorded(known, move |index, device| devices.set(index, device));
        self.session.qids.replace(recorded);
    }

    /// The strings that the rows refer to. The blocks of those that are never asked for are freed with
    /// the map.
    fn adopt_texts(
        &self,
        inodes: &[Row<InodeRecord>],
        fids: &[Row<FidRecord>],
        locks: &[Row<LockRecord>],
    ) -> Result<BTreeMap<Reference, Rc<Text>>, Error> {
        let names = inodes.iter().filter_map(|row| Some(row.place()?.name));
        let handles = inodes.iter().filter_map(|row| match row.pin()? {
            state::Pin::Handle(handle) => Some(handle),
            state::Pin::Descriptor(_) | state::Pin::Name => None,
        });
        let attributes = fids.iter().filter_map(|row| match row.target()? {
            Target::Value(text) | Target::Draft(text) => Some(text),
            Target::Walked(_) | Target::Open(..) => None,
        });
        let mut references: Vec<_> = names.chain(handles).chain(attributes).collect();
        // Only these may repeat: a process has one name for all of its locks.
        let mut clients: Vec<_> = locks.iter().map(|row| row.entry().client).collect();
        clients.sort_unstable();
        clients.dedup();
        references.extend(clients);
        let texts = self.session.state.heap().adopt(&references);
        let texts = texts.ok_or_else(damaged("strings overlap"))?;
        Ok(references
            .into_iter()
            .zip(texts.into_iter().map(Rc::new))
            .collect())
    }

    fn adopt_inodes(
        &self,
        rows: Vec<Row<InodeRecord>>,
        texts: &mut BTreeMap<Reference, Rc<Text>>,
        claims: &mut Claims,
    ) -> Result<ByRow<Found>, Error> {
        let inodes = &self.session.inodes;
        let heap = self.session.state.heap();
        let mut found = ByRow::new();
        let mut evicted = Vec::new();
        let mut media: HashMap<(u32, u32), Rc<Node>> = HashMap::new();
        let mut add = |row: Row<InodeRecord>, key: InodeKey, pin, handle| {
            let kind = row.kind().ok_or_else(damaged("a file without a type"))?;
            let (number, place) = (row.index(), row.place());
            if inodes.get(&key).is_some() {
                return Err(Error::Damaged("two records of one file"));
            }
            let entry = InodeEntry::adopted(row, heap.clone(), handle);
            let inode = inodes.add(entry, key, pin);
            let record = Found { inode, kind, place };
            found.insert(number, record);
            Ok(())
        };
        for row in rows {
            let key = row.key();
            let pin = row.pin().ok_or_else(damaged("a file that is nowhere"))?;
            let state::Pin::Descriptor(fd) = pin else {
                evicted.push((row, pin));
                continue;
            };
            let kind = row.kind().ok_or_else(damaged("a file without a type"))?;
            let node = Node::adopt(claims.take(fd)?, key, kind);
            let node = Rc::new(node.map_err(|_| Error::Damaged("another file"))?);
            if kind == FileKind::Directory {
                media.entry(key.id.device).or_insert_with(|| node.clone());
            }
            add(row, key, Pin::Pinned(node), None)?;
        }
        let locators = self.export.locators();
        for (row, pin) in evicted {
            let key = row.key();
            let near = media.get(&key.id.device).map(|node| &**node);
            let near = near.filter(|near| near.key().mount == key.mount);
            let text = match pin {
                state::Pin::Handle(handle) => texts.remove(&handle).and_then(Rc::into_inner),
                state::Pin::Name | state::Pin::Descriptor(_) => None,
            };
            let bytes = text.as_ref().map(Text::bytes);
            let locator = locators.adopt(bytes.as_deref(), near);
            add(row, key, Pin::Evicted(Rc::new(locator)), text)?;
        }
        for (device, node) in media {
            if !self.placement.is_root(device) {
                self.learn_later(device, node);
            }
        }
        Ok(found)
    }

    /// Until a file system has said what it is, it counts as remote.
    fn learn_later(&self, device: (u32, u32), node: Rc<Node>) {
        let Some(server) = super::InFlight::of(self) else {
            return;
        };
        let spawned = coroutine::spawn(move || {
            let placement = &server.placement;
            let file = &*node;
            let medium = placement.call_at(super::Site::Remote, || Medium::of(file));
            placement.learn(device, medium);
        });
        if let Err(failed) = spawned {
            log::warn!("no coroutine to look at a file system: {failed}");
        }
    }

    /// Returns the open files by the rows of their fids.
    fn adopt_fids(
        &self,
        rows: Vec<Row<FidRecord>>,
        found: &ByRow<Found>,
        texts: &mut BTreeMap<Reference, Rc<Text>>,
        claims: &mut Claims,
    ) -> Result<ByRow<Rc<OpenFile>>, Error> {
        let session = &self.session;
        let file = |row: u32| found.get(&row).ok_or_else(damaged("a fid without a file"));
        let mut text = |reference| {
            let text = texts.remove(&reference).and_then(Rc::into_inner);
            text.ok_or_else(damaged("a fid without its attribute"))
        };
        let mut open_files = ByRow::new();
        for row in rows {
            let target = row.target().ok_or_else(damaged("a fid for nothing"))?;
            let state = match target {
                Target::Walked(inode) => State::Walked(file(inode)?.inode.clone()),
                Target::Open(inode, fd) => {
                    let open = Rc::new(self.adopt_open(file(inode)?, claims.take(fd)?)?);
                    open_files.insert(row.index(), open.clone());
                    State::Open(open)
                }
                Target::Value(reference) => {
                    let recorded = text(reference)?;
                    let value = recorded.bytes();
                    let counted = session.xattr_bytes.take(value.len());
                    State::XattrValue(Rc::new(XattrValue {
                        value,
                        recorded,
                        _counted: counted.map_err(|_| Error::Damaged("too many attributes"))?,
                    }))
                }
                Target::Draft(reference) => {
                    let inode = |row| file(row).ok().map(|found| found.inode.clone());
                    let count = |size| session.xattr_bytes.take(size).ok();
                    let draft = XattrDraft::adopt(text(reference)?, inode, count);
                    State::XattrDraft(Rc::new(draft.ok_or_else(damaged("no attribute"))?))
                }
            };
            let root = file(row.root())?.inode.clone();
            let previous = found.get(&row.previous()).map(|found| found.inode.clone());
            let added = session.fids.adopt(row, root, state, previous);
            added.map_err(|_| Error::Damaged("two fids with one number, or too many"))?;
        }
        Ok(open_files)
    }

    fn adopt_open(&self, file: &Found, fd: OwnedFd) -> Result<OpenFile, Error> {
        let flags = fcntl(&fd, FcntlArg::F_GETFL).map_err(std::io::Error::from)?;
        let flags = OFlag::from_bits_retain(flags);
        if flags.contains(OFlag::O_PATH) {
            return Err(Error::Damaged("an open file that is not open"));
        }
        let handle = match file.kind {
            FileKind::Directory => Handle::Directory(DirectoryStream::new(fd)),
            // Whether a write must clear set-id bits is not known any more.
            FileKind::Regular => Handle::File(File::new(fd, flags, 0)),
            FileKind::Symlink | FileKind::Special => {
                return Err(Error::Damaged(
                    "an open file of a kind that is never opened",
                ));
            }
        };
        let device = file.inode.key().id.device;
        let handle = self.closing(handle, device, self.session.inodes.count_adopted());
        Ok(OpenFile::new(file.inode.clone(), handle))
    }

    fn adopt_locks(
        &self,
        rows: Vec<Row<LockRecord>>,
        open: &ByRow<Rc<OpenFile>>,
        texts: &BTreeMap<Reference, Rc<Text>>,
        claims: &mut Claims,
    ) -> Result<(), Error> {
        let mut by_inode: HashMap<InodeId, Vec<HeldBefore>> = HashMap::new();
        for row in rows {
            let entry = row.entry();
            // The guest has given the fid back, and the lock with it.
            let Some(through) = open.get(&entry.fid) else {
                continue;
            };
            let client = texts.get(&entry.client);
            let client = client.ok_or_else(damaged("a lock without an owner"))?;
            let range = locks::range_of(&entry).ok_or_else(damaged("a lock of no bytes"))?;
            by_inode
                .entry(through.inode.key().id)
                .or_default()
                .push(HeldBefore {
                    row,
                    client: client.clone(),
                    range,
                    through: through.clone(),
                });
        }
        let mut descriptions: HashMap<RawFd, ()> = HashMap::new();
        for (inode, held) in by_inode {
            // While a description is replaced by another, there are rows with either.
            let Some(number) = held.last().map(|held| held.row.entry().description) else {
                continue;
            };
            if descriptions.insert(number, ()).is_some() {
                return Err(Error::Damaged("locks of two files on one description"));
            }
            let counted = self.session.inodes.count_adopted();
            let description = self.closing(claims.take(number)?, inode.device, counted);
            let adopted = self.session.locks.adopt(inode, description, held);
            adopted.map_err(|_| Error::Damaged("too many locks"))?;
        }
        Ok(())
    }
}

fn adopt_places(found: &ByRow<Found>, texts: &BTreeMap<Reference, Rc<Text>>) -> Result<(), Error> {
    for file in found.values() {
        let Some(place) = file.place else { continue };
        // The process may have died between the removal of two records.
        let Some(directory) = found.get(&place.directory) else {
            continue;
        };
        if directory.kind != FileKind::Directory {
            return Err(Error::Damaged("a file in something that is no directory"));
        }
        let name = texts.get(&place.name);
        let name = name.ok_or_else(damaged("a file without a name"))?;
        file.inode.moved_to(Dentry {
            directory: directory.inode.clone(),
            name: name.bytes().into(),
        });
    }
    Ok(())
}
