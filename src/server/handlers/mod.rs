//! One handler for each message, named after it.
//!
//! A handler decodes nothing and answers nothing: it takes the message and returns the reply or an
//! errno. [`Server::dispatch`] alone connects the two.

mod attributes;
mod create;
mod directory;
mod io;
mod lock;
mod names;
mod open;
mod session;
mod walk;
mod xattr;

pub use lock::CLIENT_MAX;
pub(super) use open::wire_flags;
use protocol::{Rmessage, Tmessage};

use super::Server;
use super::exchange::Exchange;
use super::requests::{Failure, Running};

impl Server {
    /// Hands a message to its handler and answers with what it returns.
    pub(super) fn dispatch(
        &self,
        exchange: Exchange,
        message: &Tmessage<'_>,
        running: &Running<'_>,
        scratch: &mut Vec<u8>,
    ) {
        // The reply's text that is not part of the request.
        let mut text = Vec::new();
        match self.reply(&exchange, message, running, &mut text) {
            Ok(ref reply) => exchange.answer(Ok(reply), scratch),
            Err(Failure::Errno(errno)) => {
                self.explain(running.tag(), message, errno);
                exchange.answer(Err(errno), scratch);
            }
            Err(Failure::Flushed) => exchange.cancel(),
        }
    }

    fn reply<'a>(
        &self,
        exchange: &Exchange,
        message: &Tmessage<'a>,
        running: &Running<'_>,
        text: &'a mut Vec<u8>,
    ) -> Result<Rmessage<'a>, Failure> {
        self.throttle.wait(message, running)?;
        // Each arm makes the whole result: wrapping the reply afterwards would copy it.
        match *message {
            Tmessage::Version(m) => Ok(Rmessage::Version(self.version(m)?)),
            Tmessage::Auth(m) => Ok(Rmessage::Auth(self.auth(m)?)),
            Tmessage::Attach(m) => Ok(Rmessage::Attach(self.attach(m, exchange.redo())?)),
            Tmessage::Flush(m) => Ok(Rmessage::Flush(self.flush(m, running.tag())?)),
            Tmessage::Walk(m) => Ok(Rmessage::Walk(self.walk(m, exchange.redo())?)),
            Tmessage::Clunk(m) => Ok(Rmessage::Clunk(self.clunk(m, exchange.redo())?)),
            Tmessage::Lopen(m) => Ok(Rmessage::Lopen(self.lopen(m, exchange.redo())?)),
            Tmessage::Lcreate(m) => Ok(Rmessage::Lcreate(self.lcreate(m, exchange.redo())?)),
            Tmessage::Read(m) => Ok(Rmessage::Read(self.read(m, exchange)?)),
            Tmessage::Write(m) => Ok(Rmessage::Write(self.write(m, exchange)?)),
            Tmessage::Fsync(m) => Ok(Rmessage::Fsync(self.fsync(m)?)),
            Tmessage::Readdir(m) => Ok(Rmessage::Readdir(self.readdir(m, exchange)?)),
            Tmessage::Mkdir(m) => Ok(Rmessage::Mkdir(self.mkdir(m, exchange.redo())?)),
            Tmessage::Mknod(m) => Ok(Rmessage::Mknod(self.mknod(m, exchange.redo())?)),
            Tmessage::Symlink(m) => Ok(Rmessage::Symlink(self.symlink(m, exchange.redo())?)),
            Tmessage::Readlink(m) => Ok(Rmessage::Readlink(self.readlink(m, text)?)),
            Tmessage::Link(m) => Ok(Rmessage::Link(self.link(m, exchange.redo())?)),
            Tmessage::Rename(m) => Ok(Rmessage::Rename(self.rename(m)?)),
            Tmessage::Renameat(m) => Ok(Rmessage::Renameat(self.renameat(m, exchange.redo())?)),
            Tmessage::Unlinkat(m) => Ok(Rmessage::Unlinkat(self.unlinkat(m, exchange.redo())?)),
            Tmessage::Remove(m) => Ok(Rmessage::Remove(self.remove(m, exchange.redo())?)),
            Tmessage::Getattr(m) => Ok(Rmessage::Getattr(self.getattr(m)?)),
            Tmessage::Setattr(m) => Ok(Rmessage::Setattr(self.setattr(m)?)),
            Tmessage::Statfs(m) => Ok(Rmessage::Statfs(self.statfs(m)?)),
            Tmessage::Xattrwalk(m) => Ok(Rmessage::Xattrwalk(self.xattrwalk(m, exchange.redo())?)),
            Tmessage::Xattrcreate(m) => {
                Ok(Rmessage::Xattrcreate(self.xattrcreate(m, exchange.redo())?))
            }
            Tmessage::Lock(m) => Ok(Rmessage::Lock(self.lock(m, running)?)),
            Tmessage::Getlock(m) => Ok(Rmessage::Getlock(self.getlock(m)?)),
        }
    }
}
