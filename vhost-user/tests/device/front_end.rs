//! The front-end's messages, put together by hand as the specification has them: what the back-end
//! says is held against a second reading of it.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
}

pub mod feature {
    pub const LOG_ALL: u64 = 1 << 26;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
}

pub mod protocol_feature {
    pub const MQ: u64 = 1 << 0;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const CONFIG: u64 = 1 << 9;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const DEVICE_STATE: u64 = 1 << 19;
}

const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// The request was answered with a failure.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused;

/// The front-end's end of the socket.
pub struct FrontEnd {
    socket: UnixStream,
    /// Whether REPLY_ACK was agreed on.
    pub acknowledged: bool,
}

impl FrontEnd {
    pub fn new(socket: UnixStream) -> FrontEnd {
        socket.set_nonblocking(true).unwrap();
        FrontEnd {
            socket,
            acknowledged: false,
        }
    }

    /// Sends a message; one that has no answer of its own asks for an acknowledgement if it can.
    pub fn send(&self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        let flags = VERSION | if self.acknowledged { NEED_REPLY } else { 0 };
        self.send_raw(request, flags, payload.len() as u32, payload, fds);
    }

    pub fn send_raw(
        &self,
        request: u32,
        flags: u32,
        size: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) {
        let header: Vec<u8> = [request, flags, size]
            .iter()
            .flat_map(|field| field.to_ne_bytes())
            .collect();
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let sent = sendmsg::<UnixAddr>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&header), IoSlice::new(payload)],
            if fds.is_empty() { &[] } else { &rights },
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        assert_eq!(sent.unwrap(), header.len() + payload.len());
    }

    /// The answer to `request`, if it is there.
    #[track_caller]
    pub fn reply(&mut self, request: u32) -> Option<Vec<u8>> {
        let (payload, file) = self.reply_with_file(request)?;
        assert!(file.is_none());
        Some(payload)
    }

    /// The same with a descriptor.
    #[track_caller]
    pub fn reply_with_file(&mut self, request: u32) -> Option<(Vec<u8>, Option<File>)> {
        let mut header = [0; 12];
        let mut space = cmsg_space!(RawFd);
        let mut pieces = [IoSliceMut::new(&mut header)];
        let received = recvmsg::<UnixAddr>(
            self.socket.as_raw_fd(),
            &mut pieces,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        );
        let mut file = None;
        match received {
            Err(Errno::EAGAIN | Errno::ECONNRESET) => return None,
            Err(error) => panic!("{error}"),
            Ok(received) if received.bytes == 0 => return None,
            Ok(received) => {
                for message in received.cmsgs().unwrap() {
                    if let ControlMessageOwned::ScmRights(fds) = message {
                        assert_eq!(fds.len(), 1);
                        // SAFETY: the kernel has just made it for this process.
                        file = Some(unsafe { File::from_raw_fd(fds[0]) });
                    }
                }
                assert_eq!(received.bytes, header.len());
            }
        }
        let field = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(field(0), request);
        assert_eq!(field(4), VERSION | REPLY);
        let mut payload = vec![0; field(8) as usize];
        self.socket.read_exact(&mut payload).unwrap();
        Some((payload, file))
    }
}
