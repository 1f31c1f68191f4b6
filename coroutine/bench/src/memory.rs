//! The memory of suspended coroutines and threads.

use std::sync::mpsc;

/// The resident memory of the process in bytes, with its page tables.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("no /proc");
    let kibibytes = |name: &str| -> f64 {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .expect("no such line");
        line.split_whitespace()
            .nth(1)
            .and_then(|number| number.parse().ok())
            .expect("no number")
    };
    (kibibytes("RssAnon:") + kibibytes("VmPTE:")) * 1024.0
}

/// Bytes of each of `count` suspended coroutines.
pub fn coroutines(count: usize) -> f64 {
    // Stacks of the previous round.
    while coroutine::trim() > 0 {}
    let before = resident();
    let all = crate::ours::cold(count);
    let bytes = (resident() - before) / count as f64;
    drop(all);
    // The first call only notes that the load has risen.
    coroutine::trim();
    bytes
}

/// Bytes of each of `count` waiting threads.
pub fn threads(count: usize) -> f64 {
    let before = resident();
    let (ready, started) = mpsc::channel();
    let all: Vec<_> = (0..count)
        .map(|_| {
            let ready = ready.clone();
            let (end, wait) = mpsc::channel::<()>();
            let thread = std::thread::spawn(move || {
                ready.send(()).unwrap();
                let _ = wait.recv();
            });
            (thread, end)
        })
        .collect();
    started.iter().take(count).for_each(drop);
    let bytes = (resident() - before) / count as f64;
    for (thread, end) in all {
        drop(end);
        thread.join().unwrap();
    }
    bytes
}
