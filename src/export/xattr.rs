//! Extended attributes of a pinned inode.

use std::ffi::{CStr, CString};

use nix::errno::Errno;

use super::node::Node;
use super::sys;

/// Largest value and largest list of names on Linux (limits.h: XATTR_SIZE_MAX, XATTR_LIST_MAX).
pub const XATTR_SIZE_MAX: usize = 65536;
/// Longest name of an attribute, without its NUL (limits.h).
const XATTR_NAME_MAX: usize = 255;

/// The name of an attribute, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XattrName(CString);

impl XattrName {
    /// Errors: ERANGE for an empty or overlong name, as setxattr(2) answers; EINVAL for one with
    /// a NUL.
    pub fn new(bytes: &[u8]) -> Result<XattrName, Errno> {
        if bytes.is_empty() || bytes.len() > XATTR_NAME_MAX {
            return Err(Errno::ERANGE);
        }
        CString::new(bytes)
            .map(XattrName)
            .map_err(|_| Errno::EINVAL)
    }

    /// The name without its NUL.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    fn as_c_str(&self) -> &CStr {
        &self.0
    }
}

impl Node {
    /// The value of an attribute now. One call, so that the value cannot change between the
    /// question for its size and the reading. Errors: those of getxattr(2).
    pub fn xattr(&self, name: &XattrName) -> Result<Vec<u8>, Errno> {
        let mut value = vec![0; XATTR_SIZE_MAX];
        let length = sys::getxattr(self.proc_path().as_c_str(), name.as_c_str(), &mut value)?;
        value.truncate(length);
        value.shrink_to_fit();
        Ok(value)
    }

    /// The names of all attributes, each ended by a NUL. Errors: those of listxattr(2).
    pub fn xattr_names(&self) -> Result<Vec<u8>, Errno> {
        let mut names = vec![0; XATTR_SIZE_MAX];
        let length = sys::listxattr(self.proc_path().as_c_str(), &mut names)?;
        names.truncate(length);
        names.shrink_to_fit();
        Ok(names)
    }

    /// Sets an attribute. Errors: those of setxattr(2).
    pub fn set_xattr(&self, name: &XattrName, value: &[u8], flags: u32) -> Result<(), Errno> {
        sys::setxattr(self.proc_path().as_c_str(), name.as_c_str(), value, flags)
    }

    /// Removes an attribute. Errors: those of removexattr(2).
    pub fn remove_xattr(&self, name: &XattrName) -> Result<(), Errno> {
        sys::removexattr(self.proc_path().as_c_str(), name.as_c_str())
    }
}
