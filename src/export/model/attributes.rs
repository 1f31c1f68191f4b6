//! What a mapped model stores of a file: the owner, mode and device that the guest gave it.

use crate::export::node::Stat;

/// The attributes that the guest has set. Others are the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The owner's user id.
    pub uid: Option<u32>,
    /// The owner's group id.
    pub gid: Option<u32>,
    /// Type and permission bits, as `st_mode` has them.
    pub mode: Option<u32>,
    /// The device's number, as `st_rdev` has it.
    pub rdev: Option<u64>,
}

impl Attributes {
    /// These attributes, and from `older` those that are not set here.
    pub fn over(self, older: Attributes) -> Attributes {
        Attributes {
            uid: self.uid.or(older.uid),
            gid: self.gid.or(older.gid),
            mode: self.mode.or(older.mode),
            rdev: self.rdev.or(older.rdev),
        }
    }

    /// The file as the guest sees it, from the file as the host sees it. Only a regular file can
    /// stand for another kind: a directory stays a directory whatever the attributes say, and no
    /// file becomes one.
    pub fn seen_in(self, host: Stat) -> Stat {
        let mut stat = host.0;
        stat.stx_uid = self.uid.unwrap_or(stat.stx_uid);
        stat.stx_gid = self.gid.unwrap_or(stat.stx_gid);
        let host_kind = u32::from(stat.stx_mode) & libc::S_IFMT;
        if let Some(mode) = self.mode {
            let kind = match mode & libc::S_IFMT {
                kind if host_kind == libc::S_IFREG && stands_for(kind) => kind,
                _ => host_kind,
            };
            // A type is 4 bits and the permissions are 12: both fit.
            stat.stx_mode = (kind | mode & 0o7777) as u16;
            if kind != host_kind && matches!(kind, libc::S_IFCHR | libc::S_IFBLK) {
                let device = self.rdev.unwrap_or(0);
                (stat.stx_rdev_major, stat.stx_rdev_minor) =
                    (libc::major(device), libc::minor(device));
            }
        }
        Stat(stat)
    }
}

/// Whether a regular file of the host can have this type for the guest.
fn stands_for(kind: u32) -> bool {
    matches!(
        kind,
        libc::S_IFREG
            | libc::S_IFLNK
            | libc::S_IFCHR
            | libc::S_IFBLK
            | libc::S_IFIFO
            | libc::S_IFSOCK
    )
}

/// Whether a write, truncation or change of owner may clear bits of this mode.
pub fn has_set_id(mode: u32) -> bool {
    mode & libc::S_IFMT == libc::S_IFREG && mode & (libc::S_ISUID | libc::S_ISGID) != 0
}

/// The mode after the file is written or given away: without set-user-id, and without set-group-id
/// where the group may execute (elsewhere the bit means mandatory locking). The bits of a directory
/// mean something else and stay (chown(2), write(2)).
pub fn without_set_id(mode: u32) -> u32 {
    if mode & libc::S_IFMT == libc::S_IFDIR {
        return mode;
    }
    let mut mode = mode & !libc::S_ISUID;
    if mode & libc::S_IXGRP != 0 {
        mode &= !libc::S_ISGID;
    }
    mode
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::Node;

    fn host(mode: u32) -> Stat {
        let any = std::fs::File::open("/").unwrap();
        let mut stat = Node::new(any.into()).unwrap().1.0;
        stat.stx_mode = mode as u16;
        (stat.stx_uid, stat.stx_gid) = (1000, 1001);
        Stat(stat)
    }

    fn seen(attributes: Attributes, host_mode: u32) -> u32 {
        attributes.seen_in(host(host_mode)).0.stx_mode.into()
    }

    #[test]
    fn what_is_not_set_is_the_host_s() {
        let stat = Attributes::default().seen_in(host(libc::S_IFREG | 0o644)).0;
        assert_eq!((stat.stx_uid, stat.stx_gid), (1000, 1001));
        assert_eq!(u32::from(stat.stx_mode), libc::S_IFREG | 0o644);
        let some = Attributes {
            gid: Some(7),
            ..Attributes::default()
        };
        let stat = some.seen_in(host(libc::S_IFREG | 0o644)).0;
        assert_eq!((stat.stx_uid, stat.stx_gid), (1000, 7));
    }

    #[test]
    fn only_a_regular_file_stands_for_another_kind() {
        let mode = |mode| Attributes {
            mode: Some(mode),
            ..Attributes::default()
        };
        let (regular, directory) = (libc::S_IFREG | 0o600, libc::S_IFDIR | 0o700);
        let link = mode(libc::S_IFLNK | 0o777);
        assert_eq!(seen(link, regular), libc::S_IFLNK | 0o777);
        assert_eq!(seen(link, directory), libc::S_IFDIR | 0o777);
        // A host's own link stays a link.
        let fifo = mode(libc::S_IFIFO | 0o4611);
        assert_eq!(seen(fifo, libc::S_IFLNK | 0o777), libc::S_IFLNK | 0o4611);
        // What no file of the guest can be, and bits that no mode has.
        for hostile in [libc::S_IFDIR | 0o755, 0o755, 0o150755, 0xffff_0000 | 0o755] {
            assert_eq!(seen(mode(hostile), regular), libc::S_IFREG | 0o755);
        }
    }

    #[test]
    fn a_device_has_its_number() {
        let attributes = Attributes {
            mode: Some(libc::S_IFBLK | 0o660),
            rdev: Some(libc::makedev(259, 65537)),
            ..Attributes::default()
        };
        let stat = attributes.seen_in(host(libc::S_IFREG | 0o600)).0;
        assert_eq!((stat.stx_rdev_major, stat.stx_rdev_minor), (259, 65537));
        let fifo = Attributes {
            mode: Some(libc::S_IFIFO | 0o660),
            ..attributes
        };
        let stat = fifo.seen_in(host(libc::S_IFREG | 0o600)).0;
        assert_eq!((stat.stx_rdev_major, stat.stx_rdev_minor), (0, 0));
    }

    #[test]
    fn set_id_bits_fall_as_on_the_host() {
        let regular = libc::S_IFREG;
        for (before, after) in [
            (regular | 0o6755, regular | 0o755),
            (regular | 0o4644, regular | 0o644),
            (regular | 0o2644, regular | 0o2644),
            (regular | 0o1755, regular | 0o1755),
            (libc::S_IFDIR | 0o6775, libc::S_IFDIR | 0o6775),
        ] {
            assert_eq!(without_set_id(before), after, "{before:o}");
        }
    }
}
