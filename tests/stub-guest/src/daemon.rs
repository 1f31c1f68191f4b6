//! Starts the back-end for a test on a fresh directory, and ends it whatever happens.
//!
//! By default the helper itself binds the socket and hands it over (`--fd`): a connection then
//! waits in the socket's backlog until the daemon is ready, and no test has to. With
//! [`Launch::by_path`] the daemon binds it, and [`Daemon::stream`] waits for that by inotify.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::files::Attach;
use crate::front_end::{FrontEnd, Options, poll_for};

/// The longest that the daemon may take to listen or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where systemd's first socket is (sd_listen_fds(3)).
const LISTEN_FDS_START: i32 = 3;

/// How to start the daemon.
#[derive(Debug)]
pub struct Launch {
    binary: PathBuf,
    args: Vec<OsString>,
    socket: Handover,
    prelude: String,
    share: Option<PathBuf>,
}

/// How the daemon comes by its socket.
#[derive(Debug)]
enum Handover {
    /// `--fd N`: one that listens.
    Listening,
    /// `--fd N`: one that is connected.
    Connected(OwnedFd),
    /// An option with a path: it binds the socket itself. None: a path of our choice.
    Path(&'static str, Option<PathBuf>),
    /// As systemd does: descriptor 3 and two variables.
    Systemd,
    /// As systemd does, from descriptor 3 on.
    Stored(Vec<OwnedFd>),
}

impl Launch {
    /// Starts `binary` (in an integration test `env!("CARGO_BIN_EXE_vhost-user-9p")`) on a fresh
    /// directory and a socket bound beforehand.
    pub fn new(binary: impl Into<PathBuf>) -> Launch {
        Launch {
            binary: binary.into(),
            args: Vec::new(),
            socket: Handover::Listening,
            prelude: String::new(),
            share: None,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Launch {
        self.args.push(arg.as_ref().into());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Launch {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().into()));
        self
    }

    /// Lets the daemon bind its socket itself (`--socket`).
    pub fn by_path(mut self) -> Launch {
        self.socket = Handover::Path("--socket", None);
        self
    }

    /// Lets the daemon bind its socket itself, here, as this option says.
    pub fn by_path_at(mut self, option: &'static str, path: impl Into<PathBuf>) -> Launch {
        self.socket = Handover::Path(option, Some(path.into()));
        self
    }

    /// Hands over a socket that is connected already.
    pub fn connected(mut self, socket: OwnedFd) -> Launch {
        self.socket = Handover::Connected(socket);
        self
    }

    /// Hands the socket over as systemd's socket activation does.
    pub fn by_systemd(mut self) -> Launch {
        self.socket = Handover::Systemd;
        // The daemon's own number, which the shell has until it becomes the daemon.
        self.prelude("export LISTEN_PID=$$ LISTEN_FDS=1")
    }

    /// Hands over what an earlier daemon has left in systemd's store, by its names.
    pub fn by_systemd_store(mut self, stored: Vec<(String, OwnedFd)>) -> Launch {
        let (names, fds): (Vec<_>, Vec<_>) = stored.into_iter().unzip();
        let (count, names) = (fds.len(), names.join(":"));
        self.socket = Handover::Stored(fds);
        self.prelude(&format!(
            "export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names}"
        ))
    }

    /// Runs a shell command in the process that becomes the daemon, after those before.
    pub fn prelude(mut self, command: &str) -> Launch {
        self.prelude.push_str(command);
        self.prelude.push('\n');
        self
    }

    /// Shares this directory and not a fresh one.
    pub fn share(mut self, directory: impl Into<PathBuf>) -> Launch {
        self.share = Some(directory.into());
        self
    }

    /// Starts the daemon. It is killed when the thread that calls this ends.
    pub fn start(self) -> Result<Daemon> {
        let directory = TempDir::new().map_err(Error::io("temporary directory"))?;
        let share = self.share.unwrap_or_else(|| directory.path().join("share"));
        fs::create_dir_all(&share).map_err(Error::io("shared directory"))?;
        let mut socket = directory.path().join("socket");
        let log = directory.path().join("stderr");
        let stderr = File::create(&log).map_err(Error::io("file for stderr"))?;

        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("{}\nexec \"$0\" \"$@\"", self.prelude))
            .arg(&self.binary);
        if self.prelude.is_empty() {
            command = Command::new(&self.binary);
        }
        command.arg("--shared-dir").arg(&share).args(&self.args);
        if cfg!(feature = "tsan") {
            // The sanitizer makes system calls of its own, and reads /proc to name what it reports.
            for (option, none) in [
                ("--sandbox", "--sandbox=none"),
                ("--seccomp", "--seccomp=none"),
            ] {
                let is_given = |arg: &OsString| arg.as_bytes().starts_with(option.as_bytes());
                if !self.args.iter().any(is_given) {
                    command.arg(none);
                }
            }
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let systemd = matches!(self.socket, Handover::Systemd);
        let mut inherited = None;
        let mut stored = Vec::new();
        let mut numbers = Vec::new();
        match self.socket {
            Handover::Path(option, path) => {
                socket = path.unwrap_or(socket);
                command.arg(option).arg(&socket);
            }
            Handover::Connected(fd) => inherited = Some(fd),
            Handover::Stored(fds) => stored = fds,
            Handover::Listening | Handover::Systemd => {
                let listener = UnixListener::bind(&socket).map_err(Error::io("bind"))?;
                inherited = Some(listener.into());
            }
        }
        if let Some(fd) = &inherited {
            let fd = fd.as_raw_fd();
            if systemd {
                numbers.push((fd, LISTEN_FDS_START));
            } else {
                command.arg("--fd").arg(fd.to_string());
                numbers.push((fd, fd));
            }
        }
        let places = stored.iter().zip(LISTEN_FDS_START..);
        numbers.extend(places.map(|(fd, to)| (fd.as_raw_fd(), to)));
        // SAFETY: between fork and exec the closure makes system calls and nothing else.
        unsafe { command.pre_exec(move || prepare_child(&numbers)) };
        let child = command
            .spawn()
            .map_err(Error::io("the daemon does not start"))?;
        Ok(Daemon {
            child,
            ended: false,
            depth: None,
            killed: None,
            socket,
            share,
            log,
            directory,
        })
    }
}

/// Sees to it that the child does not outlive its parent, and that it has each descriptor under its second
/// number.
fn prepare_child(inherited: &[(i32, i32)]) -> io::Result<()> {
    /// Above all numbers that are used.
    const ABOVE: i32 = 500;
    let check = |result| match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    };
    // SAFETY: a system call on plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    if let [(from, to)] = inherited {
        // SAFETY: system calls on plain numbers. `from` is open, since its owner waits for the
        // spawn; what `to` was in the child is of no use there.
        return check(unsafe {
            match from == to {
                true => libc::fcntl(*from, libc::F_SETFD, 0),
                false => libc::dup2(*from, *to),
            }
        })
        .map(drop);
    }
    for (from, to) in inherited {
        // SAFETY: as above.
        check(unsafe { libc::dup2(*from, ABOVE + to) })?;
    }
    for (_, to) in inherited {
        // SAFETY: as above, and `ABOVE + to` was opened here.
        check(unsafe { libc::dup2(ABOVE + to, *to) })?;
        // SAFETY: as above.
        check(unsafe { libc::close(ABOVE + to) })?;
    }
    Ok(())
}

/// A running daemon. Dropping it sends SIGTERM and asserts that it exits with 0.
pub struct Daemon {
    child: Child,
    ended: bool,
    /// How many processes there are, from the one that was started to the one that serves.
    depth: Option<usize>,
    /// The process that was killed last.
    killed: Option<u32>,
    socket: PathBuf,
    share: PathBuf,
    log: PathBuf,
    /// Holds share, socket and log; goes after the daemon.
    directory: TempDir,
}

impl Daemon {
    /// Starts `binary` on a fresh directory.
    pub fn start(binary: impl Into<PathBuf>) -> Result<Daemon> {
        Launch::new(binary).start()
    }

    /// The daemon's binary beside the current executable, as cargo lays them out.
    pub fn binary() -> PathBuf {
        let name = "vhost-user-9p";
        let executable = std::env::current_exe().unwrap_or_default();
        let beside = executable
            .ancestors()
            .skip(1)
            .take(2)
            .map(|directory| directory.join(name));
        beside
            .into_iter()
            .find(|path| path.is_file())
            .unwrap_or_else(|| name.into())
    }

    /// The directory that is served.
    pub fn share(&self) -> &Path {
        &self.share
    }

    /// A path in the share.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.share.join(name)
    }

    /// The vhost-user socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A directory beside the share, for whatever a test needs outside of it.
    pub fn outside(&self) -> &Path {
        self.directory.path()
    }

    /// The number of the process that was started.
    pub fn first_pid(&self) -> u32 {
        self.child.id()
    }

    /// The number of the process that serves: each of the others waits for its only child.
    pub fn pid(&self) -> u32 {
        let processes = self.processes();
        processes.last().copied().unwrap_or(self.child.id())
    }

    /// The process that was started, its child, and so on.
    fn processes(&self) -> Vec<u32> {
        std::iter::successors(Some(self.child.id()), |pid| child_of(*pid)).collect()
    }

    /// Kills the process that serves (SIGKILL), or the next one if it is dead already. The first one must
    /// have served a request before the first call.
    pub fn kill_server(&mut self) -> Result<()> {
        self.end_server(Signal::SIGKILL)
    }

    /// Lets the process that serves die as if by its own fault, otherwise as [`Daemon::kill_server`].
    pub fn crash_server(&mut self) -> Result<()> {
        self.end_server(Signal::SIGABRT)
    }

    fn end_server(&mut self, signal: Signal) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let processes = self.processes();
            let depth = *self.depth.get_or_insert(processes.len());
            let server = processes.get(depth - 1).copied();
            if let Some(server) = server.filter(|_| self.killed != server) {
                self.killed = Some(server);
                let server = Pid::from_raw(server as i32);
                return kill(server, signal).map_err(Error::io("kill"));
            }
            std::thread::yield_now();
        }
        Err(Error::Timeout("another process that serves"))
    }

    /// What the daemon has written to stderr so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The line of stderr that contains this text, as soon as it is there.
    pub fn said(&self, text: &str) -> Result<String> {
        self.said_often(text, 1)
    }

    /// The last of that many lines of stderr that contain this text, as soon as it is there.
    pub fn said_often(&self, text: &str, times: usize) -> Result<String> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(Error::io("inotify"))?;
        inotify
            .add_watch(&self.log, AddWatchFlags::IN_MODIFY)
            .map_err(Error::io("inotify"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.stderr();
            let mut lines = said.lines().filter(|line| line.contains(text));
            if let Some(line) = lines.nth(times - 1) {
                return Ok(line.to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let modified = &mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
            if poll_for(modified, left)? == 0 {
                return Err(Error::Timeout("line of the daemon's log"));
            }
            let _ = inotify.read_events();
        }
    }

    /// A connection to the daemon, as soon as it listens.
    pub fn stream(&mut self) -> Result<UnixStream> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(Error::io("inotify"))?;
        inotify
            .add_watch(
                self.socket.parent().unwrap_or(self.directory.path()),
                AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO,
            )
            .map_err(Error::io("inotify"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let refused = match UnixStream::connect(&self.socket) {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            let exited = self.child.try_wait().map_err(Error::io("wait"))?;
            if exited.is_some() || Instant::now() > deadline {
                return Err(Error::io("connect to the vhost-user socket")(refused));
            }
            // The socket's name appears when it is bound, a moment before it listens: for that
            // moment the connection is refused, and no event tells of its end.
            let pause = match refused.kind() {
                io::ErrorKind::NotFound => Duration::from_millis(200),
                _ => Duration::from_millis(1),
            };
            poll_for(
                &mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)],
                pause,
            )?;
            let _ = inotify.read_events();
        }
    }

    /// A front-end whose ring runs.
    pub fn front_end(&mut self, options: Options) -> Result<FrontEnd> {
        FrontEnd::new(self.stream()?, options)
    }

    /// A 9P client that has sent nothing yet.
    pub fn client(&mut self) -> Result<Client> {
        self.client_with(Options::default())
    }

    /// A 9P client that has sent nothing yet, over a front-end with these options.
    pub fn client_with(&mut self, options: Options) -> Result<Client> {
        Ok(Client::new(self.front_end(options)?))
    }

    /// A client that has mounted the share, and the fid of its root.
    pub fn mount(&mut self) -> Result<(Client, u32)> {
        let mut client = self.client()?;
        let root = client.mount(&Attach::default())?;
        Ok((client, root))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal).map_err(Error::io("kill"))
    }

    /// Waits for the daemon's end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        wait_for_exit(&self.child, PATIENCE)?;
        self.ended = true;
        self.child.wait().map_err(Error::io("wait"))
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let result = if self.ended {
            None
        } else {
            Some(self.terminate())
        };
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the daemon said:\n{}", self.stderr());
            return;
        }
        match result {
            None => {}
            Some(Ok(status)) => {
                assert!(status.success(), "the daemon: {status}\n{}", self.stderr())
            }
            Some(Err(error)) => panic!(
                "the daemon does not end on SIGTERM: {error}\n{}",
                self.stderr()
            ),
        }
    }
}

fn child_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    children.ok()?.split_whitespace().next()?.parse().ok()
}

/// Waits until a child has ended, without reaping it.
pub fn wait_for_exit(child: &Child, timeout: Duration) -> Result<()> {
    // SAFETY: the call takes plain numbers and returns a descriptor that nobody else owns.
    let pidfd = unsafe {
        match libc::syscall(libc::SYS_pidfd_open, child.id(), 0) {
            -1 => return Err(Error::io("pidfd_open")(io::Error::last_os_error())),
            fd => OwnedFd::from_raw_fd(fd as i32),
        }
    };
    match poll_for(
        &mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)],
        timeout,
    )? {
        0 => Err(Error::Timeout("end of the process")),
        _ => Ok(()),
    }
}
