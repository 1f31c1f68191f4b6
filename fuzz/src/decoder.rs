//! Frames: what can be decoded is the same frame when it is encoded again.

use protocol::{DecodeError, DirEntry, Header, Rmessage, Tmessage};

/// Decodes `bytes` as a request, as a reply, by their head alone, and as directory entries.
pub fn decoder(bytes: &[u8]) {
    let _ = Header::decode(bytes);
    check(
        bytes,
        Tmessage::decode(bytes),
        Tmessage::decode_head,
        |message, tag, out| message.encode(tag, out).is_ok(),
    );
    check(
        bytes,
        Rmessage::decode(bytes),
        Rmessage::decode_head,
        |message, tag, out| message.encode(tag, out).is_ok(),
    );
    // What is encoded has the true size: correct it, so that an input needs not be lucky.
    if let (Ok(size), true) = (u32::try_from(bytes.len()), bytes.len() >= 7) {
        let mut frame = bytes.to_vec();
        frame[..4].copy_from_slice(&size.to_le_bytes());
        check(
            &frame,
            Tmessage::decode(&frame),
            Tmessage::decode_head,
            |message, tag, out| message.encode(tag, out).is_ok(),
        );
        check(
            &frame,
            Rmessage::decode(&frame),
            Rmessage::decode_head,
            |message, tag, out| message.encode(tag, out).is_ok(),
        );
    }
    entries(bytes);
}

fn check<'a, M: PartialEq + std::fmt::Debug>(
    frame: &'a [u8],
    decoded: Result<(u16, M), DecodeError>,
    decode_head: impl Fn(&'a [u8], usize) -> Result<(u16, M), DecodeError>,
    encode: impl Fn(&M, u16, &mut Vec<u8>) -> bool,
) {
    let Ok((tag, message)) = decoded else {
        // A head may be without its payload, but no input may make it panic.
        let _ = decode_head(frame, frame.len().saturating_add(5));
        return;
    };
    let mut head = Vec::new();
    assert!(encode(&message, tag, &mut head), "{message:?}");
    assert!(head.len() <= frame.len(), "{message:?}");
    assert_eq!(head, frame[..head.len()], "{message:?}");
    assert_eq!(
        decode_head(&frame[..head.len()], frame.len()),
        Ok((tag, message))
    );
}

fn entries(payload: &[u8]) {
    let mut again = Vec::new();
    let mut whole = true;
    for entry in DirEntry::decode_all(payload) {
        assert!(whole, "nothing comes behind an error");
        match entry {
            Ok(entry) => entry.encode(&mut again).expect("was decoded"),
            Err(_) => whole = false,
        }
    }
    assert!(payload.starts_with(&again));
    assert_eq!(whole, payload == again);
}
