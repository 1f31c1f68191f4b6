//! A pinned file of the export, and operations on it that take no name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, OpenHow, ResolveFlag, fcntl, open, openat, openat2};
use nix::sys::stat::Mode;

use super::name::Name;
use super::sys::{self, ProcPath};

/// An inode pinned by an `O_PATH` descriptor: no rename or unlink, by whomever, changes which inode
/// it is. It grants no access by itself; reading and writing need [`Node::reopen`].
#[derive(Debug)]
pub struct Node {
    fd: OwnedFd,
    key: InodeKey,
    kind: FileKind,
}

/// Identifies an inode on the host while it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InodeId {
    /// Major and minor number of the file system's device.
    pub device: (u32, u32),
    /// The inode's number there.
    pub inode: u64,
}

/// Identifies an inode also when it is not pinned any more: another inode may get its number then,
/// but with another birth time. The same inode may be seen through several mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InodeKey {
    /// The inode.
    pub id: InodeId,
    /// The mount through which it was reached; 0 where the kernel does not say.
    pub mount: u64,
    /// When it was created, in seconds and nanoseconds; None where the file system does not tell.
    pub birth: Option<(i64, u32)>,
}

impl InodeKey {
    /// Whether both are the same inode, through whichever mounts.
    pub fn same_inode(&self, other: &InodeKey) -> bool {
        (self.id, self.birth) == (other.id, other.birth)
    }
}

/// The type bits of a file's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a fifo or a socket: never opened on the host.
    Special,
}

/// The result of `statx`.
#[derive(Clone, Copy, Debug)]
pub struct Stat(pub libc::statx);

impl Default for Stat {
    /// Nothing is known yet.
    fn default() -> Stat {
        Stat(sys::no_statx())
    }
}

impl Stat {
    /// The file's identity.
    pub fn id(&self) -> InodeId {
        InodeId {
            device: (self.0.stx_dev_major, self.0.stx_dev_minor),
            inode: self.0.stx_ino,
        }
    }

    /// The file's identity beyond the life of a descriptor.
    pub fn key(&self) -> InodeKey {
        let birth = &self.0.stx_btime;
        InodeKey {
            id: self.id(),
            mount: if self.0.stx_mask & libc::STATX_MNT_ID != 0 {
                self.0.stx_mnt_id
            } else {
                0
            },
            birth: (self.0.stx_mask & libc::STATX_BTIME != 0)
                .then_some((birth.tv_sec, birth.tv_nsec)),
        }
    }

    /// Whether the file was created at this time since the epoch, or later. Where the file system does
    /// not tell, whether it was changed.
    pub fn created_since(&self, since: Duration) -> bool {
        match self.key().birth {
            Some((seconds, nanoseconds)) => is_since(seconds, nanoseconds, since),
            None => self.changed_since(since),
        }
    }

    /// Whether the change time is this time since the epoch, or later.
    pub fn changed_since(&self, since: Duration) -> bool {
        let changed = &self.0.stx_ctime;
        is_since(changed.tv_sec, changed.tv_nsec, since)
    }

    /// The file's type.
    pub fn kind(&self) -> FileKind {
        match u32::from(self.0.stx_mode) & libc::S_IFMT {
            libc::S_IFREG => FileKind::Regular,
            libc::S_IFDIR => FileKind::Directory,
            libc::S_IFLNK => FileKind::Symlink,
            _ => FileKind::Special,
        }
    }
}

fn is_since(seconds: i64, nanoseconds: u32, since: Duration) -> bool {
    u64::try_from(seconds).is_ok_and(|seconds| Duration::new(seconds, nanoseconds) >= since)
}

/// How far a lookup may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Only as far as the kernel's caches reach, and across no mount point; EAGAIN where it would
    /// have to ask the disk.
    Cached,
    /// Across no mount point: EAGAIN there. For a file system that does not make anyone wait.
    Local,
    /// All the way, even if it blocks.
    Blocking,
}

impl Node {
    /// Takes over a descriptor of a file, `O_PATH` or any other.
    pub fn new(fd: OwnedFd) -> Result<(Node, Stat), Errno> {
        let mut stat = Stat::default();
        sys::statx(fd.as_fd(), &mut stat.0)?;
        Ok((
            Node {
                fd,
                key: stat.key(),
                kind: stat.kind(),
            },
            stat,
        ))
    }

    /// Takes over a descriptor that another process has used as the node with this key and of this
    /// kind. Asks no server. Errors: ESTALE if it leads to another file.
    pub fn adopt(fd: OwnedFd, key: InodeKey, kind: FileKind) -> Result<Node, Errno> {
        let mut stat = Stat::default();
        sys::statx_cached(fd.as_fd(), &mut stat.0)?;
        // A server that is not asked may not tell the birth.
        let same = (stat.id(), stat.key().mount, stat.kind()) == (key.id, key.mount, kind);
        match same {
            true => Ok(Node { fd, key, kind }),
            false => Err(Errno::ESTALE),
        }
    }

    /// The same inode, with a descriptor of its own. Errors: those of dup(2) and statx(2).
    pub fn duplicate(&self) -> Result<(Node, Stat), Errno> {
        Node::new(self.fd.try_clone().map_err(errno_of)?)
    }

    /// Looks one name up below this directory. A symbolic link is pinned itself, never followed;
    /// nothing above or beside the directory can be reached. Errors: those of openat2(2), among
    /// them EAGAIN with [`Lookup::Cached`] and [`Lookup::Local`].
    pub fn child(&self, name: &Name, lookup: Lookup) -> Result<(Node, Stat), Errno> {
        let mut resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        if lookup != Lookup::Blocking {
            resolve |= ResolveFlag::RESOLVE_NO_XDEV;
        }
        if lookup == Lookup::Cached {
            resolve |= ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED);
        }
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(resolve);
        match openat2(&self.fd, name.as_c_str(), how) {
            Err(Errno::EXDEV) if lookup != Lookup::Blocking => Err(Errno::EAGAIN),
            result => Node::new(result?),
        }
    }

    /// The key of the inode that a name below this directory stands for now, without pinning it.
    /// Errors: those of statx(2).
    pub fn child_key(&self, name: &Name) -> Result<InodeKey, Errno> {
        self.child_stat(name).map(|stat| stat.key())
    }

    /// The attributes of the file that a name below this directory stands for now. Takes no
    /// descriptor. Errors: those of statx(2).
    pub fn child_stat(&self, name: &Name) -> Result<Stat, Errno> {
        let mut stat = Stat::default();
        sys::statx_at(self.fd.as_fd(), name.as_c_str(), &mut stat.0)?;
        Ok(stat)
    }

    /// The directory that the kernel has above this one, inside the share or not.
    pub(super) fn up(&self, lookup: Lookup) -> Result<(Node, Stat), Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        if lookup == Lookup::Blocking {
            return Node::new(openat(&self.fd, c"..", flags, Mode::empty())?);
        }
        let resolve = ResolveFlag::RESOLVE_NO_XDEV;
        match openat2(
            &self.fd,
            c"..",
            OpenHow::new().flags(flags).resolve(resolve),
        ) {
            Err(Errno::EXDEV) => Err(Errno::EAGAIN),
            result => Node::new(result?),
        }
    }

    /// Pins the inode of an open file. A duplicate of the open file would not do: its locks would
    /// live as long as any fid that was cloned from it.
    pub fn of_open_file(file: impl AsFd) -> Result<(Node, Stat), Errno> {
        let path = ProcPath::new(file.as_fd());
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        Node::new(open(path.as_c_str(), flags, Mode::empty())?)
    }

    /// Creates a regular file below this directory and opens it, with exactly the permission bits
    /// of `mode`. Errors: EEXIST if the name exists; those of open(2).
    pub fn create(&self, name: &Name, flags: OFlag, mode: u32) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .mode(permissions(mode))
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.fd, name.as_c_str(), how)
    }

    /// The file's attributes now. Works for every kind of file, even without a name.
    pub fn stat(&self) -> Result<Stat, Errno> {
        let mut stat = Stat::default();
        self.stat_into(&mut stat)?;
        Ok(stat)
    }

    /// [`Node::stat`] in place: the result is too long to be moved.
    pub fn stat_into(&self, stat: &mut Stat) -> Result<(), Errno> {
        sys::statx(self.fd.as_fd(), &mut stat.0)
    }

    /// Opens this inode for reading or writing. With `O_NONBLOCK` it does not wait for the holder
    /// of a lease; the returned descriptor does not have the flag. Errors: ELOOP for a symbolic
    /// link, ENXIO for a device, fifo or socket, whose opening would act on the host; EAGAIN for a
    /// lease, whose holder has been asked to release it; those of open(2).
    pub fn reopen(&self, flags: OFlag) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlag::O_CLOEXEC;
        match self.kind {
            FileKind::Regular => {}
            FileKind::Directory => {
                let flags = flags | OFlag::O_DIRECTORY;
                return openat(&self.fd, c".", flags, Mode::empty());
            }
            FileKind::Symlink => return Err(Errno::ELOOP),
            FileKind::Special => return Err(Errno::ENXIO),
        }
        match self.open_file(flags) {
            // Only the owner may leave the access time unchanged; the flag is a hint.
            Err(Errno::EPERM) if flags.contains(OFlag::O_NOATIME) => {
                self.open_file(flags - OFlag::O_NOATIME)
            }
            result => result,
        }
    }

    fn open_file(&self, flags: OFlag) -> Result<OwnedFd, Errno> {
        let fd = open(self.proc_path().as_c_str(), flags, Mode::empty())?;
        if flags.contains(OFlag::O_NONBLOCK) {
            // Of the other flags F_SETFL changes only the given ones.
            fcntl(&fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
        }
        Ok(fd)
    }

    /// The path by which calls that refuse an `O_PATH` descriptor reach the inode.
    pub fn proc_path(&self) -> ProcPath {
        ProcPath::new(self.fd.as_fd())
    }

    /// The inode's identity.
    pub fn id(&self) -> InodeId {
        self.key.id
    }

    /// The inode's identity beyond the life of the descriptor.
    pub fn key(&self) -> &InodeKey {
        &self.key
    }

    /// The inode's type, which never changes.
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// Errors: EXDEV if both are on different mounts, so that a name of one cannot become a name of
    /// the other. Their file systems, one of which may not answer, need not be asked then.
    pub fn same_mount(&self, other: &Node) -> Result<(), Errno> {
        let mount = |node: &Node| match node.key.mount {
            0 => (node.id().device, 0),
            mount => ((0, 0), mount),
        };
        if mount(self) == mount(other) {
            Ok(())
        } else {
            Err(Errno::EXDEV)
        }
    }

    /// Errors: ENOTDIR unless this is a directory.
    pub fn directory(&self) -> Result<&Node, Errno> {
        if self.kind == FileKind::Directory {
            Ok(self)
        } else {
            Err(Errno::ENOTDIR)
        }
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The permission bits of a mode from the wire; some clients send the type with them.
pub fn permissions(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o7777)
}

/// The errno of an error of a system call; EIO for any other error.
pub fn errno_of(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::AtomicUsize;

    use super::super::name::Component;
    use super::*;
    use crate::export::WayUp;

    fn pin(path: &std::path::Path) -> Node {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        Node::new(open(path, flags, Mode::empty()).unwrap())
            .unwrap()
            .0
    }

    fn name(text: &str) -> Name {
        match Component::new(text.as_bytes()).unwrap() {
            Component::Name(name) => name,
            other => panic!("{other:?} is not a name"),
        }
    }

    #[test]
    fn a_symbolic_link_is_pinned_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/etc", dir.path().join("link")).unwrap();
        let (link, _) = pin(dir.path())
            .child(&name("link"), Lookup::Blocking)
            .unwrap();
        assert_eq!(link.kind(), FileKind::Symlink);
        assert_eq!(link.reopen(OFlag::O_RDONLY).unwrap_err(), Errno::ELOOP);
        assert_eq!(
            link.child(&name("passwd"), Lookup::Blocking).unwrap_err(),
            Errno::ENOTDIR
        );
    }

    #[test]
    fn a_fifo_is_never_opened() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), Mode::S_IRWXU).unwrap();
        let (fifo, _) = pin(dir.path())
            .child(&name("fifo"), Lookup::Blocking)
            .unwrap();
        assert_eq!(fifo.reopen(OFlag::O_RDONLY).unwrap_err(), Errno::ENXIO);
    }

    #[test]
    fn not_to_wait_for_a_lease_is_no_property_of_what_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let file = pin(&dir.path().join("file"));
        let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_NOATIME | OFlag::O_DSYNC;
        let flags_of = |fd| OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap());
        let waiting = flags_of(file.reopen(flags).unwrap());
        assert!(waiting.contains(flags), "{waiting:?}");
        let other = flags_of(file.reopen(flags | OFlag::O_NONBLOCK).unwrap());
        assert_eq!(other, waiting);
    }

    #[test]
    fn the_parent_stops_at_the_root() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/a/b")).unwrap();
        let root = pin(&dir.path().join("root"));
        let b = pin(&dir.path().join("root/a/b"));
        let running = AtomicUsize::new(0);
        let way = &mut WayUp::new(&root, &running);
        let (a, _) = b.parent(way, Lookup::Local).unwrap();
        assert_eq!(a.id(), pin(&dir.path().join("root/a")).id());
        let (top, _) = a.parent(way, Lookup::Local).unwrap();
        assert_eq!(top.id(), root.id());
        assert_eq!(top.parent(way, Lookup::Local).unwrap().0.id(), root.id());
    }

    #[test]
    fn a_directory_moved_out_of_the_share_has_no_parent_for_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/a")).unwrap();
        let root = pin(&dir.path().join("root"));
        let a = pin(&dir.path().join("root/a"));
        fs::rename(dir.path().join("root/a"), dir.path().join("a")).unwrap();
        let running = AtomicUsize::new(0);
        let way = &mut WayUp::new(&root, &running);
        assert_eq!(a.parent(way, Lookup::Local).unwrap_err(), Errno::ENOENT);
    }
}
