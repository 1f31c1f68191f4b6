//! The way up from directories of the share, as proved for one request.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use foldhash::fast::RandomState;
use nix::errno::Errno;

use super::node::{InodeKey, Lookup, Node, Stat, errno_of};

/// How many directories one request walks up. No path can name a deeper one.
pub const DEEPEST: usize = 4096;

/// What one request knows about directories below its root. Each way up is proved once: a later one
/// ends where it meets an earlier one. It is not kept for the next request, because the host may
/// have moved directories by then.
#[derive(Debug)]
pub struct WayUp<'a> {
    root: &'a Node,
    /// Directories that are below the root. None until the first way up, which most requests do not
    /// take.
    below: Option<HashSet<InodeKey, RandomState>>,
    left: usize,
    stopping: &'a AtomicUsize,
}

impl<'a> WayUp<'a> {
    /// Nothing is known yet of what is below `root`. While `stopping` is not 0, no step is taken.
    pub fn new(root: &'a Node, stopping: &'a AtomicUsize) -> WayUp<'a> {
        WayUp {
            root,
            below: None,
            left: DEEPEST,
            stopping,
        }
    }

    /// The directory whose parent is itself.
    pub fn root(&self) -> &Node {
        self.root
    }

    /// Errors: EINTR if the request must end.
    pub fn go_on(&self) -> Result<(), Errno> {
        match self.stopping.load(Ordering::Relaxed) {
            0 => Ok(()),
            _ => Err(Errno::EINTR),
        }
    }

    /// Proves that the way up from `directory` meets the root. Errors: ENOENT if it does not;
    /// ENAMETOOLONG if the way is too long for one request; EINTR if the request must end; those of
    /// [`Node::parent`].
    pub fn prove(&mut self, directory: &Node, lookup: Lookup) -> Result<(), Errno> {
        let left = self.left;
        let proved = self.go_up(directory, lookup);
        if proved == Err(Errno::EAGAIN) {
            // Another lookup is going to try again.
            self.left = left;
        }
        proved
    }

    fn go_up(&mut self, directory: &Node, lookup: Lookup) -> Result<(), Errno> {
        let mut proved = Vec::new();
        let mut above: Option<Node> = None;
        loop {
            let node = above.as_ref().unwrap_or(directory);
            let known = self.below.as_ref();
            if node.id() == self.root.id() || known.is_some_and(|known| known.contains(node.key()))
            {
                break;
            }
            self.go_on()?;
            self.left = self.left.checked_sub(1).ok_or(Errno::ENAMETOOLONG)?;
            let (next, _) = node.up(lookup)?;
            if next.id() == node.id() {
                return Err(Errno::ENOENT);
            }
            // Without a birth time another directory that gets the number later would be taken for
            // it.
            if node.key().birth.is_some() {
                proved.push(*node.key());
            }
            above = Some(next);
        }
        self.below.get_or_insert_default().extend(proved);
        Ok(())
    }
}

impl Node {
    /// The directory above this one, up to the root of `way`: the root's parent is the root.
    /// Errors: ENOTDIR; ENOENT if the directory is not below the root any more; EAGAIN with
    /// [`Lookup::Cached`] and [`Lookup::Local`] where the way crosses a mount point; those of
    /// [`WayUp::prove`].
    pub fn parent(&self, way: &mut WayUp<'_>, lookup: Lookup) -> Result<(Node, Stat), Errno> {
        if self.id() == way.root().id() {
            return Node::new(self.as_fd().try_clone_to_owned().map_err(errno_of)?);
        }
        let (parent, stat) = self.up(lookup)?;
        // The host may have moved the directory out of the share: prove that the way up still meets
        // the root before the guest gets anything from there.
        way.prove(&parent, lookup)?;
        Ok((parent, stat))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;

    use super::*;
    use crate::export::Name;

    fn pin(path: &Path) -> Node {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        Node::new(open(path, flags, Mode::empty()).unwrap())
            .unwrap()
            .0
    }

    /// A share with a directory at this depth.
    fn deep(depth: usize) -> (tempfile::TempDir, Node, Node) {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/".repeat(depth));
        fs::create_dir_all(&below).unwrap();
        let (root, deepest) = (pin(dir.path()), pin(&below));
        (dir, root, deepest)
    }

    #[test]
    fn a_way_is_proved_once() {
        const DEPTH: usize = 500;
        let (_dir, root, mut node) = deep(DEPTH);
        let running = AtomicUsize::new(0);
        let mut way = WayUp::new(&root, &running);
        let name = Name::for_new(b"a").unwrap();
        if node.key().birth.is_none() {
            stub_guest::skipped("this file system does not say when a file was made");
            return;
        }
        for _ in 0..1000 {
            let (parent, _) = node.parent(&mut way, Lookup::Local).unwrap();
            (node, _) = parent.child(&name, Lookup::Blocking).unwrap();
        }
        for _ in 0..DEPTH {
            (node, _) = node.parent(&mut way, Lookup::Local).unwrap();
        }
        assert_eq!(node.id(), root.id());
        assert!(DEEPEST - way.left < DEPTH, "{} steps", DEEPEST - way.left);
    }

    #[test]
    fn a_directory_moved_out_is_not_taken_for_one_that_was_proved() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/a/b/c")).unwrap();
        let (root, c) = (
            pin(&dir.path().join("root")),
            pin(&dir.path().join("root/a/b/c")),
        );
        let running = AtomicUsize::new(0);
        let mut way = WayUp::new(&root, &running);
        let (b, _) = c.parent(&mut way, Lookup::Local).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::rename(dir.path().join("root/a/b"), dir.path().join("outside/b")).unwrap();
        assert_eq!(
            b.parent(&mut way, Lookup::Local).unwrap_err(),
            Errno::ENOENT
        );
    }

    #[test]
    fn a_way_has_an_end_and_may_be_ended() {
        let (_dir, root, node) = deep(50);
        let stopping = AtomicUsize::new(1);
        let mut way = WayUp::new(&root, &stopping);
        assert_eq!(
            node.parent(&mut way, Lookup::Local).unwrap_err(),
            Errno::EINTR
        );
        stopping.store(0, Ordering::Relaxed);
        way.left = 48;
        assert_eq!(
            node.parent(&mut way, Lookup::Local).unwrap_err(),
            Errno::ENAMETOOLONG
        );
        way.left = 49;
        node.parent(&mut way, Lookup::Local).unwrap();
    }
}
