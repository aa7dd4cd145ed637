//! What the methods of a reader and a writer return: to `await` what a coroutine is.
//!
//! Nothing happens until it is awaited, as in a coroutine; so one that nobody awaits has taken nothing. Then it goes on
//! as far as it gets, waits for the reader's waiter, an ordinary future, and goes on from there. Wherever more is asked
//! for than what is done here, it makes asyncio's own coroutine and lets that run in its place: none of the attempts
//! has changed anything before it decides so.

use pyo3::exceptions::{PyBaseException, PyRuntimeError, PyStopIteration, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple, PyType};

use super::attributes::{Attributes, attribute};
use super::class::Classes;
use super::{reader, writer};
use crate::py::{AttachedCell, in_destructor, stop_iteration, warn_never_awaited};

/// What is to be done, with its arguments.
#[derive(Clone, Copy)]
pub enum Work {
    ReadLine,
    /// Until the order's separator.
    ReadUntil,
    Read(usize),
    /// Until the end of the stream, as so many reads of the limit's size as it takes.
    ReadAll,
    ReadExactly(usize),
    Drain,
}

/// How far it has come.
#[derive(Default)]
pub struct Progress {
    /// No separator begins in so many bytes at the buffer's front.
    pub searched: usize,
    /// The waiter was done once.
    pub waited: bool,
    /// The blocks of `ReadAll`.
    pub blocks: Vec<u8>,
}

/// What came of an attempt.
pub enum Attempt<'py> {
    Done(Bound<'py, PyAny>),
    /// More data is needed.
    Wait(Attributes<'py>),
    /// asyncio's own method shall do it. Nothing was changed.
    StepAside,
}

enum Phase {
    Created,
    Running,
    /// The iterator of the reader's waiter.
    Waiting(Py<PyAny>),
    /// The iterator of asyncio's own coroutine.
    SteppedAside(Py<PyAny>),
    Finished,
}

/// A reader's or a writer's method, awaited.
#[pyclass(frozen, module = "mioloop._core")]
pub struct StreamOperation {
    order: AttachedCell<Option<Kept>>,
    progress: AttachedCell<Progress>,
    phase: AttachedCell<Phase>,
}

/// What the operation is about, until it is finished.
struct Kept {
    stream: Py<PyAny>,
    separator: Option<Py<PyBytes>>,
    work: Work,
}

/// The same while it goes on.
pub struct Order<'py> {
    /// The reader; the writer of a drain.
    pub stream: Bound<'py, PyAny>,
    pub separator: Option<Bound<'py, PyBytes>>,
    pub work: Work,
}

impl Kept {
    fn bind<'py>(&self, py: Python<'py>) -> Order<'py> {
        let separator = self.separator.as_ref().map(|separator| separator.bind(py).clone());
        Order { stream: self.stream.bind(py).clone(), separator, work: self.work }
    }
}

/// The last operation that was finished. As soon as nobody else has it, it is as good as a new one: in a program that
/// reads and writes message by message it always is, and no operation is made or destroyed any more.
static SPARE: AttachedCell<Option<Py<StreamOperation>>> = AttachedCell::new(None);

/// What something awaited has come to.
pub enum Sent<'py> {
    Yielded(Bound<'py, PyAny>),
    Returned(Bound<'py, PyAny>),
}

/// How it is resumed: by `send(None)`, or by `throw` with these arguments.
enum Resumption<'a, 'py> {
    SendNone,
    Throw(&'a Bound<'py, PyTuple>),
}

impl<'py> Resumption<'_, 'py> {
    fn of(&self, iterator: &Bound<'py, PyAny>) -> PyResult<Sent<'py>> {
        let py = iterator.py();
        match self {
            Resumption::SendNone => send_none(iterator),
            Resumption::Throw(args) => match iterator.call_method1(intern!(py, "throw"), *args) {
                Ok(yielded) => Ok(Sent::Yielded(yielded)),
                Err(error) if error.is_instance_of::<PyStopIteration>(py) => {
                    Ok(Sent::Returned(error.value(py).getattr(intern!(py, "value"))?))
                }
                Err(error) => Err(error),
            },
        }
    }
}

impl StreamOperation {
    pub fn make<'py>(
        stream: &Bound<'py, PyAny>,
        separator: Option<Bound<'py, PyBytes>>,
        work: Work,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = stream.py();
        let kept = Kept { stream: stream.clone().unbind(), separator: separator.map(Bound::unbind), work };
        let spare = SPARE.replace(py, None);
        if let Some(spare) = spare.filter(is_ours_alone) {
            let operation = spare.get();
            drop(operation.order.replace(py, Some(kept)));
            drop(operation.progress.replace(py, Progress::default()));
            drop(operation.phase.replace(py, Phase::Created));
            return Ok(spare.into_bound(py).into_any());
        }
        let operation = StreamOperation {
            order: AttachedCell::new(Some(kept)),
            progress: AttachedCell::new(Progress::default()),
            phase: AttachedCell::new(Phase::Created),
        };
        Ok(Bound::new(py, operation)?.into_any())
    }

    /// A coroutine's `send(None)`.
    pub fn send_none<'py>(slf: &Bound<'py, Self>) -> PyResult<Sent<'py>> {
        Self::resume(slf, Resumption::SendNone)
    }

    /// Goes on, and keeps the finished operation for another time.
    fn resume<'py>(slf: &Bound<'py, Self>, by: Resumption<'_, 'py>) -> PyResult<Sent<'py>> {
        let (py, this) = (slf.py(), slf.get());
        let result = this.go_on(py, by);
        // Not over if it was an error to resume it, because it is being resumed.
        if matches!(*this.phase.borrow_mut(py), Phase::Finished) {
            let order = this.order.replace(py, None);
            let spare = SPARE.replace(py, Some(slf.clone().unbind()));
            drop((order, spare));
        }
        result
    }

    /// Goes on, until there is something to wait for. An error leaves the operation finished.
    fn go_on<'py>(&self, py: Python<'py>, by: Resumption<'_, 'py>) -> PyResult<Sent<'py>> {
        let (phase, result) = match self.phase.replace(py, Phase::Running) {
            Phase::Running => return Err(PyValueError::new_err("coroutine already executing")),
            Phase::Finished => (Phase::Finished, Err(already_awaited())),
            phase => match self.order(py).and_then(|order| self.go_on_from(&order, phase, by)) {
                Ok((phase, sent)) => (phase, Ok(sent)),
                Err(error) => (Phase::Finished, Err(error)),
            },
        };
        drop(self.phase.replace(py, phase));
        result
    }

    fn order<'py>(&self, py: Python<'py>) -> PyResult<Order<'py>> {
        let order = self.order.borrow_mut(py);
        order.as_ref().map(|order| order.bind(py)).ok_or_else(already_awaited)
    }

    fn go_on_from<'py>(
        &self,
        order: &Order<'py>,
        phase: Phase,
        by: Resumption<'_, 'py>,
    ) -> PyResult<(Phase, Sent<'py>)> {
        let py = order.stream.py();
        match (phase, by) {
            (Phase::Created, Resumption::Throw(args)) => Err(thrown(args)),
            (Phase::Waiting(waiter), by) => match by.of(waiter.bind(py)) {
                Ok(Sent::Yielded(future)) => Ok((Phase::Waiting(waiter), Sent::Yielded(future))),
                result => {
                    self.end_wait(order)?;
                    match result {
                        // asyncio's `readline` has its own way with some exceptions of the reader's.
                        Err(error) if is_readers(order, &error)? => self.step_aside(order),
                        result => result.and_then(|_| self.advance(order)),
                    }
                }
            },
            (Phase::SteppedAside(coroutine), by) => {
                let sent = by.of(coroutine.bind(py))?;
                self.beside(coroutine, sent)
            }
            (Phase::Created | Phase::Running | Phase::Finished, _) => self.advance(order),
        }
    }

    /// As far as it gets without waiting.
    fn advance<'py>(&self, order: &Order<'py>) -> PyResult<(Phase, Sent<'py>)> {
        loop {
            let attempt = match order.work {
                Work::Drain => writer::attempt_drain(&order.stream)?,
                _ => reader::attempt(order, &self.progress)?,
            };
            let attributes = match attempt {
                Attempt::Done(result) => return Ok((Phase::Finished, Sent::Returned(result))),
                Attempt::StepAside => return self.step_aside(order),
                Attempt::Wait(attributes) => attributes,
            };
            let waiter = reader::begin_wait(&attributes)?;
            match send_none(&waiter) {
                Ok(Sent::Yielded(future)) => {
                    return Ok((Phase::Waiting(waiter.unbind()), Sent::Yielded(future)));
                }
                done_already => {
                    self.end_wait(order)?;
                    done_already?;
                }
            }
        }
    }

    /// What asyncio does however a wait has ended.
    fn end_wait(&self, order: &Order<'_>) -> PyResult<()> {
        let py = order.stream.py();
        self.progress.borrow_mut(py).waited = true;
        let attributes = Attributes::of(&order.stream)?;
        // Who has woken the waiter has mostly done it already.
        match attribute!(attributes, "_waiter")?.is_some_and(|waiter| waiter.is_none()) {
            true => Ok(()),
            false => attributes.set(intern!(py, "_waiter"), &py.None().into_bound(py)),
        }
    }

    /// Lets asyncio's method do it, from the beginning, or do the rest of a `ReadAll`.
    fn step_aside<'py>(&self, order: &Order<'py>) -> PyResult<(Phase, Sent<'py>)> {
        let py = order.stream.py();
        let argument = match order.work {
            Work::Drain | Work::ReadLine => None,
            Work::ReadUntil => order.separator.clone().map(Bound::into_any),
            Work::Read(size) | Work::ReadExactly(size) => Some(size.into_pyobject(py)?.into_any()),
            Work::ReadAll => Some((-1i32).into_pyobject(py)?.into_any()),
        };
        let classes = Classes::get(py)?;
        let class = if let Work::Drain = order.work { &classes.fast_writer } else { &classes.fast_reader };
        let made = class.call_original(&order.stream, order.work.name(), argument)?;
        let coroutine = made.call_method0(intern!(py, "__await__"))?;
        let sent = send_none(&coroutine)?;
        self.beside(coroutine.unbind(), sent)
    }

    /// asyncio's coroutine has gone on in our place.
    fn beside<'py>(&self, coroutine: Py<PyAny>, sent: Sent<'py>) -> PyResult<(Phase, Sent<'py>)> {
        match sent {
            Sent::Yielded(future) => Ok((Phase::SteppedAside(coroutine), Sent::Yielded(future))),
            Sent::Returned(result) => {
                let mut blocks = std::mem::take(&mut self.progress.borrow_mut(result.py()).blocks);
                if blocks.is_empty() {
                    return Ok((Phase::Finished, Sent::Returned(result)));
                }
                blocks.extend_from_slice(result.extract()?);
                let all = PyBytes::new(result.py(), &blocks).into_any();
                Ok((Phase::Finished, Sent::Returned(all)))
            }
        }
    }
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Work::ReadLine => "readline",
            Work::ReadUntil => "readuntil",
            Work::Read(_) | Work::ReadAll => "read",
            Work::ReadExactly(_) => "readexactly",
            Work::Drain => "drain",
        }
    }

    fn qualified_name(self) -> String {
        let class = if let Work::Drain = self { "StreamWriter" } else { "StreamReader" };
        format!("{class}.{}", self.name())
    }
}

/// Whether the exception is what the reader was told of by `set_exception`.
fn is_readers(order: &Order<'_>, error: &PyErr) -> PyResult<bool> {
    let py = order.stream.py();
    let exception = Attributes::of(&order.stream)?.get(intern!(py, "_exception"))?;
    Ok(exception.is_some_and(|exception| exception.is(error.value(py))))
}

fn is_ours_alone(operation: &Py<StreamOperation>) -> bool {
    // SAFETY: on a live object; the count only changes under the interpreter lock, which the caller has.
    unsafe { ffi::Py_REFCNT(operation.as_ptr()) == 1 }
}

fn already_awaited() -> PyErr {
    PyRuntimeError::new_err("cannot reuse already awaited coroutine")
}

fn send_none<'py>(iterator: &Bound<'py, PyAny>) -> PyResult<Sent<'py>> {
    let py = iterator.py();
    let mut result = std::ptr::null_mut();
    // SAFETY: attached, on live objects; the function gives a new reference to what was yielded or returned, or none
    // with an exception set.
    unsafe {
        match ffi::PyIter_Send(iterator.as_ptr(), ffi::Py_None(), &raw mut result) {
            ffi::PySendResult::PYGEN_NEXT => Ok(Sent::Yielded(Bound::from_owned_ptr(py, result))),
            ffi::PySendResult::PYGEN_RETURN => Ok(Sent::Returned(Bound::from_owned_ptr(py, result))),
            ffi::PySendResult::PYGEN_ERROR => Err(PyErr::fetch(py)),
        }
    }
}

/// The exception that `throw(type, value, traceback)` means, or `throw(value)`.
fn thrown(args: &Bound<'_, PyTuple>) -> PyErr {
    let argument =
        |index| args.get_item(index).ok().filter(|argument: &Bound<'_, PyAny>| !argument.is_none());
    match (argument(0), argument(1)) {
        (Some(class), None) => match class.cast::<PyType>() {
            Ok(class) => PyErr::from_type(class.clone(), ()),
            Err(_) => PyErr::from_value(class),
        },
        (_, Some(value)) if value.is_instance_of::<PyBaseException>() => PyErr::from_value(value),
        (Some(class), Some(value)) => match class.cast::<PyType>() {
            Ok(class) => PyErr::from_type(class.clone(), (value.unbind(),)),
            Err(_) => PyTypeError::new_err("instance exception may not have a separate value"),
        },
        (None, _) => {
            PyTypeError::new_err("exceptions must be classes or instances deriving from BaseException")
        }
    }
}

#[pymethods]
impl StreamOperation {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match Self::send_none(slf)? {
            Sent::Yielded(future) => Ok(Some(future)),
            // The end of an iterator without an exception stands for None.
            Sent::Returned(result) if result.is_none() => Ok(None),
            Sent::Returned(result) => Err(stop_iteration(result)),
        }
    }

    /// As of a coroutine; only None makes sense.
    #[pyo3(signature = (value, /))]
    fn send<'py>(slf: &Bound<'py, Self>, value: &Bound<'_, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        if !value.is_none() {
            return Err(PyTypeError::new_err("can't send non-None value to a just-started coroutine"));
        }
        Self::outcome(slf, Resumption::SendNone)
    }

    /// As of a coroutine: raises an exception where it waits.
    #[pyo3(signature = (*args))]
    fn throw<'py>(slf: &Bound<'py, Self>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
        Self::outcome(slf, Resumption::Throw(args))
    }

    /// As of a coroutine: gives the operation up.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let closed = match self.phase.replace(py, Phase::Running) {
            Phase::Running => return Err(PyValueError::new_err("coroutine already executing")),
            Phase::Waiting(waiter) => {
                let closed = waiter.call_method0(py, intern!(py, "close")).map(drop);
                self.order(py).and_then(|order| self.end_wait(&order)).and(closed)
            }
            Phase::SteppedAside(coroutine) => coroutine.call_method0(py, intern!(py, "close")).map(drop),
            Phase::Created | Phase::Finished => Ok(()),
        };
        let phase = self.phase.replace(py, Phase::Finished);
        let order = self.order.replace(py, None);
        drop((phase, order));
        closed
    }

    #[getter]
    fn __name__(&self, py: Python<'_>) -> Option<&'static str> {
        self.work(py).map(Work::name)
    }

    #[getter]
    fn __qualname__(&self, py: Python<'_>) -> Option<String> {
        self.work(py).map(Work::qualified_name)
    }

    #[getter]
    fn cr_running(&self, py: Python<'_>) -> bool {
        matches!(*self.phase.borrow_mut(py), Phase::Running)
    }

    /// What is awaited now, if anything.
    #[getter]
    fn cr_await(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        match &*self.phase.borrow_mut(py) {
            Phase::Waiting(awaited) | Phase::SteppedAside(awaited) => Some(awaited.clone_ref(py)),
            _ => None,
        }
    }

    /// There is none, nor code: it is Rust.
    #[getter]
    fn cr_frame(&self) -> Option<Py<PyAny>> {
        None
    }

    #[getter]
    fn cr_code(&self) -> Option<Py<PyAny>> {
        None
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        let name = slf.get().__qualname__(slf.py()).unwrap_or_default();
        format!("<coroutine object {name} at {:p}>", slf.as_ptr())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(order) = self.order.borrow_for_traverse() {
            visit.call(order.as_ref().map(|order| &order.stream))?;
        }
        match self.phase.borrow_for_traverse().as_deref() {
            Ok(Phase::Waiting(awaited) | Phase::SteppedAside(awaited)) => visit.call(awaited),
            _ => Ok(()),
        }
    }
}

impl StreamOperation {
    /// None when it is finished.
    fn work(&self, py: Python<'_>) -> Option<Work> {
        self.order.borrow_mut(py).as_ref().map(|order| order.work)
    }

    fn outcome<'py>(slf: &Bound<'py, Self>, by: Resumption<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        match Self::resume(slf, by)? {
            Sent::Yielded(future) => Ok(future),
            Sent::Returned(result) => Err(stop_iteration(result)),
        }
    }

    /// As a coroutine that is dropped: one that has not begun says so, one that waits is closed.
    fn finalize(&self, py: Python<'_>) -> PyResult<()> {
        let never_awaited = matches!(*self.phase.borrow_mut(py), Phase::Created);
        if never_awaited {
            let name = self.__qualname__(py).unwrap_or_default();
            return warn_never_awaited(py, &name);
        }
        self.close(py)
    }
}

impl Drop for StreamOperation {
    fn drop(&mut self) {
        Python::attach(|py| {
            if let Phase::Finished = *self.phase.borrow_mut(py) {
                return;
            }
            in_destructor(py, || self.finalize(py));
        });
    }
}
