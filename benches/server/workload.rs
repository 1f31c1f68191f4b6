//! What is measured: operations on a tree that every peer serves.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::Result;
use crate::report::Unit;

/// Size of the files that are read and written.
pub const FILE_SIZE: u64 = 64 << 20;
/// Files in the directory that is listed.
pub const ENTRIES: usize = 10_000;
/// Components of the path that is walked.
pub const COMPONENTS: usize = 8;
/// Bytes of a reply with a directory's entries.
pub const LISTING: u32 = 128 << 10;

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The attributes of a file that is known.
    Getattr,
    /// A name is looked up, its attributes are asked for, and it is forgotten.
    Lookup,
    /// A file that is known is opened and closed.
    Open,
    /// A file is made, 4 KiB are written to it, it is closed and removed.
    Create,
    /// So many bytes of an open file.
    Read(u32),
    /// So many bytes to an open file.
    Write(u32),
    /// All entries of a directory.
    List,
    /// A path of eight components, as a lookup.
    Walk,
}

/// An operation and how it is done.
pub struct Workload {
    pub name: &'static str,
    pub operation: Operation,
    /// How many are outstanding: a line for each.
    pub depths: &'static [usize],
    /// Whether the page cache is emptied before each round.
    pub cold: bool,
}

const fn warm(name: &'static str, operation: Operation, depths: &'static [usize]) -> Workload {
    Workload {
        name,
        operation,
        depths,
        cold: false,
    }
}

pub static WORKLOADS: [Workload; 13] = [
    warm("getattr", Operation::Getattr, &[1, 64]),
    warm("lookup", Operation::Lookup, &[1, 64]),
    warm("open", Operation::Open, &[1, 64]),
    warm("create", Operation::Create, &[1, 64]),
    warm("read-4k", Operation::Read(4 << 10), &[1, 8, 64]),
    warm("read-64k", Operation::Read(64 << 10), &[1, 8, 64]),
    warm("read-480k", Operation::Read(480 << 10), &[1, 8, 64]),
    warm("write-4k", Operation::Write(4 << 10), &[1, 8, 64]),
    warm("write-64k", Operation::Write(64 << 10), &[1, 8, 64]),
    warm("write-480k", Operation::Write(480 << 10), &[1, 8, 64]),
    warm("readdir", Operation::List, &[1]),
    warm("walk", Operation::Walk, &[1, 64]),
    Workload {
        name: "cold-read-4k",
        operation: Operation::Read(4 << 10),
        depths: &[1, 64],
        cold: true,
    },
];

impl Workload {
    /// Brings the page cache into the state that the workload is about.
    pub fn prepare(&self, tree: &Tree) -> Result<()> {
        if self.cold {
            let file = File::open(tree.path(FILE))?;
            file.sync_all()?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
        Ok(())
    }

    /// Bytes that one operation moves.
    fn bytes(&self) -> Option<u32> {
        match self.operation {
            Operation::Read(count) | Operation::Write(count) => Some(count),
            _ => None,
        }
    }

    /// The unit of its rate.
    pub fn unit(&self) -> Unit {
        match self.bytes() {
            Some(_) => Unit::Gain("MiB/s"),
            None => Unit::Gain("ops/s"),
        }
    }

    /// What operations per second are multiplied with.
    pub fn scale(&self) -> f64 {
        self.bytes()
            .map_or(1.0, |bytes| f64::from(bytes) / f64::from(1 << 20))
    }
}

/// Where the operation number n of some bytes is in a file: not in order, so that reading ahead is
/// of no use to anybody.
pub fn offset(n: u64, count: u32) -> u64 {
    let pieces = FILE_SIZE / u64::from(count);
    (n.wrapping_mul(7919) % pieces) * u64::from(count)
}

pub const FILE: &str = "file";
pub const WRITTEN: &str = "written";
pub const DIRECTORY: &str = "directory";
pub const COMPONENT: &str = "component";

/// The files that are worked on.
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Makes them in an empty directory.
    pub fn make(root: &Path) -> Result<Tree> {
        let tree = Tree { root: root.into() };
        let piece: Vec<u8> = (0..1 << 20).map(|n: u32| (n / 7) as u8).collect();
        for name in [FILE, WRITTEN] {
            let file = File::create(tree.path(name))?;
            for at in (0..FILE_SIZE).step_by(piece.len()) {
                file.write_all_at(&piece, at)?;
            }
            file.sync_all()?;
        }
        fs::create_dir(tree.path(DIRECTORY))?;
        for number in 0..ENTRIES {
            File::create(tree.path(DIRECTORY).join(format!("entry-{number:05}")))?;
        }
        let path: PathBuf = [COMPONENT; COMPONENTS].iter().collect();
        fs::create_dir_all(tree.root.join(path))?;
        Ok(tree)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}

/// The name of the file that a lane makes and removes.
pub fn name_of(lane: usize) -> String {
    format!("made-{lane}")
}
