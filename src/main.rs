//! The command `vhost-user-9p`.

use std::process::ExitCode;

use vhost_user_9p::cli::{Command, Failure, command_line};
use vhost_user_9p::{daemon, logger};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_told() {
                eprintln!("vhost-user-9p: {failure}");
            }
            failure.exit_code()
        }
    }
}

fn run() -> Result<(), Failure> {
    match command_line(std::env::args_os())? {
        Command::Print(text) => {
            print!("{text}");
            Ok(())
        }
        Command::Serve(options) => {
            logger::start(options.log_level);
            daemon::run(&options).map_err(Failure::Run)
        }
    }
}
