//! What is told of the figures: lines, and tables and plots for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::Result;

/// What a value is, and which is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// More is better.
    Gain(&'static str),
    /// Less is better.
    Cost(&'static str),
}

/// One comparison.
pub struct Line {
    name: String,
    peer: String,
    unit: Unit,
    ours: f64,
    theirs: f64,
    /// How many times better ours is: the median of the rounds, and the quartiles around it.
    ratio: f64,
    quartiles: (f64, f64),
}

impl Line {
    /// From the rounds, of which there are as many of each.
    pub fn new(name: String, peer: &str, unit: Unit, ours: Vec<f64>, theirs: Vec<f64>) -> Line {
        let better = |ours: f64, theirs: f64| match unit {
            Unit::Gain(_) => ours / theirs,
            // Neither costs anything, or only theirs does.
            Unit::Cost(_) if ours == 0.0 => 1.0 + theirs,
            Unit::Cost(_) => theirs / ours,
        };
        let rounds: Vec<f64> = (ours.iter().zip(&theirs))
            .map(|(ours, theirs)| better(*ours, *theirs))
            .collect();
        let (mine, other) = (at(ours, 0.5), at(theirs, 0.5));
        Line {
            name,
            peer: peer.into(),
            unit,
            ours: mine,
            theirs: other,
            ratio: better(mine, other),
            quartiles: (at(rounds.clone(), 0.25), at(rounds, 0.75)),
        }
    }

    fn text(&self) -> String {
        let (Unit::Gain(unit) | Unit::Cost(unit)) = self.unit;
        format!(
            "bench server/{} ours {:.1} {unit} {} {:.1} {unit} ratio {:.2}",
            self.name, self.ours, self.peer, self.theirs, self.ratio
        )
    }
}

/// The value that `part` of all are below.
fn at(mut values: Vec<f64>, part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * part) as usize;
    values
        .get(place.min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0.0)
}

/// All lines of a run.
#[derive(Default)]
pub struct Report {
    lines: Vec<Line>,
}

/// The lines of the last run that was recorded, with their quartiles.
const RECORD: &str = "server.txt";

impl Report {
    /// Prints a line and keeps it.
    pub fn add(&mut self, line: Line) {
        println!("{}", line.text());
        self.lines.push(line);
    }

    /// Writes the lines, a table and a plot of each kind into `folder`.
    pub fn record(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let mut record = String::new();
        for line in &self.lines {
            let (low, high) = line.quartiles;
            writeln!(record, "{} quartiles {low:.2} {high:.2}", line.text())?;
        }
        fs::write(folder.join(RECORD), record)?;
        fs::write(folder.join("server.md"), self.table())?;
        for (file, prefix, title) in [
            ("rate.svg", "", "How many times as fast as each peer"),
            (
                "cpu.svg",
                "cpu-",
                "How many times less processor time than each peer",
            ),
            (
                "p99.svg",
                "p99-",
                "How many times lower the 99th percentile of latency is",
            ),
        ] {
            fs::write(folder.join(file), self.plot(prefix, title))?;
        }
        Ok(())
    }

    /// Says what has become worse than what was recorded by more than both runs' spread.
    pub fn check(&self, folder: &Path) -> Result<()> {
        let record = fs::read_to_string(folder.join(RECORD))?;
        let mut before = BTreeMap::new();
        for line in record.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let after = |name: &str| {
                let place = words.iter().position(|word| *word == name)?;
                words.get(place + 1)?.parse::<f64>().ok()
            };
            let peer = words
                .iter()
                .rposition(|word| *word == "ratio")
                .and_then(|at| {
                    // Units may be of two words: the peer is the one that is none.
                    words[..at].iter().rev().find(|word| PEERS.contains(*word))
                });
            if let (Some(name), Some(peer), Some(low)) = (words.get(1), peer, after("quartiles")) {
                if let Some(ratio) = after("ratio") {
                    before.insert(
                        (name.replace("server/", ""), (*peer).to_owned()),
                        (ratio, low),
                    );
                }
            }
        }
        let mut worse = 0;
        for line in &self.lines {
            let Some((ratio, low)) = before.get(&(line.name.clone(), line.peer.clone())) else {
                continue;
            };
            if line.quartiles.1 < *low {
                worse += 1;
                println!(
                    "worse: {} beside {}: {:.2} times, was {ratio:.2}",
                    line.name, line.peer, line.ratio
                );
            }
        }
        println!(
            "{worse} of {} lines are worse than the record by more than the spread",
            self.lines.len()
        );
        Ok(())
    }

    /// Names of the lines whose names begin with `prefix`, without it, in order, and for each the
    /// ratio beside each peer.
    fn rows(&self, prefix: &str) -> Vec<(&str, BTreeMap<&str, &Line>)> {
        let mut rows: Vec<(&str, BTreeMap<&str, &Line>)> = Vec::new();
        for line in &self.lines {
            let kind = KINDS
                .iter()
                .find(|kind| line.name.starts_with(**kind))
                .unwrap_or(&"");
            if *kind != prefix || !PEERS.contains(&line.peer.as_str()) {
                continue;
            }
            let name = &line.name[prefix.len()..];
            match rows.iter_mut().find(|row| row.0 == name) {
                Some(row) => drop(row.1.insert(&line.peer, line)),
                None => rows.push((name, BTreeMap::from([(line.peer.as_str(), line)]))),
            }
        }
        rows
    }

    fn table(&self) -> String {
        let mut text = String::from("# The daemon beside its peers\n\n");
        let _ = writeln!(text, "{}\n", machine());
        let _ = writeln!(
            text,
            "Made by `make bench-record`. What the columns mean stands in `benches/server/main.rs`; in \
             brackets how many times better ours is.\n"
        );
        for kind in KINDS {
            let title = match kind {
                "" => "Rate",
                "cpu-" => "Processor time of one operation",
                "p50-" => "Latency, median",
                _ => "Latency, 99th percentile",
            };
            let _ = writeln!(
                text,
                "## {title}\n\n| | ours | {} |\n|---|---|---|---|---|",
                PEERS.join(" | ")
            );
            for (name, peers) in self.rows(kind) {
                let Some(first) = peers.values().next() else {
                    continue;
                };
                let (Unit::Gain(unit) | Unit::Cost(unit)) = first.unit;
                let _ = write!(text, "| {name} | {} {unit} |", figure(first.ours));
                for peer in PEERS {
                    let _ = match peers.get(peer) {
                        Some(line) => {
                            write!(text, " {} (**{:.2}**) |", figure(line.theirs), line.ratio)
                        }
                        None => write!(text, " |"),
                    };
                }
                text.push('\n');
            }
            text.push('\n');
        }
        text
    }

    /// A bar for each line and peer, on a logarithmic scale, from the line at which both are equal.
    fn plot(&self, prefix: &str, title: &str) -> String {
        const ROW: f64 = 14.0;
        const LEFT: f64 = 190.0;
        const TOP: f64 = 60.0;
        const DECADE: f64 = 220.0;
        const COLOURS: [&str; 3] = ["#3b6fb6", "#7aa6d8", "#b0b0b0"];
        let rows = self.rows(prefix);
        let group = ROW * (PEERS.len() as f64) + 6.0;
        let height = TOP + group * rows.len() as f64 + 20.0;
        let middle = LEFT + DECADE * 1.5;
        let width = middle + DECADE * 1.6;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" \
             fill=\"white\"/>\n<text x=\"10\" y=\"20\" font-size=\"15\">{title}</text>\n"
        );
        for (place, peer) in PEERS.iter().enumerate() {
            let x = LEFT + 130.0 * place as f64;
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"30\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"{}\" y=\"39\">{peer}</text>",
                COLOURS[place],
                x + 15.0
            );
        }
        for ratio in [0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0, 30.0] {
            let x = middle + DECADE * f64::log10(ratio);
            let colour = if ratio == 1.0 { "black" } else { "#dddddd" };
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{height}\" stroke=\"{colour}\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{ratio}</text>",
                TOP - 4.0
            );
        }
        for (number, (name, peers)) in rows.iter().enumerate() {
            let y = TOP + group * number as f64 + 4.0;
            let _ = writeln!(svg, "<text x=\"10\" y=\"{:.1}\">{name}</text>", y + ROW);
            for (place, peer) in PEERS.iter().enumerate() {
                let Some(line) = peers.get(peer) else {
                    continue;
                };
                let length = DECADE * f64::log10(line.ratio.clamp(0.04, 40.0));
                let (x, y) = (middle + length.min(0.0), y + ROW * place as f64);
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\" font-size=\"9\">{:.2}</text>",
                    length.abs().max(1.0),
                    ROW - 3.0,
                    COLOURS[place],
                    middle + length.max(0.0) + 3.0,
                    y + ROW - 5.0,
                    line.ratio
                );
            }
        }
        svg + "</svg>\n"
    }
}

const KINDS: [&str; 4] = ["cpu-", "p50-", "p99-", ""];
const PEERS: [&str; 3] = ["virtiofsd", "virtiofsd-pool", "direct"];

/// Three digits are as many as mean something.
fn figure(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The machine that was measured.
fn machine() -> String {
    let first = |path: &str, begin: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(begin));
        line.map_or(String::new(), |line| {
            line.trim_start_matches([' ', '\t', ':']).trim().to_owned()
        })
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{processors} processors ({}), {} of memory, Linux {}, shared with others.",
        first("/proc/cpuinfo", "model name"),
        first("/proc/meminfo", "MemTotal:"),
        first("/proc/sys/kernel/osrelease", "")
            .split('-')
            .next()
            .unwrap_or_default()
    )
}
