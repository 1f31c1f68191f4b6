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
//! - `wire`: integers, strings, qids, times, lists: the elements of messages.
//! - `messages`: the table of all messages.
//! - `constants`: the numbers that fields take.

mod constants;
mod messages;
mod wire;

pub use constants::*;
pub use messages::*;
pub use wire::{
    DecodeError, DirEntry, EncodeError, HEADER_LEN, Header, List, MAX_WALK, Names, Qid, QidKind,
    Qids, Time,
};

/// The type numbers of messages.
pub mod kind {
    pub use crate::messages::{reply_kind::*, request_kind::*};
}
