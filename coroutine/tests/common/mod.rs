//! What tests share that need a process of their own.

use std::process::Command;

/// Runs a test of the calling program in a process of its own, where [`is_alone`] says true. On a
/// machine of another kind by the program that `TEST_RUNNER` names, with its arguments.
pub fn alone(test: &str) -> Command {
    let program = std::env::current_exe().unwrap();
    let runner = std::env::var("TEST_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    let mut command = match words.next() {
        Some(runner) => {
            let mut command = Command::new(runner);
            command.args(words).arg(program);
            command
        }
        None => Command::new(program),
    };
    command
        .args([test, "--exact", "--nocapture"])
        .env("ALONE", "1");
    command
}

/// Whether this is such a process.
pub fn is_alone() -> bool {
    std::env::var_os("ALONE").is_some()
}

/// Whether an emulator makes the system calls, which has memory of its own.
pub fn is_emulated() -> bool {
    std::env::var_os("TEST_RUNNER").is_some()
}
