//! One component of a path, checked before a system call uses it.

use std::ffi::CStr;

use nix::errno::Errno;

/// Longest name of a file on Linux, without the NUL (limits.h).
pub const NAME_MAX: usize = 255;

/// A name that is safe for the `*at` calls below a directory: not empty, at most [`NAME_MAX`]
/// bytes, no `/`, no NUL, not `.` and not `..`.
#[derive(Clone, Copy)]
pub struct Name {
    bytes: [u8; NAME_MAX + 1],
    len: u8,
}

/// What a guest's name is.
// A component lives on the stack during one lookup.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// A name proper.
    Name(Name),
    /// `.`, the directory itself.
    Current,
    /// `..`, the directory above.
    Parent,
}

impl Component {
    /// Checks `bytes`. Errors: ENOENT for an empty name and one that contains `/` or NUL, because
    /// no such file can exist; ENAMETOOLONG.
    pub fn new(bytes: &[u8]) -> Result<Component, Errno> {
        match bytes {
            b"." => return Ok(Component::Current),
            b".." => return Ok(Component::Parent),
            b"" => return Err(Errno::ENOENT),
            _ => {}
        }
        if bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
            return Err(Errno::ENOENT);
        }
        if bytes.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let mut name = Name {
            bytes: [0; NAME_MAX + 1],
            len: bytes.len() as u8,
        };
        name.bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(Component::Name(name))
    }
}

impl Name {
    /// A name for something new. Errors: those of [`Component::new`]; EEXIST for `.` and `..`,
    /// which always exist.
    pub fn for_new(bytes: &[u8]) -> Result<Name, Errno> {
        Name::or(bytes, Errno::EEXIST, Errno::EEXIST)
    }

    /// A name to remove. Errors: those of [`Component::new`]; EINVAL for `.` and ENOTEMPTY for
    /// `..`, as rmdir(2) answers.
    pub fn for_removal(bytes: &[u8]) -> Result<Name, Errno> {
        Name::or(bytes, Errno::EINVAL, Errno::ENOTEMPTY)
    }

    /// Either side of a rename. Errors: those of [`Component::new`]; EBUSY for `.` and `..`, as
    /// rename(2) answers.
    pub fn for_rename(bytes: &[u8]) -> Result<Name, Errno> {
        Name::or(bytes, Errno::EBUSY, Errno::EBUSY)
    }

    fn or(bytes: &[u8], current: Errno, parent: Errno) -> Result<Name, Errno> {
        match Component::new(bytes)? {
            Component::Name(name) => Ok(name),
            Component::Current => Err(current),
            Component::Parent => Err(parent),
        }
    }

    /// The name without its NUL.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The name for a system call.
    pub fn as_c_str(&self) -> &CStr {
        // The check in the constructor leaves exactly one NUL, behind the name.
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Name) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Name {}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.as_bytes().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_pass_whole() {
        for bytes in [&b"a"[..], b"...", b".hidden", b"\xff\xfe", &[b'x'; 255]] {
            let name = Name::for_new(bytes).unwrap();
            assert_eq!(name.as_bytes(), bytes);
            assert_eq!(name.as_c_str().to_bytes(), bytes);
        }
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for bytes in [&b""[..], b"/", b"a/b", b"../a", b"/etc", b"a\0b", b"\0"] {
            assert_eq!(Name::for_new(bytes), Err(Errno::ENOENT));
            assert_eq!(Name::for_removal(bytes), Err(Errno::ENOENT));
            assert_eq!(Name::for_rename(bytes), Err(Errno::ENOENT));
        }
        assert_eq!(Name::for_new(&[b'x'; 256]), Err(Errno::ENAMETOOLONG));
    }

    #[test]
    fn dot_and_dot_dot_are_nobody_s_new_name() {
        assert_eq!(Name::for_new(b"."), Err(Errno::EEXIST));
        assert_eq!(Name::for_new(b".."), Err(Errno::EEXIST));
        assert_eq!(Name::for_removal(b"."), Err(Errno::EINVAL));
        assert_eq!(Name::for_removal(b".."), Err(Errno::ENOTEMPTY));
        assert_eq!(Name::for_rename(b"."), Err(Errno::EBUSY));
        assert_eq!(Name::for_rename(b".."), Err(Errno::EBUSY));
        assert_eq!(Component::new(b"..").unwrap(), Component::Parent);
        assert_eq!(Component::new(b".").unwrap(), Component::Current);
    }
}
