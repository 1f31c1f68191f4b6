//! Reading a directory from any of its cookies.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::sys;

/// Length of `struct linux_dirent64` before the name: d_ino, d_off, d_reclen, d_type.
const RECORD_HEADER: usize = 19;
/// Where d_type is.
const KIND: usize = 18;

/// An open directory. Requests may come in any order and at the same time: one at a time uses the
/// position.
#[derive(Debug)]
pub struct DirectoryStream {
    fd: OwnedFd,
    position: Mutex<u64>,
}

/// One entry as the kernel gives it.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The inode's number; below a mount point that of the covered directory.
    pub inode: u64,
    /// The cookie of the next entry.
    pub next: u64,
    /// `DT_*`, `DT_UNKNOWN` where the file system does not say.
    pub kind: u8,
    /// The name, without its NUL.
    pub name: &'a [u8],
}

impl DirectoryStream {
    /// A stream over a directory opened for reading.
    pub fn new(fd: OwnedFd) -> DirectoryStream {
        DirectoryStream {
            fd,
            position: Mutex::new(0),
        }
    }

    /// Reads whole entries from the cookie `offset` on, 0 for the beginning, into `buffer`, and
    /// returns how many bytes they fill: 0 at the end. Errors: EINVAL for an unknown cookie or a
    /// buffer too small for the next entry.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        if *position != offset || offset == 0 {
            // Seeking to the beginning also makes new entries visible, as rewinddir(3) does.
            let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
            // Until the seek has succeeded the position is unknown.
            *position = u64::MAX;
            lseek(&self.fd, offset, Whence::SeekSet)?;
        }
        *position = u64::MAX;
        let length = sys::getdents(self.fd.as_fd(), buffer)?;
        *position = entries(&buffer[..length])
            .last()
            .map_or(offset, |entry| entry.next);
        Ok(length)
    }
}

impl AsFd for DirectoryStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The entries that [`DirectoryStream::read`] has read.
pub fn entries(mut records: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; RECORD_HEADER] = records.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([header[16], header[17]]));
        let name = CStr::from_bytes_until_nul(records.get(RECORD_HEADER..length)?).ok()?;
        let entry = Entry {
            inode: word(header, 0),
            next: word(header, 8),
            kind: header[KIND],
            name: name.to_bytes(),
        };
        records = &records[length..];
        Some(entry)
    })
}

/// Removes entries from what [`DirectoryStream::read`] has read, or changes their kinds, as `keep`
/// decides by the name and its `DT_*`. Returns how many bytes remain.
pub fn edit(records: &mut [u8], mut keep: impl FnMut(&CStr, u8) -> Option<u8>) -> usize {
    let (mut from, mut to) = (0, 0);
    while let Some(record) = record_at(records, from) {
        let length = record.len();
        let kind = CStr::from_bytes_until_nul(&record[RECORD_HEADER..])
            .ok()
            .and_then(|name| keep(name, record[KIND]));
        if let Some(kind) = kind {
            record[KIND] = kind;
            records.copy_within(from..from + length, to);
            to += length;
        }
        from += length;
    }
    to
}

fn record_at(records: &mut [u8], at: usize) -> Option<&mut [u8]> {
    let rest = records.get_mut(at..)?;
    let header: &[u8; RECORD_HEADER] = rest.first_chunk()?;
    let length = usize::from(u16::from_ne_bytes([header[16], header[17]]));
    rest.get_mut(..length.max(RECORD_HEADER))
}

fn word(header: &[u8; RECORD_HEADER], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[at..at + 8]);
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn stream(path: &std::path::Path) -> DirectoryStream {
        DirectoryStream::new(std::fs::File::open(path).unwrap().into())
    }

    #[test]
    fn every_entry_comes_once_from_any_split() {
        let dir = tempfile::tempdir().unwrap();
        let mut expected: BTreeSet<Vec<u8>> = (0..300).map(|i| format!("f{i}").into()).collect();
        for name in &expected {
            let name = String::from_utf8(name.clone()).unwrap();
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        expected.extend([b".".to_vec(), b"..".to_vec()]);
        for size in [32, 100, 4096] {
            let stream = stream(dir.path());
            let mut seen = BTreeSet::new();
            let mut offset = 0;
            let mut buffer = vec![0; size];
            loop {
                let length = stream.read(offset, &mut buffer).unwrap();
                let Some(last) = entries(&buffer[..length]).last() else {
                    break;
                };
                offset = last.next;
                for entry in entries(&buffer[..length]) {
                    assert!(seen.insert(entry.name.to_vec()), "{entry:?} came twice");
                }
            }
            assert_eq!(seen, expected);
        }
    }

    #[test]
    fn a_cookie_survives_reopening() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..50 {
            std::fs::write(dir.path().join(format!("f{i}")), "").unwrap();
        }
        let mut buffer = vec![0; 65536];
        let length = stream(dir.path()).read(0, &mut buffer).unwrap();
        let all: Vec<(u64, Vec<u8>)> = entries(&buffer[..length])
            .map(|entry| (entry.next, entry.name.to_vec()))
            .collect();
        let mut rest = vec![0; 65536];
        let length = stream(dir.path()).read(all[19].0, &mut rest).unwrap();
        let again: Vec<Vec<u8>> = entries(&rest[..length])
            .map(|entry| entry.name.to_vec())
            .collect();
        let expected: Vec<Vec<u8>> = all[20..].iter().map(|(_, name)| name.clone()).collect();
        assert_eq!(again, expected);
    }

    #[test]
    fn what_is_taken_out_leaves_the_rest_whole() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "longer-than-that", "b", "hidden", "last"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let mut buffer = vec![0; 4096];
        let length = stream(dir.path()).read(0, &mut buffer).unwrap();
        let all: Vec<(Vec<u8>, u64, u64)> = entries(&buffer[..length])
            .map(|entry| (entry.name.to_vec(), entry.inode, entry.next))
            .collect();
        let left = edit(&mut buffer[..length], |name, kind| match name.to_bytes() {
            b"hidden" | b"." => None,
            b"b" => Some(libc::DT_LNK),
            _ => Some(kind),
        });
        let mut expected = all;
        expected.retain(|entry| !matches!(&entry.0[..], b"hidden" | b"."));
        let edited: Vec<(Vec<u8>, u64, u64)> = entries(&buffer[..left])
            .map(|entry| (entry.name.to_vec(), entry.inode, entry.next))
            .collect();
        assert_eq!(edited, expected);
        for entry in entries(&buffer[..left]) {
            assert_eq!(entry.kind == libc::DT_LNK, entry.name == b"b", "{entry:?}");
        }
        assert_eq!(edit(&mut buffer[..left], |_, _| None), 0);
        assert_eq!(edit(&mut [0; 8], |_, kind| Some(kind)), 0);
    }

    #[test]
    fn a_buffer_too_small_is_an_error_not_the_end() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(stream(dir.path()).read(0, &mut [0; 8]), Err(Errno::EINVAL));
    }
}
