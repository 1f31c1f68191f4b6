//! The process that serves is killed at every system call of every message: before it and behind it. The
//! reply and the share are what they are without a kill.

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use common::{BINARY, Guest, host_value};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use protocol::{
    Tclunk, Tfsync, Tlcreate, Tlink, Tlopen, Tmessage, Tmkdir, Tmknod, Tremove, Trename, Trenameat,
    Tsetattr, Tsymlink, Tunlinkat, Twrite, Txattrcreate, getattr, lock, open, setattr,
};
use stub_guest::daemon::Launch;
use stub_guest::messages::{Lock, tlock};

/// A message, what must be there before, and what must be there afterwards. Files of one try have its
/// number in their names.
struct Case {
    name: &'static str,
    prepare: fn(&mut Guest, &str) -> u32,
    send: fn(&mut Guest, u32, &str) -> u16,
    verify: fn(&mut Guest, u32, &str),
}

fn submit(guest: &mut Guest, message: &Tmessage<'_>, payload: &[u8]) -> u16 {
    let tag = guest.client.submit(message, payload).unwrap();
    guest.client.kick().unwrap();
    tag
}

fn nothing(guest: &mut Guest, _: &str) -> u32 {
    guest.root
}

fn a_file(guest: &mut Guest, n: &str) -> u32 {
    guest.file(n, "content");
    guest.walk(n)
}

fn an_open_file(guest: &mut Guest, n: &str) -> u32 {
    guest.file(n, "content");
    guest.open(n, open::RDWR)
}

fn a_new_name(n: &str) -> String {
    format!("new-{n}")
}

fn is(path: impl AsRef<Path>, content: &str) {
    assert_eq!(fs::read_to_string(path).unwrap(), content);
}

const CASES: &[Case] = &[
    Case {
        name: "Tmkdir",
        prepare: nothing,
        send: |guest, root, n| {
            let (name, mode, gid) = (n.as_bytes(), 0o755, 0);
            submit(
                guest,
                &Tmessage::Mkdir(Tmkdir {
                    dfid: root,
                    name,
                    mode,
                    gid,
                }),
                &[],
            )
        },
        verify: |guest, _, n| {
            assert!(guest.path(n).is_dir());
            assert_eq!(fs::metadata(guest.path(n)).unwrap().mode() & 0o777, 0o755);
        },
    },
    Case {
        name: "Tmknod",
        prepare: nothing,
        send: |guest, root, n| {
            let message = Tmknod {
                dfid: root,
                name: n.as_bytes(),
                mode: libc::S_IFIFO | 0o600,
                major: 0,
                minor: 0,
                gid: 0,
            };
            submit(guest, &Tmessage::Mknod(message), &[])
        },
        verify: |guest, _, n| {
            assert!(fs::metadata(guest.path(n)).unwrap().file_type().is_fifo());
        },
    },
    Case {
        name: "Tsymlink",
        prepare: nothing,
        send: |guest, root, n| {
            let message = Tsymlink {
                dfid: root,
                name: n.as_bytes(),
                target: b"target",
                gid: 0,
            };
            submit(guest, &Tmessage::Symlink(message), &[])
        },
        verify: |guest, _, n| {
            assert_eq!(fs::read_link(guest.path(n)).unwrap(), Path::new("target"));
        },
    },
    Case {
        name: "Tlink",
        prepare: a_file,
        send: |guest, fid, n| {
            let (dfid, new) = (guest.root, a_new_name(n));
            submit(
                guest,
                &Tmessage::Link(Tlink {
                    dfid,
                    fid,
                    name: new.as_bytes(),
                }),
                &[],
            )
        },
        verify: |guest, _, n| {
            assert_eq!(fs::metadata(guest.path(n)).unwrap().nlink(), 2);
            is(guest.path(&a_new_name(n)), "content");
        },
    },
    Case {
        name: "Tlcreate",
        prepare: |guest, _| guest.walk(""),
        send: |guest, fid, n| {
            let message = Tlcreate {
                fid,
                name: n.as_bytes(),
                flags: open::RDWR | open::CREATE | open::EXCL,
                mode: 0o640,
                gid: 0,
            };
            submit(guest, &Tmessage::Lcreate(message), &[])
        },
        verify: |guest, fid, n| {
            guest.client.write(fid, 0, b"written").unwrap();
            is(guest.path(n), "written");
            assert_eq!(fs::metadata(guest.path(n)).unwrap().mode() & 0o777, 0o640);
        },
    },
    Case {
        name: "Tlopen, which truncates",
        prepare: a_file,
        send: |guest, fid, _| {
            let flags = open::RDWR | open::TRUNC;
            submit(guest, &Tmessage::Lopen(Tlopen { fid, flags }), &[])
        },
        verify: |guest, fid, n| {
            is(guest.path(n), "");
            guest.client.write(fid, 0, b"written").unwrap();
            is(guest.path(n), "written");
        },
    },
    Case {
        name: "Twrite, which appends",
        prepare: |guest, n| {
            guest.file(n, "content");
            guest.open(n, open::WRONLY | open::APPEND)
        },
        send: |guest, fid, _| {
            let message = Twrite {
                fid,
                offset: 7,
                count: 5,
            };
            submit(guest, &Tmessage::Write(message), b" once")
        },
        verify: |guest, _, n| is(guest.path(n), "content once"),
    },
    Case {
        name: "Trenameat",
        prepare: a_file,
        send: |guest, _, n| {
            let new = a_new_name(n);
            let message = Trenameat {
                olddirfid: guest.root,
                oldname: n.as_bytes(),
                newdirfid: guest.root,
                newname: new.as_bytes(),
            };
            submit(guest, &Tmessage::Renameat(message), &[])
        },
        verify: |guest, _, n| {
            is(guest.path(&a_new_name(n)), "content");
            assert!(!guest.path(n).exists());
        },
    },
    Case {
        name: "Trename",
        prepare: a_file,
        send: |guest, fid, n| {
            let (dfid, new) = (guest.root, a_new_name(n));
            submit(
                guest,
                &Tmessage::Rename(Trename {
                    fid,
                    dfid,
                    name: new.as_bytes(),
                }),
                &[],
            )
        },
        verify: |guest, _, n| {
            is(guest.path(&a_new_name(n)), "content");
            assert!(!guest.path(n).exists());
        },
    },
    Case {
        name: "Tunlinkat",
        prepare: an_open_file,
        send: |guest, _, n| {
            let (dirfid, name, flags) = (guest.root, n.as_bytes(), 0);
            submit(
                guest,
                &Tmessage::Unlinkat(Tunlinkat {
                    dirfid,
                    name,
                    flags,
                }),
                &[],
            )
        },
        verify: |guest, fid, n| {
            assert!(!guest.path(n).exists());
            assert_eq!(guest.client.read(fid, 0, 100).unwrap(), b"content");
        },
    },
    Case {
        name: "Tremove",
        prepare: a_file,
        send: |guest, fid, _| submit(guest, &Tmessage::Remove(Tremove { fid }), &[]),
        verify: |guest, fid, n| {
            assert!(!guest.path(n).exists());
            let gone = guest.client.getattr(fid, getattr::ALL).unwrap_err();
            assert_eq!(gone.errno(), Some(libc::EBADF));
        },
    },
    Case {
        name: "Tsetattr",
        prepare: a_file,
        send: |guest, fid, _| {
            let message = Tsetattr {
                fid,
                valid: setattr::MODE | setattr::SIZE,
                mode: 0o604,
                size: 3,
                ..Tsetattr::default()
            };
            submit(guest, &Tmessage::Setattr(message), &[])
        },
        verify: |guest, _, n| {
            is(guest.path(n), "con");
            assert_eq!(fs::metadata(guest.path(n)).unwrap().mode() & 0o777, 0o604);
        },
    },
    Case {
        name: "Tfsync",
        prepare: an_open_file,
        send: |guest, fid, _| submit(guest, &Tmessage::Fsync(Tfsync { fid, datasync: 0 }), &[]),
        verify: |guest, _, n| is(guest.path(n), "content"),
    },
    Case {
        name: "Txattrcreate",
        prepare: a_file,
        send: |guest, fid, _| {
            let message = Txattrcreate {
                fid,
                name: b"user.a",
                size: 5,
                flags: 1,
            };
            submit(guest, &Tmessage::Xattrcreate(message), &[])
        },
        verify: |guest, fid, n| {
            guest.client.write(fid, 0, b"value").unwrap();
            guest.client.clunk(fid).unwrap();
            assert_eq!(host_value(&guest.path(n), "user.a").unwrap(), b"value");
        },
    },
    Case {
        name: "Tclunk, which creates an attribute",
        prepare: |guest, n| {
            let fid = a_file(guest, n);
            guest.client.xattrcreate(fid, "user.a", 5, 1).unwrap();
            guest.client.write(fid, 0, b"value").unwrap();
            fid
        },
        send: |guest, fid, _| submit(guest, &Tmessage::Clunk(Tclunk { fid }), &[]),
        verify: |guest, fid, n| {
            assert_eq!(host_value(&guest.path(n), "user.a").unwrap(), b"value");
            let gone = guest.client.getattr(fid, getattr::ALL).unwrap_err();
            assert_eq!(gone.errno(), Some(libc::EBADF));
        },
    },
    Case {
        name: "Tclunk of an open file without a name",
        prepare: |guest, n| {
            let fid = an_open_file(guest, n);
            fs::remove_file(guest.path(n)).unwrap();
            fid
        },
        send: |guest, fid, _| submit(guest, &Tmessage::Clunk(Tclunk { fid }), &[]),
        verify: |guest, fid, _| {
            let gone = guest.client.getattr(fid, getattr::ALL).unwrap_err();
            assert_eq!(gone.errno(), Some(libc::EBADF));
        },
    },
    Case {
        name: "Tlock",
        prepare: an_open_file,
        send: |guest, fid, _| submit(guest, &tlock(fid, 0, &Lock::whole(lock::WRLCK)), &[]),
        verify: |guest, fid, n| {
            let host = fs::File::options().write(true).open(guest.path(n)).unwrap();
            assert!(matches!(
                host.try_lock_ofd(),
                Err(Errno::EAGAIN | Errno::EACCES)
            ));
            guest.client.clunk(fid).unwrap();
            guest.client.getattr(guest.root, getattr::ALL).unwrap();
            host.try_lock_ofd().unwrap();
        },
    },
];

trait TryLock {
    fn try_lock_ofd(&self) -> Result<(), Errno>;
}

impl TryLock for fs::File {
    fn try_lock_ofd(&self) -> Result<(), Errno> {
        use nix::fcntl::{FcntlArg, fcntl};
        let flock = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(self, FcntlArg::F_OFD_SETLK(&flock)).map(drop)
    }
}

/// The threads of the process that serves, each of which stops at its system calls.
struct Traced {
    process: Pid,
    threads: Vec<Pid>,
}

impl Traced {
    /// Errors: EPERM if this user may not do that.
    fn new(process: u32) -> Result<Traced, Errno> {
        let mut threads = Vec::new();
        for entry in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
            let name = entry.unwrap().file_name();
            threads.push(Pid::from_raw(name.to_str().unwrap().parse().unwrap()));
        }
        let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_TRACECLONE;
        for thread in &threads {
            ptrace::seize(*thread, options)?;
        }
        for thread in &threads {
            ptrace::interrupt(*thread)?;
        }
        for thread in &threads {
            waitpid(*thread, Some(WaitPidFlag::__WALL))?;
        }
        let process = Pid::from_raw(process as i32);
        Ok(Traced { process, threads })
    }

    fn go_on(&self) {
        for thread in &self.threads {
            ptrace::syscall(*thread, None).unwrap();
        }
    }

    /// Lets the process run until it has stopped so often at a system call, and kills it; or until
    /// `is_done`. Returns whether it was killed.
    fn kill_at(mut self, mut stops: usize, mut is_done: impl FnMut() -> bool) -> bool {
        loop {
            let mut stopped = None;
            for thread in &self.threads {
                let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
                match waitpid(*thread, Some(flags)).unwrap() {
                    WaitStatus::StillAlive => {}
                    status => {
                        stopped = Some((*thread, status));
                        break;
                    }
                }
            }
            match stopped {
                None if is_done() => break,
                None => std::thread::yield_now(),
                Some((thread, WaitStatus::PtraceSyscall(_))) => {
                    if stops == 0 {
                        nix::sys::signal::kill(self.process, Signal::SIGKILL).unwrap();
                        self.reap();
                        return true;
                    }
                    stops -= 1;
                    ptrace::syscall(thread, None).unwrap();
                }
                Some((thread, WaitStatus::PtraceEvent(_, _, event))) => {
                    if event == libc::PTRACE_EVENT_CLONE {
                        let child = Pid::from_raw(ptrace::getevent(thread).unwrap() as i32);
                        waitpid(child, Some(WaitPidFlag::__WALL)).unwrap();
                        ptrace::syscall(child, None).unwrap();
                        self.threads.push(child);
                    }
                    ptrace::syscall(thread, None).unwrap();
                }
                Some((thread, WaitStatus::Stopped(_, signal))) => {
                    ptrace::syscall(thread, signal).unwrap();
                }
                Some(other) => panic!("{other:?}"),
            }
        }
        // Leaves it as it was.
        for thread in &self.threads {
            let _ = ptrace::interrupt(*thread);
        }
        for thread in &self.threads {
            let _ = waitpid(*thread, Some(WaitPidFlag::__WALL));
            let _ = ptrace::detach(*thread, None);
        }
        false
    }

    /// Its parent learns of its end only when each thread's end was seen here.
    fn reap(&self) {
        for thread in self
            .threads
            .iter()
            .filter(|thread| **thread != self.process)
        {
            while !is_end(waitpid(*thread, Some(WaitPidFlag::__WALL))) {}
        }
        while !is_end(waitpid(self.process, Some(WaitPidFlag::__WALL))) {}
    }
}

fn is_end(status: Result<WaitStatus, Errno>) -> bool {
    matches!(
        status,
        Err(_) | Ok(WaitStatus::Signaled(..) | WaitStatus::Exited(..))
    )
}

#[test]
fn a_kill_at_any_system_call_of_a_message_changes_nothing() {
    for case in CASES {
        let mut guest = Guest::on(Launch::new(BINARY).arg("--log-level").arg("warn"));
        let mut kills = 0;
        loop {
            let n = format!("{kills}");
            let fid = (case.prepare)(&mut guest, &n);
            // Another process has taken over.
            guest.client.getattr(guest.root, getattr::ALL).unwrap();
            let traced = match Traced::new(guest.daemon.pid()) {
                Ok(traced) => traced,
                Err(Errno::EPERM) => {
                    stub_guest::skipped("this user may not trace the daemon");
                    return;
                }
                Err(error) => panic!("{error}"),
            };
            let tag = (case.send)(&mut guest, fid, &n);
            traced.go_on();
            let killed = traced.kill_at(kills, || guest.client.is_used(tag).unwrap());
            let reply = guest.client.wait(tag).unwrap();
            if let Err(error) = reply.message() {
                panic!("{}, killed at stop {kills}: {error}", case.name);
            }
            (case.verify)(&mut guest, fid, &n);
            if !killed {
                break;
            }
            kills += 1;
        }
        // Before and behind the call that matters, if there is one.
        assert!(
            kills >= 2 || case.name == "Txattrcreate",
            "{}: {kills}",
            case.name
        );
        println!("{}: killed at {kills} places", case.name);
    }
}
