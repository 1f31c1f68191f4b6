//! The smallest event loop that a connection can live in.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::{Rc, Weak};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use vhost_user::{Connection, DeviceConfig, Error, Handler, Poller, Room, Source, Status};

use crate::saved::SavedState;

/// A loop that has not come to rest after so many turns is spinning.
const MANY_TURNS: usize = 1000;
/// Milliseconds: longer than anything here takes.
const LONG: u16 = 10_000;

/// Watches what it is told to, and insists that every watch is ended once.
struct Watched {
    epoll: Epoll,
    fds: RefCell<Vec<RawFd>>,
    /// Whether a watch was ended that there was not.
    needless: Cell<bool>,
}

/// What a connection has of it: when the connection is forgotten, the descriptor is not.
struct Handle(Weak<Watched>);

impl Handle {
    fn watched(&self) -> Rc<Watched> {
        self.0.upgrade().expect("outlives the connection")
    }
}

impl Poller for Handle {
    fn watch(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()> {
        self.watched().watch(fd, source)
    }

    fn unwatch(&self, fd: BorrowedFd<'_>) {
        self.watched().unwatch(fd);
    }
}

impl Watched {
    fn handle(self: &Rc<Watched>) -> Rc<Handle> {
        Rc::new(Handle(Rc::downgrade(self)))
    }

    fn watch(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()> {
        let flags = match source {
            Source::Save => EpollFlags::EPOLLOUT,
            _ => EpollFlags::EPOLLIN,
        };
        let event = EpollEvent::new(flags, source as u64);
        self.epoll.add(fd, event)?;
        self.fds.borrow_mut().push(fd.as_raw_fd());
        Ok(())
    }

    fn unwatch(&self, fd: BorrowedFd<'_>) {
        // May run in a destructor: it is looked at later.
        if self.epoll.delete(fd).is_err() {
            self.needless.set(true);
        }
        self.fds
            .borrow_mut()
            .retain(|&other| other != fd.as_raw_fd());
    }

    /// Ends all watches.
    fn forget(&self) {
        for fd in self.fds.take() {
            // SAFETY: a connection that is watched, and was forgotten, owns it.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            self.epoll.delete(fd).unwrap();
        }
    }

    fn wait(&self, timeout: EpollTimeout) -> Vec<Source> {
        let mut events = [EpollEvent::empty(); 8];
        let count = self.epoll.wait(&mut events, timeout).unwrap();
        events[..count]
            .iter()
            .map(|event| {
                let sources = [Source::Control, Source::Kick, Source::Save, Source::Load];
                sources[event.data() as usize]
            })
            .collect()
    }
}

/// How a connection ended.
#[derive(Debug)]
pub enum End {
    Disconnected,
    Broken(#[allow(dead_code, reason = "shown when a test fails")] Error),
}

/// A connection and the loop that serves it, turned by hand.
pub struct EventLoop {
    connection: Option<Connection>,
    watched: Rc<Watched>,
    pub saved: SavedState,
    /// The descriptors of a killed process that nobody has claimed.
    left: BTreeSet<RawFd>,
    end: Option<End>,
}

impl EventLoop {
    pub fn new(stream: UnixStream, config: &DeviceConfig, handler: Rc<dyn Handler>) -> EventLoop {
        EventLoop::try_new(stream, config, handler).unwrap()
    }

    pub fn try_new(
        stream: UnixStream,
        config: &DeviceConfig,
        handler: Rc<dyn Handler>,
    ) -> Result<EventLoop, Error> {
        let watched = Rc::new(Watched {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap(),
            fds: RefCell::default(),
            needless: Cell::new(false),
        });
        let saved = SavedState::new();
        let state = saved.state();
        let connection = Connection::new(stream, config, handler, watched.handle(), state)?;
        Ok(EventLoop {
            connection: Some(connection),
            watched,
            saved,
            left: BTreeSet::new(),
            end: None,
        })
    }

    /// The process is killed: it does nothing any more, and its descriptors stay open.
    pub fn kill(&mut self) {
        let connection = self.connection.take().expect("a connection");
        std::mem::forget(connection);
        self.watched.forget();
        self.left = self.saved.descriptors();
        self.left.extend(self.saved.duplicates());
    }

    /// What the killed process has left is gone, too.
    pub fn abandon(&mut self) {
        while let Some(fd) = self.left.pop_first() {
            // SAFETY: the connection that owned it was forgotten, and nobody has claimed it since.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }

    /// Another process goes on with what the killed one has left.
    pub fn resume(
        &mut self,
        config: &DeviceConfig,
        handler: Rc<dyn Handler>,
        faulty: bool,
    ) -> Result<bool, Error> {
        let left = &mut self.left;
        let mut claim = |fd| {
            if !left.remove(&fd) {
                return Err(io::ErrorKind::NotFound.into());
            }
            // SAFETY: the connection that owned it was forgotten, and nobody has claimed it since.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        };
        let state = self.saved.state();
        let watched = self.watched.handle();
        let resumed = Connection::resume(config, handler, watched, state, &mut claim, faulty);
        self.abandon();
        self.connection = resumed?;
        Ok(self.connection.is_some())
    }

    /// One turn with what is there, if anything; returns what it was.
    pub fn turn(&mut self) -> Vec<Source> {
        self.turn_with(EpollTimeout::ZERO)
    }

    /// One turn with whatever comes first.
    pub fn turn_when_ready(&mut self) -> Vec<Source> {
        let sources = self.turn_with(LONG.into());
        assert!(!sources.is_empty(), "nothing happens");
        sources
    }

    /// The same, however long it takes.
    pub fn turn_at_leisure(&mut self) -> Vec<Source> {
        self.turn_with(EpollTimeout::NONE)
    }

    fn turn_with(&mut self, timeout: EpollTimeout) -> Vec<Source> {
        // What is in the ring already is as good as a kick.
        let found =
            (self.connection.as_ref()).is_some_and(|connection| !connection.prepare_sleep());
        let timeout = if found { EpollTimeout::ZERO } else { timeout };
        let mut sources = self.watched.wait(timeout);
        for &source in &sources {
            if let Some(connection) = &mut self.connection {
                match connection.ready(source) {
                    Ok(Status::Open) => {}
                    Ok(Status::Disconnected) => self.hang_up(End::Disconnected),
                    Err(error) => self.hang_up(End::Broken(error)),
                }
            }
        }
        if let Some(connection) = &self.connection {
            connection.take_requests();
        }
        self.notify();
        assert!(!self.watched.needless.get(), "was not watched");
        if found && sources.is_empty() {
            sources.push(Source::Kick);
        }
        sources
    }

    /// The end of a turn.
    pub fn notify(&self) {
        if let Some(connection) = &self.connection {
            connection.notify().unwrap();
        }
    }

    /// Turns until there is nothing left to do; returns how many turns that took.
    pub fn run(&mut self) -> usize {
        (0..MANY_TURNS)
            .find(|_| self.turn().is_empty())
            .expect("the loop comes to rest")
    }

    fn hang_up(&mut self, end: End) {
        self.close();
        self.end = Some(end);
    }

    /// Drops the connection.
    pub fn close(&mut self) {
        self.connection = None;
        assert_eq!(*self.watched.fds.borrow(), [], "still watched");
        assert!(!self.watched.needless.get(), "was not watched");
    }

    /// How the connection ended, if it did.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// What the front-end keeps for the handler.
    pub fn room(&self) -> Option<Room> {
        self.connection.as_ref().and_then(Connection::room)
    }

    /// How many descriptors are watched.
    pub fn watches(&self) -> usize {
        self.watched.fds.borrow().len()
    }
}
