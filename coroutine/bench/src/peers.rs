//! The primitives of the peers, each in a loop, used as a program would.

/// corosensei 0.3.
pub mod corosensei {
    use corosensei::stack::DefaultStack;
    use corosensei::{Coroutine, CoroutineResult, Yielder};

    /// Stack size: the same as ours.
    const STACK_SIZE: usize = coroutine::DEFAULT_STACK_SIZE;

    #[inline(never)]
    fn enter(coroutine: &mut Coroutine<(), (), ()>) -> bool {
        matches!(coroutine.resume(()), CoroutineResult::Yield(()))
    }

    #[inline(never)]
    fn yield_now(yielder: &Yielder<(), ()>) {
        yielder.suspend(());
    }

    /// `count` round trips, with resume and suspend in functions that are not inlined.
    pub fn yields(count: usize) {
        let mut coroutine = Coroutine::new(|yielder, ()| {
            loop {
                yield_now(yielder);
            }
        });
        for _ in 0..count {
            enter(&mut coroutine);
        }
        // SAFETY: nothing on the stack needs to be dropped.
        unsafe { coroutine.force_reset() };
    }

    /// As [`yields`], with both sides inlined into the loops.
    pub fn yields_inline(count: usize) {
        let mut coroutine = Coroutine::new(|yielder: &Yielder<(), ()>, ()| {
            loop {
                yielder.suspend(());
            }
        });
        for _ in 0..count {
            coroutine.resume(());
        }
        // SAFETY: nothing on the stack needs to be dropped.
        unsafe { coroutine.force_reset() };
    }

    /// Coroutines one after the other, with their stacks pooled in a `Vec`.
    pub fn lifecycles(count: usize) {
        let mut pool: Vec<DefaultStack> = Vec::new();
        for _ in 0..count {
            let stack = pool
                .pop()
                .unwrap_or_else(|| DefaultStack::new(STACK_SIZE).expect("no stack"));
            let mut coroutine = Coroutine::<(), (), (), _>::with_stack(stack, |_, ()| ());
            coroutine.resume(());
            pool.push(coroutine.into_stack());
        }
    }

    /// Suspended coroutines, each on a new stack.
    pub fn cold(count: usize) -> Vec<Coroutine<(), (), ()>> {
        (0..count)
            .map(|_| {
                let stack = DefaultStack::new(STACK_SIZE).expect("no stack");
                let mut coroutine =
                    Coroutine::with_stack(stack, |yielder: &Yielder<(), ()>, ()| {
                        yielder.suspend(())
                    });
                coroutine.resume(());
                coroutine
            })
            .collect()
    }
}

/// The design of 2011 in C: `peers/qemu_way.c`.
pub mod qemu_way {
    use std::ffi::c_void;
    use std::ptr;

    #[repr(C)]
    struct Co {
        private: [u8; 0],
    }

    unsafe extern "C" {
        fn qemu_way_create(
            entry: unsafe extern "C" fn(*mut c_void),
            argument: *mut c_void,
        ) -> *mut Co;
        fn qemu_way_enter(co: *mut Co);
        fn qemu_way_yield();
    }

    unsafe extern "C" fn ends(_: *mut c_void) {}

    unsafe extern "C" fn yields_once(_: *mut c_void) {
        // SAFETY: this runs in a coroutine.
        unsafe { qemu_way_yield() };
    }

    unsafe extern "C" fn yields_until_zero(left: *mut c_void) {
        // SAFETY: `yields` passes its counter, which outlives the coroutine.
        unsafe {
            let left = left.cast::<usize>();
            while *left > 0 {
                *left -= 1;
                qemu_way_yield();
            }
        }
    }

    unsafe extern "C" fn nests(depth: *mut c_void) {
        nest(depth as usize);
    }

    /// `count` round trips.
    pub fn yields(count: usize) {
        let mut left = count;
        // SAFETY: the coroutine is entered until it ends: once for each yield and once more.
        unsafe {
            let co = qemu_way_create(yields_until_zero, (&raw mut left).cast());
            for _ in 0..=count {
                qemu_way_enter(co);
            }
        }
    }

    /// Coroutines one after the other.
    pub fn lifecycles(count: usize) {
        for _ in 0..count {
            // SAFETY: the coroutine ends at the first entering.
            unsafe { qemu_way_enter(qemu_way_create(ends, ptr::null_mut())) };
        }
    }

    /// Coroutines that yield once.
    pub fn costs(count: usize) {
        for _ in 0..count {
            // SAFETY: the coroutine ends at the second entering.
            unsafe {
                let co = qemu_way_create(yields_once, ptr::null_mut());
                qemu_way_enter(co);
                qemu_way_enter(co);
            }
        }
    }

    /// `depth` coroutines, each created and entered by the previous one.
    pub fn nest(depth: usize) {
        if depth > 0 {
            let argument = ptr::without_provenance_mut(depth - 1);
            // SAFETY: the coroutine ends at the first entering.
            unsafe { qemu_way_enter(qemu_way_create(nests, argument)) };
        }
    }
}
