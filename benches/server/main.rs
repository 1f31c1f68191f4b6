//! The daemon beside its peers, over the stub guest: `make bench`.
//!
//! Each line is `bench server/NAME ours V UNIT PEER V UNIT ratio R`, R being how many times better
//! ours is: faster, or cheaper where V is a cost. NAME is workload-depth, depth being how many
//! operations are outstanding, with `tmpfs-` before it where the files are in memory and not on this
//! machine's disk. `cpu-` before all that stands for the processor time of one operation, `p50-` and
//! `p99-` for its latency. PEER is
//!
//! - `virtiofsd`: virtiofsd without a thread pool, `virtiofsd-pool` with one of 64 threads, driven
//!   by a FUSE client in the same guest;
//! - `direct`: the same system calls by a plain loop in this process, by as many threads as
//!   operations are outstanding where they wait for the disk.
//!
//! Medians of rounds in which all take turns, because a machine's speed drifts. The guest polls as
//! KVM's virtual processors do before it sleeps.
//!
//! - `workload`: what is measured; `peer`: a server and how its time is found
//! - `ninep`, `fuse`, `direct`: one workload in each language
//! - `report`: lines, and tables and plots in docs/bench

mod direct;
mod fuse;
mod ninep;
mod peer;
mod report;
mod workload;

use std::error::Error;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use peer::{Peer, Round, guest_round};
use report::{Line, Report, Unit};
use workload::{Tree, WORKLOADS, Workload};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-user-9p");
/// After one that warms up.
const ROUNDS: usize = 7;

/// What is told of a round: what stands before the name or is it, the unit, the value.
type Figure<T> = (&'static str, Unit, fn(&T) -> f64);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| words.iter().any(|word| word == flag);
    let wanted: Vec<&str> = words
        .iter()
        .filter(|word| !word.starts_with('-'))
        .map(String::as_str)
        .collect();
    let wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word));
    let virtiofsd = std::env::var_os("VIRTIOFSD").map(PathBuf::from);
    if virtiofsd.is_none() {
        eprintln!("no virtiofsd to compare with: run `make bench`, which builds it");
    }

    let mut report = Report::default();
    let places = [("", std::env::temp_dir()), ("tmpfs-", "/dev/shm".into())];
    for (prefix, place) in places {
        let name = |workload: &Workload, depth| format!("{prefix}{}-{depth}", workload.name);
        let lines: Vec<(&Workload, usize)> = WORKLOADS
            .iter()
            .filter(|workload| prefix.is_empty() || !workload.cold)
            .flat_map(|workload| workload.depths.iter().map(move |depth| (workload, *depth)))
            .filter(|(workload, depth)| wanted(&name(workload, *depth)))
            .collect();
        if lines.is_empty() {
            continue;
        }
        let directory = TempDir::with_prefix_in("bench", &place)?;
        let tree = Tree::make(directory.path())?;
        let mut peers = start(&tree, virtiofsd.as_deref())?;
        for (workload, depth) in lines {
            measure(
                &name(workload, depth),
                workload,
                depth,
                &tree,
                &mut peers,
                &mut report,
            )?;
        }
    }
    if wanted("busy-getattr") {
        busy(virtiofsd.as_deref(), &mut report)?;
    }
    if wanted("idle") || wanted("start") {
        at_rest(virtiofsd.as_deref(), &mut report)?;
    }
    if has("--record") {
        report.record(Path::new("docs/bench"))?;
    }
    if has("--check") {
        report.check(Path::new("docs/bench"))?;
    }
    Ok(())
}

/// Ours first.
fn start(tree: &Tree, virtiofsd: Option<&Path>) -> Result<Vec<Box<dyn Peer>>> {
    let mut peers: Vec<Box<dyn Peer>> = vec![Box::new(ninep::Ours::start(BINARY, tree)?)];
    if let Some(virtiofsd) = virtiofsd {
        for (name, threads) in [("virtiofsd", 0), ("virtiofsd-pool", 64)] {
            peers.push(Box::new(fuse::Virtiofsd::start(
                name, virtiofsd, threads, tree,
            )?));
        }
    }
    Ok(peers)
}

/// The workload at one depth, by all in turns.
fn measure(
    name: &str,
    workload: &Workload,
    depth: usize,
    tree: &Tree,
    peers: &mut [Box<dyn Peer>],
    report: &mut Report,
) -> Result<()> {
    let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); peers.len() + 1];
    for number in 0..=ROUNDS {
        let (direct, servers) = rounds.split_last_mut().ok_or("no peers")?;
        for (peer, rounds) in peers.iter_mut().zip(servers) {
            workload.prepare(tree)?;
            let round = guest_round(&mut **peer, workload, depth, None)?;
            if number > 0 {
                rounds.push(round);
            }
        }
        workload.prepare(tree)?;
        let round = direct::round(tree, workload, depth)?;
        if number > 0 {
            direct.push(round);
        }
    }
    let names = peers
        .iter()
        .skip(1)
        .map(|peer| peer.name())
        .chain(["direct"]);
    let (ours, others) = rounds.split_first().ok_or("no rounds")?;
    for (peer, theirs) in names.zip(others) {
        let all: [Figure<Round>; 4] = [
            ("", workload.unit(), |round| round.rate),
            ("cpu-", Unit::Cost("ns"), |round| round.cpu),
            ("p50-", Unit::Cost("ns"), |round| round.p50),
            ("p99-", Unit::Cost("ns"), |round| round.p99),
        ];
        for (prefix, unit, value) in all {
            // A loop's latency says nothing where nothing waits in it.
            if peer == "direct" && prefix.starts_with('p') {
                continue;
            }
            let scale = if prefix.is_empty() {
                workload.scale()
            } else {
                1.0
            };
            let values = |rounds: &[Round]| rounds.iter().map(|r| value(r) * scale).collect();
            report.add(Line::new(
                format!("{prefix}{name}"),
                peer,
                unit,
                values(ours),
                values(theirs),
            ));
        }
    }
    Ok(())
}

/// How long a getattr takes while 63 reads wait for the disk, beside how long it takes alone.
fn busy(virtiofsd: Option<&Path>, report: &mut Report) -> Result<()> {
    let directory = TempDir::with_prefix("bench")?;
    let tree = Tree::make(directory.path())?;
    let cold = cold()?;
    let getattr = &WORKLOADS[0];
    for mut peer in start(&tree, virtiofsd)? {
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            alone.push(guest_round(&mut *peer, getattr, 1, None)?.p50);
            cold.prepare(&tree)?;
            beside.push(guest_round(&mut *peer, cold, 64, Some(getattr))?.p50);
        }
        let name = match peer.name() {
            "ours" => "busy-getattr-64".to_owned(),
            other => format!("busy-getattr-64-{other}"),
        };
        report.add(Line::new(name, "alone", Unit::Cost("ns"), beside, alone));
    }
    Ok(())
}

fn cold() -> Result<&'static Workload> {
    let cold = WORKLOADS.iter().find(|workload| workload.cold);
    cold.ok_or_else(|| "no cold workload".into())
}

/// What a daemon takes that has nothing to do, and how soon it is there.
fn at_rest(virtiofsd: Option<&Path>, report: &mut Report) -> Result<()> {
    let directory = TempDir::with_prefix("bench")?;
    let tree = Tree::make(directory.path())?;
    let cold = cold()?;
    let mut rest: Vec<(&str, peer::Rest)> = Vec::new();
    for mut peer in start(&tree, virtiofsd)? {
        let name = peer.name();
        rest.push((name, peer::rest(&mut *peer, &tree, cold)?));
    }
    // How soon one is there varies more than all else.
    let mut starts: Vec<Vec<f64>> = vec![Vec::new(); rest.len()];
    for _ in 0..ROUNDS {
        for (peer, starts) in start(&tree, virtiofsd)?.iter().zip(&mut starts) {
            starts.push(peer.started_in().as_nanos() as f64 / 1000.0);
        }
    }
    let (ours, others) = rest.split_first().ok_or("no peers")?;
    for ((name, theirs), times) in others.iter().zip(&starts[1..]) {
        let unit = Unit::Cost("us");
        report.add(Line::new(
            "start".into(),
            name,
            unit,
            starts[0].clone(),
            times.clone(),
        ));
        let lines: [Figure<peer::Rest>; 3] = [
            ("idle-wakeups", Unit::Cost("per second"), |rest| {
                rest.wakeups
            }),
            ("idle-resident", Unit::Cost("KiB"), |rest| rest.idle),
            ("resident-per-request-64", Unit::Cost("KiB"), |rest| {
                rest.per_request
            }),
        ];
        for (what, unit, value) in lines {
            let values = |rest| vec![value(rest)];
            report.add(Line::new(
                what.into(),
                name,
                unit,
                values(&ours.1),
                values(theirs),
            ));
        }
    }
    Ok(())
}
