//! The host's kernel: does it have what the daemon uses?

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::wait::waitpid;
use nix::unistd::geteuid;

use super::Finding;
use crate::export::{FileHandles, open_share};
use crate::sandbox::{self, Entry, Role, Sandbox};

/// How many descriptors are few.
const FEW: u64 = 4096;

/// Looks at system calls, sandboxes and limits. Sandboxes are tried with this directory.
pub fn examine(share: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![lookup()];
    let temporary = std::env::temp_dir();
    if let Ok(share) = open_share(share.unwrap_or(&temporary)) {
        findings.push(sandbox(&share));
    }
    findings.push(descriptors());
    findings
}

fn lookup() -> Finding {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    match openat2(AT_FDCWD, ".", how) {
        Ok(_) => Finding::good("names are looked up with openat2"),
        Err(Errno::ENOSYS) => Finding::bad(
            "the kernel has no openat2, without which no name can be looked up safely",
            "run Linux 5.6 or newer; in a container, let its filter of system calls allow openat2",
        ),
        Err(error) => Finding::bad(
            format!("openat2 is refused: {error}"),
            "in a container, let its filter of system calls allow openat2",
        ),
    }
}

/// The strongest sandbox, found by entering each in a child.
fn sandbox(share: &OwnedFd) -> Finding {
    let mut modes = vec![("namespace", Sandbox::Namespace)];
    if geteuid().is_root() {
        modes.push(("chroot", Sandbox::Chroot));
    }
    modes.push(("landlock", Sandbox::Landlock));
    let mut refused = Vec::new();
    for (name, mode) in modes {
        match enter(mode, share) {
            Ok(()) if refused.is_empty() => {
                return Finding::good(format!("the daemon's sandbox is {name}"));
            }
            Ok(()) => {
                return Finding::note(
                    format!(
                        "the daemon's sandbox is {name}: the host refused {}",
                        refused.join(", ")
                    ),
                    "namespaces are stronger: allow them (sysctl user.max_user_namespaces, \
                     kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns; in \
                     a container its filter of system calls)",
                );
            }
            Err(error) => refused.push(format!("{name} ({error})")),
        }
    }
    Finding::note(
        format!(
            "there is no sandbox: the host refused {}",
            refused.join(", ")
        ),
        "run the daemon where namespaces or Landlock are allowed, or in a systemd unit that confines it",
    )
}

/// Whether the sandbox can be entered. Errors: why not.
fn enter(mode: Sandbox, share: &OwnedFd) -> Result<(), String> {
    let share = share.try_clone().map_err(|error| error.to_string())?;
    let entry = Entry {
        sandbox: Some(mode),
        handles: FileHandles::Never,
        supervised: false,
    };
    match sandbox::enter(entry, share) {
        Ok(Role::Parent(child)) => {
            let _ = waitpid(child, None);
            Ok(())
        }
        // This is the child, which is inside.
        Ok(_) => std::process::exit(0),
        Err(sandbox::Error::Refused { what, error, .. }) => Err(format!("{what}: {error}")),
    }
}

fn descriptors() -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, most)) if most >= FEW => {
            Finding::good(format!("the daemon may have {most} descriptors"))
        }
        Ok((_, most)) => Finding::note(
            format!("the daemon may have only {most} descriptors"),
            "files that the guest has not used lately are closed and found again by name; raise the \
             limit with ulimit -Hn, or LimitNOFILE= in a systemd unit",
        ),
        Err(error) => Finding::note(
            format!("the limit of descriptors is not known: {error}"),
            "see ulimit -Hn",
        ),
    }
}
