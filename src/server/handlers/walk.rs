//! Twalk: from a fid, by names, to another fid.

use nix::errno::Errno;
use protocol::{Qids, Rwalk, Twalk};

use crate::export::{Component, Export, Lookup, Node, Stat, WayUp};
use crate::server::Server;
use crate::server::fid::{Fid, State};
use crate::server::inodes::Dentry;
use crate::server::placement::{Medium, Site};
use crate::server::redo::Redo;

/// How far a walk came.
#[derive(Default)]
struct Walked {
    /// Every file on the way.
    files: Vec<(Node, Stat)>,
    /// Why it went no further.
    error: Option<Errno>,
}

impl Server {
    /// Twalk: without names, newfid stands for the same file. With names, each is looked up below
    /// the one before; symbolic links are reached, not followed. Errors: that of the first name. If
    /// a later name fails, the walk ends with the qids before it, and newfid is not made.
    pub(super) fn walk(&self, m: Twalk<'_>, redo: Redo) -> Result<Rwalk, Errno> {
        let fid = self.session.fids.get(m.fid)?;
        let start = if m.newfid == m.fid {
            let start = fid.unopened()?;
            fid.walks_onto_itself(redo).unwrap_or(start)
        } else {
            self.undo_fid(m.newfid, redo);
            self.session.fids.check_free(m.newfid)?;
            fid.target()?.inode().clone()
        };
        let mut qids = Qids::new();
        let mut end = start;
        if !m.names.is_empty() {
            self.room()?;
            let node = match m.newfid == m.fid {
                true => self.hold(&end)?,
                false => self.node_of(&fid)?,
            };
            let walked = self.resolve(&fid, &node, &m.names)?;
            let mut error = walked.error;
            for ((node, stat), name) in walked.files.into_iter().zip(m.names.iter()) {
                // The parent was reached by no name.
                let place = (*name != b"..").then(|| Dentry {
                    directory: end.clone(),
                    name: (*name).into(),
                });
                match self.admit(node, place, end.key().id.device) {
                    Ok(inode) => {
                        inode.note_size(stat.0.stx_blocks);
                        end = inode;
                    }
                    Err(forbidden) => {
                        error = Some(forbidden);
                        break;
                    }
                }
                qids.push(self.qid(&stat));
            }
            match error {
                Some(error) if qids.is_empty() => return Err(error),
                Some(_) => return Ok(Rwalk { qids }),
                None => {}
            }
        }
        if m.newfid == m.fid {
            self.session.fids.replace(m.fid, &fid, end)?;
        } else {
            let (user, root) = (fid.user, fid.root.clone());
            let walked = State::Walked(end);
            self.session.fids.insert(m.newfid, user, root, walked)?;
        }
        self.evict_if_needed();
        Ok(Rwalk { qids })
    }

    /// The walk is made here as far as the kernel's caches reach and no mount point is crossed. The
    /// rest, if any, is made on a worker, and from the first mount point on as for a remote file
    /// system.
    fn resolve(&self, fid: &Fid, start: &Node, names: &[&[u8]]) -> Result<Walked, Errno> {
        let root = &*self.hold(&fid.root)?;
        let (identity, user) = (self.export.identity(), fid.user);
        let other = identity.is_other(user);
        let export = &self.export;
        let mut walked = Walked::default();
        let way = &mut WayUp::new(root, self.session.requests.stopping());
        // A walk that got nowhere without a free descriptor is tried again.
        self.with_descriptors(|| {
            let medium = match walked.files.last() {
                // It has crossed a mount point.
                Some((node, _)) if node.id().device != start.id().device => Medium::Remote,
                _ => self.placement.file_system(start.id().device).medium(),
            };
            // Only a worker takes on another user's rights.
            let here = match medium {
                _ if other || !export.stat_is_immediate() => None,
                Medium::Memory => Some(Lookup::Local),
                Medium::Disk => Some(Lookup::Cached),
                Medium::Remote => None,
            };
            walked.error = Some(Errno::EAGAIN);
            if let Some(lookup) = here {
                walked.go_on(export, start, way, names, (lookup, false));
            }
            let mut on_worker = |walked: &mut Walked, lookup| {
                identity.acting(user, || {
                    walked.go_on(export, start, way, names, (lookup, true));
                    Ok(())
                })
            };
            // What is only not in memory takes no longer than a read of this disk.
            if walked.error == Some(Errno::EAGAIN) && medium != Medium::Remote {
                self.placement
                    .call_at(Site::Worker, || on_worker(&mut walked, Lookup::Local))?;
            }
            // Behind a mount point it is not known yet who must answer.
            if walked.error == Some(Errno::EAGAIN) {
                self.placement
                    .call_at(Site::Remote, || on_worker(&mut walked, Lookup::Blocking))?;
            }
            match walked.error {
                Some(error @ (Errno::EMFILE | Errno::ENFILE)) => Err(error),
                _ => Ok(()),
            }
        })?;
        Ok(walked)
    }
}

impl Walked {
    /// Walks the names that are not walked yet; upwards only if allowed to.
    fn go_on(
        &mut self,
        export: &Export,
        start: &Node,
        way: &mut WayUp<'_>,
        names: &[&[u8]],
        how: (Lookup, bool),
    ) {
        self.error = None;
        for name in &names[self.files.len()..] {
            let from = self.files.last().map_or(start, |(node, _)| node);
            match step(export, from, way, name, how) {
                Ok(file) => self.files.push(file),
                Err(error) => {
                    self.error = Some(error);
                    return;
                }
            }
        }
    }
}

fn step(
    export: &Export,
    from: &Node,
    way: &mut WayUp<'_>,
    name: &[u8],
    (lookup, up): (Lookup, bool),
) -> Result<(Node, Stat), Errno> {
    from.directory()?;
    match Component::new(name)? {
        Component::Name(name) => export.child(from, &name, lookup),
        Component::Current => Err(Errno::ENOENT),
        // Finding the way up takes many calls.
        Component::Parent if !up => Err(Errno::EAGAIN),
        Component::Parent => export.parent(from, way, lookup),
    }
}
