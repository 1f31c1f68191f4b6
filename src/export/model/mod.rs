//! Security models: what the owner, mode and kind of a guest's file are on the host.
//!
//! The models and what they leave on the host are those of QEMU's 9p server, so that a share can
//! be served by either (docs/system/devices/virtio-9p.rst and hw/9pfs there).
//!
//! | model | owner, mode and kind of a file | links and devices of the guest |
//! |---|---|---|
//! | passthrough | the host file's own | the same on the host |
//! | none | the host file's own; an owner that the host refuses at creation is dropped | the same |
//! | mapped-xattr | extended attributes `user.virtfs.*` of the host file | regular files |
//! | mapped-file | a text file in `.virtfs_metadata` beside the host file | regular files |
//!
//! In the first two (`host`) the daemon acts for the guest's user. In the mapped ones (`mapped`,
//! which stores what the guest has set in `mapped_xattr` or `mapped_file`) it acts as itself: what
//! it creates on the host has the modes of [`HostModes`], and the guest's view overlays what the
//! host says (`attributes`).

mod attributes;
mod change;
pub(super) mod host;
mod mapped;
mod mapped_file;
mod mapped_xattr;
mod metadata;
mod options;
mod xattrs;

use nix::errno::Errno;

pub use attributes::has_set_id;
pub use change::Change;
use host::Host;
use mapped::Mapped;
use mapped_file::MappedFile;
use mapped_xattr::MappedXattr;
pub use options::{HostModes, NewFile, SecurityModel};
pub use xattrs::Xattrs;

use super::node::Node;

/// A model in use.
#[derive(Debug)]
pub(super) enum Model {
    Host(Host),
    Mapped(Mapped),
}

impl Model {
    pub(super) fn new(model: SecurityModel, modes: HostModes) -> Model {
        match model {
            SecurityModel::Passthrough => Model::Host(Host::Passthrough),
            SecurityModel::None => Model::Host(Host::None),
            SecurityModel::MappedXattr => Model::Mapped(Mapped::new(MappedXattr, modes)),
            SecurityModel::MappedFile => Model::Mapped(Mapped::new(MappedFile::default(), modes)),
        }
    }

    /// Whether the file system of `root` has what the model needs. Errors: EOPNOTSUPP.
    pub(super) fn supported(&self, root: &Node) -> Result<(), Errno> {
        match self {
            Model::Host(_) => Ok(()),
            Model::Mapped(mapped) => mapped.supported(root),
        }
    }

    /// Whether a file must be found by its name to tell what it is for the guest.
    pub(super) fn by_name(&self) -> bool {
        match self {
            Model::Host(_) => false,
            Model::Mapped(mapped) => mapped.by_name(),
        }
    }

    /// Which extended attributes the guest has.
    pub(super) fn xattrs(&self) -> Xattrs {
        match self {
            Model::Host(host) => host.xattrs(),
            Model::Mapped(mapped) => mapped.xattrs(),
        }
    }
}
