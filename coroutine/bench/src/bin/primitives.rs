//! Runs a primitive a number of times, to count its instructions.
//!
//! `primitives NAME COUNT`

use std::process::ExitCode;

use coroutine_bench::{ours, peers};

type Primitive = fn(usize);

const PRIMITIVES: &[(&str, Primitive)] = &[
    ("yield", ours::yields),
    ("yield-inline", ours::yields_inline),
    ("lifecycle", ours::lifecycles),
    ("lifecycle-owned", ours::lifecycles_owned),
    ("cost", ours::costs),
    ("corosensei-yield", peers::corosensei::yields),
    ("corosensei-yield-inline", peers::corosensei::yields_inline),
    ("corosensei-lifecycle", peers::corosensei::lifecycles),
    ("qemu-way-yield", peers::qemu_way::yields),
    ("qemu-way-lifecycle", peers::qemu_way::lifecycles),
    ("qemu-way-cost", peers::qemu_way::costs),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [name, count] = &arguments[..] {
        if let Some((_, primitive)) = PRIMITIVES.iter().find(|(known, _)| known == name) {
            if let Ok(count) = count.parse() {
                primitive(count);
                return ExitCode::SUCCESS;
            }
        }
    }
    for (name, _) in PRIMITIVES {
        println!("{name}");
    }
    ExitCode::from(2)
}
