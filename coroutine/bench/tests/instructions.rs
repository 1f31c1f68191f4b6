//! Counts the instructions of the primitives, and compares them with the recorded numbers.

use std::path::Path;
use std::process::{Command, Output};

/// The recorded instructions of each primitive, as counted by `instructions.sh`.
const KNOWN: &str = include_str!("../instructions.txt");

/// The permitted growth of a primitive: 5 %.
const ALLOWED: f64 = 1.05;

fn run(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "the numbers are those of x86_64"
)]
fn no_primitive_has_grown() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Optimised, even if this test is not. In its own target directory, as cargo may lock the
    // other.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("instructions");
    run(Command::new(env!("CARGO"))
        .args([
            "build",
            "--release",
            "--quiet",
            "--bin",
            "primitives",
            "--target-dir",
        ])
        .arg(&target)
        .current_dir(folder));
    let known: Vec<(&str, f64)> = KNOWN
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, count)| (name, count.parse().unwrap()))
        .collect();
    let output = run(Command::new(folder.join("instructions.sh"))
        .arg(target.join("release/primitives"))
        .args(known.iter().map(|(name, _)| name)));
    let counted = String::from_utf8(output.stdout).unwrap();
    let mut grown = Vec::new();
    for (name, before) in known {
        let line = counted
            .lines()
            .find_map(|line| line.strip_prefix(&format!("ir coroutine/{name} ")))
            .unwrap_or_else(|| panic!("{name} was not counted:\n{counted}"));
        let now: f64 = line.parse().unwrap();
        assert!(
            now > 10.0,
            "{name} cannot be {now} instructions: the counting is wrong"
        );
        if now > before * ALLOWED {
            grown.push(format!("{name}: {now} instructions, {before} before"));
        }
    }
    assert!(grown.is_empty(), "{}", grown.join("\n"));
}
