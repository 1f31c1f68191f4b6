//! Compares this library with its peers, one line per benchmark.
//!
//! `cargo bench -p coroutine-bench --bench peers [-- NAME...]`

use std::cell::RefCell;
use std::process::{Child, Command};

use coroutine_bench::compare::{Unit, compare, processor_time, time};
use coroutine_bench::hops::{Ours, Tokio, condvar};
use coroutine_bench::{memory, ours, peers};

/// The argument that makes the program spin until it is killed.
const HOG: &str = "--hog";

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    if arguments.first().is_some_and(|argument| argument == HOG) {
        loop {
            std::hint::spin_loop();
        }
    }
    for (name, bench) in BENCHES {
        if arguments.is_empty() || arguments.iter().any(|argument| argument == name) {
            bench(name);
        }
    }
}

type Bench = fn(&str);

const BENCHES: &[(&str, Bench)] = &[
    // First, while the pools are empty.
    ("resident-bytes", |name| {
        let (ours, theirs) = (|| memory::coroutines(2000), || memory::threads(500));
        compare(name, "thread", Unit::Bytes, ours, theirs);
    }),
    ("yield", |name| {
        compare_loops(
            name,
            "corosensei",
            100_000,
            ours::yields,
            peers::corosensei::yields,
        );
        compare_loops(
            name,
            "qemu-way",
            100_000,
            ours::yields,
            peers::qemu_way::yields,
        );
    }),
    ("yield-inline", |name| {
        let theirs = peers::corosensei::yields_inline;
        compare_loops(name, "corosensei", 100_000, ours::yields_inline, theirs);
    }),
    ("lifecycle", |name| {
        let theirs = peers::corosensei::lifecycles;
        compare_loops(name, "corosensei-pooled", 100_000, ours::lifecycles, theirs);
        compare_loops(
            name,
            "qemu-way",
            100_000,
            ours::lifecycles,
            peers::qemu_way::lifecycles,
        );
    }),
    ("lifecycle-owned", |name| {
        let theirs = peers::corosensei::lifecycles;
        compare_loops(
            name,
            "corosensei-pooled",
            100_000,
            ours::lifecycles_owned,
            theirs,
        );
    }),
    ("cost", |name| {
        compare_loops(
            name,
            "qemu-way",
            50_000,
            ours::costs,
            peers::qemu_way::costs,
        );
    }),
    ("nesting-1000", |name| {
        const DEPTH: usize = 1000;
        let ours = || (0..20).for_each(|_| ours::nest(DEPTH));
        let theirs = || peers::qemu_way::nest(DEPTH);
        compare(
            name,
            "qemu-way",
            Unit::Nanoseconds,
            || processor_time(20 * DEPTH, ours),
            || processor_time(DEPTH, theirs),
        );
    }),
    ("stack-cold", |name| {
        const COUNT: usize = 500;
        // Kept alive, so that each round maps new ones.
        let kept = RefCell::new(Vec::new());
        compare(
            name,
            "corosensei",
            Unit::Nanoseconds,
            || processor_time(COUNT, || kept.borrow_mut().push(ours::cold(COUNT))),
            || {
                let mut all = Vec::new();
                processor_time(COUNT, || all = peers::corosensei::cold(COUNT))
            },
        );
    }),
    ("offload-1", |name| {
        const HOPS: usize = 5000;
        let (ours, tokio) = (Ours::default(), Tokio::default());
        compare(
            name,
            "tokio",
            Unit::Nanoseconds,
            || time(HOPS, || ours.run(1, HOPS)),
            || time(HOPS, || tokio.run(1, HOPS)),
        );
    }),
    ("offload-1-loaded", |name| {
        const HOPS: usize = 2000;
        let _hogs = Hogs::new();
        let (ours, condvar) = (Ours::default(), condvar::Pool::new(1));
        compare(
            name,
            "condvar",
            Unit::Nanoseconds,
            || time(HOPS, || ours.run(1, HOPS)),
            || time(HOPS, || condvar.run(HOPS)),
        );
    }),
    ("offload-32", |name| {
        const HOPS: usize = 300;
        let (ours, tokio) = (Ours::default(), Tokio::default());
        compare(
            name,
            "tokio",
            Unit::Nanoseconds,
            || time(32 * HOPS, || ours.run(32, HOPS)),
            || time(32 * HOPS, || tokio.run(32, HOPS)),
        );
        drop(tokio);
        let condvar = condvar::Pool::new(32);
        compare(
            name,
            "condvar",
            Unit::Nanoseconds,
            || time(32 * HOPS, || ours.run(32, HOPS)),
            || time(32 * HOPS, || condvar.run(HOPS)),
        );
    }),
];

fn compare_loops(
    name: &str,
    peer: &str,
    count: usize,
    ours: impl Fn(usize),
    theirs: impl Fn(usize),
) {
    compare(
        name,
        peer,
        Unit::Nanoseconds,
        || processor_time(count, || ours(count)),
        || processor_time(count, || theirs(count)),
    );
}

/// One spinning process per processor.
struct Hogs(Vec<Child>);

impl Hogs {
    fn new() -> Hogs {
        let program = std::env::current_exe().expect("no path of this program");
        let count = std::thread::available_parallelism().map_or(2, usize::from);
        let start = |_| Command::new(&program).arg(HOG).spawn().expect("no process");
        Hogs((0..count).map(start).collect())
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
