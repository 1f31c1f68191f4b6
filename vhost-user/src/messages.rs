//! SET_LOG_FD, the message that `vhost` does not know.

use std::fs::File;
use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recv, recvmsg, sendmsg};
use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{Error, Result};

use crate::device::Device;

const SET_LOG_FD: u32 = FrontendReq::SET_LOG_FD as u32;
/// Bytes of a header: request, flags and the payload's size, each a u32 in the host's byte order.
const HEADER: usize = 12;
/// The flags: the protocol's version, and whether an acknowledgement is asked for or sent.
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// As many descriptors as `vhost` accepts.
const MOST_FILES: usize = 32;

/// Whether the next message is SET_LOG_FD. Takes nothing from the socket, which is readable.
pub(crate) fn is_set_log_fd(socket: BorrowedFd<'_>) -> bool {
    let mut request = [0; size_of::<u32>()];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let length = recv(socket.as_raw_fd(), &mut request, flags);
    length == Ok(request.len()) && u32::from_ne_bytes(request) == SET_LOG_FD
}

/// Takes the message and carries it out. Errors: ReqHandlerError if it was refused; otherwise the
/// connection cannot go on.
pub(crate) fn set_log_fd(socket: BorrowedFd<'_>, device: &Device) -> Result<()> {
    let (header, mut files) = receive(socket)?;
    let [_, flags, size] = header;
    if flags & !NEED_REPLY != VERSION || size != 0 {
        return Err(Error::InvalidMessage);
    }
    let (Some(file), None) = (files.pop(), files.pop()) else {
        return Err(Error::IncorrectFds);
    };
    let result = device.set_log_fd(file).map_err(Error::ReqHandlerError);
    if flags & NEED_REPLY != 0 && device.acknowledges() {
        acknowledge(socket, result.is_err())?;
    }
    result
}

fn receive(socket: BorrowedFd<'_>) -> Result<([u32; 3], Vec<File>)> {
    let mut bytes = [0; HEADER];
    let mut space = cmsg_space!([RawFd; MOST_FILES]);
    let mut pieces = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_WAITALL;
    let received = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut pieces, Some(&mut space), flags)
        .map_err(broken)?;
    let mut files = Vec::new();
    for message in received.cmsgs().map_err(broken)? {
        if let ControlMessageOwned::ScmRights(fds) = message {
            for fd in fds {
                // SAFETY: the kernel has just made it for this process, and nobody else knows of it.
                files.push(unsafe { OwnedFd::from_raw_fd(fd) }.into());
            }
        }
    }
    if received.bytes != HEADER {
        return Err(Error::Disconnected);
    }
    let field = |at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Ok(([field(0), field(4), field(8)], files))
}

fn acknowledge(socket: BorrowedFd<'_>, refused: bool) -> Result<()> {
    let payload = u64::from(refused).to_ne_bytes();
    let header = [SET_LOG_FD, VERSION | REPLY, payload.len() as u32].map(u32::to_ne_bytes);
    let message = [header.as_flattened(), &payload];
    sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &message.map(IoSlice::new),
        &[],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map(drop)
    .map_err(broken)
}

fn broken(error: nix::Error) -> Error {
    Error::SocketBroken(io::Error::from(error))
}
