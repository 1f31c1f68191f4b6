//! The table of messages: one line of fields each, from which type, decoding and encoding follow.
//!
//! Source: Linux's net/9p for what 9P2000.L adds; version, auth, attach, flush, walk, read, write,
//! clunk and remove are those of 9P2000 (auth and attach with the numeric user of 9P2000.u). A
//! reply has the number of its request plus 1; any request may be answered with Rlerror instead.
//!
//! Sizes, counts and offsets are in bytes if nothing else is said, modes are those of Linux's
//! `st_mode`, names are single components of a path. Decoding checks only the structure of the
//! frame: the server decides whether a fid, a flag or a name makes sense.

use crate::list::{Names, Qids};
use crate::qid::Qid;
use crate::table::messages;
use crate::time::Time;

messages! {
    /// A client's requests.
    Tmessage request_kind:

    /// Asks for the attributes of a file's file system. Reply: [`Rstatfs`].
    8 TSTATFS Statfs Tstatfs { fid: u32 };

    /// Opens the file of `fid` for I/O; `flags` are of [`open`](crate::open). Reply: [`Rlopen`].
    12 TLOPEN Lopen Tlopen { fid: u32, flags: u32 };

    /// Creates a file in the directory of `fid` and opens it: `fid` then stands for the file.
    /// `flags` are of [`open`](crate::open). Reply: [`Rlcreate`].
    14 TLCREATE Lcreate Tlcreate<'a> {
        fid: u32, name: &'a [u8], flags: u32, mode: u32, gid: u32,
    };

    /// Creates a symbolic link in the directory of `dfid`. Reply: [`Rsymlink`].
    16 TSYMLINK Symlink Tsymlink<'a> { dfid: u32, name: &'a [u8], target: &'a [u8], gid: u32 };

    /// Creates a device, a fifo, a socket or a file in the directory of `dfid`, according to the
    /// type in `mode`. Reply: [`Rmknod`].
    18 TMKNOD Mknod Tmknod<'a> {
        dfid: u32, name: &'a [u8], mode: u32, major: u32, minor: u32, gid: u32,
    };

    /// Moves the file of `fid` into the directory of `dfid`. Reply: [`Rrename`].
    20 TRENAME Rename Trename<'a> { fid: u32, dfid: u32, name: &'a [u8] };

    /// Asks for the target of a symbolic link. Reply: [`Rreadlink`].
    22 TREADLINK Readlink Treadlink { fid: u32 };

    /// Asks for the attributes in `mask`, bits of [`getattr`](crate::getattr).
    /// Reply: [`Rgetattr`].
    24 TGETATTR Getattr Tgetattr { fid: u32, mask: u64 };

    /// Changes the attributes in `valid`, bits of [`setattr`](crate::setattr).
    /// Reply: [`Rsetattr`].
    26 TSETATTR Setattr Tsetattr {
        fid: u32, valid: u32, mode: u32, uid: u32, gid: u32, size: u64, atime: Time, mtime: Time,
    };

    /// Makes `newfid` a fid from which to read an extended attribute of `fid`, or the list of all
    /// names if `name` is empty. Reply: [`Rxattrwalk`].
    30 TXATTRWALK Xattrwalk Txattrwalk<'a> { fid: u32, newfid: u32, name: &'a [u8] };

    /// Makes `fid` a buffer of `size` bytes, which Twrite fills and whose Tclunk sets the extended
    /// attribute; `size` 0 removes it. `flags` are of [`xattr`](crate::xattr). Reply:
    /// [`Rxattrcreate`].
    32 TXATTRCREATE Xattrcreate Txattrcreate<'a> {
        fid: u32, name: &'a [u8], size: u64, flags: u32,
    };

    /// Asks for entries of an open directory, at most `count` bytes of them; `offset` is 0 or that
    /// of an entry. Reply: [`Rreaddir`].
    40 TREADDIR Readdir Treaddir { fid: u32, offset: u64, count: u32 };

    /// Writes data to stable storage; if `datasync` is not 0, without metadata that is not needed
    /// to read it back. Reply: [`Rfsync`].
    50 TFSYNC Fsync Tfsync { fid: u32, datasync: u32 };

    /// Takes or releases a lock of `length` bytes, 0 for all up to the end; `kind` and `flags` are
    /// of [`lock`](crate::lock). The owner is process `proc_id` of `client_id`. Reply: [`Rlock`].
    52 TLOCK Lock Tlock<'a> {
        fid: u32, kind: u8, flags: u32, start: u64, length: u64, proc_id: u32, client_id: &'a [u8],
    };

    /// Asks which lock conflicts with this one. Reply: [`Rgetlock`].
    54 TGETLOCK Getlock Tgetlock<'a> {
        fid: u32, kind: u8, start: u64, length: u64, proc_id: u32, client_id: &'a [u8],
    };

    /// Gives the file of `fid` another name, in the directory of `dfid`. Reply: [`Rlink`].
    70 TLINK Link Tlink<'a> { dfid: u32, fid: u32, name: &'a [u8] };

    /// Creates a directory in that of `dfid`. Reply: [`Rmkdir`].
    72 TMKDIR Mkdir Tmkdir<'a> { dfid: u32, name: &'a [u8], mode: u32, gid: u32 };

    /// Moves a name from one directory to another. Reply: [`Rrenameat`].
    74 TRENAMEAT Renameat Trenameat<'a> {
        olddirfid: u32, oldname: &'a [u8], newdirfid: u32, newname: &'a [u8],
    };

    /// Removes a name from a directory; `flags` are of [`unlink`](crate::unlink).
    /// Reply: [`Runlinkat`].
    76 TUNLINKAT Unlinkat Tunlinkat<'a> { dirfid: u32, name: &'a [u8], flags: u32 };

    /// Begins a session, which ends any other, and proposes a dialect and the largest frame. Reply:
    /// [`Rversion`].
    100 TVERSION Version Tversion<'a> { msize: u32, version: &'a [u8] };

    /// Makes `afid` a fid on which user and server authenticate. Reply: [`Rauth`].
    102 TAUTH Auth Tauth<'a> { afid: u32, uname: &'a [u8], aname: &'a [u8], n_uname: u32 };

    /// Makes `fid` the root of the tree `aname` for a user, by name and number. `afid` is
    /// [`NOFID`](crate::NOFID) without authentication. Reply: [`Rattach`].
    104 TATTACH Attach Tattach<'a> {
        fid: u32, afid: u32, uname: &'a [u8], aname: &'a [u8], n_uname: u32,
    };

    /// Ends the request with the tag `oldtag`, or waits for its end. Reply: [`Rflush`].
    108 TFLUSH Flush Tflush { oldtag: u16 };

    /// Walks from `fid` by the names and makes `newfid` stand for the file found; without a name,
    /// clones the fid. Reply: [`Rwalk`].
    110 TWALK Walk Twalk<'a> { fid: u32, newfid: u32, names: Names<'a> };

    /// Asks for up to `count` bytes of an open file. Reply: [`Rread`].
    116 TREAD Read Tread { fid: u32, offset: u64, count: u32 };

    /// Writes the payload to an open file. Reply: [`Rwrite`].
    118 TWRITE Write Twrite { fid: u32, offset: u64, count: u32 } payload count;

    /// Releases the fid. Reply: [`Rclunk`].
    120 TCLUNK Clunk Tclunk { fid: u32 };

    /// Removes the file of `fid`, and releases the fid in any case. Reply: [`Rremove`].
    122 TREMOVE Remove Tremove { fid: u32 };
}

messages! {
    /// A server's replies.
    Rmessage reply_kind:

    /// The request failed; `ecode` is a Linux errno.
    7 RLERROR Lerror Rlerror { ecode: u32 };

    /// Reply to [`Tstatfs`], with the numbers of statfs(2): `blocks`, `bfree` and `bavail` count
    /// blocks of `bsize` bytes.
    9 RSTATFS Statfs Rstatfs {
        kind: u32, bsize: u32, blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        fsid: u64, namelen: u32,
    };

    /// Reply to [`Tlopen`]; I/O is best done in pieces of at most `iounit` bytes, where 0 means as
    /// many as a frame can hold.
    13 RLOPEN Lopen Rlopen { qid: Qid, iounit: u32 };

    /// Reply to [`Tlcreate`], `iounit` as in [`Rlopen`].
    15 RLCREATE Lcreate Rlcreate { qid: Qid, iounit: u32 };

    /// Reply to [`Tsymlink`], the link's qid.
    17 RSYMLINK Symlink Rsymlink { qid: Qid };

    /// Reply to [`Tmknod`].
    19 RMKNOD Mknod Rmknod { qid: Qid };

    /// Reply to [`Trename`].
    21 RRENAME Rename Rrename {};

    /// Reply to [`Treadlink`].
    23 RREADLINK Readlink Rreadlink<'a> { target: &'a [u8] };

    /// Reply to [`Tgetattr`]: only the attributes in `valid` are set. `rdev` is encoded as by
    /// Linux's `new_encode_dev`, `blocks` counts 512 bytes.
    25 RGETATTR Getattr Rgetattr {
        valid: u64, qid: Qid, mode: u32, uid: u32, gid: u32, nlink: u64, rdev: u64, size: u64,
        blksize: u64, blocks: u64, atime: Time, mtime: Time, ctime: Time, btime: Time, r#gen: u64,
        data_version: u64,
    };

    /// Reply to [`Tsetattr`].
    27 RSETATTR Setattr Rsetattr {};

    /// Reply to [`Txattrwalk`]: the number of bytes to read.
    31 RXATTRWALK Xattrwalk Rxattrwalk { size: u64 };

    /// Reply to [`Txattrcreate`].
    33 RXATTRCREATE Xattrcreate Rxattrcreate {};

    /// Reply to [`Treaddir`]; the payload is of [`DirEntry`](crate::DirEntry)s.
    41 RREADDIR Readdir Rreaddir { count: u32 } payload count;

    /// Reply to [`Tfsync`].
    51 RFSYNC Fsync Rfsync {};

    /// Reply to [`Tlock`]; `status` is of [`lock`](crate::lock).
    53 RLOCK Lock Rlock { status: u8 };

    /// Reply to [`Tgetlock`]: the conflicting lock, or the requested one with the kind
    /// [`UNLCK`](crate::lock::UNLCK) if there is no conflict.
    55 RGETLOCK Getlock Rgetlock<'a> {
        kind: u8, start: u64, length: u64, proc_id: u32, client_id: &'a [u8],
    };

    /// Reply to [`Tlink`].
    71 RLINK Link Rlink {};

    /// Reply to [`Tmkdir`].
    73 RMKDIR Mkdir Rmkdir { qid: Qid };

    /// Reply to [`Trenameat`].
    75 RRENAMEAT Renameat Rrenameat {};

    /// Reply to [`Tunlinkat`].
    77 RUNLINKAT Unlinkat Runlinkat {};

    /// Reply to [`Tversion`]: the largest frame, no larger than the client's, and the dialect, or
    /// "unknown" if the server does not support the client's.
    101 RVERSION Version Rversion<'a> { msize: u32, version: &'a [u8] };

    /// Reply to [`Tauth`].
    103 RAUTH Auth Rauth { aqid: Qid };

    /// Reply to [`Tattach`], the root's qid.
    105 RATTACH Attach Rattach { qid: Qid };

    /// Reply to [`Tflush`]; no reply to the old tag follows it.
    109 RFLUSH Flush Rflush {};

    /// Reply to [`Twalk`]: a qid for every name that was found. The new fid exists only if all
    /// were.
    111 RWALK Walk Rwalk { qids: Qids };

    /// Reply to [`Tread`]; the payload is the file's bytes, none at its end.
    117 RREAD Read Rread { count: u32 } payload count;

    /// Reply to [`Twrite`]: how many bytes were written.
    119 RWRITE Write Rwrite { count: u32 };

    /// Reply to [`Tclunk`].
    121 RCLUNK Clunk Rclunk {};

    /// Reply to [`Tremove`].
    123 RREMOVE Remove Rremove {};
}
