//! The socket to which the front-end connects.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat, umask};
use nix::unistd::{Gid, Group, fchownat};

use crate::export::sys::ProcPath;

/// How long the path of a socket may be: `sockaddr_un` has a byte more, for the NUL (unix(7)).
const PATH_MAX: usize = 107;

/// Why there is no socket to serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process listens there.
    #[error("{0} is in use by another process: stop it, or choose another --socket")]
    InUse(PathBuf),
    /// A file of another kind is there.
    #[error("{0} exists and is not a socket: remove it, or choose another --socket")]
    NotASocket(PathBuf),
    /// The socket cannot be created.
    #[error("cannot listen on {path}: {error}; choose another --socket")]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The path is too long for a socket.
    #[error(
        "cannot listen on {path}: a socket's path has at most {PATH_MAX} bytes, and this one {}; \
         choose another --socket",
        path.as_os_str().len()
    )]
    TooLong {
        /// Where.
        path: PathBuf,
    },
    /// There is no such group.
    #[error("there is no group {0}: give --socket-group a name or a number of this host")]
    NoGroup(String),
    /// The group cannot get the socket.
    #[error(
        "cannot give {path} to the group {group}: {error}; give --socket-group one that this user \
         is in"
    )]
    Group {
        /// The socket.
        path: PathBuf,
        /// What was asked for.
        group: String,
        /// Why not.
        error: Errno,
    },
    /// The inherited descriptor cannot be used.
    #[error("descriptor {fd} is not a UNIX stream socket ({error}): check --fd")]
    Inherited {
        /// Its number.
        fd: RawFd,
        /// What the kernel says of it.
        error: io::Error,
    },
}

/// A source of front-ends.
#[derive(Debug)]
pub enum Socket {
    /// Front-ends connect here, one after the other.
    Listening(UnixListener),
    /// The only front-end; taken when it is served.
    Connected(Option<UnixStream>),
}

/// The file of a socket that was created here. Dropping it, before the socket, removes the file, unless
/// another file has its name by then.
#[derive(Debug)]
pub struct SocketFile {
    /// None if another process removes the file.
    path: Option<PathBuf>,
    /// Its device and its inode number, which no other file can have as long as the socket is open.
    identity: (u64, u64),
}

impl Socket {
    /// Listens on `path`, where only this user may connect, and with `group` (a name or a number)
    /// also its members. A socket on which nobody listens any more is replaced.
    pub fn bind(path: &Path, group: Option<&str>) -> Result<(Socket, SocketFile), Error> {
        let failed = |error| Error::Bind {
            path: path.into(),
            error,
        };
        if path.as_os_str().len() > PATH_MAX {
            return Err(Error::TooLong { path: path.into() });
        }
        let group = match group {
            Some(name) => Some((name, gid_of(name)?)),
            None => None,
        };
        let listener = match bind_private(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                bind_private(path).map_err(failed)?
            }
            result => result.map_err(failed)?,
        };
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let bound = open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let found = fstat(&bound).map_err(|error| failed(error.into()))?;
        let file = SocketFile {
            identity: (found.st_dev, found.st_ino),
            path: Some(path.into()),
        };
        if let Some((name, gid)) = group {
            open_to(&bound, gid).map_err(|error| Error::Group {
                path: path.into(),
                group: name.into(),
                error,
            })?;
        }
        Ok((Socket::listening(listener).map_err(failed)?, file))
    }

    /// Takes over an inherited socket. Errors: `fd` is not open, or not a socket.
    ///
    /// # Safety
    /// If `fd` is an open socket, nothing else in this process owns it.
    pub unsafe fn inherited(fd: RawFd) -> Result<Socket, Error> {
        let failed = |error: io::Error| Error::Inherited { fd, error };
        let listens = is_listening(fd).map_err(|error| failed(error.into()))?;
        // SAFETY: a socket is open there, and by this function's contract nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|error| failed(error.into()))?;
        Socket::of(fd, listens).map_err(failed)
    }

    /// The socket that the program before has served.
    pub fn handed_over(fd: OwnedFd) -> io::Result<Socket> {
        let listens = is_listening(fd.as_raw_fd())?;
        Socket::of(fd, listens)
    }

    fn of(fd: OwnedFd, listens: bool) -> io::Result<Socket> {
        if listens {
            Socket::listening(fd.into())
        } else {
            let stream = UnixStream::from(fd);
            stream.set_nonblocking(false)?;
            Ok(Socket::Connected(Some(stream)))
        }
    }

    /// The number of its descriptor; None if it is closed.
    pub fn number(&self) -> Option<RawFd> {
        match self {
            Socket::Listening(listener) => Some(listener.as_raw_fd()),
            Socket::Connected(stream) => stream.as_ref().map(AsRawFd::as_raw_fd),
        }
    }

    fn listening(listener: UnixListener) -> io::Result<Socket> {
        // The loop accepts when someone waits, who may be gone by then.
        listener.set_nonblocking(true)?;
        Ok(Socket::Listening(listener))
    }
}

/// The next front-end, unless it is gone.
pub fn accept(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    match listener.accept() {
        Ok((stream, _)) => {
            stream.set_nonblocking(false)?;
            Ok(Some(stream))
        }
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock
            | io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionAborted => Ok(None),
            _ => Err(error),
        },
    }
}

/// Whether the socket with the number `fd` listens. Errors: those of getsockopt(2); EBADF if nothing is
/// open there, ENOTSOCK if it is not a socket.
fn is_listening(fd: RawFd) -> Result<bool, Errno> {
    let mut listens: libc::c_int = 0;
    let mut len = size_of_val(&listens) as libc::socklen_t;
    // SAFETY: the call takes any number for a descriptor, and writes `listens`, which has `len` bytes, and
    // `len`.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            (&raw mut listens).cast(),
            &mut len,
        )
    };
    Errno::result(result)?;
    Ok(listens != 0)
}

/// Binds a socket to which only this user has access from the first moment on, whatever the umask
/// was. No other thread may create files meanwhile.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let before = umask(Mode::S_IXUSR | Mode::S_IRWXG | Mode::S_IRWXO);
    let listener = UnixListener::bind(path);
    umask(before);
    listener
}

/// The number of a group that is given by name or by number.
fn gid_of(group: &str) -> Result<Gid, Error> {
    match Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid),
        // The largest number means "no change" to chown(2).
        _ => match group.parse() {
            Ok(number) if number != u32::MAX => Ok(Gid::from_raw(number)),
            _ => Err(Error::NoGroup(group.into())),
        },
    }
}

impl SocketFile {
    /// The file of the socket that the program before has made.
    pub fn handed_over(path: &Path, identity: (u64, u64)) -> SocketFile {
        SocketFile {
            path: Some(path.into()),
            identity,
        }
    }

    /// Its device and its inode number.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Leaves the file to another process, which removes it.
    pub fn leave(mut self) {
        self.path = None;
    }
}

/// Lets the members of a group connect. The file gets the group first and then its mode: in between
/// fewer have access, never more. Errors: those of fchownat(2) and fchmodat(2).
fn open_to(file: &OwnedFd, group: Gid) -> Result<(), Errno> {
    fchownat(file, c"", None, Some(group), AtFlags::AT_EMPTY_PATH)?;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR | Mode::S_IRGRP | Mode::S_IWGRP;
    let path = ProcPath::new(file.as_fd());
    fchmodat(
        AT_FDCWD,
        path.as_c_str(),
        mode,
        FchmodatFlags::FollowSymlink,
    )
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Some(path) = &self.path else { return };
        // Another daemon may have put its own there meanwhile.
        let ours = fs::symlink_metadata(path)
            .is_ok_and(|there| (there.dev(), there.ino()) == self.identity);
        if ours {
            if let Err(error) = fs::remove_file(path) {
                log::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

/// Removes the socket file of a process that is gone.
fn remove_stale(path: &Path) -> Result<(), Error> {
    let failed = |error| Error::Bind {
        path: path.into(),
        error,
    };
    if !fs::symlink_metadata(path)
        .map_err(failed)?
        .file_type()
        .is_socket()
    {
        return Err(Error::NotASocket(path.into()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            log::info!(
                "replacing the socket {} of a process that is gone",
                path.display()
            );
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(_) => Err(Error::InUse(path.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_file_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let (_socket, file) = Socket::bind(&path, None).unwrap();
        fs::remove_file(&path).unwrap();
        let (_other, others) = Socket::bind(&path, None).unwrap();
        drop(file);
        assert!(path.exists());
        drop(others);
        assert!(!path.exists());
    }
}
