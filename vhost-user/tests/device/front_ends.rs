//! Another front-end, rust-vmm's, says what QEMU, Cloud Hypervisor and crosvm say, in their order: to
//! migrate a guest, to restore it from a snapshot, and after everything on this side has died.
//!
//! The back-end has a thread of its own, and the guest goes on meanwhile.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::AcqRel;
use std::thread::JoinHandle;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::pipe2;
use ring_driver::{Ring, Used, readable, writable};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserHeaderFlag, VhostUserInflight,
    VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::EventFd;

use crate::event_loop::EventLoop;
use crate::guest_memory::{GuestMemory, Region};
use crate::handler::Echo;
use crate::machine::{DEVICE_FEATURE, MEMORY, MEMORY_SIZE, RING, config};
use crate::random::Random;

const SIZE: u16 = 128;
const PAGE: u64 = 0x1000;
const USER: u64 = 0x7f00_0000_0000;
const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();
const PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
/// The ring's features, VERSION_1 and the device's own.
const FEATURES: u64 = DEVICE_FEATURE | 1 << 28 | 1 << 29 | 1 << 32 | PROTOCOL;
/// Milliseconds: longer than anything here takes.
const LONG: u16 = 10_000;
/// A state that does not fit into a pipe.
const STATE: usize = 300_000;

/// What a back-end has been through.
struct Report {
    state: Vec<u8>,
    resets: usize,
    /// For each request whether it had been taken before.
    resumed: Vec<bool>,
}

/// A back-end with this state, until its front-end has gone, or until it dies of the last of so many
/// requests, none of which it answers.
fn back_end(stream: UnixStream, state: Vec<u8>, dies: Option<usize>) -> JoinHandle<Report> {
    std::thread::spawn(move || {
        let handler = Rc::new(Echo::default());
        handler.migrates.set(true);
        handler.limit.set(STATE);
        handler.state.replace(state);
        handler.room.set(Some(0));
        handler.keep.set(dies.is_some());
        let mut event_loop = EventLoop::new(stream, &config(), handler.clone());
        while event_loop.end().is_none() {
            event_loop.turn_at_leisure();
            let kept = handler.kept.borrow().len();
            if dies.is_some_and(|dies| dies == kept) {
                event_loop.kill();
                handler.kept.take().into_iter().for_each(std::mem::forget);
                event_loop.abandon();
                break;
            }
        }
        Report {
            state: handler.state.take(),
            resets: handler.resets.get(),
            resumed: handler.resumed.take().iter().map(Option::is_some).collect(),
        }
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Qemu,
    CloudHypervisor,
    Crosvm,
}

/// A front-end and its guest.
struct Vmm {
    kind: Kind,
    front_end: Frontend,
    back_end: Option<JoinHandle<Report>>,
    memory: GuestMemory,
    ring: Ring,
    kick: EventFd,
    call: EventFd,
    /// What Cloud Hypervisor keeps, and QEMU for some devices.
    inflight: Option<(VhostUserInflight, File)>,
    protocol: VhostUserProtocolFeatures,
}

impl Vmm {
    /// Connected to a back-end, and agreed on features. Cloud Hypervisor does not ask for the protocol's
    /// features if it has asked before.
    fn new(kind: Kind, before: Option<VhostUserProtocolFeatures>, back: Vec<u8>) -> Vmm {
        let memory = GuestMemory {
            regions: vec![Region::new(MEMORY, USER, MEMORY_SIZE)],
            ..GuestMemory::default()
        };
        let (front_end, thread) = connect(back, None);
        let mut vmm = Vmm {
            kind,
            front_end,
            back_end: Some(thread),
            memory,
            ring: Ring::new(SIZE, RING),
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            inflight: None,
            protocol: VhostUserProtocolFeatures::empty(),
        };
        vmm.negotiate(before);
        vmm
    }

    fn negotiate(&mut self, before: Option<VhostUserProtocolFeatures>) {
        let front_end = &mut self.front_end;
        if self.kind != Kind::Qemu {
            front_end.set_owner().unwrap();
        }
        let offered = front_end.get_features().unwrap();
        assert_eq!(offered, FEATURES | LOG_ALL);
        self.protocol = match before {
            Some(protocol) => protocol,
            None => {
                let all = front_end.get_protocol_features().unwrap();
                assert!(all.contains(
                    VhostUserProtocolFeatures::LOG_SHMFD
                        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
                        | VhostUserProtocolFeatures::DEVICE_STATE
                ));
                all
            }
        };
        front_end.set_protocol_features(self.protocol).unwrap();
        if self.kind == Kind::Qemu {
            front_end.get_max_mem_slots().unwrap();
            front_end.set_owner().unwrap();
            front_end.get_features().unwrap();
            front_end.set_vring_call(0, &self.call).unwrap();
        }
        // QEMU asks for acknowledgements of some messages only.
        if self.kind != Kind::Qemu {
            front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if self.kind == Kind::Crosvm {
            front_end.set_features(FEATURES).unwrap();
        }
    }

    fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let region = |region: &Region| VhostUserMemoryRegionInfo {
            guest_phys_addr: region.guest,
            memory_size: region.size,
            userspace_addr: region.user,
            mmap_offset: region.offset,
            mmap_handle: region.file.as_raw_fd(),
        };
        self.memory.regions.iter().map(region).collect()
    }

    fn addresses(&self, log: bool) -> VringConfigData {
        VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: log.into(),
            desc_table_addr: self.memory.user_address(RING.table),
            used_ring_addr: self.memory.user_address(RING.used),
            avail_ring_addr: self.memory.user_address(RING.avail),
            log_addr: log.then_some(RING.used),
        }
    }

    /// Starts the device with `base` as the next request.
    fn start(&mut self, base: u16) {
        let (kind, regions, addresses) = (self.kind, self.regions(), self.addresses(false));
        match kind {
            Kind::Qemu => {
                self.keep_inflight();
                let front_end = &mut self.front_end;
                front_end.set_features(FEATURES).unwrap();
                for region in &regions {
                    front_end.add_mem_region(region).unwrap();
                }
                front_end.set_vring_num(0, SIZE).unwrap();
                front_end.set_vring_base(0, base).unwrap();
                front_end.set_vring_addr(0, &addresses).unwrap();
                front_end.set_vring_kick(0, &self.kick).unwrap();
                front_end.set_vring_call(0, &self.call).unwrap();
            }
            Kind::CloudHypervisor => {
                self.front_end.set_features(FEATURES).unwrap();
                self.front_end.set_mem_table(&regions).unwrap();
                self.front_end.set_vring_num(0, SIZE).unwrap();
                self.keep_inflight();
                self.front_end.set_vring_addr(0, &addresses).unwrap();
                // Whatever `base` is.
                let next = self.ring.avail_idx;
                self.front_end.set_vring_base(0, next).unwrap();
                self.front_end.set_vring_call(0, &self.call).unwrap();
                self.front_end.set_vring_kick(0, &self.kick).unwrap();
            }
            Kind::Crosvm => {
                let front_end = &mut self.front_end;
                front_end.set_mem_table(&regions).unwrap();
                front_end.set_vring_num(0, SIZE).unwrap();
                front_end.set_vring_addr(0, &addresses).unwrap();
                front_end.set_vring_base(0, base).unwrap();
                front_end.set_vring_call(0, &self.call).unwrap();
                front_end.set_vring_kick(0, &self.kick).unwrap();
            }
        }
        self.front_end.set_vring_enable(0, true).unwrap();
    }

    /// Gets the region for requests in flight if there is none yet, and hands it over.
    fn keep_inflight(&mut self) {
        if self.inflight.is_none() {
            let wanted = VhostUserInflight::new(0, 0, 1, SIZE);
            self.inflight = Some(self.front_end.get_inflight_fd(&wanted).unwrap());
        }
        if let Some((region, file)) = &self.inflight {
            let fd = file.as_raw_fd();
            self.front_end.set_inflight_fd(region, fd).unwrap();
        }
    }

    fn stop(&mut self) -> u16 {
        if self.kind == Kind::CloudHypervisor {
            self.front_end.set_vring_enable(0, false).unwrap();
        }
        self.front_end.get_vring_base(0).unwrap() as u16
    }

    fn save(&mut self) -> Vec<u8> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        self.transfer(VhostTransferStateDirection::SAVE, write);
        let mut state = Vec::new();
        File::from(read).read_to_end(&mut state).unwrap();
        self.front_end.check_device_state().unwrap();
        state
    }

    fn load(&mut self, state: &[u8]) {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        self.transfer(VhostTransferStateDirection::LOAD, read);
        File::from(write).write_all(state).unwrap();
        self.front_end.check_device_state().unwrap();
    }

    fn transfer(&mut self, direction: VhostTransferStateDirection, fd: OwnedFd) {
        let stopped = VhostTransferStatePhase::STOPPED;
        let own = self.front_end.set_device_state_fd(direction, stopped, fd);
        assert!(own.unwrap().is_none());
    }

    /// The back-end's end, once the front-end has gone.
    fn leave(mut self) -> Report {
        drop(self.front_end);
        self.back_end.take().unwrap().join().unwrap()
    }

    // The guest.

    fn post(&mut self, head: u16, bytes: &[u8], answer: u64) {
        let question = MEMORY + 0x1_0000 + 0x400 * u64::from(head);
        self.memory.write(question, bytes);
        let len = bytes.len() as u32;
        let chain = [
            readable(question, len).then(head + 1),
            writable(answer, len),
        ];
        self.ring.describe(&self.memory, head, &chain);
        self.ring.publish(&self.memory, head);
        self.kick.write(1).unwrap();
    }

    /// The answers that are there. The next one notifies the guest.
    fn take_used(&mut self) -> Vec<Used> {
        let used = self.ring.take_used(&self.memory);
        let event = self.ring.used_idx;
        self.ring.set_used_event(&self.memory, event);
        used
    }

    /// Waits for answers.
    fn answers(&mut self) -> Vec<Used> {
        loop {
            // Again, as an answer may have come before the notification was asked for.
            for _ in 0..2 {
                let used = self.take_used();
                if !used.is_empty() {
                    return used;
                }
            }
            // SAFETY: it is open as long as `self` is borrowed.
            let call = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
            let mut fds = [PollFd::new(call, PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, LONG).unwrap(), 1, "nothing is answered");
            self.call.read().unwrap();
        }
    }

    /// Waits for so many answers.
    fn wait_for(&mut self, count: usize) {
        let mut answered = 0;
        while answered < count {
            answered += self.answers().len();
        }
        assert_eq!(answered, count);
    }

    fn exercise(&mut self, text: &[u8]) {
        let answer = MEMORY + 0x10_0000;
        self.post(0, text, answer);
        let used = Used {
            head: 0,
            len: text.len() as u32,
        };
        assert_eq!(self.answers(), [used]);
        assert_eq!(self.memory.read(answer, text.len()), text);
    }
}

fn connect(state: Vec<u8>, dies: Option<usize>) -> (Frontend, JoinHandle<Report>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (
        Frontend::from_stream(ours, 1),
        back_end(theirs, state, dies),
    )
}

fn state() -> Vec<u8> {
    Random(0x5eed).bytes(STATE as u64)
}

/// A log, mapped by the front-end.
struct Log {
    region: MmapRegion,
    file: File,
}

impl Log {
    fn new() -> Log {
        let size = (MEMORY + MEMORY_SIZE) / PAGE / 8;
        let file = File::from(memfd_create("log", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(size).unwrap();
        let mapped = FileOffset::new(file.try_clone().unwrap(), 0);
        let region = MmapRegion::from_file(mapped, size as usize).unwrap();
        Log { region, file }
    }

    fn described(&self) -> VhostUserDirtyLogRegion {
        VhostUserDirtyLogRegion {
            mmap_size: self.region.size() as u64,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// Takes the bits away while the back-end sets others.
    fn take(&self) -> BTreeSet<u64> {
        let mut pages = BTreeSet::new();
        for at in (MEMORY / PAGE / 8) as usize..self.region.size() {
            let byte = self.region.get_atomic_ref::<AtomicU8>(at).unwrap();
            let bits = byte.swap(0, AcqRel);
            let marked = (0..8).filter(|bit| bits & 1 << bit != 0);
            pages.extend(marked.map(|bit| 8 * at as u64 + bit));
        }
        pages
    }
}

fn copy(from: &GuestMemory, to: &GuestMemory, pages: impl IntoIterator<Item = u64>) {
    for page in pages {
        to.write(page * PAGE, &from.read(page * PAGE, PAGE as usize));
    }
}

/// What the guest has written, and what the back-end has marked.
fn synchronise(source: &mut Vmm, log: &mut Log, destination: &Vmm) {
    let written = source.memory.written.take();
    let marked = match source.kind {
        Kind::CloudHypervisor => {
            let next = Log::new();
            let region = next.described();
            source.front_end.set_log_base(0, Some(region)).unwrap();
            std::mem::replace(log, next).take()
        }
        _ => log.take(),
    };
    copy(&source.memory, &destination.memory, written);
    copy(&source.memory, &destination.memory, marked);
}

fn migrate(kind: Kind) {
    let mut source = Vmm::new(kind, None, state());
    source.start(0);
    source.exercise(b"before");
    let mut destination = Vmm::new(kind, Some(source.protocol), b"old".to_vec());
    let told = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    source.front_end.set_log_fd(told.as_raw_fd()).unwrap();

    let mut log = Log::new();
    let region = log.described();
    source.front_end.set_log_base(0, Some(region)).unwrap();
    source.front_end.set_features(FEATURES | LOG_ALL).unwrap();
    let addresses = source.addresses(true);
    source.front_end.set_vring_addr(0, &addresses).unwrap();
    // What waits for no acknowledgement is done when something later has been answered.
    source.front_end.get_features().unwrap();
    source.memory.written.take();
    let all = MEMORY / PAGE..(MEMORY + MEMORY_SIZE) / PAGE;
    copy(&source.memory, &destination.memory, all);

    // The back-end answers while the front-end copies.
    let mut random = Random(0xc0ffee);
    let mut free: Vec<u16> = (0..SIZE / 2).map(|number| 2 * number).collect();
    for round in 0..400 {
        let text = random.bytes(1 + random.0 % 0x300);
        let place = MEMORY + 0x10_0000 + random.below(0xf_f000);
        let head = free.pop().unwrap();
        source.post(head, &text, place);
        if round % 16 == 7 {
            synchronise(&mut source, &mut log, &destination);
        }
        while free.len() < 8 {
            let used = source.answers();
            free.extend(used.iter().map(|used| used.head));
        }
    }
    let base = source.stop();
    synchronise(&mut source, &mut log, &destination);
    assert!(told.read().unwrap() > 0);
    let differs = |page: &u64| {
        let [left, right] = [&source.memory, &destination.memory]
            .map(|memory| memory.read(page * PAGE, PAGE as usize));
        left != right
    };
    let all = MEMORY / PAGE..(MEMORY + MEMORY_SIZE) / PAGE;
    let missing: Vec<u64> = all.filter(differs).collect();
    assert!(missing.is_empty(), "{missing:x?} were not marked");

    let saved = source.save();
    destination.load(&saved);
    destination.ring = Ring::new(SIZE, RING);
    destination.ring.avail_idx = source.ring.avail_idx;
    destination.ring.used_idx = source.ring.used_idx;
    destination.start(base);
    // Those that the source has not taken are answered here.
    destination.wait_for(usize::from(SIZE / 2) - free.len());
    destination.exercise(b"after");
    let report = destination.leave();
    assert!(report.state == state());
    // Only when the front-end had gone.
    assert_eq!(report.resets, 1);

    // The migration is given up: the source goes on.
    source.front_end.set_features(FEATURES).unwrap();
    source.start(base);
    source.wait_for(usize::from(SIZE / 2) - free.len());
    source.exercise(b"still there");
    assert!(source.leave().state == state());
}

#[test]
fn qemu_migrates() {
    migrate(Kind::Qemu);
}

#[test]
fn cloud_hypervisor_migrates() {
    migrate(Kind::CloudHypervisor);
}

#[test]
fn crosvm_restores_a_snapshot() {
    let mut source = Vmm::new(Kind::Crosvm, None, state());
    source.start(0);
    source.exercise(b"before");
    let base = source.stop();
    let saved = source.save();
    // The guest goes on behind the snapshot.
    source.start(base);
    source.exercise(b"after");
    assert!(source.leave().state == saved);

    // SET_FEATURES comes first.
    let mut restored = Vmm::new(Kind::Crosvm, None, b"old".to_vec());
    restored.load(&saved);
    restored.start(0);
    restored.exercise(b"restored");
    let report = restored.leave();
    assert!(report.state == saved);
    assert_eq!(report.resets, 1);
}

/// Everything on the other side dies with requests in flight, and the front-end connects again.
fn survive(kind: Kind) {
    let mut vmm = Vmm::new(kind, None, Vec::new());
    let answer = |head: u16| MEMORY + 0x10_0000 + 0x1000 * u64::from(head);
    vmm.start(0);
    vmm.exercise(b"before");
    // A back-end that answers nothing takes over in order, and dies.
    let (front_end, thread) = connect(Vec::new(), Some(3));
    vmm.front_end = front_end;
    vmm.back_end.replace(thread).unwrap().join().unwrap();
    vmm.negotiate(Some(vmm.protocol));
    vmm.start(1);
    for head in [4, 2, 8] {
        vmm.post(head, &[head as u8; 5], answer(head));
    }
    let report = vmm.back_end.take().unwrap().join().unwrap();
    assert_eq!(report.resumed, [false; 3]);
    // Made available while nobody serves.
    vmm.post(6, &[6; 5], answer(6));
    let (front_end, thread) = connect(Vec::new(), None);
    vmm.front_end = front_end;
    vmm.back_end = Some(thread);
    vmm.negotiate(Some(vmm.protocol));
    // What QEMU knows of a ring whose back-end has died.
    vmm.start(1);
    let mut heads = Vec::new();
    while heads.len() < 4 {
        heads.extend(vmm.answers().iter().map(|used| used.head));
    }
    assert_eq!(heads, [4, 2, 8, 6]);
    for head in heads {
        assert_eq!(vmm.memory.read(answer(head), 5), [head as u8; 5]);
    }
    vmm.exercise(b"after");
    assert_eq!(vmm.stop(), 6);
    assert_eq!(vmm.leave().resumed, [true, true, true, false, false]);
}

#[test]
fn cloud_hypervisor_connects_again() {
    survive(Kind::CloudHypervisor);
}

#[test]
fn qemu_connects_again() {
    survive(Kind::Qemu);
}
