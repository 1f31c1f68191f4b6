//! The transfer of the device's state to the front-end, or back (vhost-user, "Migrating back-end state").
//!
//! The front-end gives one end of a pipe. The state passes through it as fast as the other end reads or
//! writes, piece by piece whenever the loop finds it ready: a front-end that takes its time, or never
//! comes to an end, blocks nothing. The front-end closes its end when it has written everything, and
//! then asks whether it was all right; so nothing that comes later is waited for.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::rc::Rc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::interface::{Handler, Migration, Poller, Source};

/// Bytes at once, and in one turn of the loop.
const PIECE: usize = 64 * 1024;
const PIECES: usize = 16;

/// The last transfer.
pub(crate) struct Transfer {
    handler: Rc<dyn Handler>,
    poller: Rc<dyn Poller>,
    status: Status,
    /// Whether a state was loaded, and the ring has not been started since.
    loaded: bool,
}

enum Status {
    /// There was none, or it is not known how it ended.
    None,
    Pending(Pending),
    Done,
    Failed,
}

struct Pending {
    file: File,
    direction: Direction,
    /// A regular file cannot be watched, and does not block for long.
    watched: bool,
}

enum Direction {
    Save { state: Vec<u8>, done: usize },
    Load { state: Vec<u8> },
}

/// Collects a state. Errors: it is longer than its limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            return Err(too_long());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn too_long() -> io::Error {
    io::Error::new(ErrorKind::FileTooLarge, "the state is too long")
}

impl Transfer {
    pub(crate) fn new(handler: Rc<dyn Handler>, poller: Rc<dyn Poller>) -> Transfer {
        Transfer {
            handler,
            poller,
            status: Status::None,
            loaded: false,
        }
    }

    /// Begins to write the device's state to `file`. Errors: there is none to be had; those of the loop.
    pub(crate) fn save(&mut self, file: File) -> io::Result<()> {
        self.cancel();
        let migration = migration(&*self.handler)?;
        let mut state = Bounded {
            bytes: Vec::new(),
            limit: migration.limit(),
        };
        migration.save(&mut state)?;
        let state = state.bytes;
        self.begin(file, Direction::Save { state, done: 0 }, Source::Save)
    }

    /// Begins to read a state from `file`. Errors: those of the loop.
    pub(crate) fn load(&mut self, file: File) -> io::Result<()> {
        self.cancel();
        let state = Vec::new();
        self.begin(file, Direction::Load { state }, Source::Load)
    }

    fn begin(&mut self, file: File, direction: Direction, source: Source) -> io::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
        fcntl(&file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let watched = match self.poller.watch(file.as_fd(), source) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => false,
            Err(error) => return Err(error),
        };
        self.status = Status::Pending(Pending {
            file,
            direction,
            watched,
        });
        if !watched {
            self.finish();
        }
        Ok(())
    }

    /// The descriptor is ready: transfers what is possible at once.
    pub(crate) fn ready(&mut self) {
        if let Status::Pending(pending) = &mut self.status {
            let moved = pending.advance(&*self.handler, PIECES);
            if !matches!(moved, Ok(false)) {
                self.end(moved.map(drop));
            }
        }
    }

    /// Whether the last transfer has succeeded. One that is not complete by now has failed: what was
    /// written into the pipe before is still taken. Errors: it has failed; there was none.
    pub(crate) fn check(&mut self) -> io::Result<()> {
        self.finish();
        match self.status {
            Status::Done => Ok(()),
            Status::None => Err(io::Error::other("no state was transferred")),
            Status::Failed | Status::Pending(_) => Err(io::Error::other("the transfer has failed")),
        }
    }

    /// Completes a state that is being loaded, before the ring starts. Whether one was loaded since the
    /// last time: then nothing was in flight in the ring, as its device had stopped.
    pub(crate) fn finish_load(&mut self) -> bool {
        if let Status::Pending(pending) = &self.status {
            if matches!(pending.direction, Direction::Load { .. }) {
                self.finish();
            }
        }
        std::mem::take(&mut self.loaded)
    }

    /// Transfers what is there; what is missing then has failed.
    fn finish(&mut self) {
        if let Status::Pending(pending) = &mut self.status {
            // As much as the limit allows; a front-end that goes on writing does not prolong it.
            let moved = match pending.advance(&*self.handler, usize::MAX) {
                Ok(true) => Ok(()),
                Ok(false) => Err(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    "the other end has not come to its end",
                )),
                Err(error) => Err(error),
            };
            self.end(moved);
        }
    }

    fn end(&mut self, result: io::Result<()>) {
        let loads = matches!(
            &self.status,
            Status::Pending(Pending {
                direction: Direction::Load { .. },
                ..
            })
        );
        self.cancel();
        self.status = match result {
            Ok(()) => {
                self.loaded = loads;
                Status::Done
            }
            Err(error) => {
                log::error!("the transfer of the device's state has failed: {error}");
                Status::Failed
            }
        };
    }

    /// Forgets the last transfer, and ends it.
    pub(crate) fn cancel(&mut self) {
        self.loaded = false;
        if let Status::Pending(pending) = std::mem::replace(&mut self.status, Status::None) {
            if pending.watched {
                self.poller.unwatch(pending.file.as_fd());
            }
        }
    }
}

impl Pending {
    /// Transfers at most so many pieces. Returns whether the transfer is complete. Errors: it has failed.
    fn advance(&mut self, handler: &dyn Handler, pieces: usize) -> io::Result<bool> {
        match &mut self.direction {
            Direction::Save { state, done } => {
                let piece = |done| &state[done..state.len().min(done + PIECE)];
                for _ in 0..pieces {
                    if *done == state.len() {
                        return Ok(true);
                    }
                    match self.file.write(piece(*done)) {
                        Ok(count) => *done += count,
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                        Err(error) => return Err(error),
                    }
                }
                Ok(*done == state.len())
            }
            Direction::Load { state } => {
                let migration = migration(handler)?;
                let mut piece = vec![0; PIECE];
                for _ in 0..pieces {
                    match self.file.read(&mut piece) {
                        Ok(0) => {
                            migration.load(&mut &state[..])?;
                            return Ok(true);
                        }
                        Ok(count) if count > migration.limit() - state.len() => {
                            return Err(too_long());
                        }
                        Ok(count) => state.extend_from_slice(&piece[..count]),
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                        Err(error) => return Err(error),
                    }
                }
                Ok(false)
            }
        }
    }
}

/// Errors: the handler has no state.
fn migration(handler: &dyn Handler) -> io::Result<&dyn Migration> {
    handler
        .migration()
        .ok_or_else(|| io::Error::other("the device has no state to transfer"))
}
