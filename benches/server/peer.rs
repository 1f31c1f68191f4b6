//! A server that is measured, and one round of it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Result;
use crate::workload::{Operation, Tree, Workload};

/// The longest wait for a server's socket.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a round is.
pub const ROUND: Duration = Duration::from_millis(60);

/// A server and a guest that speaks its language.
///
/// A lane does one operation after the other, each of one or several requests of which the next is
/// sent when the reply to the last has come. There are as many lanes as operations outstanding.
pub trait Peer {
    fn name(&self) -> &'static str;
    /// The process that serves.
    fn pid(&self) -> u32;
    /// How long it took from its start until it accepted a connection.
    fn started_in(&self) -> Duration;
    /// Makes `lanes` lanes ready for an operation.
    fn prepare(&mut self, lanes: usize) -> Result<()>;
    /// Sends the next request of a lane's operation number `n` and returns its tag; None if the
    /// operation is complete. `step` counts the requests that the operation has had.
    fn send(
        &mut self,
        operation: Operation,
        lane: usize,
        n: u64,
        step: usize,
    ) -> Result<Option<u16>>;
    /// Waits for a reply, which has to be a right one, and returns its tag.
    fn receive(&mut self) -> Result<u16>;
    /// Gives a reply that was received to the lane whose request it answers.
    fn deliver(&mut self, operation: Operation, lane: usize, step: usize) -> Result<()>;
}

/// A connection to a server that was started at `begin`, as soon as it listens.
pub fn connect(socket: &Path, begin: Instant) -> Result<UnixStream> {
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            // Asked over and over: how long it takes is what is measured.
            Err(_) if begin.elapsed() < PATIENCE => std::thread::yield_now(),
            Err(error) => return Err(format!("the server does not start: {error}").into()),
        }
    }
}

/// What a round has shown, for one operation.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Operations per second.
    pub rate: f64,
    /// The server's processor time, in nanoseconds.
    pub cpu: f64,
    /// Latencies in nanoseconds.
    pub p50: f64,
    pub p99: f64,
}

struct Lane {
    operation: Operation,
    step: usize,
    began: Instant,
}

/// As many operations as fit in a round, `depth` at a time. With `beside`, the first lane does that
/// one instead, and only its latencies count.
pub fn guest_round(
    peer: &mut dyn Peer,
    workload: &Workload,
    depth: usize,
    beside: Option<&Workload>,
) -> Result<Round> {
    peer.prepare(depth)?;
    let cpu = process_time(peer.pid())?;
    let start = Instant::now();
    let mut lanes: Vec<Lane> = (0..depth)
        .map(|lane| Lane {
            operation: beside
                .filter(|_| lane == 0)
                .map_or(workload.operation, |beside| beside.operation),
            step: 0,
            began: start,
        })
        .collect();
    let mut by_tag: Vec<usize> = Vec::new();
    let mut latencies: Vec<u32> = Vec::new();
    let (mut next, mut done, mut running) = (0_u64, 0_u64, 0_usize);
    let mut ready: Vec<usize> = (0..depth).collect();
    loop {
        while let Some(lane) = ready.pop() {
            let state = &mut lanes[lane];
            if state.step == 0 {
                // Whoever has begun comes to an end; nobody begins after it.
                if start.elapsed() >= ROUND {
                    continue;
                }
                state.began = Instant::now();
                next += 1;
            }
            match peer.send(state.operation, lane, next, state.step)? {
                Some(tag) => {
                    let tag = usize::from(tag);
                    by_tag.resize(by_tag.len().max(tag + 1), 0);
                    by_tag[tag] = lane;
                    state.step += 1;
                    running += 1;
                }
                None => {
                    if beside.is_none() || lane == 0 {
                        let nanoseconds = state.began.elapsed().as_nanos();
                        latencies.push(u32::try_from(nanoseconds).unwrap_or(u32::MAX));
                    }
                    done += 1;
                    state.step = 0;
                    ready.push(lane);
                }
            }
        }
        if running == 0 {
            break;
        }
        let tag = peer.receive()?;
        let lane = by_tag[usize::from(tag)];
        peer.deliver(lanes[lane].operation, lane, lanes[lane].step)?;
        running -= 1;
        ready.push(lane);
    }
    let rate = done as f64 / start.elapsed().as_secs_f64();
    let cpu = (process_time(peer.pid())? - cpu) as f64 / done as f64;
    latencies.sort_unstable();
    let at = |part: f64| {
        let place = (latencies.len() as f64 * part) as usize;
        latencies.get(place).copied().map_or(0.0, f64::from)
    };
    Ok(Round {
        rate,
        cpu,
        p50: at(0.5),
        p99: at(0.99),
    })
}

/// What a server takes that has nothing to do.
pub struct Rest {
    /// Context switches per second.
    pub wakeups: f64,
    /// Resident memory in KiB, the guest's not counted.
    pub idle: f64,
    /// How much more there is after 64 requests at once that wait for the disk, for each.
    pub per_request: f64,
}

/// Looks at a server for two seconds.
pub fn rest(peer: &mut dyn Peer, tree: &Tree, cold: &Workload) -> Result<Rest> {
    const WHILE: Duration = Duration::from_secs(2);
    let idle = private_memory(peer.pid())?;
    let before = switches(peer.pid())?;
    // Nothing is waited for: this is the time that is measured.
    std::thread::sleep(WHILE);
    let wakeups = (switches(peer.pid())? - before) as f64 / WHILE.as_secs_f64();
    // Those that wait for the disk are under way at once.
    cold.prepare(tree)?;
    guest_round(peer, cold, 64, None)?;
    let busy = private_memory(peer.pid())?;
    Ok(Rest {
        wakeups,
        idle,
        per_request: (busy - idle).max(0.0) / 64.0,
    })
}

/// Resident memory in KiB without what is shared, which is the guest's.
fn private_memory(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> f64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .unwrap_or(0.0)
    };
    Ok(field("RssAnon:") + field("RssFile:"))
}

/// How often the threads of a process have left the processor.
fn switches(pid: u32) -> Result<u64> {
    each_thread(pid, "status", |text| {
        text.lines()
            .filter(|line| line.contains("ctxt_switches"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum()
    })
}

/// The processor time that all threads of a process have used, in nanoseconds.
pub fn process_time(pid: u32) -> Result<u64> {
    each_thread(pid, "schedstat", |text| {
        let first = text.split_whitespace().next();
        first.and_then(|first| first.parse().ok()).unwrap_or(0)
    })
}

fn each_thread(pid: u32, file: &str, value: impl Fn(&str) -> u64) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"))? {
        // A thread may end while it is being looked at.
        if let Ok(text) = fs::read_to_string(task?.path().join(file)) {
            sum += value(&text);
        }
    }
    Ok(sum)
}

/// As long as KVM keeps a virtual processor from sleeping (its halt_poll_ns).
pub const HALT_POLL: Duration = Duration::from_micros(200);
