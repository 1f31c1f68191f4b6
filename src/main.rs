//! The command `vhost-user-9p`.

use std::process::ExitCode;

use vhost_user_9p::cli::{Command, Options, command_line};
use vhost_user_9p::{daemon, logger};

/// A mistake on the command line.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match command_line(std::env::args_os()) {
        Ok(Command::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Command::Serve(options)) => serve(&options),
        Err(mistake) => {
            eprintln!("vhost-user-9p: {mistake}");
            ExitCode::from(USAGE)
        }
    }
}

fn serve(options: &Options) -> ExitCode {
    logger::start(options.log_level);
    match daemon::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        // It has said what went wrong.
        Err(daemon::Error::Daemon(status)) => ExitCode::from(status),
        Err(error) => {
            eprintln!("vhost-user-9p: {error}");
            ExitCode::FAILURE
        }
    }
}
