//! A device that echoes, at once or when it is told to.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};

use vhost_user::{Handler, Migration, Request, Resumed, Room};

/// Answers every request with the bytes it came with, as many as fit.
#[derive(Default)]
pub struct Echo {
    /// Keep requests instead of answering them at once.
    pub keep: Cell<bool>,
    /// Take no more requests.
    pub full: Cell<bool>,
    /// What was kept. Draining answers it.
    pub kept: RefCell<Vec<Request>>,
    pub handled: Cell<usize>,
    /// What was known of each request that was handled.
    pub resumed: RefCell<Vec<Option<Resumed>>>,
    pub drains: Cell<usize>,
    pub resets: Cell<usize>,
    /// How many requests were answered only then.
    pub drained: Cell<usize>,
    /// How much the front-end is to keep.
    pub room: Cell<Option<usize>>,
    /// What it has handed over.
    pub adopted: RefCell<Vec<Room>>,
    /// Refuse that.
    pub refuses: Cell<bool>,
    /// The state that is migrated, if it is offered.
    pub migrates: Cell<bool>,
    pub state: RefCell<Vec<u8>>,
    /// How long it may be.
    pub limit: Cell<usize>,
    /// Neither save nor load.
    pub fails: Cell<bool>,
}

pub fn echo(request: Request) {
    let mut bytes = vec![0; request.readable().len()];
    assert_eq!(request.readable().read_at(0, &mut bytes), bytes.len());
    let written = request.writable().write_at(0, &bytes);
    request.complete(written as u32);
}

impl Echo {
    /// Answers what was kept.
    pub fn answer(&self) -> usize {
        let kept = self.kept.take();
        let count = kept.len();
        kept.into_iter().for_each(echo);
        count
    }
}

impl Handler for Echo {
    fn handle(&self, request: Request) {
        self.handled.set(self.handled.get() + 1);
        self.resumed.borrow_mut().push(request.resumed().copied());
        if self.keep.get() {
            self.kept.borrow_mut().push(request);
        } else {
            echo(request);
        }
    }

    fn takes(&self) -> bool {
        !self.full.get()
    }

    fn drain(&self) {
        self.drains.set(self.drains.get() + 1);
        self.drained.set(self.drained.get() + self.answer());
    }

    fn room(&self) -> Option<usize> {
        self.room.get()
    }

    fn adopt(&self, room: Room) -> io::Result<()> {
        if self.refuses.get() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.adopted.borrow_mut().push(room);
        Ok(())
    }

    fn migration(&self) -> Option<&dyn Migration> {
        self.migrates.get().then_some(self)
    }

    fn reset(&self) {
        assert!(self.kept.borrow().is_empty(), "drained before it is reset");
        self.resets.set(self.resets.get() + 1);
    }
}

impl Migration for Echo {
    fn limit(&self) -> usize {
        self.limit.get()
    }

    fn save(&self, into: &mut dyn Write) -> io::Result<()> {
        if self.fails.get() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        into.write_all(&self.state.borrow())
    }

    fn load(&self, from: &mut dyn Read) -> io::Result<()> {
        if self.fails.get() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut state = Vec::new();
        from.read_to_end(&mut state)?;
        self.state.replace(state);
        Ok(())
    }
}
