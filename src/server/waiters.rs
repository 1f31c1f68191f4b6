//! The requests that wait for a lock, at the inode of the lock.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use super::requests::{Record, Running, Wake};
use crate::export::InodeId;

/// All that wait for a lock.
#[derive(Default)]
pub struct LockWaiters(RefCell<HashMap<InodeId, Vec<Rc<Record>>>>);

impl LockWaiters {
    /// Waits until a lock of the inode may be free, or for `time` at the most.
    pub fn wait(&self, inode: InodeId, running: &Running<'_>, time: Duration) -> Wake {
        let record = running.record();
        let mut waiters = self.0.borrow_mut();
        waiters.entry(inode).or_default().push(record.clone());
        drop(waiters);
        let wake = running.wait(time);
        let mut waiters = self.0.borrow_mut();
        if let Some(list) = waiters.get_mut(&inode) {
            list.retain(|other| !Rc::ptr_eq(other, record));
            if list.is_empty() {
                waiters.remove(&inode);
            }
        }
        wake
    }

    /// Bytes of the inode may have become free.
    pub fn wake(&self, inode: InodeId) {
        if let Some(list) = self.0.borrow().get(&inode) {
            list.iter().for_each(|record| record.retry());
        }
    }

    /// Bytes of any inode may have become free.
    pub fn wake_all(&self) {
        let waiters = self.0.borrow();
        waiters.values().flatten().for_each(|record| record.retry());
    }
}
