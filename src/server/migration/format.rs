//! The bytes of a session that another daemon continues: a message of postcard's (its wire format does not
//! change), which begins with [`MAGIC`].
//!
//! Nothing in it is a number of this host's: files are found by path or handle, and descriptors are
//! opened again.

use std::io;

use serde::{Deserialize, Serialize};

/// Before everything else.
const MAGIC: &[u8; 8] = b"9p-moves";

/// What is written now. Older versions are kept, and read.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Versions {
    /// Since 0.1.
    First(Session),
}

/// A session.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The agreed size of a message; 0 if there is no session.
    pub msize: u32,
    /// How many file systems have an index in qids, with that of the share.
    pub file_systems: u32,
    /// Files and the directories on the way to them; the first is the share's root. The directory of a
    /// file comes before it.
    pub files: Vec<File>,
    /// Fids.
    pub fids: Vec<Fid>,
    /// Locks, in the order in which they are taken again.
    pub locks: Vec<Lock>,
}

/// A file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its directory, as an index, and its name there. None for the root, and if it has none.
    pub place: Option<(u32, Vec<u8>)>,
    /// The kernel's handle, for a file of the share's own file system.
    pub handle: Option<Vec<u8>>,
    /// The index of its file system in qids.
    pub file_system: u32,
    /// Its inode's number there.
    pub inode: u64,
    /// When it was created, in seconds and nanoseconds, if that is known.
    pub birth: Option<(i64, u32)>,
    /// Its type.
    pub kind: Kind,
}

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else.
    Special,
}

/// A fid.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fid {
    /// The guest's number.
    pub number: u32,
    /// The user who attached, by the host's id.
    pub user: u32,
    /// The file where `..` stops.
    pub root: u32,
    /// What it stands for.
    pub target: Target,
}

/// What a fid stands for. Files are indices.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// A file.
    Walked(u32),
    /// An open file, and how it is open: the flags of Tlopen.
    Open(u32, u32),
    /// The value of an attribute.
    Value(Vec<u8>),
    /// An attribute that is being written.
    Draft(Draft),
}

/// An attribute that is being written.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    /// The file.
    pub file: u32,
    /// The attribute's name.
    pub name: Vec<u8>,
    /// Those of Txattrcreate.
    pub flags: u32,
    /// How many bytes were announced.
    pub size: u32,
    /// The bytes so far.
    pub value: Vec<u8>,
}

/// A locked range.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// The fid through which it was locked.
    pub fid: u32,
    /// The guest's name.
    pub client: Vec<u8>,
    /// The process there.
    pub process: u32,
    /// Whether it is a write lock.
    pub write: bool,
    /// The first byte.
    pub start: u64,
    /// The last byte.
    pub end: u64,
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Session {
    /// The session as bytes.
    pub fn encode(self) -> io::Result<Vec<u8>> {
        postcard::to_extend(&Versions::First(self), MAGIC.to_vec()).map_err(io::Error::other)
    }

    /// The session that [`Session::encode`] has returned as `bytes`. Takes little more memory than they do.
    /// Errors: InvalidData for anything else.
    pub fn decode(bytes: &[u8]) -> io::Result<Session> {
        let Some(message) = bytes.strip_prefix(MAGIC) else {
            return Err(invalid("it is not a session of vhost-user-9p"));
        };
        match postcard::take_from_bytes(message) {
            Ok((Versions::First(session), [])) => Ok(session),
            Ok(_) => Err(invalid("there is more behind the session")),
            Err(error) => Err(invalid(&format!(
                "it is damaged, or of a later version: {error}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of everything.
    fn session() -> Session {
        let file = |place: Option<(u32, &[u8])>, kind| File {
            place: place.map(|(directory, name)| (directory, name.to_vec())),
            handle: Some(vec![1, 2, 3]),
            file_system: 0,
            inode: 1 << 40,
            birth: Some((-1, 999_999_999)),
            kind,
        };
        let fid = |number, target| Fid {
            number,
            user: 1000,
            root: 0,
            target,
        };
        Session {
            msize: 512_000,
            file_systems: 2,
            files: vec![
                file(None, Kind::Directory),
                file(Some((0, b"name")), Kind::Regular),
                file(None, Kind::Symlink),
                file(Some((0, b"\xff")), Kind::Special),
            ],
            fids: vec![
                fid(1, Target::Walked(0)),
                fid(2, Target::Open(1, 0x402)),
                fid(3, Target::Value(b"value".to_vec())),
                fid(
                    u32::MAX - 1,
                    Target::Draft(Draft {
                        file: 1,
                        name: b"user.a".to_vec(),
                        flags: 1,
                        size: 9,
                        value: b"half".to_vec(),
                    }),
                ),
            ],
            locks: vec![Lock {
                fid: 2,
                client: b"guest".to_vec(),
                process: 7,
                write: true,
                start: 0,
                end: i64::MAX as u64,
            }],
        }
    }

    /// Sessions that earlier versions of this program have saved: they are read for ever.
    #[test]
    fn the_first_version_is_read() {
        let saved = include_bytes!("../../../fixtures/migration/session-1");
        assert_eq!(Session::decode(saved).unwrap(), session());
        // And written, as long as there is no other.
        assert_eq!(session().encode().unwrap(), saved);
    }

    #[test]
    fn every_truncation_and_every_tail_is_refused() {
        let bytes = session().encode().unwrap();
        for end in 0..bytes.len() {
            assert!(Session::decode(&bytes[..end]).is_err(), "{end}");
        }
        assert!(Session::decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn a_length_of_its_own_making_takes_no_memory() {
        // 2^32 files, in a message of a few bytes.
        let mut bytes = MAGIC.to_vec();
        bytes.extend([0, 0, 0, 0x80, 0x80, 0x80, 0x80, 0x10]);
        assert!(Session::decode(&bytes).is_err());
    }
}
