//! `vhost-user-9p doctor`: looks for what keeps a guest from its share, and says how to mend it.
//!
//! Each part looks at one thing and returns what it has found: `qemu` at the program, `monitor`
//! at its command line, `socket` at the daemon's socket, `share` at the directory, and `host` at
//! the kernel. Nothing is changed, and a daemon that runs is not disturbed.

mod host;
mod monitor;
mod qemu;
mod share;
mod socket;

use std::ffi::OsString;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use clap::Args;

use crate::tag::Tag;
use monitor::CommandLine;

/// What to look at; what is not given is left out, or guessed from the rest.
#[derive(Clone, Debug, Args)]
pub struct Questions {
    /// The daemon's socket
    #[arg(long, value_name = "PATH", visible_alias = "socket-path")]
    pub socket: Option<PathBuf>,

    /// The directory to share
    #[arg(long, value_name = "DIR")]
    pub shared_dir: Option<PathBuf>,

    /// The name by which the guest mounts the share
    #[arg(long, default_value = "host")]
    pub tag: Tag,

    /// The QEMU to look at [default: that of the command line, or the one in the PATH]
    #[arg(long, value_name = "PROGRAM")]
    pub qemu: Option<PathBuf>,

    /// The user that QEMU runs as, as libvirt-qemu: may it connect to the socket?
    #[arg(long, value_name = "USER")]
    pub qemu_user: Option<String>,

    /// The process of a QEMU that runs: its command line is looked at
    #[arg(long, value_name = "PID", conflicts_with = "command_line")]
    pub pid: Option<u32>,

    /// QEMU's command line, behind --
    #[arg(last = true, value_name = "QEMU COMMAND LINE")]
    pub command_line: Vec<OsString>,
}

/// How good it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Worth knowing.
    Note,
    /// The guest will not get its share.
    Bad,
}

/// What was found, and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How good it is.
    pub verdict: Verdict,
    what: String,
    mend: Option<String>,
}

impl Finding {
    fn good(what: impl Into<String>) -> Finding {
        Finding {
            verdict: Verdict::Good,
            what: what.into(),
            mend: None,
        }
    }

    fn note(what: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding {
            verdict: Verdict::Note,
            what: what.into(),
            mend: Some(mend.into()),
        }
    }

    fn bad(what: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding {
            verdict: Verdict::Bad,
            what: what.into(),
            mend: Some(mend.into()),
        }
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Good => "good",
            Verdict::Note => "note",
            Verdict::Bad => "BAD ",
        };
        write!(f, "{verdict}  {}", self.what)?;
        match &self.mend {
            Some(mend) => write!(f, "\n      {mend}"),
            None => Ok(()),
        }
    }
}

/// Looks at everything. There must be no other thread: sandboxes are tried in child processes.
pub fn examine(questions: &Questions) -> Vec<Finding> {
    let mut findings = Vec::new();
    let words = match questions.pid {
        None => questions.command_line.clone(),
        Some(pid) => match words_of(pid) {
            Ok(words) => words,
            Err(error) => {
                findings.push(Finding::bad(
                    format!("the command line of process {pid} cannot be read: {error}"),
                    "give the number of a QEMU that runs",
                ));
                Vec::new()
            }
        },
    };
    let line = CommandLine::new(&words);
    let socket = questions.socket.clone();
    let socket = socket.or_else(|| line.socket().map(PathBuf::from));

    let program = questions.qemu.clone();
    findings.extend(qemu::examine(
        program.or_else(|| words.first().map(PathBuf::from)),
    ));
    findings.extend(line.examine(&questions.tag, questions.socket.as_deref()));
    if let Some(socket) = &socket {
        findings.extend(socket::examine(socket, questions.qemu_user.as_deref()));
    }
    if let Some(directory) = &questions.shared_dir {
        findings.extend(share::examine(directory));
    }
    findings.extend(host::examine(questions.shared_dir.as_deref()));
    findings.push(Finding::good(format!(
        "the guest mounts the share with: {}",
        questions.tag.mount_line()
    )));
    findings
}

/// The words of a process's command line (proc_pid_cmdline(5)).
fn words_of(pid: u32) -> std::io::Result<Vec<OsString>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline"))?;
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    let words = bytes.split(|byte| *byte == 0);
    Ok(words.map(|word| OsString::from_vec(word.into())).collect())
}
