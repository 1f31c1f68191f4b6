//! The control socket: vhost-user messages as a front-end sends them (QEMU docs/interop/vhost-user).
//!
//! ```text
//! request[4] flags[4] size[4] payload[size]      fds beside it as SCM_RIGHTS
//! ```
//! These bytes are put together here and not by the crate `vhost`, because every wait needs a
//! deadline, wrong messages must be sendable, and a second reading of the specification is a witness.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::pipe2;

use crate::error::{Error, Result};
use crate::memory::RegionInfo;

/// Request numbers (`VHOST_USER_*`).
#[allow(missing_docs, reason = "names of the specification")]
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
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
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
}

/// Protocol feature bits (`VHOST_USER_PROTOCOL_F_*`).
#[allow(missing_docs, reason = "names of the specification")]
pub mod protocol_feature {
    pub const MQ: u64 = 1 << 0;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const CONFIG: u64 = 1 << 9;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const DEVICE_STATE: u64 = 1 << 19;
}

const HEADER_LEN: usize = 12;
const VERSION: u32 = 1;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;
/// In the payload of the vring fd messages: no fd comes with it.
const NO_FD: u64 = 1 << 8;
/// No reply of this device is larger.
const MAX_REPLY: u32 = 0x1000;

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).map_err(Error::io("pipe"))
}

/// The front-end's end of the vhost-user socket.
pub struct Control {
    stream: UnixStream,
    /// Whether REPLY_ACK is negotiated: then every set message waits for its acknowledgement.
    reply_ack: bool,
    /// The ring that messages about a ring are about.
    ring: u8,
}

impl Control {
    /// Takes a connected socket. No wait for a reply lasts longer than `timeout`.
    pub fn new(stream: UnixStream, timeout: Duration) -> Result<Control> {
        stream
            .set_read_timeout(Some(timeout))
            .map_err(Error::io("set_read_timeout"))?;
        stream
            .set_write_timeout(Some(timeout))
            .map_err(Error::io("set_write_timeout"))?;
        Ok(Control {
            stream,
            reply_ack: false,
            ring: 0,
        })
    }

    /// Says which ring is used, instead of ring 0.
    pub fn set_ring(&mut self, ring: u8) {
        self.ring = ring;
    }

    /// Ends the connection in both directions, as the end of this process would.
    pub fn hang_up(&self) -> Result<()> {
        self.stream
            .shutdown(Shutdown::Both)
            .map_err(Error::io("shutdown of the vhost-user socket"))
    }

    /// Says whether REPLY_ACK is negotiated.
    pub fn set_reply_ack(&mut self, on: bool) {
        self.reply_ack = on;
    }

    /// Sends one message as it is; waits for nothing.
    pub fn send(&mut self, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) -> Result<()> {
        let mut message = Vec::with_capacity(HEADER_LEN + payload.len());
        for field in [request, VERSION | flags, payload.len() as u32] {
            message.extend_from_slice(&field.to_le_bytes());
        }
        message.extend_from_slice(payload);
        self.send_bytes(&message, fds)
    }

    /// Sends bytes that need not be a message.
    pub fn send_bytes(&mut self, bytes: &[u8], fds: &[RawFd]) -> Result<()> {
        let rights = [ControlMessage::ScmRights(fds)];
        let sent = sendmsg::<()>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(bytes)],
            if fds.is_empty() { &[] } else { &rights },
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(|errno| closed_or("vhost-user message not sent")(errno.into()))?;
        self.stream
            .write_all(&bytes[sent..])
            .map_err(closed_or("vhost-user message not sent"))
    }

    /// Waits for the reply to `request` and returns its payload.
    pub fn receive(&mut self, request: u32) -> Result<Vec<u8>> {
        let mut header = [0; HEADER_LEN];
        self.read(&mut header)?;
        let field = |at: usize| {
            let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
            u32::from_le_bytes(bytes)
        };
        let (code, flags, size) = (field(0), field(4), field(8));
        let wrong = |problem| Err(Error::Control { request, problem });
        if code != request {
            return wrong("the reply is to another request");
        }
        if flags != VERSION | FLAG_REPLY {
            return wrong("the flags of the reply are not version 1 and REPLY alone");
        }
        if size > MAX_REPLY {
            return wrong("the reply is too large");
        }
        let mut payload = vec![0; size as usize];
        self.read(&mut payload)?;
        Ok(payload)
    }

    /// A request that is answered with a u64.
    pub fn get_u64(&mut self, request: u32) -> Result<u64> {
        self.send(request, 0, &[], &[])?;
        self.receive_u64(request)
    }

    /// A request that is acknowledged if REPLY_ACK is negotiated, and else not at all.
    pub fn set(&mut self, request: u32, payload: &[u8], fds: &[RawFd]) -> Result<()> {
        self.begin_set(request, payload, fds)?;
        self.end_set(request)
    }

    /// The first half of [`set`](Self::set): what is done before [`end_set`](Self::end_set) happens
    /// while the back-end deals with the message.
    pub fn begin_set(&mut self, request: u32, payload: &[u8], fds: &[RawFd]) -> Result<()> {
        let flags = if self.reply_ack { FLAG_NEED_REPLY } else { 0 };
        self.send(request, flags, payload, fds)
    }

    /// The second half of [`set`](Self::set): the acknowledgement.
    pub fn end_set(&mut self, request: u32) -> Result<()> {
        if !self.reply_ack {
            return Ok(());
        }
        match self.receive_u64(request)? {
            0 => Ok(()),
            code => Err(Error::Refused { request, code }),
        }
    }

    /// Reads the device's state through a pipe. Its ring is stopped.
    pub fn save_state(&mut self) -> Result<Vec<u8>> {
        const SAVE: u32 = 0;
        let (from, to) = pipe()?;
        let mut from = File::from(from);
        self.begin_transfer(SAVE, to.as_fd())?;
        drop(to);
        let mut state = Vec::new();
        from.read_to_end(&mut state)
            .map_err(Error::io("read the state"))?;
        self.end_transfer()?;
        Ok(state)
    }

    /// Replaces the device's state.
    pub fn load_state(&mut self, state: &[u8]) -> Result<()> {
        const LOAD: u32 = 1;
        let (from, to) = pipe()?;
        let mut to = File::from(to);
        self.begin_transfer(LOAD, from.as_fd())?;
        drop(from);
        // The back-end may refuse before it has read everything.
        let _ = to.write_all(state);
        drop(to);
        self.end_transfer()
    }

    fn begin_transfer(&mut self, direction: u32, fd: BorrowedFd<'_>) -> Result<()> {
        let stopped = 0_u32;
        let payload = [direction.to_le_bytes(), stopped.to_le_bytes()].concat();
        let request = request::SET_DEVICE_STATE_FD;
        self.send(request, 0, &payload, &[fd.as_raw_fd()])?;
        match self.receive_u64(request)? {
            NO_FD => Ok(()),
            code => Err(Error::Refused { request, code }),
        }
    }

    fn end_transfer(&mut self) -> Result<()> {
        let request = request::CHECK_DEVICE_STATE;
        match self.get_u64(request)? {
            0 => Ok(()),
            code => Err(Error::Refused { request, code }),
        }
    }

    /// [`set`](Self::set) with a u64.
    pub fn set_u64(&mut self, request: u32, value: u64) -> Result<()> {
        self.set(request, &value.to_le_bytes(), &[])
    }

    /// [`set`](Self::set) with a vring state: the ring and a number.
    pub fn set_vring(&mut self, request: u32, value: u32) -> Result<()> {
        let state = self.vring_state(value);
        self.set(request, &state, &[])
    }

    /// [`set`](Self::set) with a vring's file descriptor, or with word that there is none.
    pub fn set_vring_fd(&mut self, request: u32, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let ring = u64::from(self.ring);
        match fd {
            Some(fd) => self.set(request, &ring.to_le_bytes(), &[fd.as_raw_fd()]),
            None => self.set(request, &(NO_FD | ring).to_le_bytes(), &[]),
        }
    }

    /// VHOST_USER_GET_VRING_BASE: stops the ring and returns where it stopped.
    pub fn get_vring_base(&mut self) -> Result<u16> {
        self.begin_get_vring_base()?;
        self.end_get_vring_base()
    }

    /// The first half of [`get_vring_base`](Self::get_vring_base).
    pub fn begin_get_vring_base(&mut self) -> Result<()> {
        let asked = self.vring_state(0);
        self.send(request::GET_VRING_BASE, 0, &asked, &[])
    }

    /// The second half of [`get_vring_base`](Self::get_vring_base): the answer.
    pub fn end_get_vring_base(&mut self) -> Result<u16> {
        let wrong = |problem| Error::Control {
            request: request::GET_VRING_BASE,
            problem,
        };
        let reply = self.receive(request::GET_VRING_BASE)?;
        let ring = u32::from(self.ring).to_le_bytes();
        let Some(base) = reply.strip_prefix(&ring) else {
            return Err(wrong("the reply is about another ring"));
        };
        let base = base.try_into().map(u32::from_le_bytes);
        u16::try_from(base.map_err(|_| wrong("the reply is not a vring state"))?)
            .map_err(|_| wrong("the base is larger than any index"))
    }

    /// VHOST_USER_GET_CONFIG: `size` bytes of the config space from `offset`.
    pub fn get_config(&mut self, offset: u32, size: u32) -> Result<Vec<u8>> {
        let mut payload = Vec::new();
        for field in [offset, size, 0] {
            payload.extend_from_slice(&field.to_le_bytes());
        }
        let asked = payload.clone();
        payload.resize(payload.len() + size as usize, 0);
        self.send(request::GET_CONFIG, 0, &payload, &[])?;
        let mut reply = self.receive(request::GET_CONFIG)?;
        let wrong = |problem| {
            Err(Error::Control {
                request: request::GET_CONFIG,
                problem,
            })
        };
        if reply.len() != payload.len() {
            return wrong("the reply has another size than the request");
        }
        if reply[..8] != asked[..8] {
            return wrong("the reply is about another range");
        }
        Ok(reply.split_off(asked.len()))
    }

    /// VHOST_USER_SET_MEM_TABLE with these regions.
    pub fn set_mem_table(&mut self, regions: &[(RegionInfo, BorrowedFd<'_>)]) -> Result<()> {
        self.begin_set_mem_table(regions)?;
        self.end_set(request::SET_MEM_TABLE)
    }

    /// The first half of [`set_mem_table`](Self::set_mem_table); the second is
    /// [`end_set`](Self::end_set).
    pub fn begin_set_mem_table(&mut self, regions: &[(RegionInfo, BorrowedFd<'_>)]) -> Result<()> {
        let mut payload = Vec::new();
        payload.extend_from_slice(&(regions.len() as u64).to_le_bytes());
        for (info, _) in regions {
            payload.extend_from_slice(&region_bytes(info));
        }
        let fds: Vec<RawFd> = regions.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        self.begin_set(request::SET_MEM_TABLE, &payload, &fds)
    }

    /// VHOST_USER_ADD_MEM_REG.
    pub fn add_region(&mut self, info: &RegionInfo, fd: BorrowedFd<'_>) -> Result<()> {
        let payload = [&[0; 8], region_bytes(info).as_slice()].concat();
        self.set(request::ADD_MEM_REG, &payload, &[fd.as_raw_fd()])
    }

    /// VHOST_USER_REM_MEM_REG.
    pub fn remove_region(&mut self, info: &RegionInfo) -> Result<()> {
        self.begin_remove_region(info)?;
        self.end_set(request::REM_MEM_REG)
    }

    /// The first half of [`remove_region`](Self::remove_region); the second is
    /// [`end_set`](Self::end_set).
    pub fn begin_remove_region(&mut self, info: &RegionInfo) -> Result<()> {
        let payload = [&[0; 8], region_bytes(info).as_slice()].concat();
        self.begin_set(request::REM_MEM_REG, &payload, &[])
    }

    fn vring_state(&self, value: u32) -> [u8; 8] {
        (u64::from(self.ring) | u64::from(value) << 32).to_le_bytes()
    }

    fn receive_u64(&mut self, request: u32) -> Result<u64> {
        let reply = self.receive(request)?;
        let value = reply.try_into().map(u64::from_le_bytes);
        value.map_err(|_| Error::Control {
            request,
            problem: "the reply is not a u64",
        })
    }

    fn read(&mut self, into: &mut [u8]) -> Result<()> {
        self.stream
            .read_exact(into)
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => Error::Timeout("reply on the vhost-user socket"),
                _ => closed_or("vhost-user reply not read")(error),
            })
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn region_bytes(info: &RegionInfo) -> Vec<u8> {
    [
        info.guest_address,
        info.size,
        info.user_address,
        info.mmap_offset,
    ]
    .map(u64::to_le_bytes)
    .concat()
}

/// An error that means a closed connection becomes [`Error::Disconnected`].
fn closed_or(what: &'static str) -> impl Fn(io::Error) -> Error {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    move |source| match source.kind() {
        BrokenPipe | ConnectionReset | UnexpectedEof => Error::Disconnected,
        _ => Error::Io { what, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Control, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (
            Control::new(ours, Duration::from_millis(50)).unwrap(),
            theirs,
        )
    }

    #[test]
    fn a_message_is_header_and_payload() {
        let (mut control, mut peer) = pair();
        control.set_vring(request::SET_VRING_NUM, 128).unwrap();
        let mut bytes = [0; 20];
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(
            bytes,
            [8, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0]
        );
    }

    #[test]
    fn a_refusal_is_an_error() {
        let (mut control, mut peer) = pair();
        control.set_reply_ack(true);
        peer.write_all(&[8, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
            .unwrap();
        let refused = control.set_vring(request::SET_VRING_NUM, 100);
        assert!(
            matches!(
                refused,
                Err(Error::Refused {
                    request: 8,
                    code: 1
                })
            ),
            "{refused:?}"
        );
    }

    #[test]
    fn silence_is_a_timeout_and_an_end_is_a_disconnect() {
        let (mut control, peer) = pair();
        assert!(matches!(
            control.get_u64(request::GET_FEATURES),
            Err(Error::Timeout(_))
        ));
        drop(peer);
        assert!(matches!(
            control.get_u64(request::GET_FEATURES),
            Err(Error::Disconnected)
        ));
    }

    #[test]
    fn an_echoed_need_reply_flag_is_an_error() {
        let (mut control, mut peer) = pair();
        peer.write_all(&[1, 0, 0, 0, 0xd, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
            .unwrap();
        assert!(matches!(
            control.get_u64(request::GET_FEATURES),
            Err(Error::Control { .. })
        ));
    }
}
