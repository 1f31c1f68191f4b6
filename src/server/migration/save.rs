//! Saving a session.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::Mode;
use super::format::{self, Draft, File, Lock, Session, Target};
use crate::export::sys::name_to_handle;
use crate::export::{FileKind, InodeId, Name, Node};
use crate::server::Server;
use crate::server::call::Actor;
use crate::server::fid::{Fid, State};
use crate::server::handlers::wire_flags;
use crate::server::inodes::Inode;
use crate::server::placement::Cost;
use crate::server::ranges::Kind;

/// An inode without the mount through which it was reached.
type Identity = (InodeId, Option<(i64, u32)>);

fn identity(node: &Node) -> Identity {
    (node.id(), node.key().birth)
}

/// The files that were saved so far.
struct Files<'a> {
    server: &'a Server,
    files: Vec<File>,
    /// Their indices.
    known: HashMap<Identity, u32>,
}

impl Server {
    /// The session as another daemon can continue it. Locks are released on the host, where the other
    /// daemon may need them, until this one goes on.
    pub(super) fn saved(&self) -> Session {
        let mut files = Files::new(self);
        let all = self.session.fids.all();
        let fids = all.iter().map(|(number, fid)| format::Fid {
            number: *number,
            user: fid.user,
            root: files.index(&fid.root, None),
            target: files.target(fid),
        });
        let fids = fids.collect();
        let numbers: HashMap<u32, u32> = all
            .iter()
            .map(|(number, fid)| (fid.row(), *number))
            .collect();
        let held = self.session.locks.held();
        let locks = held.into_iter().filter_map(|held| {
            Some(Lock {
                fid: *numbers.get(&held.fid_row)?,
                client: held.process.client.into(),
                process: held.process.number,
                write: held.range.kind == Kind::Write,
                start: held.range.start as u64,
                end: held.range.end as u64,
            })
        });
        let session = Session {
            msize: self.session.msize.get(),
            locks: locks.collect(),
            fids,
            file_systems: self.session.qids.borrow().file_systems(),
            files: files.files,
        };
        self.suspend_locks();
        session
    }
}

impl<'a> Files<'a> {
    /// With the root alone.
    fn new(server: &'a Server) -> Files<'a> {
        let mut files = Files {
            server,
            files: Vec::new(),
            known: HashMap::new(),
        };
        files.push(server.export.root(), None);
        files
    }

    fn target(&mut self, fid: &Fid) -> Target {
        match &*fid.state() {
            State::Walked(inode) => Target::Walked(self.index(inode, None)),
            State::Open(open) => {
                let flags = fcntl(open.handle.as_fd(), FcntlArg::F_GETFL).unwrap_or_default();
                let node = self.server.hold_open(open).ok();
                let file = self.index(&open.inode, node);
                Target::Open(file, wire_flags(OFlag::from_bits_retain(flags)))
            }
            State::XattrValue(value) => Target::Value(value.value.clone()),
            State::XattrDraft(draft) => Target::Draft(Draft {
                file: self.index(&draft.inode, None),
                name: draft.name.as_bytes().to_vec(),
                flags: draft.flags,
                size: draft.size as u32,
                value: draft.value.borrow().clone(),
            }),
        }
    }

    /// The index of a file, which may be open as `node`.
    fn index(&mut self, inode: &Rc<Inode>, node: Option<Rc<Node>>) -> u32 {
        let key = inode.key();
        if let Some(index) = self.known.get(&(key.id, key.birth)) {
            return *index;
        }
        match node.map_or_else(|| self.server.hold(inode), Ok) {
            Ok(node) => self.add(&node),
            Err(error) => {
                log::warn!("a file of the guest is lost, as it is not found now: {error}");
                let device = key.id.device;
                let file = File {
                    place: None,
                    handle: None,
                    file_system: self.server.session.qids.borrow_mut().index(device),
                    inode: key.id.inode,
                    birth: key.birth,
                    kind: format::Kind::Special,
                };
                self.push_file((key.id, key.birth), file)
            }
        }
    }

    /// Adds a file, and the directories above it that are not known yet.
    fn add(&mut self, node: &Node) -> u32 {
        let mut way: Vec<(Node, Name)> = Vec::new();
        let above = loop {
            let lowest = way.last().map_or(node, |(directory, _)| directory);
            if !way.is_empty() {
                if let Some(index) = self.known.get(&identity(lowest)) {
                    break Some(*index);
                }
            }
            match self.locate(lowest) {
                Ok(place) => way.push(place),
                Err(_) => break None,
            }
        };
        let Some(mut above) = above else {
            return self.push(node, None);
        };
        // From the top down: each name belongs to the file below its directory.
        while let Some((_, name)) = way.pop() {
            let lower = way.last().map_or(node, |(directory, _)| directory);
            above = match self.known.get(&identity(lower)) {
                Some(index) => *index,
                None => self.push(lower, Some((above, name.as_bytes().to_vec()))),
            };
        }
        above
    }

    fn locate(&self, node: &Node) -> Result<(Node, Name), Errno> {
        let export = &self.server.export;
        let device = node.id().device;
        let locate = || export.locate(node);
        self.server.call(device, Cost::Wait, Actor::Daemon, locate)
    }

    fn push(&mut self, node: &Node, place: Option<(u32, Vec<u8>)>) -> u32 {
        let device = node.id().device;
        let by_handle = self.server.migration.get().mode == Mode::FileHandles
            && device == self.server.export.root().id().device;
        let handle = by_handle.then(|| name_to_handle(node.as_fd()).ok());
        let file = File {
            place,
            handle: handle.flatten().map(|handle| handle.to_bytes()),
            file_system: self.server.session.qids.borrow_mut().index(device),
            inode: node.id().inode,
            birth: node.key().birth,
            kind: match node.kind() {
                FileKind::Regular => format::Kind::Regular,
                FileKind::Directory => format::Kind::Directory,
                FileKind::Symlink => format::Kind::Symlink,
                FileKind::Special => format::Kind::Special,
            },
        };
        self.push_file(identity(node), file)
    }

    fn push_file(&mut self, identity: Identity, file: File) -> u32 {
        let index = self.files.len() as u32;
        self.files.push(file);
        self.known.insert(identity, index);
        index
    }
}
