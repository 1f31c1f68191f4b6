//! Tlock and Tgetlock: byte-range locks, held on the host as open-file-description locks.
//!
//! A lock belongs to the open file behind the fid, so it is in force against other fids, other
//! guests and processes of the host alike, and ends with the fid.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use protocol::{Rgetlock, Rlock, Tgetlock, Tlock, lock};

use crate::server::Server;

impl Server {
    /// Tlock takes or releases a lock. One that is held by another is answered BLOCKED; a client
    /// that is willing to wait asks again. Errors: EBADF if the fid is not open in the mode that
    /// the lock needs, EINVAL, those of fcntl(2).
    pub(super) fn lock(&self, m: Tlock<'_>) -> Result<Rlock, Errno> {
        let open = self.session.fids.get(m.fid)?.open_file()?;
        if m.flags & !(lock::BLOCK | lock::RECLAIM) != 0 {
            return Err(Errno::EINVAL);
        }
        let range = flock(host_kind(m.kind)?, m.start, m.length)?;
        let fd = open.handle.as_fd();
        match self.blocking(|| fcntl(fd, FcntlArg::F_OFD_SETLK(&range))) {
            Ok(_) => Ok(Rlock {
                status: lock::SUCCESS,
            }),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(Rlock {
                status: lock::BLOCKED,
            }),
            Err(error) => Err(error),
        }
    }

    /// Tgetlock tells which lock stands in the way of a write lock, UNLCK if none does. Linux
    /// does not say which kind it is interested in. Errors: as for Tlock.
    pub(super) fn getlock<'a>(&self, m: Tgetlock<'a>) -> Result<Rgetlock<'a>, Errno> {
        let open = self.session.fids.get(m.fid)?.open_file()?;
        let kind = match m.kind {
            lock::UNLCK => libc::F_WRLCK,
            kind => host_kind(kind)?,
        };
        let mut range = flock(kind, m.start, m.length)?;
        {
            let (fd, range) = (open.handle.as_fd(), &mut range);
            self.blocking(|| fcntl(fd, FcntlArg::F_OFD_GETLK(range)))?;
        }
        if i32::from(range.l_type) == libc::F_UNLCK {
            let Tgetlock {
                start,
                length,
                proc_id,
                client_id,
                ..
            } = m;
            return Ok(Rgetlock {
                kind: lock::UNLCK,
                start,
                length,
                proc_id,
                client_id,
            });
        }
        Ok(Rgetlock {
            kind: if i32::from(range.l_type) == libc::F_RDLCK {
                lock::RDLCK
            } else {
                lock::WRLCK
            },
            start: range.l_start as u64,
            length: range.l_len as u64,
            // A lock of an open file description has no process: the kernel says -1.
            proc_id: range.l_pid.max(0) as u32,
            client_id: b"",
        })
    }
}

fn host_kind(wire: u8) -> Result<i32, Errno> {
    match wire {
        lock::RDLCK => Ok(libc::F_RDLCK),
        lock::WRLCK => Ok(libc::F_WRLCK),
        lock::UNLCK => Ok(libc::F_UNLCK),
        _ => Err(Errno::EINVAL),
    }
}

/// Errors: EINVAL for a range that begins, EOVERFLOW for one that ends behind the largest offset.
fn flock(kind: i32, start: u64, length: u64) -> Result<libc::flock, Errno> {
    let start = i64::try_from(start).map_err(|_| Errno::EINVAL)?;
    let length = i64::try_from(length).map_err(|_| Errno::EOVERFLOW)?;
    if length > 0 && start.checked_add(length - 1).is_none() {
        return Err(Errno::EOVERFLOW);
    }
    Ok(libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: length,
        // Required to be 0 for locks of open file descriptions.
        l_pid: 0,
    })
}
