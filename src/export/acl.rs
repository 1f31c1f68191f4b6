//! The ids in POSIX access control lists, which the kernel keeps in extended attributes.

use nix::errno::Errno;

use super::identity::Ids;

/// The attributes whose values are lists (linux/xattr.h).
pub const NAMES: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
/// Version and length of the value's header (linux/posix_acl_xattr.h); then come entries of a tag
/// and permissions in 16 bits each and an id in 32, all little-endian.
const VERSION: u32 = 2;
const HEADER: usize = 4;
const ENTRY: usize = 8;
/// The tags whose entries are about one user or one group (linux/posix_acl.h).
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// Whether `name` is that of a list.
pub fn is_list(name: &[u8]) -> bool {
    NAMES.contains(&name)
}

/// Replaces the host's ids by the guest's, if `name` is that of a list.
pub fn to_guest(name: &[u8], value: &mut [u8], ids: &Ids) {
    // No id is forbidden in this direction, and what the host has stored is well-formed.
    let _ = translate(name, value, |tag, id| {
        Ok(match tag {
            ACL_USER => ids.uids.to_guest(id),
            _ => ids.gids.to_guest(id),
        })
    });
}

/// Replaces the guest's ids by the host's, if `name` is that of a list. Errors: EPERM for an id
/// that the guest may not use. The host refuses what is malformed.
pub fn to_host(name: &[u8], value: &mut [u8], ids: &Ids) -> Result<(), Errno> {
    translate(name, value, |tag, id| match tag {
        ACL_USER => ids.uids.to_host(id),
        _ => ids.gids.to_host(id),
    })
}

fn translate(
    name: &[u8],
    value: &mut [u8],
    id: impl Fn(u16, u32) -> Result<u32, Errno>,
) -> Result<(), Errno> {
    if !is_list(name) || value.first_chunk() != Some(&VERSION.to_le_bytes()) {
        return Ok(());
    }
    for entry in value[HEADER..].chunks_exact_mut(ENTRY) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        if let ACL_USER | ACL_GROUP = tag {
            let old = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            entry[4..].copy_from_slice(&id(tag, old)?.to_le_bytes());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::idmap::IdMap;
    use super::*;

    /// user::rw-, user:1000:rw-, group::r--, group:50:r--, mask::rw-, other::---
    fn list(user: u32, group: u32) -> Vec<u8> {
        let none = u32::MAX;
        let mut value = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in [
            (0x01u16, 6u16, none),
            (ACL_USER, 6, user),
            (0x04, 4, none),
            (ACL_GROUP, 4, group),
            (0x10, 6, none),
            (0x20, 0, none),
        ] {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    fn ids() -> Ids {
        let map = |rules: &[&str]| {
            let rules: Vec<_> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
            IdMap::new(&rules).unwrap()
        };
        Ids {
            uids: map(&["map:0:100000:65536"]),
            gids: map(&["map:0:200000:60", "forbid-guest:60:1"]),
        }
    }

    #[test]
    fn the_ids_of_named_entries_are_translated_and_nothing_else() {
        let mut value = list(1000, 50);
        to_host(NAMES[0], &mut value, &ids()).unwrap();
        assert_eq!(value, list(101_000, 200_050));
        to_guest(NAMES[1], &mut value, &ids());
        assert_eq!(value, list(1000, 50));
        assert_eq!(
            to_host(NAMES[0], &mut list(1, 60), &ids()),
            Err(Errno::EPERM)
        );
    }

    #[test]
    fn what_is_no_list_is_left_alone() {
        for (name, value) in [
            (&b"user.list"[..], list(1000, 50)),
            (NAMES[0], vec![]),
            (NAMES[0], vec![1, 0, 0, 0, 2, 0, 6, 0, 1, 0, 0, 0]),
            (NAMES[0], vec![2, 0, 0, 0, 2, 0, 6, 0, 1]),
        ] {
            let mut same = value.clone();
            to_host(name, &mut same, &ids()).unwrap();
            to_guest(name, &mut same, &ids());
            assert_eq!(same, value);
        }
    }
}
