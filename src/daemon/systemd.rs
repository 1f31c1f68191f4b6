//! What systemd is told (sd_notify(3)), and its store of descriptors (FileDescriptorStoreMax=), with which a guest
//! outlives `systemctl restart`.
//!
//! A program that is stopped leaves there what [`upgrade`](super::upgrade) would hand over, and the one that
//! is started next takes it out, under the same numbers, and continues as after an upgrade. If none is
//! started, systemd closes it all, and the front-end is disconnected as by any stop.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use rustix::fs::{MemfdFlags, memfd_create};
use sd_notify::NotifyState;

use crate::export::sys;
use crate::sandbox::open_descriptors;

/// Says how many descriptors there may be (systemd 254; the unit sets it for earlier ones).
const LIMIT: &str = "FDSTORE";
/// The name of the file that says what the others are; theirs end with their numbers.
const INDEX: &str = "9p-index";
const PREFIX: &str = "9p-";

/// Tells systemd that front-ends are served. Without systemd nothing happens.
pub fn is_ready() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        log::debug!("systemd is not told that this is ready: {error}");
    }
}

/// Whether everything that is open here has room in the store. None: there is no store.
pub fn has_room() -> Option<bool> {
    std::env::var_os("NOTIFY_SOCKET")?;
    let limit: usize = std::env::var(LIMIT).ok()?.parse().ok()?;
    let open = open_descriptors().ok()?.len();
    // And the index.
    (limit > 0).then_some(open < limit)
}

/// What is told to the program that takes the descriptors out: `told` is for it, and which numbers are of one
/// description, of which the store keeps one only.
fn index(told: &str, same: &[(RawFd, RawFd)]) -> String {
    let same: Vec<_> = same
        .iter()
        .map(|(fd, first)| format!("{fd}:{first}"))
        .collect();
    format!("{told}\n{}", same.join(","))
}

/// Leaves all descriptors but the first three, and what the next program is told. Errors: those of the socket
/// to systemd.
pub fn leave(told: &str) -> io::Result<()> {
    let mut open = open_descriptors()?;
    open.retain(|fd| *fd > 2);
    let mut firsts: HashMap<_, Vec<RawFd>> = HashMap::new();
    let mut same = Vec::new();
    for fd in open {
        let known = firsts.entry(sys::identity(fd)).or_default();
        match known
            .iter()
            .find(|first| sys::is_same_description(fd, **first))
        {
            Some(first) => same.push((fd, *first)),
            None => {
                known.push(fd);
                // SAFETY: it is open, as nobody closes descriptors here meanwhile.
                let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
                put(&format!("{PREFIX}{fd}"), borrowed)?;
            }
        }
    }
    let mut file = File::from(memfd_create("index", MemfdFlags::CLOEXEC)?);
    file.write_all(index(told, &same).as_bytes())?;
    put(INDEX, file.as_fd())?;
    await_systemd()
}

fn put(name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    // Not removed when the other end has gone: that is for the next program to find out.
    let state = [
        NotifyState::FdStore,
        NotifyState::FdName(name),
        NotifyState::Custom("FDPOLL=0"),
    ];
    sd_notify::notify_with_fds(&state, &[fd])
}

/// Returns when systemd has read everything: from a process that is gone it takes nothing.
fn await_systemd() -> io::Result<()> {
    let (mut reader, writer) = sys::pipe()?;
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[writer.as_fd()])?;
    drop(writer);
    // Its end.
    reader.read_to_end(&mut Vec::new()).map(drop)
}

/// Takes everything out of the store that a program before has left, and gives the descriptors their
/// numbers. Returns what that program tells. None: nothing is there.
///
/// # Safety
///
/// Nothing in this process owns or uses a descriptor but the first three.
pub unsafe fn take() -> io::Result<Option<String>> {
    // Without it nothing is looked at: what is passed may be for others.
    match std::env::var("LISTEN_FDNAMES") {
        Ok(names) if names.split(':').any(|name| name == INDEX) => {}
        _ => return Ok(None),
    }
    let passed: Vec<_> = sd_notify::listen_fds_with_names()?.collect();
    let Some((index, _)) = passed.iter().find(|(_, name)| name == INDEX) else {
        return Ok(None);
    };
    let mut text = String::new();
    // SAFETY: it is open, and by the contract of this function nothing else owns it.
    let mut file = unsafe { sys::file(*index) };
    file.rewind()?;
    file.read_to_string(&mut text)?;
    drop(file);
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "the index means nothing");
    let (told, same) = text.split_once('\n').ok_or_else(invalid)?;
    let mut places = Vec::new();
    for (fd, name) in &passed {
        let number = name
            .strip_prefix(PREFIX)
            .and_then(|number| number.parse().ok());
        if let Some(number) = number.filter(|number| *number > 2) {
            places.push((*fd, number));
            let removed = [NotifyState::FdStoreRemove, NotifyState::FdName(name)];
            sd_notify::notify(&removed)?;
        }
    }
    sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(INDEX)])?;
    // SAFETY: by the contract of this function nothing uses what was or becomes open there.
    unsafe { sys::move_descriptors(&places)? };
    for pair in same.split(',').filter(|pair| !pair.is_empty()) {
        let (fd, first) = pair.split_once(':').ok_or_else(invalid)?;
        let (Ok(fd), Ok(first)) = (fd.parse(), first.parse()) else {
            return Err(invalid());
        };
        // SAFETY: as above.
        unsafe { sys::copy_descriptor(first, fd)? };
    }
    Ok(Some(told.to_owned()))
}
