//! Every message, with fields drawn at random, is itself again after encoding and decoding; and
//! every frame drawn at random is itself again after decoding and encoding.

use std::cell::Cell;

use proptest::collection::vec;
use proptest::prelude::*;
use protocol::*;

use crate::{Direction, decode_and_encode};

/// Where a message takes its fields from, each the next.
#[derive(Debug)]
struct Drawn {
    numbers: Vec<u64>,
    strings: Vec<Vec<u8>>,
    taken: Cell<usize>,
}

impl Drawn {
    fn any() -> impl Strategy<Value = Drawn> {
        let number = prop_oneof![4 => any::<u64>(), 1 => Just(0), 1 => Just(u64::MAX)];
        let string = prop_oneof![
            8 => vec(any::<u8>(), 0..40),
            1 => vec(any::<u8>(), 250..260),
            1 => Just(vec![b'x'; 65535]),
        ];
        (vec(number, 37), vec(string, 17)).prop_map(|(numbers, strings)| Drawn {
            numbers,
            strings,
            taken: Cell::new(0),
        })
    }

    fn next(&self) -> usize {
        self.taken.replace(self.taken.get() + 1)
    }

    fn u64(&self) -> u64 {
        self.numbers[self.next() % self.numbers.len()]
    }

    fn u32(&self) -> u32 {
        self.u64() as u32
    }

    fn u16(&self) -> u16 {
        self.u64() as u16
    }

    fn u8(&self) -> u8 {
        self.u64() as u8
    }

    /// A payload's length, which is made of bytes here.
    fn count(&self) -> u32 {
        self.u32() % 5000
    }

    fn bytes(&self) -> &[u8] {
        &self.strings[self.next() % self.strings.len()]
    }

    fn qid(&self) -> Qid {
        Qid {
            kind: QidKind(self.u8()),
            version: self.u32(),
            path: self.u64(),
        }
    }

    fn time(&self) -> Time {
        Time {
            sec: self.u64(),
            nsec: self.u64(),
        }
    }

    fn names(&self) -> Names<'_> {
        let names: Vec<_> = (0..self.u64() % 17).map(|_| self.bytes()).collect();
        Names::from_slice(&names).expect("at most 16")
    }

    fn qids(&self) -> Qids {
        let qids: Vec<_> = (0..self.u64() % 17).map(|_| self.qid()).collect();
        Qids::from_slice(&qids).expect("at most 16")
    }
}

/// A message of every type: `Variant Name { field: what is drawn, ... }`.
macro_rules! all {
    ($drawn:ident $enum:ident $($variant:ident $name:ident { $($field:ident: $draw:ident),* })+) => {
        vec![$($enum::$variant($name { $($field: $drawn.$draw()),* })),+]
    };
}

fn requests(drawn: &Drawn) -> Vec<Tmessage<'_>> {
    all! { drawn Tmessage
        Statfs Tstatfs { fid: u32 }
        Lopen Tlopen { fid: u32, flags: u32 }
        Lcreate Tlcreate { fid: u32, name: bytes, flags: u32, mode: u32, gid: u32 }
        Symlink Tsymlink { dfid: u32, name: bytes, target: bytes, gid: u32 }
        Mknod Tmknod { dfid: u32, name: bytes, mode: u32, major: u32, minor: u32, gid: u32 }
        Rename Trename { fid: u32, dfid: u32, name: bytes }
        Readlink Treadlink { fid: u32 }
        Getattr Tgetattr { fid: u32, mask: u64 }
        Setattr Tsetattr {
            fid: u32, valid: u32, mode: u32, uid: u32, gid: u32, size: u64, atime: time, mtime: time
        }
        Xattrwalk Txattrwalk { fid: u32, newfid: u32, name: bytes }
        Xattrcreate Txattrcreate { fid: u32, name: bytes, size: u64, flags: u32 }
        Readdir Treaddir { fid: u32, offset: u64, count: u32 }
        Fsync Tfsync { fid: u32, datasync: u32 }
        Lock Tlock {
            fid: u32, kind: u8, flags: u32, start: u64, length: u64, proc_id: u32, client_id: bytes
        }
        Getlock Tgetlock {
            fid: u32, kind: u8, start: u64, length: u64, proc_id: u32, client_id: bytes
        }
        Link Tlink { dfid: u32, fid: u32, name: bytes }
        Mkdir Tmkdir { dfid: u32, name: bytes, mode: u32, gid: u32 }
        Renameat Trenameat { olddirfid: u32, oldname: bytes, newdirfid: u32, newname: bytes }
        Unlinkat Tunlinkat { dirfid: u32, name: bytes, flags: u32 }
        Version Tversion { msize: u32, version: bytes }
        Auth Tauth { afid: u32, uname: bytes, aname: bytes, n_uname: u32 }
        Attach Tattach { fid: u32, afid: u32, uname: bytes, aname: bytes, n_uname: u32 }
        Flush Tflush { oldtag: u16 }
        Walk Twalk { fid: u32, newfid: u32, names: names }
        Read Tread { fid: u32, offset: u64, count: u32 }
        Write Twrite { fid: u32, offset: u64, count: count }
        Clunk Tclunk { fid: u32 }
        Remove Tremove { fid: u32 }
    }
}

fn replies(drawn: &Drawn) -> Vec<Rmessage<'_>> {
    all! { drawn Rmessage
        Lerror Rlerror { ecode: u32 }
        Statfs Rstatfs {
            kind: u32, bsize: u32, blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
            fsid: u64, namelen: u32
        }
        Lopen Rlopen { qid: qid, iounit: u32 }
        Lcreate Rlcreate { qid: qid, iounit: u32 }
        Symlink Rsymlink { qid: qid }
        Mknod Rmknod { qid: qid }
        Rename Rrename {}
        Readlink Rreadlink { target: bytes }
        Getattr Rgetattr {
            valid: u64, qid: qid, mode: u32, uid: u32, gid: u32, nlink: u64, rdev: u64, size: u64,
            blksize: u64, blocks: u64, atime: time, mtime: time, ctime: time, btime: time,
            r#gen: u64, data_version: u64
        }
        Setattr Rsetattr {}
        Xattrwalk Rxattrwalk { size: u64 }
        Xattrcreate Rxattrcreate {}
        Readdir Rreaddir { count: count }
        Fsync Rfsync {}
        Lock Rlock { status: u8 }
        Getlock Rgetlock { kind: u8, start: u64, length: u64, proc_id: u32, client_id: bytes }
        Link Rlink {}
        Mkdir Rmkdir { qid: qid }
        Renameat Rrenameat {}
        Unlinkat Runlinkat {}
        Version Rversion { msize: u32, version: bytes }
        Auth Rauth { aqid: qid }
        Attach Rattach { qid: qid }
        Flush Rflush {}
        Walk Rwalk { qids: qids }
        Read Rread { count: count }
        Write Rwrite { count: u32 }
        Clunk Rclunk {}
        Remove Rremove {}
    }
}

proptest! {
    #[test]
    fn messages(drawn in Drawn::any(), tag in any::<u16>(), before in vec(any::<u8>(), 0..20)) {
        let requests = requests(&drawn);
        let kinds: Vec<_> = requests.iter().map(Tmessage::kind).collect();
        prop_assert_eq!(kinds, Tmessage::ALL.iter().map(|(kind, _)| *kind).collect::<Vec<_>>());
        for message in requests {
            let mut out = before.clone();
            message.encode(tag, &mut out).expect("fits");
            prop_assert_eq!(&out[..before.len()], &before);
            let head = &out[before.len()..];
            let size = Header::decode(head).expect("a header").size as usize;
            prop_assert_eq!(Tmessage::decode_head(head, size), Ok((tag, message)));
            let mut frame = head.to_vec();
            frame.resize(size, 0xA5);
            prop_assert_eq!(Tmessage::decode(&frame), Ok((tag, message)));
        }

        let replies = replies(&drawn);
        let kinds: Vec<_> = replies.iter().map(Rmessage::kind).collect();
        prop_assert_eq!(kinds, Rmessage::ALL.iter().map(|(kind, _)| *kind).collect::<Vec<_>>());
        for message in replies {
            let mut out = before.clone();
            message.encode(tag, &mut out).expect("fits");
            prop_assert_eq!(&out[..before.len()], &before);
            let head = &out[before.len()..];
            let size = Header::decode(head).expect("a header").size as usize;
            prop_assert_eq!(Rmessage::decode_head(head, size), Ok((tag, message)));
            let mut frame = head.to_vec();
            frame.resize(size, 0xA5);
            prop_assert_eq!(Rmessage::decode(&frame), Ok((tag, message)));
        }
    }

    #[test]
    fn frames(kind in any::<u8>(), body in vec(prop_oneof![0..4u8, any::<u8>()], 0..200)) {
        let mut frame = (7 + body.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(&[kind, 0x34, 0x12]);
        frame.extend_from_slice(&body);
        decode_and_encode(&frame);
    }

    #[test]
    fn bytes(bytes in vec(any::<u8>(), 0..64), len in any::<usize>()) {
        decode_and_encode(&bytes);
        for direction in Direction::BOTH {
            prop_assert!(direction.decode_head(&bytes, len).is_err() || len == bytes.len());
        }
    }

    #[test]
    fn directory_entries(drawn in Drawn::any(), count in 0..10usize) {
        let entries: Vec<_> = (0..count)
            .map(|_| DirEntry {
                qid: drawn.qid(),
                offset: drawn.u64(),
                kind: drawn.u8(),
                name: drawn.bytes(),
            })
            .collect();
        let mut payload = Vec::new();
        for entry in &entries {
            let start = payload.len();
            entry.encode(&mut payload).expect("fits");
            prop_assert_eq!(payload.len() - start, entry.encoded_len());
        }
        let decoded: Result<Vec<_>, _> = DirEntry::decode_all(&payload).collect();
        prop_assert_eq!(decoded, Ok(entries));
    }

    #[test]
    fn directory_bytes(payload in vec(prop_oneof![0..4u8, any::<u8>()], 0..200)) {
        let mut again = Vec::new();
        let mut whole = true;
        for entry in DirEntry::decode_all(&payload) {
            prop_assert!(whole, "nothing comes behind an error");
            match entry {
                Ok(entry) => entry.encode(&mut again).expect("fits"),
                Err(_) => whole = false,
            }
        }
        prop_assert!(payload.starts_with(&again));
        prop_assert_eq!(whole, payload == again);
    }
}
