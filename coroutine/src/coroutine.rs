//! Coroutines that somebody owns, with values that go in and out.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::core::{Core, Id, flags};
use crate::lifecycle::{self, SpawnError};
use crate::stack::StackError;

/// A coroutine and the right to enter it.
///
/// `In` goes in at each entering, `Out` comes out at each yield and `Return` at the end. A
/// coroutine that passes nothing is made by [`create`](Coroutine::create), one with values by
/// [`with_values`](Coroutine::with_values).
///
/// Dropped before its end, the coroutine is unwound: what lives on its stack is dropped. One that
/// waits for a worker, which may use its stack, is unwound when the worker has done; one that waits
/// for a lock, in a queue or for the time, at once.
///
/// A coroutine stays on the thread that has made it ([`SendCoroutine`] does not), and is entered by
/// one at a time:
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
/// It may not borrow from the stack of who makes it, as it may outlive that:
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

/// In go values alone, and what is made of all this belongs to a thread.
type Values<In, Out, Return> = (fn(In), *mut Out, *mut Return);

/// How a coroutine has come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<Out, Return> {
    /// It has yielded a value and can be entered again.
    Yielded(Out),
    /// It has ended with a value.
    Finished(Return),
    /// It waits for a worker, a lock, a queue or the time, and what it waits for enters it next.
    /// What it does then is told by [`Coroutine::step`].
    Waiting,
}

/// The inner end of a coroutine with values.
///
/// It is of use in its coroutine alone, and stays there:
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

/// Values on their way. Aligned as the stack is, which makes its place simple to find.
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
    /// Makes a coroutine that will run `f`.
    ///
    /// # Errors
    /// [`StackError`] if there is no stack for it.
    #[inline]
    pub fn create(f: impl FnOnce() + 'static) -> Result<Coroutine, StackError> {
        lifecycle::create::<_, Plain>(f, 0).map(Coroutine::of)
    }

    /// As [`create`](Coroutine::create), on a stack of `size` bytes, which is mapped for this
    /// coroutine and unmapped after it.
    ///
    /// # Errors
    /// [`StackError`] if there is no stack of that size.
    pub fn create_with_stack(
        size: usize,
        f: impl FnOnce() + 'static,
    ) -> Result<Coroutine, StackError> {
        lifecycle::create_with_stack::<_, Plain>(size, f, 0).map(Coroutine::of)
    }

    /// Runs the coroutine until it yields, waits or ends, and returns whether it has not ended. A
    /// panic in it goes on here.
    ///
    /// # Panics
    /// If the coroutine has ended, or waits for something that will enter it.
    #[inline]
    pub fn enter(&mut self) -> bool {
        lifecycle::enter(self.core())
    }

    /// As [`enter`](Coroutine::enter), copied into the caller; see [`yield_inline`].
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
    /// Makes a coroutine that will run `f` with the value that it is first entered with. `f` gets
    /// the values after that, and gives values out, by [`Yielder::yield_value`].
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
    /// # Errors
    /// [`StackError`] if there is no stack for it.
    pub fn with_values(
        f: impl FnOnce(&Yielder<In, Out>, In) -> Return + 'static,
    ) -> Result<Self, StackError>
    where
        In: 'static,
        Out: 'static,
        Return: 'static,
    {
        let body = || {
            // SAFETY: it is used in this coroutine alone.
            let core = unsafe { lifecycle::this() };
            // SAFETY: `create` puts a mailbox of this type there, and it lies above this stack's
            // frames until the core is released, which is after its end.
            let mailbox = unsafe { core.mailbox::<Mailbox<In, Out, Return>>().as_ref() };
            let _emptied = EmptiedIfDisowned { core, mailbox };
            let value = f(&mailbox.yielder, mailbox.yielder.value());
            mailbox.result.set(Some(value));
        };
        lifecycle::create::<_, Mailbox<In, Out, Return>>(body, 0).map(Self::of)
    }

    /// Runs the coroutine, with a value for it, until it yields, waits or ends. A panic in it goes
    /// on here.
    ///
    /// # Panics
    /// If the coroutine has ended, or waits for something that will enter it; if it yields by
    /// [`yield_now`](crate::yield_now), which passes no value.
    pub fn pass(&mut self, value: In) -> Step<Out, Return> {
        // Before the value is put where only the coroutine takes it from.
        lifecycle::check(self.core());
        self.mailbox().yielder.input.set(Some(value));
        lifecycle::enter(self.core());
        self.step()
    }

    /// What a coroutine has done that was [`Waiting`](Step::Waiting) and has been continued since.
    ///
    /// # Panics
    /// If that has been told already, or it has yielded without a value.
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

    /// Whether the coroutine has come to its end.
    pub fn is_finished(&self) -> bool {
        self.core().is_finished()
    }

    /// Whether the coroutine waits for something that will enter it: then its owner must not.
    pub fn is_waiting(&self) -> bool {
        self.core().is_waiting()
    }

    /// The coroutine's name for [`current`](crate::current) and [`entered`](crate::entered).
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
        // SAFETY: the core comes from `create`, and is given back only when the handle is dropped.
        unsafe { self.core.as_ref() }
    }

    fn mailbox(&self) -> &Mailbox<In, Out, Return> {
        // SAFETY: `create` has put a mailbox of this type there, and it lives as long as the core.
        unsafe { self.core().mailbox().as_ref() }
    }
}

impl<In, Out, Return> Drop for Coroutine<In, Out, Return> {
    #[inline]
    fn drop(&mut self) {
        if std::mem::needs_drop::<Mailbox<In, Out, Return>>() {
            self.mailbox().empty();
        }
        // SAFETY: the handle, which alone uses the core, goes away.
        unsafe { self.core().disown() };
    }
}

/// Each value that the coroutine yields; what it ends with is dropped.
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
            Step::Waiting => panic!("a coroutine that is iterated over waits for something else"),
        }
    }
}

impl<In, Out> Yielder<In, Out> {
    /// Suspends the coroutine with a value for who has entered it, and returns the value that it
    /// is entered with next.
    ///
    /// # Panics
    /// As [`yield_now`](crate::yield_now); if it is entered without a value.
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

/// Drops what is left in the mailbox at the end of a coroutine that has no owner any more.
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

/// A coroutine that may be entered by one thread after the other.
///
/// It may go to another thread at each yield, so what it does has to be safe there. It cannot wait
/// for workers, locks and queues, which belong to one thread.
///
/// A thread-local variable is the one of the thread that the coroutine runs on just now. Code
/// compiled into one function with a yield may take the address of a thread-local variable before
/// the yield and use it behind: read thread-locals in functions that are not inlined.
#[must_use = "a coroutine that is dropped is unwound"]
pub struct SendCoroutine<In = (), Out = (), Return = ()>(Coroutine<In, Out, Return>);

// SAFETY: who makes one has promised that all that is on its stack may go to another thread when
// it is suspended, and the values are Send. Only the owner enters it: it does not wait.
unsafe impl<In: Send, Out: Send, Return: Send> Send for SendCoroutine<In, Out, Return> {}

impl SendCoroutine {
    /// Makes a coroutine that will run `f`.
    ///
    /// # Errors
    /// [`StackError`] if there is no stack for it.
    ///
    /// # Safety
    /// Whenever the coroutine yields, nothing may live on its stack that is not [`Send`], and no
    /// address of a thread-local variable be used over the yield. That `f` is Send is not
    /// sufficient, as it says nothing of what `f` makes, and the compiler cannot see it.
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
    /// # Errors
    /// [`StackError`] if there is no stack for it.
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

    /// Whether the coroutine has come to its end.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// The coroutine's name for [`current`](crate::current) and [`entered`](crate::entered).
    pub fn id(&self) -> Id {
        self.0.id()
    }

    fn of(coroutine: Coroutine<In, Out, Return>) -> Self {
        coroutine.core().set_flag(flags::MIGRATES);
        SendCoroutine(coroutine)
    }
}

/// Makes a coroutine and enters it at once; returns when it first yields, waits or ends. It has no
/// owner: what it waits for continues it.
///
/// One that yields otherwise is never continued, and keeps its stack.
///
/// # Errors
/// [`SpawnError`] if there is no stack for it; `f` is in there.
///
/// # Panics
/// With what the coroutine panics with, if it does before it first waits; later panics reach who
/// continues it.
#[inline]
pub fn spawn<F: FnOnce() + 'static>(f: F) -> Result<(), SpawnError<F>> {
    lifecycle::spawn(f)
}
