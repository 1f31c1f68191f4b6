//! The capabilities that root's daemon keeps (capabilities(7)).

use std::str::FromStr;

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::geteuid;

use crate::export::FileHandles;

/// Everything that it takes to act for the guest's users. Dropped are, among others, mounting, the
/// network, other processes, the kernel and raw disks.
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
/// Opens any inode of a file system by its handle: no root directory and no namespace prevents it.
/// For looking through directories CAP_DAC_OVERRIDE is enough.
const FOR_HANDLES: Capability = Capability::CAP_DAC_READ_SEARCH;
/// Ignores quotas, which must hold for the guest.
const BEYOND_QUOTAS: Capability = Capability::CAP_SYS_RESOURCE;

/// Why the capabilities could not be set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One that must be kept is missing.
    #[error("--modcaps cannot keep {0}: this process was started without it")]
    Missing(Capability),
    /// The kernel refuses.
    #[error("the host refuses to give up capabilities: {0}")]
    Refused(#[from] Errno),
}

/// What the operator adds to the capabilities that are kept, and removes from them, in virtiofsd's
/// syntax: names without CAP_, each after + or -, separated by colons. The last mention of a name
/// counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modcaps(Vec<(Change, Capability)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Add,
    Remove,
}

impl Modcaps {
    /// Whether file handles cannot be used because their capability is removed.
    pub fn forbids_handles(&self) -> bool {
        self.last_word_on(FOR_HANDLES) == Some(Change::Remove)
    }

    fn last_word_on(&self, capability: Capability) -> Option<Change> {
        let words = self.0.iter().rev();
        words
            .filter(|(_, named)| *named == capability)
            .map(|(change, _)| *change)
            .next()
    }

    /// Those that are added and not removed again.
    fn added(&self) -> impl Iterator<Item = Capability> {
        let named = self.0.iter().map(|(_, capability)| *capability);
        named.filter(|capability| self.last_word_on(*capability) == Some(Change::Add))
    }
}

impl FromStr for Modcaps {
    type Err = String;

    fn from_str(text: &str) -> Result<Modcaps, String> {
        let changes = text.split(':').map(|word| {
            let (change, name) = match (word.strip_prefix('+'), word.strip_prefix('-')) {
                (Some(name), _) => (Change::Add, name),
                (_, Some(name)) => (Change::Remove, name),
                _ => return Err(format!("+NAME or -NAME is expected, not {word:?}")),
            };
            let name = name.to_uppercase();
            let whole = format!("CAP_{}", name.strip_prefix("CAP_").unwrap_or(&name));
            let capability = whole
                .parse()
                .map_err(|_| format!("there is no capability {name:?}"))?;
            Ok((change, capability))
        });
        changes.collect::<Result<_, _>>().map(Modcaps)
    }
}

/// What decides which capabilities are kept.
#[derive(Clone, Copy, Debug)]
pub struct Rights<'a> {
    /// Whether there is a sandbox. Without one, root's daemon keeps nearly all.
    pub sandboxed: bool,
    /// Whether files are found by their handles.
    pub handles: FileHandles,
    /// The operator's changes. Only for root: in a user namespace there is nothing to keep.
    pub changes: &'a Modcaps,
}

impl Rights<'_> {
    fn kept(&self, root: bool) -> CapsHashSet {
        if !root {
            return CapsHashSet::new();
        }
        let mut kept = match self.sandboxed {
            true => KEPT.into_iter().collect(),
            false => caps::all(),
        };
        kept.remove(&BEYOND_QUOTAS);
        match self.handles {
            FileHandles::Never => kept.remove(&FOR_HANDLES),
            FileHandles::Prefer | FileHandles::Mandatory => kept.insert(FOR_HANDLES),
        };
        for (change, capability) in &self.changes.0 {
            match change {
                Change::Add => kept.insert(*capability),
                Change::Remove => kept.remove(capability),
            };
        }
        kept
    }
}

/// Drops all other capabilities for good, and in a sandbox also the means to regain them. An
/// ordinary user's daemon drops all, but only in a sandbox. Errors: those of prctl(2) and
/// capset(2); a capability to add is missing.
pub fn reduce(rights: Rights<'_>) -> Result<(), Error> {
    let root = geteuid().is_root();
    if !root && !rights.sandboxed {
        return Ok(());
    }
    let errno = |_: caps::errors::CapsError| Errno::last();
    let kept = rights.kept(root);
    let has = |set| caps::read(None, set).map_err(errno);
    let permitted = has(CapSet::Permitted)?;
    let missing = |capability: &Capability| !permitted.contains(capability);
    if let Some(missing) = rights.changes.added().find(missing) {
        return Err(Error::Missing(missing));
    }
    // Dropping from the bounding set takes a capability that is itself dropped.
    if has(CapSet::Effective)?.contains(&Capability::CAP_SETPCAP) {
        for capability in has(CapSet::Bounding)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(errno)?;
        }
    }
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        let left: CapsHashSet = has(set)?.intersection(&kept).copied().collect();
        caps::set(None, set, &left).map_err(errno)?;
    }
    if rights.sandboxed {
        prctl::set_no_new_privs()?;
        // No other process of this user may look into this one, or get at its descriptors through
        // /proc.
        prctl::set_dumpable(false)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(words: &str, sandboxed: bool, handles: FileHandles) -> CapsHashSet {
        let changes = &words.parse().unwrap();
        let rights = Rights {
            sandboxed,
            handles,
            changes,
        };
        assert!(rights.kept(false).is_empty());
        rights.kept(true)
    }

    #[test]
    fn rights_are_added_and_taken_away_and_the_last_word_counts() {
        let usual: CapsHashSet = KEPT.into_iter().collect();
        let never = FileHandles::Never;
        let mut with = usual.clone();
        with.insert(Capability::CAP_SYS_ADMIN);
        with.remove(&Capability::CAP_CHOWN);
        for words in [
            "+sys_admin:-chown",
            "-chown:+SYS_ADMIN",
            "+cap_sys_admin:-CAP_CHOWN",
            "-sys_admin:+chown:-chown:+sys_admin",
        ] {
            assert_eq!(kept(words, true, never), with, "{words}");
        }
        assert_eq!(kept("+mknod", true, never), usual);
        assert!(kept("+dac_read_search", true, never).contains(&FOR_HANDLES));
        assert!(kept("+mknod", true, FileHandles::Prefer).contains(&FOR_HANDLES));
        assert!(!kept("+mknod", false, never).contains(&FOR_HANDLES));
        assert!(kept("+mknod", false, never).contains(&Capability::CAP_SYS_ADMIN));
        assert!(!kept("-sys_admin", false, never).contains(&Capability::CAP_SYS_ADMIN));
        assert!(!kept("+mknod", false, never).contains(&BEYOND_QUOTAS));
        assert!(kept("+sys_resource", false, never).contains(&BEYOND_QUOTAS));
    }

    #[test]
    fn what_is_no_capability_is_named() {
        for (words, says) in [
            ("", "+NAME or -NAME"),
            ("chown", "\"chown\""),
            ("+chown:", "\"\""),
            ("+", "no capability \"\""),
            ("+sys_admin:-everything", "no capability \"EVERYTHING\""),
            ("+sys_admin,-chown", "no capability"),
        ] {
            let error = words.parse::<Modcaps>().unwrap_err();
            assert!(error.contains(says), "{words}: {error}");
            assert!(!error.contains('\n'));
        }
    }
}
