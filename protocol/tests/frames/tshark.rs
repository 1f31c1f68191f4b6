//! What we decode is what tshark decodes: every line that it wrote of a golden frame
//! (fixtures/frames/tshark.txt) is compared with our field, in order, none left out.
//!
//! Where tshark differs from Linux, the place that compares says so.

use std::collections::BTreeMap;

use protocol::{Header, Qid, QidKind, Rmessage, Time, Tmessage, getattr, open, setattr};

use crate::{Golden, Message};

/// A line of tshark's: what it calls the field, and the value.
type Line = (String, String);

/// What tshark says of one frame.
#[derive(Debug, Default)]
struct Said {
    lines: Vec<Line>,
    /// The bits that it names of a flags field: the field, the bit's name, which bits these are.
    bits: Vec<(String, &'static str, u64)>,
}

fn tshark() -> BTreeMap<&'static str, Said> {
    let text = include_str!("../../../fixtures/frames/tshark.txt");
    let frames = text.split("\n\n").skip(1).map(|frame| {
        let mut lines = frame.lines();
        let name = lines.next().expect("a name");
        assert_eq!(lines.next(), Some("Plan 9"), "{name}");
        let mut said = Said::default();
        lines.for_each(|line| said.add(line.trim()));
        (name, said)
    });
    frames.collect()
}

impl Said {
    fn add(&mut self, line: &'static str) {
        // A bit of a flags field is drawn: `.... ..1. = Name: Yes`.
        let (drawing, line) = match line.split_once(" = ") {
            Some((drawing, field)) if line.starts_with(['.', '0', '1']) => (drawing, field),
            _ => ("", line),
        };
        match line.split_once(':') {
            Some((bit, " Yes" | " No")) if !drawing.is_empty() => {
                let (field, _) = self.lines.last().expect("bits come after their field");
                self.bits.push((field.clone(), bit, mask(drawing)));
            }
            Some((label, value)) => self
                .lines
                .push((label.to_owned(), plain(label, value.trim()))),
            // The heading of a qid, whose parts follow.
            None if line.starts_with("Qid type=") => {}
            // `Data (32 bytes)`.
            None => {
                let len = line
                    .strip_prefix("Data (")
                    .and_then(|rest| rest.strip_suffix(" bytes)"));
                let len = len.unwrap_or_else(|| panic!("what is {line:?}?"));
                self.lines.push(("Data".to_owned(), len.to_owned()));
            }
        }
    }
}

/// `.... ..1.` is 2: tshark draws the bits of a field that it speaks of, from the highest.
fn mask(drawing: &str) -> u64 {
    let bits = drawing.chars().filter(|c| *c != ' ');
    bits.fold(0, |mask, bit| mask << 1 | u64::from(bit != '.'))
}

/// The value without what tshark adds to it, numbers in decimal.
fn plain(label: &str, value: &str) -> String {
    let hex = |digits| u64::from_str_radix(digits, 16).expect("hex").to_string();
    match label {
        // `11 (/tree)`: it follows the walks.
        "Fid" | "New fid" | "Directory fid" => {
            value.split(' ').next().unwrap_or_default().to_owned()
        }
        // `Twalk (110)`, `Write lock (0x00000001)`.
        "Msg Type" | "lock_type" | "lock_flag" | "lock_status" => {
            let number = value
                .split_once('(')
                .map(|(_, rest)| rest.trim_end_matches(')'));
            let number = number.expect("a number in brackets");
            number.strip_prefix("0x").map_or(number.to_owned(), hex)
        }
        "Mode" => u32::from_str_radix(value, 8).expect("octal").to_string(),
        _ => value.strip_prefix("0x").map_or(value.to_owned(), hex),
    }
}

/// Our fields as tshark would write them.
#[derive(Debug, Default)]
struct Ours(Vec<Line>);

impl Ours {
    fn line(mut self, label: &str, value: impl ToString) -> Ours {
        self.0.push((label.to_owned(), value.to_string()));
        self
    }

    fn number(self, label: &str, value: impl Into<u64>) -> Ours {
        self.line(label, value.into())
    }

    fn text(self, label: &str, bytes: &[u8]) -> Ours {
        self.line(label, String::from_utf8_lossy(bytes))
            .line("Param length", bytes.len())
    }

    /// A field that tshark has no name for: its bytes.
    fn raw(self, bytes: &[u8]) -> Ours {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.line("Message data", hex)
    }

    fn qid(self, qid: Qid) -> Ours {
        self.number("Qid type", qid.kind.0)
            .number("Qid version", qid.version)
            .number("Qid path", qid.path)
    }

    fn time(self, label: &str, time: Time) -> Ours {
        self.line(label, date(time))
    }

    /// A count and as many bytes.
    fn payload(self, count: u32) -> Ours {
        let counted = self.number("Count", count);
        match count {
            0 => counted,
            count => counted.line("Data", count),
        }
    }

    /// tshark takes the locks of Tgetlock and Rgetlock to have flags, as Tlock's have. Linux has
    /// none there (net/9p/client.c, p9_client_getlock_dotl), so it reads the later fields four
    /// bytes too late, until the frame's end stops it.
    fn getlock(self, kind: u8, start: u64, length: u64, proc_id: u32, client_id: &[u8]) -> Ours {
        let high = |of: u64, then: u64| of >> 32 | then << 32;
        let name = u64::from(client_id[0]) | u64::from(client_id[1]) << 8;
        self.number("lock_type", kind)
            .number("lock_flag", start as u32)
            .number("lock_start", high(start, length))
            .number("lock_length", high(length, proc_id.into()))
            .number("lock_procid", client_id.len() as u64 | name << 16)
            .line("[Malformed Packet", "9P]")
    }
}

/// `Nov 14, 2023 22:13:21.000000001 UTC`.
fn date(time: Time) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let days_of = |year: u64, month: usize| match month {
        1 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    };
    let (mut year, mut month, mut day) = (1970, 0, time.sec / 86_400);
    while day >= days_of(year, month) {
        day -= days_of(year, month);
        month += 1;
        if month == 12 {
            (year, month) = (year + 1, 0);
        }
    }
    let second = time.sec % 86_400;
    format!(
        "{} {:2}, {year} {:02}:{:02}:{:02}.{:09} UTC",
        MONTHS[month],
        day + 1,
        second / 3600,
        second / 60 % 60,
        second % 60,
        time.nsec
    )
}

/// The fields of a request by tshark's names.
#[rustfmt::skip] // A line is a message where it fits in one.
fn request(message: Tmessage<'_>) -> Ours {
    let ours = Ours::default();
    match message {
        Tmessage::Statfs(m) => ours.number("Fid", m.fid),
        Tmessage::Lopen(m) => ours.number("Fid", m.fid).number("Mode", m.flags),
        Tmessage::Lcreate(m) => ours.number("Fid", m.fid).text("File name", m.name)
            .number("lflags", m.flags).number("Mode", m.mode).number("Gid", m.gid),
        Tmessage::Symlink(m) => ours.number("Fid", m.dfid).text("Wname", m.name)
            .text("Wname", m.target).number("Gid", m.gid),
        Tmessage::Mknod(m) => ours.number("Fid", m.dfid).text("Wname", m.name)
            .number("Mode", m.mode).number("mknod_major", m.major).number("mknod_minor", m.minor)
            .number("Gid", m.gid),
        Tmessage::Rename(m) => ours.number("Fid", m.fid).number("Directory fid", m.dfid)
            .text("Wname", m.name),
        Tmessage::Readlink(m) => ours.number("Fid", m.fid),
        Tmessage::Getattr(m) => ours.number("Fid", m.fid).number("getattr_flags", m.mask),
        Tmessage::Setattr(m) => ours.number("Fid", m.fid).number("setattr_flags", m.valid)
            .number("Mode", m.mode).number("Uid", m.uid).number("Gid", m.gid)
            .number("Size", m.size).time("Atime", m.atime).time("Mtime", m.mtime),
        Tmessage::Xattrwalk(m) => ours.number("Fid", m.fid).number("New fid", m.newfid)
            .text("Wname", m.name),
        Tmessage::Xattrcreate(m) => ours.number("Fid", m.fid).text("Wname", m.name)
            .number("Size", m.size).number("xattr_flag", m.flags),
        Tmessage::Readdir(m) => ours.number("Fid", m.fid).number("Offset", m.offset)
            .number("Count", m.count),
        Tmessage::Fsync(m) => ours.number("Fid", m.fid).raw(&m.datasync.to_le_bytes()),
        Tmessage::Lock(m) => ours.number("Fid", m.fid).number("lock_type", m.kind)
            .number("lock_flag", m.flags).number("lock_start", m.start)
            .number("lock_length", m.length).number("lock_procid", m.proc_id)
            .text("Wname", m.client_id),
        Tmessage::Getlock(m) => ours.number("Fid", m.fid)
            .getlock(m.kind, m.start, m.length, m.proc_id, m.client_id),
        Tmessage::Link(m) => ours.number("Directory fid", m.dfid).number("Fid", m.fid)
            .text("Wname", m.name),
        Tmessage::Mkdir(m) => ours.number("Fid", m.dfid).text("Wname", m.name)
            .number("Mode", m.mode).number("Gid", m.gid),
        Tmessage::Renameat(m) => ours.number("Directory fid", m.olddirfid)
            .text("Wname", m.oldname).number("New fid", m.newdirfid).text("Wname", m.newname),
        Tmessage::Unlinkat(m) => ours.number("Directory fid", m.dirfid).text("Wname", m.name)
            .number("unlinkat flags", m.flags),
        Tmessage::Version(m) => ours.number("Max msg size", m.msize).text("Version", m.version),
        Tmessage::Auth(m) => ours.number("Afid", m.afid).text("Uname", m.uname)
            .text("Aname", m.aname).raw(&m.n_uname.to_le_bytes()),
        Tmessage::Attach(m) => ours.number("Fid", m.fid).number("Afid", m.afid)
            .text("Uname", m.uname).text("Aname", m.aname).number("Uid", m.n_uname),
        // tshark shows the same two bytes once more.
        Tmessage::Flush(m) => ours.number("Old tag", m.oldtag).raw(&m.oldtag.to_le_bytes()),
        Tmessage::Walk(m) => {
            let ours = ours.number("Fid", m.fid).number("New fid", m.newfid)
                .number("Nr Walks", m.names.len() as u64);
            m.names.iter().fold(ours, |ours, name| ours.text("Wname", name))
        }
        Tmessage::Read(m) => ours.number("Fid", m.fid).number("Offset", m.offset)
            .number("Count", m.count),
        Tmessage::Write(m) => ours.number("Fid", m.fid).number("Offset", m.offset)
            .payload(m.count),
        Tmessage::Clunk(m) => ours.number("Fid", m.fid),
        Tmessage::Remove(m) => ours.number("Fid", m.fid),
    }
}

/// The fields of a reply by tshark's names.
#[rustfmt::skip] // A line is a message where it fits in one.
fn reply(message: Rmessage<'_>) -> Ours {
    let ours = Ours::default();
    match message {
        Rmessage::Lerror(m) => ours.raw(&m.ecode.to_le_bytes()),
        Rmessage::Statfs(m) => ours.number("fstype", m.kind).number("Blksize", m.bsize)
            .number("Blocks", m.blocks).number("bfree", m.bfree).number("bavail", m.bavail)
            .number("files", m.files).number("ffree", m.ffree).number("fsid", m.fsid)
            .number("namelen", m.namelen),
        Rmessage::Lopen(m) => ours.qid(m.qid).number("I/O Unit", m.iounit),
        Rmessage::Lcreate(m) => ours.qid(m.qid).number("I/O Unit", m.iounit),
        Rmessage::Symlink(m) => ours.qid(m.qid),
        Rmessage::Mknod(m) => ours.qid(m.qid),
        Rmessage::Readlink(m) => ours.text("Wname", m.target),
        Rmessage::Getattr(m) => ours.number("getattr_flags", m.valid).qid(m.qid)
            .number("Mode", m.mode).number("Uid", m.uid).number("Gid", m.gid)
            .number("nlink", m.nlink).number("rdev", m.rdev).number("Size", m.size)
            .number("Blksize", m.blksize).number("Blocks", m.blocks).time("Atime", m.atime)
            .time("Mtime", m.mtime).time("Ctime", m.ctime).time("Btime", m.btime)
            .number("Gen", m.r#gen).number("Dataversion", m.data_version),
        Rmessage::Xattrwalk(m) => ours.number("Size", m.size),
        Rmessage::Readdir(m) => ours.payload(m.count),
        Rmessage::Lock(m) => ours.number("lock_status", m.status),
        Rmessage::Getlock(m) => ours.getlock(m.kind, m.start, m.length, m.proc_id, m.client_id),
        Rmessage::Mkdir(m) => ours.qid(m.qid),
        Rmessage::Version(m) => ours.number("Max msg size", m.msize).text("Version", m.version),
        Rmessage::Auth(m) => ours.qid(m.aqid),
        Rmessage::Attach(m) => ours.qid(m.qid),
        Rmessage::Walk(m) => {
            let ours = ours.number("Nr Qids", m.qids.len() as u64);
            m.qids.iter().fold(ours, |ours, qid| ours.qid(*qid))
        }
        Rmessage::Read(m) => ours.payload(m.count),
        Rmessage::Write(m) => ours.number("Count", m.count),
        Rmessage::Rename(_) | Rmessage::Setattr(_) | Rmessage::Xattrcreate(_)
        | Rmessage::Fsync(_) | Rmessage::Link(_) | Rmessage::Renameat(_) | Rmessage::Unlinkat(_)
        | Rmessage::Flush(_) | Rmessage::Clunk(_) | Rmessage::Remove(_) => ours,
    }
}

#[test]
fn every_field_is_what_tshark_says() {
    let tshark = tshark();
    let golden = Golden::all();
    assert_eq!(tshark.len(), golden.len());
    for golden in &golden {
        let header = Header::decode(&golden.bytes).expect("a header");
        let (tag, message) = golden.decode();
        let Ours(fields) = match message {
            Message::T(message) => request(message),
            Message::R(message) => reply(message),
        };
        let Ours(mut ours) = Ours::default()
            .number("Msg length", header.size)
            .number("Msg Type", header.kind)
            .number("Tag", tag);
        ours.extend(fields);
        assert_eq!(tshark[golden.name].lines, ours, "{}", golden.name);
    }
}

#[test]
fn flags_are_the_bits_that_tshark_says() {
    let getattr = [
        ("Mode", getattr::MODE),
        ("Nlink", getattr::NLINK),
        ("UID", getattr::UID),
        ("GID", getattr::GID),
        ("Rdev", getattr::RDEV),
        ("Atime", getattr::ATIME),
        ("Mtime", getattr::MTIME),
        ("Ctime", getattr::CTIME),
        ("Inode", getattr::INO),
        ("Size", getattr::SIZE),
        ("Blocks", getattr::BLOCKS),
        ("Btime", getattr::BTIME),
        ("Gen", getattr::GEN),
        ("Data version", getattr::DATA_VERSION),
    ];
    let setattr = [
        ("Mode", setattr::MODE),
        ("UID", setattr::UID),
        ("GID", setattr::GID),
        ("Size", setattr::SIZE),
        ("Atime", setattr::ATIME),
        ("Mtime", setattr::MTIME),
        ("Ctime", setattr::CTIME),
        ("Atime set", setattr::ATIME_SET),
        ("Mtime set", setattr::MTIME_SET),
    ];
    let open = [
        // The two bits of which RDONLY is the 0.
        ("Read only", open::WRONLY | open::RDWR),
        ("Write only", open::WRONLY),
        ("Read Write", open::RDWR),
        ("Create", open::CREATE),
        ("Exclusive", open::EXCL),
        ("noctty", open::NOCTTY),
        ("Truncate", open::TRUNC),
        ("Append", open::APPEND),
        ("Nonblock", open::NONBLOCK),
        ("dsync", open::DSYNC),
        ("fasync", open::FASYNC),
        ("Direct", open::DIRECT),
        ("Large File", open::LARGEFILE),
        ("Directory", open::DIRECTORY),
        ("No follow", open::NOFOLLOW),
        ("No atime", open::NOATIME),
        ("cloexec", open::CLOEXEC),
        ("Sync", open::SYNC),
    ];
    let qid = [
        ("Directory", QidKind::DIR),
        ("Append only", QidKind::APPEND),
        ("Exclusive use", QidKind::EXCL),
        ("Mounted channel", QidKind::MOUNT),
        ("Authentication file", QidKind::AUTH),
        ("Temporary file (not backed up)", QidKind::TMP),
    ]
    .map(|(name, kind)| (name, kind.0));

    let tshark = tshark();
    let said = |frame, flags| -> Vec<(&str, u64)> {
        let bits = tshark[frame].bits.iter();
        bits.filter(|(field, ..)| field == flags)
            .map(|(_, name, mask)| (*name, *mask))
            .collect()
    };
    assert_eq!(said("Tgetattr", "getattr_flags"), getattr);
    assert_eq!(said("Rgetattr", "getattr_flags"), getattr);
    assert_eq!(said("Tsetattr", "setattr_flags"), wide(setattr));
    assert_eq!(said("Tlopen", "Mode"), wide(open));
    assert_eq!(said("Tlcreate", "lflags"), wide(open));
    assert_eq!(said("Rattach", "Qid type"), wide(qid));
}

fn wide<N: Into<u64>, const LEN: usize>(
    bits: [(&'static str, N); LEN],
) -> [(&'static str, u64); LEN] {
    bits.map(|(name, bit)| (name, bit.into()))
}
