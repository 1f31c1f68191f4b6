//! Tlock and Tgetlock: byte-range locks.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use protocol::{Rgetlock, Rlock, Tgetlock, Tlock, lock};

use crate::server::Server;
use crate::server::call::Actor;
use crate::server::fid::OpenFile;
use crate::server::locks::{Owner, Range, open_for_locks};
use crate::server::placement::Cost;
use crate::server::requests::{Failure, Running, Wake};

/// How long a lock that is waited for is left alone before it is tried again. A release by this
/// session's guest is noticed at once; nothing tells of one by the host.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest name of a guest that is kept; Linux's is its host name, of 64 bytes at the most.
const CLIENT_MAX: usize = 255;
const LAST_PAUSE: Duration = Duration::from_millis(100);

impl Server {
    /// Tlock takes or releases a lock. With BLOCK the answer comes when the lock is granted; a
    /// flush ends the wait without an answer, and the end of the session or of the ring with
    /// BLOCKED, after which a client asks again. Errors: EBADF if the fid is not open, EINVAL,
    /// ENOLCK where the host does not allow it or the guest has as many as it may, ENAMETOOLONG for a
    /// client of more than 255 bytes, those of fcntl(2).
    pub(super) fn lock(&self, m: Tlock<'_>, running: &Running<'_>) -> Result<Rlock, Failure> {
        let open = self.session.fids.get(m.fid)?.open_file()?;
        if m.flags & !(lock::BLOCK | lock::RECLAIM) != 0 {
            return Err(Errno::EINVAL.into());
        }
        let range = Range::new(host_kind(m.kind)?, m.start, m.length)?;
        let locks = &self.session.locks;
        if range.kind == libc::F_UNLCK
            && locks
                .existing(open.inode.key().id, m.client_id, m.proc_id)
                .is_none()
        {
            // It holds nothing: no descriptor is needed to give that up.
            return Ok(Rlock {
                status: lock::SUCCESS,
            });
        }
        if m.client_id.len() > CLIENT_MAX {
            return Err(Errno::ENAMETOOLONG.into());
        }
        let owner = self.lock_owner(&open, m.client_id, m.proc_id)?;
        let mut pause = FIRST_PAUSE;
        loop {
            match self.set_lock(&owner, range) {
                Ok(()) => {
                    break Ok(Rlock {
                        status: lock::SUCCESS,
                    });
                }
                Err(Errno::EAGAIN) if m.flags & lock::BLOCK == 0 => {
                    break Ok(Rlock {
                        status: lock::BLOCKED,
                    });
                }
                Err(Errno::EAGAIN) => {}
                // The description could not be opened for writing.
                Err(Errno::EBADF) => break Err(Errno::ENOLCK.into()),
                Err(error) => break Err(error.into()),
            }
            match self
                .session
                .lock_waiters
                .wait(open.inode.key().id, running, pause)
            {
                Wake::Retry => pause = (pause * 2).min(LAST_PAUSE),
                Wake::Flushed => break Err(Failure::Flushed),
                Wake::Stopped => {
                    break Ok(Rlock {
                        status: lock::BLOCKED,
                    });
                }
            }
        }
    }

    fn lock_owner(&self, open: &OpenFile, client: &[u8], process: u32) -> Result<Rc<Owner>, Errno> {
        let writable = self.export.writable().is_ok();
        self.session.locks.owner(open, client, process, || {
            let node = &*self.hold_open(open)?;
            let counted = self.count_open()?;
            let device = node.id().device;
            let open = |more| open_for_locks(node, writable, more);
            let description =
                self.with_descriptors(|| self.call_open(device, Cost::Wait, Actor::Daemon, open))?;
            Ok(self.closing(description, device, counted))
        })
    }

    fn set_lock(&self, owner: &Owner, range: Range) -> Result<(), Errno> {
        self.session.locks.allow(owner, &range)?;
        let description = owner.description();
        self.call(owner.inode().device, Cost::Wait, Actor::Daemon, || {
            Owner::set(description, &range)
        })?;
        owner.note(range);
        // Bytes may have become free, also by a write lock that is a read lock now.
        if range.kind != libc::F_WRLCK {
            self.session.lock_waiters.wake(owner.inode());
        }
        Ok(())
    }

    /// Tgetlock tells which lock stands in the way of a write lock, UNLCK if none does. Linux
    /// does not say which kind it is interested in. Errors: as for Tlock.
    pub(super) fn getlock<'a>(
        &self,
        m: Tgetlock<'a>,
        text: &'a mut Vec<u8>,
    ) -> Result<Rgetlock<'a>, Errno> {
        let open = self.session.fids.get(m.fid)?.open_file()?;
        let kind = match m.kind {
            lock::UNLCK => libc::F_WRLCK,
            kind => host_kind(kind)?,
        };
        let range = Range::new(kind, m.start, m.length)?;
        let inode = open.inode.key().id;
        // Asked through its own description, an owner's locks are not in its way.
        let owner = self.session.locks.existing(inode, m.client_id, m.proc_id);
        let description = match &owner {
            Some(owner) => owner.description().as_fd(),
            None => open.handle.as_fd(),
        };
        let found = self.call(inode.device, Cost::Wait, Actor::Daemon, || {
            Owner::probe(description, &range)
        })?;
        let Some(found) = found else {
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
        };
        let holder = self.session.locks.holder(inode, owner.as_deref(), &found);
        let (client, process) = holder.unwrap_or_default();
        *text = client.into_vec();
        Ok(Rgetlock {
            kind: if found.kind == libc::F_RDLCK {
                lock::RDLCK
            } else {
                lock::WRLCK
            },
            start: found.start as u64,
            length: found.length(),
            // 0 and no name for a process of the host.
            proc_id: process,
            client_id: text,
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
