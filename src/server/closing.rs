//! The close of files. It may wait for a server or free a large file, so it is made where a call of
//! its cost is made, by the last that has the file: a clunk, or a request that outlives it.

use std::rc::Rc;

use super::Server;
use super::fid::{Fid, Handle};
use super::locks::Owner;
use super::placement::Cost;

impl Server {
    /// Lets a fid go that the guest has given back.
    pub(super) fn let_go(&self, fid: Rc<Fid>) {
        if let Ok(open) = fid.open_file() {
            self.session.leaving.borrow_mut().push(open);
        }
        drop(fid);
        self.close_left();
    }

    /// Closes the files that were let go and that no request has any more. To be called when a
    /// request has ended.
    #[inline]
    pub(super) fn close_left(&self) {
        if !self.session.leaving.borrow().is_empty() {
            self.close_unused();
        }
    }

    fn close_unused(&self) {
        let leaving = &self.session.leaving;
        while !leaving.borrow().is_empty() {
            let mut list = leaving.borrow_mut();
            let Some(place) = list.iter().position(|open| Rc::strong_count(open) == 1) else {
                return;
            };
            let open = list.swap_remove(place);
            drop(list);
            let Some(open) = Rc::into_inner(open) else {
                continue;
            };
            let owners = open.owners.take();
            let had_locks = !owners.is_empty();
            // Who has locked through another file, too, keeps the locks.
            let (locked, _counted): (Vec<_>, Vec<_>) = owners
                .into_iter()
                .filter_map(Rc::into_inner)
                .map(Owner::into_description)
                .unzip();
            let cost = match &open.handle {
                Handle::File(file) if file.writable => Cost::Change,
                _ => Cost::Held,
            };
            let (device, handle) = (open.inode.key().id.device, open.handle);
            self.call(device, cost, move || drop((locked, handle)));
            if had_locks {
                self.session.interrupts.retry();
            }
        }
    }
}
