//! A process of the host that helps the guest out: it swaps a directory for a symbolic link that
//! leads out of the share, as fast as it can, while the guest does by that name whatever it can.
//!
//! `ESCAPE_TRIES` is the number of rounds; `make soak` takes a hundred thousand.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{BINARY, Guest, NO_ID, no_change};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use protocol::{getattr, open, setattr, unlink};
use stub_guest::Result;
use stub_guest::daemon::Launch;

/// Swaps two names until it is dropped.
struct Swapper {
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Swapper {
    fn start(one: PathBuf, other: PathBuf) -> Swapper {
        let stop = Arc::new(AtomicBool::new(false));
        let swaps = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (stop.clone(), swaps.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let flags = RenameFlags::RENAME_EXCHANGE;
                renameat2(AT_FDCWD, &one, AT_FDCWD, &other, flags).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Swapper {
            stop,
            swaps,
            thread: Some(thread),
        }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a guest could change or give away of a file: its name, mode, inode, links, change time and
/// content.
type State = (PathBuf, u32, u64, u64, (i64, i64), Vec<u8>);

/// The state of a directory and all files in it.
fn state(directory: &Path) -> Vec<State> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .chain([directory.to_owned()])
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = match metadata.is_file() {
                true => fs::read(&path).unwrap(),
                false => Vec::new(),
            };
            let (mode, inode, links) = (metadata.mode(), metadata.ino(), metadata.nlink());
            let changed = (metadata.ctime(), metadata.ctime_nsec());
            (path, mode, inode, links, changed, content)
        })
        .collect()
}

/// Each way by which a name, or a fid behind one, takes effect. What is refused is refused; what
/// is done has been done inside.
fn try_everything(guest: &mut Guest, round: usize) -> Result<()> {
    let root = guest.root;
    let client = &mut guest.client;
    let (directory, file) = (client.alloc_fid(), client.alloc_fid());
    let name = format!("new {}", round % 8);
    // In one walk, and in two with the swap between them.
    if client.walk(root, file, &["swapped", "file"])?.len() == 2 {
        let stat = client.getattr(file, getattr::BASIC)?;
        let opened = client.lopen(file, open::RDWR);
        if opened.is_ok() {
            let read = client.read(file, 0, 100)?;
            assert!(
                read.starts_with(b"inside"),
                "{:?}",
                read.escape_ascii().to_string()
            );
            client.write(file, 0, b"inside")?;
        }
        assert_ne!(stat.size, OUTSIDE.len() as u64, "the file outside was seen");
        client.clunk(file)?;
    }
    client.walk(root, directory, &["swapped"])?;
    let result = in_directory(guest, directory, file, &name, round);
    guest.client.clunk(directory)?;
    result
}

fn in_directory(
    guest: &mut Guest,
    directory: u32,
    file: u32,
    name: &str,
    round: usize,
) -> Result<()> {
    let root = guest.root;
    let client = &mut guest.client;
    match round % 11 {
        0 => {
            client.walk::<&str>(directory, file, &[])?;
            let created = client.lcreate(file, name, open::RDWR | open::TRUNC, 0o644, NO_ID);
            let written = created.and_then(|_| client.write(file, 0, b"inside"));
            client.clunk(file)?;
            written?;
        }
        1 => drop(client.mkdir(directory, name, 0o755, NO_ID)?),
        2 => drop(client.symlink(directory, name, "/etc/passwd", NO_ID)?),
        3 => drop(client.mknod(directory, name, libc::S_IFIFO | 0o644, (0, 0), NO_ID)?),
        4 => {
            client.walk(root, file, &["file"])?;
            let linked = client.link(directory, file, name);
            client.clunk(file)?;
            linked?;
        }
        5 => client.renameat(directory, "victim", root, "taken")?,
        6 => client.renameat(root, "taken", directory, "victim")?,
        7 => client.unlinkat(directory, name, 0)?,
        8 => client.unlinkat(directory, name, unlink::REMOVEDIR)?,
        9 => {
            if client.walk(directory, file, &["victim"])?.len() == 1 {
                let mut change = no_change(file);
                (change.valid, change.mode) = (setattr::MODE, 0o600 + (round as u32 % 8));
                let changed = client.setattr(change);
                client.clunk(file)?;
                changed?;
            }
        }
        _ => {
            client.walk::<&str>(directory, file, &[])?;
            let listed = client
                .lopen(file, open::RDONLY | open::DIRECTORY)
                .and_then(|_| client.readdir(file, 0, 8192));
            client.clunk(file)?;
            let listed = listed?;
            assert!(listed.iter().all(|entry| entry.name != b"only outside"));
        }
    }
    Ok(())
}

const OUTSIDE: &[u8] = b"outside: not for the guest, and longer than anything inside of the share";

#[test]
fn a_link_that_is_swapped_in_leads_nowhere() {
    let tries = std::env::var("ESCAPE_TRIES")
        .ok()
        .and_then(|tries| tries.parse().ok())
        .unwrap_or(5_000);
    // Inside of the sandbox the link would lead nowhere in any case.
    let mut guest = Guest::on(Launch::new(BINARY).arg("--sandbox=none"));
    let outside = tempfile::tempdir().unwrap();
    for name in ["file", "victim", "only outside"] {
        fs::write(outside.path().join(name), OUTSIDE).unwrap();
    }
    fs::create_dir(outside.path().join("new 1")).unwrap();
    let before = state(outside.path());

    guest.file("file", "inside");
    guest.dir("swapped");
    guest.file("swapped/file", "inside");
    guest.file("swapped/victim", "inside");
    symlink(outside.path(), guest.path("link")).unwrap();
    let swapper = Swapper::start(guest.path("swapped"), guest.path("link"));
    let mut done = 0;
    for round in 0..tries {
        match try_everything(&mut guest, round) {
            Ok(()) => done += 1,
            Err(error) => assert!(error.errno().is_some(), "{error}"),
        }
    }
    let swaps = swapper.swaps.load(Ordering::Relaxed);
    drop(swapper);
    // Access times aside, which are not compared, nothing outside has been touched.
    assert_eq!(state(outside.path()), before);
    assert!(
        done > 0 && swaps > 0,
        "{done} of {tries} rounds were done, {swaps} swaps"
    );
    eprintln!("{done} of {tries} rounds were done, {swaps} swaps meanwhile");
}
