//! A file system that fails and hangs on command: FUSE over a directory of its own.
//!
//! Nothing is cached, so every operation of the daemon's comes here. One that is to hang leaves its
//! whole rest behind as a closure, and no thread waits for it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;
use tempfile::TempDir;

/// How long the kernel believes what it is told.
const NOT_AT_ALL: Duration = Duration::ZERO;
const GENERATION: Generation = Generation(0);
/// The one attribute that files have.
const XATTR: &str = "user.faulty";
const XATTR_VALUE: &[u8] = b"a value";
/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// What can fail or hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Of a name in a directory.
    Lookup,
    /// stat(2) and its like.
    Getattr,
    /// chmod(2), truncate(2), utimensat(2).
    Setattr,
    /// Of a file.
    Open,
    /// Of a directory.
    Opendir,
    /// Of a new file.
    Create,
    /// pread(2).
    Read,
    /// pwrite(2).
    Write,
    /// close(2).
    Flush,
    /// fsync(2) of a file.
    Fsync,
    /// mkdir(2).
    Mkdir,
    /// mknod(2).
    Mknod,
    /// symlink(2).
    Symlink,
    /// link(2).
    Link,
    /// readlink(2).
    Readlink,
    /// unlink(2).
    Unlink,
    /// rmdir(2).
    Rmdir,
    /// rename(2).
    Rename,
    /// getdents(2).
    Readdir,
    /// statfs(2).
    Statfs,
    /// getxattr(2).
    Getxattr,
    /// setxattr(2).
    Setxattr,
    /// removexattr(2).
    Removexattr,
}

/// What an operation is to do: `Err` to fail.
type Go = Result<(), Code>;
/// What is left to do of one that hangs.
type Rest = Box<dyn FnOnce(Go) + Send>;

/// The number of an error, also one that no errno has.
#[derive(Clone, Copy, Debug)]
pub struct Code(pub i32);

impl From<Errno> for Code {
    fn from(errno: Errno) -> Code {
        Code(errno as i32)
    }
}

impl From<Code> for io::Error {
    fn from(code: Code) -> io::Error {
        io::Error::from_raw_os_error(code.0)
    }
}

#[derive(Default)]
struct Faults {
    failing: HashMap<Op, Code>,
    hanging: Vec<Op>,
    /// What is left of the operations that hang.
    held: Vec<(Op, Rest)>,
}

#[derive(Default)]
struct Shared {
    faults: Mutex<Faults>,
    changed: Condvar,
}

/// The file system, mounted as long as this value lives.
pub struct FaultyFs {
    session: Option<BackgroundSession>,
    shared: Arc<Shared>,
    backing: TempDir,
}

impl FaultyFs {
    /// Mounts one on an empty directory. None, and the reason on stderr: the host has no FUSE for us.
    pub fn mount(at: &Path) -> Option<FaultyFs> {
        let backing = tempfile::tempdir().unwrap();
        let shared = Arc::new(Shared::default());
        let tree = Tree {
            root: backing.path().into(),
            shared: shared.clone(),
            names: Mutex::default(),
        };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("faulty".into())];
        match fuser::spawn_mount(tree, at, &config) {
            Ok(session) => Some(FaultyFs {
                session: Some(session),
                shared,
                backing,
            }),
            Err(error) => {
                stub_guest::skipped(format_args!("FUSE cannot be mounted here: {error}"));
                None
            }
        }
    }

    /// A path below the file system's root, where nothing fails.
    pub fn path(&self, name: &str) -> PathBuf {
        self.backing.path().join(name)
    }

    /// From now on the operation fails.
    pub fn fail(&self, op: Op, error: impl Into<Code>) {
        let mut faults = self.shared.faults.lock().unwrap();
        faults.failing.insert(op, error.into());
    }

    /// From now on the operation hangs.
    pub fn hang(&self, op: Op) {
        self.shared.faults.lock().unwrap().hanging.push(op);
    }

    /// Waits until so many operations hang.
    pub fn wait_for_hanging(&self, count: usize) {
        let faults = self.shared.faults.lock().unwrap();
        let (faults, timeout) = self
            .shared
            .changed
            .wait_timeout_while(faults, PATIENCE, |faults| faults.held.len() < count)
            .unwrap();
        assert!(
            !timeout.timed_out(),
            "{} operations hang, not {count}",
            faults.held.len()
        );
    }

    /// Nothing fails or hangs any more; what hangs goes on.
    pub fn release(&self) {
        self.release_with(Ok(()));
    }

    /// This operation hangs no more, as often as it did; others do.
    pub fn release_only(&self, op: Op) {
        let mut faults = self.shared.faults.lock().unwrap();
        faults.hanging.retain(|other| *other != op);
        let held = std::mem::take(&mut faults.held);
        let (released, kept) = held
            .into_iter()
            .partition::<Vec<_>, _>(|(held, _)| *held == op);
        faults.held = kept;
        drop(faults);
        released.into_iter().for_each(|(_, rest)| rest(Ok(())));
    }

    /// Nothing fails or hangs any more; what hangs ends like this.
    pub fn release_with(&self, end: Result<(), Errno>) {
        let end = end.map_err(Code::from);
        let held = {
            let mut faults = self.shared.faults.lock().unwrap();
            std::mem::take(&mut *faults).held
        };
        held.into_iter().for_each(|(_, rest)| rest(end));
    }
}

impl Drop for FaultyFs {
    fn drop(&mut self) {
        // Whoever waits for it could not be ended otherwise.
        self.release_with(Err(Errno::EIO));
        if let Some(session) = self.session.take() {
            let result = session.umount_and_join();
            if !std::thread::panicking() {
                result.expect("the file system is unmounted");
            }
        }
    }
}

/// The directory behind it.
struct Tree {
    root: PathBuf,
    shared: Arc<Shared>,
    names: Mutex<Names>,
}

/// Inode numbers are given to paths: there are no hard links but by names of their own.
#[derive(Default)]
struct Names {
    paths: HashMap<u64, PathBuf>,
    numbers: HashMap<PathBuf, u64>,
    last: u64,
}

impl Tree {
    /// Does the rest of an operation now, or leaves it for the release.
    fn run(&self, op: Op, rest: impl FnOnce(Go) + Send + 'static) {
        let go = {
            let mut faults = self.shared.faults.lock().unwrap();
            if faults.hanging.contains(&op) {
                faults.held.push((op, Box::new(rest)));
                self.shared.changed.notify_all();
                return;
            }
            faults.failing.get(&op).map_or(Ok(()), |errno| Err(*errno))
        };
        rest(go);
    }

    fn path(&self, ino: INodeNo) -> PathBuf {
        if ino == INodeNo::ROOT {
            return self.root.clone();
        }
        // A file that has been removed is nowhere.
        let names = self.names.lock().unwrap();
        names.paths.get(&ino.0).cloned().unwrap_or_default()
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> PathBuf {
        self.path(parent).join(name)
    }

    fn number(&self, path: &Path) -> INodeNo {
        let mut names = self.names.lock().unwrap();
        if let Some(number) = names.numbers.get(path) {
            return INodeNo(*number);
        }
        names.last += 1;
        let number = INodeNo::ROOT.0 + names.last;
        names.numbers.insert(path.into(), number);
        names.paths.insert(number, path.into());
        INodeNo(number)
    }

    fn forget_path(&self, path: &Path) {
        let mut names = self.names.lock().unwrap();
        if let Some(number) = names.numbers.remove(path) {
            names.paths.remove(&number);
        }
    }

    fn moved(&self, from: &Path, to: &Path) {
        self.forget_path(to);
        let mut names = self.names.lock().unwrap();
        if let Some(number) = names.numbers.remove(from) {
            names.numbers.insert(to.into(), number);
            names.paths.insert(number, to.into());
        }
    }

    /// Answers with an entry when `make` has made it.
    fn entry(
        &self,
        op: Op,
        path: PathBuf,
        reply: ReplyEntry,
        make: impl FnOnce(&Path) -> io::Result<()> + Send + 'static,
    ) {
        let ino = self.number(&path);
        self.run(op, move |go| {
            let made = go.map_err(io::Error::from).and_then(|()| make(&path));
            match made.and_then(|()| attributes(ino, &path)) {
                Ok(attr) => reply.entry(&NOT_AT_ALL, &attr, GENERATION),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn empty(
        &self,
        op: Op,
        reply: ReplyEmpty,
        act: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) {
        self.run(op, move |go| {
            match go.map_err(io::Error::from).and_then(|()| act()) {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(error.into()),
            }
        });
    }
}

fn attributes(ino: INodeNo, path: &Path) -> io::Result<FileAttr> {
    let stat = fs::symlink_metadata(path)?;
    let time = |sec: i64, nsec: i64| UNIX_EPOCH + Duration::new(sec as u64, nsec as u32);
    Ok(FileAttr {
        ino,
        size: stat.len(),
        blocks: stat.blocks(),
        atime: time(stat.atime(), stat.atime_nsec()),
        mtime: time(stat.mtime(), stat.mtime_nsec()),
        ctime: time(stat.ctime(), stat.ctime_nsec()),
        crtime: UNIX_EPOCH,
        kind: kind(stat.file_type()),
        perm: (stat.mode() & 0o7777) as u16,
        nlink: stat.nlink() as u32,
        uid: stat.uid(),
        gid: stat.gid(),
        rdev: stat.rdev() as u32,
        blksize: 4096,
        flags: 0,
    })
}

fn kind(kind: fs::FileType) -> FileType {
    if kind.is_dir() {
        FileType::Directory
    } else if kind.is_symlink() {
        FileType::Symlink
    } else if kind.is_fifo() {
        FileType::NamedPipe
    } else {
        FileType::RegularFile
    }
}

impl Filesystem for Tree {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let path = self.child(parent, name);
        self.entry(Op::Lookup, path, reply, |_| Ok(()));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let path = self.path(ino);
        self.run(Op::Getattr, move |go| {
            match go
                .map_err(io::Error::from)
                .and_then(|()| attributes(ino, &path))
            {
                Ok(attr) => reply.attr(&NOT_AT_ALL, &attr),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let path = self.path(ino);
        let change = move || {
            if let Some(mode) = mode {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777))?;
            }
            if let Some(size) = size {
                OpenOptions::new().write(true).open(&path)?.set_len(size)?;
            }
            attributes(ino, &path)
        };
        self.run(Op::Setattr, move |go| {
            match go.map_err(io::Error::from).and_then(|()| change()) {
                Ok(attr) => reply.attr(&NOT_AT_ALL, &attr),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let path = self.path(ino);
        self.run(Op::Readlink, move |go| {
            match go
                .map_err(io::Error::from)
                .and_then(|()| fs::read_link(path))
            {
                Ok(target) => reply.data(target.into_os_string().as_encoded_bytes()),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let mode = nix::sys::stat::Mode::from_bits_truncate(mode);
        self.entry(Op::Mknod, self.child(parent, name), reply, move |path| {
            Ok(nix::unistd::mkfifo(path, mode)?)
        });
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        self.entry(Op::Mkdir, self.child(parent, name), reply, move |path| {
            DirBuilder::new().mode(mode).create(path)
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let path = self.child(parent, name);
        self.forget_path(&path);
        self.empty(Op::Unlink, reply, move || fs::remove_file(path));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let path = self.child(parent, name);
        self.empty(Op::Rmdir, reply, move || fs::remove_dir(path));
    }

    fn symlink(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.to_owned();
        self.entry(Op::Symlink, self.child(parent, name), reply, move |path| {
            symlink(target, path)
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = (self.child(parent, name), self.child(new_parent, new_name));
        self.moved(&from, &to);
        self.empty(Op::Rename, reply, move || fs::rename(from, to));
    }

    fn link(
        &self,
        _: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let from = self.path(ino);
        let path = self.child(new_parent, new_name);
        self.entry(Op::Link, path, reply, |path| fs::hard_link(from, path));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.run(Op::Open, move |go| match go {
            // Nothing is read or written but by what follows.
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            Err(errno) => reply.error(io::Error::from(errno).into()),
        });
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.run(Op::Opendir, move |go| match go {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(errno) => reply.error(io::Error::from(errno).into()),
        });
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let path = self.child(parent, name);
        let ino = self.number(&path);
        self.run(Op::Create, move |go| {
            let made = go.map_err(io::Error::from).and_then(|()| {
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(mode)
                    .open(&path)
            });
            match made.and_then(|_| attributes(ino, &path)) {
                Ok(attr) => {
                    let flags = FopenFlags::FOPEN_DIRECT_IO;
                    reply.created(&NOT_AT_ALL, &attr, GENERATION, FileHandle(0), flags);
                }
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let path = self.path(ino);
        let read = move || {
            let mut content = vec![0; size as usize];
            let length = File::open(path)?.read_at(&mut content, offset)?;
            content.truncate(length);
            io::Result::Ok(content)
        };
        self.run(Op::Read, move |go| {
            match go.map_err(io::Error::from).and_then(|()| read()) {
                Ok(content) => reply.data(&content),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (path, data) = (self.path(ino), data.to_vec());
        let write = move || {
            OpenOptions::new()
                .write(true)
                .open(path)?
                .write_at(&data, offset)
        };
        self.run(Op::Write, move |go| {
            match go.map_err(io::Error::from).and_then(|()| write()) {
                Ok(length) => reply.written(length as u32),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.empty(Op::Flush, reply, || Ok(()));
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.empty(Op::Fsync, reply, || Ok(()));
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let list = || {
            let mut entries: Vec<(INodeNo, FileType, OsString)> = [".", ".."]
                .map(|name| (INodeNo::ROOT, FileType::Directory, name.into()))
                .into();
            for entry in fs::read_dir(self.path(ino))? {
                let entry = entry?;
                let number = self.number(&entry.path());
                entries.push((number, kind(entry.file_type()?), entry.file_name()));
            }
            io::Result::Ok(entries)
        };
        let entries = list();
        self.run(Op::Readdir, move |go| {
            match go.map_err(io::Error::from).and(entries) {
                Ok(entries) => {
                    for (n, (ino, kind, name)) in (1..).zip(entries).skip(offset as usize) {
                        if reply.add(ino, n, kind, name) {
                            break;
                        }
                    }
                    reply.ok();
                }
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.run(Op::Statfs, move |go| match go {
            Ok(()) => reply.statfs(1000, 900, 800, 100, 90, 65536, 255, 4096),
            Err(errno) => reply.error(io::Error::from(errno).into()),
        });
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        self.empty(Op::Setxattr, reply, || Ok(()));
    }

    fn getxattr(&self, _: &Request, _: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if name != XATTR {
            return reply.error(io::Error::from(Errno::ENODATA).into());
        }
        self.run(Op::Getxattr, move |go| match go {
            Ok(()) if size == 0 => reply.size(XATTR_VALUE.len() as u32),
            Ok(()) => reply.data(XATTR_VALUE),
            Err(errno) => reply.error(io::Error::from(errno).into()),
        });
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.empty(Op::Removexattr, reply, || Ok(()));
    }
}
