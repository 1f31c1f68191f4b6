//! The command line: its options, and how a mistake is reported.

use std::ffi::OsString;
use std::fmt::Display;
use std::ops::{Bound, RangeBounds};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgGroup, CommandFactory, FromArgMatches, Parser, Subcommand};
use log::LevelFilter;

use crate::daemon::upgrade::Told;
use crate::doctor::Questions;
use crate::export::idmap::{IdMap, Translation};
use crate::export::{FileHandles, HostModes, Ids, Multidevs, Permissions, SecurityModel};
use crate::sandbox::Sandbox;
use crate::sandbox::capabilities::Modcaps;
use crate::sandbox::seccomp::Seccomp;
use crate::sandbox::supervisor::Restart;
use crate::server::limits::Limits;
use crate::server::migration::{self, Mode, OnError};
use crate::server::throttle::{Rate, Rates};
use crate::tag::Tag;

/// The number of systemd's first socket (sd_listen_fds(3)).
const LISTEN_FDS_START: RawFd = 3;

/// Give a virtual machine a directory of this host over virtio-9p.
///
/// A daemon outside of the virtual machine monitor: QEMU, Cloud Hypervisor, crosvm and User-mode
/// Linux connect to its socket as vhost-user front-ends, and the guest mounts the share with its
/// kernel's 9p driver.
#[derive(Clone, Debug, Parser)]
#[command(name = "vhost-user-9p", version, max_term_width = 100)]
#[command(group = ArgGroup::new("where").args(["socket", "fd"]))]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(disable_help_subcommand = true)]
#[command(
    after_help = "The guest mounts with: mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 TAG DIR"
)]
pub struct Options {
    /// Listen on this UNIX socket, to which only the daemon's user may connect. A socket file that
    /// a dead process left behind is replaced
    #[arg(long, value_name = "PATH", visible_alias = "socket-path")]
    pub socket: Option<PathBuf>,

    /// Let the members of this group, a name or a number, connect to the socket as well
    #[arg(long, value_name = "GROUP", conflicts_with = "fd")]
    pub socket_group: Option<String>,

    /// Use this inherited socket instead: one that listens, or one that is already connected to a
    /// front-end. A socket passed by systemd needs no option
    #[arg(long, value_name = "N", value_parser = number(0..=RawFd::MAX))]
    pub fd: Option<RawFd>,

    /// The directory to share
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "print_capabilities"
    )]
    pub shared_dir: Option<PathBuf>,

    /// The name by which the guest mounts the share, 1 to 254 bytes
    #[arg(long, default_value = "host")]
    pub tag: Tag,

    /// Refuse every change with EROFS
    #[arg(long)]
    pub readonly: bool,

    /// Where owner, mode and kind of the guest's files are stored on the host, as with QEMU's
    /// option of this name: either can serve the share
    #[arg(long, value_name = "MODEL", value_enum, default_value_t)]
    pub security_model: SecurityModel,

    /// The mode, in octal, of files that a mapped model creates on the host [default: 600]
    #[arg(long, value_name = "MODE", value_parser = host_mode)]
    pub fmode: Option<u32>,

    /// The mode, in octal, of directories that a mapped model creates on the host [default: 700]
    #[arg(long, value_name = "MODE", value_parser = host_mode)]
    pub dmode: Option<u32>,

    /// Exit when the first front-end has disconnected, instead of waiting for the next one
    #[arg(long)]
    pub once: bool,

    /// How many threads may wait for the host's file systems at the same time. A quarter of them
    /// never waits for a network file system or FUSE, so that a hung one cannot starve the local
    /// disks
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = number(1..=1024u16))]
    pub threads: u16,

    /// How many microseconds the daemon polls for the next request before it sleeps, if polling has
    /// paid off lately; 0 never polls
    #[arg(long, value_name = "N", default_value_t = 50,
          value_parser = number(0..=1000u16))]
    pub poll_us: u16,

    /// How many descriptors the daemon may have open. An eighth (40 to 256) is reserved for the
    /// daemon; a guest whose files need more than the rest gets ENFILE [default: as many as the
    /// host allows]
    #[arg(long, value_name = "N", value_parser = number(64u64..))]
    pub rlimit_nofile: Option<u64>,

    /// What to do if there is more than one file system below the directory, so that inode numbers
    /// may repeat: give every file a number of its own, forbid to leave the directory's own file
    /// system, or only warn
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Multidevs::Remap)]
    pub multidevs: Multidevs,

    /// What the daemon can reach on the host if a guest compromises it [default: the least that
    /// this user can have]
    #[arg(long, value_enum, value_name = "HOW")]
    pub sandbox: Option<Sandbox>,

    /// When another process takes over from the one that serves. With `never`, a crash ends the daemon
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Restart::Crash)]
    pub restart: Restart,

    /// How another daemon finds the guest's files when its machine is migrated, or restored from a snapshot
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    pub migration_mode: Mode,

    /// What this daemon does about files that it does not find then
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    pub migration_on_error: OnError,

    /// What happens when the daemon makes a system call that it does not need
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Seccomp::Kill)]
    pub seccomp: Seccomp,

    /// Capabilities that root's daemon keeps in addition to those it needs, and those that it
    /// drops, as in +sys_admin:-mknod. With +sys_admin the guest has trusted.* and security.*
    /// attributes
    #[arg(long, value_name = "+NAME:-NAME...", allow_hyphen_values = true)]
    pub modcaps: Option<Modcaps>,

    /// Who decides what a user of the guest may do, if root runs the daemon: the guest's kernel
    /// alone, or also the host, by the rights of its own user with that id
    #[arg(long, value_enum, value_name = "WHO", default_value_t = Permissions::Guest)]
    pub permissions: Permissions,

    /// Translate user ids between the guest and the host. May be given several times:
    /// map:GUEST:HOST:COUNT in both directions, guest:GUEST:HOST:COUNT and host:HOST:GUEST:COUNT in
    /// one; squash-guest:FIRST:HOST:COUNT and squash-host:FIRST:GUEST:COUNT to one id;
    /// forbid-guest:FIRST:COUNT. Other ids are the same on both sides
    #[arg(long, value_name = "RULE")]
    pub translate_uid: Vec<Translation>,

    /// Translate group ids, with the same rules
    #[arg(long, value_name = "RULE")]
    pub translate_gid: Vec<Translation>,

    /// Whether the kernel's file handle is used to find a file again after its descriptor was
    /// closed, because a guest looks at more files than --rlimit-nofile allows. If a guest
    /// compromises a daemon that may use handles, it can open every file of the share's file
    /// systems, also outside of the share
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub inode_file_handles: FileHandles,

    /// How many fids the guest may have: files and directories that its kernel remembers or has
    /// open. One more gets ENFILE
    #[arg(long, value_name = "N", default_value_t = 1 << 20,
          value_parser = number(16u32..))]
    pub limit_fids: u32,

    /// How many bytes of extended attributes the guest may read and write at the same time. More
    /// get ENOMEM
    #[arg(long, value_name = "N", default_value_t = 16 << 20,
          value_parser = number(65536u32..))]
    pub limit_xattr_bytes: u32,

    /// How many locked ranges of files, and processes that lock, the guest may have; of one file at
    /// most 4096 ranges. One more gets ENOLCK
    #[arg(long, value_name = "N", default_value_t = 1 << 16,
          value_parser = number(16u32..))]
    pub limit_locks: u32,

    /// Serve at most this many requests per second, BURST of them at once (default: a tenth of
    /// RATE)
    #[arg(long, value_name = "RATE[,BURST]")]
    pub throttle_iops: Option<Rate>,

    /// Read and write at most this many bytes per second, BURST of them at once. What a new
    /// session, a stop or a reset of the device lets through early, at most the content of the
    /// ring, is owed: no request is taken until it is paid for
    #[arg(long, value_name = "RATE[,BURST]")]
    pub throttle_bps: Option<Rate>,

    /// Serve at most this many reads per second. This and the next three may be combined with each
    /// other and with the limits above: a request waits for all of them
    #[arg(long, value_name = "RATE[,BURST]")]
    pub throttle_iops_read: Option<Rate>,

    /// Serve at most this many writes per second
    #[arg(long, value_name = "RATE[,BURST]")]
    pub throttle_iops_write: Option<Rate>,

    /// Read at most this many bytes per second
    #[arg(long, value_name = "RATE[,BURST]")]
    pub throttle_bps_read: Option<Rate>,

    /// Write at most this many bytes per second
    #[arg(long, value_name = "RATE[,BURST]")]
    pub throttle_bps_write: Option<Rate>,

    /// The least severe messages to write to standard error: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = log_level)]
    pub log_level: LevelFilter,

    /// Print the program's capabilities, as JSON for management software, and exit
    #[arg(long)]
    pub print_capabilities: bool,

    #[command(subcommand)]
    other: Option<Other>,
}

/// What the program does instead of serving.
#[derive(Clone, Debug, Subcommand)]
enum Other {
    /// Look for what keeps a guest from the share, and say how to mend it. Exits with 1 if something
    /// does
    Doctor(Questions),
}

impl Options {
    /// How the guest's ids correspond to the host's. Errors: [`Usage`] for rules that contradict
    /// each other, which [`command_line`] has ruled out.
    pub fn ids(&self) -> Result<Ids, Usage> {
        let map = |name, rules: &[_]| {
            IdMap::new(rules).map_err(|error| Usage(format!("{name}: {error}; try --help")))
        };
        Ok(Ids {
            uids: map("--translate-uid", &self.translate_uid)?,
            gids: map("--translate-gid", &self.translate_gid)?,
        })
    }

    /// How long the daemon polls for the next request before it sleeps.
    pub fn poll_time(&self) -> Duration {
        Duration::from_micros(self.poll_us.into())
    }

    /// What is to be done in a migration.
    pub fn migration(&self) -> migration::Policy {
        migration::Policy {
            mode: self.migration_mode,
            on_error: self.migration_on_error,
        }
    }

    /// How much the guest may have, and how fast it may be.
    pub fn limits(&self) -> (Limits, Rates) {
        let limits = Limits {
            fids: self.limit_fids as usize,
            xattr_bytes: self.limit_xattr_bytes as usize,
            locks: self.limit_locks as usize,
        };
        let rates = Rates {
            requests: self.throttle_iops,
            bytes: self.throttle_bps,
            reads: self.throttle_iops_read,
            writes: self.throttle_iops_write,
            bytes_read: self.throttle_bps_read,
            bytes_written: self.throttle_bps_write,
        };
        (limits, rates)
    }

    /// The modes of what a mapped model creates on the host.
    pub fn host_modes(&self) -> HostModes {
        let default = HostModes::default();
        HostModes {
            file: self.fmode.unwrap_or(default.file),
            directory: self.dmode.unwrap_or(default.directory),
        }
    }

    /// Whether file handles are used: mapped-file finds its files by name, whatever is preferred.
    pub fn file_handles(&self) -> FileHandles {
        match self.security_model {
            SecurityModel::MappedFile => FileHandles::Never,
            _ => self.inode_file_handles,
        }
    }

    /// Errors: [`Usage`] for file handles where they cannot be used.
    fn check_handles(&self) -> Result<(), Usage> {
        if self.inode_file_handles == FileHandles::Mandatory
            && self.sandbox == Some(Sandbox::Landlock)
        {
            return Err(Usage(
                "--inode-file-handles mandatory is not for --sandbox landlock, which allows none: \
                 give another --sandbox; try --help"
                    .into(),
            ));
        }
        let forbidden = self.modcaps.as_ref().is_some_and(Modcaps::forbids_handles);
        if forbidden && self.file_handles() != FileHandles::Never {
            return Err(Usage(
                "--modcaps -dac_read_search is not for --inode-file-handles prefer and mandatory, \
                 which need it; try --help"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Errors: [`Usage`] for options that the security model has no use for.
    fn check_model(&self) -> Result<(), Usage> {
        let mapped = self.security_model.is_mapped();
        for (option, mode) in [("--fmode", self.fmode), ("--dmode", self.dmode)] {
            if mode.is_some() && !mapped {
                return Err(Usage(format!(
                    "{option} is for the mapped models: give --security-model mapped-xattr or \
                     mapped-file; try --help"
                )));
            }
        }
        if self.inode_file_handles == FileHandles::Mandatory
            && self.file_handles() == FileHandles::Never
        {
            return Err(Usage(
                "--inode-file-handles mandatory is not for mapped-file, which finds files by name: \
                 give another --security-model; try --help"
                    .into(),
            ));
        }
        if self.permissions == Permissions::Host && mapped {
            return Err(Usage(
                "--permissions host is not for the mapped models, in which the host knows no \
                 users: give --security-model passthrough or none; try --help"
                    .into(),
            ));
        }
        Ok(())
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Write this text to standard output.
    Print(String),
    /// Serve until told to stop.
    Serve(Box<Options>),
    /// Look for what is wrong.
    Examine(Box<Questions>),
}

/// A mistake on the command line: one line says what is wrong and how to mend it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(String);

/// Reads the command line, the program's name first. Errors: [`Usage`].
pub fn command_line(words: impl IntoIterator<Item = OsString>) -> Result<Command, Usage> {
    let matches = match Options::command().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(error) if error.use_stderr() => return Err(Usage(one_line(&error))),
        Err(help_or_version) => return Ok(Command::Print(help_or_version.to_string())),
    };
    let mut options =
        Options::from_arg_matches(&matches).map_err(|error| Usage(one_line(&error)))?;
    if let Some(Other::Doctor(questions)) = options.other {
        return Ok(Command::Examine(Box::new(questions)));
    }
    if options.print_capabilities {
        // As QEMU's vhost-user documentation demands of back-ends; no feature is defined for this
        // type.
        return Ok(Command::Print(
            "{\n  \"type\": \"9p\",\n  \"features\": []\n}\n".into(),
        ));
    }
    options.ids()?;
    options.check_model()?;
    options.check_handles()?;
    if options.migration_mode == Mode::FileHandles && options.file_handles() == FileHandles::Never {
        return Err(Usage(
            "--migration-mode file-handles takes --inode-file-handles prefer or mandatory".into(),
        ));
    }
    if options.socket_group.is_some() && options.socket.is_none() {
        return Err(Usage(
            "--socket-group is for the socket that the daemon makes: give --socket PATH; try --help"
                .into(),
        ));
    }
    if options.socket.is_none() && options.fd.is_none() {
        options.fd =
            Some(systemd_socket().ok_or_else(|| {
                Usage("no socket: give --socket PATH or --fd N; try --help".into())
            })?);
    }
    Ok(Command::Serve(Box::new(options)))
}

/// The socket that systemd has passed to this process, if any (sd_listen_fds(3)).
pub fn systemd_socket() -> Option<RawFd> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let ours = number("LISTEN_PID")? == std::process::id() || Told::is_check();
    (ours && number("LISTEN_FDS")? >= 1).then_some(LISTEN_FDS_START)
}

/// Reads a number in a range, which includes its ends.
fn number<T: FromStr + PartialOrd + Display>(
    range: impl RangeBounds<T> + Clone,
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(match (range.start_bound(), range.end_bound()) {
            (Bound::Included(least), Bound::Included(most)) => {
                format!("a number from {least} to {most} is expected")
            }
            (Bound::Included(least), _) => format!("a number from {least} on is expected"),
            _ => "a number is expected".into(),
        }),
    }
}

fn log_level(text: &str) -> Result<LevelFilter, String> {
    text.parse()
        .map_err(|_| "one of off, error, warn, info, debug, trace is expected".into())
}

fn host_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("permissions in octal are expected, 0 to 777".into()),
    }
}

/// Clap explains a mistake in a paragraph; one line is enough.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    let mut line = first.strip_prefix("error: ").unwrap_or(first).to_owned();
    if error.kind() == ErrorKind::MissingRequiredArgument {
        let missing = error.get(ContextKind::InvalidArg);
        line = format!(
            "missing {}",
            missing.map(ToString::to_string).unwrap_or_default()
        );
    }
    if let Some(ContextValue::Strings(values)) = error.get(ContextKind::ValidValue) {
        if !values.is_empty() {
            line.push_str(&format!(": {} are possible", values.join(", ")));
        }
    }
    if let Some(similar) = error.get(ContextKind::SuggestedArg) {
        line.push_str(&format!("; did you mean '{similar}'?"));
    }
    line + "; try --help"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Command, Usage> {
        command_line(words.split_whitespace().map(OsString::from))
    }

    fn usage(words: &str) -> String {
        match parse(words) {
            Err(Usage(line)) => line,
            other => panic!("not a mistake: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn both_names_of_the_socket_work() {
        for name in ["--socket", "--socket-path"] {
            let command = parse(&format!("x {name} /s --shared-dir /d")).unwrap();
            let Command::Serve(options) = command else {
                panic!("{command:?}")
            };
            assert_eq!(options.socket.as_deref(), Some("/s".as_ref()));
            assert_eq!(options.tag.to_string(), "host");
            assert_eq!(options.file_handles(), FileHandles::Never);
            assert_eq!(options.log_level, LevelFilter::Info);
        }
    }

    #[test]
    fn every_option_is_taken() {
        let words = "x --fd 7 --shared-dir /d --tag t --readonly --once --threads 2 --poll-us 7 \
                     --rlimit-nofile 99 --inode-file-handles mandatory --multidevs forbid \
                     --log-level debug --security-model mapped-xattr --fmode 0640 --dmode 750 \
                     --modcaps -mknod:+sys_admin";
        let Command::Serve(options) = parse(words).unwrap() else {
            panic!("{words}")
        };
        assert_eq!(options.fd, Some(7));
        assert_eq!(options.tag.to_string(), "t");
        assert!(options.readonly && options.once);
        assert_eq!((options.threads, options.rlimit_nofile), (2, Some(99)));
        assert_eq!(options.poll_time(), Duration::from_micros(7));
        assert_eq!(options.multidevs, Multidevs::Forbid);
        assert_eq!(options.inode_file_handles, FileHandles::Mandatory);
        assert_eq!(options.log_level, LevelFilter::Debug);
        assert_eq!(options.modcaps, "-mknod:+sys_admin".parse().ok());
        assert_eq!(options.security_model, SecurityModel::MappedXattr);
        let modes = options.host_modes();
        assert_eq!((modes.file, modes.directory), (0o640, 0o750));
        for words in ["x --help", "x --version", "x --print-capabilities"] {
            assert!(matches!(parse(words), Ok(Command::Print(_))), "{words}");
        }
    }

    #[test]
    fn a_mistake_names_what_is_possible() {
        for (option, says) in [
            ("--sandbox tight", "namespace, chroot, landlock, none"),
            ("--multidevs any", "remap, forbid, warn"),
            ("--rlimit-nofile 0", "a number from 64 on"),
            ("--limit-fids x", "a number from 16 on"),
            ("--threads 0", "a number from 1 to 1024"),
            ("--poll-us 5000", "a number from 0 to 1000"),
        ] {
            let line = usage(&format!("x --socket /s --shared-dir /d {option}"));
            assert!(line.contains(says), "{line}");
        }
    }

    #[test]
    fn qemu_s_names_of_the_models_are_taken() {
        for (name, model) in [
            ("passthrough", SecurityModel::Passthrough),
            ("none", SecurityModel::None),
            ("mapped", SecurityModel::MappedXattr),
            ("mapped-xattr", SecurityModel::MappedXattr),
            ("mapped-file", SecurityModel::MappedFile),
        ] {
            let words = format!("x --fd 7 --shared-dir /d --security-model {name}");
            let Command::Serve(options) = parse(&words).unwrap() else {
                panic!("{words}")
            };
            assert_eq!(options.security_model, model);
            assert_eq!(options.host_modes(), HostModes::default());
        }
    }

    #[test]
    fn a_mistake_is_one_line_that_says_how_to_mend_it() {
        for words in [
            "x",
            "x --socket /s",
            "x --shared-dir /d",
            "x --socket /s --fd 3 --shared-dir /d",
            "x --fd 3 --socket-group g --shared-dir /d",
            "x --socket-group g --shared-dir /d",
            "x --socket /s --shared-dir /d --tag=",
            "x --socket /s --shared-dir /d --threads 0",
            "x --socket /s --shared-dir /d --poll-us 1001",
            "x --socket /s --shared-dir /d --limit-fids 1",
            "x --socket /s --shared-dir /d --throttle-iops 0",
            "x --socket /s --shared-dir /d --throttle-bps 1000,none",
            "x --socket /s --shared-dir /d --read-only",
            "x --socket /s --shared-dir /d --log-level loud",
            "x --socket /s --shared-dir /d --security-model mapped-inode",
            "x --socket /s --shared-dir /d --security-model mapped-file --fmode 800",
            "x --socket /s --shared-dir /d --security-model mapped-file --dmode 1777",
            "x --socket /s --shared-dir /d --fmode 600",
            "x --socket /s --shared-dir /d --security-model none --dmode 700",
            "x --socket /s --shared-dir /d --security-model mapped-xattr --permissions host",
            "x --socket /s --shared-dir /d --security-model mapped-file --inode-file-handles mandatory",
            "x --socket /s --shared-dir /d --modcaps sys_admin",
            "x --socket /s --shared-dir /d --modcaps -everything",
            "x --socket /s --shared-dir /d --inode-file-handles prefer --modcaps -dac_read_search",
            "x --socket /s --shared-dir /d --inode-file-handles mandatory --sandbox landlock",
            "x --socket",
            "x --socket /s --shared-dir /d --translate-uid map:1:2",
            "x --socket /s --shared-dir /d --translate-gid map:1:2:3 --translate-gid map:3:9:1",
        ] {
            let line = usage(words);
            assert!(
                !line.contains('\n') && line.ends_with("try --help"),
                "{words}: {line}"
            );
        }
        let long = "t".repeat(255);
        assert!(usage(&format!("x --socket /s --shared-dir /d --tag {long}")).contains("255"));
        assert!(usage("x --socket /s").contains("--shared-dir"));
        assert!(usage("x --shared-dir /d").contains("--socket PATH or --fd N"));
    }
}
