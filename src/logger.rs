//! The messages of the `log` facade, a line each on standard error. If that is systemd's journal,
//! the line begins with the message's priority instead of the program's name, which the journal
//! knows.
//!
//! Messages of level info and above are limited to a number of lines per second, so that a guest or
//! a front-end that causes one again and again does not fill the host's log. Debug and trace
//! messages are not limited.

use std::fmt::Display;
use std::io::Write;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::sys::stat::fstat;

/// Lines per second in the long run.
const EACH_SECOND: u32 = 5;
/// Lines at once after a pause.
const BURST: u32 = 100;

struct Stderr(Mutex<Allowance>);

static STDERR: Stderr = Stderr(Mutex::new(Allowance::new()));

/// How many lines may be written now.
struct Allowance {
    left: u32,
    /// Until when lines were granted; before the first line never.
    granted: Option<Instant>,
    left_out: u64,
}

impl Allowance {
    const fn new() -> Allowance {
        Allowance {
            left: BURST,
            granted: None,
            left_out: 0,
        }
    }

    /// Asks to write one line. If it may be written, returns how many could not be since the last
    /// one.
    fn take(&mut self, now: Instant) -> Option<u64> {
        const EACH: Duration = Duration::from_millis(1000 / EACH_SECOND as u64);
        let granted = *self.granted.get_or_insert(now);
        let more = now.saturating_duration_since(granted).as_millis() / EACH.as_millis();
        let more = u32::try_from(more).unwrap_or(BURST).min(BURST);
        self.left = (self.left + more).min(BURST);
        self.granted = Some(if self.left == BURST {
            now
        } else {
            granted + EACH * more
        });
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.left_out))
            }
            None => {
                self.left_out += 1;
                None
            }
        }
    }
}

/// Writes messages of at least this level. Call it once, at the start.
pub fn start(level: LevelFilter) {
    // Fails only if a logger is set already, which is used then.
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut left_out = 0;
        if record.level() <= Level::Info {
            let mut allowance = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match allowance.take(Instant::now()) {
                Some(count) => left_out = count,
                None => return,
            }
        }
        if left_out > 0 {
            write(
                Level::Warn,
                format_args!("{left_out} messages were left out, as there were so many"),
            );
        }
        write(record.level(), *record.args());
    }

    fn flush(&self) {}
}

/// Writes the reason why the program ends, whatever the level and however many lines there were.
pub fn complain(reason: impl Display) {
    write_line(match is_journal() {
        true => format!("<3>{reason}\n"),
        false => format!("vhost-user-9p: {reason}\n"),
    });
}

fn write(level: Level, text: std::fmt::Arguments<'_>) {
    write_line(match is_journal() {
        true => format!("<{}>{text}\n", priority(level)),
        false => {
            let level = level.as_str().to_ascii_lowercase();
            format!("vhost-user-9p: {level}: {text}\n")
        }
    });
}

/// One write per line, so that lines of two threads do not mix.
fn write_line(line: String) {
    // If there is no standard error, nobody can be told.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The priority as syslog(3) and sd-daemon(3) number it.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Whether standard error is the stream that systemd has connected to its journal: then
/// JOURNAL_STREAM names its device and inode (systemd.exec(5)).
fn is_journal() -> bool {
    static IS_JOURNAL: OnceLock<bool> = OnceLock::new();
    *IS_JOURNAL.get_or_init(|| {
        let stream = std::env::var("JOURNAL_STREAM").ok();
        let own = fstat(std::io::stderr()).ok();
        let own = own.map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
        stream.is_some() && stream == own
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_a_trickle_that_says_what_is_missing() {
        let mut allowance = Allowance::new();
        let begin = Instant::now();
        let flood = (0..1000).filter_map(|_| allowance.take(begin)).count();
        assert_eq!(flood, BURST as usize);
        let second = begin + Duration::from_secs(1);
        assert_eq!(allowance.take(second), Some(900));
        let rest = (0..1000).filter_map(|_| allowance.take(second));
        assert_eq!(rest.collect::<Vec<_>>(), [0; EACH_SECOND as usize - 1]);
        // An hour of quiet gives no more than a burst.
        let hour = begin + Duration::from_secs(3600);
        let flood: Vec<_> = (0..1000).filter_map(|_| allowance.take(hour)).collect();
        assert_eq!((flood.len(), flood[0]), (BURST as usize, 996));
    }
}
