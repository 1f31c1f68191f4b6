//! The command `vhost-user-9p`.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use vhost_user_9p::cli::{Command, Options, command_line};
use vhost_user_9p::daemon::upgrade::Previous;
use vhost_user_9p::doctor::{self, Questions, Verdict};
use vhost_user_9p::{daemon, logger};

/// A mistake on the command line.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match command_line(std::env::args_os()) {
        Ok(Command::Print(text)) => print(&text),
        Ok(Command::Serve(options)) => serve(&options),
        Ok(Command::Examine(questions)) => examine(&questions),
        Err(mistake) => {
            logger::complain(mistake);
            // Such an option may be new or old.
            Previous::from_environment()
                .iter()
                .for_each(Previous::go_back);
            ExitCode::from(USAGE)
        }
    }
}

fn print(text: &str) -> ExitCode {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever closes a pipe early, as head(1) does, knows.
            if error.kind() != ErrorKind::BrokenPipe {
                logger::complain(format_args!("cannot write to standard output: {error}"));
            }
            ExitCode::FAILURE
        }
    }
}

fn examine(questions: &Questions) -> ExitCode {
    let findings = doctor::examine(questions);
    let text: String = findings.iter().map(|found| format!("{found}\n")).collect();
    let printed = print(&text);
    match findings.iter().any(|found| found.verdict == Verdict::Bad) {
        true => ExitCode::FAILURE,
        false => printed,
    }
}

fn serve(options: &Options) -> ExitCode {
    logger::start(options.log_level);
    match daemon::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        // It has said what went wrong.
        Err(daemon::Error::Daemon(status)) => ExitCode::from(status),
        Err(error) => {
            logger::complain(error);
            ExitCode::FAILURE
        }
    }
}
