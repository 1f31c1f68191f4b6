//! The table of messages: a line of fields each, from which type, decoding and encoding follow.
//!
//! Source: Linux's net/9p and diod's description of 9P2000.L; version, auth, attach, flush, walk,
//! read, write, clunk and remove are those of 9P2000. A message's reply has its number plus 1.
//! Messages with a payload (Twrite, Rread, Rreaddir) hold its count only: the bytes follow the
//! fields, and may stay where they are.

use crate::wire::{
    Cursor, DecodeError, EncodeError, Field, HEADER_LEN, Header, Names, Qid, Qids, Time,
};

/// How long the frame of a message is up to its payload, if its fields are integers.
trait Fixed<'a> {
    const LEN: usize;
}

macro_rules! messages {
    (
        $(#[$enum_doc:meta])*
        $enum:ident $kinds:ident: $(
            $(#[$doc:meta])*
            $number:literal $kind:ident $variant:ident
            $name:ident $(<$lifetime:lifetime>)? { $($field:ident: $type:ty),* $(,)? }
            $(payload $count:ident)?;
        )+
    ) => {
        pub(crate) mod $kinds {
            $($(#[$doc])* pub const $kind: u8 = $number;)+
        }

        $(#[$enum_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        // A message lives on the stack of the one who handles it, and is never stored.
        #[allow(clippy::large_enum_variant)]
        pub enum $enum<'a> {
            $($(#[$doc])* $variant($name $(<$lifetime>)?),)+
        }

        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            #[allow(missing_docs)] // The fields are the protocol's own, in its order.
            pub struct $name $(<$lifetime>)? { $(pub $field: $type),* }

            impl<'a> Field<'a> for $name $(<$lifetime>)? {
                #[inline]
                #[allow(unused_variables)] // Some messages have no field.
                fn decode(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
                    Ok($name { $($field: Field::decode(cursor)?),* })
                }

                #[inline]
                #[allow(unused_variables)]
                fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
                    $(self.$field.encode(out)?;)*
                    Ok(())
                }
            }

            impl<'a> Fixed<'a> for $name $(<$lifetime>)? {
                const LEN: usize = HEADER_LEN $(+ size_of::<$type>())*;
            }

            $(
                impl $name {
                    /// Where in the frame the payload begins.
                    pub const PAYLOAD: usize = <$name as Fixed<'static>>::LEN;

                    #[inline]
                    fn payload(&self) -> u32 {
                        self.$count
                    }
                }
            )?
        )+

        impl<'a> $enum<'a> {
            /// Decodes a whole frame. Errors: [`DecodeError`] for one that is anything but
            /// exactly one message.
            pub fn decode(frame: &'a [u8]) -> Result<(u16, Self), DecodeError> {
                Self::decode_head(frame, frame.len())
            }

            /// Decodes a frame of `len` bytes, of which `head` are the first. `head` may end where
            /// the payload begins, or anywhere behind; a message without payload must be whole.
            pub fn decode_head(head: &'a [u8], len: usize) -> Result<(u16, Self), DecodeError> {
                let header = Header::decode(head)?;
                if header.size as usize != len || head.len() > len {
                    return Err(DecodeError::Size { size: header.size, len });
                }
                let mut cursor = Cursor(&head[HEADER_LEN..]);
                let message = match header.kind {
                    $($number => {
                        let message = $name::decode(&mut cursor)?;
                        // What lies behind the fields: nothing, or the payload.
                        let behind = len - (head.len() - cursor.0.len());
                        messages!(@check message behind $($count)?);
                        $enum::$variant(message)
                    })+
                    kind => return Err(DecodeError::UnknownType(kind)),
                };
                Ok((header.tag, message))
            }

            /// Appends the message to `out`, without its payload, which the size field counts.
            /// Errors: [`EncodeError`], and `out` is unchanged.
            pub fn encode(&self, tag: u16, out: &mut Vec<u8>) -> Result<(), EncodeError> {
                let start = out.len();
                self.encode_frame(start, tag, out).inspect_err(|_| out.truncate(start))
            }

            fn encode_frame(
                &self,
                start: usize,
                tag: u16,
                out: &mut Vec<u8>,
            ) -> Result<(), EncodeError> {
                out.extend_from_slice(&[0; 4]);
                self.kind().encode(out)?;
                tag.encode(out)?;
                match self {
                    $($enum::$variant(message) => message.encode(out)?,)+
                }
                let size = out.len() - start + self.payload_len();
                let size = u32::try_from(size).map_err(|_| EncodeError::FrameTooLong)?;
                out[start..start + 4].copy_from_slice(&size.to_le_bytes());
                Ok(())
            }

            /// The message's type number.
            #[inline]
            pub fn kind(&self) -> u8 {
                match self {
                    $($enum::$variant(_) => $number,)+
                }
            }

            /// How many bytes of payload follow the fields.
            #[allow(unused_variables)] // Few messages have a payload.
            pub fn payload_len(&self) -> usize {
                match self {
                    $($enum::$variant(message) => messages!(@payload message $($count)?),)+
                }
            }
        }

        impl<'a> $enum<'a> {
            /// Type number and name of every message, in the table's order.
            pub const ALL: &'static [(u8, &'static str)] =
                &[$(($number, stringify!($name))),+];
        }
    };

    (@check $message:ident $behind:ident) => {
        if $behind != 0 {
            return Err(DecodeError::Trailing($behind));
        }
    };
    (@check $message:ident $behind:ident $count:ident) => {
        if $message.payload() as usize != $behind {
            return Err(DecodeError::Count { count: $message.payload(), payload: $behind });
        }
    };
    (@payload $message:ident) => { 0 };
    (@payload $message:ident $count:ident) => { $message.payload() as usize };
}

messages! {
    /// What a client asks.
    Tmessage request_kind:
    /// What the file system is and has.
    8 TSTATFS Statfs Tstatfs { fid: u32 };
    /// Opens the fid's file.
    12 TLOPEN Lopen Tlopen { fid: u32, flags: u32 };
    /// Makes and opens a file; the fid stands for it then.
    14 TLCREATE Lcreate Tlcreate<'a> { fid: u32, name: &'a [u8], flags: u32, mode: u32, gid: u32 };
    /// Makes a symbolic link.
    16 TSYMLINK Symlink Tsymlink<'a> { dfid: u32, name: &'a [u8], target: &'a [u8], gid: u32 };
    /// Makes a device, fifo, socket or file.
    18 TMKNOD Mknod Tmknod<'a> { dfid: u32, name: &'a [u8], mode: u32, major: u32, minor: u32, gid: u32 };
    /// Moves the fid's file.
    20 TRENAME Rename Trename<'a> { fid: u32, dfid: u32, name: &'a [u8] };
    /// The target of a symbolic link.
    22 TREADLINK Readlink Treadlink { fid: u32 };
    /// The attributes of a file; bits of valid and mask in [`getattr`](crate::getattr).
    24 TGETATTR Getattr Tgetattr { fid: u32, mask: u64 };
    /// Changes attributes; bits of valid in [`setattr`](crate::setattr).
    26 TSETATTR Setattr Tsetattr { fid: u32, valid: u32, mode: u32, uid: u32, gid: u32, size: u64, atime: Time, mtime: Time };
    /// A fid to read an extended attribute, or with an empty name their list.
    30 TXATTRWALK Xattrwalk Txattrwalk<'a> { fid: u32, newfid: u32, name: &'a [u8] };
    /// The fid takes the bytes of an extended attribute, and its clunk sets it.
    32 TXATTRCREATE Xattrcreate Txattrcreate<'a> { fid: u32, name: &'a [u8], size: u64, flags: u32 };
    /// Entries of a directory; the payload of the reply is [`DirEntry`](crate::DirEntry)s.
    40 TREADDIR Readdir Treaddir { fid: u32, offset: u64, count: u32 };
    /// Brings what was written to the disk.
    50 TFSYNC Fsync Tfsync { fid: u32, datasync: u32 };
    /// Takes or releases a byte-range lock; numbers in [`lock`](crate::lock).
    52 TLOCK Lock Tlock<'a> { fid: u32, kind: u8, flags: u32, start: u64, length: u64, proc_id: u32, client_id: &'a [u8] };
    /// Which lock stands in the way.
    54 TGETLOCK Getlock Tgetlock<'a> { fid: u32, kind: u8, start: u64, length: u64, proc_id: u32, client_id: &'a [u8] };
    /// Gives a file another name.
    70 TLINK Link Tlink<'a> { dfid: u32, fid: u32, name: &'a [u8] };
    /// Makes a directory.
    72 TMKDIR Mkdir Tmkdir<'a> { dfid: u32, name: &'a [u8], mode: u32, gid: u32 };
    /// Moves a name.
    74 TRENAMEAT Renameat Trenameat<'a> { olddirfid: u32, oldname: &'a [u8], newdirfid: u32, newname: &'a [u8] };
    /// Removes a name; flags in [`unlink`](crate::unlink).
    76 TUNLINKAT Unlinkat Tunlinkat<'a> { dirfid: u32, name: &'a [u8], flags: u32 };
    /// Begins a session.
    100 TVERSION Version Tversion<'a> { msize: u32, version: &'a [u8] };
    /// A fid to authenticate on.
    102 TAUTH Auth Tauth<'a> { afid: u32, uname: &'a [u8], aname: &'a [u8], n_uname: u32 };
    /// A fid for the root of the tree.
    104 TATTACH Attach Tattach<'a> { fid: u32, afid: u32, uname: &'a [u8], aname: &'a [u8], n_uname: u32 };
    /// Ends a request, or waits for its end.
    108 TFLUSH Flush Tflush { oldtag: u16 };
    /// From a fid by names to another fid.
    110 TWALK Walk Twalk<'a> { fid: u32, newfid: u32, names: Names<'a> };
    /// Reads bytes.
    116 TREAD Read Tread { fid: u32, offset: u64, count: u32 };
    /// Writes bytes.
    118 TWRITE Write Twrite { fid: u32, offset: u64, count: u32 } payload count;
    /// Gives a fid back.
    120 TCLUNK Clunk Tclunk { fid: u32 };
    /// Removes the fid's file and gives the fid back.
    122 TREMOVE Remove Tremove { fid: u32 };
}

messages! {
    /// What the server answers.
    Rmessage reply_kind:
    /// A request failed.
    7 RLERROR Lerror Rlerror { ecode: u32 };
    /// The reply to Tstatfs.
    9 RSTATFS Statfs Rstatfs { kind: u32, bsize: u32, blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, fsid: u64, namelen: u32 };
    /// The reply to Tlopen.
    13 RLOPEN Lopen Rlopen { qid: Qid, iounit: u32 };
    /// The reply to Tlcreate.
    15 RLCREATE Lcreate Rlcreate { qid: Qid, iounit: u32 };
    /// The reply to Tsymlink.
    17 RSYMLINK Symlink Rsymlink { qid: Qid };
    /// The reply to Tmknod.
    19 RMKNOD Mknod Rmknod { qid: Qid };
    /// The reply to Trename.
    21 RRENAME Rename Rrename {};
    /// The reply to Treadlink.
    23 RREADLINK Readlink Rreadlink<'a> { target: &'a [u8] };
    /// The reply to Tgetattr.
    25 RGETATTR Getattr Rgetattr { valid: u64, qid: Qid, mode: u32, uid: u32, gid: u32, nlink: u64, rdev: u64, size: u64, blksize: u64, blocks: u64, atime: Time, mtime: Time, ctime: Time, btime: Time, r#gen: u64, data_version: u64 };
    /// The reply to Tsetattr.
    27 RSETATTR Setattr Rsetattr {};
    /// The reply to Txattrwalk.
    31 RXATTRWALK Xattrwalk Rxattrwalk { size: u64 };
    /// The reply to Txattrcreate.
    33 RXATTRCREATE Xattrcreate Rxattrcreate {};
    /// The reply to Treaddir.
    41 RREADDIR Readdir Rreaddir { count: u32 } payload count;
    /// The reply to Tfsync.
    51 RFSYNC Fsync Rfsync {};
    /// The reply to Tlock.
    53 RLOCK Lock Rlock { status: u8 };
    /// The reply to Tgetlock.
    55 RGETLOCK Getlock Rgetlock<'a> { kind: u8, start: u64, length: u64, proc_id: u32, client_id: &'a [u8] };
    /// The reply to Tlink.
    71 RLINK Link Rlink {};
    /// The reply to Tmkdir.
    73 RMKDIR Mkdir Rmkdir { qid: Qid };
    /// The reply to Trenameat.
    75 RRENAMEAT Renameat Rrenameat {};
    /// The reply to Tunlinkat.
    77 RUNLINKAT Unlinkat Runlinkat {};
    /// The reply to Tversion.
    101 RVERSION Version Rversion<'a> { msize: u32, version: &'a [u8] };
    /// The reply to Tauth.
    103 RAUTH Auth Rauth { aqid: Qid };
    /// The reply to Tattach.
    105 RATTACH Attach Rattach { qid: Qid };
    /// The reply to Tflush.
    109 RFLUSH Flush Rflush {};
    /// The reply to Twalk.
    111 RWALK Walk Rwalk { qids: Qids };
    /// The reply to Tread.
    117 RREAD Read Rread { count: u32 } payload count;
    /// The reply to Twrite.
    119 RWRITE Write Rwrite { count: u32 };
    /// The reply to Tclunk.
    121 RCLUNK Clunk Rclunk {};
    /// The reply to Tremove.
    123 RREMOVE Remove Rremove {};
}
