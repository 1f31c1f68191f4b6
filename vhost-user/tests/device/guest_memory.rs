//! Guest memory as a front-end has it: files, of which parts appear in the guest.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// Where a region lies in its file.
const OFFSET: u64 = 0x1000;

pub struct Region {
    pub guest: u64,
    pub size: u64,
    pub user: u64,
    pub offset: u64,
    pub file: File,
}

impl Region {
    /// A region in a file of its own that is just long enough.
    pub fn new(guest: u64, user: u64, size: u64) -> Region {
        let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(OFFSET + size).unwrap();
        Region {
            guest,
            size,
            user,
            offset: OFFSET,
            file,
        }
    }

    /// As it stands in a message.
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.guest, self.size, self.user, self.offset]
            .iter()
            .flat_map(|field| field.to_ne_bytes())
            .collect()
    }
}

/// Guest memory by physical address.
#[derive(Default)]
pub struct GuestMemory {
    pub regions: Vec<Region>,
    /// The pages that the guest has written.
    pub written: RefCell<BTreeSet<u64>>,
}

impl GuestMemory {
    fn place(&self, address: u64) -> (&Region, u64) {
        let region = self
            .regions
            .iter()
            .find(|region| (region.guest..region.guest + region.size).contains(&address))
            .unwrap_or_else(|| panic!("{address:#x} is not memory"));
        (region, address - region.guest)
    }

    pub fn user_address(&self, address: u64) -> u64 {
        let (region, at) = self.place(address);
        region.user + at
    }

    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            let (region, at) = self.place(address + done as u64);
            let count = (len - done).min((region.size - at) as usize);
            region
                .file
                .read_exact_at(&mut bytes[done..][..count], region.offset + at)
                .unwrap();
            done += count;
        }
        bytes
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        let mut done = 0;
        if let Some(last) = (bytes.len() as u64).checked_sub(1) {
            let pages = address >> 12..=(address + last) >> 12;
            self.written.borrow_mut().extend(pages);
        }
        while done < bytes.len() {
            let (region, at) = self.place(address + done as u64);
            let count = (bytes.len() - done).min((region.size - at) as usize);
            region
                .file
                .write_all_at(&bytes[done..][..count], region.offset + at)
                .unwrap();
            done += count;
        }
    }

    /// Everything, to see whether anything has changed.
    pub fn image(&self) -> Vec<Vec<u8>> {
        self.regions
            .iter()
            .map(|region| self.read(region.guest, region.size as usize))
            .collect()
    }
}

impl ring_driver::Memory for GuestMemory {
    fn read(&self, address: u64, bytes: &mut [u8]) {
        bytes.copy_from_slice(&GuestMemory::read(self, address, bytes.len()));
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        GuestMemory::write(self, address, bytes);
    }
}
