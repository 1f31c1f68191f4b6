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

/// What is told to the program that takes the descriptors out: `told` is for it; which numbers are of one
/// description, of which the store keeps one only; and with which arguments this one was started.
fn index(told: &str, same: &[(RawFd, RawFd)]) -> String {
    let same: Vec<_> = same
        .iter()
        .map(|(fd, first)| format!("{fd}:{first}"))
        .collect();
    format!("{told}\n{}\n{}", same.join(","), arguments())
}

fn arguments() -> String {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    format!("{arguments:?}")
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
/// numbers. Returns what that program tells, if it was started with the same arguments and this one `fits`.
/// None: nothing is there, or it is of no use, and closed. The socket that systemd passes takes the
/// place of `socket`, the one that was served: systemd may have made another.
///
/// # Safety
///
/// Nothing in this process owns or uses a descriptor but the first three.
pub unsafe fn take(
    fits: impl FnOnce(&str) -> bool,
    socket: impl FnOnce(&str) -> Option<RawFd>,
) -> io::Result<Option<String>> {
    // Without it nothing is looked at: what is passed may be for others.
    match std::env::var("LISTEN_FDNAMES") {
        Ok(names) if names.split(':').any(|name| name == INDEX) => {}
        _ => return Ok(None),
    }
    let passed: Vec<_> = sd_notify::listen_fds_with_names()?.collect();
    let mut text = String::new();
    let mut places = Vec::new();
    let mut fresh = None;
    for (fd, name) in passed {
        let Some(number) = name.strip_prefix(PREFIX) else {
            fresh = fresh.or(Some(fd));
            continue;
        };
        sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name)])?;
        match number.parse() {
            Ok(number) if number > 2 => places.push((fd, number)),
            _ => {
                // SAFETY: it is open, and by the contract of this function nothing else owns it.
                let mut file = unsafe { sys::file(fd) };
                if name == INDEX {
                    file.rewind()?;
                    file.read_to_string(&mut text)?;
                }
            }
        }
    }
    let mut lines = text.splitn(3, '\n');
    let (told, same) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let usable = match lines.next() {
        Some(before) if before != arguments() => {
            log::warn!("the options have changed: the guest of the program before is disconnected");
            false
        }
        Some(_) if fits(told) => true,
        _ => {
            log::error!("cannot continue for the program before: its state has another format");
            false
        }
    };
    if !usable {
        for (fd, _) in places {
            // SAFETY: it is open, and by the contract of this function nothing else owns it.
            drop(unsafe { sys::file(fd) });
        }
        return Ok(None);
    }
    if let (Some(fresh), Some(socket)) = (fresh, socket(told)) {
        places.retain(|(_, number)| *number != socket);
        places.push((fresh, socket));
    }
    // SAFETY: by the contract of this function nothing uses what was or becomes open there.
    unsafe { sys::move_descriptors(&places)? };
    for pair in same.split(',').filter(|pair| !pair.is_empty()) {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "the index means nothing");
        let (fd, first) = pair.split_once(':').ok_or_else(invalid)?;
        let (Ok(fd), Ok(first)) = (fd.parse(), first.parse()) else {
            return Err(invalid());
        };
        // SAFETY: as above.
        unsafe { sys::copy_descriptor(first, fd)? };
    }
    Ok(Some(told.to_owned()))
}
