//! 9P2000.L: messages as types, and as the bytes on the wire.
//!
//! [`Tmessage`] is what a client asks, [`Rmessage`] what the server answers; each variant holds a
//! plain struct named as in the protocol, with the protocol's fields in the protocol's order.
//! Decoding allocates nothing and borrows strings from the frame; no input makes it panic.
//!
//! ```
//! use protocol::{NOTAG, Tmessage, Tversion};
//!
//! let message = Tmessage::Version(Tversion { msize: 512_000, version: b"9P2000.L" });
//! let mut frame = Vec::new();
//! message.encode(NOTAG, &mut frame)?;
//! assert_eq!(Tmessage::decode(&frame), Ok((NOTAG, message)));
//! # Ok::<(), protocol::EncodeError>(())
//! ```
//!
//! Three messages have a payload behind their fields: [`Twrite`], [`Rread`] and [`Rreaddir`]. The
//! payload is no part of the type, which holds its length only: it stays where it is, in guest
//! memory or in a buffer of the caller's. `decode_head` decodes a frame without it, and `encode`
//! leaves it to the caller to append.
//!
//! ```
//! use protocol::{Rmessage, Rread};
//!
//! let mut frame = Vec::new();
//! Rmessage::Read(Rread { count: 5 }).encode(1, &mut frame)?;
//! assert_eq!(frame.len(), Rread::PAYLOAD);
//! let head = frame.clone();
//! frame.extend_from_slice(b"hello");
//! assert_eq!(Rmessage::decode_head(&head, frame.len()), Rmessage::decode(&frame));
//! # Ok::<(), protocol::EncodeError>(())
//! ```
//!
//! Where to find what:
//! - `messages`: the table of all messages, the place for a new one; `table` makes types of it.
//! - `wire`: how integers, strings and structs of them lie in a frame.
//! - `header`, `qid`, `time`, `list`, `direntry`: what is put together from those.
//! - `constants`: the numbers that fields take.
//! - `error`: what may be wrong with bytes and with messages.

mod constants;
mod direntry;
mod error;
mod header;
mod list;
mod messages;
mod qid;
mod table;
mod time;
mod wire;

pub use constants::*;
pub use direntry::DirEntry;
pub use error::{DecodeError, EncodeError};
pub use header::Header;
pub use list::{List, Names, Qids};
pub use messages::*;
pub use qid::{Qid, QidKind};
pub use time::Time;
pub use wire::HEADER_LEN;

/// The type numbers of messages.
pub mod kind {
    pub use crate::messages::{reply_kind::*, request_kind::*};
}
