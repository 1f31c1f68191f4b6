//! The same system calls by a plain loop: what a server cannot be faster than.

use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crate::Result;
use crate::peer::{ROUND, Round, process_time};
use crate::workload::{
    COMPONENT, COMPONENTS, DIRECTORY, ENTRIES, FILE, Operation, Tree, WRITTEN, Workload, name_of,
    offset,
};

/// Operations between two looks at the clock.
const BATCH: u64 = 8;

/// One loop's files and memory.
struct Loop {
    file: File,
    written: File,
    made: PathBuf,
    walked: PathBuf,
    directory: PathBuf,
    /// As many as operations are outstanding for a server: each has its own there.
    buffers: Vec<Vec<u8>>,
}

impl Loop {
    fn new(tree: &Tree, workload: &Workload, buffers: usize, number: usize) -> Result<Loop> {
        let length = match workload.operation {
            Operation::Read(count) | Operation::Write(count) => count as usize,
            _ => 4096,
        };
        let components: PathBuf = [COMPONENT; COMPONENTS].iter().collect();
        Ok(Loop {
            file: File::open(tree.path(FILE))?,
            written: OpenOptions::new().write(true).open(tree.path(WRITTEN))?,
            made: tree.path(&format!("{}-direct", name_of(number))),
            walked: tree.root().join(components),
            directory: tree.path(DIRECTORY),
            buffers: vec![vec![7; length]; buffers],
        })
    }

    fn operate(&mut self, tree: &Tree, operation: Operation, n: u64) -> io::Result<()> {
        let buffer = n as usize % self.buffers.len();
        let buffer = &mut self.buffers[buffer];
        match operation {
            Operation::Getattr => {
                black_box(self.file.metadata()?.ino());
            }
            Operation::Lookup => {
                black_box(fs::metadata(tree.root().join(FILE))?.ino());
            }
            Operation::Walk => {
                black_box(fs::metadata(&self.walked)?.ino());
            }
            Operation::Open => drop(File::open(tree.root().join(FILE))?),
            Operation::Create => {
                File::create_new(&self.made)?.write_all(buffer)?;
                fs::remove_file(&self.made)?;
            }
            Operation::Read(count) => self.file.read_exact_at(buffer, offset(n, count))?,
            Operation::Write(count) => self.written.write_all_at(buffer, offset(n, count))?,
            Operation::List => {
                assert_eq!(fs::read_dir(&self.directory)?.count(), ENTRIES);
            }
        }
        Ok(())
    }
}

/// As many operations as fit in a round.
pub fn round(tree: &Tree, workload: &Workload, depth: usize) -> Result<Round> {
    // What waits for the disk needs others beside it.
    let threads = if workload.cold { depth } else { 1 };
    let mut loops: Vec<Loop> = (0..threads)
        .map(|number| Loop::new(tree, workload, depth / threads, number))
        .collect::<Result<_>>()?;
    let next = AtomicU64::new(0);
    let cpu = process_time(std::process::id())?;
    let start = Instant::now();
    let work = |own: &mut Loop| -> io::Result<()> {
        while start.elapsed() < ROUND {
            let batch = if workload.cold { 1 } else { BATCH };
            for _ in 0..batch {
                let n = next.fetch_add(1, Ordering::Relaxed);
                own.operate(tree, workload.operation, n)?;
            }
        }
        Ok(())
    };
    let (first, others) = loops.split_first_mut().ok_or("no loop")?;
    let work = &work;
    let cpu_used = thread::scope(|scope| -> Result<u64> {
        let threads: Vec<_> = others
            .iter_mut()
            .map(|own| scope.spawn(move || (work(own), thread_time())))
            .collect();
        work(first)?;
        let mut ended = 0;
        for thread in threads {
            let (result, time) = thread.join().map_err(|_| "a loop panicked")?;
            result?;
            ended += time;
        }
        Ok(ended)
    })?;
    let done = next.load(Ordering::Relaxed) as f64;
    let used = process_time(std::process::id())? - cpu + cpu_used;
    Ok(Round {
        rate: done / start.elapsed().as_secs_f64(),
        cpu: used as f64 / done,
        p50: 0.0,
        p99: 0.0,
    })
}

/// The processor time of this thread, in nanoseconds: it is gone with the thread.
fn thread_time() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.and_then(|first| first.parse().ok()).unwrap_or(0)
}
