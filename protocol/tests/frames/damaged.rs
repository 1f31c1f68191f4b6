//! Golden frames with a part cut off, with bytes added and with every byte changed to every other
//! value: nothing panics, and what is still a message is that message exactly.

use crate::{Direction, Golden, decode_and_encode};

/// The frame with a size field that says how long it is, so that what is behind gets looked at.
fn with_its_size(mut frame: Vec<u8>) -> Vec<u8> {
    let size = frame.len() as u32;
    if let Some(field) = frame.first_chunk_mut() {
        *field = size.to_le_bytes();
    }
    frame
}

#[test]
fn every_truncation() {
    for golden in Golden::all() {
        for cut in 0..golden.bytes.len() {
            let short = &golden.bytes[..cut];
            for direction in Direction::BOTH {
                assert!(direction.decode(short).is_err(), "{} to {cut}", golden.name);
            }
            let short = with_its_size(short.to_vec());
            let decoded = golden.direction().decode(&short);
            assert!(decoded.is_err(), "{} to {cut}", golden.name);
            decode_and_encode(&short);
        }
    }
}

#[test]
fn every_extension() {
    for golden in Golden::all() {
        for more in 1..=32 {
            let mut long = golden.bytes.clone();
            long.resize(long.len() + more, 0);
            for direction in Direction::BOTH {
                assert!(direction.decode(&long).is_err(), "{} + {more}", golden.name);
            }
            let long = with_its_size(long);
            let decoded = golden.direction().decode(&long);
            assert!(decoded.is_err(), "{} + {more}", golden.name);
            decode_and_encode(&long);
        }
    }
}

#[test]
fn every_change_of_a_byte() {
    for golden in Golden::all() {
        let mut frame = golden.bytes.clone();
        for at in 0..frame.len() {
            let right = frame[at];
            for wrong in (0..=255).filter(|wrong| *wrong != right) {
                frame[at] = wrong;
                decode_and_encode(&frame);
                for direction in Direction::BOTH {
                    decode_heads(direction, &frame);
                }
            }
            frame[at] = right;
        }
    }
}

/// A head is the whole frame's message or none, wherever it ends.
fn decode_heads(direction: Direction, frame: &[u8]) {
    let whole = direction.decode(frame);
    let cuts = [0, 6, 7, 10, 11, 12, 22, 23, 24, frame.len()];
    for cut in cuts.into_iter().filter(|cut| *cut <= frame.len()) {
        let head = direction.decode_head(&frame[..cut], frame.len());
        if head.is_ok() {
            assert_eq!(head, whole, "cut to {cut}");
        }
    }
}
