//! Treaddir: the entries of a directory.

use nix::errno::Errno;
use protocol::{DirEntry, Qid, QidKind, Rreaddir, Treaddir};

use crate::export::InodeId;
use crate::export::directory::entries;
use crate::server::Server;
use crate::server::call::Actor;
use crate::server::exchange::Exchange;
use crate::server::handle::Handle;
use crate::server::placement::Cost;

/// The most to ask of the kernel at once.
const MAX_RECORDS: usize = 128 * 1024;
/// How much longer a record of the kernel may be than the entry made from it.
const RECORD_SLACK: usize = 8;

impl Server {
    /// Treaddir: whole entries from the cookie offset on, as many as fit in count bytes; none at
    /// the end. Errors: EBADF if the fid is not open, ENOTDIR, EINVAL if not even one entry fits.
    pub(super) fn readdir(&self, m: Treaddir, exchange: &Exchange) -> Result<Rreaddir, Errno> {
        let fid = self.session.fids.get(m.fid)?;
        let open = fid.open_file()?;
        let Handle::Directory(stream) = &*open.handle else {
            return Err(Errno::ENOTDIR);
        };
        let room = exchange.room(Rreaddir::PAYLOAD, self.session.msize.get());
        let count = room.min(m.count as usize);

        let mut records = vec![0; count.saturating_add(RECORD_SLACK).min(MAX_RECORDS)];
        let length = {
            let (export, records) = (&self.export, &mut records);
            let device = open.inode.key().id.device;
            self.call(device, self.cost(Cost::Read), Actor::Daemon, || {
                export.read_directory(device, stream, m.offset, records)
            })?
        };
        let (directory, root) = (open.inode.key().id, fid.root.key().id);
        let mut payload = Vec::with_capacity(count.min(length * 2));
        for entry in entries(&records[..length]) {
            let id = match entry.name {
                // What is above the share is not the guest's.
                b".." if directory == root => root,
                _ => InodeId {
                    device: directory.device,
                    inode: entry.inode,
                },
            };
            let entry = DirEntry {
                qid: self.entry_qid(id, entry.kind),
                offset: entry.next,
                kind: entry.kind,
                name: entry.name,
            };
            if payload.len() + entry.encoded_len() > count {
                break;
            }
            entry.encode(&mut payload).map_err(|_| Errno::EIO)?;
        }
        if payload.is_empty() && length > 0 {
            return Err(Errno::EINVAL);
        }
        exchange.writable().write_at(Rreaddir::PAYLOAD, &payload);
        Ok(Rreaddir {
            count: payload.len() as u32,
        })
    }

    /// The qid of an entry, from the directory alone. The version would take a look at the file;
    /// clients take it from a walk.
    fn entry_qid(&self, id: InodeId, kind: u8) -> Qid {
        let kind = match kind {
            libc::DT_DIR => QidKind::DIR,
            libc::DT_LNK => QidKind::SYMLINK,
            _ => QidKind::FILE,
        };
        Qid {
            kind,
            version: 0,
            path: self.session.qids.borrow_mut().path(id),
        }
    }
}
