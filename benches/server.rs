//! The daemon beside the bare system calls, over the stub guest: `make bench`.
//!
//! Each line is `bench server/NAME ours V UNIT direct V UNIT ratio R`, R being how many times
//! better the daemon is than the same calls made by a plain loop in this process (below 1: how
//! much of it is left). NAME is workload-depth, `cpu-` before it stands for the daemon's processor
//! time for a request. Medians of rounds in which the two take turns, because a machine's speed
//! drifts.

use std::error::Error;
use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use protocol::{Tclunk, Tgetattr, Tmessage, Tread, Twalk, getattr, open};
use stub_guest::{Attach, Client, Daemon, Options};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-user-9p");
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(120);
/// As long as KVM keeps a virtual processor from sleeping (its halt_poll_ns).
const HALT_POLL: Duration = Duration::from_micros(200);
/// Size of the file that is read, cached by the host.
const FILE_SIZE: u64 = 64 << 20;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What a workload does, once for the guest and once directly.
struct Workload {
    name: &'static str,
    /// How many requests are outstanding: a line for each.
    depths: &'static [usize],
    /// The request number n.
    request: fn(fids: &Fids, n: u64) -> Tmessage<'static>,
    direct: fn(file: &File, path: &str, buffer: &mut [u8], n: u64) -> std::io::Result<()>,
    /// Requests that make one operation.
    requests: u64,
}

struct Fids {
    root: u32,
    file: u32,
    open: u32,
    scratch: u32,
}

fn read(fids: &Fids, n: u64, count: u32) -> Tmessage<'static> {
    let pieces = FILE_SIZE / u64::from(count);
    // Not in order, so that reading ahead is of no use to either.
    let offset = (n.wrapping_mul(7919) % pieces) * u64::from(count);
    Tmessage::Read(Tread {
        fid: fids.open,
        offset,
        count,
    })
}

fn read_direct(file: &File, buffer: &mut [u8], n: u64, count: usize) -> std::io::Result<()> {
    let pieces = FILE_SIZE / count as u64;
    let offset = (n.wrapping_mul(7919) % pieces) * count as u64;
    file.read_exact_at(&mut buffer[..count], offset)
}

const WORKLOADS: &[Workload] = &[
    Workload {
        name: "getattr",
        depths: &[1, 64],
        request: |fids, _| {
            Tmessage::Getattr(Tgetattr {
                fid: fids.file,
                mask: getattr::BASIC,
            })
        },
        direct: |file, _, _, _| {
            file.metadata().map(|metadata| {
                black_box(metadata.ino());
            })
        },
        requests: 1,
    },
    Workload {
        name: "lookup",
        depths: &[1],
        request: |fids, n| match n % 3 {
            0 => {
                let mut names = protocol::Names::new();
                names.push(b"file");
                Tmessage::Walk(Twalk {
                    fid: fids.root,
                    newfid: fids.scratch,
                    names,
                })
            }
            1 => Tmessage::Getattr(Tgetattr {
                fid: fids.scratch,
                mask: getattr::BASIC,
            }),
            _ => Tmessage::Clunk(Tclunk { fid: fids.scratch }),
        },
        direct: |_, path, _, _| fs::metadata(path).map(drop),
        requests: 3,
    },
    Workload {
        name: "read-4k",
        depths: &[1, 64],
        request: |fids, n| read(fids, n, 4096),
        direct: |file, _, buffer, n| read_direct(file, buffer, n, 4096),
        requests: 1,
    },
    Workload {
        name: "read-480k",
        depths: &[8],
        request: |fids, n| read(fids, n, 480 << 10),
        direct: |file, _, buffer, n| read_direct(file, buffer, n, 480 << 10),
        requests: 1,
    },
];

/// Operations a second and the processor time of one, in nanoseconds.
#[derive(Clone, Copy)]
struct Round {
    rate: f64,
    cpu: f64,
}

fn guest_round(
    client: &mut Client,
    daemon: &Daemon,
    fids: &Fids,
    workload: &Workload,
    depth: usize,
    next: &mut u64,
) -> Result<Round> {
    let (start, cpu) = (Instant::now(), process_time(daemon.pid())?);
    let mut done = 0_u64;
    // An operation of several requests is not left in the middle.
    let whole = |next: u64| next.is_multiple_of(workload.requests);
    loop {
        // Asked once: what is not submitted now is not to be waited for.
        let more = start.elapsed() < ROUND || !whole(*next);
        if !more && client.outstanding() == 0 {
            break;
        }
        while more && client.outstanding() < depth {
            client.submit(&(workload.request)(fids, *next), &[])?;
            *next += 1;
        }
        let completion = client.wait_any()?;
        done += 1;
        let reply = completion.reply?;
        reply.message()?;
        client.recycle(reply);
    }
    let operations = done as f64 / workload.requests as f64;
    Ok(Round {
        rate: operations / start.elapsed().as_secs_f64(),
        cpu: (process_time(daemon.pid())? - cpu) as f64 / operations,
    })
}

fn direct_round(file: &File, path: &str, workload: &Workload) -> Result<Round> {
    let mut buffer = vec![0; 480 << 10];
    let (start, cpu) = (Instant::now(), process_time(std::process::id())?);
    let mut done = 0;
    while start.elapsed() < ROUND {
        for _ in 0..16 {
            (workload.direct)(file, path, &mut buffer, done)?;
            done += 1;
        }
    }
    Ok(Round {
        rate: done as f64 / start.elapsed().as_secs_f64(),
        cpu: (process_time(std::process::id())? - cpu) as f64 / done as f64,
    })
}

/// The processor time that all threads of a process have used, in nanoseconds.
fn process_time(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while it is being looked at.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        sum += text
            .split_whitespace()
            .next()
            .unwrap_or("0")
            .parse::<u64>()?;
    }
    Ok(sum)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let mut daemon = Daemon::start(BINARY)?;
    let path = daemon.path("file");
    fs::write(&path, vec![7; FILE_SIZE as usize])?;
    let file = File::open(&path)?;
    let path = path.to_str().ok_or("the path is not text")?.to_owned();

    let mut client = daemon.client_with(Options {
        halt_poll: HALT_POLL,
        ..Options::default()
    })?;
    let root = client.mount(&Attach::default())?;
    let (node, opened) = (
        client.walk_path(root, "file")?,
        client.walk_path(root, "file")?,
    );
    client.lopen(opened, open::RDONLY)?;
    let fids = Fids {
        root,
        file: node,
        open: opened,
        scratch: client.alloc_fid(),
    };

    let lines = WORKLOADS
        .iter()
        .flat_map(|workload| workload.depths.iter().map(move |depth| (workload, *depth)));
    for (workload, depth) in lines {
        let name = format!("{}-{depth}", workload.name);
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let mut next = 0;
        let (mut ours, mut direct) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let guest = guest_round(&mut client, &daemon, &fids, workload, depth, &mut next)?;
            let bare = direct_round(&file, &path, workload)?;
            // The first warms up.
            if round > 0 {
                ours.push(guest);
                direct.push(bare);
            }
        }
        let of =
            |rounds: &[Round], what: fn(&Round) -> f64| median(rounds.iter().map(what).collect());
        let (rate, bare) = (
            of(&ours, |round| round.rate),
            of(&direct, |round| round.rate),
        );
        println!(
            "bench server/{name} ours {rate:.0} ops/s direct {bare:.0} ops/s ratio {:.2}",
            rate / bare
        );
        let (cpu, bare) = (of(&ours, |round| round.cpu), of(&direct, |round| round.cpu));
        println!(
            "bench server/cpu-{name} ours {cpu:.0} ns direct {bare:.0} ns ratio {:.2}",
            bare / cpu
        );
    }
    Ok(())
}
