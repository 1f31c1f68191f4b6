//! QEMU's program: is it there, and does it have the device?

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Finding;

const DEVICE: &str = "vhost-user-test-device-pci";
const INSTALL: &str = "install QEMU 10.2 or newer (Debian 13 has it in its backports), or use another \
                       monitor: the README names three";

/// Looks at this program, or at the one in the PATH.
pub fn examine(program: Option<PathBuf>) -> Vec<Finding> {
    let candidates = match program {
        Some(program) => vec![program],
        None => vec![
            format!("qemu-system-{}", std::env::consts::ARCH).into(),
            // Red Hat's.
            "/usr/libexec/qemu-kvm".into(),
        ],
    };
    let found = candidates
        .iter()
        .find_map(|program| Some((program, output(program, &["--version"]).ok()?)));
    let Some((program, text)) = found else {
        let names: Vec<String> = candidates
            .iter()
            .map(|program| program.display().to_string())
            .collect();
        let what = format!("no QEMU was found: {} cannot be run", names.join(", "));
        return vec![Finding::note(what, INSTALL)];
    };
    let version = text.lines().next().unwrap_or_default();
    let version = version.strip_prefix("QEMU emulator ").unwrap_or(version);
    let name = program.display();
    let has_device = |text: String| text.contains(&format!("\"{DEVICE}\""));
    vec![
        match output(program, &["-device", "help"]).map(has_device) {
            Ok(true) => Finding::good(format!("{name}, {version}, has the device {DEVICE}")),
            Ok(false) => Finding::bad(
                format!("{name}, {version}, has no device {DEVICE}"),
                INSTALL,
            ),
            Err(error) => Finding::bad(
                format!("{name} does not list its devices: {error}"),
                INSTALL,
            ),
        },
    ]
}

/// What a program writes to standard output. Errors: it cannot be run, or fails.
fn output(program: &Path, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(io::Error::other(output.status.to_string())),
    }
}
