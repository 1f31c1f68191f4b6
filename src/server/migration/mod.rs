//! A session that goes on in another daemon: on this host or another one, now or from a snapshot.
//!
//! - `format`: its bytes.
//! - `save`: finds out where the files are, and lets go of locks that the other daemon needs.
//! - `load`: finds the files again, and takes nothing on trust.

mod format;
mod load;
mod save;

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::rc::Rc;

use clap::ValueEnum;
use vhost_user::Handler;

use super::{InFlight, Server};
use format::Session;

/// How the other daemon finds the files. The names are those of virtiofsd's option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// By their paths in the share. A file without a name is lost
    #[default]
    FindPaths,
    /// By their file handles, which stay the same if a file is renamed meanwhile, and by their paths where
    /// there is no handle. Takes --inode-file-handles, and the same file system on both sides
    FileHandles,
}

/// What is done about a file that is not found. The names are those of virtiofsd's option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OnError {
    /// The migration fails, and the guest goes on where it is
    #[default]
    Abort,
    /// The guest gets ESTALE for this file, EBADF for reads and writes
    GuestError,
}

/// What the operator wants of a migration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// How files are found.
    pub mode: Mode,
    /// What is done about those that are not.
    pub on_error: OnError,
}

impl vhost_user::Migration for Server {
    fn limit(&self) -> usize {
        self.session.migration_limit
    }

    fn save(&self, into: &mut dyn Write) -> io::Result<()> {
        let saved = self.run_alone(|server| server.saved())?;
        into.write_all(&saved.encode()?)
    }

    fn load(&self, from: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let session = Session::decode(&bytes)?;
        drop(bytes);
        self.reset();
        let loaded = self.run_alone(move |server| server.load_session(&session));
        loaded
            .and_then(|loaded| loaded)
            .inspect_err(|_| self.reset())
    }
}

impl Server {
    /// Runs this in a coroutine, as the handlers of requests run, while there is no request. Errors: there
    /// is no memory for it.
    fn run_alone<T: 'static>(&self, run: impl FnOnce(&Server) -> T + 'static) -> io::Result<T> {
        let server = InFlight::of(self).ok_or(io::ErrorKind::NotConnected)?;
        let result = Rc::new(Cell::new(None));
        let returned = result.clone();
        coroutine::spawn(move || returned.set(Some(run(&server))))
            .map_err(|failed| io::Error::other(failed.to_string()))?;
        loop {
            if let Some(result) = result.take() {
                return Ok(result);
            }
            if coroutine::run_ready() + self.workers().wait_completed() == 0 {
                return Err(io::Error::other("it waits for nothing"));
            }
        }
    }
}
