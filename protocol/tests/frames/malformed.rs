//! What is wrong with a frame is told by the error.

use protocol::{
    DecodeError, EncodeError, Header, NOTAG, Names, Rmessage, Rread, Tmessage, Tversion, Twalk,
    Twrite, kind,
};

/// A frame whose size field is right.
fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = (7 + body.len() as u32).to_le_bytes().to_vec();
    frame.push(kind);
    frame.extend_from_slice(&[0x34, 0x12]);
    frame.extend_from_slice(body);
    frame
}

fn error(frame: &[u8]) -> DecodeError {
    Tmessage::decode(frame).expect_err("malformed")
}

#[test]
fn shorter_than_a_header() {
    for len in 0..7 {
        assert_eq!(error(&[7, 0, 0, 0, 120, 0, 0][..len]), DecodeError::Short);
    }
}

#[test]
fn a_size_that_is_not_the_length() {
    let clunk = frame(kind::TCLUNK, &[1, 0, 0, 0]);
    for size in [0, 6, 7, 10, 12, u32::MAX] {
        let mut wrong = clunk.clone();
        wrong[..4].copy_from_slice(&size.to_le_bytes());
        assert_eq!(error(&wrong), DecodeError::Size { size, len: 11 });
        assert_eq!(
            Tmessage::decode_head(&clunk, size as usize),
            Err(DecodeError::Size {
                size: 11,
                len: size as usize
            })
        );
    }
}

#[test]
fn a_head_that_is_longer_than_the_frame() {
    let mut clunk = frame(kind::TCLUNK, &[1, 0, 0, 0]);
    clunk.push(0);
    assert_eq!(
        Tmessage::decode_head(&clunk, 11),
        Err(DecodeError::Size { size: 11, len: 11 })
    );
}

#[test]
fn a_field_that_is_cut() {
    assert_eq!(error(&frame(kind::TCLUNK, &[1, 0, 0])), DecodeError::Short);
    assert_eq!(error(&frame(kind::TCLUNK, &[])), DecodeError::Short);
}

#[test]
fn bytes_behind_the_last_field() {
    let long = frame(kind::TCLUNK, &[1, 0, 0, 0, 9, 9]);
    assert_eq!(error(&long), DecodeError::Trailing(2));
}

#[test]
fn a_string_past_the_end() {
    let version = frame(kind::TVERSION, b"\0\x10\0\0\x09\x009P2000.L");
    assert_eq!(error(&version), DecodeError::StringPastEnd);
    let version = frame(kind::TVERSION, b"\0\x10\0\0\xFF\xFF9P2000.L");
    assert_eq!(error(&version), DecodeError::StringPastEnd);
    // A length that is cut is not a string yet.
    let version = frame(kind::TVERSION, b"\0\x10\0\0\x09");
    assert_eq!(error(&version), DecodeError::Short);
}

#[test]
fn a_walk_of_seventeen_names() {
    for count in [17, 256, u16::MAX] {
        let mut body = vec![0; 8];
        body.extend_from_slice(&count.to_le_bytes());
        for _ in 0..count {
            body.extend_from_slice(b"\x01\0x");
        }
        let walk = frame(kind::TWALK, &body);
        assert_eq!(error(&walk), DecodeError::TooManyNames(count));
    }
}

#[test]
fn a_reply_of_seventeen_qids() {
    let mut body = 17u16.to_le_bytes().to_vec();
    body.extend_from_slice(&[0; 17 * 13]);
    assert_eq!(
        Rmessage::decode(&frame(kind::RWALK, &body)),
        Err(DecodeError::TooManyNames(17))
    );
}

#[test]
fn a_count_that_is_not_the_payload() {
    for count in [0u32, 4, 6, u32::MAX] {
        let mut body = vec![0; 12];
        body.extend_from_slice(&count.to_le_bytes());
        body.extend_from_slice(b"12345");
        let write = frame(kind::TWRITE, &body);
        let wrong = DecodeError::Count { count, payload: 5 };
        assert_eq!(error(&write), wrong);
        assert_eq!(
            Tmessage::decode_head(&write[..Twrite::PAYLOAD], write.len()),
            Err(wrong)
        );

        let mut body = count.to_le_bytes().to_vec();
        body.extend_from_slice(b"12345");
        for kind in [kind::RREAD, kind::RREADDIR] {
            let reply = frame(kind, &body);
            assert_eq!(Rmessage::decode(&reply), Err(wrong));
            assert_eq!(
                Rmessage::decode_head(&reply[..Rread::PAYLOAD], reply.len()),
                Err(wrong)
            );
        }
    }
}

#[test]
fn an_unknown_type_leaves_the_tag() {
    for (kind, _) in Rmessage::ALL {
        let reply = frame(*kind, &[0; 4]);
        assert_eq!(error(&reply), DecodeError::UnknownType(*kind));
    }
    let mut unknown = 0;
    for kind in 0..=255 {
        if Tmessage::ALL.iter().all(|(known, _)| *known != kind) {
            let message = frame(kind, &[0; 4]);
            assert_eq!(error(&message), DecodeError::UnknownType(kind));
            assert_eq!(Header::decode(&message).map(|h| h.tag), Ok(0x1234));
            unknown += 1;
        }
    }
    assert_eq!(unknown, 256 - 28);
}

#[test]
fn what_has_no_bytes_leaves_the_buffer_alone() {
    let long = vec![b'x'; 65536];
    let mut out = b"before".to_vec();
    let version = |version| Tmessage::Version(Tversion { msize: 1, version });
    assert_eq!(
        version(&long).encode(NOTAG, &mut out),
        Err(EncodeError::StringTooLong(65536))
    );
    let walk = Tmessage::Walk(Twalk {
        fid: 1,
        newfid: 2,
        names: Names::from_slice(&[b"short", &long]).expect("two fit"),
    });
    assert_eq!(
        walk.encode(1, &mut out),
        Err(EncodeError::StringTooLong(65536))
    );
    let read = Rmessage::Read(Rread {
        count: u32::MAX - 10,
    });
    assert_eq!(read.encode(1, &mut out), Err(EncodeError::FrameTooLong));
    assert_eq!(out, b"before");

    version(&long[1..]).encode(NOTAG, &mut out).expect("fits");
    assert_eq!(
        Tmessage::decode(&out[6..]),
        Ok((NOTAG, version(&long[1..])))
    );
    let read = Rmessage::Read(Rread {
        count: u32::MAX - 11,
    });
    out.clear();
    read.encode(1, &mut out).expect("the longest frame");
    assert_eq!(out[..4], [0xFF; 4]);
}
