//! A pinned file of the export, and what can be asked of it without a name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, OpenHow, ResolveFlag, fcntl, open, openat, openat2};
use nix::sys::stat::Mode;

use super::name::Name;
use super::sys::{self, ProcPath};

/// An inode held by an `O_PATH` descriptor: renames and unlinks, by whomever, do not change what
/// it stands for. It grants nothing by itself; reading and writing need [`Node::reopen`].
#[derive(Debug)]
pub struct Node {
    fd: OwnedFd,
    key: InodeKey,
    kind: FileKind,
}

/// What identifies an inode on the host while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InodeId {
    /// Major and minor number of the file system's device.
    pub device: (u32, u32),
    /// The inode's number there.
    pub inode: u64,
}

/// What identifies a pinned inode also when it is no longer pinned: its number may then be given
/// to another, but not with the same birth, and the same inode may be seen through several mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InodeKey {
    /// The inode.
    pub id: InodeId,
    /// The mount through which it was reached; 0 where the kernel does not say.
    pub mount: u64,
    /// When it was made, in seconds and nanoseconds; none where the file system does not say.
    pub birth: Option<(i64, u32)>,
}

impl InodeKey {
    /// Whether both are the same inode, through whatever mounts.
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

/// What `statx` says of a file.
#[derive(Clone, Copy, Debug)]
pub struct Stat(pub libc::statx);

impl Default for Stat {
    /// Nothing is known.
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

    /// The file's identity beyond its descriptor.
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

/// How far a lookup may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Only as far as the kernel's caches reach, and across no mount; EAGAIN where it would have to
    /// ask the disk.
    Cached,
    /// Across no mount: EAGAIN there. For a file system that has nothing to wait for.
    Local,
    /// As far as it takes.
    Blocking,
}

impl Node {
    /// Takes over an `O_PATH` descriptor, or any other, of a file.
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

    /// What a name below this directory stands for now, without pinning it. Errors: those of
    /// statx(2).
    pub fn child_key(&self, name: &Name) -> Result<InodeKey, Errno> {
        self.child_stat(name).map(|stat| stat.key())
    }

    /// What the file is now that a name below this directory stands for: takes no descriptor.
    /// Errors: those of statx(2).
    pub fn child_stat(&self, name: &Name) -> Result<Stat, Errno> {
        let mut stat = Stat::default();
        sys::statx_at(self.fd.as_fd(), name.as_c_str(), &mut stat.0)?;
        Ok(stat)
    }

    /// What the kernel has above this directory, inside of the share or not.
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

    /// Pins the inode of an open file. The open file itself would not do: its locks would live as
    /// long as any fid that was cloned from it.
    pub fn of_open_file(file: impl AsFd) -> Result<(Node, Stat), Errno> {
        let path = ProcPath::new(file.as_fd());
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        Node::new(open(path.as_c_str(), flags, Mode::empty())?)
    }

    /// Makes a regular file below this directory and opens it, with exactly `mode`'s permission
    /// bits. Errors: EEXIST if the name is taken, by whatever; those of open(2).
    pub fn create(&self, name: &Name, flags: OFlag, mode: u32) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .mode(permissions(mode))
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.fd, name.as_c_str(), how)
    }

    /// What the file is now. Works on every kind of file, also when it has no name any more.
    pub fn stat(&self) -> Result<Stat, Errno> {
        let mut stat = Stat::default();
        self.stat_into(&mut stat)?;
        Ok(stat)
    }

    /// [`Node::stat`] to where it is wanted: it is too long to be handed from one to the next.
    pub fn stat_into(&self, stat: &mut Stat) -> Result<(), Errno> {
        sys::statx(self.fd.as_fd(), &mut stat.0)
    }

    /// Opens the very inode for reading or writing. With `O_NONBLOCK`, which what is returned does not
    /// have, whoever has a lease on it is not waited for. Errors: ELOOP for a symbolic link, ENXIO for
    /// a device, fifo or socket, whose opening would act on the host; EAGAIN for a lease that has to
    /// end first, which is being asked for; those of open(2).
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
            // Only the owner may leave the access time alone; the flag is a wish.
            Err(Errno::EPERM) if flags.contains(OFlag::O_NOATIME) => {
                self.open_file(flags - OFlag::O_NOATIME)
            }
            result => result,
        }
    }

    fn open_file(&self, flags: OFlag) -> Result<OwnedFd, Errno> {
        let fd = open(self.proc_path().as_c_str(), flags, Mode::empty())?;
        if flags.contains(OFlag::O_NONBLOCK) {
            // Of the others it changes those only that they say.
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

    /// The inode's identity beyond the descriptor.
    pub fn key(&self) -> &InodeKey {
        &self.key
    }

    /// The inode's type, which never changes.
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// EXDEV if a name of one could not become a name of the other, for they are on different mounts:
    /// then there is no need to ask their file systems, one of which may not answer.
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

    /// ENOTDIR unless this is a directory.
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

/// The permission bits of a mode that came over the wire; some clients send the type with it.
pub fn permissions(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o7777)
}

/// The errno of an error that a system call caused; EIO for any other.
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
