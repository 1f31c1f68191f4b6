//! System calls of a request: with whose rights, and where they run.

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::Server;
use super::held::Held;
use super::placement::{Cost, Device, FileSystem, Medium, Site};
use crate::export::{Owner, Stat};

/// With whose rights a call is made.
#[derive(Clone, Copy, Debug)]
pub enum Actor {
    /// The daemon's: either the guest's user may do whatever the call does, or it does not matter.
    Daemon,
    /// Those of the fid's user, who must be permitted to make the call.
    User(u32),
    /// The daemon's, for a file that is created for an owner. The call itself takes on the owner's
    /// ids.
    For(Owner),
}

impl Server {
    /// Makes a call on a file of `device`: here if it will not wait, else on a worker while other
    /// requests go on. Only a worker takes on another user's rights.
    pub(super) fn call<T: Send>(
        &self,
        device: Device,
        cost: Cost,
        actor: Actor,
        call: impl FnOnce() -> Result<T, Errno> + Send,
    ) -> Result<T, Errno> {
        self.call_on(&self.placement.file_system(device), cost, actor, call)
    }

    /// [`Server::call`] on a file system that has been looked up.
    pub(super) fn call_on<T: Send>(
        &self,
        on: &FileSystem,
        cost: Cost,
        actor: Actor,
        call: impl FnOnce() -> Result<T, Errno> + Send,
    ) -> Result<T, Errno> {
        let cost = self.cost_for(actor, cost);
        match actor {
            Actor::User(user) if cost == Cost::Wait => {
                let identity = self.export.identity();
                self.placement
                    .call(on, cost, || identity.acting(user, call))
            }
            _ => self.placement.call(on, cost, call),
        }
    }

    /// [`Server::call`] for a call that opens a file; the closure gets a flag to open it with. The
    /// first try does not wait for the holder of a lease (`O_NONBLOCK`: EAGAIN). If there is one,
    /// the second waits, on a worker for remote file systems.
    pub(super) fn call_open<T: Send>(
        &self,
        device: Device,
        cost: Cost,
        actor: Actor,
        mut open: impl FnMut(OFlag) -> Result<T, Errno> + Send,
    ) -> Result<T, Errno> {
        let on = self.placement.file_system(device);
        if on.medium() != Medium::Remote {
            match self.call_on(&on, cost, actor, || open(OFlag::O_NONBLOCK)) {
                Err(Errno::EAGAIN) => {}
                result => return result,
            }
        }
        let identity = self.export.identity();
        let mut open = || open(OFlag::empty());
        self.placement.call_at(Site::Remote, || match actor {
            Actor::User(user) => identity.acting(user, open),
            Actor::Daemon | Actor::For(_) => open(),
        })
    }

    /// The cost of a single call, with what the security model or the actor adds to it.
    fn cost_for(&self, actor: Actor, cost: Cost) -> Cost {
        let identity = self.export.identity();
        match actor {
            Actor::Daemon => cost,
            Actor::User(user) if identity.is_other(user) => Cost::Wait,
            Actor::For(owner) if identity.takes_on(owner) => Cost::Wait,
            Actor::User(_) | Actor::For(_) => self.cost(cost),
        }
    }

    /// The cost of a single call, with what the security model adds to it.
    pub(super) fn cost(&self, plain: Cost) -> Cost {
        match plain {
            // Other files must be read, under locks that a worker may hold.
            Cost::Held | Cost::Read if !self.export.stat_is_immediate() => Cost::Wait,
            Cost::Change if self.export.is_mapped() => Cost::Wait,
            cost => cost,
        }
    }

    /// The file's attributes as the guest sees them now.
    pub(super) fn stat(&self, file: &Held, into: &mut Stat) -> Result<(), Errno> {
        let (export, file) = (&self.export, file.located());
        let device = file.node.id().device;
        match self.cost(Cost::Held) {
            Cost::Held => self.call(device, Cost::Held, Actor::Daemon, || {
                export.stat(file, into)
            }),
            cost => self.with_descriptors(|| {
                self.call(device, cost, Actor::Daemon, || export.stat(file, into))
            }),
        }
    }
}
