//! The command: looks into a share without a virtual machine.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use protocol::{QidKind, Rgetattr, open};
use stub_guest::messages::Entry;
use stub_guest::{Attach, Client, Error, FrontEnd, Options, Result};

/// Speaks to a vhost-user-9p daemon as a guest would, and shows or changes what it serves.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The daemon's vhost-user socket.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Largest message in bytes to ask for.
    #[arg(long, default_value_t = 512_000)]
    msize: u32,
    /// Mounts this directory of the share and not its root.
    #[arg(long, default_value = "")]
    aname: String,
    /// Number of the user to attach as.
    #[arg(long, default_value_t = u32::MAX, hide_default_value = true)]
    uid: u32,
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Lists a directory.
    Ls {
        /// The directory.
        #[arg(default_value = "/")]
        path: String,
    },
    /// Writes a file to standard output.
    Cat {
        /// The file.
        path: String,
    },
    /// Copies a local file into the share.
    Put {
        /// The local file.
        local: PathBuf,
        /// Where it goes, name included.
        path: String,
    },
    /// Shows what is known of a file.
    Stat {
        /// The file.
        path: String,
    },
    /// Makes a directory.
    Mkdir {
        /// The directory.
        path: String,
    },
    /// Removes a file or an empty directory.
    Rm {
        /// The file.
        path: String,
    },
    /// Moves a file or a directory.
    Mv {
        /// What it is called.
        old: String,
        /// What it shall be called.
        new: String,
    },
    /// Lists a directory and all that is below it.
    Tree {
        /// The directory.
        #[arg(default_value = "/")]
        path: String,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse(), &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("stub-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, out: &mut impl Write) -> Result<()> {
    let front_end = FrontEnd::connect(&arguments.socket, Options::default())?;
    let mut client = Client::new(front_end);
    let root = client.mount(&Attach {
        msize: arguments.msize,
        aname: arguments.aname.clone(),
        uid: arguments.uid,
        ..Attach::default()
    })?;
    let client = &mut client;
    match &arguments.command {
        Action::Ls { path } => {
            for (entry, attributes) in entries(client, root, path)? {
                writeln!(out, "{} {}", line(&attributes), name_of(&entry)).map_err(output)?;
            }
        }
        Action::Cat { path } => {
            client.read_file_to(root, path, out)?;
        }
        Action::Put { local, path } => {
            let mut input = File::open(local).map_err(|source| Error::Io {
                what: "local file",
                source,
            })?;
            client.write_file_from(root, path, &mut input)?;
        }
        Action::Stat { path } => {
            let attributes = client.stat(root, path)?;
            write!(out, "{}", sheet(path, &attributes)).map_err(output)?;
        }
        Action::Mkdir { path } => client.make_dir(root, path)?,
        Action::Rm { path } => client.remove_path(root, path)?,
        Action::Mv { old, new } => client.rename_path(root, old, new)?,
        Action::Tree { path } => tree(client, root, path, 0, out)?,
    }
    out.flush().map_err(output)
}

/// The entries of a directory by name, with their attributes, without `.` and `..`.
fn entries(client: &mut Client, from: u32, path: &str) -> Result<Vec<(Entry, Rgetattr)>> {
    let mut entries = client.read_dir(from, path)?;
    entries.retain(|entry| entry.name != b"." && entry.name != b"..");
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    client.with_path(from, path, |client, directory| {
        let mut result = Vec::new();
        for entry in entries {
            let fid = client.alloc_fid();
            client.walk(directory, fid, &[&entry.name])?;
            let attributes = client.getattr(fid, protocol::getattr::BASIC)?;
            client.close(fid)?;
            result.push((entry, attributes));
        }
        Ok(result)
    })
}

fn tree(
    client: &mut Client,
    root: u32,
    path: &str,
    depth: usize,
    out: &mut impl Write,
) -> Result<()> {
    client.with_path(root, path, |client, fid| {
        let stat = client.getattr(fid, protocol::getattr::BASIC)?;
        if stat.qid.kind != QidKind::DIR {
            return Err(Error::Errno(libc::ENOTDIR as u32));
        }
        branch(client, fid, depth, out)
    })
}

/// Lists the directory of `fid`, which is not open, and what is below it.
fn branch(client: &mut Client, fid: u32, depth: usize, out: &mut impl Write) -> Result<()> {
    let listed = client.alloc_fid();
    client.walk::<&str>(fid, listed, &[])?;
    client.lopen(listed, open::RDONLY | open::DIRECTORY)?;
    let count = client.msize() - protocol::Rreaddir::PAYLOAD as u32;
    let mut entries = client.list(listed, count)?;
    client.close(listed)?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    for entry in entries {
        if entry.name == b"." || entry.name == b".." {
            continue;
        }
        let directory = entry.qid.kind == QidKind::DIR;
        let mark = if directory { "/" } else { "" };
        writeln!(
            out,
            "{:indent$}{}{mark}",
            "",
            name_of(&entry),
            indent = 2 * depth
        )
        .map_err(output)?;
        if directory {
            let below = client.alloc_fid();
            client.walk(fid, below, &[&entry.name])?;
            let result = branch(client, below, depth + 1, out);
            client.close(below)?;
            result?;
        }
    }
    Ok(())
}

fn output(source: io::Error) -> Error {
    Error::Io {
        what: "standard output",
        source,
    }
}

fn name_of(entry: &Entry) -> String {
    entry.name.escape_ascii().to_string()
}

/// Mode, links, owner, group and size, as `ls -ln` shows them.
fn line(attributes: &Rgetattr) -> String {
    let Rgetattr {
        mode,
        nlink,
        uid,
        gid,
        size,
        ..
    } = *attributes;
    format!(
        "{} {nlink:>3} {uid:>5} {gid:>5} {size:>10}",
        mode_text(mode)
    )
}

fn sheet(path: &str, attributes: &Rgetattr) -> String {
    let Rgetattr {
        qid,
        mode,
        nlink,
        uid,
        gid,
        rdev,
        size,
        blocks,
        blksize,
        ..
    } = *attributes;
    let mut text = format!(
        "{path}\n  mode {} ({:o})  links {nlink}\n",
        mode_text(mode),
        mode & 0o7777
    );
    text += &format!("  uid {uid}  gid {gid}  device {rdev:#x}\n");
    text += &format!("  size {size}  blocks {blocks}  block size {blksize}\n");
    text += &format!("  qid {:02x} {} {}\n", qid.kind.0, qid.version, qid.path);
    let times = [
        ("atime", attributes.atime),
        ("mtime", attributes.mtime),
        ("ctime", attributes.ctime),
    ];
    for (name, time) in times {
        text += &format!("  {name} {}.{:09}\n", time.sec, time.nsec);
    }
    text
}

/// `drwxr-xr-x` and the like.
fn mode_text(mode: u32) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        _ => '-',
    };
    let special = [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')];
    let mut text = String::from(kind);
    for (shift, bit, letter) in special {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & bit != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_as_ls_writes_them() {
        assert_eq!(mode_text(0o100644), "-rw-r--r--");
        assert_eq!(mode_text(0o041777), "drwxrwxrwt");
        assert_eq!(mode_text(0o104711), "-rws--x--x");
        assert_eq!(mode_text(0o102644), "-rw-r-Sr--");
    }
}
