//! More fids than descriptors: what gives its descriptor up is found again, and nothing else is.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::{BINARY, Guest, no_change, refused};
use nix::errno::Errno;
use protocol::{Names, Rmessage, Tgetattr, Tmessage, Twalk, getattr, lock, open, setattr};
use stub_guest::daemon::Launch;
use stub_guest::messages::Lock;

/// The least that every distribution allows.
const DESCRIPTORS: usize = 1024;

/// The ways to find a file again. Handles are root's, and most file systems'.
fn ways() -> &'static [&'static str] {
    match common::is_root() {
        true => &["never", "prefer", "mandatory"],
        false => &["never", "prefer"],
    }
}

/// A guest whose daemon may have few descriptors.
fn guest(way: &str) -> Guest {
    let limit = DESCRIPTORS.to_string();
    Guest::on(
        Launch::new(BINARY)
            .arg("--rlimit-nofile")
            .arg(limit)
            .arg("--inode-file-handles")
            .arg(way),
    )
}

/// Sends the same kind of request for all numbers, 32 at a time, and gives each reply to `check`.
fn for_all(
    guest: &mut Guest,
    numbers: std::ops::Range<u32>,
    message: impl for<'a> Fn(u32, &'a mut String) -> Tmessage<'a>,
    mut check: impl FnMut(u32, Rmessage<'_>),
) {
    let numbers: Vec<u32> = numbers.collect();
    for some in numbers.chunks(32) {
        let mut tags = Vec::new();
        for number in some {
            let mut name = String::new();
            let message = message(*number, &mut name);
            tags.push((*number, guest.client.submit(&message, &[]).unwrap()));
        }
        for (number, tag) in tags {
            let reply = guest.client.wait(tag).unwrap();
            check(number, reply.message().unwrap());
            guest.client.recycle(reply);
        }
    }
}

/// Walks from `from` to the file that is named by its number, which becomes the fid.
fn walk_all(guest: &mut Guest, from: u32, numbers: std::ops::Range<u32>) {
    for_all(
        guest,
        numbers,
        |number, name| {
            *name = number.to_string();
            Tmessage::Walk(Twalk {
                fid: from,
                newfid: number,
                names: Names::from_slice(&[name.as_bytes()]).unwrap(),
            })
        },
        |number, reply| assert!(matches!(reply, Rmessage::Walk(_)), "{number}: {reply:?}"),
    );
}

/// The inode that each fid stands for now.
fn check_all(guest: &mut Guest, numbers: std::ops::Range<u32>, inodes: &[u64], first: u32) {
    for_all(
        guest,
        numbers,
        |fid, _| {
            Tmessage::Getattr(Tgetattr {
                fid,
                mask: getattr::BASIC,
            })
        },
        |number, reply| match reply {
            Rmessage::Getattr(reply) => {
                assert_eq!(
                    reply.qid.path,
                    inodes[(number - first) as usize],
                    "{number}"
                );
            }
            other => panic!("{number}: {other:?}"),
        },
    );
}

/// Makes files named by their numbers, and returns their inodes.
fn make_files(directory: &Path, numbers: std::ops::Range<u32>) -> Vec<u64> {
    numbers
        .map(|number| {
            let file = fs::File::create(directory.join(number.to_string())).unwrap();
            file.metadata().unwrap().ino()
        })
        .collect()
}

fn open_descriptors(guest: &Guest) -> usize {
    let path = format!("/proc/{}/fd", guest.daemon.pid());
    fs::read_dir(path).unwrap().count()
}

/// The first of the fids, which are not the client's own.
const FIRST: u32 = 1000;

#[test]
fn a_hundred_thousand_fids_need_no_more_than_a_thousand_descriptors() {
    for (way, count) in ways().iter().zip([100_000, 10_000, 10_000]) {
        let mut guest = guest(way);
        let numbers = FIRST..FIRST + count;
        let inodes = make_files(&guest.path(""), numbers.clone());
        let root = guest.root;
        walk_all(&mut guest, root, numbers.clone());
        assert!(open_descriptors(&guest) < DESCRIPTORS);
        check_all(&mut guest, numbers.clone(), &inodes, FIRST);
        assert!(open_descriptors(&guest) < DESCRIPTORS);
        // Any of them can be used as if it were the only one.
        for fid in numbers.clone().step_by(9973) {
            guest.client.lopen(fid, open::RDWR).unwrap();
            guest.client.write(fid, 0, b"content").unwrap();
            assert_eq!(fs::read(guest.path(&fid.to_string())).unwrap(), b"content");
        }
        // And the session's end gives everything back.
        guest.client.version(8192, "9P2000.L").unwrap();
        let left = open_descriptors(&guest);
        assert!(left < 64, "{left} descriptors are left");
    }
}

/// More than the budget: whatever was walked to before these has given its descriptor up.
const CROWD: u32 = 2000;

/// Lets everything that is not in use give its descriptor up.
fn crowd(guest: &mut Guest) {
    let numbers = 50_000..50_000 + CROWD;
    guest.dir("crowd");
    make_files(&guest.path("crowd"), numbers.clone());
    let directory = guest.walk("crowd");
    walk_all(guest, directory, numbers);
}

#[test]
fn a_fid_follows_its_file_wherever_the_guest_moves_it() {
    for way in ways() {
        let mut guest = guest(way);
        fs::create_dir_all(guest.path("a/b/c")).unwrap();
        guest.dir("elsewhere");
        guest.file("a/b/c/file", "deep");
        guest.file("plain", "plain");
        let (deep, plain) = (guest.walk("a/b/c/file"), guest.walk("plain"));
        crowd(&mut guest);
        // A directory far above one, and the other by its fid's own name.
        let root = guest.root;
        let elsewhere = guest.walk("elsewhere");
        guest
            .client
            .renameat(root, "a", elsewhere, "moved")
            .unwrap();
        guest
            .client
            .renameat(root, "plain", elsewhere, "plain too")
            .unwrap();
        guest.client.lopen(deep, open::RDONLY).unwrap();
        assert_eq!(guest.client.read(deep, 0, 10).unwrap(), b"deep", "{way}");
        guest.client.lopen(plain, open::RDONLY).unwrap();
        assert_eq!(guest.client.read(plain, 0, 10).unwrap(), b"plain", "{way}");
    }
}

#[test]
fn a_fid_outlives_the_last_name_that_the_guest_takes_away() {
    for way in ways() {
        let mut guest = guest(way);
        for name in ["removed", "replaced", "by fid"] {
            guest.file(name, name);
        }
        guest.file("new", "new");
        guest.dir("directory");
        let fids = ["removed", "replaced", "directory", "by fid"].map(|name| guest.walk(name));
        let by_fid = guest.walk("by fid");
        crowd(&mut guest);
        let root = guest.root;
        guest.client.unlinkat(root, "removed", 0).unwrap();
        guest
            .client
            .renameat(root, "new", root, "replaced")
            .unwrap();
        guest
            .client
            .unlinkat(root, "directory", protocol::unlink::REMOVEDIR)
            .unwrap();
        guest.client.remove(by_fid).unwrap();
        crowd_again(&mut guest);
        for fid in fids {
            assert_eq!(
                guest.client.getattr(fid, getattr::ALL).unwrap().nlink,
                0,
                "{way}"
            );
        }
        // What was written through it is there, although no name leads to it.
        guest.client.lopen(fids[0], open::RDWR).unwrap();
        assert_eq!(guest.client.read(fids[0], 0, 10).unwrap(), b"removed");
        guest.client.write(fids[0], 0, b"changed").unwrap();
        let mut shorter = no_change(fids[0]);
        (shorter.valid, shorter.size) = (setattr::SIZE, 3);
        guest.client.setattr(shorter).unwrap();
        assert_eq!(guest.client.read(fids[0], 0, 10).unwrap(), b"cha");
    }
}

fn crowd_again(guest: &mut Guest) {
    let numbers = 60_000..60_000 + CROWD;
    guest.dir("crowd again");
    make_files(&guest.path("crowd again"), numbers.clone());
    let directory = guest.walk("crowd again");
    walk_all(guest, directory, numbers);
}

#[test]
fn what_the_host_replaces_is_stale_and_never_something_else() {
    for way in ways() {
        let mut guest = guest(way);
        let path = guest.file("file", "the first");
        let open_one = guest.file("open", "open");
        let fid = guest.walk("file");
        let opened = guest.open("open", open::RDONLY);
        crowd(&mut guest);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another").unwrap();
        fs::remove_file(open_one).unwrap();
        refused(guest.client.getattr(fid, getattr::ALL), Errno::ESTALE);
        refused(guest.client.lopen(fid, open::RDONLY), Errno::ESTALE);
        // The new file is reached as any other, and the old fid stays what it was.
        let new = guest.open("file", open::RDONLY);
        assert_eq!(guest.client.read(new, 0, 10).unwrap(), b"another");
        refused(guest.client.getattr(fid, getattr::ALL), Errno::ESTALE);
        // An open file needs no name.
        assert_eq!(guest.client.getattr(opened, getattr::ALL).unwrap().nlink, 0);
        assert_eq!(guest.client.read(opened, 0, 10).unwrap(), b"open");
        guest.client.clunk(fid).unwrap();
    }
}

#[test]
fn the_host_may_move_what_has_a_file_handle() {
    for way in ways() {
        let mut guest = guest(way);
        let path = guest.file("file", "content");
        guest.dir("directory");
        let fid = guest.walk("file");
        crowd(&mut guest);
        fs::rename(path, guest.path("directory/moved")).unwrap();
        if *way == "never" || !common::is_root() {
            refused(guest.client.lopen(fid, open::RDONLY), Errno::ESTALE);
            // By its new name it is found as any other, and the old fid with it.
            guest.walk("directory/moved");
        }
        guest.client.lopen(fid, open::RDONLY).unwrap();
        assert_eq!(guest.client.read(fid, 0, 10).unwrap(), b"content");
    }
}

#[test]
fn handles_are_not_used_by_who_has_not_asked_for_them() {
    // Linux: CAP_DAC_READ_SEARCH.
    const RIGHT: u64 = 1 << 2;
    if !common::is_root() {
        return;
    }
    for (way, has) in [("never", false), ("prefer", true), ("mandatory", true)] {
        // In the strongest sandbox, and in none.
        for arg in ["--seccomp=kill", "--sandbox=none"] {
            let launch = Launch::new(BINARY).arg("--inode-file-handles").arg(way);
            let guest = Guest::on(launch.arg(arg));
            let path = format!("/proc/{}/status", guest.daemon.pid());
            let status = fs::read_to_string(path).unwrap();
            for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
                let line = status.lines().find_map(|line| line.strip_prefix(set));
                let rights = u64::from_str_radix(line.unwrap().trim(), 16).unwrap();
                assert_eq!(rights & RIGHT != 0, has, "{way}: {set} {rights:x}");
            }
        }
    }
}

#[test]
fn a_share_without_handles_is_refused_where_they_are_mandatory() {
    let launch = Launch::new(BINARY)
        .arg("--inode-file-handles=mandatory")
        .arg("--sandbox=none");
    let mut daemon = launch.share("/proc").start().unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(1));
    let said = daemon.stderr();
    let line = said.lines().last().unwrap_or_default();
    assert!(line.contains("/proc by their handles"), "{said}");
    assert!(line.contains("--inode-file-handles prefer"), "{said}");
}

#[test]
fn many_requests_at_once_share_the_fewest_descriptors() {
    for way in ways() {
        let mut guest = Guest::on(
            Launch::new(BINARY)
                .arg("--rlimit-nofile=64")
                .arg("--inode-file-handles")
                .arg(way),
        );
        let numbers = FIRST..FIRST + 1000;
        guest.dir("directory");
        let inodes = make_files(&guest.path("directory"), numbers.clone());
        let directory = guest.walk("directory");
        walk_all(&mut guest, directory, numbers.clone());
        for _ in 0..3 {
            check_all(&mut guest, numbers.clone(), &inodes, FIRST);
        }
    }
}

#[test]
fn open_files_are_as_many_as_there_are_descriptors_and_then_enfile() {
    for way in ways() {
        let mut guest = guest(way);
        let count = DESCRIPTORS as u32;
        make_files(&guest.path(""), FIRST..FIRST + count);
        let root = guest.root;
        let mut opened = 0;
        for fid in FIRST..FIRST + count {
            let walked = guest.client.walk(root, fid, &[fid.to_string()]);
            match walked.and_then(|_| guest.client.lopen(fid, open::RDONLY)) {
                Ok(_) => opened += 1,
                Err(error) => {
                    refused::<()>(Err(error), Errno::ENFILE);
                    break;
                }
            }
        }
        // The rest is the daemon's, and for looking at other files.
        assert!(opened > DESCRIPTORS * 3 / 4, "{way}: {opened}");
        assert!(opened < DESCRIPTORS);
        // Those that are open go on, and room that is made is used.
        guest.client.read(FIRST, 0, 10).unwrap();
        for fid in FIRST..FIRST + 8 {
            guest.client.clunk(fid).unwrap();
        }
        guest
            .client
            .walk(root, FIRST, &[FIRST.to_string()])
            .unwrap();
        guest.client.lopen(FIRST, open::RDONLY).unwrap();
    }
}

#[test]
fn a_chain_of_directories_deeper_than_a_stack_ends() {
    const DEPTH: usize = 1_500;
    let mut guest = guest("never");
    let mut fid = guest.root;
    for _ in 0..DEPTH {
        guest.client.mkdir(fid, "d", 0o755, common::NO_ID).unwrap();
        guest.client.walk(fid, 77, &["d"]).unwrap();
        fid = 77;
    }
    // Only this fid knows the ones above.
    guest.client.getattr(77, getattr::ALL).unwrap();
    guest.client.clunk(77).unwrap();
    let root = guest.root;
    guest.client.getattr(root, getattr::ALL).unwrap();
    remove_chain(&guest.path("d"));
}

/// Makes a chain of directories below a fid, and returns one for the deepest.
fn make_chain(guest: &mut Guest, top: u32, name: &str, depth: usize) -> u32 {
    let fid = guest.client.alloc_fid();
    guest.client.walk(top, fid, &[""; 0]).unwrap();
    for _ in 0..depth {
        guest.client.mkdir(fid, name, 0o755, common::NO_ID).unwrap();
        guest.client.walk(fid, fid, &[name]).unwrap();
    }
    fid
}

/// Takes all descriptors, for a moment: what can give its own up has done so then.
fn exhaust(guest: &mut Guest) {
    let root = guest.root;
    let mut fids = Vec::new();
    loop {
        // What has no name keeps its descriptor.
        let path = guest.file("nameless", "");
        let fid = guest.client.alloc_fid();
        let walked = guest.client.walk(root, fid, &["nameless"]);
        fs::remove_file(path).unwrap();
        if let Err(error) = walked {
            refused::<()>(Err(error), Errno::ENFILE);
            break;
        }
        fids.push(fid);
    }
    for fid in fids {
        guest.client.clunk(fid).unwrap();
    }
}

#[test]
fn what_is_deeper_than_any_path_is_not_looked_for() {
    /// Two of them are more than a path has.
    const DEPTH: usize = 2_100;
    let launch = Launch::new(BINARY).arg("--rlimit-nofile=64");
    let mut guest = Guest::on(launch.arg("--inode-file-handles=never"));
    let root = guest.root;
    let [above, below] = ["a", "b"].map(|name| make_chain(&mut guest, root, name, DEPTH));
    exhaust(&mut guest);
    guest.client.renameat(root, "b", above, "b").unwrap();
    exhaust(&mut guest);
    refused(
        guest.client.getattr(below, getattr::BASIC),
        Errno::ENAMETOOLONG,
    );
    // It is only too far away.
    guest.client.renameat(above, "b", root, "b").unwrap();
    guest.client.getattr(below, getattr::BASIC).unwrap();
    for name in ["a", "b"] {
        remove_chain(&guest.path(name));
    }
}

#[test]
fn a_fid_keeps_no_more_directories_than_there_may_be_fids() {
    const FIDS: usize = 16;
    const DEPTH: usize = 200;
    for way in ways() {
        let mut guest = Guest::on(
            Launch::new(BINARY)
                .arg(format!("--limit-fids={FIDS}"))
                .arg(format!("--inode-file-handles={way}")),
        );
        fs::create_dir_all(guest.path(&"d/".repeat(DEPTH))).unwrap();
        let before = open_descriptors(&guest);
        let fid = guest.walk(&"d/".repeat(DEPTH));
        let above = open_descriptors(&guest) - before;
        assert!(above <= FIDS + 4, "{way}: {above} descriptors");
        guest.client.getattr(fid, getattr::ALL).unwrap();
        // Nor if they come to be above it one by one, by renames.
        let root = guest.root;
        for step in 0..DEPTH {
            let name = step.to_string();
            guest
                .client
                .mkdir(root, &name, 0o755, common::NO_ID)
                .unwrap();
            let next = guest.walk(&name);
            guest.client.renameat(root, "d", next, "d").unwrap();
            guest.client.renameat(root, &name, root, "d").unwrap();
            guest.client.clunk(next).unwrap();
        }
        let above = open_descriptors(&guest) - before;
        assert!(above <= FIDS + 4, "{way}: {above} descriptors");
        // Room is made again by those that end.
        guest.client.clunk(fid).unwrap();
        let left = open_descriptors(&guest);
        assert!(left <= before + 1, "{way}: {before}, then {left}");
        guest.walk("d/d/d");
        let again = open_descriptors(&guest);
        assert_eq!(again, before + 3, "{way}");
        remove_chain(&guest.path("d"));
    }
}

/// Directories that change places with those above them, by renames of the guest and of the host.
#[test]
fn directories_that_were_above_each_other_end_with_their_fids() {
    const ROUNDS: usize = 50;
    for way in ways() {
        for by_guest in [true, false] {
            let mut guest = guest(way);
            let before = open_descriptors(&guest);
            for depth in (1..=3).cycle().take(ROUNDS) {
                let fids = turn_upside_down(&mut guest, depth, by_guest);
                for fid in &fids {
                    guest.client.getattr(*fid, getattr::ALL).unwrap();
                }
                fs::remove_dir_all(guest.path("low")).unwrap();
                for fid in fids {
                    guest.client.clunk(fid).unwrap();
                }
            }
            let clunked = open_descriptors(&guest);
            assert!(clunked <= before + 4, "{way}: {before}, then {clunked}");
            // Fids that nobody clunks end with the session, whether by Tversion or without it.
            for ends_by_version in [true, false] {
                for depth in (1..=3).cycle().take(ROUNDS) {
                    turn_upside_down(&mut guest, depth, by_guest);
                    fs::remove_dir_all(guest.path("low")).unwrap();
                }
                let Guest {
                    mut client,
                    mut daemon,
                    ..
                } = guest;
                if ends_by_version {
                    client.version(8192, "9P2000.L").unwrap();
                }
                drop(client);
                let (client, root) = daemon.mount().unwrap();
                guest = Guest {
                    client,
                    root,
                    daemon,
                };
                let ended = open_descriptors(&guest);
                assert!(ended <= before + 4, "{way}: {before}, then {ended}");
            }
        }
    }
}

/// Makes `top`, and below it a directory at this depth, which becomes `low` with `top` in it; returns
/// the fids of all.
fn turn_upside_down(guest: &mut Guest, depth: usize, by_guest: bool) -> Vec<u32> {
    let below = format!("top{}", "/d".repeat(depth));
    fs::create_dir_all(guest.path(&below)).unwrap();
    let (root, top, low) = (guest.root, guest.walk("top"), guest.walk(&below));
    if by_guest {
        let above = guest.walk(below.rsplit_once('/').unwrap().0);
        guest.client.renameat(above, "d", root, "low").unwrap();
        guest.client.renameat(root, "top", low, "top").unwrap();
        guest.client.clunk(above).unwrap();
    } else {
        fs::rename(guest.path(&below), guest.path("low")).unwrap();
        fs::rename(guest.path("top"), guest.path("low/top")).unwrap();
    }
    let again = guest.client.walk_path(low, "top").unwrap();
    vec![top, low, again]
}

/// Removes a tree that is deeper than a path is long, and than there are descriptors to hold it by.
fn remove_chain(top: &Path) {
    let removed = Command::new("rm").arg("-r").arg(top).status().unwrap();
    assert!(removed.success());
}

/// How many nanoseconds of processor time the daemon's loop has taken, and all its threads.
fn times(guest: &Guest) -> (u64, u64) {
    let process = guest.daemon.pid();
    let time_of = |thread: &str| -> u64 {
        let path = format!("/proc/{process}/task/{thread}/schedstat");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split(' ').next().unwrap().parse().unwrap_or(0)
    };
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let all = threads.map(|thread| time_of(thread.unwrap().file_name().to_str().unwrap()));
    (time_of(&process.to_string()), all.sum())
}

#[test]
fn the_end_of_a_large_file_takes_none_of_the_loop_s_time() {
    const SIZE: i64 = 512 << 20;
    // To free a file of it takes time, and no disk has to be waited for.
    let Ok(share) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    let mut guest = Guest::on(Launch::new(BINARY).share(share.path()));
    // The last to go is an open file, a fid, a fid beside an open file that was small when it was
    // reached, and an open file of a fid that was; or what its locks were on.
    let cases = [
        (true, false, true, false),
        (false, true, true, false),
        (true, true, true, false),
        (true, true, false, false),
        (true, true, true, true),
        (true, true, false, true),
    ];
    let cases = cases
        .into_iter()
        .flat_map(|case| [(case, false), (case, true)]);
    for ((opens, walks, open_goes_first, grows), locks) in cases {
        let file = fs::File::create(share.path().join("file")).unwrap();
        let grow = || nix::fcntl::posix_fallocate(&file, 0, SIZE).is_ok();
        if !grows && !grow() {
            return;
        }
        let mut fids = Vec::new();
        if opens {
            fids.push(guest.open("file", open::RDONLY));
        }
        if opens && locks {
            let whole = Lock::whole(lock::RDLCK);
            guest.client.lock(fids[0], 0, &whole).unwrap();
        }
        if walks {
            fids.push(guest.walk("file"));
        }
        if grows && !grow() {
            return;
        }
        fs::remove_file(share.path().join("file")).unwrap();
        drop(file);
        if !open_goes_first {
            fids.reverse();
        }
        let (of_loop, of_all) = times(&guest);
        for fid in fids {
            guest.client.clunk(fid).unwrap();
        }
        // What ends with a request is closed behind its reply.
        guest.walk("");
        let case = (opens, walks, open_goes_first, grows, locks);
        // A worker may free the file after the last reply. If the loop does, its share never falls.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let (loop_after, all_after) = times(&guest);
            let (by_loop, by_all) = (loop_after - of_loop, all_after - of_all);
            if 2 * by_loop < by_all {
                break;
            }
            let late = Instant::now() > deadline;
            assert!(!late, "{case:?}: {by_loop} of {by_all} ns");
            thread::yield_now();
        }
    }
}

#[test]
fn what_was_given_up_without_a_descriptor_left_is_found_where_it_was_moved() {
    let mut guest = guest("prefer");
    let numbers = FIRST..FIRST + 500;
    let inodes = make_files(&guest.path(""), numbers.clone());
    let root = guest.root;
    walk_all(&mut guest, root, numbers.clone());
    let pid = guest.daemon.pid() as i32;
    let limit = |count| {
        let limit = libc::rlimit {
            rlim_cur: count as u64,
            rlim_max: DESCRIPTORS as u64,
        };
        // SAFETY: the limit is one struct rlimit, and nothing is written.
        let result =
            unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) };
        assert_eq!(result, 0);
    };
    let is_open = |number: &usize| {
        let path = format!("/proc/{pid}/fd/{number}");
        fs::symlink_metadata(path).is_ok()
    };
    // There is none for the mount either, by which handles are followed.
    limit((0..).find(|number| !is_open(number)).unwrap());
    guest.walk(&FIRST.to_string());
    limit(DESCRIPTORS);
    for number in numbers.clone() {
        let (old, new) = (number.to_string(), format!("moved-{number}"));
        guest.client.renameat(root, &old, root, &new).unwrap();
    }
    check_all(&mut guest, numbers, &inodes, FIRST);
}
