//! The control messages: what the front-end sets up, starts and stops.
//!
//! The ring runs once it has a kick descriptor and is enabled, until GET_VRING_BASE, a reset, or a
//! violation of its rules. Every message that takes the ring or its memory away first drains the
//! requests in flight: once the front-end has its answer, nothing writes into the guest's memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use virtio_queue::{Queue, QueueT};

use crate::chain::Chains;
use crate::dirty_log::DirtyLog;
use crate::error::{Error as Failure, RingError, SHARED};
use crate::inflight::Inflight;
use crate::inflight_region::{self, InflightRegion, Room};
use crate::interface::{DeviceConfig, Handler, Poller, Source};
use crate::memory::{MAX_SLOTS, Memory};
use crate::request::Request;
use crate::ring::Ring;
use crate::signal::{Call, Kick};
use crate::split::{self, Addresses};
use crate::state::{Saved, State};
use crate::transfer::Transfer;

/// The minimum readable size of the configuration space (vhost-user: VHOST_USER_CONFIG_SIZE).
const MIN_CONFIG: usize = 256;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// Switched on and off while the ring runs.
const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// The device as one front-end sees it.
pub(crate) struct Device {
    config: DeviceConfig,
    handler: Rc<dyn Handler>,
    poller: Rc<dyn Poller>,
    ring: Rc<Ring>,
    memory: Rc<Memory>,
    /// Where the ring notes which requests are in flight, unless the front-end keeps that.
    state: State,
    inflight: Option<InflightRegion>,
    transfer: Transfer,
    features: u64,
    protocol_features: u64,
    /// The ring's configuration: its size, EVENT_IDX, the next request to take. Ready unless the last
    /// size was refused.
    queue: Queue,
    /// Where the ring is; looked up in the guest's memory when it starts.
    addresses: Option<Addresses>,
    /// Where pages are marked while LOG_ALL is agreed on.
    log: Option<Rc<DirtyLog>>,
    /// Where the used ring begins in the log, if its pages are marked, too.
    used_place: Option<u64>,
    /// Whether the front-end has asked for the features, and says that it asks for acknowledgements: it
    /// is answered even if that was refused.
    asked: bool,
    says_reply_ack: bool,
    kick: Option<Kick>,
    /// Whether the loop watches the kick.
    watched: bool,
    enabled: bool,
    /// Whether the ring was started and not stopped since. It may have failed meanwhile.
    started: bool,
    /// Whether the log says that the front-end's configuration space has another size.
    size_told: bool,
    /// How much of the configuration space the front-end has read last.
    size_read: usize,
}

/// A refusal that the front-end can be told; the connection stays open.
fn refuse(why: &'static str) -> Error {
    Error::ReqHandlerError(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// A refusal that the front-end cannot be told, as the answer has no form for it: the connection ends,
/// or the front-end would wait forever.
fn hang_up(why: &'static str) -> Error {
    Error::InvalidOperation(why)
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

/// Errors: `index` is not that of the one ring.
fn only_ring(index: impl Into<u32>) -> Result<()> {
    if index.into() == 0 {
        Ok(())
    } else {
        Err(refuse("the device has one ring"))
    }
}

/// Takes a batch of requests and gives them to the handler. Returns how many. Errors: how the driver
/// violates the ring's rules; the requests before are handled.
pub(crate) fn take_batch(
    ring: &Rc<Ring>,
    handler: &dyn Handler,
    batch: &mut Chains,
) -> std::result::Result<usize, RingError> {
    let result = ring.pop(batch);
    let count = batch.len();
    for chain in batch.drain(..) {
        handler.handle(Request::new(ring.clone(), chain));
    }
    result.map(|()| count)
}

impl Device {
    /// Errors: the configured maximum ring size is invalid.
    pub(crate) fn new(
        config: DeviceConfig,
        handler: Rc<dyn Handler>,
        poller: Rc<dyn Poller>,
        ring: Rc<Ring>,
        state: State,
    ) -> std::result::Result<Device, virtio_queue::Error> {
        let mut queue = Queue::new(config.max_queue_size)?;
        queue.set_ready(true);
        Ok(Device {
            transfer: Transfer::new(handler.clone(), poller.clone()),
            config,
            handler,
            poller,
            ring,
            memory: Rc::default(),
            state,
            inflight: None,
            features: 0,
            protocol_features: 0,
            queue,
            addresses: None,
            log: None,
            used_place: None,
            asked: false,
            says_reply_ack: false,
            kick: None,
            watched: false,
            enabled: false,
            started: false,
            size_told: false,
            size_read: 0,
        })
    }

    /// Without a state that moves along, a migration must fail: a log is not offered either then, as
    /// Cloud Hypervisor takes it for enough.
    fn can_migrate(&self) -> bool {
        self.handler.migration().is_some()
    }

    fn offered(&self) -> u64 {
        let log = if self.can_migrate() { LOG_ALL } else { 0 };
        log | self.config.features
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    /// Clears the driver's kick. A kick descriptor whose other end is closed is no longer watched.
    pub(crate) fn clear_kick(&mut self) {
        if let Some(kick) = &self.kick {
            if !kick.clear() {
                log::debug!("the kick's other end is closed");
                self.unwatch();
            }
        }
    }

    /// Starts the ring if its configuration is complete.
    fn start(&mut self) -> Result<()> {
        let (Some(kick), Some(addresses)) = (&self.kick, &self.addresses) else {
            return Ok(());
        };
        if !self.queue.ready() || !self.enabled || self.started {
            return Ok(());
        }
        if self.memory.is_unwritten() {
            log::warn!(
                "nothing was ever written to the memory that the front-end shares: the guest \
                 probably runs on a private copy of it; start its monitor with shared memory \
                 ({SHARED})"
            );
        }
        // The state that it is to go on with is complete.
        let loaded = self.transfer.finish_load();
        let mut inflight = self.table().map_err(failed)?;
        // What is in the ring has not been taken, whatever happened before. Only a region of the
        // front-end knows better, as it may come from another process.
        if self.inflight.is_none() {
            inflight.clear();
        }
        // The source has answered what it has taken, so the next request is known: Cloud Hypervisor says
        // that it is the next one that the driver makes, and those in between would be lost.
        if loaded {
            inflight.empty();
        }
        let (queue, memory) = (self.queue.state(), &self.memory);
        let mut started = self.ring.start(queue, addresses, memory, inflight);
        if let (Err(error @ RingError::Inflight(_)), Some(region)) = (&started, &self.inflight) {
            // The driver may have begun anew while nobody served it.
            log::warn!("what was in flight is lost: {error}");
            let inflight = region.table().map_err(failed)?;
            inflight.clear();
            started = self.ring.start(queue, addresses, memory, inflight);
        }
        started.map_err(failed)?;
        if let Err(error) = self.poller.watch(kick.as_fd(), Source::Kick) {
            self.ring.stop();
            return Err(failed(error));
        }
        self.watched = true;
        self.started = true;
        Ok(())
    }

    /// The table of requests in flight.
    fn table(&self) -> std::result::Result<Inflight, RingError> {
        match &self.inflight {
            Some(region) => region.table(),
            None => self.state.inflight(self.queue.size()),
        }
    }

    /// What the front-end keeps for the handler.
    pub(crate) fn room(&self) -> Option<Room> {
        self.inflight.as_ref().map(InflightRegion::room)
    }

    /// Drains the requests in flight, then stops the ring.
    pub(crate) fn stop(&mut self) {
        self.drain();
        if self.started {
            self.ring.notify();
            self.halt();
        }
    }

    /// Returns when every request that was taken has been completed, also by an earlier process.
    fn drain(&self) {
        let mut batch = Chains::new();
        while self.ring.has_lost() {
            if let Err(error) = take_batch(&self.ring, &*self.handler, &mut batch) {
                self.ring.fail(&error);
            }
        }
        self.handler.drain();
    }

    /// Stops the ring and remembers the next request to take.
    fn halt(&mut self) {
        self.queue.set_next_avail(self.ring.stop());
        self.unwatch();
        self.started = false;
    }

    /// Stops watching the kick. Returns whether it was watched.
    pub(crate) fn unwatch(&mut self) -> bool {
        if let (Some(kick), true) = (&self.kick, self.watched) {
            self.poller.unwatch(kick.as_fd());
            self.watched = false;
            return true;
        }
        false
    }

    /// What another process needs to go on, with the connection's `socket`.
    pub(crate) fn saved(&self, socket: RawFd) -> Saved {
        let [call, error, log_call] = self.ring.signalled();
        Saved {
            socket,
            features: self.features,
            protocol_features: self.protocol_features,
            regions: self.memory.described().collect(),
            size: self.queue.size(),
            ready: self.queue.ready(),
            base: match self.started {
                true => self.ring.base(),
                false => self.queue.next_avail(),
            },
            addresses: self.addresses,
            kick: self.kick.as_ref().map(|kick| kick.as_fd().as_raw_fd()),
            call,
            error,
            log: self.log.as_ref().and_then(|log| log.described()),
            log_call,
            used_place: self.used_place,
            inflight: self.inflight.as_ref().and_then(|region| region.described()),
            enabled: self.enabled,
            started: self.started,
        }
    }

    /// Goes on with what another process has saved, except for the features, which were agreed on
    /// again. Descriptors come from `claim`. `faulty`: that process died by its own fault. Errors: what
    /// was saved is invalid, or does not fit this device.
    pub(crate) fn restore(
        &mut self,
        saved: &Saved,
        claim: &mut dyn FnMut(RawFd) -> io::Result<OwnedFd>,
        faulty: bool,
    ) -> std::result::Result<(), Failure> {
        let mut claim = |fd| claim(fd).map(File::from).map_err(Failure::Claim);
        let (mut table, mut files) = (Vec::new(), Vec::new());
        for (region, file) in &saved.regions {
            table.push(*region);
            files.push(claim(*file)?);
        }
        self.memory = Rc::new(Memory::new(&table, files).map_err(Failure::State)?);
        self.queue
            .try_set_size(saved.size)
            .map_err(|_| Failure::QueueSize(saved.size))?;
        self.queue.set_ready(saved.ready);
        self.queue.set_next_avail(saved.base);
        self.addresses = saved.addresses;
        let kick = saved.kick.map(&mut claim).transpose()?;
        self.kick = kick
            .map(|kick| Kick::new(Some(kick)))
            .transpose()
            .map_err(Failure::State)?;
        let call = saved.call.map(&mut claim).transpose()?;
        self.ring
            .set_call(call.map(Call::new).transpose().map_err(Failure::State)?);
        let error = saved.error.map(&mut claim).transpose()?;
        self.ring
            .set_error(error.map(Call::new).transpose().map_err(Failure::State)?);
        if let Some((file, offset, size)) = saved.log {
            let log = DirtyLog::new(claim(file)?, offset, size).map_err(Failure::State)?;
            self.log = Some(Rc::new(log));
        }
        let log_call = saved.log_call.map(&mut claim).transpose()?;
        let log_call = log_call.map(Call::new).transpose();
        self.ring.set_log_call(log_call.map_err(Failure::State)?);
        self.used_place = saved.used_place;
        self.apply_log();
        if let Some((file, offset, size, queue_size)) = saved.inflight {
            let region = InflightRegion::open(claim(file)?, offset, size, queue_size);
            self.inflight = Some(region.map_err(Failure::State)?);
        }
        self.enabled = saved.enabled;
        self.started = saved.started;
        if self.started {
            self.ring.set_base(saved.base);
            self.go_on(faulty)?;
        }
        Ok(())
    }

    /// Goes on with a ring that another process has started. Errors: it cannot have been.
    fn go_on(&mut self, faulty: bool) -> std::result::Result<(), Failure> {
        let (Some(kick), Some(addresses)) = (&self.kick, &self.addresses) else {
            return Err(Failure::State(io::ErrorKind::InvalidData.into()));
        };
        let going = self.table().and_then(|table| {
            // The ring had failed, and stays so.
            if !table.has_content() {
                return Ok(());
            }
            if faulty {
                table.blame();
            }
            self.ring
                .start(self.queue.state(), addresses, &self.memory, table)
        });
        if let Err(error) = going {
            if let Ok(table) = self.table() {
                table.clear();
            }
            self.ring.fail(&error);
        }
        if self.ring.is_running() {
            self.poller
                .watch(kick.as_fd(), Source::Kick)
                .map_err(Failure::Watch)?;
            self.watched = true;
        }
        // What was answered may not have been announced, and not marked.
        self.ring.mark_used();
        self.ring.announce();
        Ok(())
    }

    /// Replaces the memory table. A ring that is not in the new one stops until a later one has it.
    fn replace_memory(&mut self, memory: Memory) -> Result<()> {
        self.memory = Rc::new(memory);
        self.ring.notify();
        let placed = self.ring.set_memory(&self.memory, self.addresses.as_ref());
        if let Err(error) = placed {
            self.drain();
            self.ring.notify();
            self.halt();
            return Err(failed(error));
        }
        // The table is valid even if the ring still has to wait for its memory.
        if let Err(error) = self.start() {
            log::debug!("the ring does not start yet: {error}");
        }
        Ok(())
    }

    /// Back to the initial state, except for what the front-end sends only once: its memory, and the
    /// descriptors to signal.
    fn reset(&mut self) {
        self.stop();
        self.transfer.cancel();
        self.handler.reset();
        self.kick = None;
        self.enabled = false;
        self.features = 0;
        self.queue.reset();
        self.queue.set_ready(true);
        self.addresses = None;
        self.used_place = None;
        self.apply_log();
    }

    /// Tells the ring which log it has.
    fn apply_log(&self) {
        let logs = self.features & LOG_ALL != 0;
        let log = self.log.clone().filter(|_| logs);
        self.ring.set_log(log, self.used_place);
    }

    /// SET_LOG_FD, which `vhost` lacks: `file` is signalled when pages were marked. Errors: those of
    /// fstat(2).
    pub(crate) fn set_log_fd(&self, file: File) -> io::Result<()> {
        self.ring.set_log_call(Some(Call::new(file)?));
        Ok(())
    }

    /// Whether messages are acknowledged that ask for it.
    pub(crate) fn acknowledges(&self) -> bool {
        self.asked && self.says_reply_ack
    }

    /// Tells once if the front-end's configuration space, of which it reads these bytes, has another
    /// size than the device's.
    fn check_config_size(&mut self, start: usize, size: usize) {
        let own = self.config.config_space.len();
        let less = start == 0 && size > self.config.config_head && size < own;
        // User-mode Linux reads byte after byte, each with all that is before it. Who can read no
        // further asks for the same again.
        let less = less && std::mem::replace(&mut self.size_read, size) == size;
        let more = start.saturating_add(size) > own;
        if self.size_told || !(less || more) {
            return;
        }
        self.size_told = true;
        if less {
            log::warn!(
                "the front-end passes only {size} of the {own} bytes of configuration to the \
                 guest: give QEMU's device config_size={own}"
            );
        } else {
            log::info!(
                "the front-end passes more than the {own} bytes of configuration to the guest, \
                 the rest as zeros, which does no harm; config_size={own} is enough for QEMU's \
                 device"
            );
        }
    }

    /// The descriptor of a transfer is ready.
    pub(crate) fn advance_transfer(&mut self) {
        self.transfer.ready();
    }

    /// The front-end has gone.
    pub(crate) fn cancel_transfer(&mut self) {
        self.transfer.cancel();
    }

    /// Errors: the transfer of the device's state was not agreed on.
    fn migrates(&self) -> Result<()> {
        let bit = VhostUserProtocolFeatures::DEVICE_STATE.bits();
        match self.protocol_features & bit {
            0 => Err(refuse("the transfer of the state was not agreed on")),
            _ => Ok(()),
        }
    }

    fn has_protocol_features(&self) -> bool {
        self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0
    }

    fn stopped(&self) -> Result<()> {
        if self.ring.is_running() {
            Err(refuse("the ring is running"))
        } else {
            Ok(())
        }
    }
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    /// Deprecated. The specification recommends to disable the rings and to keep all other state.
    fn reset_owner(&mut self) -> Result<()> {
        self.stop();
        self.enabled = !self.has_protocol_features();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        self.asked = true;
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.offered() != 0 {
            return Err(refuse("features that were not offered"));
        }
        if (features ^ self.features) & !LOG_ALL != 0 {
            self.stopped()?;
        }
        let had_protocol_features = self.has_protocol_features();
        self.features = features;
        self.queue.set_event_idx(features & EVENT_IDX != 0);
        // Without protocol features no message enables a ring.
        if !self.has_protocol_features() {
            self.enabled = true;
        } else if !had_protocol_features {
            self.enabled = false;
        }
        self.apply_log();
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        let mut optional = VhostUserProtocolFeatures::empty();
        let migration =
            VhostUserProtocolFeatures::LOG_SHMFD | VhostUserProtocolFeatures::DEVICE_STATE;
        let tracks = self.handler.room().is_some();
        optional.set(migration, self.can_migrate());
        optional.set(VhostUserProtocolFeatures::INFLIGHT_SHMFD, tracks);
        Ok(optional
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.says_reply_ack = features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
        if features & !self.get_protocol_features()?.bits() != 0 {
            return Err(refuse("protocol features that were not offered"));
        }
        self.protocol_features = features;
        let own = self.config.config_space.len();
        let reads_config = features & VhostUserProtocolFeatures::CONFIG.bits() != 0;
        if own > 0 && !reads_config && !self.size_told {
            self.size_told = true;
            log::warn!(
                "the front-end passes no configuration to the guest, which cannot find the device \
                 then: give QEMU's device config_size={own}"
            );
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.drain();
        let memory = Memory::new(table, files).map_err(failed)?;
        self.replace_memory(memory)?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_SLOTS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        // Requests in flight keep their memory.
        let memory = self.memory.with_region(region, file).map_err(failed)?;
        self.replace_memory(memory)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.drain();
        let memory = self
            .memory
            .without_region(region.guest_phys_addr, region.user_addr, region.memory_size)
            .map_err(failed)?;
        self.replace_memory(memory)
    }

    fn set_vring_num(&mut self, index: u32, size: u32) -> Result<()> {
        only_ring(index)?;
        self.stopped()?;
        // A refused size must not leave another one in use: the front-end may not wait for the answer.
        let accepted = u16::try_from(size).is_ok_and(|size| self.queue.try_set_size(size).is_ok());
        self.queue.set_ready(accepted);
        if accepted {
            Ok(())
        } else {
            Err(refuse(
                "a ring's size must be a power of two, and not too large",
            ))
        }
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        only_ring(index)?;
        let addresses = Addresses {
            descriptors,
            available,
            used,
        };
        let logs = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        let used_place = logs.then_some(log);
        if let (Some(place), Some(log)) = (used_place, &self.log) {
            if !log.covers(place, split::used_len(self.queue.size()) as u64) {
                return Err(refuse("a used ring beyond the log"));
            }
        }
        // QEMU repeats the addresses of a running ring to enable its dirty log.
        if self.addresses != Some(addresses) {
            self.stopped()?;
            self.addresses = Some(addresses);
        }
        self.used_place = used_place;
        self.apply_log();
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        only_ring(index)?;
        self.stopped()?;
        let base = u16::try_from(base).map_err(|_| refuse("a base beyond 16 bits"))?;
        self.queue.set_next_avail(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        only_ring(index).map_err(|_| hang_up("the device has one ring"))?;
        self.stop();
        // The ring starts again with the next kick descriptor.
        self.kick = None;
        Ok(VhostUserVringState::new(
            index,
            self.queue.next_avail().into(),
        ))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        only_ring(index)?;
        let kick = Kick::new(file).map_err(failed)?;
        if self.ring.is_running() {
            self.poller
                .watch(kick.as_fd(), Source::Kick)
                .map_err(failed)?;
            self.unwatch();
            self.watched = true;
        }
        self.kick = Some(kick);
        self.start()
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        only_ring(index)?;
        let call = file.map(Call::new).transpose().map_err(failed)?;
        self.ring.set_call(call);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        only_ring(index)?;
        let error = file.map(Call::new).transpose().map_err(failed)?;
        self.ring.set_error(error);
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        only_ring(index)?;
        self.enabled = enable;
        if enable {
            self.start()
        } else {
            self.stop();
            Ok(())
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(1)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let (start, size) = (offset as usize, size as usize);
        self.check_config_size(start, size);
        let mut space = self.config.config_space.clone();
        space.resize(MIN_CONFIG.max(space.len()), 0);
        let range = start..start.saturating_add(size);
        space
            .get(range)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| refuse("beyond the configuration space"))
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(refuse("the configuration space cannot be written"))
    }

    /// A log that is in use already may be replaced, as front-ends do when memory is added, or to look
    /// at what the one before says.
    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        if !self.can_migrate() {
            return Err(hang_up("no migration"));
        }
        let log = DirtyLog::new(file, log.mmap_offset, log.mmap_size)
            .map_err(|_| hang_up("a log that cannot be mapped, or is longer than its file"))?;
        self.log = Some(Rc::new(log));
        self.apply_log();
        Ok(())
    }

    /// The region is this process's; its content counts once the front-end has handed it over.
    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let Some(room) = self.handler.room() else {
            return Err(hang_up("no in-flight tracking"));
        };
        if wanted.num_queues != 1 || wanted.queue_size > self.config.max_queue_size {
            return Err(hang_up("in-flight tracking for other rings than there are"));
        }
        inflight_region::create(wanted.queue_size, room).map_err(|error| {
            log::error!("no memory for the requests in flight: {error}");
            hang_up("no memory for the requests in flight")
        })
    }

    fn set_inflight_fd(&mut self, region: &VhostUserInflight, file: File) -> Result<()> {
        self.stopped()?;
        if self.handler.room().is_none() {
            return Err(refuse("no in-flight tracking"));
        }
        if region.num_queues != 1 || region.queue_size > self.config.max_queue_size {
            return Err(refuse("in-flight tracking for other rings than there are"));
        }
        let (offset, size) = (region.mmap_offset, region.mmap_size);
        let region = InflightRegion::open(file, offset, size, region.queue_size).map_err(failed)?;
        self.handler.adopt(region.room()).map_err(failed)?;
        // Nobody knows how a process before has ended, if there was one.
        region.table().map_err(failed)?.blame();
        self.inflight = Some(region);
        Ok(())
    }

    /// The front-end's own descriptor is used. `vhost` does not report why this is refused.
    fn set_device_state_fd(
        &mut self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        file: File,
    ) -> Result<Option<File>> {
        let begun = (self.migrates().and_then(|()| self.stopped())).and_then(|()| {
            let begun = match direction {
                VhostTransferStateDirection::SAVE => self.transfer.save(file),
                VhostTransferStateDirection::LOAD => self.transfer.load(file),
            };
            begun.map_err(failed)
        });
        if let Err(error) = &begun {
            log::error!("cannot transfer the device's state: {error}");
        }
        begun.map(|()| None)
    }

    fn check_device_state(&mut self) -> Result<()> {
        self.migrates()?;
        self.transfer.check().map_err(failed)
    }

    // The rest belongs to features that are not offered.

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(refuse("not a graphics device"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(refuse("no shared objects"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(hang_up("no shared memory"))
    }
}
