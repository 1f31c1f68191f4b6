//! One request and its one answer.

use nix::errno::Errno;
use protocol::{DecodeError, HEADER_LEN, Header, NOTAG, Rlerror, Rmessage, Twrite, kind};
use vhost_user::{Readable, Request, Writable};

use super::limits::MAX_MSIZE;
use super::redo::Redo;

/// The longest frame that is copied out of guest memory. Only a Twrite may be longer; its payload
/// is not copied. The longest that makes sense, a Twalk with sixteen names, is 4 KiB.
const MAX_HEAD: usize = 64 * 1024;
/// Most frames are no longer than this: they are copied at once.
const USUAL_HEAD: usize = 64;

/// A request until its reply. It is answered exactly once: by [`Exchange::answer`], or when it is
/// dropped: with EIO, so that no fault of the daemon leaves the guest waiting, or with ENOMEM if it
/// was not received because there was no coroutine for it.
pub struct Exchange {
    request: Option<Request>,
    tag: u16,
    received: bool,
}

impl Exchange {
    /// Takes the request over.
    pub fn new(request: Request) -> Exchange {
        Exchange {
            request: Some(request),
            tag: NOTAG,
            received: false,
        }
    }

    /// Copies the frame, without the payload of a Twrite, out of guest memory into `head`, once:
    /// what is decoded from it cannot change any more. Returns the header and the fields. Errors:
    /// EFAULT if the request or the room for its reply is not all in the guest's memory; EPROTO for
    /// a frame that is shorter than its size field or than a header; EMSGSIZE for one longer than
    /// `msize`, where 0 means that none was agreed yet.
    pub fn receive<'a>(
        &mut self,
        head: &'a mut Vec<u8>,
        msize: u32,
    ) -> Result<(Header, &'a [u8]), Errno> {
        self.received = true;
        let readable = self.readable();
        let mut start = [0; USUAL_HEAD];
        let copied = readable.read_at(0, &mut start);
        let cut = readable.is_cut() || self.writable().is_cut();
        if copied < HEADER_LEN {
            // The tag is unknown. Linux does not look at it: it knows a reply by its chain.
            return Err(if cut { Errno::EFAULT } else { Errno::EPROTO });
        }
        let header = Header::decode(&start[..HEADER_LEN]).map_err(|_| Errno::EPROTO)?;
        let size = header.size as usize;
        let sent = readable.len();
        self.tag = header.tag;
        if cut {
            // Nothing has been done yet. The reply goes to the room before the cut: for a zero-copy
            // read, whose pages may be missing, the room for the header holds an error.
            return Err(Errno::EFAULT);
        }
        if size < HEADER_LEN || size > sent {
            return Err(Errno::EPROTO);
        }
        let length = if header.kind == kind::TWRITE {
            size.min(Twrite::PAYLOAD)
        } else {
            size
        };
        let agreed = if msize == 0 { MAX_MSIZE } else { msize };
        if header.check_msize(agreed).is_err() || length > MAX_HEAD {
            return Err(Errno::EMSGSIZE);
        }
        head.clear();
        head.extend_from_slice(&start[..copied.min(length)]);
        if length > copied {
            head.resize(length, 0);
            self.readable().read_at(copied, &mut head[copied..]);
        }
        Ok((header, &head[HEADER_LEN..]))
    }

    /// Whether another process has begun the request.
    pub fn is_redo(&self) -> bool {
        self.pending().resumed().is_some()
    }

    /// What follows if another process has begun the request.
    pub fn redo(&self) -> Redo {
        Redo::new(self.pending().resumed().copied())
    }

    /// The request's tag, once it is received.
    pub fn tag(&self) -> u16 {
        self.tag
    }

    /// What the guest sent. After the answer there is nothing to read.
    pub fn readable(&self) -> &Readable {
        self.pending().readable()
    }

    /// Where the reply goes.
    pub fn writable(&self) -> &Writable {
        self.pending().writable()
    }

    /// How many bytes of payload fit behind `header` bytes of a reply, if the reply as a whole
    /// may have `msize` bytes.
    pub fn room(&self, header: usize, msize: u32) -> usize {
        self.writable()
            .len()
            .min(msize as usize)
            .saturating_sub(header)
    }

    fn pending(&self) -> &Request {
        // `answer` consumes the exchange, so nobody can hold one without its request.
        self.request
            .as_ref()
            .expect("an exchange has its request until it is answered")
    }

    /// Answers. The payload of Rread and Rreaddir is already behind its header in guest memory.
    /// A reply for which the guest left too little room becomes an error, and where not even that
    /// fits the request ends without a reply.
    #[inline]
    pub fn answer(mut self, reply: Result<&Rmessage<'_>, Errno>, scratch: &mut Vec<u8>) {
        self.send(reply, scratch);
    }

    /// Ends a request that was flushed: without a reply, which the guest sees as length 0.
    pub fn cancel(mut self) {
        if let Some(request) = self.request.take() {
            request.complete(0);
        }
    }

    fn send(&mut self, reply: Result<&Rmessage<'_>, Errno>, scratch: &mut Vec<u8>) {
        let Some(request) = self.request.take() else {
            return;
        };
        let room = request.writable().len();
        let encoded = match reply {
            Ok(message) => {
                log::trace!("tag {}: {message:?}", self.tag);
                encode(message, self.tag, room, scratch).inspect_err(|errno| {
                    log::debug!("tag {}: no room for the reply: {errno}", self.tag);
                })
            }
            // The guest's program would take EMFILE for a limit of its own.
            Err(Errno::EMFILE) => Err(Errno::ENFILE),
            Err(errno) => Err(errno),
        };
        let size = encoded.or_else(|errno| {
            let ecode = match errno {
                // An errno without a meaning, which a file system of the host may return. Clients
                // would take 0 for success.
                Errno::UnknownErrno => Errno::EIO,
                known => known,
            } as u32;
            let error = Rmessage::Lerror(Rlerror { ecode });
            encode(&error, self.tag, room, scratch)
        });
        match size {
            Ok(size) => {
                request.writable().write_at(0, scratch);
                request.complete(size);
            }
            Err(_) => {
                log::debug!("tag {}: the guest left no room for a reply", self.tag);
                request.complete(0);
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.request.is_none() {
            return;
        }
        let mut scratch = Vec::new();
        let errno = if self.received {
            Errno::EIO
        } else {
            // Only the tag is needed.
            let _ = self.receive(&mut scratch, 0);
            Errno::ENOMEM
        };
        self.send(Err(errno), &mut scratch);
    }
}

/// The errno for a frame that is no message: EOPNOTSUPP if 9P2000.L has no such message, EINVAL for
/// a walk of more than sixteen names, else EPROTO.
pub fn refusal(error: &DecodeError) -> Errno {
    match error {
        DecodeError::UnknownType(_) => Errno::EOPNOTSUPP,
        DecodeError::TooManyNames(_) => Errno::EINVAL,
        _ => Errno::EPROTO,
    }
}

/// Encodes `message` into `scratch` and returns the size field, which includes the payload. Errors:
/// EMSGSIZE if the whole does not fit in `room`.
fn encode(
    message: &Rmessage<'_>,
    tag: u16,
    room: usize,
    scratch: &mut Vec<u8>,
) -> Result<u32, Errno> {
    scratch.clear();
    let size = message.encode(tag, scratch).map_err(|_| Errno::EMSGSIZE)?;
    match size as usize > room {
        true => Err(Errno::EMSGSIZE),
        false => Ok(size),
    }
}
