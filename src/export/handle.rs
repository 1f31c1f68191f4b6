//! Finding an inode again after its descriptor was evicted.
//!
//! An inode is found by its directory and name, and accepted only if it is the same inode. If the
//! operator asks for it, the kernel's file handle (open_by_handle_at(2)) leads to the inode itself,
//! wherever it was moved, as long as it exists. That takes a file system that can be exported, and
//! CAP_DAC_READ_SEARCH, with which any inode of that file system can be opened.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use clap::ValueEnum;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::statfs::{FsType, fstatfs};

use super::name::Name;
use super::node::{FileKind, InodeKey, Lookup, Node};
use super::sys::{self, FileHandle};

/// Whether the kernel's file handles are used. The names are those of virtiofsd's option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FileHandles {
    /// By name alone: what the host has renamed since gets ESTALE
    #[default]
    Never,
    /// By handles where they can be had (as root, on most file systems), else by name
    Prefer,
    /// By handles alone: the daemon does not start without them, and a file of another file system
    /// that has none gets EOPNOTSUPP
    Mandatory,
}

/// As linux/magic.h has it.
const FUSE: FsType = FsType(0x6573_5546);

/// How an inode without a descriptor is found again.
#[derive(Debug)]
pub enum InodeLocator {
    /// By the kernel's handle, on this mount.
    Handle(FileHandle, Arc<Mount>),
    /// By its name in its directory. The mount has no handles, if they are used.
    Name(Option<Arc<Mount>>),
}

/// What is known of a mount. The locators on it keep it alive, because its descriptor keeps the
/// host from unmounting. The last one to be dropped closes the descriptor, which asks no server:
/// nothing was read through it.
#[derive(Debug)]
pub struct Mount {
    /// The descriptor for open_by_handle_at(2); None where that is refused.
    descriptor: Option<OwnedFd>,
}

/// Makes and follows locators. Called on workers.
#[derive(Debug)]
pub struct InodeLocators {
    /// Each mount that has locators; some have been dropped. None if handles are not used.
    mounts: Option<Mutex<HashMap<u64, Weak<Mount>>>>,
    by_name: AtomicBool,
    /// No inode is found by its name.
    mandatory: bool,
}

impl InodeLocators {
    /// With or without file handles.
    pub fn new(handles: FileHandles) -> InodeLocators {
        let never = handles == FileHandles::Never;
        InodeLocators {
            mounts: (!never).then(Mutex::default),
            by_name: AtomicBool::new(never),
            mandatory: handles == FileHandles::Mandatory,
        }
    }

    /// Whether the first file of a file system may be reached. Errors: EOPNOTSUPP if handles are
    /// mandatory and the file's own does not lead back to it; EPERM without the right to use
    /// handles.
    pub fn check(&self, node: &Node) -> Result<(), Errno> {
        if !self.mandatory {
            return Ok(());
        }
        let back = || {
            let handle = sys::name_to_handle(node.as_fd())?;
            match node.kind() {
                FileKind::Directory | FileKind::Regular => {
                    let descriptor = node.reopen(OFlag::O_RDONLY)?;
                    InodeLocators::leads_back(descriptor.as_fd(), &handle, node)
                }
                // Not opened just to find out.
                FileKind::Symlink | FileKind::Special => Ok(true),
            }
        };
        match back() {
            Ok(true) => Ok(()),
            // Says nothing about the file system.
            Err(error @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EPERM)) => {
                Err(error)
            }
            Ok(false) | Err(_) => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Whether a handle leads to the node that it was made for.
    fn leads_back(mount: BorrowedFd<'_>, handle: &FileHandle, node: &Node) -> Result<bool, Errno> {
        // Most handles of FUSE lead back only while the kernel remembers the inode, as it does now,
        // and nothing tells which do.
        if fstatfs(node)?.filesystem_type() == FUSE {
            return Ok(false);
        }
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let (found, _) = sys::open_by_handle(mount, handle, flags).and_then(Node::new)?;
        Ok(found.key().same_inode(node.key()))
    }

    /// Whether some inodes are found by their names, so that moves must be noted.
    pub fn by_name(&self) -> bool {
        self.by_name.load(Ordering::Relaxed)
    }

    /// A locator for `node`, with which it can be evicted; None if only its descriptor leads to it,
    /// as for a file without a name, which the descriptor keeps alive. `place` is where it was last
    /// seen.
    pub fn of(&self, node: &Node, place: Option<(&Node, &Name)>) -> Option<InodeLocator> {
        let stat = node.stat().ok()?;
        if stat.0.stx_nlink == 0 {
            return None;
        }
        let mount = self.mount(node, place.map(|(directory, _)| directory));
        if let Some(mount) = mount.as_ref().filter(|mount| mount.descriptor.is_some()) {
            if let Ok(handle) = sys::name_to_handle(node.as_fd()) {
                return Some(InodeLocator::Handle(handle, mount.clone()));
            }
        }
        if self.mandatory {
            return None;
        }
        let (directory, name) = place?;
        // Takes no descriptor: there may be none left.
        let found = directory.child_key(name).ok()?;
        (found == *node.key()).then(|| {
            self.by_name.store(true, Ordering::Relaxed);
            InodeLocator::Name(mount)
        })
    }

    /// The locator that another process has made of a handle (`None`: of the name) on the mount of the
    /// directory `near`. May block.
    pub fn adopt(&self, handle: Option<&[u8]>, near: Option<&Node>) -> InodeLocator {
        let mount = near.and_then(|near| self.mount(near, None));
        match (handle.and_then(FileHandle::from_bytes), mount) {
            (Some(handle), Some(mount)) => InodeLocator::Handle(handle, mount),
            (_, mount) => {
                self.by_name.store(true, Ordering::Relaxed);
                InodeLocator::Name(mount)
            }
        }
    }

    /// Follows locators one after the other, each to the inode that had this key and this name in
    /// the directory before, the first below `top`. Errors: those of openat2(2) and
    /// open_by_handle_at(2), ESTALE; EINTR if `stopping` is not 0.
    pub fn follow_all<'a>(
        &self,
        top: Option<&Node>,
        steps: impl IntoIterator<Item = (&'a InodeLocator, &'a InodeKey, Option<&'a Name>)>,
        stopping: &AtomicUsize,
    ) -> Result<Node, Errno> {
        /// This many steps are taken even when stopping. They take no longer than one call that a
        /// stop waits for, and a program of the guest should not see an error because its machine
        /// is paused.
        const FEW: usize = 64;
        let mut found: Option<Node> = None;
        for (step, (locator, key, name)) in steps.into_iter().enumerate() {
            if step >= FEW && stopping.load(Ordering::Relaxed) > 0 {
                return Err(Errno::EINTR);
            }
            let place = found.as_ref().or(top).zip(name);
            found = Some(self.follow(locator, key, place)?);
        }
        found.ok_or(Errno::ESTALE)
    }

    /// Follows a locator to the inode that was `key`. Errors: ESTALE if it is gone or was moved;
    /// those of open_by_handle_at(2) and openat2(2).
    fn follow(
        &self,
        locator: &InodeLocator,
        key: &InodeKey,
        place: Option<(&Node, &Name)>,
    ) -> Result<Node, Errno> {
        let found = match (locator, place) {
            (InodeLocator::Handle(handle, mount), _) => {
                let mount = mount.descriptor.as_ref().ok_or(Errno::ESTALE)?;
                sys::open_by_handle(mount.as_fd(), handle, OFlag::O_PATH | OFlag::O_CLOEXEC)
                    .and_then(Node::new)
            }
            (InodeLocator::Name(_), Some((directory, name))) => {
                // A mount that covers it now is not crossed: that would be another file.
                let there = directory.key();
                let crosses = there.mount == 0
                    || (there.mount, there.id.device) != (key.mount, key.id.device);
                let lookup = match crosses {
                    true => Lookup::Blocking,
                    false => Lookup::Local,
                };
                directory.child(name, lookup)
            }
            (InodeLocator::Name(_), None) => return Err(Errno::ESTALE),
        };
        match found {
            // A handle leads to the mount on which it is opened, so only the inode is compared.
            Ok((node, _)) if node.key().same_inode(key) => Ok(node),
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EAGAIN) => {
                Err(Errno::ESTALE)
            }
            Err(error) => Err(error),
        }
    }

    /// The mount of `node`, if handles are used and it can be told whether they work there.
    fn mount(&self, node: &Node, above: Option<&Node>) -> Option<Arc<Mount>> {
        let mounts = self.mounts.as_ref()?;
        let mounts = || mounts.lock().unwrap_or_else(PoisonError::into_inner);
        let id = node.key().mount;
        let known = mounts().get(&id).and_then(Weak::upgrade);
        if known.is_some() {
            return known;
        }
        // The first one of this mount: test whether the way back works. Only a directory may be
        // kept open for it: a file that is removed would still fill the disk. A later inode will
        // tell.
        let directory = std::iter::once(node)
            .chain(above)
            .find(|node| node.kind() == FileKind::Directory && node.key().mount == id)?;
        let descriptor = directory.reopen(OFlag::O_RDONLY).ok()?;
        let works = sys::name_to_handle(node.as_fd())
            .and_then(|handle| InodeLocators::leads_back(descriptor.as_fd(), &handle, node));
        let works = match works {
            Ok(works) => works,
            // Says nothing about the mount.
            Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => return None,
            Err(_) => false,
        };
        let mount = Arc::new(Mount {
            descriptor: works.then_some(descriptor),
        });
        let mut mounts = mounts();
        mounts.retain(|_, mount| mount.strong_count() > 0);
        mounts.insert(id, Arc::downgrade(&mount));
        Some(mount)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::fcntl::open;
    use nix::sys::stat::Mode;

    use super::*;

    fn pin(path: &std::path::Path) -> Node {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Node::new(open(path, flags, Mode::empty()).unwrap())
            .unwrap()
            .0
    }

    fn name(text: &str) -> Name {
        Name::for_new(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_handle_leads_to_the_inode_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let file = pin(&dir.path().join("file"));
        let locators = InodeLocators::new(FileHandles::Prefer);
        let top = pin(dir.path());
        let locator = locators.of(&file, Some((&top, &name("file"))));
        let Some(locator @ InodeLocator::Handle(..)) = locator else {
            assert!(matches!(locator, Some(InodeLocator::Name(_))));
            stub_guest::skipped("this user, or this file system, has no file handles");
            return;
        };
        let key = *file.key();
        drop(file);
        fs::rename(dir.path().join("file"), dir.path().join("sub/moved")).unwrap();
        let found = locators.follow(&locator, &key, None).unwrap();
        assert_eq!(found.key(), &key);
        drop(found);
        fs::remove_file(dir.path().join("sub/moved")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(
            locators.follow(&locator, &key, None).unwrap_err(),
            Errno::ESTALE
        );
    }

    #[test]
    fn a_name_leads_to_the_same_inode_or_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let (top, file) = (pin(dir.path()), pin(&dir.path().join("file")));
        let name = name("file");
        let place = Some((&top, &name));
        let locators = InodeLocators::new(FileHandles::Never);
        let locator = locators.of(&file, place).unwrap();
        let key = *file.key();
        drop(file);
        assert_eq!(locators.follow(&locator, &key, place).unwrap().key(), &key);
        fs::rename(dir.path().join("file"), dir.path().join("other")).unwrap();
        assert_eq!(
            locators.follow(&locator, &key, place).unwrap_err(),
            Errno::ESTALE
        );
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(
            locators.follow(&locator, &key, place).unwrap_err(),
            Errno::ESTALE
        );
    }

    #[test]
    fn what_has_no_name_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let (top, file) = (pin(dir.path()), pin(&dir.path().join("file")));
        fs::remove_file(dir.path().join("file")).unwrap();
        for handles in [
            FileHandles::Never,
            FileHandles::Prefer,
            FileHandles::Mandatory,
        ] {
            assert!(
                InodeLocators::new(handles)
                    .of(&file, Some((&top, &name("file"))))
                    .is_none()
            );
        }
        // Another file by its name is no locator of it.
        fs::write(dir.path().join("file"), "").unwrap();
        fs::write(dir.path().join("other"), "").unwrap();
        let other = pin(&dir.path().join("other"));
        assert!(
            InodeLocators::new(FileHandles::Never)
                .of(&other, Some((&top, &name("file"))))
                .is_none()
        );
    }

    #[test]
    fn a_long_chain_is_followed_until_a_stop() {
        let dir = tempfile::tempdir().unwrap();
        let top = pin(dir.path());
        let (locator, name) = (InodeLocator::Name(None), name("a"));
        let mut path = dir.path().to_owned();
        let keys: Vec<_> = (0..100)
            .map(|_| {
                path.push("a");
                fs::create_dir(&path).unwrap();
                *pin(&path).key()
            })
            .collect();
        let locators = InodeLocators::new(FileHandles::Never);
        let follow = |depth, stopping| {
            let steps = keys[..depth].iter().map(|key| (&locator, key, Some(&name)));
            locators
                .follow_all(Some(&top), steps, &AtomicUsize::new(stopping))
                .map(|node| *node.key())
        };
        assert_eq!(follow(100, 0), Ok(keys[99]));
        assert_eq!(follow(100, 1), Err(Errno::EINTR));
        assert_eq!(follow(50, 1), Ok(keys[49]));
    }
}
