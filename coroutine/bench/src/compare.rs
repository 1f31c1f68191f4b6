//! Compares two programs by alternating between them.

use std::time::Instant;

/// Rounds of each program. They are short and many, so that other processes disturb only a few of
/// them, which the median ignores.
const ROUNDS: usize = 31;

/// The unit of a measurement.
#[derive(Clone, Copy)]
pub enum Unit {
    /// Nanoseconds per operation.
    Nanoseconds,
    /// Bytes per object.
    Bytes,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Nanoseconds => "ns",
            Unit::Bytes => "B",
        }
    }
}

/// Nanoseconds per operation, where `work` does `count` operations.
pub fn time(count: usize, work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    begin.elapsed().as_nanos() as f64 / count as f64
}

/// As [`time`], in processor time of this thread.
pub fn processor_time(count: usize, work: impl FnOnce()) -> f64 {
    let now = || {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the kernel writes the time.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
    };
    let begin = now();
    work();
    (now() - begin) / count as f64
}

/// Measures both alternately, and prints their medians and the ratio of the peer to ours. The ratio
/// is the median of the ratios of the rounds, which other load on the machine affects least.
pub fn compare(
    name: &str,
    peer: &str,
    unit: Unit,
    mut ours: impl FnMut() -> f64,
    mut theirs: impl FnMut() -> f64,
) {
    // Warm up: fill pools, touch pages, start threads.
    ours();
    theirs();
    let mut rounds = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        // Alternate which is first.
        rounds.push(if round % 2 == 0 {
            let ours = ours();
            (ours, theirs())
        } else {
            let theirs = theirs();
            (ours(), theirs)
        });
    }
    let median = |value: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    println!(
        "bench coroutine/{name} ours {:.2} {unit} {peer} {:.2} {unit} ratio {:.2}",
        median(|round| round.0),
        median(|round| round.1),
        median(|round| round.1 / round.0),
        unit = unit.name(),
    );
}
