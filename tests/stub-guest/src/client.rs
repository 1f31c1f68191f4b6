//! A 9P client on the ring: requests out, replies in, several at once.
//!
//! Chains have the shapes that Linux's `trans_virtio` gives them:
//! ```text
//! small      [ request ]           | [ reply ]
//! big read   [ request ]           | [ 11-byte header ] [ page ] [ page ] ...
//! big write  [ 23-byte header ] [ page ] [ page ] ...   | [ reply ]
//!              the device reads    |  the device writes
//! ```
//! Pages of a big request are posted in descending order, so that they are never neighbours in the
//! order in which they are used.

use std::collections::VecDeque;

use protocol::{Header, NOTAG, Rmessage, Rread, Tmessage, Twrite};

use crate::error::{Error, Result};
use crate::front_end::{FEATURE_INDIRECT_DESC, FrontEnd};
use crate::memory::{GuestMemory, PAGE};
use crate::ring::{Segment, Used};

/// Payloads above this travel in pages of their own (Linux: `p9_client_read_once`).
const ZERO_COPY_ABOVE: usize = 1024;
/// Room for a reply if it is not made to measure.
const ROOMY_REPLY: usize = 8192;
/// Size of the largest Rlerror: every reply buffer holds one.
const ERROR_REPLY: usize = 11;
/// msize before a version is agreed.
const DEFAULT_MSIZE: u32 = 8192;

/// How chains are put together.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// In indirect tables. Ignored if the device does not offer them.
    pub indirect: bool,
    /// Reply buffers hold exactly the largest right reply, as recent Linux makes them.
    pub tight: bool,
    /// Large payloads in pages of their own; else in the one buffer of request or reply.
    pub zero_copy: bool,
    /// Cuts every buffer into descriptors of at most so many bytes; 0 leaves them whole.
    pub split: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            indirect: true,
            tight: true,
            zero_copy: true,
            split: 0,
        }
    }
}

/// A whole reply frame.
#[derive(Debug)]
pub struct Reply {
    request: Option<u8>,
    frame: Vec<u8>,
}

impl Reply {
    /// The message. Rlerror is [`Error::Errno`], another type than the request's is an error too.
    pub fn message(&self) -> Result<Rmessage<'_>> {
        let (_, message) = Rmessage::decode(&self.frame)?;
        match (&message, self.request) {
            (Rmessage::Lerror(error), _) => Err(Error::Errno(error.ecode)),
            (_, Some(request)) if message.kind() != request + 1 => Err(Error::WrongReply {
                request,
                reply: message.kind(),
            }),
            _ => Ok(message),
        }
    }

    /// What follows the count of an Rread or Rreaddir.
    pub fn payload(&self) -> &[u8] {
        self.frame.get(Rread::PAYLOAD..).unwrap_or_default()
    }

    /// All bytes of the reply.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }
}

/// A request that has come back.
#[derive(Debug)]
pub struct Completion {
    /// What `submit` returned for it.
    pub tag: u16,
    /// The reply, [`Error::Flushed`] if there is none, or what is wrong with it.
    pub reply: Result<Reply>,
}

/// Guest memory of one request.
#[derive(Clone, Copy, Debug, Default)]
struct Buffer {
    addr: u64,
    len: usize,
}

impl Buffer {
    fn alloc(memory: &mut GuestMemory, len: usize) -> Result<Buffer> {
        Ok(Buffer {
            addr: memory.alloc(len)?,
            len,
        })
    }

    fn free(self, memory: &mut GuestMemory) {
        if self.len > 0 {
            memory.free(self.addr, self.len);
        }
    }
}

/// Payload pages, the last of which comes first in memory.
#[derive(Clone, Copy, Debug, Default)]
struct Pages(Buffer);

impl Pages {
    /// Guest address and length of each page's part of the first `len` payload bytes.
    fn parts(self, len: usize) -> impl Iterator<Item = (u64, usize)> {
        let count = self.0.len.div_ceil(PAGE);
        let used = len.min(self.0.len).div_ceil(PAGE);
        (0..used).map(move |page| {
            let addr = self.0.addr + ((count - 1 - page) * PAGE) as u64;
            (addr, PAGE.min(len - page * PAGE))
        })
    }
}

/// A request that is with the device.
#[derive(Debug)]
struct Pending {
    /// Type of the request, if it is a T-message of ours.
    kind: Option<u8>,
    /// The tag on the wire, if the reply must have it.
    tag: Option<u16>,
    request: Buffer,
    reply: Buffer,
    sent_pages: Pages,
    received_pages: Pages,
}

#[derive(Debug)]
enum Slot {
    Free,
    Pending(Pending),
    Done(Result<Reply>),
}

/// A 9P client with its own front-end.
pub struct Client {
    front_end: FrontEnd,
    shape: Shape,
    pub(crate) msize: u32,
    pub(crate) next_fid: u32,
    pub(crate) free_fids: Vec<u32>,
    /// Requests by tag.
    slots: Vec<Slot>,
    free_tags: Vec<u16>,
    /// Tag of the chain that begins with this descriptor.
    by_head: Vec<u16>,
    /// Tags of `Slot::Done`, in the order of completion.
    done: VecDeque<u16>,
    frame: Vec<u8>,
    segments: Vec<Segment>,
    spare: Vec<Vec<u8>>,
}

impl Client {
    /// A client over a front-end whose ring runs. No message is sent yet.
    pub fn new(front_end: FrontEnd) -> Client {
        let queue_size = usize::from(front_end.options().queue_size);
        let indirect = front_end.features() & FEATURE_INDIRECT_DESC != 0;
        Client {
            front_end,
            shape: Shape {
                indirect,
                ..Shape::default()
            },
            msize: DEFAULT_MSIZE,
            next_fid: 0,
            free_fids: Vec::new(),
            slots: Vec::new(),
            free_tags: Vec::new(),
            by_head: vec![NOTAG; queue_size],
            done: VecDeque::new(),
            frame: Vec::new(),
            segments: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// How chains are put together from now on.
    pub fn set_shape(&mut self, shape: Shape) {
        let offered = self.front_end.features() & FEATURE_INDIRECT_DESC != 0;
        self.shape = Shape {
            indirect: shape.indirect && offered,
            ..shape
        };
    }

    /// How chains are put together.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The agreed msize.
    pub fn msize(&self) -> u32 {
        self.msize
    }

    /// The front-end below.
    pub fn front_end(&mut self) -> &mut FrontEnd {
        &mut self.front_end
    }

    /// Ends the client and gives the front-end back.
    pub fn into_front_end(self) -> FrontEnd {
        self.front_end
    }

    /// Forgets all requests and fids, as after a reset of the device.
    pub fn forget(&mut self) {
        for slot in std::mem::take(&mut self.slots) {
            if let Slot::Pending(pending) = slot {
                release(self.front_end.memory(), &pending);
            }
        }
        self.free_tags.clear();
        self.done.clear();
        self.free_fids.clear();
        self.next_fid = 0;
    }

    /// Puts a request into the ring and returns its tag; [`kick`](Self::kick) or a wait tells the
    /// device. `payload` is the data of a Twrite, else empty. [`Error::RingFull`]: wait for a
    /// reply first.
    pub fn submit(&mut self, message: &Tmessage<'_>, payload: &[u8]) -> Result<u16> {
        let slot = self.take_slot();
        let tag = if matches!(message, Tmessage::Version(_)) {
            NOTAG
        } else {
            slot
        };
        self.submit_in(slot, tag, message, payload)
    }

    /// [`submit`](Self::submit) with a tag of the caller's choice on the wire. What is returned is
    /// a handle for the waiting functions, not that tag.
    pub fn submit_tagged(
        &mut self,
        tag: u16,
        message: &Tmessage<'_>,
        payload: &[u8],
    ) -> Result<u16> {
        let slot = self.take_slot();
        self.submit_in(slot, tag, message, payload)
    }

    /// Posts any bytes as a request, with `writable` bytes for a reply. What is returned is a
    /// handle for the waiting functions.
    pub fn submit_frame(&mut self, frame: &[u8], writable: usize) -> Result<u16> {
        let slot = self.take_slot();
        let placed = self.place_frame(frame, writable);
        self.post(slot, placed)
    }

    /// The same with payloads in pages of their own: `sent` behind the frame, and `received` bytes of
    /// room behind the `writable` ones.
    pub fn submit_pages(
        &mut self,
        frame: &[u8],
        sent: &[u8],
        writable: usize,
        received: usize,
    ) -> Result<u16> {
        let slot = self.take_slot();
        let placed = self.place_frame(frame, writable);
        let placed = placed.and_then(|pending| self.place_pages(pending, sent, received));
        self.post(slot, placed)
    }

    /// Tells the device of what was submitted, if it wants to know.
    pub fn kick(&mut self) -> Result<()> {
        self.front_end.kick()
    }

    /// Requests that are with the device.
    pub fn outstanding(&self) -> usize {
        self.front_end.outstanding()
    }

    /// Waits for the reply to one request. Others that come back first are kept.
    pub fn wait(&mut self, tag: u16) -> Result<Reply> {
        self.kick()?;
        self.wait_unkicked(tag)
    }

    /// [`wait`](Self::wait) without telling the device that there is something to do.
    pub fn wait_unkicked(&mut self, tag: u16) -> Result<Reply> {
        loop {
            match self.slots.get(usize::from(tag)) {
                None | Some(Slot::Free) => return Err(Error::NotOutstanding(tag)),
                Some(Slot::Pending(_)) => {
                    let used = self.front_end.wait_used()?;
                    self.complete(used)?;
                }
                Some(Slot::Done(_)) => {
                    self.done.retain(|other| *other != tag);
                    return self.take_done(tag);
                }
            }
        }
    }

    /// Waits for whichever request comes back next.
    pub fn wait_any(&mut self) -> Result<Completion> {
        self.kick()?;
        loop {
            if let Some(tag) = self.done.pop_front() {
                return Ok(Completion {
                    tag,
                    reply: self.take_done(tag),
                });
            }
            let used = self.front_end.wait_used()?;
            self.complete(used)?;
        }
    }

    /// Whether a request has come back, without waiting.
    pub fn is_done(&mut self, tag: u16) -> Result<bool> {
        self.kick()?;
        self.is_used(tag)
    }

    /// [`is_done`](Self::is_done) without telling the device that there is something to do: nothing
    /// is written anywhere.
    pub fn is_used(&mut self, tag: u16) -> Result<bool> {
        while let Some(used) = self.front_end.try_used()? {
            self.complete(used)?;
        }
        Ok(matches!(
            self.slots.get(usize::from(tag)),
            Some(Slot::Done(_))
        ))
    }

    /// How many bytes the device has written for a request that has come back.
    pub fn used_length(&self, tag: u16) -> Result<usize> {
        match self.slots.get(usize::from(tag)) {
            Some(Slot::Done(Ok(reply))) => Ok(reply.frame.len()),
            Some(Slot::Done(Err(Error::Flushed))) => Ok(0),
            _ => Err(Error::NotOutstanding(tag)),
        }
    }

    /// Guest address and length of each buffer for the reply to a request that is with the device, in
    /// the order in which they are filled; none if there is no such request.
    pub fn writable(&self, tag: u16) -> Vec<(u64, usize)> {
        match self.slots.get(usize::from(tag)) {
            Some(Slot::Pending(pending)) => [(pending.reply.addr, pending.reply.len)]
                .into_iter()
                .chain(pending.received_pages.parts(pending.received_pages.0.len))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Sends one request and waits for its reply.
    pub fn call(&mut self, message: &Tmessage<'_>) -> Result<Reply> {
        let tag = self.submit(message, &[])?;
        self.wait(tag)
    }

    /// Gives a reply's memory back, so that the next one need not allocate.
    pub fn recycle(&mut self, reply: Reply) {
        self.spare.push(reply.frame);
    }

    fn take_slot(&mut self) -> u16 {
        self.free_tags.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            (self.slots.len() - 1) as u16
        })
    }

    fn take_done(&mut self, tag: u16) -> Result<Reply> {
        match std::mem::replace(&mut self.slots[usize::from(tag)], Slot::Free) {
            Slot::Done(reply) => {
                self.free_tags.push(tag);
                reply
            }
            other => {
                self.slots[usize::from(tag)] = other;
                Err(Error::NotOutstanding(tag))
            }
        }
    }

    fn submit_in(
        &mut self,
        slot: u16,
        tag: u16,
        message: &Tmessage<'_>,
        payload: &[u8],
    ) -> Result<u16> {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        let placed = match message.encode(tag, &mut frame) {
            Ok(_) => self.place_message(tag, message, &mut frame, payload),
            Err(error) => Err(error.into()),
        };
        self.frame = frame;
        self.post(slot, placed)
    }

    /// Puts a message into guest memory.
    fn place_message(
        &mut self,
        tag: u16,
        message: &Tmessage<'_>,
        frame: &mut Vec<u8>,
        payload: &[u8],
    ) -> Result<Pending> {
        // A chain may not be longer than the ring (virtio 1.2, 2.7.5.3.1).
        let longest = usize::from(self.front_end.options().queue_size).saturating_sub(3) * PAGE;
        let zero_copy = self.shape.zero_copy;
        let paged = |len: usize| zero_copy && len > ZERO_COPY_ABOVE && len <= longest;
        let reading = read_count(message).filter(|count| paged(*count));
        let writing = paged(payload.len());
        let capacity = match reading {
            Some(_) => Rread::PAYLOAD,
            None if self.shape.tight => tight_reply(message),
            None => ROOMY_REPLY.max(tight_reply(message)),
        };
        if !writing {
            frame.extend_from_slice(payload);
        }
        let mut pending = self.place_frame(frame, capacity)?;
        pending.kind = Some(message.kind());
        pending.tag = Some(tag);
        let sent = if writing { payload } else { &[] };
        self.place_pages(pending, sent, reading.unwrap_or(0))
    }

    /// Gives a placed frame pages with `sent` in them, and pages for `received` bytes.
    fn place_pages(
        &mut self,
        mut pending: Pending,
        sent: &[u8],
        received: usize,
    ) -> Result<Pending> {
        let memory = self.front_end.memory();
        let pages = [sent.len(), received].map(|len| match len {
            0 => Ok(Buffer::default()),
            len => Buffer::alloc(memory, len),
        });
        match pages {
            [Ok(sent), Ok(received)] => {
                pending.sent_pages = Pages(sent);
                pending.received_pages = Pages(received);
            }
            [sent_pages, received] => {
                release(memory, &pending);
                for buffer in [sent_pages, received] {
                    buffer?.free(memory);
                }
                return Err(Error::OutOfMemory(sent.len()));
            }
        }
        let mut rest = sent;
        for (addr, len) in pending.sent_pages.parts(sent.len()) {
            let (part, after) = rest.split_at(len);
            memory.write(addr, part)?;
            rest = after;
        }
        Ok(pending)
    }

    fn place_frame(&mut self, frame: &[u8], writable: usize) -> Result<Pending> {
        let memory = self.front_end.memory();
        let request = if frame.is_empty() {
            Buffer::default()
        } else {
            Buffer::alloc(memory, frame.len())?
        };
        let reply = match writable {
            0 => Ok(Buffer::default()),
            len => Buffer::alloc(memory, len),
        };
        let reply = reply.inspect_err(|_| request.free(memory))?;
        if !frame.is_empty() {
            memory.write(request.addr, frame)?;
        }
        let (sent_pages, received_pages) = Default::default();
        Ok(Pending {
            kind: None,
            tag: None,
            request,
            reply,
            sent_pages,
            received_pages,
        })
    }

    /// Makes the chain of a placed request and puts it into the ring.
    fn post(&mut self, slot: u16, placed: Result<Pending>) -> Result<u16> {
        let posted = placed.and_then(|pending| {
            self.segments.clear();
            let split = self.shape.split;
            let mut add = |addr, len, writable| cut(&mut self.segments, split, addr, len, writable);
            add(pending.request.addr, pending.request.len, false);
            pending
                .sent_pages
                .parts(pending.sent_pages.0.len)
                .for_each(|(addr, len)| add(addr, len, false));
            add(pending.reply.addr, pending.reply.len, true);
            pending
                .received_pages
                .parts(pending.received_pages.0.len)
                .for_each(|(addr, len)| add(addr, len, true));
            match self.front_end.post(&self.segments, self.shape.indirect) {
                Ok(head) => Ok((head, pending)),
                Err(error) => {
                    release(self.front_end.memory(), &pending);
                    Err(error)
                }
            }
        });
        match posted {
            Ok((head, pending)) => {
                self.by_head[usize::from(head)] = slot;
                self.slots[usize::from(slot)] = Slot::Pending(pending);
                Ok(slot)
            }
            Err(error) => {
                self.free_tags.push(slot);
                Err(error)
            }
        }
    }

    /// Takes a used chain apart.
    fn complete(&mut self, used: Used) -> Result<()> {
        let broken = Error::BrokenUsed {
            head: used.head.into(),
            len: used.len,
        };
        let tag = self
            .by_head
            .get(usize::from(used.head))
            .copied()
            .unwrap_or(NOTAG);
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else {
            return Err(broken);
        };
        let pending = match std::mem::replace(slot, Slot::Free) {
            Slot::Pending(pending) => pending,
            other => {
                *slot = other;
                return Err(broken);
            }
        };
        let frame = self.spare.pop().unwrap_or_default();
        let reply = gather(self.front_end.memory(), &pending, used.len, frame);
        release(self.front_end.memory(), &pending);
        self.slots[usize::from(tag)] = Slot::Done(reply);
        self.done.push_back(tag);
        Ok(())
    }
}

/// Copies a reply out of guest memory and checks that it is one frame of exactly the used length.
fn gather(memory: &GuestMemory, pending: &Pending, used: u32, mut frame: Vec<u8>) -> Result<Reply> {
    let length = used as usize;
    let writable = pending.reply.len + pending.received_pages.0.len;
    if used == 0 {
        return Err(Error::Flushed);
    }
    if length > writable {
        return Err(Error::UsedPastEnd { used, writable });
    }
    frame.clear();
    let head = length.min(pending.reply.len);
    memory.append_to(pending.reply.addr, head, &mut frame)?;
    for (addr, len) in pending.received_pages.parts(length - head) {
        memory.append_to(addr, len, &mut frame)?;
    }
    let header = Header::decode(&frame)?;
    if header.size != used {
        return Err(Error::UsedLength {
            used,
            size: header.size,
        });
    }
    match pending.tag {
        Some(expected) if expected != header.tag => Err(Error::WrongTag {
            expected,
            found: header.tag,
        }),
        _ => Ok(Reply {
            request: pending.kind,
            frame,
        }),
    }
}

fn release(memory: &mut GuestMemory, pending: &Pending) {
    for buffer in [
        pending.request,
        pending.reply,
        pending.sent_pages.0,
        pending.received_pages.0,
    ] {
        buffer.free(memory);
    }
}

/// Appends a buffer as descriptors of at most `split` bytes each (0: no limit).
fn cut(segments: &mut Vec<Segment>, split: usize, addr: u64, len: usize, writable: bool) {
    let piece = if split == 0 { len } else { split };
    let mut done = 0;
    while done < len {
        let part = piece.min(len - done);
        segments.push(Segment {
            addr: addr + done as u64,
            len: part as u32,
            writable,
        });
        done += part;
    }
}

/// How much payload a request asks for.
fn read_count(message: &Tmessage<'_>) -> Option<usize> {
    match message {
        Tmessage::Read(read) => Some(read.count as usize),
        Tmessage::Readdir(readdir) => Some(readdir.count as usize),
        _ => None,
    }
}

/// Size of the largest right reply, at least that of an Rlerror (Linux: `p9_msg_buf_size`).
fn tight_reply(message: &Tmessage<'_>) -> usize {
    let size = match message {
        Tmessage::Read(_) | Tmessage::Readdir(_) => {
            Rread::PAYLOAD + read_count(message).unwrap_or(0)
        }
        Tmessage::Walk(walk) => 9 + 13 * walk.names.len(),
        Tmessage::Version(_) | Tmessage::Readlink(_) | Tmessage::Getlock(_) => PAGE,
        Tmessage::Getattr(_) => 160,
        Tmessage::Statfs(_) => 67,
        Tmessage::Lopen(_) | Tmessage::Lcreate(_) => 24,
        Tmessage::Auth(_)
        | Tmessage::Attach(_)
        | Tmessage::Mkdir(_)
        | Tmessage::Mknod(_)
        | Tmessage::Symlink(_) => 20,
        Tmessage::Xattrwalk(_) => 15,
        _ => ERROR_REPLY,
    };
    size.max(ERROR_REPLY)
}

/// The head of a Twrite for `payload`, for callers that submit it themselves.
pub fn twrite(fid: u32, offset: u64, payload: &[u8]) -> Tmessage<'static> {
    Tmessage::Write(Twrite {
        fid,
        offset,
        count: payload.len() as u32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Tread with tag 7 whose reply has an 11-byte header buffer and pages for `payload`.
    fn pending(memory: &mut GuestMemory, payload: usize) -> Pending {
        Pending {
            kind: Some(protocol::kind::TREAD),
            tag: Some(7),
            request: Buffer::default(),
            reply: Buffer::alloc(memory, Rread::PAYLOAD).unwrap(),
            sent_pages: Pages::default(),
            received_pages: Pages(Buffer::alloc(memory, payload).unwrap()),
        }
    }

    fn rread(size: u32, kind: u8, tag: u16, count: u32) -> Vec<u8> {
        let head = [&size.to_le_bytes()[..], &[kind], &tag.to_le_bytes()].concat();
        [head, count.to_le_bytes().to_vec()].concat()
    }

    #[test]
    fn a_reply_is_gathered_from_its_pages_in_order() {
        let mut memory = GuestMemory::new(&[1 << 20]).unwrap();
        let pending = pending(&mut memory, 10_000);
        let payload: Vec<u8> = (0..9000).map(|n| (n % 251) as u8).collect();
        memory
            .write(pending.reply.addr, &rread(9011, 117, 7, 9000))
            .unwrap();
        let mut rest = &payload[..];
        let mut addresses = Vec::new();
        for (addr, len) in pending.received_pages.parts(9000) {
            memory.write(addr, &rest[..len]).unwrap();
            rest = &rest[len..];
            addresses.push(addr);
        }
        assert!(rest.is_empty());
        assert!(
            addresses.is_sorted_by(|a, b| a > b),
            "pages are posted in descending order"
        );
        let reply = gather(&memory, &pending, 9011, Vec::new()).unwrap();
        assert_eq!(reply.payload(), payload);
        assert!(matches!(
            reply.message(),
            Ok(Rmessage::Read(Rread { count: 9000 }))
        ));
    }

    #[test]
    fn a_used_length_that_is_not_the_reply_s_size_is_an_error() {
        let mut memory = GuestMemory::new(&[1 << 20]).unwrap();
        let pending = pending(&mut memory, 4096);
        memory
            .write(pending.reply.addr, &rread(11, 117, 7, 0))
            .unwrap();
        let gather = |used| gather(&memory, &pending, used, Vec::new());
        assert!(gather(11).is_ok());
        assert!(matches!(gather(0), Err(Error::Flushed)));
        assert!(matches!(
            gather(12),
            Err(Error::UsedLength { used: 12, size: 11 })
        ));
        assert!(matches!(gather(6), Err(Error::Decode(_))));
        assert!(matches!(
            gather(4108),
            Err(Error::UsedPastEnd {
                used: 4108,
                writable: 4107
            })
        ));
    }

    #[test]
    fn a_reply_must_answer_its_request() {
        let mut memory = GuestMemory::new(&[1 << 20]).unwrap();
        let pending = pending(&mut memory, 4096);
        let reply = |bytes: Vec<u8>| {
            memory.write(pending.reply.addr, &bytes).unwrap();
            gather(&memory, &pending, 11, Vec::new())
        };
        assert!(matches!(
            reply(rread(11, 117, 8, 0)),
            Err(Error::WrongTag {
                expected: 7,
                found: 8
            })
        ));
        let wrong = reply(rread(11, 119, 7, 0)).unwrap();
        assert!(matches!(
            wrong.message(),
            Err(Error::WrongReply {
                request: 116,
                reply: 119
            })
        ));
        let refused = reply(rread(11, 7, 7, 2)).unwrap();
        assert!(matches!(refused.message(), Err(Error::Errno(2))));
        let counted = reply(rread(11, 117, 7, 5)).unwrap();
        assert!(matches!(counted.message(), Err(Error::Decode(_))));
    }
}
