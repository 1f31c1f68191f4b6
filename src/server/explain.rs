//! What the log says of requests that fail: with debug each of them, and once in a session what the
//! operator can do about it.

use std::cell::Cell;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::readlink;
use protocol::Tmessage;

use super::Server;
use super::call::Actor;
use super::placement::Cost;
use crate::export::Stat;

/// What was said in this session.
#[derive(Default)]
pub struct Explained {
    readonly: Cell<bool>,
    removed: Cell<bool>,
}

impl Explained {
    /// Nothing was said.
    pub fn forget(&self) {
        self.readonly.set(false);
        self.removed.set(false);
    }
}

impl Server {
    /// Call it for each request that is answered with an error.
    #[cold]
    pub(super) fn explain(&self, tag: u16, message: &Tmessage<'_>, errno: Errno) {
        if log::log_enabled!(log::Level::Debug) {
            let place = self.place_of(message);
            log::debug!("tag {tag}: {message:?}{place}: {errno}");
        }
        match errno {
            Errno::EROFS => self.explain_readonly(),
            // A name that is not there is no reason to ask: guests look for many.
            Errno::ENOENT if !matches!(message, Tmessage::Walk(_)) => self.explain_removed(),
            _ => {}
        }
    }

    /// Where the file of a message's fid is now.
    fn place_of(&self, message: &Tmessage<'_>) -> String {
        let path = || {
            let fid = self.session.fids.get(message.fid()?).ok()?;
            let node = fid.target().ok()?.inode().peek()?;
            // The kernel answers without the file system, which may hang.
            readlink(node.proc_path().as_c_str()).ok()
        };
        match path() {
            Some(path) => format!(" at \"{}\"", path.as_bytes().escape_ascii()),
            None => String::new(),
        }
    }

    fn explain_readonly(&self) {
        if self.session.explained.readonly.replace(true) {
            return;
        }
        match self.export.writable() {
            Err(_) => log::info!(
                "the guest tried to change the share, which is served with --readonly: it got EROFS"
            ),
            Ok(()) => log::warn!(
                "the guest tried to change the share, where it is mounted read-only on the host: it \
                 got EROFS; mount it writable before the daemon starts, in a systemd unit with \
                 BindPaths=, or give --readonly"
            ),
        }
    }

    /// Tells once if the share's directory is no longer there.
    pub(super) fn explain_removed(&self) {
        if self.session.explained.removed.get() {
            return;
        }
        let root = self.export.root();
        let mut stat = Stat::default();
        let stated = self.call(root.id().device, Cost::Held, Actor::Daemon, || {
            root.stat_into(&mut stat)
        });
        if stated.is_ok() && stat.0.stx_nlink == 0 {
            self.session.explained.removed.set(true);
            log::warn!(
                "the shared directory has been removed on the host, and the guest has nothing \
                 else, even if another has its name now: restart the daemon"
            );
        }
    }
}
