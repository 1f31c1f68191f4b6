//! The front-end's end of the socket after another process has left it.
//!
//! `vhost` remembers what front-end and back-end have agreed on, and learns of it from messages only.
//! So it is told again, over a socket of its own, which is then replaced by the real one.

use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{BackendReqHandler, VhostUserBackendReqHandler};

use crate::error::Error;

/// The protocol's version, which is the only flag of a message that asks for no acknowledgement.
const VERSION: u32 = 1;

/// Serves `device` at `socket`, after these features were agreed on: the device is told, too. Errors:
/// the device does not have them; the sockets cannot be used.
pub(crate) fn resume<D: VhostUserBackendReqHandler>(
    socket: BorrowedFd<'_>,
    device: Arc<D>,
    features: u64,
    protocol_features: u64,
) -> Result<BackendReqHandler<D>, Error> {
    let (mut front_end, back_end) = UnixStream::pair().map_err(Error::Socket)?;
    let mut messages = BackendReqHandler::from_stream(back_end, device);
    let said = [
        // Acknowledgements work only once the features were asked for.
        (FrontendReq::GET_FEATURES, None),
        (FrontendReq::SET_PROTOCOL_FEATURES, Some(protocol_features)),
        (FrontendReq::SET_FEATURES, Some(features)),
    ];
    for (request, payload) in said {
        let payload = payload.map(u64::to_ne_bytes);
        let payload = payload.as_ref().map_or(&[][..], |bytes| &bytes[..]);
        let header = [request as u32, VERSION, payload.len() as u32];
        let mut message: Vec<u8> = header.into_iter().flat_map(u32::to_ne_bytes).collect();
        message.extend_from_slice(payload);
        front_end.write_all(&message).map_err(Error::Socket)?;
        messages.handle_request()?;
    }
    replace(messages.as_raw_fd(), socket).map_err(|error| Error::Socket(error.into()))?;
    Ok(messages)
}

/// Makes the descriptor `old` one of `socket`. Errors: those of dup3(2).
fn replace(old: RawFd, socket: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: dup3 accesses no memory. `old` is open and belongs to `messages` of the only caller, and
    // stays open. `messages` asserts nothing of the file behind it.
    let result = unsafe { libc::dup3(socket.as_raw_fd(), old, libc::O_CLOEXEC) };
    Errno::result(result).map(drop)
}
