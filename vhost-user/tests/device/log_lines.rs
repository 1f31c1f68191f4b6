//! Counts what is logged by the test's own thread.

use std::cell::Cell;

use log::{LevelFilter, Log, Metadata, Record};

thread_local! {
    static LINES: Cell<usize> = const { Cell::new(0) };
}

struct Counter;

impl Log for Counter {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &Record<'_>) {
        LINES.set(LINES.get() + 1);
    }

    fn flush(&self) {}
}

/// How many lines of level info and above `f` causes.
pub fn count(f: impl FnOnce()) -> usize {
    // Fails if another test was faster.
    let _ = log::set_logger(&Counter);
    log::set_max_level(LevelFilter::Info);
    let before = LINES.get();
    f();
    LINES.get() - before
}
