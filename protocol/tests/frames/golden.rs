//! The golden frames as they are.

use std::collections::BTreeSet;

use protocol::{
    DirEntry, Header, NONUNAME, Qid, QidKind, Rmessage, Rread, Rreaddir, Tattach, Time, Tmessage,
    Twrite,
};

use crate::{Direction, Golden, Message, decode_and_encode};

#[test]
fn every_message_has_a_frame() {
    let golden: BTreeSet<_> = Golden::all().iter().map(Golden::message).collect();
    let messages = Tmessage::ALL.iter().chain(Rmessage::ALL);
    let known: BTreeSet<_> = messages.map(|(_, name)| *name).collect();
    assert_eq!(golden, known);
}

#[test]
fn every_request_has_its_reply() {
    let mut replies: BTreeSet<_> = Tmessage::ALL
        .iter()
        .map(|(kind, name)| (kind + 1, name.replacen('T', "R", 1)))
        .collect();
    replies.insert((7, "Rlerror".to_owned()));
    let known = Rmessage::ALL.iter();
    assert_eq!(
        replies,
        known
            .map(|(kind, name)| (*kind, (*name).to_owned()))
            .collect()
    );
}

#[test]
fn a_frame_is_the_message_of_its_name_and_again_the_frame() {
    for golden in Golden::all() {
        let (tag, message) = golden.decode();
        let (kind, all) = match message {
            Message::T(message) => (message.kind(), Tmessage::ALL),
            Message::R(message) => (message.kind(), Rmessage::ALL),
        };
        assert!(all.contains(&(kind, golden.message())), "{}", golden.name);
        let header = Header::decode(&golden.bytes).expect("a header");
        assert_eq!(
            header,
            Header {
                size: golden.bytes.len() as u32,
                kind,
                tag
            }
        );
        decode_and_encode(&golden.bytes);
    }
}

#[test]
fn a_frame_is_no_message_of_the_other_direction() {
    for golden in Golden::all() {
        let other = match golden.direction() {
            Direction::T => Direction::R,
            Direction::R => Direction::T,
        };
        assert!(other.decode(&golden.bytes).is_err(), "{}", golden.name);
    }
}

#[test]
fn a_head_without_payload_is_enough_and_no_less_is() {
    for golden in Golden::all() {
        let whole = golden.decode();
        let len = golden.bytes.len();
        let enough = whole.1.payload_at().unwrap_or(len);
        for (cut, direction) in (0..=len).flat_map(|cut| Direction::BOTH.map(|d| (cut, d))) {
            let head = direction.decode_head(&golden.bytes[..cut], len);
            if cut >= enough && direction == golden.direction() {
                assert_eq!(head, Ok(whole), "{} cut to {cut}", golden.name);
            } else {
                assert!(head.is_err(), "{} cut to {cut}", golden.name);
            }
        }
    }
}

#[test]
fn messages_follow_each_other_in_one_buffer() {
    let mut out = Vec::new();
    let mut expected = Vec::new();
    for golden in Golden::all() {
        let (tag, message) = golden.decode();
        let end = message.payload_at().unwrap_or(golden.bytes.len());
        expected.extend_from_slice(&golden.bytes[..end]);
        match message {
            Message::T(message) => message.encode(tag, &mut out),
            Message::R(message) => message.encode(tag, &mut out),
        }
        .expect("fits");
    }
    assert_eq!(out, expected);
}

#[test]
fn payloads_begin_where_the_protocol_says() {
    assert_eq!(Twrite::PAYLOAD, 4 + 1 + 2 + 4 + 8 + 4);
    assert_eq!(Rread::PAYLOAD, 4 + 1 + 2 + 4);
    assert_eq!(Rreaddir::PAYLOAD, 4 + 1 + 2 + 4);
}

#[test]
fn rreaddir_has_its_entries() {
    let golden = Golden::all()
        .into_iter()
        .find(|golden| golden.name == "Rreaddir")
        .expect("is there");
    let entries: Result<Vec<_>, _> =
        DirEntry::decode_all(&golden.bytes[Rreaddir::PAYLOAD..]).collect();
    let qid = |kind, version, path| Qid {
        kind,
        version,
        path,
    };
    let expected = [
        DirEntry {
            qid: qid(QidKind::DIR, 0x1122_3344, 0x0102_0304_0506_0708),
            offset: 1,
            kind: 4,
            name: b".",
        },
        DirEntry {
            qid: qid(QidKind::FILE, 0x5566_7788, 0x1112_1314_1516_1718),
            offset: 0x7FFF_FFFF_FFFF_FFFE,
            kind: 8,
            name: "naïve name".as_bytes(),
        },
        DirEntry {
            qid: qid(QidKind::SYMLINK, 0x99AA_BBCC, 0x2122_2324_2526_2728),
            offset: 0x7FFF_FFFF_FFFF_FFFF,
            kind: 10,
            name: b"l",
        },
    ];
    assert_eq!(entries.as_deref(), Ok(expected.as_slice()));

    let mut payload = Vec::new();
    for entry in &expected {
        entry.encode(&mut payload).expect("fits");
    }
    assert_eq!(payload, golden.bytes[Rreaddir::PAYLOAD..]);
}

#[test]
fn a_message_is_readable_in_a_log() {
    let message = Tmessage::Attach(Tattach {
        fid: 1,
        afid: 2,
        uname: b"caf\xE9",
        aname: b"say \"x\"",
        n_uname: NONUNAME,
    });
    assert_eq!(
        format!("{message:?}"),
        r#"Attach(Tattach { fid: 1, afid: 2, uname: "caf\xe9", aname: "say \"x\"", n_uname: 4294967295 })"#
    );
    let time = Time { sec: 1, nsec: 2 };
    assert_eq!(format!("{time:?}"), "Time { sec: 1, nsec: 2 }");
}
