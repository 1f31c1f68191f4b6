//! Which extended attributes of a file are the guest's, and their names on the host.

use nix::errno::Errno;

use crate::export::acl;
use crate::export::node::Node;
use crate::export::xattr::XattrName;

/// What both mapped models, here and in QEMU, keep to themselves.
const RESERVED: &[u8] = b"user.virtfs.";
/// Attributes of users' programs, which every file system that has any at all has.
const USER: &[u8] = b"user.";

/// The guest's extended attributes under one security model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xattrs {
    /// The host's, all of them.
    All,
    /// The host's, but no ACLs: its users are not the guest's.
    NoAcls,
    /// Only user attributes: everything else has a meaning on the host.
    User,
    /// User attributes, and ACLs that are kept as such.
    UserAndMappedAcls,
}

impl Xattrs {
    /// The value of an attribute. Errors: ENODATA if there is none, EOPNOTSUPP if the guest
    /// cannot have such a one, those of getxattr(2).
    pub fn get(self, node: &Node, name: &XattrName) -> Result<Vec<u8>, Errno> {
        match self.on_host(name.as_bytes(), Errno::ENODATA)? {
            None => node.xattr(name),
            Some(name) => node.xattr(&name),
        }
    }

    /// The names of all attributes that the guest has, each ended by a NUL. Errors: those of
    /// listxattr(2).
    pub fn list(self, node: &Node) -> Result<Vec<u8>, Errno> {
        let names = node.xattr_names()?;
        if self == Xattrs::All {
            return Ok(names);
        }
        let mut shown = Vec::with_capacity(names.len());
        for name in names
            .split_inclusive(|byte| *byte == 0)
            .filter_map(|name| name.strip_suffix(&[0]))
            .filter_map(|name| self.in_guest(name))
        {
            shown.extend_from_slice(name);
            shown.push(0);
        }
        Ok(shown)
    }

    /// Sets an attribute. Errors: EACCES for a reserved name, EOPNOTSUPP if the guest cannot
    /// have such a one, those of setxattr(2).
    pub fn set(self, node: &Node, name: &XattrName, value: &[u8], flags: u32) -> Result<(), Errno> {
        match self.on_host(name.as_bytes(), Errno::EACCES)? {
            None => node.set_xattr(name, value, flags),
            Some(name) => node.set_xattr(&name, value, flags),
        }
    }

    /// Removes an attribute. Errors: EACCES for a reserved name, EOPNOTSUPP if the guest cannot
    /// have such a one, those of removexattr(2).
    pub fn remove(self, node: &Node, name: &XattrName) -> Result<(), Errno> {
        match self.on_host(name.as_bytes(), Errno::EACCES)? {
            None => node.remove_xattr(name),
            // The kernel does not mind the removal of an ACL that is not there.
            Some(name) => match node.remove_xattr(&name) {
                Err(Errno::ENODATA) => Ok(()),
                result => result,
            },
        }
    }

    /// The name that the host has for the guest's, if it is another. Errors: `reserved` for what
    /// the model keeps there itself, EOPNOTSUPP.
    fn on_host(self, name: &[u8], reserved: Errno) -> Result<Option<XattrName>, Errno> {
        match self {
            Xattrs::All => Ok(None),
            Xattrs::NoAcls if acl::NAMES.contains(&name) => Err(Errno::EOPNOTSUPP),
            Xattrs::NoAcls => Ok(None),
            Xattrs::User | Xattrs::UserAndMappedAcls if name.starts_with(RESERVED) => Err(reserved),
            Xattrs::User | Xattrs::UserAndMappedAcls if name.starts_with(USER) => Ok(None),
            Xattrs::UserAndMappedAcls if acl::NAMES.contains(&name) => {
                XattrName::new(&[RESERVED, name].concat()).map(Some)
            }
            Xattrs::User | Xattrs::UserAndMappedAcls => Err(Errno::EOPNOTSUPP),
        }
    }

    /// The name that the guest has for the host's, if it has one.
    fn in_guest(self, name: &[u8]) -> Option<&[u8]> {
        match self {
            Xattrs::All => Some(name),
            Xattrs::NoAcls => (!acl::NAMES.contains(&name)).then_some(name),
            Xattrs::User | Xattrs::UserAndMappedAcls => match name.strip_prefix(RESERVED) {
                Some(acl) if self == Xattrs::UserAndMappedAcls => {
                    acl::NAMES.contains(&acl).then_some(acl)
                }
                Some(_) => None,
                None => name.starts_with(USER).then_some(name),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the host has for a name of the guest's: the same, another, or an error.
    fn host_name(xattrs: Xattrs, name: &[u8]) -> Result<Vec<u8>, Errno> {
        let other = xattrs.on_host(name, Errno::EACCES)?;
        Ok(other.map_or(name.to_vec(), |other| other.as_bytes().to_vec()))
    }

    #[test]
    fn reserved_names_are_out_of_reach() {
        for xattrs in [Xattrs::User, Xattrs::UserAndMappedAcls] {
            for name in [
                &b"user.virtfs.uid"[..],
                b"user.virtfs.",
                b"user.virtfs.system.posix_acl_access",
            ] {
                assert_eq!(host_name(xattrs, name), Err(Errno::EACCES));
            }
            assert_eq!(host_name(xattrs, b"user.virtfs"), Ok(b"user.virtfs".into()));
            assert_eq!(xattrs.in_guest(b"user.virtfs.mode"), None);
        }
    }

    #[test]
    fn acls_are_kept_under_a_reserved_name() {
        let xattrs = Xattrs::UserAndMappedAcls;
        for acl in acl::NAMES {
            let kept = [RESERVED, acl].concat();
            assert_eq!(host_name(xattrs, acl), Ok(kept.clone()));
            assert_eq!(xattrs.in_guest(&kept), Some(acl));
            // The host's own is about the host's users.
            assert_eq!(xattrs.in_guest(acl), None);
            for without in [Xattrs::User, Xattrs::NoAcls] {
                assert_eq!(host_name(without, acl), Err(Errno::EOPNOTSUPP));
                assert_eq!(without.in_guest(acl), None);
            }
            assert_eq!(host_name(Xattrs::All, acl), Ok(acl.to_vec()));
        }
        let other = b"system.posix_acl_accessible";
        assert_eq!(host_name(xattrs, other), Err(Errno::EOPNOTSUPP));
        assert_eq!(xattrs.in_guest(b"user.virtfs.system.posix_acl_other"), None);
    }

    #[test]
    fn what_means_something_to_the_host_is_not_the_guest_s() {
        for name in [
            &b"security.capability"[..],
            b"trusted.overlay.opaque",
            b"user",
        ] {
            for xattrs in [Xattrs::User, Xattrs::UserAndMappedAcls] {
                assert_eq!(host_name(xattrs, name), Err(Errno::EOPNOTSUPP));
                assert_eq!(xattrs.in_guest(name), None);
            }
            assert_eq!(host_name(Xattrs::NoAcls, name), Ok(name.to_vec()));
        }
    }
}
