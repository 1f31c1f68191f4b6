//! The entries in the payload of an Rreaddir.

use crate::error::{DecodeError, EncodeError};
use crate::qid::Qid;
use crate::wire::{Cursor, Field, record};

record! {
    /// One entry of a directory: `qid[13] offset[8] type[1] name[s]`. An Rreaddir contains only
    /// whole entries, and none at the end of the directory.
    DirEntry<'a> {
        /// The file's qid.
        qid: Qid,
        /// Where the next entry begins: a cookie for the next Treaddir.
        offset: u64,
        /// What kind of file it is, as `DT_*` of readdir(3).
        kind: u8,
        /// The file's name.
        name: &'a [u8],
    }
}

impl<'a> DirEntry<'a> {
    /// How many bytes [`DirEntry::encode`] appends.
    #[inline]
    pub fn encoded_len(&self) -> usize {
        Self::MIN + self.name.len()
    }

    /// Appends the entry. Errors: [`EncodeError::StringTooLong`], and `out` is unchanged.
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let start = out.len();
        Field::encode(self, out).inspect_err(|_| out.truncate(start))
    }

    /// The entries of a payload. After an error there are no more.
    pub fn decode_all(
        payload: &'a [u8],
    ) -> impl Iterator<Item = Result<DirEntry<'a>, DecodeError>> {
        let mut cursor = Cursor(payload);
        std::iter::from_fn(move || {
            if cursor.0.is_empty() {
                return None;
            }
            let entry = Field::decode(&mut cursor);
            if entry.is_err() {
                cursor.0 = &[];
            }
            Some(entry)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qid::QidKind;

    fn entry(name: &[u8]) -> DirEntry<'_> {
        DirEntry {
            qid: Qid {
                kind: QidKind::DIR,
                version: 0x0102_0304,
                path: 0x0506_0708_090A_0B0C,
            },
            offset: 0x1112_1314_1516_1718,
            kind: 4,
            name,
        }
    }

    #[test]
    fn an_entry_lies_as_the_protocol_says() {
        let mut out = Vec::new();
        entry(b"ab").encode(&mut out).expect("fits");
        let bytes = b"\x80\x04\x03\x02\x01\x0C\x0B\x0A\x09\x08\x07\x06\x05\
                      \x18\x17\x16\x15\x14\x13\x12\x11\x04\x02\0ab";
        assert_eq!(out, bytes);
        assert_eq!(entry(b"ab").encoded_len(), bytes.len());
    }

    #[test]
    fn a_payload_ends_at_its_first_wrong_entry() {
        let mut payload = Vec::new();
        for name in [b"a".as_slice(), b"", b"ccc"] {
            entry(name).encode(&mut payload).expect("fits");
        }
        let whole: Vec<_> = DirEntry::decode_all(&payload).collect();
        assert_eq!(whole, [Ok(entry(b"a")), Ok(entry(b"")), Ok(entry(b"ccc"))]);
        payload.truncate(payload.len() - 1);
        let cut: Vec<_> = DirEntry::decode_all(&payload).collect();
        assert_eq!(
            cut,
            [
                Ok(entry(b"a")),
                Ok(entry(b"")),
                Err(DecodeError::StringPastEnd)
            ]
        );
    }

    #[test]
    fn a_name_that_is_too_long_changes_nothing() {
        let name = vec![b'x'; 65536];
        let mut out = b"before".to_vec();
        assert_eq!(
            entry(&name).encode(&mut out),
            Err(EncodeError::StringTooLong(65536))
        );
        assert_eq!(out, b"before");
        entry(&name[1..]).encode(&mut out).expect("fits");
        assert_eq!(out.len(), 6 + entry(&name[1..]).encoded_len());
    }
}
