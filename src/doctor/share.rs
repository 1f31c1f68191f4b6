//! The directory: what does its file system have, and what follows for the guest?

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::Finding;
use crate::export::xattr::XattrName;
use crate::export::{Node, errno_of, open_share, sys};
use crate::server::Medium;

/// Looks at the directory that is to be shared.
pub fn examine(directory: &Path) -> Vec<Finding> {
    let name = directory.display();
    let share = match open_share(directory) {
        Ok(share) => share,
        Err(error) => {
            return vec![Finding::bad(
                format!("{name} cannot be shared: {error}"),
                "give --shared-dir a directory that this user may read",
            )];
        }
    };
    let mut findings = Vec::new();
    let mount = Mount::of(&share);
    let kind = mount.as_ref().map_or("unknown", |mount| &mount.kind);
    findings.push(match Medium::of(&share) {
        Medium::Memory | Medium::Disk => Finding::good(format!(
            "{name} is a directory of {kind}, on this host"
        )),
        Medium::Remote => Finding::note(
            format!("{name} is a directory of {kind}, which may depend on others"),
            "every call goes to a worker, which takes longer; if the file system hangs, what the guest \
             asks of it waits, and a stop of the guest, too",
        ),
    });
    let readonly = fstatvfs(&share).is_ok_and(|stat| stat.flags().contains(FsFlags::ST_RDONLY));
    if readonly {
        findings.push(Finding::note(
            format!("{name} is mounted read-only: the guest can change nothing"),
            "mount it writable, in a systemd unit with BindPaths=, or give --readonly",
        ));
    }
    if mount.is_some_and(|mount| mount.has_quota()) {
        findings.push(Finding::note(
            format!("{name} may have quotas"),
            "run as root, the daemon counts a file for its owner; otherwise, and with the mapped \
             models, all files are the daemon's user's",
        ));
    }
    findings.push(attributes(directory, &share));
    findings.push(match sys::name_to_handle(share.as_fd()) {
        Ok(_) => Finding::good("its files have handles, for --inode-file-handles"),
        Err(error) => Finding::note(
            format!("its files have no handles ({error}): --inode-file-handles has no effect"),
            "files that the host renames are not found again after their descriptors were closed; \
             raise --rlimit-nofile, so that they stay open",
        ),
    });
    findings
}

fn attributes(directory: &Path, share: &OwnedFd) -> Finding {
    let asked = || {
        let (node, _) = Node::new(share.try_clone().map_err(errno_of)?)?;
        node.xattr(&XattrName::new(b"user.vhost-user-9p.doctor")?)
    };
    match asked() {
        Ok(_) | Err(Errno::ENODATA) => {
            Finding::good("it has extended attributes, so that every security model works")
        }
        Err(error) => Finding::note(
            format!(
                "{} has no extended attributes ({error})",
                directory.display()
            ),
            "--security-model mapped-xattr cannot be used, mapped-file can; ACLs cannot be stored",
        ),
    }
}

/// A line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
struct Mount {
    kind: String,
    options: String,
}

impl Mount {
    fn of(file: &impl AsRawFd) -> Option<Mount> {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
        let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let line = table
            .lines()
            .find(|line| line.split(' ').next() == Some(id.trim()))?;
        // Behind the dash: type, source, options of the file system.
        let mut fields = line.split_once(" - ")?.1.split(' ');
        Some(Mount {
            kind: fields.next()?.into(),
            options: fields.nth(1)?.into(),
        })
    }

    fn has_quota(&self) -> bool {
        self.options.split(',').any(|option| {
            [
                "usrquota",
                "grpquota",
                "prjquota",
                "usrjquota",
                "grpjquota",
                "uquota",
                "gquota",
            ]
            .iter()
            .any(|quota| option.starts_with(quota))
        })
    }
}
