//! One handler for each message, named after it.
//!
//! A handler decodes nothing and answers nothing: it takes the message and returns the reply or
//! an errno. [`Server::dispatch`] is the one place that puts the two together.

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

use protocol::{Rmessage, Tmessage};

use super::Server;
use super::exchange::Exchange;
use super::interrupt::{Failure, Flushed};

impl Server {
    /// Hands a message to its handler and answers with what it returns.
    pub(super) fn dispatch(
        &self,
        exchange: Exchange,
        message: &Tmessage<'_>,
        scratch: &mut Vec<u8>,
    ) {
        let throttle = &self.throttle;
        if let Err(Flushed) = throttle.wait(message, exchange.tag(), &self.session.interrupts) {
            return exchange.cancel();
        }
        // Text of a reply that is not part of the request.
        let mut text = Vec::new();
        let reply = match *message {
            Tmessage::Version(m) => self.version(m).map(Rmessage::Version),
            Tmessage::Auth(m) => self.auth(m).map(Rmessage::Auth),
            Tmessage::Attach(m) => self.attach(m).map(Rmessage::Attach),
            Tmessage::Flush(m) => self.flush(m, exchange.tag()).map(Rmessage::Flush),
            Tmessage::Walk(m) => self.walk(m).map(Rmessage::Walk),
            Tmessage::Clunk(m) => self.clunk(m).map(Rmessage::Clunk),
            Tmessage::Lopen(m) => self.lopen(m).map(Rmessage::Lopen),
            Tmessage::Lcreate(m) => self.lcreate(m).map(Rmessage::Lcreate),
            Tmessage::Read(m) => self.read(m, &exchange).map(Rmessage::Read),
            Tmessage::Write(m) => self.write(m, &exchange).map(Rmessage::Write),
            Tmessage::Fsync(m) => self.fsync(m).map(Rmessage::Fsync),
            Tmessage::Readdir(m) => self.readdir(m, &exchange).map(Rmessage::Readdir),
            Tmessage::Mkdir(m) => self.mkdir(m).map(Rmessage::Mkdir),
            Tmessage::Mknod(m) => self.mknod(m).map(Rmessage::Mknod),
            Tmessage::Symlink(m) => self.symlink(m).map(Rmessage::Symlink),
            Tmessage::Readlink(m) => self.readlink(m, &mut text).map(Rmessage::Readlink),
            Tmessage::Link(m) => self.link(m).map(Rmessage::Link),
            Tmessage::Rename(m) => self.rename(m).map(Rmessage::Rename),
            Tmessage::Renameat(m) => self.renameat(m).map(Rmessage::Renameat),
            Tmessage::Unlinkat(m) => self.unlinkat(m).map(Rmessage::Unlinkat),
            Tmessage::Remove(m) => self.remove(m).map(Rmessage::Remove),
            Tmessage::Getattr(m) => self.getattr(m).map(Rmessage::Getattr),
            Tmessage::Setattr(m) => self.setattr(m).map(Rmessage::Setattr),
            Tmessage::Statfs(m) => self.statfs(m).map(Rmessage::Statfs),
            Tmessage::Xattrwalk(m) => self.xattrwalk(m).map(Rmessage::Xattrwalk),
            Tmessage::Xattrcreate(m) => self.xattrcreate(m).map(Rmessage::Xattrcreate),
            Tmessage::Lock(m) => match self.lock(m, exchange.tag()) {
                Ok(reply) => Ok(Rmessage::Lock(reply)),
                Err(Failure::Errno(errno)) => Err(errno),
                Err(Failure::Flushed) => return exchange.cancel(),
            },
            Tmessage::Getlock(m) => self.getlock(m, &mut text).map(Rmessage::Getlock),
        };
        exchange.answer(&reply, scratch);
    }
}
