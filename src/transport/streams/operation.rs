//! What the methods of a reader and a writer return: to `await` what a coroutine is.
//!
//! Nothing happens until it is awaited, as in a coroutine; so one that nobody awaits has taken nothing. Then it goes on
//! as far as it gets, waits for the reader's waiter, an ordinary future, and goes on from there. Wherever more is asked
//! for than what is done here, it makes asyncio's own coroutine and lets that run in its place: none of the attempts
//! has changed anything before it decides so.

use std::ffi::CString;

use pyo3::exceptions::{
    PyBaseException, PyRuntimeError, PyRuntimeWarning, PyStopIteration, PyTypeError, PyValueError,
};
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple, PyType};

use super::attributes::Attributes;
use super::class::Classes;
use super::{reader, writer};
use crate::py::AttachedCell;

/// What is to be done, with its arguments.
pub enum Work {
    ReadLine,
    ReadUntil(Py<PyBytes>),
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
#[pyclass(frozen, weakref, module = "mioloop._core")]
pub struct StreamOperation {
    /// The reader; the writer of a drain.
    stream: Py<PyAny>,
    work: Work,
    progress: AttachedCell<Progress>,
    phase: AttachedCell<Phase>,
}

/// What something awaited has come to.
enum Sent<'py> {
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
    pub fn new(stream: &Bound<'_, PyAny>, work: Work) -> Self {
        StreamOperation {
            stream: stream.clone().unbind(),
            work,
            progress: AttachedCell::new(Progress::default()),
            phase: AttachedCell::new(Phase::Created),
        }
    }

    /// Goes on, until there is something to wait for. An error leaves the operation finished.
    fn resume<'py>(&self, py: Python<'py>, by: Resumption<'_, 'py>) -> PyResult<Sent<'py>> {
        let (phase, result) = match self.phase.replace(py, Phase::Running) {
            Phase::Running => return Err(PyValueError::new_err("coroutine already executing")),
            Phase::Finished => {
                let error = PyRuntimeError::new_err("cannot reuse already awaited coroutine");
                (Phase::Finished, Err(error))
            }
            phase => match self.resume_from(py, phase, by) {
                Ok((phase, sent)) => (phase, Ok(sent)),
                Err(error) => (Phase::Finished, Err(error)),
            },
        };
        drop(self.phase.replace(py, phase));
        result
    }

    fn resume_from<'py>(
        &self,
        py: Python<'py>,
        phase: Phase,
        by: Resumption<'_, 'py>,
    ) -> PyResult<(Phase, Sent<'py>)> {
        match (phase, by) {
            (Phase::Created, Resumption::Throw(args)) => Err(thrown(args)),
            (Phase::Waiting(waiter), by) => match by.of(waiter.bind(py)) {
                Ok(Sent::Yielded(future)) => Ok((Phase::Waiting(waiter), Sent::Yielded(future))),
                result => {
                    self.end_wait(py)?;
                    match result {
                        // asyncio's `readline` has its own way with some exceptions of the reader's.
                        Err(error) if self.is_readers(py, &error)? => self.step_aside(py),
                        result => result.and_then(|_| self.advance(py)),
                    }
                }
            },
            (Phase::SteppedAside(coroutine), by) => {
                let sent = by.of(coroutine.bind(py))?;
                self.beside(coroutine, sent)
            }
            (Phase::Created | Phase::Running | Phase::Finished, _) => self.advance(py),
        }
    }

    /// As far as it gets without waiting.
    fn advance<'py>(&self, py: Python<'py>) -> PyResult<(Phase, Sent<'py>)> {
        let stream = self.stream.bind(py);
        loop {
            let attempt = match &self.work {
                Work::Drain => writer::attempt_drain(stream)?,
                work => reader::attempt(stream, work, &self.progress)?,
            };
            let attributes = match attempt {
                Attempt::Done(result) => return Ok((Phase::Finished, Sent::Returned(result))),
                Attempt::StepAside => return self.step_aside(py),
                Attempt::Wait(attributes) => attributes,
            };
            let waiter = reader::begin_wait(&attributes)?;
            match send_none(&waiter) {
                Ok(Sent::Yielded(future)) => {
                    return Ok((Phase::Waiting(waiter.unbind()), Sent::Yielded(future)));
                }
                done_already => {
                    self.end_wait(py)?;
                    done_already?;
                }
            }
        }
    }

    /// What asyncio does however a wait has ended.
    fn end_wait(&self, py: Python<'_>) -> PyResult<()> {
        self.progress.borrow_mut(py).waited = true;
        let none = py.None().into_bound(py);
        Attributes::of(self.stream.bind(py))?.set(intern!(py, "_waiter"), &none)
    }

    fn is_readers(&self, py: Python<'_>, error: &PyErr) -> PyResult<bool> {
        let exception = Attributes::of(self.stream.bind(py))?.get(intern!(py, "_exception"))?;
        Ok(exception.is_some_and(|exception| exception.is(error.value(py))))
    }

    /// Lets asyncio's method do it, from the beginning, or do the rest of a `ReadAll`.
    fn step_aside<'py>(&self, py: Python<'py>) -> PyResult<(Phase, Sent<'py>)> {
        let stream = self.stream.bind(py);
        let (name, _) = self.names();
        let argument = match &self.work {
            Work::Drain | Work::ReadLine => None,
            Work::ReadUntil(separator) => Some(separator.bind(py).clone().into_any()),
            Work::Read(size) | Work::ReadExactly(size) => Some(size.into_pyobject(py)?.into_any()),
            Work::ReadAll => Some((-1i32).into_pyobject(py)?.into_any()),
        };
        let classes = Classes::get(py)?;
        let class = if let Work::Drain = self.work { &classes.fast_writer } else { &classes.fast_reader };
        let made = class.call_original(stream, name, argument)?;
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

    fn names(&self) -> (&'static str, &'static str) {
        match self.work {
            Work::ReadLine => ("readline", "StreamReader.readline"),
            Work::ReadUntil(_) => ("readuntil", "StreamReader.readuntil"),
            Work::Read(_) | Work::ReadAll => ("read", "StreamReader.read"),
            Work::ReadExactly(_) => ("readexactly", "StreamReader.readexactly"),
            Work::Drain => ("drain", "StreamWriter.drain"),
        }
    }
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

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        match self.resume(py, Resumption::SendNone)? {
            Sent::Yielded(future) => Ok(Some(future)),
            // The end of an iterator without an exception stands for None.
            Sent::Returned(result) if result.is_none() => Ok(None),
            Sent::Returned(result) => Err(PyStopIteration::new_err((result.unbind(),))),
        }
    }

    /// As of a coroutine; only None makes sense.
    #[pyo3(signature = (value, /))]
    fn send<'py>(&self, py: Python<'py>, value: &Bound<'_, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        if !value.is_none() {
            return Err(PyTypeError::new_err("can't send non-None value to a just-started coroutine"));
        }
        self.outcome(py, Resumption::SendNone)
    }

    /// As of a coroutine: raises an exception where it waits.
    #[pyo3(signature = (*args))]
    fn throw<'py>(&self, py: Python<'py>, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
        self.outcome(py, Resumption::Throw(args))
    }

    /// As of a coroutine: gives the operation up.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        match self.phase.replace(py, Phase::Running) {
            Phase::Running => Err(PyValueError::new_err("coroutine already executing")),
            phase => {
                let closed = match &phase {
                    Phase::Waiting(waiter) => {
                        let closed = waiter.call_method0(py, intern!(py, "close"));
                        self.end_wait(py).and(closed.map(drop))
                    }
                    Phase::SteppedAside(coroutine) => {
                        coroutine.call_method0(py, intern!(py, "close")).map(drop)
                    }
                    _ => Ok(()),
                };
                self.phase.replace(py, Phase::Finished);
                closed
            }
        }
    }

    #[getter]
    fn __name__(&self) -> &'static str {
        self.names().0
    }

    #[getter]
    fn __qualname__(&self) -> &'static str {
        self.names().1
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
        format!("<coroutine object {} at {:p}>", slf.get().names().1, slf.as_ptr())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.stream)?;
        match self.phase.borrow_for_traverse().as_deref() {
            Ok(Phase::Waiting(awaited) | Phase::SteppedAside(awaited)) => visit.call(awaited),
            _ => Ok(()),
        }
    }
}

impl StreamOperation {
    fn outcome<'py>(&self, py: Python<'py>, by: Resumption<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.resume(py, by)? {
            Sent::Yielded(future) => Ok(future),
            Sent::Returned(result) => Err(PyStopIteration::new_err((result.unbind(),))),
        }
    }

    /// As a coroutine that is dropped: one that has not begun says so, one that waits is closed.
    fn finalize(&self, py: Python<'_>) -> PyResult<()> {
        if let Phase::Created = *self.phase.borrow_mut(py) {
            let message = CString::new(format!("coroutine '{}' was never awaited", self.names().1))?;
            return PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &message, 1);
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
            // The interpreter may be on its way to handle an exception when it drops us; it must find it again.
            let pending = PyErr::take(py);
            if let Err(error) = self.finalize(py) {
                error.write_unraisable(py, None);
            }
            if let Some(pending) = pending {
                pending.restore(py);
            }
        });
    }
}
