//! The 9P server: one session with one guest.
//!
//! A request comes in at [`Server::handle`](vhost_user::Handler::handle), runs as a coroutine
//! through `Server::serve`, is dispatched to the handler named after its message in `handlers`,
//! and goes out through its `Exchange`. Handlers read like blocking code; a system call is one
//! closure, given to `Server::call` (`call`), which makes it here or on a worker as `placement` says.

mod call;
mod closing;
mod eviction;
mod exchange;
mod explain;
mod fid;
mod handle;
mod handlers;
mod held;
mod inodes;
pub mod limits;
mod locks;
pub mod migration;
mod placement;
mod ranges;
mod redo;
mod requests;
mod resume;
mod status;
pub mod throttle;

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};
use std::time::Instant;

use coroutine::{RwLock, Workers};
use nix::errno::Errno;
use protocol::{Qid, Tmessage};
use vhost_user::{Handler, Request};

use crate::export::{Export, Multidevs, Node, Owner, QidMap, Stat};
use crate::state::State;
use exchange::{Exchange, refusal};
use explain::Explained;
use fid::{Fid, Fids};
use held::Held;
use inodes::{Dentry, Inode, Inodes};
use limits::{Bound, Limits};
use locks::Locks;
pub use placement::Medium;
use placement::{Device, Placement, Site};
use requests::Requests;
use throttle::{Rates, Throttle};

/// Serves one guest at a time from an [`Export`].
pub struct Server {
    this: Weak<Server>,
    export: Export,
    placement: Placement,
    throttle: Throttle,
    multidevs: Multidevs,
    session: Session,
    migration: Cell<migration::Policy>,
    /// Requests between pop and push.
    in_flight: Cell<usize>,
    /// Buffers for the next requests.
    scratch: RefCell<Vec<Scratch>>,
}

/// The buffers of a request: for the frame that came and for the reply.
#[derive(Default)]
struct Scratch {
    head: Vec<u8>,
    reply: Vec<u8>,
}

impl Scratch {
    /// Whether it is worth keeping: not after one large message.
    fn is_small(&self) -> bool {
        self.head.capacity() + self.reply.capacity() <= 16 * 1024
    }
}

/// Everything that the guest has built up by its messages. A Tversion, a reset and a disconnect
/// discard it.
struct Session {
    /// What the next process needs, if this one dies.
    state: Rc<State>,
    /// The agreed size of a message; 0 before Tversion.
    msize: Cell<u32>,
    fids: Fids,
    inodes: Rc<Inodes>,
    requests: Requests,
    /// Requests hold it shared. Tversion holds it alone, after it has ended what was under way.
    gate: RwLock<()>,
    qids: RefCell<QidMap>,
    /// Bytes of attributes that fids read or write.
    xattr_bytes: Bound,
    locks: Locks,
    /// Whether they are released on the host, because another daemon may continue with them.
    suspended: Cell<bool>,
    /// How many bytes of a session are accepted from another daemon.
    migration_limit: usize,
    explained: Explained,
}

impl Server {
    /// A server without a session, which blocks only on `workers` and keeps at most `descriptors`
    /// open as long as the guest's open files allow that. `state` has no content, and the capacity for
    /// the limits.
    pub fn new(
        export: Export,
        workers: Workers,
        multidevs: Multidevs,
        descriptors: usize,
        (limits, rates): (Limits, Rates),
        state: State,
    ) -> Rc<Server> {
        let state = Rc::new(state);
        let devices = state.devices().clone();
        let new_qids = QidMap::new(export.root().id(), multidevs);
        let session = Session {
            msize: Cell::new(0),
            fids: Fids::new(limits.fids, state.fids().clone()),
            inodes: Inodes::new(descriptors, limits.fids, state.clone()),
            requests: Requests::new(),
            gate: RwLock::new(()),
            qids: RefCell::new(new_qids.recorded([], move |index, device| {
                devices.set(index, device);
            })),
            xattr_bytes: Bound::new(limits.xattr_bytes, Errno::ENOMEM),
            locks: Locks::new(limits.locks, &state),
            suspended: Cell::new(false),
            migration_limit: limits.migration_bytes(),
            state,
            explained: Explained::default(),
        };
        let root = export.root();
        let placement = Placement::new(workers, root.id().device, Medium::of(root));
        Rc::new_cyclic(|this| Server {
            this: this.clone(),
            placement,
            throttle: Throttle::new(rates),
            multidevs,
            export,
            session,
            migration: Cell::default(),
            in_flight: Cell::new(0),
            scratch: RefCell::default(),
        })
    }

    /// Sets what is to be done in a migration.
    pub fn set_migration(&self, policy: migration::Policy) {
        self.migration.set(policy);
    }

    /// The pool whose completions the loop must run.
    pub fn workers(&self) -> &Workers {
        self.placement.workers()
    }

    /// Whether no request is under way.
    pub fn is_idle(&self) -> bool {
        self.in_flight.get() == 0
    }

    /// Until when no requests are taken, if they are held back.
    pub fn held_until(&self) -> Option<Instant> {
        self.throttle.held_until()
    }

    /// Paths for a session that begins.
    fn new_qids(&self) -> QidMap {
        QidMap::new(self.export.root().id(), self.multidevs)
    }

    fn set_msize(&self, msize: u32) {
        self.session.msize.set(msize);
        self.session.state.set_msize(msize);
    }

    /// The qid of the file that `stat` describes.
    fn qid(&self, stat: &Stat) -> Qid {
        self.session.qids.borrow_mut().qid(stat)
    }

    /// Adds a file that was found from a file of the device `from` to the session. Errors: ENODEV
    /// if it is on a file system that the guest may not reach; EOPNOTSUPP if that has no file
    /// handles but they are mandatory.
    fn admit(&self, node: Node, place: Option<Dentry>, from: Device) -> Result<Rc<Inode>, Errno> {
        let device = node.id().device;
        self.session.qids.borrow_mut().check(node.id())?;
        if device != from && !self.placement.is_root(device) {
            let locators = self.export.locators();
            let (medium, found_again) = self
                .placement
                .call_at(Site::Remote, || (Medium::of(&node), locators.check(&node)));
            self.placement.learn(device, medium);
            found_again?;
        }
        Ok(self.session.inodes.admit(node, place))
    }

    /// The owner of what is created through a fid. Errors: EPERM for a group that the guest may not
    /// use.
    fn owner(&self, fid: &Fid, gid: u32) -> Result<Owner, Errno> {
        let gid = self.export.identity().ids().gids.to_host(gid)?;
        Ok(Owner { uid: fid.user, gid })
    }

    /// The node behind a fid.
    fn node(&self, fid: u32) -> Result<Rc<Node>, Errno> {
        self.node_of(&*self.session.fids.get(fid)?)
    }

    /// The node behind a fid that has been looked up.
    fn node_of(&self, fid: &Fid) -> Result<Rc<Node>, Errno> {
        self.held(fid).map(Held::into_node)
    }

    /// The directory behind a fid. Errors: ENOTDIR for any other file.
    fn directory(&self, fid: u32) -> Result<Rc<Node>, Errno> {
        let node = self.node(fid)?;
        node.directory()?;
        Ok(node)
    }

    fn serve(&self, mut exchange: Exchange) {
        let mut scratch = self.scratch.borrow_mut().pop().unwrap_or_default();
        let Scratch { head, reply } = &mut scratch;
        match exchange.receive(head, self.session.msize.get()) {
            Ok((header, fields)) => match Tmessage::decode_fields(&header, fields) {
                // Not moved: it has room for sixteen names.
                Ok(ref message) => self.serve_message(exchange, header.tag, message, reply),
                Err(error) => {
                    log::debug!("tag {}: {error}", header.tag);
                    exchange.answer(Err(refusal(&error)), reply);
                }
            },
            Err(errno) => {
                log::debug!("tag {}: no message: {errno}", exchange.tag());
                exchange.answer(Err(errno), reply);
            }
        }
        if scratch.is_small() {
            self.scratch.borrow_mut().push(scratch);
        }
    }

    fn serve_message(
        &self,
        exchange: Exchange,
        tag: u16,
        message: &Tmessage<'_>,
        reply: &mut Vec<u8>,
    ) {
        log::trace!("tag {tag}: {message:?}");
        let session = &self.session;
        let (_alone, _shared) = if matches!(message, Tmessage::Version(_)) {
            // Ends what would wait for ever; the rest is allowed to finish.
            let _stopping = session.requests.stop();
            (Some(session.gate.write()), None)
        } else {
            (None, Some(session.gate.read()))
        };
        match session.requests.begin(tag) {
            // The tag is free only after the reply is in the ring, so that a flush that waits for
            // it is answered later.
            Ok(_) if exchange.is_redo() && exchange.redo().is_dangerous() => {
                log::error!("two crashes had this request under way: it gets EIO: {message:?}");
                exchange.answer(Err(Errno::EIO), reply);
            }
            Ok(running) => {
                self.dispatch(exchange, message, &running, reply);
                drop(running);
                self.close_pending();
            }
            Err(errno) => {
                self.explain(tag, message, errno);
                exchange.answer(Err(errno), reply);
            }
        }
    }
}

impl Handler for Server {
    fn handle(&self, request: Request) {
        let Some(server) = InFlight::of(self) else {
            return;
        };
        if self.session.suspended.get() {
            // Nobody has continued elsewhere.
            self.session.suspended.set(false);
            self.tell_adopted_locks();
        }
        let exchange = Exchange::new(request);
        let spawned = coroutine::spawn(move || {
            // A fault of the daemon costs the guest one request, not the daemon: the exchange
            // answers EIO while the stack unwinds.
            if catch_unwind(AssertUnwindSafe(|| server.serve(exchange))).is_err() {
                log::error!("a request failed because of a fault of this program");
            }
        });
        if let Err(failed) = spawned {
            log::warn!("no coroutine for a request: {failed}");
            // It contains the exchange, which answers ENOMEM.
            drop(failed.closure);
        }
    }

    fn takes(&self) -> bool {
        self.throttle.takes()
    }

    fn drain(&self) {
        let _stopping = self.session.requests.stop();
        while self.in_flight.get() > 0 {
            if coroutine::run_ready() + self.workers().wait_completed() == 0 {
                log::error!(
                    "{} requests are stuck with no work pending",
                    self.in_flight.get()
                );
                return;
            }
        }
    }

    fn migration(&self) -> Option<&dyn vhost_user::Migration> {
        Some(self)
    }

    fn reset(&self) {
        self.set_msize(0);
        self.session.suspended.set(false);
        self.session.explained.forget();
        self.session.locks.clear();
        self.session.fids.clear().for_each(|fid| self.release(fid));
        self.close_pending();
    }
}

/// The server, for something that a stop waits for: counted until this is dropped.
struct InFlight(Rc<Server>);

impl InFlight {
    /// `None` if the server is being dropped.
    fn of(server: &Server) -> Option<InFlight> {
        let server = server.this.upgrade()?;
        server.in_flight.set(server.in_flight.get() + 1);
        Some(InFlight(server))
    }
}

impl Deref for InFlight {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.in_flight.set(self.in_flight.get() - 1);
    }
}
