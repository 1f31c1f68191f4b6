//! Tlock and Tgetlock: byte-range locks.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::errno::Errno;
use protocol::{Rgetlock, Rlock, Tgetlock, Tlock, lock};

use crate::export::InodeId;
use crate::server::call::Actor;
use crate::server::closing::Closing;
use crate::server::fid::OpenFile;
use crate::server::locks::{self, Holder, InUse, Process, open_for_locks};
use crate::server::placement::{Cost, Device};
use crate::server::ranges::{Kind, Range};
use crate::server::requests::{Failure, Running, Wake};
use crate::server::{InFlight, Server};

/// How long a lock that is waited for rests before it is tried again: the host does not notify of a
/// release.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest guest name that is kept; Linux sends its host name, of at most 64 bytes.
pub const CLIENT_MAX: usize = 255;
const LAST_PAUSE: Duration = Duration::from_millis(100);

/// A change that takes more calls than this is not begun when everything is to end, but answered
/// with BLOCKED: other such requests may wait for the same file. This many take no longer than one
/// call that a stop waits for.
const FEW: usize = 64;

/// The host's answer: the error, and whether it agreed to a part before.
struct Refused {
    error: Errno,
    in_part: bool,
}

impl Server {
    /// Tlock takes or releases a lock. With BLOCK the answer comes when the lock is granted. A
    /// flush ends the wait without an answer; the end of the session or of the ring ends it with
    /// BLOCKED, after which a client asks again. Errors: EBADF if the fid is not open, EINVAL,
    /// ENOLCK where the host does not allow it or the guest has as many as it may, in all or on the
    /// file, ENAMETOOLONG for a client name of more than 255 bytes, those of fcntl(2).
    pub(super) fn lock(&self, m: Tlock<'_>, running: &Running<'_>) -> Result<Rlock, Failure> {
        let open = self.session.fids.get(m.fid)?.open_file()?;
        if m.flags & !(lock::BLOCK | lock::RECLAIM) != 0 {
            return Err(Errno::EINVAL.into());
        }
        let range = Range::new(kind_of(m.kind)?, m.start, m.length)?;
        if m.client_id.len() > CLIENT_MAX {
            return Err(Errno::ENAMETOOLONG.into());
        }
        let process = Process {
            client: m.client_id.into(),
            number: m.proc_id,
        };
        let in_use = self.session.locks.of(open.inode.key().id);
        let mut pause = FIRST_PAUSE;
        let status = loop {
            match self.set_lock(&in_use, &open, &process, &range) {
                Ok(()) => break lock::SUCCESS,
                Err(Errno::EAGAIN) if m.flags & lock::BLOCK == 0 => break lock::BLOCKED,
                Err(Errno::EAGAIN) => {}
                // The description could not be opened for writing.
                Err(Errno::EBADF) => return Err(Errno::ENOLCK.into()),
                Err(error) => return Err(error.into()),
            }
            match running.wait(pause) {
                Wake::Retry => pause = (pause * 2).min(LAST_PAUSE),
                Wake::Flushed => return Err(Failure::Flushed),
                Wake::Stopped => break lock::BLOCKED,
            }
        };
        Ok(Rlock { status })
    }

    fn set_lock(
        &self,
        in_use: &InUse<'_>,
        open: &Rc<OpenFile>,
        process: &Process,
        range: &Range,
    ) -> Result<(), Errno> {
        let mut holder = in_use.lock();
        if range.kind == Kind::Free && !holder.has(process) {
            // It holds nothing: releasing it takes no descriptor.
            return Ok(());
        }
        if holder.description().is_none() {
            holder.describe(self.open_for_locks(open)?);
        }
        match self.note_and_tell(&mut holder, open, process, range) {
            Err(Errno::EBADF) => {
                self.describe_again(&mut holder, open)?;
                self.note_and_tell(&mut holder, open, process, range)
            }
            result => result,
        }
    }

    fn note_and_tell(
        &self,
        holder: &mut Holder,
        open: &Rc<OpenFile>,
        process: &Process,
        range: &Range,
    ) -> Result<(), Errno> {
        let noted = holder.note(&self.session.locks, process.clone(), open, range)?;
        let device = open.inode.key().id.device;
        let stopping = self.session.requests.stopping().load(Ordering::Relaxed) > 0;
        let told = match stopping && noted.pieces.len() > FEW {
            true => Err(Refused {
                error: Errno::EAGAIN,
                in_part: false,
            }),
            false => self.tell(holder, device, &noted.pieces),
        };
        match told {
            Ok(()) => {
                holder.keep(noted);
                if range.kind != Kind::Free {
                    open.locked.set(true);
                }
                Ok(())
            }
            Err(Refused { error, in_part }) => {
                let back = holder.take_back(noted);
                if in_part {
                    self.tell_again(holder, device, &back);
                }
                Err(error)
            }
        }
    }

    /// The description could be opened only for reading, but may be opened for writing by now. It
    /// holds only read locks, which do not conflict with the same ones on the next description.
    fn describe_again(&self, holder: &mut Holder, open: &Rc<OpenFile>) -> Result<(), Errno> {
        let device = open.inode.key().id.device;
        let next = self.open_for_locks(open)?;
        let held = holder.ranges();
        let refused = |Refused { error, .. }| error;
        self.tell_through(&next, device, &held).map_err(refused)?;
        // Before it is closed: its locks conflict with a write lock.
        self.tell_again(holder, device, &[Range::WHOLE]);
        holder.describe(next);
        Ok(())
    }

    fn open_for_locks(&self, open: &OpenFile) -> Result<Closing<OwnedFd>, Errno> {
        let writable = self.export.writable().is_ok();
        let node = &*self.hold_open(open)?;
        let counted = self.count_open()?;
        let device = node.id().device;
        let open = |more| open_for_locks(node, writable, more);
        let description =
            self.with_descriptors(|| self.call_open(device, Cost::Wait, Actor::Daemon, open))?;
        Ok(self.closing(description, device, counted))
    }

    /// Tells the host what the session locks now.
    fn tell(&self, holder: &Holder, device: Device, pieces: &[Range]) -> Result<(), Refused> {
        match holder.description().filter(|_| !pieces.is_empty()) {
            Some(description) => self.tell_through(description, device, pieces),
            None => Ok(()),
        }
    }

    /// From the first to the last, until one is refused.
    fn tell_through(
        &self,
        description: &OwnedFd,
        device: Device,
        pieces: &[Range],
    ) -> Result<(), Refused> {
        let on = self.placement.file_system(device);
        self.placement.call(&on, Cost::Wait, || {
            for (done, piece) in pieces.iter().enumerate() {
                locks::set(description, piece).map_err(|error| Refused {
                    error,
                    in_part: done > 0,
                })?;
            }
            Ok(())
        })
    }

    /// Tells the host of bytes that are unlocked, which must not fail.
    fn tell_again(&self, holder: &Holder, device: Device, pieces: &[Range]) {
        if let Err(Refused { error, .. }) = self.tell(holder, device, pieces) {
            log::warn!("the host keeps a lock that the guest has released: {error}");
        }
    }

    /// Tells the host again what the session has locked, after it was taken over from another process,
    /// which may have died between the host's answer and its record. Requests for the same file come
    /// later.
    pub(in crate::server) fn tell_adopted_locks(&self) {
        for inode in self.session.locks.locked() {
            let Some(server) = InFlight::of(self) else {
                return;
            };
            let spawned = coroutine::spawn(move || {
                if let Some(in_use) = server.session.locks.existing(inode) {
                    let holder = in_use.lock();
                    let all = holder.all();
                    if let Err(Refused { error, .. }) = server.tell(&holder, inode.device, &all) {
                        log::warn!("a lock of the guest is lost: {error}");
                    }
                }
            });
            if let Err(failed) = spawned {
                log::warn!("no coroutine to restore locks: {failed}");
            }
        }
    }

    /// Releases all locks on the host, where another daemon takes them, until [`Server::go_on`]. The session
    /// keeps its records.
    pub(in crate::server) fn suspend_locks(&self) {
        for inode in self.session.locks.locked() {
            if let Some(in_use) = self.session.locks.existing(inode) {
                self.tell_again(&in_use.lock(), inode.device, &[Range::WHOLE]);
                self.session.suspended.set(true);
            }
        }
    }

    /// Takes a lock that the session had in another daemon. Errors: EAGAIN if it is somebody else's now;
    /// those of [`Server::lock`].
    pub(in crate::server) fn take_lock(
        &self,
        open: &Rc<OpenFile>,
        process: Process,
        range: &Range,
    ) -> Result<(), Errno> {
        let in_use = self.session.locks.of(open.inode.key().id);
        self.set_lock(&in_use, open, &process, range)
    }

    /// Releases the locks that were taken through files of an inode that are closed by now.
    pub(in crate::server) fn free_locks_of_closed(&self, inode: InodeId) {
        if let Some(in_use) = self.session.locks.existing(inode) {
            let mut holder = in_use.lock();
            let freed = holder.forget_closed();
            self.tell_again(&holder, inode.device, &freed);
        }
    }

    /// Tgetlock tells which lock of another guest or of the host conflicts with a write lock, UNLCK
    /// if none does. Linux does not say which kind it asks for, and has asked its own processes
    /// before. Errors: as for Tlock.
    pub(super) fn getlock<'a>(&self, m: Tgetlock<'a>) -> Result<Rgetlock<'a>, Errno> {
        let open = self.session.fids.get(m.fid)?.open_file()?;
        let kind = match kind_of(m.kind)? {
            Kind::Free => Kind::Write,
            kind => kind,
        };
        let range = Range::new(kind, m.start, m.length)?;
        let inode = open.inode.key().id;
        // Asked through their description, the session's own locks do not conflict.
        let in_use = self.session.locks.existing(inode);
        let holder = in_use.as_ref().map(InUse::lock);
        let description = holder.as_ref().and_then(|holder| holder.description());
        let description = description.map_or(open.handle.as_fd(), AsFd::as_fd);
        let found = self.call(inode.device, Cost::Wait, Actor::Daemon, || {
            locks::probe(description, &range)
        })?;
        Ok(match found {
            None => Rgetlock {
                kind: lock::UNLCK,
                start: m.start,
                length: m.length,
                proc_id: m.proc_id,
                client_id: m.client_id,
            },
            Some(found) => Rgetlock {
                kind: match found.kind {
                    Kind::Read => lock::RDLCK,
                    _ => lock::WRLCK,
                },
                start: found.start as u64,
                length: found.length(),
                // The host does not tell whose it is.
                proc_id: 0,
                client_id: b"",
            },
        })
    }
}

fn kind_of(wire: u8) -> Result<Kind, Errno> {
    match wire {
        lock::RDLCK => Ok(Kind::Read),
        lock::WRLCK => Ok(Kind::Write),
        lock::UNLCK => Ok(Kind::Free),
        _ => Err(Errno::EINVAL),
    }
}
