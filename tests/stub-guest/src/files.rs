//! Whole files and paths, as a person thinks of them; fids are allocated and clunked on the way.

use std::io::{Read, Write};

use protocol::{MAX_WALK, NONUNAME, Rgetattr, Rread, Twrite, getattr, open, unlink};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::messages::Entry;

/// How to mount: what Tversion and Tattach say.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The msize to ask for.
    pub msize: u32,
    /// The user's name.
    pub uname: String,
    /// The tree: a path below the share, or nothing.
    pub aname: String,
    /// The user's number.
    pub uid: u32,
}

impl Default for Attach {
    /// What Linux's mount sends with the largest msize of its virtio transport.
    fn default() -> Self {
        Attach {
            msize: 512_000,
            uname: "nobody".into(),
            aname: String::new(),
            uid: NONUNAME,
        }
    }
}

impl Client {
    /// Tversion and Tattach. Returns the fid of the root.
    pub fn mount(&mut self, attach: &Attach) -> Result<u32> {
        let agreed = self.version(attach.msize, "9P2000.L")?;
        if agreed.version != b"9P2000.L" || agreed.msize > attach.msize {
            let version = String::from_utf8_lossy(&agreed.version).into_owned();
            return Err(Error::Version {
                version,
                msize: agreed.msize,
            });
        }
        self.next_fid = 0;
        self.free_fids.clear();
        let root = self.alloc_fid();
        self.attach(root, &attach.uname, &attach.aname, attach.uid)?;
        Ok(root)
    }

    /// A fid that is not in use.
    pub fn alloc_fid(&mut self) -> u32 {
        self.free_fids.pop().unwrap_or_else(|| {
            self.next_fid += 1;
            self.next_fid - 1
        })
    }

    /// Clunks a fid and lets it be allocated again. Linux's client holds a fid as gone, whatever
    /// the reply says.
    pub fn close(&mut self, fid: u32) -> Result<()> {
        self.free_fids.push(fid);
        self.clunk(fid)
    }

    /// A fresh fid for the file at `path` (components joined by `/`) below `from`.
    pub fn walk_path(&mut self, from: u32, path: &str) -> Result<u32> {
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        let fid = self.alloc_fid();
        let mut parts = names.chunks(MAX_WALK);
        let mut start = from;
        let mut walked = 0;
        loop {
            let part = parts.next().unwrap_or(&[]);
            let qids = self.walk(start, fid, part);
            let whole = matches!(&qids, Ok(qids) if qids.len() == part.len());
            if !whole {
                if start == fid {
                    self.close(fid)?;
                } else {
                    self.free_fids.push(fid);
                }
                return Err(Error::PartialWalk(walked + qids?.len()));
            }
            (start, walked) = (fid, walked + part.len());
            if walked == names.len() {
                return Ok(fid);
            }
        }
    }

    /// A fresh fid for the directory of `path`, and the last component.
    pub fn walk_parent<'a>(&mut self, from: u32, path: &'a str) -> Result<(u32, &'a str)> {
        let path = path.trim_end_matches('/');
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.walk_path(from, parent)?, name))
    }

    /// Runs `work` on a fresh fid for `path` and clunks it.
    pub fn with_path<T>(
        &mut self,
        from: u32,
        path: &str,
        work: impl FnOnce(&mut Client, u32) -> Result<T>,
    ) -> Result<T> {
        let fid = self.walk_path(from, path)?;
        let result = work(self, fid);
        let closed = self.close(fid);
        result.and_then(|value| closed.map(|()| value))
    }

    /// Runs `work` on a fresh fid for the directory of `path` and the last component.
    pub fn with_parent<T>(
        &mut self,
        from: u32,
        path: &str,
        work: impl FnOnce(&mut Client, u32, &str) -> Result<T>,
    ) -> Result<T> {
        let (fid, name) = self.walk_parent(from, path)?;
        let result = work(self, fid, name);
        let closed = self.close(fid);
        result.and_then(|value| closed.map(|()| value))
    }

    /// The attributes of the file at `path`.
    pub fn stat(&mut self, from: u32, path: &str) -> Result<Rgetattr> {
        self.with_path(from, path, |client, fid| client.getattr(fid, getattr::ALL))
    }

    /// The content of the file at `path`.
    pub fn read_file(&mut self, from: u32, path: &str) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        self.read_file_to(from, path, &mut content)?;
        Ok(content)
    }

    /// Copies the file at `path` to `out`, in pieces as large as msize allows.
    pub fn read_file_to(&mut self, from: u32, path: &str, out: &mut impl Write) -> Result<u64> {
        self.with_path(from, path, |client, fid| {
            client.lopen(fid, open::RDONLY)?;
            let count = client.msize() - Rread::PAYLOAD as u32;
            let mut offset = 0;
            loop {
                let part = client.read(fid, offset, count)?;
                if part.is_empty() {
                    return Ok(offset);
                }
                out.write_all(&part)
                    .map_err(Error::io("output not written"))?;
                offset += part.len() as u64;
            }
        })
    }

    /// Makes or overwrites the file at `path` with `content`.
    pub fn write_file(&mut self, from: u32, path: &str, content: &[u8]) -> Result<()> {
        self.write_file_from(from, path, &mut &content[..])
            .map(drop)
    }

    /// Makes or overwrites the file at `path` with what `input` holds.
    pub fn write_file_from(&mut self, from: u32, path: &str, input: &mut impl Read) -> Result<u64> {
        self.with_parent(from, path, |client, fid, name| {
            let flags = open::WRONLY | open::TRUNC;
            client.lcreate(
                fid,
                name,
                flags | open::CREATE,
                0o644,
                nix::unistd::getgid().as_raw(),
            )?;
            let mut piece = vec![0; client.msize() as usize - Twrite::PAYLOAD];
            let mut offset = 0;
            loop {
                let count = input
                    .read(&mut piece)
                    .map_err(Error::io("input not read"))?;
                if count == 0 {
                    return Ok(offset);
                }
                client.write_all(fid, offset, &piece[..count])?;
                offset += count as u64;
            }
        })
    }

    /// Writes all of `data` at `offset` of an open fid.
    pub fn write_all(&mut self, fid: u32, offset: u64, data: &[u8]) -> Result<()> {
        let largest = self.msize() as usize - Twrite::PAYLOAD;
        let mut done = 0;
        while done < data.len() {
            let piece = &data[done..data.len().min(done + largest)];
            match self.write(fid, offset + done as u64, piece)? {
                0 => {
                    return Err(Error::WrongCount {
                        count: 0,
                        limit: piece.len(),
                    });
                }
                count => done += count as usize,
            }
        }
        Ok(())
    }

    /// The entries of the directory at `path`, with `.` and `..` if the server sends them.
    pub fn read_dir(&mut self, from: u32, path: &str) -> Result<Vec<Entry>> {
        self.with_path(from, path, |client, fid| {
            client.lopen(fid, open::RDONLY | open::DIRECTORY)?;
            let count = client.msize() - Rread::PAYLOAD as u32;
            client.list(fid, count)
        })
    }

    /// All entries of an open directory, read in pieces of `count` bytes.
    pub fn list(&mut self, fid: u32, count: u32) -> Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let offset = entries.last().map_or(0, |last| last.offset);
            let part = self.readdir(fid, offset, count)?;
            if part.is_empty() {
                return Ok(entries);
            }
            entries.extend(part);
        }
    }

    /// Makes a directory.
    pub fn make_dir(&mut self, from: u32, path: &str) -> Result<()> {
        let gid = nix::unistd::getgid().as_raw();
        self.with_parent(from, path, |client, fid, name| {
            client.mkdir(fid, name, 0o755, gid).map(drop)
        })
    }

    /// Removes a file or an empty directory.
    pub fn remove_path(&mut self, from: u32, path: &str) -> Result<()> {
        self.with_parent(from, path, |client, fid, name| {
            match client.unlinkat(fid, name, 0) {
                Err(Error::Errno(code)) if code == libc::EISDIR as u32 => {
                    client.unlinkat(fid, name, unlink::REMOVEDIR)
                }
                result => result,
            }
        })
    }

    /// Moves a file or directory to another path.
    pub fn rename_path(&mut self, from: u32, old: &str, new: &str) -> Result<()> {
        self.with_parent(from, old, |client, olddfid, oldname| {
            client.with_parent(from, new, |client, newdfid, newname| {
                client.renameat(olddfid, oldname, newdfid, newname)
            })
        })
    }
}
