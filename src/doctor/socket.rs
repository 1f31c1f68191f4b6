//! The daemon's socket: is it there, and may QEMU's user connect?

use std::ffi::CString;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::Finding;

const EXECUTE: u32 = 1;
const READ_AND_WRITE: u32 = 6;

/// Looks at the socket, and whether `user` may connect.
pub fn examine(path: &Path, user: Option<&str>) -> Vec<Finding> {
    let name = path.display();
    let start = format!("start the daemon first: vhost-user-9p --socket {name} --shared-dir DIR");
    let metadata = match fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => metadata,
        Ok(_) => {
            let mend = "remove it, or choose another --socket";
            return vec![Finding::bad(format!("{name} is not a socket"), mend)];
        }
        Err(error) => return vec![Finding::bad(format!("{name}: {error}"), start)],
    };
    if !listens(path) {
        let what = format!("nobody listens on {name}: the daemon that made it is gone");
        return vec![Finding::bad(what, start)];
    }
    let listening = Finding::good(format!("a daemon listens on {name}"));
    vec![listening, access(path, &metadata, user)]
}

/// Whether a process listens there. A daemon that does is not connected to: a guest may be waiting
/// for it.
fn listens(path: &Path) -> bool {
    /// The flag of a socket that listens in /proc/net/unix.
    const LISTENS: &str = "00010000";
    let absolute = std::path::absolute(path).unwrap_or(path.into());
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let listed = table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [_, _, _, LISTENS, _, _, _, place]
            if [path, &absolute].contains(&Path::new(place)))
    });
    // Another network namespace may have it, or by another path.
    listed || UnixStream::connect(path).is_ok()
}

fn access(path: &Path, socket: &Metadata, user: Option<&str>) -> Finding {
    let owner = User::from_uid(Uid::from_raw(socket.uid()));
    let owner = owner.ok().flatten().map(|user| user.name);
    let owner = owner.unwrap_or_else(|| socket.uid().to_string());
    let group = Group::from_gid(Gid::from_raw(socket.gid()));
    let group = group.ok().flatten().map(|group| group.name);
    let group = group.unwrap_or_else(|| socket.gid().to_string());
    let mend = "give the daemon --socket-group GROUP, a group that QEMU's user is in, or let both run \
                as the same user";
    let Some(name) = user else {
        return match socket.mode() & 0o066 == 0 {
            true => Finding::note(
                format!("only root and {owner} may connect"),
                format!("if QEMU runs as another user, {mend}; --qemu-user USER looks at it"),
            ),
            false => Finding::good(format!(
                "root, {owner} and the group {group} may connect; --qemu-user USER looks at a user"
            )),
        };
    };
    let Some(who) = Who::of(name) else {
        return Finding::bad(
            format!("there is no user {name} on this host"),
            "give --qemu-user one that is, as libvirt-qemu or qemu",
        );
    };
    let absolute = std::path::absolute(path).unwrap_or(path.into());
    for directory in absolute.ancestors().skip(1) {
        if !fs::metadata(directory).is_ok_and(|metadata| who.may(&metadata, EXECUTE)) {
            return Finding::bad(
                format!("{name} may not enter {}", directory.display()),
                "put the socket where it may, as below /run, or allow it with chmod or setfacl",
            );
        }
    }
    match who.may(socket, READ_AND_WRITE) {
        true => Finding::good(format!("{name} may connect")),
        false => Finding::bad(
            format!("{name} may not connect: only root, {owner} and what the mode allows"),
            mend,
        ),
    }
}

/// A user with all groups.
struct Who {
    uid: u32,
    gids: Vec<u32>,
}

impl Who {
    fn of(name: &str) -> Option<Who> {
        let user = User::from_name(name).ok()??;
        let groups = getgrouplist(&CString::new(name).ok()?, user.gid).ok()?;
        Some(Who {
            uid: user.uid.as_raw(),
            gids: groups.into_iter().map(Gid::as_raw).collect(),
        })
    }

    /// Whether the mode gives all of these rights. Access control lists are not looked at.
    fn may(&self, file: &Metadata, rights: u32) -> bool {
        let given = match () {
            () if self.uid == 0 => return true,
            () if self.uid == file.uid() => file.mode() >> 6,
            () if self.gids.contains(&file.gid()) => file.mode() >> 3,
            () => file.mode(),
        };
        given & rights == rights
    }
}
