//! Live upgrade: on SIGHUP the program that is installed now replaces this one, in the same process, and
//! continues with its guest.
//!
//! The server has exited, and left all its descriptors and its state. What is neither, the next
//! program gets by a variable of its environment.

use std::ffi::{CString, OsStr, OsString};
use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::str::FromStr;

use clap::ValueEnum;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::execve;

use crate::export::sys;
use crate::logger;
use crate::sandbox::{Kept, Sandbox, open_descriptors};
use crate::state::{self, Capacity, Claims, Memory};

/// The variable by which a program is told that it continues for another one, or that it is only asked
/// whether it could.
const VARIABLE: &str = "VHOST_USER_9P_UPGRADE";
/// The variable with the path where the next program will be: that of this one, unless it was gone back to.
const PROGRAM: &str = "VHOST_USER_9P_PROGRAM";

/// What a program is told by the one before it.
#[derive(Debug)]
pub enum Told {
    /// Nothing: it was started.
    Nothing,
    /// To say whether it can continue with such a state.
    Check(Format),
    /// To continue.
    Continue(Handover),
}

/// The format of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    version: u32,
    sizes: [usize; 2],
}

/// What the next program needs to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    format: Format,
    /// The files of the state.
    memory: [RawFd; 2],
    /// How its servers enter the sandbox.
    pub kept: Kept,
    /// The socket that was served, unless it is closed.
    pub socket: Option<RawFd>,
    /// The device and the inode number of the socket's file, if it has to be removed at the end.
    pub file: Option<(u64, u64)>,
    /// The program before.
    previous: Previous,
}

/// The program before, to go back to. Its descriptor is not among those that are kept from the servers:
/// the first one that continues closes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Previous {
    fd: RawFd,
    /// Device and inode number.
    identity: (u64, u64),
}

impl Format {
    /// That of the state of a daemon with these limits.
    pub fn of(capacity: &Capacity) -> Format {
        Format {
            version: state::VERSION,
            sizes: capacity.sizes(),
        }
    }
}

fn broken(what: &str) -> io::Error {
    let why = format!("{VARIABLE} does not name {what}");
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Told {
    /// What this program was told. Errors: it makes no sense.
    pub fn from_environment() -> io::Result<Told> {
        match std::env::var(VARIABLE) {
            Err(std::env::VarError::NotPresent) => Ok(Told::Nothing),
            Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            Ok(text) => Fields(&text).told(),
        }
    }

    /// Whether a program that was told this could continue with a state of this format.
    pub fn fits(told: &str, format: Format) -> bool {
        matches!(Fields(told).told(), Ok(Told::Continue(handover)) if handover.format == format)
    }

    /// The number of the socket that a program which told this has served.
    pub fn socket(told: &str) -> Option<RawFd> {
        Fields(told).maybe("socket").ok().flatten()
    }

    /// Whether it was only asked.
    pub fn is_check() -> bool {
        matches!(Told::from_environment(), Ok(Told::Check(_)))
    }
}

/// `name=value` with blanks between, and commas between several values.
struct Fields<'a>(&'a str);

impl Fields<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        let mut fields = self.0.split(' ').filter_map(|field| field.split_once('='));
        fields
            .find(|(found, _)| *found == name)
            .map(|(_, value)| value)
    }

    fn number<T: FromStr>(&self, name: &str) -> io::Result<T> {
        let number = self.text(name).and_then(|value| value.parse().ok());
        number.ok_or_else(|| broken(name))
    }

    fn numbers<T: FromStr>(&self, name: &str) -> io::Result<Vec<T>> {
        let values = self.text(name).ok_or_else(|| broken(name))?.split(',');
        let numbers: Result<_, _> = values.map(str::parse).collect();
        numbers.map_err(|_| broken(name))
    }

    fn two<T: FromStr>(&self, name: &str) -> io::Result<[T; 2]> {
        let numbers = self.numbers(name)?;
        numbers.try_into().map_err(|_| broken(name))
    }

    fn maybe(&self, name: &str) -> io::Result<Option<RawFd>> {
        self.text(name).map(|_| self.number(name)).transpose()
    }

    fn previous(&self) -> io::Result<Previous> {
        let fd = self.number("previous")?;
        let [device, inode] = self.two("program")?;
        Ok(Previous {
            fd,
            identity: (device, inode),
        })
    }

    fn told(&self) -> io::Result<Told> {
        let format = Format {
            version: self.number("version")?,
            sizes: self.two("sizes")?,
        };
        let Some(sandbox) = self.text("sandbox") else {
            return Ok(Told::Check(format));
        };
        Ok(Told::Continue(Handover {
            format,
            memory: self.two("memory")?,
            kept: Kept {
                sandbox: Sandbox::from_str(sandbox, false).map_err(|_| broken("sandbox"))?,
                share: self.number("share")?,
                mounts: self.maybe("mounts")?,
                users: self.maybe("users")?,
                open: self.numbers("open")?,
            },
            socket: self.maybe("socket")?,
            file: match self.text("file") {
                Some(_) => self
                    .two("file")
                    .map(|[device, inode]| Some((device, inode)))?,
                None => None,
            },
            previous: self.previous()?,
        }))
    }
}

impl Display for Format {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [tables, device] = self.sizes;
        write!(f, "version={} sizes={tables},{device}", self.version)
    }
}

impl Display for Handover {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [tables, device] = self.memory;
        let sandbox = self.kept.sandbox.to_possible_value();
        let sandbox = sandbox.as_ref().map_or("", |value| value.get_name());
        write!(
            f,
            "{} memory={tables},{device} sandbox={sandbox} share={}",
            self.format, self.kept.share
        )?;
        for (name, fd) in [
            ("mounts", self.kept.mounts),
            ("users", self.kept.users),
            ("socket", self.socket),
        ] {
            if let Some(fd) = fd {
                write!(f, " {name}={fd}")?;
            }
        }
        if let Some((device, inode)) = self.file {
            write!(f, " file={device},{inode}")?;
        }
        let Previous {
            fd,
            identity: (device, inode),
        } = self.previous;
        write!(f, " previous={fd} program={device},{inode} open=")?;
        for (index, fd) in self.kept.open.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(f, "{separator}{fd}")?;
        }
        Ok(())
    }
}

impl Handover {
    /// The state, in memory that the two programs have in common. Errors: it is of another format, or there
    /// is none.
    pub fn memory(&self, capacity: &Capacity, claims: &mut Claims) -> Result<Memory, state::Error> {
        let expected = Format::of(capacity);
        if self.format.version != expected.version {
            return Err(state::Error::Version(self.format.version));
        }
        if self.format != expected {
            return Err(state::Error::Damaged("it has another size"));
        }
        let [tables, device] = self.memory;
        let files = [claims.take(tables)?, claims.take(device)?];
        capacity.mapped(files.map(File::from))
    }

    /// The program before.
    pub fn previous(&self) -> Previous {
        self.previous
    }
}

impl Previous {
    /// That of this program, if there was one.
    pub fn from_environment() -> Option<Previous> {
        Fields(&std::env::var(VARIABLE).ok()?).previous().ok()
    }

    /// Whether it can still go on: no server has taken over yet.
    pub fn is_pending(&self) -> bool {
        sys::identity(self.fd) == Some(self.identity)
    }

    /// Becomes it again, and says so. Returns if that is impossible.
    pub fn go_back(&self) {
        if !self.is_pending() {
            return;
        }
        // The log may not have begun.
        logger::complain("this program cannot continue: the one before goes on");
        // As it has written it, even if this program does not understand all of it.
        let text = std::env::var(VARIABLE).unwrap_or_default();
        let told = text.replacen(&format!(" previous={} ", self.fd), " previous=-1 ", 1);
        let program = std::env::var_os(PROGRAM).unwrap_or_default();
        let error = become_program(format!("/proc/self/fd/{}", self.fd).into(), program, told);
        logger::complain(format_args!("nor can that one: {error}"));
    }
}

/// The program that this process was started with, by the path where the next one will be.
#[derive(Debug)]
pub struct Program(PathBuf);

impl Program {
    /// Call it before another file can have that path.
    pub fn running() -> io::Result<Program> {
        match (Told::from_environment(), std::env::var_os(PROGRAM)) {
            (Ok(Told::Continue(_)), Some(path)) => Ok(Program(path.into())),
            _ => std::env::current_exe().map(Program),
        }
    }

    /// Whether the program that is installed now can continue with such a state, with the same options.
    /// Errors: why not.
    pub fn check(&self, format: Format) -> Result<(), String> {
        let checked = Command::new(&self.0)
            .args(std::env::args_os().skip(1))
            .env(VARIABLE, format.to_string())
            .stdin(Stdio::null())
            .output();
        match checked {
            Err(error) => Err(error.to_string()),
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                match said.trim().lines().last() {
                    Some(last) => Err(last.to_owned()),
                    None => Err(output.status.to_string()),
                }
            }
        }
    }

    /// What another program is told that takes everything out of systemd's store. It cannot go back.
    pub fn told_by_store(
        format: Format,
        memory: [RawFd; 2],
        kept: Kept,
        socket: Option<RawFd>,
        file: Option<(u64, u64)>,
    ) -> String {
        let previous = Previous {
            fd: -1,
            identity: (0, 0),
        };
        let handover = Handover {
            format,
            memory,
            kept,
            socket,
            file,
            previous,
        };
        handover.to_string()
    }

    /// Continues with what the program before has left in systemd's store. Returns why that is impossible.
    pub fn continue_from_store(&self, told: String) -> io::Error {
        become_program(self.0.clone(), self.0.clone().into(), told)
    }

    /// Becomes the program that is installed now, which continues. Returns why that is impossible.
    pub fn replace(
        &self,
        format: Format,
        memory: [RawFd; 2],
        kept: Kept,
        socket: Option<RawFd>,
        file: Option<(u64, u64)>,
    ) -> io::Error {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let this = match open("/proc/self/exe", flags, Mode::empty()) {
            Ok(this) => this,
            Err(error) => return error.into(),
        };
        let Some(identity) = sys::identity(this.as_raw_fd()) else {
            return io::ErrorKind::NotFound.into();
        };
        let handover = Handover {
            format,
            memory,
            kept,
            socket,
            file,
            previous: Previous {
                fd: this.as_raw_fd(),
                identity,
            },
        };
        become_program(self.0.clone(), self.0.clone().into(), handover.to_string())
    }
}

/// The descriptors that this program was given, which it closes when it becomes another one, unless it
/// hands them over. Errors: those of /proc.
///
/// # Safety
///
/// Nothing in this process owns a descriptor yet, except for the first three.
pub unsafe fn given() -> io::Result<Claims> {
    let given = set_close_on_exec(true)?;
    // SAFETY: by the contract of this function, and there is no other process yet.
    Ok(unsafe { Claims::new(given) })
}

/// Returns which descriptors this concerns: all but the first three.
fn set_close_on_exec(close: bool) -> io::Result<Vec<RawFd>> {
    let mut open = open_descriptors()?;
    open.retain(|fd| *fd > 2);
    for fd in &open {
        sys::set_close_on_exec(*fd, close)?;
    }
    Ok(open)
}

/// Becomes the program at `path`, which is told where the next one will be. Returns only if that is
/// impossible.
fn become_program(path: PathBuf, next: OsString, told: String) -> io::Error {
    let text = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::from);
    let become_it = || {
        let arguments: Vec<_> = std::env::args_os().map(text).collect::<Result<_, _>>()?;
        let mut variables = Vec::new();
        let told = [
            (PROGRAM.into(), next),
            (VARIABLE.into(), told.clone().into()),
        ];
        let kept = std::env::vars_os().filter(|(name, _)| name != VARIABLE && name != PROGRAM);
        for (name, value) in kept.chain(told) {
            variables.push(text([name, value].join(OsStr::new("=")))?);
        }
        let path = text(path.into())?;
        set_close_on_exec(false)?;
        // Signals stay blocked, so that none is lost.
        execve(&path, &arguments, &variables).map_err(io::Error::from)
    };
    let Err(error) = become_it();
    let _ = set_close_on_exec(true);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handover() -> Handover {
        Handover {
            format: Format {
                version: 7,
                sizes: [1 << 40, 4096],
            },
            memory: [5, 6],
            kept: Kept {
                sandbox: Sandbox::Namespace,
                share: 7,
                mounts: Some(8),
                users: None,
                open: vec![0, 1, 2, 5],
            },
            socket: Some(3),
            file: Some((4, u64::MAX)),
            previous: Previous {
                fd: 9,
                identity: (u64::MAX, 1),
            },
        }
    }

    #[test]
    fn what_is_handed_over_is_read_again() {
        let text = handover().to_string();
        assert!(matches!(Fields(&text).told(), Ok(Told::Continue(read)) if read == handover()));
        let format = handover().format;
        let text = format.to_string();
        assert!(matches!(Fields(&text).told(), Ok(Told::Check(read)) if read == format));
    }

    #[test]
    fn what_is_left_out_is_named() {
        let text = handover().to_string();
        let fields: Vec<_> = text.split(' ').collect();
        for missing in ["version", "memory", "share", "previous", "open"] {
            let rest: Vec<_> = fields
                .iter()
                .copied()
                .filter(|field| !field.starts_with(missing))
                .collect();
            let error = Fields(&rest.join(" ")).told().unwrap_err();
            assert!(error.to_string().contains(missing), "{error}");
        }
    }
}
