//! The messages of the `log` facade, a line each on standard error.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr;

/// Writes what is at least as important as `level`. Once, at the start.
pub fn start(level: LevelFilter) {
    // Fails only where a logger is set already, which then is the one to use.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            // One write for a line, so that lines of two threads do not mix. Without a standard
            // error there is nobody to tell.
            let line = format!("vhost-user-9p: {level}: {}\n", record.args());
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}
