//! Twalk: from a fid, by names, to another fid.

use std::rc::Rc;

use nix::errno::Errno;
use protocol::{Qids, Rwalk, Twalk};

use crate::export::{Component, Lookup, Node, Stat};
use crate::server::Server;
use crate::server::fid::Fid;

/// How far a walk came.
#[derive(Default)]
struct Walked {
    /// The last file reached, unless not even the first name was found.
    last: Option<Node>,
    /// Of every file on the way.
    stats: Vec<Stat>,
    /// Why it went no further.
    error: Option<Errno>,
}

impl Server {
    /// Twalk: without names, newfid stands for the same file. With names, each is looked up below
    /// the one before; symbolic links are reached, not followed. Errors: that of the first name;
    /// a later name that fails ends the walk with the qids until there, and newfid is not made.
    pub(super) fn walk(&self, m: Twalk<'_>) -> Result<Rwalk, Errno> {
        let fid = self.session.fids.get(m.fid)?;
        let start = if m.newfid == m.fid {
            fid.unopened()?
        } else {
            self.session.fids.check_free(m.newfid)?;
            fid.node()?
        };
        let mut qids = Qids::new();
        let end = if m.names.is_empty() {
            start
        } else {
            let walked = self.resolve(&start, &fid.root, &m.names);
            for stat in &walked.stats {
                qids.push(self.qid(stat));
            }
            match (walked.last, walked.error) {
                (Some(last), None) => Rc::new(last),
                (Some(_), Some(_)) => return Ok(Rwalk { qids }),
                (None, error) => return Err(error.unwrap_or(Errno::ENOENT)),
            }
        };
        let walked = Fid::walked(fid.user, fid.root.clone(), end);
        if m.newfid == m.fid {
            self.session.fids.replace(m.fid, &fid, walked)?;
        } else {
            self.session.fids.insert(m.newfid, walked)?;
        }
        Ok(Rwalk { qids })
    }

    /// As far as the kernel's caches reach the walk is made here; the rest, if any, on a worker.
    fn resolve(&self, start: &Node, root: &Node, names: &[&[u8]]) -> Walked {
        let mut walked = Walked::default();
        walked.go_on(start, root, names, Lookup::Cached);
        if walked.error == Some(Errno::EAGAIN) {
            walked.error = None;
            self.blocking(|| walked.go_on(start, root, names, Lookup::Blocking));
        }
        walked
    }
}

impl Walked {
    /// Walks those of `names` that are not behind it yet.
    fn go_on(&mut self, start: &Node, root: &Node, names: &[&[u8]], lookup: Lookup) {
        for name in &names[self.stats.len()..] {
            match step(self.last.as_ref().unwrap_or(start), root, name, lookup) {
                Ok((node, stat)) => {
                    self.last = Some(node);
                    self.stats.push(stat);
                }
                Err(error) => {
                    self.error = Some(error);
                    return;
                }
            }
        }
    }
}

fn step(from: &Node, root: &Node, name: &[u8], lookup: Lookup) -> Result<(Node, Stat), Errno> {
    from.directory()?;
    match (Component::new(name)?, lookup) {
        (Component::Name(name), lookup) => from.child(&name, lookup),
        (Component::Current, _) => Err(Errno::ENOENT),
        // Finding the way up takes many calls.
        (Component::Parent, Lookup::Cached) => Err(Errno::EAGAIN),
        (Component::Parent, Lookup::Blocking) => from.parent(root),
    }
}
