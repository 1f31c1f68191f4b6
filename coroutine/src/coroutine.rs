//! The handle to a coroutine, and passing values.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::core::{Core, Id, flags};
use crate::lifecycle::{self, SpawnError};
use crate::stack::StackError;

/// A coroutine and the right to enter it.
///
/// Each entry passes an `In` to the coroutine. Each yield returns an `Out`, and the end a `Return`.
/// [`create`](Coroutine::create) makes a coroutine without values,
/// [`with_values`](Coroutine::with_values) one with values.
///
/// Dropping the handle before the coroutine's end unwinds it, which drops the values on its stack.
/// If it waits for a worker, which may use its stack, that happens when the worker is done. If it
/// waits for a lock, in a queue or for a deadline, it happens at once.
///
/// A coroutine stays on the thread that has created it ([`SendCoroutine`] does not), and only one
/// owner can enter it:
///
/// ```compile_fail,E0277
/// fn send<T: Send>(_: T) {}
/// send(coroutine::Coroutine::create(|| {}));
/// ```
///
/// ```compile_fail,E0277
/// fn share<T: Sync>(_: T) {}
/// share(coroutine::Coroutine::create(|| {}));
/// ```
///
/// ```compile_fail,E0382
/// use coroutine::Coroutine;
/// let mut itself = Coroutine::create(|| {}).unwrap();
/// let other = Coroutine::create(move || { itself.enter(); });
/// itself.enter();
/// ```
///
/// It must not borrow from its creator's stack, which it may outlive:
///
/// ```compile_fail,E0597
/// use coroutine::Coroutine;
/// let coroutine = {
///     let text = String::from("gone");
///     Coroutine::create(|| println!("{}", &text))
/// };
/// ```
#[must_use = "a coroutine that is dropped is unwound"]
pub struct Coroutine<In = (), Out = (), Return = ()> {
    core: NonNull<Core>,
    values: PhantomData<Values<In, Out, Return>>,
}

/// Contravariant in `In`, and neither `Send` nor `Sync`.
type Values<In, Out, Return> = (fn(In), *mut Out, *mut Return);

/// Why a coroutine has returned control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<Out, Return> {
    /// It has yielded a value and can be entered again.
    Yielded(Out),
    /// It has ended with a value.
    Finished(Return),
    /// It waits for a worker, a lock, a queue or a deadline, and is resumed by that.
    /// [`Coroutine::step`] returns what it has done since.
    Waiting,
}

/// The inner end of a coroutine with values.
///
/// It cannot leave its coroutine:
///
/// ```compile_fail,E0521
/// use coroutine::Coroutine;
/// std::thread_local! {
///     static KEPT: std::cell::Cell<Option<&'static coroutine::Yielder<(), u32>>> = Default::default();
/// }
/// let coroutine = Coroutine::<(), u32>::with_values(|yielder, ()| KEPT.set(Some(yielder)));
/// ```
pub struct Yielder<In, Out> {
    input: Cell<Option<In>>,
    output: Cell<Option<Out>>,
}

/// Values in transit. Aligned like the stack, which makes its address simple to compute.
#[repr(align(16))]
struct Mailbox<In, Out, Return> {
    yielder: Yielder<In, Out>,
    result: Cell<Option<Return>>,
}

impl<In, Out, Return> Default for Mailbox<In, Out, Return> {
    #[inline(always)]
    fn default() -> Self {
        let yielder = Yielder {
            input: Cell::new(None),
            output: Cell::new(None),
        };
        Mailbox {
            yielder,
            result: Cell::new(None),
        }
    }
}

impl<In, Out, Return> Mailbox<In, Out, Return> {
    fn empty(&self) {
        self.yielder.input.take();
        self.yielder.output.take();
        self.result.take();
    }
}

type Plain = Mailbox<(), (), ()>;

impl Coroutine {
    /// Creates a coroutine that will run `f`.
    ///
    /// Errors: [`StackError`] if there is no stack for it.
    #[inline]
    pub fn create(f: impl FnOnce() + 'static) -> Result<Coroutine, StackError> {
        lifecycle::create::<_, Plain>(f, 0).map(Coroutine::of)
    }

    /// As [`create`](Coroutine::create), on a stack of `size` bytes, which is mapped for this
    /// coroutine and unmapped afterwards.
    ///
    /// Errors: [`StackError`] if there is no stack of that size.
    pub fn create_with_stack(
        size: usize,
        f: impl FnOnce() + 'static,
    ) -> Result<Coroutine, StackError> {
        lifecycle::create_with_stack::<_, Plain>(size, f, 0).map(Coroutine::of)
    }

    /// Runs the coroutine until it yields, waits or ends. Returns false if it has ended. A panic in
    /// it continues here.
    ///
    /// # Panics
    /// If the coroutine has ended, or waits for something that will resume it.
    #[inline]
    pub fn enter(&mut self) -> bool {
        lifecycle::enter(self.core())
    }

    /// As [`enter`](Coroutine::enter), inlined into the caller; see [`yield_inline`].
    ///
    /// [`yield_inline`]: crate::yield_inline
    ///
    /// # Panics
    /// As [`enter`](Coroutine::enter).
    #[inline(always)]
    pub fn enter_inline(&mut self) -> bool {
        lifecycle::enter_inline(self.core())
    }
}

impl<In, Out, Return> Coroutine<In, Out, Return> {
    /// Creates a coroutine that will run `f` with the value of its first entry. By
    /// [`Yielder::yield_value`] `f` yields a value and gets that of the next entry.
    ///
    /// ```
    /// use coroutine::{Coroutine, Step};
    ///
    /// let mut sum = Coroutine::with_values(|yielder, first: u32| {
    ///     let mut sum = first;
    ///     while sum < 10 {
    ///         sum += yielder.yield_value(sum);
    ///     }
    ///     "enough"
    /// })?;
    /// assert_eq!(sum.pass(1), Step::Yielded(1));
    /// assert_eq!(sum.pass(5), Step::Yielded(6));
    /// assert_eq!(sum.pass(4), Step::Finished("enough"));
    /// # Ok::<(), coroutine::StackError>(())
    /// ```
    ///
    /// Errors: [`StackError`] if there is no stack for it.
    pub fn with_values(
        f: impl FnOnce(&Yielder<In, Out>, In) -> Return + 'static,
    ) -> Result<Self, StackError>
    where
        In: 'static,
        Out: 'static,
        Return: 'static,
    {
        let body = || {
            // SAFETY: the reference does not leave this closure, which runs on the coroutine's
            // stack.
            let core = unsafe { lifecycle::this() };
            // SAFETY: `create` has written a mailbox of this type there, above this stack's frames.
            // It stays until the core is given back, after the coroutine's end.
            let mailbox = unsafe { core.mailbox::<Mailbox<In, Out, Return>>().as_ref() };
            let _emptied = EmptiedIfDisowned { core, mailbox };
            let value = f(&mailbox.yielder, mailbox.yielder.value());
            mailbox.result.set(Some(value));
        };
        lifecycle::create::<_, Mailbox<In, Out, Return>>(body, 0).map(Self::of)
    }

    /// Passes a value to the coroutine and runs it until it yields, waits or ends. A panic in it
    /// continues here.
    ///
    /// # Panics
    /// If the coroutine has ended, or waits for something that will resume it, or yields by
    /// [`yield_now`](crate::yield_now), which passes no value.
    pub fn pass(&mut self, value: In) -> Step<Out, Return> {
        // Before the value goes into the mailbox, from which only the coroutine takes it.
        lifecycle::check(self.core());
        self.mailbox().yielder.input.set(Some(value));
        lifecycle::enter(self.core());
        self.step()
    }

    /// The step of a coroutine that was [`Waiting`](Step::Waiting) and has been resumed since.
    ///
    /// # Panics
    /// If that step was returned already, or if the coroutine has yielded without a value.
    pub fn step(&mut self) -> Step<Out, Return> {
        if let Some(value) = self.mailbox().yielder.output.take() {
            return Step::Yielded(value);
        }
        if let Some(value) = self.mailbox().result.take() {
            return Step::Finished(value);
        }
        assert!(
            self.core().is_waiting(),
            "a coroutine with values has yielded without one"
        );
        Step::Waiting
    }

    /// Whether the coroutine has ended.
    pub fn is_finished(&self) -> bool {
        self.core().is_finished()
    }

    /// Whether the coroutine waits for something that will resume it. Its owner must not enter it
    /// then.
    pub fn is_waiting(&self) -> bool {
        self.core().is_waiting()
    }

    /// The coroutine's identifier, for [`current`](crate::current) and [`entered`](crate::entered).
    pub fn id(&self) -> Id {
        self.core().id()
    }

    #[inline(always)]
    fn of(core: NonNull<Core>) -> Self {
        Coroutine {
            core,
            values: PhantomData,
        }
    }

    #[inline(always)]
    fn core(&self) -> &Core {
        // SAFETY: the core comes from `create`, and stays until the handle is dropped.
        unsafe { self.core.as_ref() }
    }

    fn mailbox(&self) -> &Mailbox<In, Out, Return> {
        // SAFETY: `create` has written a mailbox of this type there, which lives as long as the
        // core.
        unsafe { self.core().mailbox().as_ref() }
    }
}

impl<In, Out, Return> Drop for Coroutine<In, Out, Return> {
    #[inline]
    fn drop(&mut self) {
        if std::mem::needs_drop::<Mailbox<In, Out, Return>>() {
            self.mailbox().empty();
        }
        // SAFETY: the owner's only reference to the core is dropped.
        unsafe { self.core().disown() };
    }
}

/// The values that the coroutine yields. Its return value is dropped.
///
/// # Panics
/// As [`Coroutine::pass`], and if the coroutine waits.
impl<Out, Return> Iterator for Coroutine<(), Out, Return> {
    type Item = Out;

    fn next(&mut self) -> Option<Out> {
        if self.is_finished() {
            return None;
        }
        match self.pass(()) {
            Step::Yielded(value) => Some(value),
            Step::Finished(_) => None,
            Step::Waiting => {
                panic!("a coroutine that is used as an iterator waits for something else")
            }
        }
    }
}

impl<In, Out> Yielder<In, Out> {
    /// Suspends the coroutine, passes a value to the code that entered it, and returns the value of
    /// the next entry.
    ///
    /// # Panics
    /// As [`yield_now`](crate::yield_now), and if the coroutine is entered without a value.
    pub fn yield_value(&self, value: Out) -> In {
        self.output.set(Some(value));
        lifecycle::yield_now();
        self.value()
    }

    fn value(&self) -> In {
        match self.input.take() {
            Some(value) => value,
            None => panic!("a coroutine with values was entered without one"),
        }
    }
}

/// Empties the mailbox at the end of a coroutine that has lost its owner.
struct EmptiedIfDisowned<'a, In, Out, Return> {
    core: &'a Core,
    mailbox: &'a Mailbox<In, Out, Return>,
}

impl<In, Out, Return> Drop for EmptiedIfDisowned<'_, In, Out, Return> {
    fn drop(&mut self) {
        if self.core.is_detached() {
            self.mailbox.empty();
        }
    }
}

/// A coroutine that different threads may enter, one after the other.
///
/// It may migrate to another thread at each yield. It cannot wait for workers, locks and queues,
/// which belong to one thread.
///
/// A thread-local variable is that of the thread that the coroutine currently runs on. The compiler
/// may compute the address of a thread-local variable before a yield and use it after the yield in
/// the same function: access thread-local variables in functions that are not inlined.
#[must_use = "a coroutine that is dropped is unwound"]
pub struct SendCoroutine<In = (), Out = (), Return = ()>(Coroutine<In, Out, Return>);

// SAFETY: the creator has promised that everything on its stack may move to another thread while it
// is suspended, and the passed values are Send. Only its owner enters it, as it never waits.
unsafe impl<In: Send, Out: Send, Return: Send> Send for SendCoroutine<In, Out, Return> {}

impl SendCoroutine {
    /// Creates a coroutine that will run `f`.
    ///
    /// Errors: [`StackError`] if there is no stack for it.
    ///
    /// # Safety
    /// Whenever the coroutine yields, all values on its stack must be [`Send`], and no address of a
    /// thread-local variable may be used across the yield. It is not sufficient that `f` is Send:
    /// the compiler does not check the values that `f` creates.
    pub unsafe fn create(f: impl FnOnce() + Send + 'static) -> Result<Self, StackError> {
        Coroutine::create(f).map(SendCoroutine::of)
    }

    /// As [`Coroutine::enter`].
    ///
    /// # Panics
    /// As [`Coroutine::enter`].
    #[inline]
    pub fn enter(&mut self) -> bool {
        self.0.enter()
    }
}

impl<In, Out, Return> SendCoroutine<In, Out, Return> {
    /// As [`Coroutine::with_values`].
    ///
    /// Errors: [`StackError`] if there is no stack for it.
    ///
    /// # Safety
    /// As for [`create`](SendCoroutine::create).
    pub unsafe fn with_values(
        f: impl FnOnce(&Yielder<In, Out>, In) -> Return + Send + 'static,
    ) -> Result<Self, StackError>
    where
        In: Send + 'static,
        Out: Send + 'static,
        Return: Send + 'static,
    {
        Coroutine::with_values(f).map(SendCoroutine::of)
    }

    /// As [`Coroutine::pass`].
    ///
    /// # Panics
    /// As [`Coroutine::pass`].
    pub fn pass(&mut self, value: In) -> Step<Out, Return> {
        self.0.pass(value)
    }

    /// Whether the coroutine has ended.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// The coroutine's identifier, for [`current`](crate::current) and [`entered`](crate::entered).
    pub fn id(&self) -> Id {
        self.0.id()
    }

    fn of(coroutine: Coroutine<In, Out, Return>) -> Self {
        coroutine.core().set_flag(flags::MIGRATES);
        SendCoroutine(coroutine)
    }
}

/// Creates a coroutine and enters it at once. Returns when it first yields, waits or ends. It has
/// no owner: whatever it waits for resumes it. If it yields by [`yield_now`](crate::yield_now) it
/// is never resumed, and its stack is leaked.
///
/// Errors: [`SpawnError`] if there is no stack for it, with `f`.
///
/// # Panics
/// If the coroutine panics before it first waits, with its payload. Later panics continue in the
/// code that resumes it.
#[inline]
pub fn spawn<F: FnOnce() + 'static>(f: F) -> Result<(), SpawnError<F>> {
    lifecycle::spawn(f)
}
