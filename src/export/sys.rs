//! The system calls that neither `std` nor `nix` offers in the form that the export needs.
//!
//! Every `unsafe` block of the export is in this file. Errors are the kernel's errno.

use std::ffi::CStr;
use std::fmt::Write as _;
use std::fs::{File, ReadDir};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::unistd::Pid;
use rustix::fs::{self, AtFlags, Timespec, Timestamps, XattrFlags};
use rustix::process::Gid;
use rustix::thread::{self, CapabilitySet, CapabilitySets};

/// Whether the working directory is `/proc/self/fd`.
static IN_PROC: AtomicBool = AtomicBool::new(false);

/// From now on [`ProcPath`] is relative to the working directory, which must stay `/proc/self/fd`.
pub fn find_descriptors_from_working_directory() {
    IN_PROC.store(true, Ordering::Relaxed);
}

/// The directory `/proc/self/fd`, also where `/proc` is the root. Errors: it cannot be read.
pub fn descriptors_directory() -> io::Result<ReadDir> {
    match IN_PROC.load(Ordering::Relaxed) {
        true => std::fs::read_dir("."),
        false => read_own("fd"),
    }
}

/// How many threads this process has. Errors: `/proc` cannot be read.
pub fn count_threads() -> io::Result<usize> {
    read_own("task").map(Iterator::count)
}

fn read_own(name: &str) -> io::Result<ReadDir> {
    std::fs::read_dir(format!("/proc/self/{name}"))
        .or_else(|_| std::fs::read_dir(format!("/self/{name}")))
}

/// Whether a descriptor with this number is open.
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: the call takes no pointer, and changes nothing.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// The device and the inode number of what is open with this number. None: nothing is.
pub fn identity(fd: RawFd) -> Option<(u64, u64)> {
    let mut found = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the call takes any number for a descriptor, and writes `found`, which has the size of a stat.
    let result = unsafe { libc::fstat(fd, found.as_mut_ptr()) };
    // SAFETY: the call has succeeded, and so written all of it.
    (result == 0)
        .then(|| unsafe { found.assume_init() })
        .map(|found| (found.st_dev, found.st_ino))
}

/// Whether two descriptors are of one open file description (kcmp(2)). Where that cannot be told, they are not.
pub fn is_same_description(one: RawFd, other: RawFd) -> bool {
    /// linux/kcmp.h
    const KCMP_FILE: libc::c_int = 0;
    let process = std::process::id();
    // SAFETY: the call takes numbers, and changes nothing.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, process, process, KCMP_FILE, one, other) };
    result == 0
}

/// A pipe. Errors: those of pipe(2).
pub fn pipe() -> io::Result<(File, File)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((reader.into(), writer.into()))
}

/// The file of an open descriptor.
///
/// # Safety
///
/// It is open, and nothing else owns it.
pub unsafe fn file(fd: RawFd) -> File {
    // SAFETY: by the contract of this function.
    unsafe { File::from_raw_fd(fd) }
}

/// Makes each first descriptor the second number, whatever is open there. Errors: those of dup(2).
///
/// # Safety
///
/// Nothing owns or uses one of these numbers.
pub unsafe fn move_descriptors(places: &[(RawFd, RawFd)]) -> Result<(), Errno> {
    let numbers = places.iter().flat_map(|(from, to)| [*from, *to]);
    let above = numbers.max().map_or(0, |most| most + 1);
    let mut moved = Vec::new();
    // Out of the way first: one may be where another belongs.
    for (from, to) in places {
        // SAFETY: the calls take numbers, and by the contract nothing uses what they close.
        let between = unsafe { libc::fcntl(*from, libc::F_DUPFD_CLOEXEC, above) };
        moved.push((Errno::result(between)?, *to));
        // SAFETY: as above.
        unsafe { libc::close(*from) };
    }
    for (between, to) in moved {
        // SAFETY: by the contract nothing uses what is open there.
        unsafe { copy_descriptor(between, to)? };
        // SAFETY: it was made above.
        unsafe { libc::close(between) };
    }
    Ok(())
}

/// Makes `to` a duplicate of `from`, whatever is open there. Errors: those of dup3(2).
///
/// # Safety
///
/// Nothing owns or uses `to`.
pub unsafe fn copy_descriptor(from: RawFd, to: RawFd) -> Result<(), Errno> {
    // SAFETY: the call takes numbers, and by the contract nothing uses what it closes.
    Errno::result(unsafe { libc::dup3(from, to, libc::O_CLOEXEC) }).map(drop)
}

/// Whether a descriptor is closed by execve(2). Errors: those of fcntl(2).
pub fn set_close_on_exec(fd: RawFd, close: bool) -> Result<(), Errno> {
    let flags = if close { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: the call takes no pointer, and changes one flag.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, flags) }).map(drop)
}

/// `/proc/self/fd/N`: the magic link by which calls that refuse an `O_PATH` descriptor reach a
/// pinned inode. It leads to the inode itself, whatever its names are now.
pub struct ProcPath([u8; 32]);

impl ProcPath {
    /// The magic link of `fd`.
    pub fn new(fd: BorrowedFd<'_>) -> ProcPath {
        let mut text = FixedText {
            bytes: [0; 32],
            len: 0,
        };
        // 14 bytes of prefix, at most 10 digits and the NUL fit.
        let directory = match IN_PROC.load(Ordering::Relaxed) {
            true => "",
            false => "/proc/self/fd/",
        };
        let _ = write!(text, "{directory}{}", fd.as_raw_fd());
        ProcPath(text.bytes)
    }

    /// The path for a system call.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"/nonexistent")
    }
}

struct FixedText {
    bytes: [u8; 32],
    len: usize,
}

impl std::fmt::Write for FixedText {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        // One byte stays for the NUL.
        let end = self.len + text.len();
        if end >= self.bytes.len() {
            return Err(std::fmt::Error);
        }
        self.bytes[self.len..end].copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// `statx(fd, "", AT_EMPTY_PATH)`: works with an `O_PATH` descriptor and tells the birth time.
///
/// Linux 6.11 and later accept NULL for an empty path and look nothing up then, which saves a
/// tenth.
pub fn statx(fd: BorrowedFd<'_>, into: &mut libc::statx) -> Result<(), Errno> {
    static TAKES_NO_PATH: AtomicBool = AtomicBool::new(true);
    if TAKES_NO_PATH.load(Ordering::Relaxed) {
        match statx_with(fd, None, libc::AT_EMPTY_PATH, into) {
            // No other address could be wrong.
            Err(Errno::EFAULT) => TAKES_NO_PATH.store(false, Ordering::Relaxed),
            result => return result,
        }
    }
    statx_with(fd, Some(c""), libc::AT_EMPTY_PATH, into)
}

/// [`statx`] of what the kernel remembers, without asking a server.
pub fn statx_cached(fd: BorrowedFd<'_>, into: &mut libc::statx) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    statx_with(fd, Some(c""), flags, into)
}

/// `statx` of `name` in a directory, without following a symbolic link. Takes no descriptor.
pub fn statx_at(
    directory: BorrowedFd<'_>,
    name: &CStr,
    into: &mut libc::statx,
) -> Result<(), Errno> {
    statx_with(directory, Some(name), libc::AT_SYMLINK_NOFOLLOW, into)
}

/// For [`statx`]: nothing is known yet.
pub fn no_statx() -> libc::statx {
    // SAFETY: numbers, for which zero is a value.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn statx_with(
    fd: BorrowedFd<'_>,
    path: Option<&CStr>,
    flags: i32,
    into: &mut libc::statx,
) -> Result<(), Errno> {
    let path = path.map_or(std::ptr::null(), CStr::as_ptr);
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME | libc::STATX_MNT_ID;
    // SAFETY: the path, if there is one, ends in NUL and `into` is one struct statx. Not by the C
    // library's function, which may rely on a path.
    let result = unsafe {
        libc::syscall(
            libc::SYS_statx,
            fd.as_raw_fd(),
            path,
            flags,
            mask,
            std::ptr::from_mut(into),
        )
    };
    Errno::result(result).map(drop)
}

/// `getdents64`: fills `into` with whole `linux_dirent64` records and returns their length, 0 at
/// the end of the directory.
pub fn getdents(fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: `into` is writable for the length given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            fd.as_raw_fd(),
            into.as_mut_ptr(),
            into.len(),
        )
    };
    Errno::result(result).map(|length| length as usize)
}

/// `fgetxattr` of the file that `path` names, through a magic link. An empty `into` asks for the
/// size.
pub fn getxattr(path: &CStr, name: &CStr, into: &mut [u8]) -> Result<usize, Errno> {
    match into.is_empty() {
        true => fs::getxattr_query(path, name),
        false => fs::getxattr(path, name, into),
    }
    .map_err(errno)
}

/// `lgetxattr`: as [`getxattr`], but does not follow a symbolic link at the end of `path`.
pub fn lgetxattr(path: &CStr, name: &CStr, into: &mut [u8]) -> Result<usize, Errno> {
    match into.is_empty() {
        true => fs::lgetxattr_query(path, name),
        false => fs::lgetxattr(path, name, into),
    }
    .map_err(errno)
}

/// The list of names, each ended by a NUL. An empty `into` asks for the size.
pub fn listxattr(path: &CStr, into: &mut [u8]) -> Result<usize, Errno> {
    match into.is_empty() {
        true => fs::listxattr_query(path),
        false => fs::listxattr(path, into),
    }
    .map_err(errno)
}

/// Sets an extended attribute; `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
pub fn setxattr(path: &CStr, name: &CStr, value: &[u8], flags: u32) -> Result<(), Errno> {
    let flags = XattrFlags::from_bits_retain(flags);
    fs::setxattr(path, name, value, flags).map_err(errno)
}

/// Removes an extended attribute.
pub fn removexattr(path: &CStr, name: &CStr) -> Result<(), Errno> {
    fs::removexattr(path, name).map_err(errno)
}

/// `utimensat(fd, "", times, AT_EMPTY_PATH)`: sets the times of a pinned inode, symbolic links
/// included. A `tv_nsec` of `UTIME_OMIT` or `UTIME_NOW` has its usual meaning.
pub fn set_times(fd: BorrowedFd<'_>, times: &[libc::timespec; 2]) -> Result<(), Errno> {
    let [last_access, last_modification] = times.map(|time| Timespec {
        tv_sec: time.tv_sec,
        tv_nsec: time.tv_nsec,
    });
    let times = Timestamps {
        last_access,
        last_modification,
    };
    fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH).map_err(errno)
}

/// The flags of the mount in which `file` lies. Errors: those of fstatfs(2).
pub fn mount_flags(file: BorrowedFd<'_>) -> Result<fs::StatVfsMountFlags, Errno> {
    fs::fstatvfs(file).map(|stat| stat.f_flag).map_err(errno)
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// Room for the largest handle (linux/exportfs.h: MAX_HANDLE_SZ).
const MAX_HANDLE: usize = 128;

/// `struct file_handle` with room for any handle.
#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; MAX_HANDLE],
}

/// The kernel's name for an inode of a file system: name_to_handle_at(2). Only the kernel makes it,
/// and only the kernel gets it back, never a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHandle {
    kind: i32,
    handle: Box<[u8]>,
}

impl FileHandle {
    /// The handle as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.kind.to_ne_bytes(), &*self.handle].concat()
    }

    /// The handle that [`FileHandle::to_bytes`] has returned as `bytes`. None for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<FileHandle> {
        let (kind, handle) = bytes.split_first_chunk()?;
        (handle.len() <= MAX_HANDLE).then(|| FileHandle {
            kind: i32::from_ne_bytes(*kind),
            handle: handle.into(),
        })
    }
}

/// `name_to_handle_at(fd, "", AT_EMPTY_PATH)`. Errors: EOPNOTSUPP where the file system has no
/// handles.
pub fn name_to_handle(fd: BorrowedFd<'_>) -> Result<FileHandle, Errno> {
    let mut raw = RawHandle {
        bytes: MAX_HANDLE as u32,
        kind: 0,
        handle: [0; MAX_HANDLE],
    };
    let mut mount = 0;
    // SAFETY: the path is a NUL-terminated literal, `raw` has the room that it says it has, and
    // the mount's number is an int.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            c"".as_ptr(),
            &raw mut raw,
            &raw mut mount as *mut libc::c_int,
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::result(result)?;
    let handle = raw.handle.get(..raw.bytes as usize).ok_or(Errno::EIO)?;
    Ok(FileHandle {
        kind: raw.kind,
        handle: handle.into(),
    })
}

/// `open_by_handle_at`; `mount` is any open file of the mount. Errors: ESTALE if the inode does not
/// exist any more, EPERM without CAP_DAC_READ_SEARCH.
pub fn open_by_handle(
    mount: BorrowedFd<'_>,
    handle: &FileHandle,
    flags: OFlag,
) -> Result<OwnedFd, Errno> {
    let mut raw = RawHandle {
        bytes: handle.handle.len() as u32,
        kind: handle.kind,
        handle: [0; MAX_HANDLE],
    };
    raw.handle[..handle.handle.len()].copy_from_slice(&handle.handle);
    // SAFETY: `raw` holds as many bytes as it says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw mut raw,
            flags.bits(),
        )
    };
    let fd = Errno::result(result)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// fork(2) into new namespaces, as clone(2) makes them: None in the child.
///
/// # Safety
///
/// The process must have one thread. The child has no other: a lock that another thread holds, for
/// example of the allocator, would stay locked there.
pub unsafe fn fork_into(namespaces: CloneFlags) -> Result<Option<Pid>, Errno> {
    let flags = namespaces.bits() | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and a stack this is a fork: the child has a copy of everything, of all
    // threads too, for by the contract there is one.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    let child = Errno::result(result)? as libc::pid_t;
    Ok((child != 0).then(|| Pid::from_raw(child)))
}

/// A copy of the mounts at and below the working directory, attached nowhere yet (open_tree(2)).
/// Errors: EPERM; EINVAL if the working directory is in another mount namespace.
pub fn copy_mounts() -> Result<OwnedFd, Errno> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::AT_RECURSIVE as libc::c_uint
        | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: the string ends with a NUL, and the call writes nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c".".as_ptr(), flags) };
    let fd = Errno::result(result)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches what [`copy_mounts`] has made to the working directory. Errors: those of move_mount(2).
pub fn mount_here(mounts: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: both strings end with a NUL, and the call writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mounts.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            c".".as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    Errno::result(result).map(drop)
}

/// On all of these mounts set-id programs gain no rights, devices cannot be opened and nothing can
/// be executed. Other flags stay. Errors: those of mount_setattr(2), ENOSYS before Linux 5.12.
pub fn mounts_hold_data_only(mounts: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the string ends with a NUL, and the structure, which is only read, has the size that is
    // given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mounts.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// Sets the supplementary groups of the calling thread; the C library's function would set those of
/// all threads. Errors: EPERM without CAP_SETGID.
pub fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    thread::set_thread_groups(&groups).map_err(errno)
}

/// The calling thread's capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(CapabilitySets);

/// None.
impl Default for Capabilities {
    fn default() -> Capabilities {
        let none = CapabilitySet::empty();
        Capabilities(CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        })
    }
}

/// May give files away (capabilities(7)).
pub const CAP_CHOWN: CapabilitySet = CapabilitySet::CHOWN;
/// Keeps set-id bits on writes and chmod by someone outside the group (capabilities(7)).
pub const CAP_FSETID: CapabilitySet = CapabilitySet::FSETID;
/// May take on any group ids (capabilities(7)).
pub const CAP_SETGID: CapabilitySet = CapabilitySet::SETGID;
/// May take on any user id (capabilities(7)).
pub const CAP_SETUID: CapabilitySet = CapabilitySet::SETUID;

impl Capabilities {
    /// Reads the calling thread's sets.
    pub fn of_thread() -> Result<Capabilities, Errno> {
        thread::capabilities(None).map(Capabilities).map_err(errno)
    }

    /// Sets the capabilities of the calling thread. Other threads keep theirs.
    pub fn apply_to_thread(&self) -> Result<(), Errno> {
        thread::set_capabilities(None, self.0).map_err(errno)
    }

    /// Whether `capability` is effective.
    pub fn effective(&self, capability: CapabilitySet) -> bool {
        self.0.effective.contains(capability)
    }

    /// The same sets with `capability` effective, if it is permitted.
    pub fn with_effective(mut self, capability: CapabilitySet) -> Capabilities {
        self.0.effective |= self.0.permitted & capability;
        self
    }

    /// The same sets with `capability` alone effective, if it is permitted.
    pub fn with_effective_only(mut self, capability: CapabilitySet) -> Capabilities {
        self.0.effective = CapabilitySet::empty();
        self.with_effective(capability)
    }

    /// The same sets with `capability` not effective, but still permitted.
    pub fn without_effective(mut self, capability: CapabilitySet) -> Capabilities {
        self.0.effective -= capability;
        self
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_link_is_looked_at_itself_with_an_empty_path_and_without() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let link = nix::fcntl::open(&path, flags, nix::sys::stat::Mode::empty()).unwrap();
        let (mut one, mut other) = (no_statx(), no_statx());
        statx(link.as_fd(), &mut one).unwrap();
        // As it is done where no path is not taken.
        statx_with(link.as_fd(), Some(c""), libc::AT_EMPTY_PATH, &mut other).unwrap();
        let inode = std::fs::symlink_metadata(&path).unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&inode);
        for stat in [one, other] {
            assert_eq!(u32::from(stat.stx_mode) & libc::S_IFMT, libc::S_IFLNK);
            assert_eq!((stat.stx_ino, stat.stx_size), (inode, 7));
        }
    }

    #[test]
    fn proc_path_names_the_descriptor() {
        let file = std::fs::File::open("/").unwrap();
        let path = ProcPath::new(file.as_fd());
        let expected = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert_eq!(path.as_c_str().to_str().unwrap(), expected);
    }

    #[test]
    fn capabilities_round_trip() {
        let before = Capabilities::of_thread().unwrap();
        before
            .without_effective(CAP_FSETID)
            .apply_to_thread()
            .unwrap();
        let during = Capabilities::of_thread().unwrap();
        assert!(!during.effective(CAP_FSETID));
        before.apply_to_thread().unwrap();
        assert_eq!(Capabilities::of_thread().unwrap(), before);
    }
}
