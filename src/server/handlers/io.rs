//! Tread, Twrite and Tfsync: data between a file and the guest's memory.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio::pread;
use nix::unistd::{fdatasync, fsync};
use protocol::{Rfsync, Rread, Rwrite, Tfsync, Tread, Twrite};
use vhost_user::{Readable, Writable};

use crate::export::errno_of;
use crate::server::Server;
use crate::server::call::Actor;
use crate::server::exchange::Exchange;
use crate::server::fid::{Content, Fid, OpenFile, XattrDraft};
use crate::server::handle::{File, Handle};
use crate::server::placement::{Cost, Transfer};
use crate::server::redo::Redo;

/// A copy of this size takes so long, as long as several hops, that others should not wait for it.
const LARGE: usize = 128 * 1024;

impl Server {
    /// Tread: up to `count` bytes from `offset` on, fewer only at the end. They go from the file
    /// straight into the guest's pages. Errors: EBADF if the fid is not open, EISDIR, those of
    /// pread(2).
    pub(super) fn read(&self, m: Tread, exchange: &Exchange) -> Result<Rread, Errno> {
        let content = self.session.fids.get(m.fid)?.content()?;
        let room = exchange.room(Rread::PAYLOAD, self.session.msize.get());
        let count = room.min(m.count as usize);
        let into = exchange.writable();
        let done = match content {
            Content::File(open) => match &*open.handle {
                Handle::File(file) => {
                    let read = read_call(file, m.offset, into, count);
                    self.transfer(&open, Transfer::Read, false, count, read)?
                }
                Handle::Directory(_) => return Err(Errno::EISDIR),
            },
            Content::XattrValue(held) => {
                let value = &held.value;
                let start = usize::try_from(m.offset)
                    .unwrap_or(usize::MAX)
                    .min(value.len());
                let end = start.saturating_add(count).min(value.len());
                into.write_at(Rread::PAYLOAD, &value[start..end])
            }
            Content::XattrDraft(_) => return Err(Errno::EBADF),
        };
        Ok(Rread { count: done as u32 })
    }

    /// Twrite: `count` bytes at `offset`, or at the end of a file opened with APPEND. Errors: EBADF
    /// if the fid is not open for writing, EISDIR, those of pwrite(2). As with write(2), an error
    /// after some bytes were written is reported by the next request.
    pub(super) fn write(&self, m: Twrite, exchange: &Exchange) -> Result<Rwrite, Errno> {
        let fid = self.session.fids.get(m.fid)?;
        let content = fid.content()?;
        let from = exchange.readable();
        let count = m.count as usize;
        let done = match content {
            Content::File(open) => match &*open.handle {
                Handle::File(_)
                    if exchange.is_redo()
                        && self.was_appended(&open, &m, from, exchange.redo())? =>
                {
                    count
                }
                Handle::File(file) => {
                    let write = write_call(file, m.offset, from, count);
                    match self.drop_set_id(&fid, file)? {
                        None => self.transfer(&open, Transfer::Write, file.sync, count, write)?,
                        Some(group) => self.write_as(&fid, &open, group, count, write)?,
                    }
                }
                Handle::Directory(_) => return Err(Errno::EISDIR),
            },
            Content::XattrDraft(draft) => write_draft(&draft, m.offset, from, count)?,
            Content::XattrValue(_) => return Err(Errno::EBADF),
        };
        Ok(Rwrite { count: done as u32 })
    }

    /// Whether the process before has appended the bytes already. They are looked for from the offset
    /// on that the guest takes for the end of the file.
    fn was_appended(
        &self,
        open: &OpenFile,
        m: &Twrite,
        from: &Readable,
        redo: Redo,
    ) -> Result<bool, Errno> {
        /// How much more others may have appended meanwhile.
        const MOST: usize = 1 << 20;
        let fd = open.handle.as_fd();
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        let count = m.count as usize;
        if !flags.contains(OFlag::O_APPEND) || count == 0 {
            return Ok(false);
        }
        let mut bytes = vec![0; count];
        let length = from.read_at(Twrite::PAYLOAD, &mut bytes);
        let Ok(offset) = i64::try_from(m.offset) else {
            return Ok(false);
        };
        // By another descriptor: this one may be for writing only.
        let node = &*self.hold_open(open)?;
        let device = node.id().device;
        self.call(device, Cost::Wait, Actor::Daemon, || {
            if length != count || !redo.has_changed(&node.stat()?) {
                return Ok(false);
            }
            let file = node.reopen(OFlag::O_RDONLY)?;
            let mut appended = vec![0; count + MOST];
            let mut done = 0;
            while let read @ 1.. = pread(&file, &mut appended[done..], offset + done as i64)? {
                done += read;
            }
            Ok(appended[..done]
                .windows(count)
                .any(|window| window == bytes))
        })
    }

    /// Tfsync: what was written is on disk when the reply comes; with `datasync` only what is
    /// needed to read it again. Errors: EBADF if the fid is not open, those of fsync(2).
    pub(super) fn fsync(&self, m: Tfsync) -> Result<Rfsync, Errno> {
        let open = self.session.fids.get(m.fid)?.open_file()?;
        let fd = open.handle.as_fd();
        let device = open.inode.key().id.device;
        self.call(device, Cost::Wait, Actor::Daemon, || {
            if m.datasync != 0 {
                fdatasync(fd)
            } else {
                fsync(fd)
            }
        })?;
        Ok(Rfsync {})
    }

    /// Handles set-id bits before the first write to an open file that may have some, and before
    /// the first after a chmod that may have set some. Otherwise this is one comparison. Returns
    /// the group of a file whose bits [`Server::write_as`] handles.
    fn drop_set_id(&self, fid: &Fid, file: &File) -> Result<Option<u32>, Errno> {
        let given = self.export.set_id_given();
        if !file.writable || file.set_id_dropped.get() == given {
            return Ok(None);
        }
        let (export, held, user) = (&self.export, self.held(fid)?, fid.user);
        let located = held.located();
        let device = located.node.id().device;
        let group = self.call(device, Cost::Wait, Actor::Daemon, || {
            export.drop_set_id(located, user)
        })?;
        if group.is_none() {
            file.set_id_dropped.set(given);
        }
        Ok(group)
    }

    /// Writes to a file of `group` that has set-id bits, as the fid's user.
    #[cold]
    fn write_as(
        &self,
        fid: &Fid,
        open: &OpenFile,
        group: u32,
        count: usize,
        write: impl Fn(usize, i32) -> std::io::Result<usize> + Send + Sync,
    ) -> Result<usize, Errno> {
        let (identity, user) = (self.export.identity(), fid.user);
        let mut done = 0;
        let progress = &mut done;
        let device = open.inode.key().id.device;
        self.call(device, Cost::Wait, Actor::User(user), || {
            identity.changing_content(user, group, || {
                go_on(progress, count, |done| write(done, 0))
            })
        })?;
        Ok(done)
    }

    /// The cost of a copy of `count` bytes whose cost is `small` if it is small: a worker makes
    /// large ones while other requests go on.
    fn copying(&self, count: usize, small: Cost) -> Cost {
        if count > LARGE && self.in_flight.get() > 1 {
            Cost::Wait
        } else {
            small
        }
    }

    /// Reads or writes `count` bytes: here as far as the page cache allows without waiting, the
    /// rest where it belongs; all of it there if the call is known to wait. `call` takes how much
    /// is done and `RWF_*` flags. A short count is returned only at the end of the file, or where
    /// an error stopped the call after it had begun.
    fn transfer(
        &self,
        open: &OpenFile,
        transfer: Transfer,
        waits: bool,
        count: usize,
        call: impl Fn(usize, i32) -> std::io::Result<usize> + Send + Sync,
    ) -> Result<usize, Errno> {
        let on = self.placement.file_system(open.inode.key().id.device);
        let mut done = 0;
        let mut cost = match (waits, transfer) {
            (true, _) => Cost::Wait,
            (false, Transfer::Read) => self.copying(count, Cost::Read),
            (false, Transfer::Write) => self.copying(count, Cost::Change),
        };
        if !waits && on.tries_nowait(transfer) {
            match go_on(&mut done, count, |done| call(done, libc::RWF_NOWAIT)) {
                Err(Errno::EAGAIN) => cost = Cost::Wait,
                Err(Errno::EOPNOTSUPP) => on.refuses_nowait(transfer),
                result => return result.map(|()| done),
            }
        }
        let progress = &mut done;
        self.call_on(&on, cost, Actor::Daemon, || {
            go_on(progress, count, |done| call(done, 0))
        })?;
        Ok(done)
    }
}

/// Reads the bytes of the file that follow the first `done` of `count`, with `RWF_*` flags.
fn read_call<'a>(
    file: &'a File,
    offset: u64,
    into: &'a Writable,
    count: usize,
) -> impl Fn(usize, i32) -> std::io::Result<usize> + Send + Sync + 'a {
    let fd = file.fd.as_fd();
    move |done, flags| {
        into.read_from_file(
            fd,
            Rread::PAYLOAD + done,
            count - done,
            offset + done as u64,
            flags,
        )
    }
}

/// Writes the bytes of the file that follow the first `done` of `count`, with `RWF_*` flags.
fn write_call<'a>(
    file: &'a File,
    offset: u64,
    from: &'a Readable,
    count: usize,
) -> impl Fn(usize, i32) -> std::io::Result<usize> + Send + Sync + 'a {
    let fd = file.fd.as_fd();
    move |done, flags| {
        from.write_to_file(
            fd,
            Twrite::PAYLOAD + done,
            count - done,
            offset + done as u64,
            flags,
        )
    }
}

/// Repeats `call` until `count` bytes are done or it returns 0. An error counts only if nothing was
/// done before it; a call that would block is always reported.
fn go_on(
    done: &mut usize,
    count: usize,
    call: impl Fn(usize) -> std::io::Result<usize>,
) -> Result<(), Errno> {
    while *done < count {
        match call(*done).map_err(errno_of) {
            Ok(0) => break,
            Ok(more) => *done += more,
            Err(error @ (Errno::EAGAIN | Errno::EOPNOTSUPP)) => return Err(error),
            Err(_) if *done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The bytes of an attribute may come in any pieces, but without a hole. Errors: ENOSPC for bytes
/// beyond the announced size, EINVAL for a hole.
fn write_draft(
    draft: &XattrDraft,
    offset: u64,
    from: &Readable,
    count: usize,
) -> Result<usize, Errno> {
    let mut value = draft.value.borrow_mut();
    let start = usize::try_from(offset).map_err(|_| Errno::ENOSPC)?;
    let end = start
        .checked_add(count)
        .filter(|end| *end <= draft.size)
        .ok_or(Errno::ENOSPC)?;
    if start > value.len() {
        return Err(Errno::EINVAL);
    }
    if end > value.len() {
        value.resize(end, 0);
    }
    let done = from.read_at(Twrite::PAYLOAD, &mut value[start..end]);
    draft.record(start, &value[start..end], value.len());
    Ok(done)
}
