//! Tlopen and Tlcreate: a fid becomes an open file.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use protocol::{Qid, Rlcreate, Rlopen, Tlcreate, Tlopen, open};

use crate::export::directory::DirectoryStream;
use crate::export::{FileKind, Name, Node, Stat, has_set_id};
use crate::server::Server;
use crate::server::call::Actor;
use crate::server::fid::{Fid, OpenFile};
use crate::server::handle::{File, Handle};
use crate::server::inodes::{Dentry, Inode};
use crate::server::placement::Cost;
use crate::server::redo::Redo;

/// The guest chooses the size of its reads and writes by msize alone.
const NO_IOUNIT: u32 = 0;

impl Server {
    /// Tlopen opens the fid's file. Errors: EINVAL if the fid is open, ENXIO for a device, fifo or
    /// socket (they belong to the guest's kernel), EROFS, those of open(2).
    pub(super) fn lopen(&self, m: Tlopen, redo: Redo) -> Result<Rlopen, Errno> {
        let fid = self.session.fids.get(m.fid)?;
        if let Some(qid) = self.opened_before(&fid, redo)? {
            let iounit = NO_IOUNIT;
            return Ok(Rlopen { qid, iounit });
        }
        let inode = fid.unopened()?;
        let flags = host_flags(m.flags)?;
        if writes(flags) {
            self.export.writable()?;
        }
        let file = self.held(&fid)?;
        let cost = match writes(flags) {
            false => Cost::Held,
            true => Cost::Change,
        };
        let counted = self.count_open()?;
        let given = self.export.set_id_given();
        let (fd, stat) = {
            let (export, file, user) = (&self.export, file.located(), fid.user);
            self.with_descriptors(|| {
                self.call_open(file.node.id().device, cost, Actor::User(user), |more| {
                    export.open(file, flags | more, user)
                })
            })?
        };
        let handle = self.handle(&file, fd, flags, &stat, given);
        let handle = self.closing(handle, file.id().device, counted);
        inode.note_size(stat.0.stx_blocks);
        fid.open(OpenFile::new(inode, handle))?;
        self.evict_if_needed();
        Ok(Rlopen {
            qid: self.qid(&stat),
            iounit: NO_IOUNIT,
        })
    }

    /// Tlcreate creates a regular file in the fid's directory and opens it; the fid then stands for
    /// the file. Without EXCL a file that exists is opened. Errors: those of open(2), EROFS.
    pub(super) fn lcreate(&self, m: Tlcreate<'_>, redo: Redo) -> Result<Rlcreate, Errno> {
        let fid = self.session.fids.get(m.fid)?;
        if let Some(qid) = self.opened_before(&fid, redo)? {
            let iounit = NO_IOUNIT;
            return Ok(Rlcreate { qid, iounit });
        }
        let parent = fid.unopened()?;
        let directory = self.held(&fid)?;
        directory.directory()?;
        let name = Name::for_new(m.name)?;
        self.export.writable()?;
        let flags = host_flags(m.flags)?;
        let exclusive = m.flags & open::EXCL != 0;
        let owner = self.owner(&fid, m.gid)?;
        let (export, directory) = (&self.export, directory.located());
        let device = directory.node.id().device;
        let counted = self.count_open()?;
        let given = export.set_id_given();
        // It takes two descriptors. The file that is created with the first is kept until there is
        // a second.
        let mut made = None;
        let result = self.with_descriptors(|| {
            let made = &mut made;
            self.call_open(device, Cost::Change, Actor::For(owner), |more| {
                let flags = flags | more;
                let new = export.create(directory, &name, flags, exclusive, m.mode, owner, made);
                match (new, redo.since()) {
                    // With the daemon's rights, as the guest's user has created it.
                    (Err(error @ (Errno::EEXIST | Errno::EACCES)), Some(since)) => {
                        let made =
                            export.create_again(directory, &name, flags, m.mode, owner, since);
                        made.map_err(|made| if made == Errno::EEXIST { error } else { made })
                    }
                    (result, _) => result,
                }
            })
        });
        if let Some(made) = made {
            let _ = self.call(device, Cost::Change, Actor::For(owner), || {
                export.undo_create(directory.node, &name, made);
                Ok(())
            });
        }
        let (fd, node, stat) = result?;
        let handle = self.handle(&node, fd, flags, &stat, given);
        let handle = self.closing(handle, node.id().device, counted);
        let from = parent.key().id.device;
        let place = Dentry {
            directory: parent,
            name: m.name.into(),
        };
        let inode = self.admit(node, Some(place), from)?;
        inode.note_size(stat.0.stx_blocks);
        fid.open(OpenFile::new(inode, handle))?;
        self.evict_if_needed();
        Ok(Rlcreate {
            qid: self.qid(&stat),
            iounit: NO_IOUNIT,
        })
    }

    /// The qid of the file that the process before has opened for the request, if it has.
    fn opened_before(&self, fid: &Fid, redo: Redo) -> Result<Option<Qid>, Errno> {
        if !redo.is_possible() || fid.open_file().is_err() {
            return Ok(None);
        }
        let mut stat = Stat::default();
        self.stat(&self.held(fid)?, &mut stat)?;
        Ok(Some(self.qid(&stat)))
    }

    /// Opens a file that the session had open in another daemon, with the flags of that Tlopen. Errors:
    /// those of [`Server::lopen`].
    pub(in crate::server) fn open_again(
        &self,
        inode: &Rc<Inode>,
        wire: u32,
        user: u32,
    ) -> Result<OpenFile, Errno> {
        let flags = host_flags(wire & !open::TRUNC)?;
        if writes(flags) {
            self.export.writable()?;
        }
        let file = &*self.hold(inode)?;
        let counted = self.count_open()?;
        let export = &self.export;
        let (fd, stat) = self.with_descriptors(|| {
            self.call_open(file.id().device, Cost::Wait, Actor::Daemon, |more| {
                export.open(file.into(), flags | more, user)
            })
        })?;
        // Whether a write must clear set-id bits is looked up again.
        let handle = self.handle(file, fd, flags, &stat, 0);
        let handle = self.closing(handle, file.id().device, counted);
        Ok(OpenFile::new(inode.clone(), handle))
    }

    /// The handle of an opened file. `stat` was taken when
    /// [`Export::set_id_given`](crate::export::Export::set_id_given) was `given`.
    fn handle(&self, node: &Node, fd: OwnedFd, flags: OFlag, stat: &Stat, given: u64) -> Handle {
        match node.kind() {
            FileKind::Directory => Handle::Directory(DirectoryStream::new(fd)),
            _ => {
                // Others may have changed what a mapped model keeps: the first write looks again.
                let known = !self.export.is_mapped() && !has_set_id(stat.0.stx_mode.into());
                Handle::File(File::new(fd, flags, if known { given } else { 0 }))
            }
        }
    }
}

/// The protocol's open flags, which have the same values on every host, and this host's.
const FLAGS: [(u32, OFlag); 6] = [
    (open::TRUNC, OFlag::O_TRUNC),
    (open::APPEND, OFlag::O_APPEND),
    (open::DSYNC, OFlag::O_DSYNC),
    (open::SYNC, OFlag::O_SYNC),
    (open::NOATIME, OFlag::O_NOATIME),
    (open::DIRECTORY, OFlag::O_DIRECTORY),
];

/// Translates the protocol's open flags to this host's. lcreate handles CREATE and EXCL; NOCTTY, FASYNC
/// and NONBLOCK mean nothing for a file, and DIRECT would demand an alignment of the guest's buffers that
/// only its own disk needs. Errors: EINVAL for an invalid access mode.
fn host_flags(wire: u32) -> Result<OFlag, Errno> {
    /// The two bits that hold the access mode.
    const ACCESS: u32 = 3;
    let mut flags = match wire & ACCESS {
        open::RDONLY => OFlag::O_RDONLY,
        open::WRONLY => OFlag::O_WRONLY,
        open::RDWR => OFlag::O_RDWR,
        _ => return Err(Errno::EINVAL),
    };
    for (bit, flag) in FLAGS {
        if wire & bit != 0 {
            flags |= flag;
        }
    }
    Ok(flags)
}

/// The protocol's open flags for those of an open file of this host.
pub(in crate::server) fn wire_flags(host: OFlag) -> u32 {
    let access = match host & OFlag::O_ACCMODE {
        OFlag::O_WRONLY => open::WRONLY,
        OFlag::O_RDWR => open::RDWR,
        _ => open::RDONLY,
    };
    let set = FLAGS.iter().filter(|(_, flag)| host.contains(*flag));
    set.fold(access, |wire, (bit, _)| wire | bit)
}

fn writes(flags: OFlag) -> bool {
    flags & OFlag::O_ACCMODE != OFlag::O_RDONLY || flags.contains(OFlag::O_TRUNC)
}
