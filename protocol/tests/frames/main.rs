//! The codec against bytes: golden frames, what another decoder says of them, what they become
//! when they are damaged, and messages drawn at random.

mod damaged;
mod golden;
mod malformed;
mod round_trip;
mod tshark;

use protocol::{DecodeError, Rmessage, Tmessage};

/// A message of either direction, to do the same with both.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Message<'a> {
    T(Tmessage<'a>),
    R(Rmessage<'a>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Direction {
    T,
    R,
}

impl Direction {
    const BOTH: [Direction; 2] = [Direction::T, Direction::R];

    fn decode(self, frame: &[u8]) -> Result<(u16, Message<'_>), DecodeError> {
        match self {
            Direction::T => Tmessage::decode(frame).map(|(tag, m)| (tag, Message::T(m))),
            Direction::R => Rmessage::decode(frame).map(|(tag, m)| (tag, Message::R(m))),
        }
    }

    fn decode_head(self, head: &[u8], len: usize) -> Result<(u16, Message<'_>), DecodeError> {
        match self {
            Direction::T => Tmessage::decode_head(head, len).map(|(tag, m)| (tag, Message::T(m))),
            Direction::R => Rmessage::decode_head(head, len).map(|(tag, m)| (tag, Message::R(m))),
        }
    }
}

impl Message<'_> {
    /// The frame without its payload.
    fn encode(&self, tag: u16) -> Vec<u8> {
        let mut frame = Vec::new();
        match self {
            Message::T(message) => message.encode(tag, &mut frame),
            Message::R(message) => message.encode(tag, &mut frame),
        }
        .expect("what was decoded can be encoded");
        frame
    }

    /// Where the frame's payload begins, if the message has one.
    fn payload_at(&self) -> Option<usize> {
        match self {
            Message::T(Tmessage::Write(_)) => Some(23),
            Message::R(Rmessage::Read(_) | Rmessage::Readdir(_)) => Some(11),
            _ => None,
        }
    }
}

/// A line of fixtures/frames/frames.hex.
struct Golden {
    name: &'static str,
    bytes: Vec<u8>,
}

impl Golden {
    fn all() -> Vec<Golden> {
        include_str!("../../../fixtures/frames/frames.hex")
            .lines()
            .map(|line| {
                let (name, hex) = line.split_once(' ').expect("a name and bytes");
                let bytes = (0..hex.len())
                    .step_by(2)
                    .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
                    .collect();
                Golden { name, bytes }
            })
            .collect()
    }

    fn direction(&self) -> Direction {
        match self.name.as_bytes()[0] {
            b'T' => Direction::T,
            b'R' => Direction::R,
            _ => panic!("{} is neither T- nor R-message", self.name),
        }
    }

    /// The name of the message, without what tells apart several frames of it.
    fn message(&self) -> &'static str {
        self.name.split('-').next().unwrap_or(self.name)
    }

    fn decode(&self) -> (u16, Message<'_>) {
        self.direction()
            .decode(&self.bytes)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }
}

/// Decodes `frame` in both directions. What is a message must be the frame again when encoded.
fn decode_and_encode(frame: &[u8]) {
    for direction in Direction::BOTH {
        if let Ok((tag, message)) = direction.decode(frame) {
            let mut encoded = message.encode(tag);
            if let Some(at) = message.payload_at() {
                assert_eq!(encoded.len(), at, "{message:?}");
                encoded.extend_from_slice(&frame[at..]);
            }
            assert_eq!(encoded, frame, "{message:?}");
        }
    }
}
