//! Two programs, measured in turns.

use std::time::Instant;

/// Rounds of each program. Short ones and many: another program takes the processor in few of
/// them, and the median does not see it.
const ROUNDS: usize = 31;

/// What a program is measured in.
#[derive(Clone, Copy)]
pub enum Unit {
    /// Nanoseconds for each operation.
    Nanoseconds,
    /// Bytes for each object.
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

/// Nanoseconds that each of `count` operations takes, which `work` makes all.
pub fn time(count: usize, work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    begin.elapsed().as_nanos() as f64 / count as f64
}

/// As [`time`], of the processor's time that this thread has had.
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

/// Measures both in turns, and prints a line: the medians, and how many times less ours is. The
/// ratio is the median of the ratios of the rounds, which the machine's other work changes least.
pub fn compare(
    name: &str,
    peer: &str,
    unit: Unit,
    mut ours: impl FnMut() -> f64,
    mut theirs: impl FnMut() -> f64,
) {
    // Pools filled, pages touched, threads started.
    ours();
    theirs();
    let mut rounds = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        // Who is first changes.
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
