//! From the host's inodes to the protocol's qids.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use clap::ValueEnum;
use foldhash::fast::RandomState;
use nix::errno::Errno;
use protocol::{Qid, QidKind};

use super::node::{FileKind, InodeId, Stat};

/// The bits of `qid.path` that hold an inode number; the file system's index is above them.
const INODE_BITS: u32 = 48;
/// How many file systems can have an index. Over time more may be mounted.
pub const FILE_SYSTEMS: usize = 1 << (63 - INODE_BITS);
/// Marks a path that is a hash, because inode number and index do not fit.
const HASHED: u64 = 1 << 63;

/// What to do if there is more than one file system below the share, so that inode numbers may
/// repeat. The names are those of QEMU's option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Multidevs {
    /// Every inode gets a path of its own.
    Remap,
    /// Only the share's own file system can be reached.
    Forbid,
    /// Paths are inode numbers, and the log says that they may repeat.
    Warn,
}

/// Gives every inode of the export its own `qid.path`, over all file systems below it. The share's
/// own file system has index 0: its paths are the inode numbers, and stay the same when the daemon
/// restarts.
///
/// Nothing is kept for an inode, because a guest may see any number of them. Its path follows from
/// the index of its file system and its number, and is unique if the number has at most 48 bits, as
/// on local disks. Otherwise, and on file systems that found no free index, it is a 63-bit hash of
/// both.
pub struct QidMap {
    policy: Multidevs,
    root: (u32, u32),
    devices: HashMap<(u32, u32), u64, RandomState>,
    record: Box<Record>,
}

/// Gets the index and the device of a file system.
type Record = dyn Fn(u64, (u32, u32));

impl QidMap {
    /// Paths for an export whose root is `root`.
    pub fn new(root: InodeId, policy: Multidevs) -> QidMap {
        QidMap {
            policy,
            root: root.device,
            devices: HashMap::from_iter([(root.device, 0)]),
            record: Box::new(|_, _| {}),
        }
    }

    /// The same paths, with these file systems behind the share's own. `record` is called for each file
    /// system that gets an index from now on.
    pub fn recorded(
        mut self,
        known: impl IntoIterator<Item = (u32, u32)>,
        record: impl Fn(u64, (u32, u32)) + 'static,
    ) -> QidMap {
        for device in known {
            self.is_first_of(device);
        }
        self.record = Box::new(record);
        self
    }

    /// Whether the guest may reach a file. Errors: ENODEV for one of another file system if that
    /// is forbidden.
    pub fn check(&mut self, id: InodeId) -> Result<(), Errno> {
        if id.device == self.root {
            return Ok(());
        }
        match self.policy {
            Multidevs::Remap => Ok(()),
            Multidevs::Forbid => Err(Errno::ENODEV),
            Multidevs::Warn => {
                if self.is_first_of(id.device) {
                    log::warn!(
                        "there is more than one file system below the share: the guest may take \
                         different files for the same; --multidevs remap tells them apart"
                    );
                }
                Ok(())
            }
        }
    }

    /// The qid of the file that `stat` describes.
    pub fn qid(&mut self, stat: &Stat) -> Qid {
        Qid {
            kind: kind(stat.kind()),
            version: version(stat),
            path: self.path(stat.id()),
        }
    }

    /// The `qid.path` of an inode. Two inodes never share one while the daemon runs, except two
    /// hashes, with a chance of 1 in 2^63. (They may with [`Multidevs::Warn`].)
    pub fn path(&mut self, id: InodeId) -> u64 {
        let fits = id.inode < 1 << INODE_BITS;
        // The share's own file system has index 0.
        if fits && id.device == self.root || self.policy == Multidevs::Warn {
            return id.inode;
        }
        self.is_first_of(id.device);
        match self.devices.get(&id.device) {
            Some(index) if fits => index << INODE_BITS | id.inode,
            // The same in each run: no secret depends on it, and nobody chooses inode numbers.
            _ => HASHED | BuildHasherDefault::<DefaultHasher>::default().hash_one(id),
        }
    }

    /// How many file systems have an index, with that of the share.
    pub fn file_systems(&self) -> u32 {
        self.devices.len() as u32
    }

    /// The index of a file system: 0 is that of the share, or of one that found no free index.
    pub fn index(&mut self, device: (u32, u32)) -> u32 {
        self.is_first_of(device);
        self.devices.get(&device).map_or(0, |index| *index as u32)
    }

    /// Whether a file system is seen for the first time. It gets an index, if one is left.
    fn is_first_of(&mut self, device: (u32, u32)) -> bool {
        let index = self.devices.len();
        match self.devices.entry(device) {
            Entry::Vacant(entry) if index < FILE_SYSTEMS => {
                entry.insert(index as u64);
                (self.record)(index as u64, device);
                true
            }
            _ => false,
        }
    }
}

/// The `qid.type` of a kind of file.
pub fn kind(kind: FileKind) -> QidKind {
    match kind {
        FileKind::Directory => QidKind::DIR,
        FileKind::Symlink => QidKind::SYMLINK,
        FileKind::Regular | FileKind::Special => QidKind::FILE,
    }
}

/// A number that changes with the file. The kernel moves the change time at every change of content
/// or metadata; the other inputs tell apart changes at the same time of a coarse clock. Never 0:
/// that would turn the client's cache off.
fn version(stat: &Stat) -> u32 {
    let s = &stat.0;
    let time = |time: &libc::statx_timestamp| {
        (time.tv_sec as u64)
            .wrapping_mul(1_000_000_000)
            .wrapping_add(time.tv_nsec.into())
    };
    // Multiplying by odd numbers spreads the low bits, which differ between changes, over the word;
    // by a different one for each word, so that one does not cancel another.
    let hash = [
        (time(&s.stx_ctime), 0x9E37_79B9_7F4A_7C15),
        (time(&s.stx_mtime), 0xBF58_476D_1CE4_E5B9),
        (s.stx_size, 0x94D0_49BB_1331_11EB),
        (
            u64::from(s.stx_nlink) << 32 | u64::from(s.stx_mode),
            0xD6E8_FEB8_6659_FD93,
        ),
        (
            u64::from(s.stx_uid) << 32 | u64::from(s.stx_gid),
            0xA076_1D64_78BD_642F,
        ),
    ]
    .into_iter()
    .fold(0, |sum: u64, (word, odd): (u64, u64)| {
        sum.wrapping_add(word.wrapping_mul(odd))
    });
    ((hash >> 32) as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(minor: u32, inode: u64) -> InodeId {
        InodeId {
            device: (8, minor),
            inode,
        }
    }

    #[test]
    fn the_share_s_own_inodes_keep_their_numbers() {
        let mut qids = QidMap::new(id(1, 2), Multidevs::Remap);
        assert_eq!(qids.path(id(1, 77)), 77);
    }

    #[test]
    fn no_two_inodes_share_a_path() {
        let mut qids = QidMap::new(id(1, 2), Multidevs::Remap);
        let mut seen = std::collections::HashSet::new();
        for minor in 1..50 {
            for inode in [1, 2, (1 << 48) - 1, 1 << 48, 1 << 49, u64::MAX] {
                let path = qids.path(id(minor, inode));
                assert!(seen.insert(path), "{path:#x} was given twice");
                assert_eq!(qids.path(id(minor, inode)), path);
            }
        }
    }

    #[test]
    fn file_systems_that_come_late_have_paths_of_their_own_and_cost_nothing() {
        let mut qids = QidMap::new(id(0, 2), Multidevs::Remap);
        let mut seen = std::collections::HashSet::new();
        for minor in 0..2 * FILE_SYSTEMS as u32 {
            for inode in [2, u64::from(minor)] {
                qids.path(id(minor, inode));
            }
            let path = qids.path(id(minor, 256));
            assert!(seen.insert(path), "{path:#x} was given twice");
        }
        for minor in 0..2 * FILE_SYSTEMS as u32 {
            assert!(!seen.insert(qids.path(id(minor, 256))));
        }
        assert_eq!(qids.devices.len(), FILE_SYSTEMS);
    }

    #[test]
    fn a_look_at_many_files_keeps_nothing_of_them() {
        let mut qids = QidMap::new(id(0, 2), Multidevs::Remap);
        for inode in 0..100_000 {
            qids.path(id(1, inode << 40));
        }
        let QidMap {
            policy: _,
            root: _,
            devices,
            record: _,
        } = qids;
        assert_eq!(devices.len(), 2);
    }
}
