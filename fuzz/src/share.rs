//! A share, and beside it what nothing that a guest says may change.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// What of a file can be seen to have changed.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    path: PathBuf,
    inode: u64,
    mode: u32,
    owner: (u32, u32),
    links: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    content: Vec<u8>,
}

pub struct Share {
    dir: TempDir,
    outside: Vec<Seen>,
}

impl Share {
    pub fn new() -> Share {
        let place = [Path::new("/dev/shm"), &std::env::temp_dir()]
            .into_iter()
            .find_map(|place| tempfile::tempdir_in(place).ok());
        let dir = place.expect("a temporary directory");
        let outside = dir.path().join("outside");
        fs::create_dir_all(outside.join("d")).expect("outside");
        fs::write(outside.join("secret"), "secret").expect("outside");
        fs::write(outside.join("d/a"), "a").expect("outside");
        fs::create_dir(dir.path().join("share")).expect("the share");
        let mut share = Share {
            dir,
            outside: Vec::new(),
        };
        share.outside = share.look();
        share
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("share")
    }

    /// Puts the tree there that every input begins with.
    pub fn fill(&self) {
        let share = self.path();
        fs::set_permissions(&share, fs::Permissions::from_mode(0o755)).expect("the share");
        for entry in fs::read_dir(&share).expect("the share").flatten() {
            let path = entry.path();
            let _ = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
                _ => fs::remove_file(&path),
            };
        }
        fs::create_dir_all(share.join("d/e")).expect("a directory");
        fs::write(share.join("a"), "hello").expect("a file");
        fs::write(share.join("d/b"), "there").expect("a file");
        symlink("../outside", share.join("out")).expect("a link");
        symlink("../outside/secret", share.join("d/link")).expect("a link");
    }

    /// Everything outside is as it was.
    pub fn check(&self) {
        assert_eq!(
            self.look(),
            self.outside,
            "the host outside the share has changed"
        );
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .expect("the directory above")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["outside", "share"]);
    }

    fn look(&self) -> Vec<Seen> {
        ["outside", "outside/secret", "outside/d", "outside/d/a"]
            .map(|name| self.dir.path().join(name))
            .into_iter()
            .map(|path| {
                let seen = fs::symlink_metadata(&path).expect("is still there");
                let content = if seen.is_dir() {
                    Vec::new()
                } else {
                    fs::read(&path).expect("can still be read")
                };
                Seen {
                    path,
                    inode: seen.ino(),
                    mode: seen.mode(),
                    owner: (seen.uid(), seen.gid()),
                    links: seen.nlink(),
                    modified: (seen.mtime(), seen.mtime_nsec()),
                    changed: (seen.ctime(), seen.ctime_nsec()),
                    content,
                }
            })
            .collect()
    }
}
