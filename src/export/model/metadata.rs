//! The content of mapped-file's files, and the attributes of removed files.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write;

use super::attributes::Attributes;
use crate::export::node::InodeKey;

/// More than any metadata file has; the rest is not read.
pub(super) const LONGEST: usize = 4096;

/// The text of a metadata file.
pub(super) fn format(attributes: &Attributes) -> String {
    let Attributes {
        uid,
        gid,
        mode,
        rdev,
    } = *attributes;
    let mut text = String::new();
    for (key, value) in [
        ("uid", uid),
        ("gid", gid),
        ("mode", mode),
        // The kernel's device numbers have 32 bits.
        ("rdev", rdev.map(|device| device as u32)),
    ] {
        if let Some(value) = value {
            // As a C int: that is what QEMU writes and reads. Writing to a string cannot fail.
            let _ = writeln!(text, "virtfs.{key}={}", value as i32);
        }
    }
    text
}

/// Reads the text of a metadata file, which anyone on the host may have written: what makes no
/// sense is ignored.
pub(super) fn parse(text: &[u8]) -> Attributes {
    let mut attributes = Attributes::default();
    for line in text.split(|byte| *byte == b'\n') {
        let Some((key, value)) = line
            .strip_prefix(b"virtfs.")
            .and_then(|line| std::str::from_utf8(line).ok())
            .and_then(|line| line.split_once('='))
        else {
            continue;
        };
        let value = number(value);
        match key {
            "uid" => attributes.uid = value,
            "gid" => attributes.gid = value,
            "mode" => attributes.mode = value,
            "rdev" => attributes.rdev = value.map(u64::from),
            _ => {}
        }
    }
    attributes
}

/// A 32-bit number, with or without sign. -1 has always meant "not set".
fn number(text: &str) -> Option<u32> {
    let number: i64 = text.trim().parse().ok()?;
    let signed = i32::try_from(number).map(|number| number as u32);
    let number = signed.or_else(|_| u32::try_from(number)).ok()?;
    (number != u32::MAX).then_some(number)
}

/// The attributes of files that the guest has removed and may still use.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    /// With the number of the removal.
    attributes: HashMap<InodeKey, (u64, Attributes)>,
    /// From the first removal to the last.
    order: VecDeque<(u64, InodeKey)>,
    removals: u64,
}

impl Orphans {
    /// Which of them are still in use is not known here. After as many other removals, a file that
    /// is still in use gets its owner and mode from the host again.
    const MOST: usize = 65536;

    /// Stores the attributes of a file that has lost a name.
    pub(super) fn insert(&mut self, id: InodeKey, attributes: Attributes) {
        self.removals += 1;
        self.attributes.insert(id, (self.removals, attributes));
        self.order.push_back((self.removals, id));
        if self.order.len() > Orphans::MOST {
            if let Some((number, id)) = self.order.pop_front() {
                if self
                    .attributes
                    .get(&id)
                    .is_some_and(|kept| kept.0 == number)
                {
                    self.attributes.remove(&id);
                }
            }
        }
    }

    /// The stored attributes of a file.
    pub(super) fn get(&self, id: &InodeKey) -> Option<Attributes> {
        self.attributes.get(id).map(|kept| kept.1)
    }

    /// The stored attributes of a file, to be changed.
    pub(super) fn get_mut(&mut self, id: &InodeKey) -> Option<&mut Attributes> {
        self.attributes.get_mut(id).map(|kept| &mut kept.1)
    }

    /// Forgets a file: a new file has its number.
    pub(super) fn forget(&mut self, id: &InodeKey) {
        self.attributes.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::InodeId;

    #[test]
    fn the_text_is_qemu_s() {
        let attributes = Attributes {
            uid: Some(1000),
            gid: Some(4_000_000_000),
            mode: Some(libc::S_IFBLK | 0o660),
            rdev: Some(libc::makedev(8, 1)),
        };
        let text = "virtfs.uid=1000\nvirtfs.gid=-294967296\nvirtfs.mode=25008\nvirtfs.rdev=2049\n";
        assert_eq!(format(&attributes), text);
        assert_eq!(parse(text.as_bytes()), attributes);
        assert_eq!(format(&Attributes::default()), "");
    }

    #[test]
    fn every_device_of_the_kernel_survives() {
        for (major, minor) in [(0, 0), (4095, 0xf_fffe), (2048, 0), (1, 3)] {
            let attributes = Attributes {
                rdev: Some(libc::makedev(major, minor)),
                ..Attributes::default()
            };
            assert_eq!(parse(format(&attributes).as_bytes()), attributes);
        }
    }

    #[test]
    fn what_makes_no_sense_is_not_there() {
        let only_uid = Attributes {
            uid: Some(7),
            ..Attributes::default()
        };
        for text in [
            &b"virtfs.uid=7"[..],
            b"virtfs.uid= 7 \n\n\n",
            b"virtfs.uid=7\nvirtfs.gid=99999999999\nvirtfs.mode=-1\nvirtfs.rdev=x\n",
            b"\xff\xfe\nvirtfs.uid=7\nvirtfs.gid\nvirtfs.\xff=1\n",
            b"virtfs.uid=7\nvirtfs.other=8\ngid=9\nvirtfs.gid=99999999999999999999999999\n",
        ] {
            assert_eq!(parse(text), only_uid, "{}", text.escape_ascii());
        }
        assert_eq!(parse(&[0; LONGEST]), Attributes::default());
    }

    #[test]
    fn the_oldest_orphan_goes_first() {
        let id = |inode| InodeKey {
            id: InodeId {
                device: (8, 1),
                inode,
            },
            mount: 0,
            birth: None,
        };
        let uid = |uid| Attributes {
            uid: Some(uid),
            ..Attributes::default()
        };
        let mut orphans = Orphans::default();
        for inode in 0..=Orphans::MOST as u64 {
            orphans.insert(id(inode), uid(inode as u32));
        }
        assert_eq!(orphans.get(&id(0)), None);
        assert_eq!(orphans.get(&id(1)), Some(uid(1)));
        orphans.forget(&id(1));
        orphans.insert(id(2), uid(99));
        assert_eq!(orphans.get(&id(1)), None);
        assert_eq!(orphans.get(&id(2)), Some(uid(99)));
        // A second removal counts, not the first.
        orphans.insert(id(1), uid(1));
        orphans.insert(id(0), uid(0));
        assert_eq!(orphans.get(&id(3)), None);
        assert_eq!(orphans.get(&id(2)), Some(uid(99)));
        assert_eq!(orphans.order.len(), Orphans::MOST);
    }
}
