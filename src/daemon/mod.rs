//! The event loop: one thread that owns the device, and what wakes it.

pub mod socket;
mod systemd;
pub mod upgrade;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::rc::Rc;
use std::time::{Duration, Instant};

use coroutine::Spin;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, raise, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{Pid, geteuid};
use vhost_user::{Connection, DeviceConfig, Poller, Source, Status};

use crate::cli::{self, Options};
use crate::export::users::Users;
use crate::export::{Export, FileHandles, Identity, Ids, Permissions, open_share};
use crate::logger;
use crate::sandbox::capabilities::{self, Rights};
use crate::sandbox::seccomp::{self, Filter};
use crate::sandbox::supervisor::{BEGIN_ANEW, Deaths, HANDED_OVER, Next, Restart};
use crate::sandbox::{self, End, Entrance, Entry, Inside, Role, Sandbox};
use crate::server::Server;
use crate::state::{self, Capacity, Claims, Memory, State};
use socket::{Socket, SocketFile};
use upgrade::{Format, Handover, Previous, Program, Told};

/// Bit 0 of virtio-9p's features: the configuration space holds the mount tag.
const VIRTIO_9P_MOUNT_TAG: u64 = 1 << 0;
/// Linux asks for 128 descriptors, User-mode Linux for 256.
const MAX_QUEUE_SIZE: u16 = 1024;
/// How long a busy loop ignores signals, the front-end and new connections.
const LOOK_INTERVAL: Duration = Duration::from_micros(100);
/// How long requests may take to end before the next program continues with them.
const HANDOVER_TIME: Duration = Duration::from_millis(50);
/// How long to wait before trying again to accept a front-end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the daemon cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be shared.
    #[error("cannot share {path}: {error}; give --shared-dir a directory that this user may read")]
    Share {
        /// Which.
        path: PathBuf,
        /// Why.
        error: Errno,
    },
    /// The file system cannot store what the security model needs.
    #[error(
        "cannot keep attributes in the file system of {path}: {error}; give --security-model \
         mapped-file"
    )]
    Model {
        /// Where.
        path: PathBuf,
        /// Why.
        error: Errno,
    },
    /// File handles are mandatory and cannot be used.
    #[error(
        "cannot find files of {path} by their handles: {error}; give --inode-file-handles prefer"
    )]
    Handles {
        /// Which directory.
        path: PathBuf,
        /// Why.
        error: Errno,
    },
    /// The requested sandbox is not available.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// An ordinary user has no capabilities to change.
    #[error("--modcaps is for root: the daemon of an ordinary user has no capabilities")]
    Modcaps,
    /// The host cannot decide, because the daemon cannot act as its users.
    #[error(
        "--permissions host is for root with CAP_SETUID, CAP_SETGID and CAP_CHOWN: this daemon \
         cannot act as other users"
    )]
    Permissions,
    /// The requested capabilities are not available.
    #[error(transparent)]
    Capabilities(#[from] capabilities::Error),
    /// The system calls cannot be restricted.
    #[error("cannot limit the system calls: {0}; try --seccomp none")]
    Seccomp(#[from] seccomp::Error),
    /// There is no memory for the state.
    #[error("{0}; allow this process more memory")]
    State(#[from] state::Error),
    /// There is no memory for the connection's state.
    #[error("{0}; allow this process more memory")]
    ConnectionState(#[from] vhost_user::Error),
    /// The daemon has exited, and reported why.
    #[error("the daemon ended with status {0}")]
    Daemon(u8),
    /// It cannot continue for the program before.
    #[error("cannot continue for the program before: {0}")]
    Handover(io::Error),
    /// There is no socket.
    #[error(transparent)]
    Socket(#[from] socket::Error),
    /// The limit of open descriptors cannot be set.
    #[error("cannot allow {limit} open descriptors: {error}; lower --rlimit-nofile")]
    Limit {
        /// How many were asked for.
        limit: u64,
        /// Why not.
        error: Errno,
    },
    /// The host refuses something that every daemon needs.
    #[error("the host refuses {what}: {error}")]
    Host {
        /// What was refused.
        what: &'static str,
        /// Its answer.
        error: io::Error,
    },
}

fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::Host {
        what,
        error: error.into(),
    }
}

/// Why a process cannot take over from another.
#[derive(Debug, thiserror::Error)]
enum ResumeError {
    #[error(transparent)]
    Session(#[from] state::Error),
    #[error(transparent)]
    Connection(#[from] vhost_user::Error),
}

/// The source of an event, as epoll returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
enum Token {
    Signal = 1,
    Workers,
    Listener,
    Control,
    Kick,
    Save,
    Load,
}

impl Token {
    fn of(data: u64) -> Option<Token> {
        [
            Token::Signal,
            Token::Workers,
            Token::Listener,
            Token::Control,
            Token::Kick,
            Token::Save,
            Token::Load,
        ]
        .into_iter()
        .find(|token| *token as u64 == data)
    }
}

struct Reactor(Epoll);

impl Reactor {
    fn watch(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(self
            .0
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token as u64))?)
    }

    /// Watches for one event.
    fn watch_once(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
        Ok(self.0.add(fd, EpollEvent::new(flags, token as u64))?)
    }

    fn unwatch(&self, fd: impl AsFd) {
        // Fails only for a descriptor that is not watched.
        let _ = self.0.delete(fd);
    }
}

impl Poller for Reactor {
    fn watch(&self, fd: BorrowedFd<'_>, source: Source) -> io::Result<()> {
        let token = match source {
            Source::Control => Token::Control,
            Source::Kick => Token::Kick,
            Source::Load => Token::Load,
            Source::Save => {
                let event = EpollEvent::new(EpollFlags::EPOLLOUT, Token::Save as u64);
                return Ok(self.0.add(fd, event)?);
            }
        };
        Reactor::watch(self, fd, token)
    }

    fn unwatch(&self, fd: BorrowedFd<'_>) {
        Reactor::unwatch(self, fd);
    }
}

/// Serves front-ends, one after the other, until SIGTERM, SIGINT or SIGQUIT, or with `--once` until
/// the first has left.
pub fn run(options: &Options) -> Result<(), Error> {
    let handled = handled_signals()?;
    let outside = match Told::from_environment().map_err(Error::Handover)? {
        Told::Nothing => {
            continue_from_store(options)?;
            Outside::open(options)?
        }
        Told::Check(format) => return check_format(options, format),
        Told::Continue(handover) => Outside::handed_over(options, handover)?,
    };
    let Some(confined) = outside.confine(options, &handled)? else {
        return Ok(());
    };
    let filter = Filter {
        policy: options.seccomp,
        file_handles: confined.handles != FileHandles::Never,
    };
    let signals = SignalFd::with_flags(&handled, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(host("signals"))?;
    let mut daemon = confined.daemon(options, filter, signals)?;
    let path = options.shared_dir.as_deref().unwrap_or(Path::new(""));
    log::info!("sharing {} as \"{}\"", path.display(), options.tag);
    log::info!(
        "the guest mounts it with: {}; QEMU's device takes config_size={}",
        options.tag.mount_line(),
        options.tag.config_space().len()
    );
    // Everything that takes more system calls than serving is done. The workers inherit the filter
    // and add their own.
    seccomp::install(filter)?;
    if daemon.connection.is_none() {
        daemon.wait_for_front_end()?;
    }
    daemon.turn_until_stopped()
}

/// What is opened by paths of the host, or takes rights that the daemon drops.
struct Outside {
    /// None if servers have entered the sandbox before.
    share: Option<OwnedFd>,
    /// Closed when this process ends.
    socket: ManuallyDrop<Socket>,
    file: Option<SocketFile>,
    settings: Settings,
    /// What the program before has left.
    before: Option<Before>,
}

/// What the daemon finds out about its host.
struct Settings {
    ids: Ids,
    users: Option<Users>,
    /// How many descriptors the guest may have.
    descriptors: usize,
    program: Program,
}

/// What a program leaves to the one that replaces it.
struct Before {
    previous: Previous,
    memory: Memory,
    entrance: Entrance,
}

/// What the process before has left, if it has died.
struct Left {
    descriptors: Vec<RawFd>,
    /// Whether it died by its own fault.
    faulty: bool,
    /// Whether the program before can still go on with it.
    pending: bool,
}

/// Everything that the daemon serves with, in its sandbox and with reduced rights.
struct Confined {
    share: OwnedFd,
    socket: ManuallyDrop<Socket>,
    file: Option<SocketFile>,
    handles: FileHandles,
    identity: Identity,
    descriptors: usize,
    /// The memory of the state, if a supervisor keeps it.
    memory: Option<Memory>,
    left: Option<Left>,
}

impl Settings {
    /// Sets the limit of descriptors, too.
    fn of(options: &Options) -> Result<Settings, Error> {
        if options.modcaps.is_some() && !geteuid().is_root() {
            return Err(Error::Modcaps);
        }
        let descriptors = descriptor_budget(set_limit(options.rlimit_nofile)?);
        let ids = options
            .ids()
            .map_err(|error| host("a translation of ids")(io::Error::other(error)))?;
        let users = match options.permissions {
            Permissions::Guest => None,
            Permissions::Host => Some(Users::of_host().map_err(host("the list of its users"))?),
        };
        Ok(Settings {
            ids,
            users,
            descriptors,
            program: Program::running().map_err(host("the path of its program"))?,
        })
    }
}

impl Outside {
    fn open(options: &Options) -> Result<Outside, Error> {
        // Once and before anything else: the path resolves differently when the working directory,
        // the root or the mounts change.
        let path = options.shared_dir.clone().unwrap_or_default();
        let share = open_share(&path).map_err(|error| Error::Share { path, error })?;
        let settings = Settings::of(options)?;
        let systemd = cli::systemd_socket();
        if systemd.is_some() && systemd != options.fd {
            log::warn!(
                "the socket that systemd has passed (LISTEN_FDS) is not served, because another \
                 one is given: leave out --socket and --fd to serve it"
            );
        }
        let (socket, file) = match (&options.socket, options.fd) {
            // SAFETY: this process has opened no socket yet: one with this number comes from its
            // parent, which means it for this.
            (_, Some(fd)) => (unsafe { Socket::inherited(fd)? }, None),
            (Some(path), None) => {
                let (socket, file) = Socket::bind(path, options.socket_group.as_deref())?;
                (socket, Some(file))
            }
            (None, None) => unreachable!("the command line has one of them"),
        };
        Ok(Outside {
            share: Some(share),
            socket: ManuallyDrop::new(socket),
            file,
            settings,
            before: None,
        })
    }

    /// What the program before has had. Errors: this is none of its successors; then that program has
    /// become this process again, if it can.
    fn handed_over(options: &Options, handover: Handover) -> Result<Outside, Error> {
        let previous = handover.previous();
        Outside::take_over(options, handover).inspect_err(|error| {
            log::error!("{error}");
            previous.go_back();
        })
    }

    fn take_over(options: &Options, handover: Handover) -> Result<Outside, Error> {
        // SAFETY: what this process has done until now left no descriptor open.
        let claims = unsafe { upgrade::given() }.map_err(Error::Handover)?;
        // What is not taken is the servers', or that of the program before.
        let mut claims = ManuallyDrop::new(claims);
        let capacity = options.limits().0.capacity();
        let memory = handover.memory(&capacity, &mut claims)?;
        let kept = handover.kept.clone();
        let handles = options.file_handles();
        let entrance = Entrance::of(kept, handles, &mut claims).map_err(Error::Handover)?;
        let socket = match handover.socket.map(|fd| claims.take(fd)) {
            Some(Ok(socket)) => Socket::handed_over(socket).map_err(Error::Handover)?,
            Some(Err(_)) | None => Socket::Connected(None),
        };
        let file = match (&options.socket, handover.file) {
            (Some(path), Some(file)) => Some(SocketFile::handed_over(path, file)),
            _ => None,
        };
        let settings = Settings::of(options)?;
        let before = Before {
            previous: handover.previous(),
            memory,
            entrance,
        };
        Ok(Outside {
            share: None,
            socket: ManuallyDrop::new(socket),
            file,
            settings,
            before: Some(before),
        })
    }

    /// Enters the sandbox and drops the rights that serving does not need. None in a process that has
    /// waited for another one, which has ended in order. Errors: what failed, or the exit status of that
    /// process.
    fn confine(mut self, options: &Options, handled: &SigSet) -> Result<Option<Confined>, Error> {
        // The guest has applied its programs' umask; a second one would clear more bits. From here
        // on only the guest's files are created.
        umask(Mode::empty());
        let handles = options.file_handles();
        let capacity = options.limits().0.capacity();
        let mut supervision = Supervision {
            capacity,
            memory: None,
            restart: options.restart,
            handled: *handled,
            previous: None,
            deaths: Deaths::default(),
            faulty: false,
            ready: false,
        };
        let mut role = match (self.before.take(), self.share.take()) {
            (Some(before), _) => {
                let role = before.entrance.enter_again().inspect_err(|error| {
                    log::error!("{error}");
                    before.previous.go_back();
                })?;
                supervision.previous = Some(before.previous);
                supervision.memory = Some(before.memory);
                role
            }
            (None, Some(share)) => {
                supervision.memory = match options.restart {
                    Restart::Never => None,
                    Restart::Crash => Some(capacity.memory()?),
                };
                let entry = Entry {
                    sandbox: options.sandbox,
                    handles,
                    supervised: supervision.memory.is_some(),
                };
                sandbox::enter(entry, share)?
            }
            (None, None) => unreachable!("there is a share"),
        };
        let (inside, left) = loop {
            role = match role {
                Role::Alone(inside) => {
                    systemd::is_ready();
                    break (inside, None);
                }
                Role::Server(inside) => {
                    self.file.take().into_iter().for_each(SocketFile::leave);
                    break (inside, None);
                }
                Role::Successor(inside, descriptors) => {
                    self.file.take().into_iter().for_each(SocketFile::leave);
                    let faulty = supervision.faulty;
                    let left = Left {
                        descriptors,
                        faulty,
                        pending: supervision.is_pending(),
                    };
                    break (inside, Some(left));
                }
                // The file is removed when it is dropped.
                Role::Parent(child) => {
                    systemd::is_ready();
                    return waited_for(child, handled).map(|()| None);
                }
                Role::Supervisor(server, entrance) if entrance.is_inner() => {
                    // What is dropped here would be closed in the supervisor outside, too.
                    self.file.take().into_iter().for_each(SocketFile::leave);
                    let next = match supervision.await_end_inside(server) {
                        Ok(Next::Restart { .. }) => entrance.enter_again().map_err(Error::from),
                        Ok(Next::Exit(status)) => exit(status.into()),
                        Err(error) => Err(error),
                    };
                    next.unwrap_or_else(|error| {
                        logger::complain(error);
                        exit(1)
                    })
                }
                Role::Supervisor(child, entrance) => {
                    match supervision.await_end(child, &self, &entrance)? {
                        Next::Restart { .. } => entrance.enter_again()?,
                        Next::Exit(0) => return Ok(None),
                        Next::Exit(status) => return Err(Error::Daemon(status)),
                    }
                }
            };
        };
        let memory = supervision.memory;
        // Its files would be closed in the supervisors, too.
        std::mem::forget(memory.clone());
        let Inside { share, landlock } = inside;
        let handles = match landlock {
            false => handles,
            true => {
                if handles != FileHandles::Never {
                    log::warn!("file handles are not used: Landlock does not allow them");
                }
                FileHandles::Never
            }
        };
        capabilities::reduce(Rights {
            sandboxed: options.sandbox != Some(Sandbox::None),
            handles,
            changes: &options.modcaps.clone().unwrap_or_default(),
        })?;
        let identity = Identity::of_process(self.settings.ids, self.settings.users)
            .map_err(host("its capabilities"))?;
        check_identity(options, &identity)?;
        Ok(Some(Confined {
            share,
            socket: self.socket,
            file: self.file,
            handles,
            identity,
            descriptors: self.settings.descriptors,
            memory,
            left,
        }))
    }
}

impl Confined {
    /// The daemon, which does not listen yet.
    fn daemon(self, options: &Options, filter: Filter, signals: SignalFd) -> Result<Daemon, Error> {
        let export = export(options, self.share, self.handles, self.identity)?;
        let workers = seccomp::workers(filter, options.threads.into())?;
        let capacity = options.limits().0.capacity();
        let state = match &self.memory {
            None => State::private(&capacity)?,
            Some(memory) => State::new(memory, &capacity),
        };
        let of_device = vhost_user::State::new(state.device().clone())?;
        let server = Server::new(
            export,
            workers,
            options.multidevs,
            self.descriptors,
            options.limits(),
            state,
        );
        server.set_migration(options.migration());
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(host("epoll"))?;
        let reactor = Rc::new(Reactor(epoll));
        reactor
            .watch(&signals, Token::Signal)
            .map_err(host("epoll"))?;
        reactor
            .watch(server.workers(), Token::Workers)
            .map_err(host("epoll"))?;
        let mut daemon = Daemon {
            reactor,
            device: DeviceConfig {
                features: VIRTIO_9P_MOUNT_TAG,
                config_space: options.tag.config_space(),
                config_head: size_of::<u16>(),
                max_queue_size: MAX_QUEUE_SIZE,
            },
            once: options.once,
            supervised: self.memory.is_some(),
            signals,
            server,
            socket: self.socket,
            _file: self.file,
            state: of_device,
            connection: None,
            search: Spin::new(options.poll_time()),
            looked: Instant::now(),
            listen_again: None,
            served: false,
            stopping: false,
        };
        if let Some(left) = self.left {
            daemon.take_over(left)?;
        }
        daemon.server.begin_state();
        Ok(daemon)
    }
}

/// How a supervisor waits.
struct Supervision {
    capacity: Capacity,
    /// None if there is nothing to supervise.
    memory: Option<Memory>,
    restart: Restart,
    handled: SigSet,
    previous: Option<Previous>,
    deaths: Deaths,
    /// Whether the last process died by its own fault.
    faulty: bool,
    /// Whether systemd was told that front-ends are served.
    ready: bool,
}

impl Supervision {
    /// Waits until the server has ended. The supervisor outside decides about upgrades.
    fn await_end_inside(&mut self, server: Pid) -> Result<Next, Error> {
        let mut stop = None;
        let end = sandbox::wait(server, self.handled, |signal| {
            note_stop(signal, &mut stop);
            true
        });
        let end = end.map_err(host("to wait for the server"))?;
        remember(stop, end);
        match end {
            End::Exited(status) if status == i32::from(HANDED_OVER) => Ok(Next::Exit(HANDED_OVER)),
            End::Exited(_) | End::Killed(_) if end != End::Exited(0) && self.is_pending() => {
                Ok(Next::Exit(BEGIN_ANEW))
            }
            _ => self.next(end),
        }
    }

    /// Waits until the child has ended, and becomes the next program if that is wanted. Errors: it is not
    /// possible to wait.
    fn await_end(
        &mut self,
        child: Pid,
        outside: &Outside,
        entrance: &Entrance,
    ) -> Result<Next, Error> {
        if !std::mem::replace(&mut self.ready, true) {
            systemd::is_ready();
        }
        let format = Format::of(&self.capacity);
        let files = self.memory.as_ref().and_then(Memory::descriptors);
        let (mut upgrade, mut stop, mut store) = (false, None, false);
        let end = sandbox::wait(child, self.handled, |signal| {
            if note_stop(signal, &mut stop) && !store {
                match (files, systemd::has_room()) {
                    (Some(_), Some(true)) => {
                        store = true;
                        // Instead of the end of everything.
                        let _ = raise(Signal::SIGHUP);
                        return false;
                    }
                    (_, Some(false)) => log::warn!(
                        "more is open than systemd stores (FileDescriptorStoreMax=): the guest is \
                         disconnected"
                    ),
                    _ => {}
                }
            }
            if signal != Signal::SIGHUP {
                return true;
            }
            if store {
                return true;
            }
            let checked = match files {
                Some(_) => outside.settings.program.check(format),
                None => Err("the limit of the size of files leaves no file for the state".into()),
            };
            match checked {
                Ok(()) => upgrade = true,
                Err(why) => log::error!("no upgrade, this program goes on: {why}"),
            }
            upgrade
        });
        let end = end.map_err(host("to wait for the server"))?;
        let handed_over = end == End::Exited(HANDED_OVER.into());
        if let (true, true, Some(files)) = (store, handed_over, files) {
            let (kept, socket) = (entrance.kept(), outside.socket.number());
            let file = outside.file.as_ref().map(SocketFile::identity);
            let told = Program::told_by_store(format, files, kept, socket, file);
            match systemd::leave(&told) {
                Ok(()) => {
                    log::info!("leaves everything to the next program, in systemd's store");
                    // The socket's file stays.
                    exit(0)
                }
                Err(error) => log::error!("systemd stores nothing: {error}"),
            }
            return Ok(Next::Exit(0));
        }
        remember(stop, end);
        // It may have died before it could hand over.
        let is_left = handed_over || matches!(end, End::Killed(_));
        if let (true, true, Some(files)) = (upgrade, is_left, files) {
            let socket = outside.socket.number();
            let file = outside.file.as_ref().map(SocketFile::identity);
            let program = &outside.settings.program;
            let error = program.replace(format, files, entrance.kept(), socket, file);
            log::error!("no upgrade, this program goes on: {error}");
        }
        if handed_over {
            self.faulty = false;
            return Ok(Next::Restart { faulty: false });
        }
        if end != End::Exited(0) && self.is_pending() {
            self.previous.iter().for_each(Previous::go_back);
        }
        match end {
            // A supervisor that gives up.
            End::Exited(status) if entrance.has_inner() => Ok(Next::Exit(status as u8)),
            _ => self.next(end),
        }
    }

    /// Whether the program before can still go on.
    fn is_pending(&self) -> bool {
        self.previous.as_ref().is_some_and(Previous::is_pending)
    }

    fn next(&mut self, end: End) -> Result<Next, Error> {
        if end == End::Exited(BEGIN_ANEW.into()) {
            self.memory
                .iter_mut()
                .try_for_each(|memory| memory.clear(&self.capacity))?;
        }
        let next = self.deaths.next(end, self.restart, Instant::now());
        if let Next::Restart { faulty } = next {
            self.faulty = faulty;
        }
        Ok(next)
    }
}

/// Returns whether it is a signal to stop.
fn note_stop(signal: Signal, stop: &mut Option<Signal>) -> bool {
    let stops = matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT);
    if stops {
        *stop = Some(signal);
    }
    stops
}

/// Lets a signal come again that was passed on to a process which has not ended by it: the next process
/// needs it, or the next program.
fn remember(stop: Option<Signal>, end: End) {
    if let (Some(signal), true) = (stop, end != End::Exited(0)) {
        // It is blocked. Fails for no signal that there is.
        let _ = raise(signal);
    }
}

/// Becomes this program anew if one before has left everything in systemd's store.
fn continue_from_store(options: &Options) -> Result<(), Error> {
    let format = Format::of(&options.limits().0.capacity());
    let fits = |told: &str| Told::fits(told, format);
    // SAFETY: what this process has done until now left no descriptor open.
    let taken = unsafe { systemd::take(fits, Told::socket) };
    let Some(told) = taken.map_err(Error::Handover)? else {
        return Ok(());
    };
    let program = Program::running().map_err(Error::Handover)?;
    Err(Error::Handover(program.continue_from_store(told)))
}

/// Says whether this program, with these options, can continue with a state of this format.
fn check_format(options: &Options, format: Format) -> Result<(), Error> {
    match format == Format::of(&options.limits().0.capacity()) {
        true => Ok(()),
        false => Err(Error::Handover(io::Error::other(
            "its state has another format: restart the daemon when its guest is down",
        ))),
    }
}

/// Refuses permissions, and warns of translations, that need rights which the daemon lacks. A
/// mapped model needs none for ids.
fn check_identity(options: &Options, identity: &Identity) -> Result<(), Error> {
    if options.permissions == Permissions::Host && !identity.acts_for_others() {
        return Err(Error::Permissions);
    }
    if options.security_model.is_mapped() || identity.acts_for_others() {
        return Ok(());
    }
    let (users, groups) = identity.own_ids();
    let ids = identity.ids();
    for (option, leads_elsewhere) in [
        ("--translate-uid", ids.uids.leads_beyond(&users)),
        ("--translate-gid", ids.gids.leads_beyond(&groups)),
    ] {
        if leads_elsewhere {
            log::warn!(
                "{option} names ids of the host that this daemon cannot give a file: what the \
                 guest creates belongs to the daemon's user; run it as root, or give \
                 --security-model mapped-xattr"
            );
        }
    }
    Ok(())
}

/// The share, as the options describe it.
fn export(
    options: &Options,
    share: OwnedFd,
    handles: FileHandles,
    identity: Identity,
) -> Result<Export, Error> {
    let path = options.shared_dir.clone().unwrap_or_default();
    let flags = fstatvfs(&share)
        .map_err(host("to look at the share"))?
        .flags();
    if flags.contains(FsFlags::ST_RDONLY) && !options.readonly {
        log::warn!(
            "{} is mounted read-only here: the guest can change nothing (--readonly says so)",
            path.display()
        );
    }
    let export = match Export::of(share, options.readonly, handles, identity) {
        Ok(export) => export,
        Err(error) => return Err(Error::Share { path, error }),
    };
    let export = match export.with_model(options.security_model, options.host_modes()) {
        Ok(export) => export,
        Err(error) => return Err(Error::Model { path, error }),
    };
    match export.locators().check(export.root()) {
        Ok(()) => Ok(export),
        Err(error) => Err(Error::Handles { path, error }),
    }
}

struct Daemon {
    // Dropped first: it drains the server.
    connection: Option<Connection>,
    reactor: Rc<Reactor>,
    device: DeviceConfig,
    server: Rc<Server>,
    /// Closed when this process ends: as long as it is open, its file is known for ours.
    socket: ManuallyDrop<Socket>,
    /// Removed at the end, unless another process does that.
    _file: Option<SocketFile>,
    /// Where the connection is recorded.
    state: vhost_user::State,
    once: bool,
    /// Whether another process can take over.
    supervised: bool,
    signals: SignalFd,
    /// Polls for requests before the loop sleeps.
    search: Spin,
    /// When the descriptors were last polled.
    looked: Instant,
    /// When to try again to accept a front-end.
    listen_again: Option<Instant>,
    /// Whether a front-end has connected before.
    served: bool,
    stopping: bool,
}

impl Daemon {
    /// Continues with what the process before has left. Errors: the exit status of this process, if that
    /// is impossible. The next one begins anew then, without a front-end.
    fn take_over(&mut self, left: Left) -> Result<(), Error> {
        let begin = Instant::now();
        // SAFETY: they are the descriptors that were open when this process was made, except those of the
        // supervisor. This process has used none of them since, and the supervisor closes none.
        let mut claims = unsafe { Claims::new(left.descriptors) };
        if !self.server.has_state() {
            return Ok(());
        }
        match self.resume(&mut claims, left.faulty) {
            Ok(resumed) => {
                if let (true, Socket::Connected(stream)) = (resumed, &mut *self.socket) {
                    // The connection has duplicates of its own. This one stays open: the supervisor
                    // does not know that its number could become another file's.
                    std::mem::forget(stream.take());
                }
                self.served |= resumed;
                drop(claims);
                self.server.go_on();
                log::info!("took over in {} us", begin.elapsed().as_micros());
                Ok(())
            }
            Err(error) if left.pending => {
                log::error!("cannot continue: {error}");
                // Nothing is closed: it is the program's before.
                exit(BEGIN_ANEW.into())
            }
            Err(error) => {
                log::error!("cannot continue, and so disconnects the front-end: {error}");
                Err(Error::Daemon(BEGIN_ANEW))
            }
        }
    }

    fn resume(&mut self, claims: &mut Claims, faulty: bool) -> Result<bool, ResumeError> {
        self.server.resume(claims)?;
        let (server, reactor) = (self.server.clone(), self.reactor.clone());
        let claim = &mut |fd| claims.take(fd);
        let state = self.state.clone();
        self.connection = Connection::resume(&self.device, server, reactor, state, claim, faulty)?;
        Ok(self.connection.is_some())
    }

    fn turn_until_stopped(&mut self) -> Result<(), Error> {
        while !self.stopping {
            let timeout = self.prepare_sleep();
            // While the guest keeps the loop busy, the descriptors can wait a little.
            if timeout != EpollTimeout::ZERO || self.looked.elapsed() >= LOOK_INTERVAL {
                self.wait(timeout)?;
            }
            self.server.workers().awake();
            if let Some(connection) = &self.connection {
                connection.take_requests();
            }
            self.server.workers().run_completed();
            coroutine::run_timers();
            coroutine::run_ready();
            if let Some(connection) = &self.connection {
                if let Err(error) = connection.notify() {
                    self.hang_up(Some(error))?;
                }
            }
        }
        log::info!("stopping");
        // Drains what is under way.
        self.connection = None;
        Ok(())
    }

    /// How long the loop may block: not at all if there is something to do, or if something comes
    /// while polling pays off.
    fn prepare_sleep(&self) -> EpollTimeout {
        let workers = self.server.workers();
        // Read before the ring is: if the moment has passed by then, the ring's requests are taken.
        let held = self.server.held_until();
        let may_sleep = match &self.connection {
            None => workers.prepare_sleep(),
            Some(connection) => {
                let is_there = || connection.has_requests() || workers.has_completed();
                !self.search.until(is_there)
                    && workers.prepare_sleep()
                    && connection.prepare_sleep()
            }
        };
        if may_sleep {
            until(
                coroutine::next_deadline()
                    .into_iter()
                    .chain(self.listen_again)
                    .chain(held)
                    .min(),
            )
        } else {
            EpollTimeout::ZERO
        }
    }

    /// Waits for the descriptors.
    fn wait(&mut self, timeout: EpollTimeout) -> Result<(), Error> {
        let mut events = [EpollEvent::empty(); 8];
        let count = match self.reactor.0.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(host("epoll")(error)),
        };
        self.looked = Instant::now();
        for token in events[..count]
            .iter()
            .filter_map(|event| Token::of(event.data()))
        {
            self.on_event(token)?;
        }
        if self
            .listen_again
            .is_some_and(|moment| moment <= self.looked)
        {
            self.listen_again = None;
            self.listen()?;
        }
        Ok(())
    }

    fn on_event(&mut self, token: Token) -> Result<(), Error> {
        match token {
            Token::Signal => self.on_signal()?,
            // Served at every turn.
            Token::Workers => {}
            Token::Listener => self.accept()?,
            Token::Control => self.on_front_end(Source::Control)?,
            Token::Kick => self.on_front_end(Source::Kick)?,
            Token::Save => self.on_front_end(Source::Save)?,
            Token::Load => self.on_front_end(Source::Load)?,
        }
        Ok(())
    }

    fn on_signal(&mut self) -> Result<(), Error> {
        match self.signals.read_signal().map_err(host("signals"))? {
            Some(signal) if signal.ssi_signo == Signal::SIGUSR1 as u32 => {
                let front_end = match self.connection {
                    Some(_) => "a front-end is connected",
                    None => "no front-end is connected",
                };
                log::info!("status: {front_end}, {}", self.server.status());
            }
            Some(signal) if signal.ssi_signo == Signal::SIGHUP as u32 => match self.supervised {
                true => self.hand_over(),
                false => log::warn!("no upgrade: it takes --restart crash"),
            },
            Some(_) => self.stopping = true,
            None => {}
        }
        Ok(())
    }

    /// Lets requests end, for a while, and leaves everything else to the next process, which continues
    /// with those that have not ended as after a crash.
    fn hand_over(&self) {
        let deadline = Instant::now() + HANDOVER_TIME;
        let workers = self.server.workers();
        loop {
            workers.run_completed();
            coroutine::run_timers();
            coroutine::run_ready();
            if self.server.is_idle() || Instant::now() >= deadline {
                break;
            }
            if workers.prepare_sleep() {
                let moment = coroutine::next_deadline()
                    .into_iter()
                    .chain([deadline])
                    .min();
                let timeout =
                    PollTimeout::try_from(i32::from(until(moment))).unwrap_or(PollTimeout::ZERO);
                let _ = poll(
                    &mut [PollFd::new(workers.as_fd(), PollFlags::POLLIN)],
                    timeout,
                );
            }
        }
        log::info!("hands over to the next process");
        exit(HANDED_OVER.into())
    }

    fn on_front_end(&mut self, source: Source) -> Result<(), Error> {
        // None: the connection was closed earlier in this turn.
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        match connection.ready(source) {
            Ok(Status::Open) => Ok(()),
            Ok(Status::Disconnected) => self.hang_up(None),
            Err(error) => self.hang_up(Some(error)),
        }
    }

    /// Ends a connection and waits for the next one.
    fn hang_up(&mut self, error: Option<vhost_user::Error>) -> Result<(), Error> {
        match error {
            None => log::info!("the front-end has disconnected"),
            Some(error) => log::error!("the connection to the front-end is broken: {error}"),
        }
        self.connection = None;
        self.wait_for_front_end()
    }

    fn wait_for_front_end(&mut self) -> Result<(), Error> {
        match &mut *self.socket {
            Socket::Listening(_) if self.once && self.served => self.stopping = true,
            Socket::Listening(_) => {
                self.listen()?;
                log::info!("listening");
            }
            Socket::Connected(stream) => match stream.take() {
                Some(stream) => self.connect(stream)?,
                None => self.stopping = true,
            },
        }
        Ok(())
    }

    fn listen(&self) -> Result<(), Error> {
        if let Socket::Listening(listener) = &*self.socket {
            self.reactor.unwatch(listener);
            let watched = self.reactor.watch(listener, Token::Listener);
            watched.map_err(host("epoll"))?;
        }
        Ok(())
    }

    fn accept(&mut self) -> Result<(), Error> {
        let Socket::Listening(listener) = &*self.socket else {
            return Ok(());
        };
        if self.connection.is_some() {
            log::warn!(
                "another front-end waits until this one has left: start a daemon with a socket of \
                 its own for each virtual machine"
            );
            return Ok(());
        }
        match socket::accept(listener) {
            Ok(None) => Ok(()),
            Ok(Some(stream)) => {
                // One front-end at a time; the next one waits in the socket's queue, and the log
                // says so.
                self.reactor.unwatch(listener);
                let watched = self.reactor.watch_once(listener, Token::Listener);
                watched.map_err(host("epoll"))?;
                self.connect(stream)
            }
            Err(error) if is_lasting(&error) => Err(host("a connection")(error)),
            Err(error) => {
                // The host lacks a resource, and the front-end is still waiting.
                log::warn!("cannot accept a front-end now: {error}");
                self.reactor.unwatch(listener);
                self.listen_again = Some(Instant::now() + ACCEPT_PAUSE);
                Ok(())
            }
        }
    }

    fn connect(&mut self, stream: UnixStream) -> Result<(), Error> {
        self.served = true;
        let (server, reactor) = (self.server.clone(), self.reactor.clone());
        let state = self.state.clone();
        match Connection::new(stream, &self.device, server, reactor, state) {
            Ok(connection) => {
                log::info!("a front-end has connected");
                self.connection = Some(connection);
                Ok(())
            }
            Err(error) => self.hang_up(Some(error)),
        }
    }
}

/// How long a loop may sleep that waits for a moment: mostly for ever.
fn until(moment: Option<Instant>) -> EpollTimeout {
    let Some(deadline) = moment else {
        return EpollTimeout::NONE;
    };
    let left = deadline.saturating_duration_since(Instant::now());
    // Rounded up, so that it does not wake too early again and again. A longer time is cut to the
    // maximum.
    let milliseconds = left.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128);
    EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::MAX)
}

/// Whether accept(2) fails because of the socket itself.
fn is_lasting(error: &io::Error) -> bool {
    let lasting = [
        libc::EBADF,
        libc::EINVAL,
        libc::ENOTSOCK,
        libc::EOPNOTSUPP,
        libc::EFAULT,
    ];
    error
        .raw_os_error()
        .is_none_or(|code| lasting.contains(&code))
}

/// Blocks the signals that end the daemon, SIGUSR1, which asks for its status, and SIGHUP, which asks for
/// an upgrade (the end of a terminal or of a login is not the end of the guests), in this thread
/// and all that it starts, so that they arrive as events.
fn handled_signals() -> Result<SigSet, Error> {
    // A write beyond RLIMIT_FSIZE must fail with EFBIG, as the guest expects, instead of killing
    // the daemon.
    set_ignored(Signal::SIGXFSZ, true)?;
    // Whoever starts the daemon may ignore it; then the end of the daemon in its sandbox would not
    // be reported.
    set_ignored(Signal::SIGCHLD, false)?;
    let handled = SigSet::from_iter([
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGHUP,
    ]);
    handled.thread_block().map_err(host("signals"))?;
    Ok(handled)
}

/// Ignores a signal, or restores its default action.
fn set_ignored(number: Signal, ignored: bool) -> Result<(), Error> {
    let action = match ignored {
        true => SigHandler::SigIgn,
        false => SigHandler::SigDfl,
    };
    // SAFETY: neither of them installs a handler.
    unsafe { signal(number, action) }.map_err(host("signals"))?;
    Ok(())
}

/// Waits for a child, and reports how it ended. Errors: its exit status, if that is not 0.
fn waited_for(child: Pid, handled: &SigSet) -> Result<(), Error> {
    let end = sandbox::wait(child, *handled, |_| true).map_err(host("to wait for the daemon"))?;
    match Deaths::default().next(end, Restart::Never, Instant::now()) {
        Next::Exit(0) | Next::Restart { .. } => Ok(()),
        Next::Exit(status) => Err(Error::Daemon(status)),
    }
}

/// Raises the limit of descriptors to the maximum, or to the user's, and returns it.
fn set_limit(limit: Option<u64>) -> Result<u64, Error> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(host("its limits"))?;
    let wanted = limit.unwrap_or(most);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, most.max(wanted)).map_err(|error| Error::Limit {
        limit: wanted,
        error,
    })?;
    Ok(wanted)
}

/// How many of all descriptors the guest's files may have: some are the daemon's own, the front-end
/// sends others, and each request under way may need some for a moment.
fn descriptor_budget(limit: u64) -> usize {
    usize::try_from(limit - (limit / 8).clamp(40, 256)).unwrap_or(usize::MAX)
}
