//! The rights that root's daemon keeps (capabilities(7)).

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::prctl;

use crate::export::FileHandles;

/// All that acting for the guest's users takes. Among what is given up: mounting, the network,
/// other processes, the kernel, raw disks.
const KEPT: [Capability; 8] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_MKNOD,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
];
/// Opens any inode of a file system by its handle, wherever it is: no root directory and no namespace
/// stands against it. To look through directories CAP_DAC_OVERRIDE is enough.
const FOR_HANDLES: Capability = Capability::CAP_DAC_READ_SEARCH;

/// Gives up all other rights for good, also those that a program could give back. In a namespace of
/// users (`none`) that is all of them. Errors: those of prctl(2) and capset(2).
pub fn reduce(none: bool, handles: FileHandles) -> Result<(), Errno> {
    let errno = |_: caps::errors::CapsError| Errno::last();
    let mut kept = CapsHashSet::new();
    if !none {
        kept.extend(KEPT);
        kept.extend((handles != FileHandles::Never).then_some(FOR_HANDLES));
    }
    let has = |set| caps::read(None, set).map_err(errno);
    // Dropping from the bounding set takes a right of its own, which is among those given up.
    if has(CapSet::Effective)?.contains(&Capability::CAP_SETPCAP) {
        for capability in has(CapSet::Bounding)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(errno)?;
        }
    }
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        let left: CapsHashSet = has(set)?.intersection(&kept).copied().collect();
        caps::set(None, set, &left).map_err(errno)?;
    }
    prctl::set_no_new_privs()?;
    // No other process of this user may look into this one, or get at its descriptors by /proc.
    prctl::set_dumpable(false)
}
