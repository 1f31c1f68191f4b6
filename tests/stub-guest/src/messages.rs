//! One method for each message of 9P2000.L: send it, wait, return what the reply holds.
//!
//! Names may be `&str`, `String` or any bytes: Linux sends bytes. An Rlerror is
//! [`Error::Errno`].

use protocol::*;

use crate::client::{Client, twrite};
use crate::error::{Error, Result};

/// What Rversion holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The agreed size of a message in bytes.
    pub msize: u32,
    /// The agreed dialect, or "unknown".
    pub version: Vec<u8>,
}

/// An entry of Rreaddir.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file's qid.
    pub qid: Qid,
    /// Cookie of the entry after this one.
    pub offset: u64,
    /// DT_*.
    pub kind: u8,
    /// The file's name.
    pub name: Vec<u8>,
}

/// A lock as Tlock and Tgetlock describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// `lock::RDLCK`, `WRLCK` or `UNLCK`.
    pub kind: u8,
    /// First byte.
    pub start: u64,
    /// Number of bytes; 0 means up to the end.
    pub length: u64,
    /// The owner's process in the guest.
    pub proc_id: u32,
    /// The guest's name.
    pub client_id: Vec<u8>,
}

impl Lock {
    /// A lock of the whole file for process 1 of "stub".
    pub fn whole(kind: u8) -> Lock {
        Lock {
            kind,
            start: 0,
            length: 0,
            proc_id: 1,
            client_id: b"stub".to_vec(),
        }
    }
}

/// Sends a message and takes the value out of its reply.
macro_rules! exchange {
    ($client:expr, $request:expr, $variant:ident($reply:pat) => $value:expr) => {{
        let request = $request;
        let answer = $client.call(&request)?;
        let result = match answer.message()? {
            Rmessage::$variant($reply) => Ok($value),
            other => Err(Error::WrongReply {
                request: request.kind(),
                reply: other.kind(),
            }),
        };
        $client.recycle(answer);
        result
    }};
}

impl Client {
    /// Tversion. The agreed msize is in force if the dialect was accepted.
    pub fn version(&mut self, msize: u32, version: impl AsRef<[u8]>) -> Result<Version> {
        let request = Tmessage::Version(Tversion {
            msize,
            version: version.as_ref(),
        });
        let agreed = exchange!(self, request, Version(r) => Version { msize: r.msize, version: r.version.to_vec() })?;
        if agreed.version != b"unknown" {
            self.msize = agreed.msize;
        }
        Ok(agreed)
    }

    /// Tauth.
    pub fn auth(
        &mut self,
        afid: u32,
        uname: &str,
        aname: impl AsRef<[u8]>,
        n_uname: u32,
    ) -> Result<Qid> {
        let request = Tauth {
            afid,
            uname: uname.as_bytes(),
            aname: aname.as_ref(),
            n_uname,
        };
        exchange!(self, Tmessage::Auth(request), Auth(r) => r.aqid)
    }

    /// Tattach without authentication.
    pub fn attach(
        &mut self,
        fid: u32,
        uname: &str,
        aname: impl AsRef<[u8]>,
        n_uname: u32,
    ) -> Result<Qid> {
        let request = Tattach {
            fid,
            afid: NOFID,
            uname: uname.as_bytes(),
            aname: aname.as_ref(),
            n_uname,
        };
        exchange!(self, Tmessage::Attach(request), Attach(r) => r.qid)
    }

    /// Tflush of the request with this tag.
    pub fn flush(&mut self, oldtag: u16) -> Result<()> {
        exchange!(self, Tmessage::Flush(Tflush { oldtag }), Flush(_) => ())
    }

    /// Twalk. Fewer qids than names: newfid was not made.
    pub fn walk<N: AsRef<[u8]>>(&mut self, fid: u32, newfid: u32, names: &[N]) -> Result<Vec<Qid>> {
        let mut list = Names::new();
        for name in names {
            if !list.push(name.as_ref()) {
                return Err(Error::WrongCount {
                    count: names.len(),
                    limit: MAX_WALK,
                });
            }
        }
        exchange!(self, Tmessage::Walk(Twalk { fid, newfid, names: list }), Walk(r) => r.qids.to_vec())
    }

    /// Tlopen. `flags` are the wire's, from [`protocol::open`].
    pub fn lopen(&mut self, fid: u32, flags: u32) -> Result<Rlopen> {
        exchange!(self, Tmessage::Lopen(Tlopen { fid, flags }), Lopen(r) => r)
    }

    /// Tlcreate: the directory's fid becomes the open file.
    pub fn lcreate(
        &mut self,
        fid: u32,
        name: impl AsRef<[u8]>,
        flags: u32,
        mode: u32,
        gid: u32,
    ) -> Result<Rlcreate> {
        let request = Tlcreate {
            fid,
            name: name.as_ref(),
            flags,
            mode,
            gid,
        };
        exchange!(self, Tmessage::Lcreate(request), Lcreate(r) => r)
    }

    /// Tread: up to `count` bytes from `offset`.
    pub fn read(&mut self, fid: u32, offset: u64, count: u32) -> Result<Vec<u8>> {
        let reply = self.call(&Tmessage::Read(Tread { fid, offset, count }))?;
        reply.message()?;
        let payload = reply.payload().to_vec();
        self.recycle(reply);
        within(payload, count)
    }

    /// Twrite: returns how many bytes were taken.
    pub fn write(&mut self, fid: u32, offset: u64, data: &[u8]) -> Result<u32> {
        let tag = self.submit(&twrite(fid, offset, data), data)?;
        let reply = self.wait(tag)?;
        let count = match reply.message()? {
            Rmessage::Write(r) => r.count,
            other => {
                return Err(Error::WrongReply {
                    request: kind::TWRITE,
                    reply: other.kind(),
                });
            }
        };
        self.recycle(reply);
        if count as usize > data.len() {
            return Err(Error::WrongCount {
                count: count as usize,
                limit: data.len(),
            });
        }
        Ok(count)
    }

    /// Tclunk.
    pub fn clunk(&mut self, fid: u32) -> Result<()> {
        exchange!(self, Tmessage::Clunk(Tclunk { fid }), Clunk(_) => ())
    }

    /// Tremove: unlinks the file and clunks the fid.
    pub fn remove(&mut self, fid: u32) -> Result<()> {
        exchange!(self, Tmessage::Remove(Tremove { fid }), Remove(_) => ())
    }

    /// Tstatfs.
    pub fn statfs(&mut self, fid: u32) -> Result<Rstatfs> {
        exchange!(self, Tmessage::Statfs(Tstatfs { fid }), Statfs(r) => r)
    }

    /// Tgetattr with a mask from [`protocol::getattr`].
    pub fn getattr(&mut self, fid: u32, mask: u64) -> Result<Rgetattr> {
        exchange!(self, Tmessage::Getattr(Tgetattr { fid, mask }), Getattr(r) => r)
    }

    /// Tsetattr.
    pub fn setattr(&mut self, request: Tsetattr) -> Result<()> {
        exchange!(self, Tmessage::Setattr(request), Setattr(_) => ())
    }

    /// Treaddir: whole entries of up to `count` bytes, from the cookie `offset` on.
    pub fn readdir(&mut self, fid: u32, offset: u64, count: u32) -> Result<Vec<Entry>> {
        let reply = self.call(&Tmessage::Readdir(Treaddir { fid, offset, count }))?;
        reply.message()?;
        if reply.payload().len() > count as usize {
            return Err(Error::WrongCount {
                count: reply.payload().len(),
                limit: count as usize,
            });
        }
        let mut entries = Vec::new();
        for entry in DirEntry::decode_all(reply.payload()) {
            let entry = entry?;
            let (qid, offset, kind) = (entry.qid, entry.offset, entry.kind);
            entries.push(Entry {
                qid,
                offset,
                kind,
                name: entry.name.to_vec(),
            });
        }
        self.recycle(reply);
        Ok(entries)
    }

    /// Tfsync; `datasync` not 0 means that only the data matter.
    pub fn fsync(&mut self, fid: u32, datasync: u32) -> Result<()> {
        exchange!(self, Tmessage::Fsync(Tfsync { fid, datasync }), Fsync(_) => ())
    }

    /// Tmkdir.
    pub fn mkdir(&mut self, dfid: u32, name: impl AsRef<[u8]>, mode: u32, gid: u32) -> Result<Qid> {
        exchange!(self, Tmessage::Mkdir(Tmkdir { dfid, name: name.as_ref(), mode, gid }), Mkdir(r) => r.qid)
    }

    /// Tmknod. `mode` has the file type's bits, `device` is major and minor.
    pub fn mknod(
        &mut self,
        dfid: u32,
        name: impl AsRef<[u8]>,
        mode: u32,
        device: (u32, u32),
        gid: u32,
    ) -> Result<Qid> {
        let (major, minor) = device;
        let request = Tmknod {
            dfid,
            name: name.as_ref(),
            mode,
            major,
            minor,
            gid,
        };
        exchange!(self, Tmessage::Mknod(request), Mknod(r) => r.qid)
    }

    /// Tsymlink.
    pub fn symlink(
        &mut self,
        dfid: u32,
        name: impl AsRef<[u8]>,
        target: impl AsRef<[u8]>,
        gid: u32,
    ) -> Result<Qid> {
        let request = Tsymlink {
            dfid,
            name: name.as_ref(),
            target: target.as_ref(),
            gid,
        };
        exchange!(self, Tmessage::Symlink(request), Symlink(r) => r.qid)
    }

    /// Treadlink.
    pub fn readlink(&mut self, fid: u32) -> Result<Vec<u8>> {
        exchange!(self, Tmessage::Readlink(Treadlink { fid }), Readlink(r) => r.target.to_vec())
    }

    /// Tlink: another name for the file of `fid`.
    pub fn link(&mut self, dfid: u32, fid: u32, name: impl AsRef<[u8]>) -> Result<()> {
        exchange!(self, Tmessage::Link(Tlink { dfid, fid, name: name.as_ref() }), Link(_) => ())
    }

    /// Trename: moves the file of `fid`.
    pub fn rename(&mut self, fid: u32, dfid: u32, name: impl AsRef<[u8]>) -> Result<()> {
        exchange!(self, Tmessage::Rename(Trename { fid, dfid, name: name.as_ref() }), Rename(_) => ())
    }

    /// Trenameat.
    pub fn renameat(
        &mut self,
        olddirfid: u32,
        oldname: impl AsRef<[u8]>,
        newdirfid: u32,
        newname: impl AsRef<[u8]>,
    ) -> Result<()> {
        let (oldname, newname) = (oldname.as_ref(), newname.as_ref());
        let request = Trenameat {
            olddirfid,
            oldname,
            newdirfid,
            newname,
        };
        exchange!(self, Tmessage::Renameat(request), Renameat(_) => ())
    }

    /// Tunlinkat; `flags` is 0 or `unlink::REMOVEDIR`.
    pub fn unlinkat(&mut self, dirfid: u32, name: impl AsRef<[u8]>, flags: u32) -> Result<()> {
        exchange!(self, Tmessage::Unlinkat(Tunlinkat { dirfid, name: name.as_ref(), flags }), Unlinkat(_) => ())
    }

    /// Txattrwalk: newfid reads the attribute, or the list of names if `name` is empty. Returns
    /// the length in bytes.
    pub fn xattrwalk(&mut self, fid: u32, newfid: u32, name: impl AsRef<[u8]>) -> Result<u64> {
        exchange!(self, Tmessage::Xattrwalk(Txattrwalk { fid, newfid, name: name.as_ref() }), Xattrwalk(r) => r.size)
    }

    /// Txattrcreate: the fid takes `size` bytes, and its clunk sets the attribute.
    pub fn xattrcreate(
        &mut self,
        fid: u32,
        name: impl AsRef<[u8]>,
        size: u64,
        flags: u32,
    ) -> Result<()> {
        let request = Txattrcreate {
            fid,
            name: name.as_ref(),
            size,
            flags,
        };
        exchange!(self, Tmessage::Xattrcreate(request), Xattrcreate(_) => ())
    }

    /// Tlock. Returns `lock::SUCCESS`, `BLOCKED`, `ERROR` or `GRACE`.
    pub fn lock(&mut self, fid: u32, flags: u32, lock: &Lock) -> Result<u8> {
        exchange!(self, tlock(fid, flags, lock), Lock(r) => r.status)
    }

    /// Tgetlock: a lock that is in the way of this one, or kind UNLCK.
    pub fn getlock(&mut self, fid: u32, lock: &Lock) -> Result<Lock> {
        let Lock {
            kind,
            start,
            length,
            proc_id,
            ref client_id,
        } = *lock;
        let request = Tmessage::Getlock(Tgetlock {
            fid,
            kind,
            start,
            length,
            proc_id,
            client_id,
        });
        exchange!(self, request, Getlock(r) => Lock {
            kind: r.kind,
            start: r.start,
            length: r.length,
            proc_id: r.proc_id,
            client_id: r.client_id.to_vec(),
        })
    }
}

/// A Tlock, for callers that submit it themselves.
pub fn tlock(fid: u32, flags: u32, lock: &Lock) -> Tmessage<'_> {
    let Lock {
        kind,
        start,
        length,
        proc_id,
        ref client_id,
    } = *lock;
    Tmessage::Lock(Tlock {
        fid,
        kind,
        flags,
        start,
        length,
        proc_id,
        client_id,
    })
}

fn within(payload: Vec<u8>, count: u32) -> Result<Vec<u8>> {
    if payload.len() > count as usize {
        return Err(Error::WrongCount {
            count: payload.len(),
            limit: count as usize,
        });
    }
    Ok(payload)
}
