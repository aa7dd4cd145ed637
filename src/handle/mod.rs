//! What `call_soon`, `call_later` and `call_at` return: a callback with its arguments and its context.
//!
//! There is one for every callback that runs, so it is all there is: a handle has its few arguments in itself, and dead
//! ones are used again.

mod returned;
mod timer;

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};
use pyo3::{PyClassInitializer, ffi, intern};

use crate::event_loop::EventLoop;
use crate::py::{
    Asyncio, AttachedValue, Blank, Function, Pool, Recycled, Slot, add_method, copy_current_context,
    enter_plain, in_context, is_empty, is_fatal, minor_version, new_context, recycle, this_thread, track,
};
pub use returned::ReturnSignal;
use returned::{NO_THREAD, Running};
pub use timer::{TimerHandle, add_delay};

/// So many arguments have a place in the handle. More are in a tuple, which has the first place.
const INLINE: usize = 3;

#[derive(Clone, Copy, Default)]
struct State {
    /// How many arguments there are; anything above `INLINE` means the tuple.
    arguments: u8,
    cancelled: bool,
    /// Another thread may have scheduled the call, and may cancel it.
    guarded: bool,
    /// How often the callback is being called now. (More than once if it runs its own handle.)
    running: u32,
}

/// A scheduled call (asyncio's `Handle`, of which it is an instance in the eyes of `isinstance`).
#[pyclass(subclass, frozen, weakref, module = "mioloop._core")]
pub struct Handle {
    event_loop: Slot<EventLoop>,
    /// Empty as long as that stands for a new context without variables.
    context: Slot,
    /// Empty once cancelled; but not before a call that is on has returned, which needs it.
    callback: Slot,
    arguments: [Slot; INLINE],
    state: AttachedValue<State>,
    /// Of a guarded handle: which thread is in the callback now.
    running_in: AtomicU64,
    /// Debug mode: where it was made.
    source_traceback: Slot,
    /// Debug mode: how it looked before it was cancelled.
    repr: Slot<PyString>,
}

impl Recycled for Handle {
    fn blank() -> PyClassInitializer<Self> {
        Handle::empty_one().into()
    }

    fn empty(dead: &Bound<'_, Self>) {
        dead.get().let_go_of_all(dead.py());
    }

    fn pool() -> &'static Pool {
        static POOL: Pool = Pool::new();
        &POOL
    }
}

/// The call that a handle is for, as asyncio shows it.
type Call<'py> = (Bound<'py, PyAny>, Bound<'py, PyTuple>);

impl Handle {
    /// A handle of a call of `callback(*arguments)`, in `context` or else in a copy of the current one.
    pub fn create<'py>(
        event_loop: &Bound<'py, EventLoop>,
        callback: &Bound<'py, PyAny>,
        arguments: &[Bound<'py, PyAny>],
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, Handle>> {
        let handle = Self::make(event_loop, callback, arguments, context)?.publish();
        handle.get().trace_origin(event_loop)?;
        Ok(handle)
    }

    /// The same, to be queued at once. If the loop runs, the collector does not see the handle: it is alive until it has
    /// run, and there is nothing to find out. (Without that, a thread that schedules thousands of calls would have the
    /// collector look at each of them again and again.)
    #[inline]
    pub fn create_ready<'py>(
        event_loop: &Bound<'py, EventLoop>,
        callback: &Bound<'py, PyAny>,
        arguments: &[Bound<'py, PyAny>],
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, Handle>> {
        let blank = Self::make(event_loop, callback, arguments, context)?;
        // Asked now, when no other code runs before the handle is in the queue.
        if event_loop.get().keeps_queued_alive(event_loop.py()) {
            return Ok(blank.publish_untracked());
        }
        let handle = blank.publish();
        handle.get().trace_origin(event_loop)?;
        Ok(handle)
    }

    /// The same, for a thread that may schedule thousands of calls before the loop has its turn. The collector would be
    /// set off by their contexts then; but most threads have no context variables, and for these the context is made
    /// when the call is.
    pub fn create_from_thread<'py>(
        event_loop: &Bound<'py, EventLoop>,
        callback: &Bound<'py, PyAny>,
        arguments: &[Bound<'py, PyAny>],
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, Handle>> {
        let handle = Self::create_ready(event_loop, callback, arguments, context)?;
        let this = handle.get();
        if context.is_none() {
            this.drop_empty_context(event_loop.py());
        }
        this.guard(event_loop.py())?;
        Ok(handle)
    }

    #[inline]
    fn make<'py>(
        event_loop: &Bound<'py, EventLoop>,
        callback: &Bound<'py, PyAny>,
        arguments: &[Bound<'py, PyAny>],
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Blank<'py, Handle>> {
        let parts = Parts::new(event_loop, callback, arguments, context)?;
        let blank = Blank::<Handle>::new(event_loop.py())?;
        parts.fill(blank.get().get());
        Ok(blank)
    }

    /// Shows a handle that the queue lets go of to the collector, if somebody else has it.
    #[inline]
    pub fn leave_queue(slf: &Bound<'_, Self>) {
        // SAFETY: the handle is alive.
        if unsafe { ffi::Py_REFCNT(slf.as_ptr()) } > 1 {
            track(slf);
        }
    }

    const fn empty_one() -> Self {
        Handle {
            event_loop: Slot::empty(),
            context: Slot::empty(),
            callback: Slot::empty(),
            arguments: [const { Slot::empty() }; INLINE],
            state: AttachedValue::new(State { arguments: 0, cancelled: false, guarded: false, running: 0 }),
            running_in: AtomicU64::new(NO_THREAD),
            source_traceback: Slot::empty(),
            repr: Slot::empty(),
        }
    }

    /// A context without variables need not be there before the call is.
    #[inline]
    fn drop_empty_context(&self, py: Python<'_>) {
        if let Some(context) = self.context.take(py)
            && !is_empty(&context)
        {
            self.context.fill(context);
        }
    }

    fn let_go_of_all(&self, py: Python<'_>) {
        drop(self.event_loop.take(py));
        drop(self.context.take(py));
        self.let_go_of_call(py);
        drop(self.source_traceback.take(py));
        drop(self.repr.take(py));
        self.state.set(py, State::default());
    }

    fn let_go_of_call(&self, py: Python<'_>) {
        drop(self.callback.take(py));
        for argument in &self.arguments {
            drop(argument.take(py));
        }
    }

    /// Makes it the handle of a call from any thread. (Before 3.14 asyncio's are no different from others, and a
    /// callback may wait for a thread that cancels it.)
    fn guard(&self, py: Python<'_>) -> PyResult<()> {
        let asyncio = Asyncio::get(py)?;
        if !asyncio.thread_safe_handle.is(&asyncio.handle) {
            self.state.set(py, State { guarded: true, ..self.state.get(py) });
        }
        Ok(())
    }

    /// In debug mode, notes where in the program the call was scheduled.
    #[inline]
    fn trace_origin(&self, event_loop: &Bound<'_, EventLoop>) -> PyResult<()> {
        let py = event_loop.py();
        if let Some(_debug) = event_loop.get().debug_call(py) {
            let traceback = Asyncio::get(py)?.extract_stack.bind(py).call0()?;
            drop(self.source_traceback.put(traceback));
        }
        Ok(())
    }

    /// Runs the callback in its context. What it raises goes to the loop's exception handler, but for `SystemExit`
    /// and `KeyboardInterrupt`, which are returned. A cancelled handle does nothing.
    pub fn run(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let state = this.state.get(py);
        if state.cancelled {
            return Ok(());
        }
        let event_loop = state.guarded.then(|| this.event_loop(py));
        let _running = (event_loop.as_ref())
            .map(|event_loop| Running::enter(&this.running_in, event_loop.get().return_signal()));
        let in_call = InCall::begin(py, this);
        match this.context(py).and_then(|context| in_context(&context, || in_call.make())) {
            Ok(()) => Ok(()),
            Err(error) => Self::failed(slf, error),
        }
    }

    #[inline]
    fn context<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.context.get(py) {
            Some(context) => Ok(context),
            None => {
                let context = new_context(py)?;
                drop(self.context.put(context.clone()));
                Ok(context)
            }
        }
    }

    fn event_loop<'py>(&self, py: Python<'py>) -> Bound<'py, EventLoop> {
        // Only the maker of a handle and its undertaker see it without a loop.
        self.event_loop.get(py).expect("a handle has a loop")
    }

    #[cold]
    fn failed(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<()> {
        if is_fatal(slf.py(), &error) { Err(error) } else { slf.get().report(slf, error) }
    }

    /// Waits, detached from the interpreter, until no other thread is in the callback.
    fn wait_until_returned(&self, py: Python<'_>) {
        if !self.state.get(py).guarded {
            return;
        }
        let here = this_thread();
        let elsewhere = || ![NO_THREAD, here].contains(&self.running_in.load(SeqCst));
        if elsewhere() {
            let event_loop = self.event_loop(py);
            let signal = event_loop.get().return_signal();
            py.detach(|| signal.wait_while(elsewhere));
        }
    }

    pub fn is_cancelled(&self, py: Python<'_>) -> bool {
        self.state.get(py).cancelled
    }

    /// What the handle is for, or was for, if it has been cancelled and is just running.
    fn held_call<'py>(&self, py: Python<'py>) -> PyResult<Option<Call<'py>>> {
        let Some(callback) = self.callback.get(py) else { return Ok(None) };
        let count = usize::from(self.state.get(py).arguments);
        let arguments = match count <= INLINE {
            true => PyTuple::new(py, self.arguments[..count].iter().map(|slot| slot.get(py)))?,
            false => self.arguments[0]
                .get(py)
                .map(|tuple| tuple.cast_into())
                .transpose()?
                .unwrap_or(PyTuple::empty(py)),
        };
        Ok(Some((callback, arguments)))
    }

    fn call<'py>(&self, py: Python<'py>) -> PyResult<Option<Call<'py>>> {
        if self.is_cancelled(py) { Ok(None) } else { self.held_call(py) }
    }

    fn report(&self, slf: &Bound<'_, Self>, error: PyErr) -> PyResult<()> {
        let py = slf.py();
        let context = PyDict::new(py);
        let source = match self.held_call(py)? {
            Some(call) => self.format_call(&call)?,
            None => String::new(),
        };
        context.set_item(intern!(py, "message"), format!("Exception in callback {source}"))?;
        context.set_item(intern!(py, "exception"), error)?;
        context.set_item(intern!(py, "handle"), slf)?;
        if let Some(traceback) = self.source_traceback.get(py) {
            context.set_item(intern!(py, "source_traceback"), traceback)?;
        }
        EventLoop::call_exception_handler(&self.event_loop(py), &context)
    }

    fn format_call(&self, (callback, arguments): &Call<'_>) -> PyResult<String> {
        let py = callback.py();
        let options = PyDict::new(py);
        // From 3.13 on, asyncio shows the arguments in debug mode only.
        if minor_version(py) >= 13 {
            options.set_item(intern!(py, "debug"), self.event_loop(py).get().is_debug(py))?;
        }
        let format = Asyncio::get(py)?.format_callback_source.bind(py);
        format.call((callback, arguments), Some(&options))?.extract()
    }

    fn name(&self, py: Python<'_>) -> &'static str {
        match self.state.get(py).guarded {
            true => "_ThreadSafeHandle",
            false => "Handle",
        }
    }

    fn describe(&self, py: Python<'_>, name: &str, when: Option<&str>) -> PyResult<String> {
        match self.repr.get(py) {
            Some(repr) => repr.extract(),
            None => self.describe_call(py, name, when, self.call(py)?),
        }
    }

    fn describe_call(
        &self,
        py: Python<'_>,
        name: &str,
        when: Option<&str>,
        call: Option<Call<'_>>,
    ) -> PyResult<String> {
        let mut parts = vec![name.to_owned()];
        if self.is_cancelled(py) {
            parts.push("cancelled".to_owned());
        }
        if let Some(when) = when {
            parts.push(format!("when={when}"));
        }
        if let Some(call) = call {
            parts.push(self.format_call(&call)?);
        }
        if let Some(traceback) = self.source_traceback.get(py) {
            let frame = traceback.get_item(-1)?;
            parts.push(format!("created at {}:{}", frame.get_item(0)?, frame.get_item(1)?));
        }
        Ok(format!("<{}>", parts.join(" ")))
    }

    /// Empties the handle; in debug mode the picture of what it was stays, for the report of a slow callback that
    /// cancels its own handle.
    fn cancel_with(&self, py: Python<'_>, name: &str, when: impl FnOnce() -> Option<String>) -> PyResult<()> {
        if self.is_cancelled(py) {
            return Ok(());
        }
        let debug = self.event_loop(py).get().is_debug(py);
        let call = if debug { self.held_call(py)? } else { None };
        // Before anything else: to describe a callback runs code of the user's, which may fail.
        let state = self.state.get(py);
        self.state.set(py, State { cancelled: true, ..state });
        if state.running == 0 {
            self.let_go_of_call(py);
        }
        if debug {
            let text = self.describe_call(py, name, when().as_deref(), call)?;
            drop(self.repr.put(PyString::new(py, &text)));
        }
        Ok(())
    }
}

/// What a new handle is made of; made before it, because that may run the collector.
struct Parts<'a, 'py> {
    event_loop: &'a Bound<'py, EventLoop>,
    callback: &'a Bound<'py, PyAny>,
    context: Bound<'py, PyAny>,
    arguments: &'a [Bound<'py, PyAny>],
    many: Option<Bound<'py, PyTuple>>,
}

impl<'a, 'py> Parts<'a, 'py> {
    #[inline]
    fn new(
        event_loop: &'a Bound<'py, EventLoop>,
        callback: &'a Bound<'py, PyAny>,
        arguments: &'a [Bound<'py, PyAny>],
        context: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        let py = event_loop.py();
        let context = match context {
            Some(context) => context.clone(),
            None => copy_current_context(py)?.into_bound(py),
        };
        let many = match arguments.len() > INLINE {
            true => Some(PyTuple::new(py, arguments)?),
            false => None,
        };
        Ok(Parts { event_loop, callback, context, arguments, many })
    }

    /// Runs no Python code: nobody sees the handle half full.
    #[inline]
    fn fill(self, handle: &Handle) {
        let py = self.event_loop.py();
        handle.event_loop.fill(self.event_loop.clone());
        handle.callback.fill(self.callback.clone());
        handle.context.fill(self.context);
        let count = match self.many {
            Some(tuple) => {
                handle.arguments[0].fill(tuple.into_any());
                INLINE + 1
            }
            None => {
                for (slot, argument) in handle.arguments.iter().zip(self.arguments) {
                    slot.fill(argument.clone());
                }
                self.arguments.len()
            }
        };
        handle.state.set(py, State { arguments: count as u8, ..State::default() });
    }
}

/// A call that is on: until it is over the handle keeps what is called, so that it need not be counted again.
struct InCall<'a, 'py>(&'a Handle, Python<'py>);

impl<'a, 'py> InCall<'a, 'py> {
    #[inline]
    fn begin(py: Python<'py>, handle: &'a Handle) -> Self {
        let state = handle.state.get(py);
        handle.state.set(py, State { running: state.running + 1, ..state });
        InCall(handle, py)
    }

    #[inline]
    fn make(&self) -> PyResult<()> {
        let InCall(handle, py) = *self;
        let count = usize::from(handle.state.get(py).arguments);
        let callback = handle.callback.as_ptr(py);
        // The first place is the callee's, for a `self`.
        let mut stack = [std::ptr::null_mut(); 1 + INLINE];
        for (place, argument) in stack[1..].iter_mut().zip(&handle.arguments) {
            *place = argument.as_ptr(py);
        }
        // SAFETY: attached. The callback and its arguments are alive: a handle lets go of them when it is cancelled
        // or cleared, which waits for `running`, and when it dies, and `run` has a reference to it. There are `count`
        // arguments behind the first place of `stack`, or a tuple of them.
        unsafe {
            let result = match count <= INLINE {
                true => {
                    let flags = count | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET;
                    let arguments = stack.as_mut_ptr().add(1);
                    ffi::PyObject_Vectorcall(callback, arguments, flags, std::ptr::null_mut())
                }
                false => ffi::PyObject_Call(callback, stack[1], std::ptr::null_mut()),
            };
            Bound::from_owned_ptr_or_err(py, result).map(drop)
        }
    }
}

impl Drop for InCall<'_, '_> {
    #[inline]
    fn drop(&mut self) {
        let InCall(handle, py) = *self;
        let state = handle.state.get(py);
        handle.state.set(py, State { running: state.running - 1, ..state });
        if state.cancelled && state.running == 1 {
            handle.let_go_of_call(py);
        }
    }
}

/// # Safety
/// As `enter_plain`, for a `Handle`.
unsafe extern "C" fn cancel(slf: *mut ffi::PyObject, _: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: as the caller promises.
    unsafe { enter_plain(slf, Handle::cancel) }
}

/// Makes the classes of this file ready for use: adds the methods that are not pyo3's.
pub fn prepare_classes(py: Python<'_>) -> PyResult<()> {
    let doc = c"cancel($self)\n--\n\nCancels the call, unless it has run; a second time does nothing.";
    // SAFETY: the function is for handles.
    unsafe { add_method(&py.get_type::<Handle>(), c"cancel", Function::Plain(cancel), doc)? };
    recycle::<Handle>(py);
    timer::prepare_class(py)
}

impl Handle {
    fn cancel(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.wait_until_returned(py);
        this.cancel_with(py, this.name(py), || None)
    }
}

#[pymethods]
impl Handle {
    /// Whether the call was cancelled.
    fn cancelled(&self, py: Python<'_>) -> bool {
        self.wait_until_returned(py);
        self.is_cancelled(py)
    }

    /// The `contextvars.Context` in which the callback runs.
    fn get_context<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.context(py)
    }

    fn _run(slf: &Bound<'_, Self>) -> PyResult<()> {
        Handle::run(slf)
    }

    #[getter]
    fn _callback<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        if self.is_cancelled(py) { None } else { self.callback.get(py) }
    }

    #[getter]
    fn _args<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        Ok(self.call(py)?.map(|(_, arguments)| arguments))
    }

    #[getter]
    fn _cancelled(&self, py: Python<'_>) -> bool {
        self.is_cancelled(py)
    }

    #[getter]
    fn _context<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.context(py)
    }

    #[getter]
    fn _loop<'py>(&self, py: Python<'py>) -> Bound<'py, EventLoop> {
        self.event_loop(py)
    }

    #[getter]
    fn _source_traceback<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.source_traceback.get(py)
    }

    #[getter(__class__)]
    fn class(&self, py: Python<'_>) -> PyResult<Py<PyType>> {
        let asyncio = Asyncio::get(py)?;
        Ok(if self.state.get(py).guarded { &asyncio.thread_safe_handle } else { &asyncio.handle }
            .clone_ref(py))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        self.describe(py, self.name(py), None)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.event_loop.traverse(visit)?;
        self.context.traverse(visit)?;
        self.callback.traverse(visit)?;
        for argument in &self.arguments {
            argument.traverse(visit)?;
        }
        self.source_traceback.traverse(visit)
    }

    fn __clear__(&self, py: Python<'_>) {
        let state = self.state.get(py);
        self.state.set(py, State { cancelled: true, ..state });
        if state.running == 0 {
            self.let_go_of_call(py);
        }
        drop(self.source_traceback.take(py));
    }
}
