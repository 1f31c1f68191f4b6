//! An event loop that never blocks: it reads file names from standard input and prints the files'
//! sizes. Sequential code gives the call that may block to a worker, while a clock ticks.
//!
//! `printf '/etc/passwd\n/etc/group\n/nowhere\n' | cargo run --example offload`

use std::io::{self, BufRead};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use coroutine::{Workers, next_deadline, run_ready, run_timers, sleep, spawn};

/// One request: sequential code on its own stack.
fn tell_size(workers: &Workers, path: String) {
    // Another thread borrows `path` from this stack.
    match workers.offload(|| std::fs::metadata(&path)) {
        Ok(metadata) => println!("{path}: {} bytes", metadata.len()),
        Err(error) => println!("{path}: {error}"),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let workers = Rc::new(Workers::new(4)?);
    spawn(|| {
        loop {
            sleep(Duration::from_secs(1));
            println!("tick");
        }
    })?;
    for line in io::stdin().lock().lines() {
        let (path, workers) = (line?, workers.clone());
        spawn(move || tell_size(&workers, path))?;
    }
    let epoll = watch(workers.as_fd().as_raw_fd())?;
    // One iteration: resume coroutines whose job is done, then those that were woken, then sleep.
    while workers.outstanding() > 0 {
        workers.run_completed();
        run_timers();
        run_ready();
        let time = match next_deadline() {
            _ if !workers.prepare_sleep() => Duration::ZERO,
            Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            None => Duration::MAX,
        };
        wait(&epoll, time)?;
        workers.awake();
    }
    Ok(())
}

/// An epoll instance that watches a descriptor.
fn watch(fd: i32) -> io::Result<OwnedFd> {
    let mut event = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: 0,
    };
    // SAFETY: the first call returns a new descriptor, which only this owns. The second reads the
    // event.
    unsafe {
        let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        if epoll < 0 || libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(epoll))
    }
}

/// Sleeps until a watched descriptor is ready, or for `time`.
fn wait(epoll: &OwnedFd, time: Duration) -> io::Result<()> {
    let milliseconds = time.as_millis().try_into().unwrap_or(i32::MAX);
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: the kernel writes at most one event, for which there is room.
    match unsafe { libc::epoll_wait(epoll.as_raw_fd(), &raw mut event, 1, milliseconds) } {
        -1 if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted => {
            Err(io::Error::last_os_error())
        }
        _ => Ok(()),
    }
}
