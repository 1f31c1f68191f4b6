//! The models, and what they are asked to create.

use std::ffi::CStr;

use clap::ValueEnum;

/// Where owner, mode and kind of the guest's files are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SecurityModel {
    /// In the host's files themselves; run by root, the daemon gives them to their owners
    #[default]
    Passthrough,
    /// As passthrough, but what cannot be given to its owner is the daemon's; no ACLs
    None,
    /// In extended attributes user.virtfs.* of the host's files, which all belong to the daemon
    #[value(alias = "mapped")]
    MappedXattr,
    /// In files below .virtfs_metadata, where the host's file system has no extended attributes
    MappedFile,
}

impl SecurityModel {
    /// Whether owner, mode and kind are not those of the host's files.
    pub fn is_mapped(self) -> bool {
        matches!(self, SecurityModel::MappedXattr | SecurityModel::MappedFile)
    }
}

/// The modes of what a mapped model creates on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostModes {
    /// Of files.
    pub file: u32,
    /// Of directories.
    pub directory: u32,
}

impl Default for HostModes {
    /// For the daemon's user alone.
    fn default() -> HostModes {
        HostModes {
            file: 0o600,
            directory: 0o700,
        }
    }
}

/// What to create without opening it.
#[derive(Clone, Copy, Debug)]
pub enum NewFile<'a> {
    /// A directory.
    Directory {
        /// Its permissions.
        mode: u32,
    },
    /// A device, a fifo, a socket or an empty regular file.
    Node {
        /// `S_IF*`.
        kind: u32,
        /// Its permissions.
        mode: u32,
        /// A device's number.
        device: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Its content.
        target: &'a CStr,
    },
}
