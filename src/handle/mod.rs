//! What `call_soon`, `call_later` and `call_at` return: a callback with its arguments and its context.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Condvar, Mutex, PoisonError};

use pyo3::basic::CompareOp;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyString, PyTuple, PyType};

use crate::event_loop::EventLoop;
use crate::py::{Asyncio, AttachedCell, in_context, is_fatal};
use crate::timers::TimerKey;

struct Call {
    callback: Py<PyAny>,
    args: Py<PyTuple>,
}

/// What only debug mode keeps.
#[derive(Default)]
struct Origin {
    source_traceback: Option<Py<PyAny>>,
    /// How the handle looked before it was cancelled.
    repr: Option<Py<PyString>>,
}

// No free list of pyo3's: it hands objects out again without telling the collector of them.
/// A scheduled call (asyncio's `Handle`, of which it is an instance in the eyes of `isinstance`).
#[pyclass(subclass, frozen, weakref, module = "mioloop._core")]
pub struct Handle {
    event_loop: Py<EventLoop>,
    context: Py<PyAny>,
    /// Empty once cancelled.
    call: AttachedCell<Option<Call>>,
    origin: AttachedCell<Option<Box<Origin>>>,
    /// Of a call that another thread may have scheduled, and may cancel: which thread is in the callback now.
    running_in: Option<AtomicU64>,
}

/// No thread: what `running_in` says before and after the call.
const NO_THREAD: u64 = 0;

fn this_thread() -> u64 {
    // SAFETY: asks the operating system for a number, and needs nothing for it.
    unsafe { ffi::PyThread_get_thread_ident() as u64 }
}

/// Lets other threads wait until a callback has returned. Whoever cancels a call from another thread may then count on
/// it: either it was never made, or it is over. (asyncio's `_ThreadSafeHandle`, from 3.14 on.) One for all the calls of
/// a loop: there is hardly ever anybody who waits.
#[derive(Default)]
pub struct ReturnSignal {
    waiting: AtomicUsize,
    mutex: Mutex<()>,
    returned: Condvar,
}

impl ReturnSignal {
    fn tell(&self) {
        if self.waiting.load(SeqCst) > 0 {
            // Whoever has seen the callback running holds the mutex until it waits.
            drop(self.mutex.lock());
            self.returned.notify_all();
        }
    }

    fn wait_while(&self, running: impl Fn() -> bool) {
        self.waiting.fetch_add(1, SeqCst);
        let guard = self.mutex.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.returned.wait_while(guard, |()| running()));
        self.waiting.fetch_sub(1, SeqCst);
    }
}

/// A callback is on; over when this is dropped, also by a panic.
struct Running<'a>(&'a AtomicU64, &'a ReturnSignal);

impl<'a> Running<'a> {
    fn enter(running_in: &'a AtomicU64, signal: &'a ReturnSignal) -> Self {
        running_in.store(this_thread(), SeqCst);
        Running(running_in, signal)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.store(NO_THREAD, SeqCst);
        self.1.tell();
    }
}

impl Handle {
    /// The handle of a call from any thread. (Before 3.14 asyncio's are no different from others, and a callback may
    /// wait for a thread that cancels it.)
    pub fn guarded(self, py: Python<'_>) -> Self {
        match py.version_info() >= (3, 14) {
            true => Handle { running_in: Some(AtomicU64::new(NO_THREAD)), ..self },
            false => self,
        }
    }

    pub fn new(
        event_loop: &Bound<'_, EventLoop>,
        callback: Py<PyAny>,
        args: Py<PyTuple>,
        context: Py<PyAny>,
    ) -> Self {
        Handle {
            event_loop: event_loop.clone().unbind(),
            context,
            call: AttachedCell::new(Some(Call { callback, args })),
            origin: AttachedCell::new(None),
            running_in: None,
        }
    }

    /// Notes where in the program the call was scheduled.
    pub fn trace_origin(&self, py: Python<'_>) -> PyResult<()> {
        let source_traceback = Some(Asyncio::get(py)?.extract_stack.call0(py)?);
        self.origin.replace(py, Some(Box::new(Origin { source_traceback, repr: None })));
        Ok(())
    }

    /// Runs the callback in its context. What it raises goes to the loop's exception handler, but for `SystemExit`
    /// and `KeyboardInterrupt`, which are returned. A cancelled handle does nothing.
    pub fn run(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        let Some((callback, args)) = this.callback_and_args(slf.py()) else { return Ok(()) };
        let Some(running_in) = &this.running_in else { return this.invoke(slf, &callback, &args) };
        let _running = Running::enter(running_in, this.event_loop.get().return_signal());
        this.invoke(slf, &callback, &args)
    }

    fn invoke(
        &self,
        slf: &Bound<'_, Self>,
        callback: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
    ) -> PyResult<()> {
        let py = slf.py();
        match in_context(self.context.bind(py), || callback.call1(args)) {
            Ok(_) => Ok(()),
            Err(error) if is_fatal(py, &error) => Err(error),
            Err(error) => self.report(slf, callback, args, error),
        }
    }

    /// Waits, detached from the interpreter, until no other thread is in the callback.
    fn wait_until_returned(&self, py: Python<'_>) {
        let Some(running_in) = &self.running_in else { return };
        let here = this_thread();
        let elsewhere = || ![NO_THREAD, here].contains(&running_in.load(SeqCst));
        if elsewhere() {
            let signal = self.event_loop.get().return_signal();
            py.detach(|| signal.wait_while(elsewhere));
        }
    }

    pub fn is_cancelled(&self, py: Python<'_>) -> bool {
        self.call.borrow_mut(py).is_none()
    }

    fn callback_and_args<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let call = self.call.borrow_mut(py);
        call.as_ref().map(|call| (call.callback.bind(py).clone(), call.args.bind(py).clone()))
    }

    fn report(
        &self,
        slf: &Bound<'_, Self>,
        callback: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        error: PyErr,
    ) -> PyResult<()> {
        let py = slf.py();
        let context = PyDict::new(py);
        let source = self.format_callback(callback, args)?;
        context.set_item(intern!(py, "message"), format!("Exception in callback {source}"))?;
        context.set_item(intern!(py, "exception"), error)?;
        context.set_item(intern!(py, "handle"), slf)?;
        if let Some(traceback) = self._source_traceback(py) {
            context.set_item(intern!(py, "source_traceback"), traceback)?;
        }
        EventLoop::call_exception_handler(self.event_loop.bind(py), &context)
    }

    fn format_callback(&self, callback: &Bound<'_, PyAny>, args: &Bound<'_, PyTuple>) -> PyResult<String> {
        let py = callback.py();
        let options = PyDict::new(py);
        // From 3.13 on, asyncio shows the arguments in debug mode only.
        if py.version_info() >= (3, 13) {
            options.set_item(intern!(py, "debug"), self.event_loop.get().is_debug(py))?;
        }
        Asyncio::get(py)?.format_callback_source.bind(py).call((callback, args), Some(&options))?.extract()
    }

    fn name(&self) -> &'static str {
        match self.running_in.is_some() {
            true => "_ThreadSafeHandle",
            false => "Handle",
        }
    }

    fn describe(&self, py: Python<'_>, name: &str, when: Option<&str>) -> PyResult<String> {
        match self.saved_repr(py) {
            Some(repr) => repr.extract(py),
            None => self.describe_call(py, name, when, self.callback_and_args(py), self.is_cancelled(py)),
        }
    }

    fn describe_call(
        &self,
        py: Python<'_>,
        name: &str,
        when: Option<&str>,
        call: Option<(Bound<'_, PyAny>, Bound<'_, PyTuple>)>,
        cancelled: bool,
    ) -> PyResult<String> {
        let mut parts = vec![name.to_owned()];
        if cancelled {
            parts.push("cancelled".to_owned());
        }
        if let Some(when) = when {
            parts.push(format!("when={when}"));
        }
        if let Some((callback, args)) = call {
            parts.push(self.format_callback(&callback, &args)?);
        }
        if let Some(traceback) = self._source_traceback(py) {
            let frame = traceback.bind(py).get_item(-1)?;
            parts.push(format!("created at {}:{}", frame.get_item(0)?, frame.get_item(1)?));
        }
        Ok(format!("<{}>", parts.join(" ")))
    }

    fn saved_repr(&self, py: Python<'_>) -> Option<Py<PyString>> {
        let origin = self.origin.borrow_mut(py);
        origin.as_ref().and_then(|origin| origin.repr.as_ref()).map(|repr| repr.clone_ref(py))
    }

    /// Empties the handle; in debug mode the picture of what it was stays, for the report of a slow callback that
    /// cancels its own handle.
    fn cancel_with(&self, py: Python<'_>, name: &str, when: Option<&str>) -> PyResult<()> {
        let call = self.callback_and_args(py);
        // Before anything else: to describe a callback runs code of the user's, which may fail.
        drop(self.call.replace(py, None));
        if call.is_some() && self.event_loop.get().is_debug(py) {
            let text = self.describe_call(py, name, when, call, true)?;
            let repr = PyString::new(py, &text).unbind();
            self.origin.borrow_mut(py).get_or_insert_default().repr = Some(repr);
        }
        Ok(())
    }
}

#[pymethods]
impl Handle {
    /// Cancels the call, unless it has run; a second time does nothing.
    fn cancel(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.wait_until_returned(py);
        this.cancel_with(py, this.name(), None)
    }

    /// Whether the call was cancelled.
    fn cancelled(&self, py: Python<'_>) -> bool {
        self.wait_until_returned(py);
        self.is_cancelled(py)
    }

    /// The `contextvars.Context` in which the callback runs.
    fn get_context(&self, py: Python<'_>) -> Py<PyAny> {
        self.context.clone_ref(py)
    }

    fn _run(slf: &Bound<'_, Self>) -> PyResult<()> {
        Handle::run(slf)
    }

    #[getter]
    fn _callback<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.callback_and_args(py).map(|(callback, _)| callback)
    }

    #[getter]
    fn _args<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyTuple>> {
        self.callback_and_args(py).map(|(_, args)| args)
    }

    #[getter]
    fn _cancelled(&self, py: Python<'_>) -> bool {
        self.is_cancelled(py)
    }

    #[getter]
    fn _context(&self, py: Python<'_>) -> Py<PyAny> {
        self.context.clone_ref(py)
    }

    #[getter]
    fn _loop(&self, py: Python<'_>) -> Py<EventLoop> {
        self.event_loop.clone_ref(py)
    }

    #[getter]
    fn _source_traceback(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let origin = self.origin.borrow_mut(py);
        origin.as_ref().and_then(|origin| origin.source_traceback.as_ref()).map(|list| list.clone_ref(py))
    }

    #[getter(__class__)]
    fn class(&self, py: Python<'_>) -> PyResult<Py<PyType>> {
        let asyncio = Asyncio::get(py)?;
        Ok(if self.running_in.is_some() { &asyncio.thread_safe_handle } else { &asyncio.handle }
            .clone_ref(py))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        self.describe(py, self.name(), None)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit.call(&self.context)?;
        if let Ok(call) = self.call.borrow_for_traverse() {
            if let Some(call) = call.as_ref() {
                visit.call(&call.callback)?;
                visit.call(&call.args)?;
            }
        }
        if let Ok(origin) = self.origin.borrow_for_traverse() {
            if let Some(origin) = origin.as_ref() {
                visit.call(&origin.source_traceback)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        drop(self.call.replace(py, None));
        drop(self.origin.replace(py, None));
    }
}

/// A call scheduled for a time (asyncio's `TimerHandle`).
#[pyclass(extends = Handle, frozen, module = "mioloop._core")]
pub struct TimerHandle {
    when: f64,
    /// The time as `call_at` was given it, if that was no float: `when()` returns the very object.
    given: Option<Py<PyAny>>,
    /// Its place in the timer queue, until it fires or is cancelled.
    key: AttachedCell<Option<TimerKey>>,
}

impl TimerHandle {
    pub fn create(
        py: Python<'_>,
        when: f64,
        given: Option<Py<PyAny>>,
        handle: Handle,
    ) -> PyResult<Bound<'_, TimerHandle>> {
        let timer = TimerHandle { when, given, key: AttachedCell::new(None) };
        Bound::new(py, PyClassInitializer::from(handle).add_subclass(timer))
    }

    pub fn set_key(&self, py: Python<'_>, key: Option<TimerKey>) {
        self.key.set(py, key);
    }
}

#[pymethods]
impl TimerHandle {
    /// Cancels the call, unless it has run, and lets go of the callback and its arguments at once.
    fn cancel(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, handle) = (slf.py(), slf.as_super().get());
        if let Some(key) = slf.get().key.replace(py, None) {
            handle.event_loop.get().cancel_timer(py, key);
        }
        let when = match handle.event_loop.get().is_debug(py) {
            true => Some(slf.get().when(py).str()?.to_string()),
            false => None,
        };
        handle.cancel_with(py, "TimerHandle", when.as_deref())
    }

    /// The time at which the call is due, in seconds of the loop's clock (`loop.time()`).
    fn when<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        match &self.given {
            Some(given) => given.bind(py).clone(),
            None => PyFloat::new(py, self.when).into_any(),
        }
    }

    #[getter]
    fn _when<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.when(py)
    }

    #[getter]
    fn _scheduled(&self, py: Python<'_>) -> bool {
        self.key.get(py).is_some()
    }

    #[getter(__class__)]
    fn class(&self, py: Python<'_>) -> PyResult<Py<PyType>> {
        Ok(Asyncio::get(py)?.timer_handle.clone_ref(py))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.given)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        slf.get().describe(slf)
    }

    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        self.when(py).hash()
    }

    /// Timers are ordered by their time; two are equal if they also call the same thing.
    fn __richcmp__(slf: &Bound<'_, Self>, other: &Bound<'_, PyAny>, op: CompareOp) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        let Ok(other) = other.cast::<TimerHandle>() else {
            return Ok(py.NotImplemented());
        };
        let (a, b) = (slf.get().when, other.get().when);
        let result = match op {
            CompareOp::Lt => a < b,
            CompareOp::Gt => a > b,
            CompareOp::Le => a < b || Self::same_call(slf, other)?,
            CompareOp::Ge => a > b || Self::same_call(slf, other)?,
            CompareOp::Eq => Self::same_call(slf, other)?,
            CompareOp::Ne => !Self::same_call(slf, other)?,
        };
        Ok(result.into_pyobject(py)?.to_owned().into_any().unbind())
    }
}

impl TimerHandle {
    fn describe(&self, slf: &Bound<'_, Self>) -> PyResult<String> {
        let when = self.when(slf.py()).str()?.to_string();
        slf.as_super().get().describe(slf.py(), "TimerHandle", Some(&when))
    }

    fn same_call(a: &Bound<'_, Self>, b: &Bound<'_, Self>) -> PyResult<bool> {
        let py = a.py();
        if a.get().when != b.get().when {
            return Ok(false);
        }
        let (a, b) = (a.as_super().get(), b.as_super().get());
        match (a.callback_and_args(py), b.callback_and_args(py)) {
            (Some((callback, args)), Some((other_callback, other_args))) => {
                Ok(callback.eq(other_callback)? && args.eq(other_args)?)
            }
            (a, b) => Ok(a.is_none() && b.is_none()),
        }
    }
}

/// The number of seconds in `delay`, added to `now` as Python adds it, so that whatever Python can't add raises what
/// Python raises.
pub fn add_delay(now: f64, delay: &Bound<'_, PyAny>) -> PyResult<f64> {
    if let Ok(delay) = delay.cast_exact::<PyFloat>() {
        return Ok(now + delay.value());
    }
    if delay.is_none() {
        return Err(PyTypeError::new_err("delay must not be None"));
    }
    PyFloat::new(delay.py(), now).add(delay)?.extract()
}
