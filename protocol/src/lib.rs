//! 9P2000.L: messages as types, and as bytes on the wire.
//!
//! [`Tmessage`] is a client's request, [`Rmessage`] a server's reply; each variant contains a plain
//! struct named as in the protocol, with the protocol's fields in the protocol's order. Decoding
//! allocates nothing and borrows strings from the frame; no input makes it panic.
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
//! Three messages have a payload after their fields: [`Twrite`], [`Rread`] and [`Rreaddir`]. The
//! type contains only the length of the payload, which stays where it is, in guest memory or in a
//! buffer of the caller. `decode_head` decodes a frame without it, and the caller of `encode`
//! appends it.
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
//! The modules:
//! - `messages`: the table of all messages, the place to add one; `table` generates types from it.
//! - `wire`: the encoding of integers, strings and structs.
//! - `header`, `qid`, `time`, `list`, `direntry`: structures made of those.
//! - `constants`: the values of fields.
//! - `error`: what can be wrong with bytes and with messages.

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
