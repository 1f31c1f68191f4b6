//! What something that is suspended costs in memory.

use std::sync::mpsc;

/// Bytes of memory that the process has, its page tables included.
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
    // What the round before has left.
    while coroutine::trim() > 0 {}
    let before = resident();
    let all = crate::ours::cold(count);
    let bytes = (resident() - before) / count as f64;
    drop(all);
    // Nothing happens while the load rises.
    coroutine::trim();
    bytes
}

/// Bytes of each of `count` threads that wait.
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
