//! Where the front-end connects.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{getsockopt, sockopt};

/// Why there is no socket to serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A live process listens there.
    #[error("{0} is in use by another process: stop it, or choose another --socket")]
    InUse(PathBuf),
    /// A file of another kind is there.
    #[error("{0} exists and is not a socket: remove it, or choose another --socket")]
    NotASocket(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen on {path}: {error}; choose another --socket")]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The inherited descriptor is of no use.
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
    /// One after the other connects here.
    Listening(Listener),
    /// The one front-end there is; taken when it is served.
    Connected(Option<UnixStream>),
}

/// A listening socket, and the file to remove in the end if it is ours.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    /// Removed with the listener.
    _file: Option<SocketFile>,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl Socket {
    /// Listens on `path`. A socket that nobody listens on any more is replaced.
    pub fn bind(path: &Path) -> Result<Socket, Error> {
        let failed = |error| Error::Bind {
            path: path.into(),
            error,
        };
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path).map_err(failed)?
            }
            result => result.map_err(failed)?,
        };
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let file = SocketFile {
            path: path.into(),
            id: (metadata.dev(), metadata.ino()),
        };
        Ok(Socket::Listening(
            Listener::new(listener, Some(file)).map_err(failed)?,
        ))
    }

    /// Takes over a descriptor that the process was started with.
    pub fn inherited(fd: RawFd) -> Result<Socket, Error> {
        let failed = |error: io::Error| Error::Inherited { fd, error };
        // SAFETY: the number comes from the command line, as the descriptor that is meant for
        // this; the kernel is asked at once whether it is open, and nothing else of the process
        // has opened a descriptor that it would pass for.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let listens = match getsockopt(&fd, sockopt::AcceptConn) {
            Ok(listens) => listens,
            Err(error) => {
                // Not ours to close: it may be closed already, or be something else.
                std::mem::forget(fd);
                return Err(failed(error.into()));
            }
        };
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|error| failed(error.into()))?;
        if listens {
            let listener = Listener::new(fd.into(), None).map_err(failed)?;
            Ok(Socket::Listening(listener))
        } else {
            let stream = UnixStream::from(fd);
            stream.set_nonblocking(false).map_err(failed)?;
            Ok(Socket::Connected(Some(stream)))
        }
    }
}

impl Listener {
    fn new(listener: UnixListener, file: Option<SocketFile>) -> io::Result<Listener> {
        // The loop accepts when there is somebody, who may be gone again by then.
        listener.set_nonblocking(true)?;
        Ok(Listener {
            listener,
            _file: file,
        })
    }

    /// The next front-end, if it is still there.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
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
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another daemon may have put its own there meanwhile.
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.id);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
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
