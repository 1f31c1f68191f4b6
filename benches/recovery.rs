//! How long a guest waits when the process that serves dies, or is upgraded: `make bench BENCH=recovery`.
//!
//! Each line is `bench recovery/HOW-FIDS p50 V ms p99 V ms`: from the signal to the answer to the request
//! that was posted at that moment, with FIDS fids for a tenth as many files. HOW is `kill` (SIGKILL) or
//! `upgrade` (SIGHUP: another program is started, which is this one).

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use protocol::getattr;
use stub_guest::daemon::Launch;
use stub_guest::{Client, Daemon};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-user-9p");
const FIDS: [usize; 3] = [10, 10_000, 100_000];
/// Files in one directory.
const CROWD: usize = 1000;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    for how in ["kill", "upgrade"] {
        for fids in FIDS {
            let name = format!("recovery/{how}-{fids}");
            if words.is_empty() || words.iter().any(|word| name.contains(word.as_str())) {
                measure(&name, how, fids)?;
            }
        }
    }
    Ok(())
}

fn measure(name: &str, how: &str, fids: usize) -> Result<()> {
    let launch = Launch::new(BINARY).args(["--limit-fids", "200000", "--log-level", "info"]);
    let mut daemon = launch.start()?;
    let (mut client, root) = daemon.mount()?;
    for file in 0..fids.div_ceil(10) {
        let directory = daemon.path(format!("d{}", file / CROWD));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(format!("f{file}")), "")?;
    }
    for fid in 0..fids {
        let file = fid / 10;
        client.walk_path(root, &format!("d{}/f{file}", file / CROWD))?;
    }
    let rounds = if fids > 50_000 { 30 } else { 100 };
    let mut pauses = Vec::new();
    for round in 1..=rounds {
        pauses.push(pause(&mut daemon, &mut client, root, how, round)?);
    }
    pauses.sort_unstable();
    let at = |part: usize| pauses[(pauses.len() - 1) * part / 100].as_secs_f64() * 1e3;
    println!("bench {name} p50 {:.1} ms p99 {:.1} ms", at(50), at(99));
    Ok(())
}

/// From the signal to the answer of the process that follows.
fn pause(
    daemon: &mut Daemon,
    client: &mut Client,
    root: u32,
    how: &str,
    round: usize,
) -> Result<Duration> {
    let begin = Instant::now();
    match how {
        "kill" => daemon.kill_server()?,
        _ => {
            daemon.signal(Signal::SIGHUP)?;
            // Until then the process before may answer.
            daemon.said_often("hands over", round)?;
        }
    }
    client.getattr(root, getattr::ALL)?;
    Ok(begin.elapsed())
}
