//! One look-up, awaited.

use std::ffi::c_int;

use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::convert;
use super::request::{self, Answer, Request};
use super::service::NameService;
use crate::event_loop::EventLoop;
use crate::py::{AttachedCell, Awaitable, Step, audit, coroutine_methods};
use crate::sys::names::Hints;
use crate::waiter::Waiter;

/// What the program asked for, as it said it.
enum Question {
    Host { host: Py<PyAny>, port: Py<PyAny>, hints: Hints },
    Address(Py<PyAny>),
}

enum Phase {
    Created(Question, Request),
    /// A thread looks it up; the number names it there.
    Waiting {
        number: u64,
        service: Py<NameService>,
        waiter: Py<Waiter>,
    },
    Answered(Answer),
    Finished,
}

/// An awaitable look-up of names or addresses. It has a coroutine's methods, so that it can be a task.
#[pyclass(frozen, weakref, module = "mioloop._core")]
pub struct Lookup {
    event_loop: Py<EventLoop>,
    phase: AttachedCell<Phase>,
}

impl Lookup {
    /// None: the standard library has to do it.
    pub fn of_host<'py>(
        event_loop: &Bound<'py, EventLoop>,
        host: &Bound<'py, PyAny>,
        port: &Bound<'py, PyAny>,
        hints: Hints,
    ) -> PyResult<Option<Bound<'py, Lookup>>> {
        let Some(request) = request::of_host(host, port, hints) else { return Ok(None) };
        let question = Question::Host { host: host.clone().unbind(), port: port.clone().unbind(), hints };
        Self::new(event_loop, question, request).map(Some)
    }

    /// None: the standard library has to do it.
    pub fn of_address<'py>(
        event_loop: &Bound<'py, EventLoop>,
        address: &Bound<'py, PyTuple>,
        flags: c_int,
    ) -> PyResult<Option<Bound<'py, Lookup>>> {
        let Some(request) = request::of_address(address, flags) else { return Ok(None) };
        let question = Question::Address(address.clone().into_any().unbind());
        Self::new(event_loop, question, request).map(Some)
    }

    fn new<'py>(
        event_loop: &Bound<'py, EventLoop>,
        question: Question,
        request: Request,
    ) -> PyResult<Bound<'py, Lookup>> {
        let phase = AttachedCell::new(Phase::Created(question, request));
        Bound::new(event_loop.py(), Lookup { event_loop: event_loop.clone().unbind(), phase })
    }

    /// The answer has come. Returns whom to wake.
    pub fn answered(&self, py: Python<'_>, answer: Answer) -> Option<Py<Waiter>> {
        let waiting = {
            let mut phase = self.phase.borrow_mut(py);
            match *phase {
                Phase::Waiting { .. } => std::mem::replace(&mut *phase, Phase::Answered(answer)),
                _ => return None,
            }
        };
        match waiting {
            Phase::Waiting { waiter, .. } => Some(waiter),
            _ => None,
        }
    }

    fn begin<'py>(slf: &Bound<'py, Self>, question: Question, request: Request) -> PyResult<Step<'py>> {
        let py = slf.py();
        match &question {
            Question::Host { host, port, hints } => audit::getaddrinfo(host.bind(py), port.bind(py), *hints)?,
            Question::Address(address) => audit::getnameinfo(address.bind(py))?,
        }
        if request.is_numeric() {
            return convert::to_python(py, request.answer()).map(Step::Done);
        }
        let event_loop = slf.get().event_loop.bind(py);
        let service = NameService::of(event_loop)?;
        let waiter = Waiter::new(event_loop)?;
        let number = NameService::submit(&service, slf, request)?;
        let phase = Phase::Waiting { number, service: service.unbind(), waiter: waiter.clone().unbind() };
        slf.get().phase.replace(py, phase);
        Ok(Step::Wait(waiter.into_any()))
    }
}

impl Awaitable for Lookup {
    fn step<'py>(slf: &Bound<'py, Self>) -> PyResult<Step<'py>> {
        let (py, this) = (slf.py(), slf.get());
        match this.phase.replace(py, Phase::Finished) {
            Phase::Created(question, request) => Self::begin(slf, question, request),
            Phase::Answered(answer) => convert::to_python(py, answer).map(Step::Done),
            Phase::Waiting { number, service, waiter } => {
                // Woken by mistake.
                drop(waiter);
                let waiter = Waiter::new(this.event_loop.bind(py))?;
                let phase = Phase::Waiting { number, service, waiter: waiter.clone().unbind() };
                this.phase.replace(py, phase);
                Ok(Step::Wait(waiter.into_any()))
            }
            Phase::Finished => Err(PyRuntimeError::new_err("cannot reuse already awaited look-up")),
        }
    }

    fn give_up(slf: &Bound<'_, Self>) -> PyResult<()> {
        let py = slf.py();
        if let Phase::Waiting { number, service, .. } = slf.get().phase.replace(py, Phase::Finished) {
            service.get().forget(py, number);
        }
        Ok(())
    }
}

coroutine_methods!(Lookup);

#[pymethods]
impl Lookup {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        if let Ok(phase) = self.phase.borrow_for_traverse() {
            match &*phase {
                Phase::Created(Question::Host { host, port, .. }, _) => {
                    visit.call(host)?;
                    visit.call(port)?;
                }
                Phase::Created(Question::Address(address), _) => visit.call(address)?,
                Phase::Waiting { service, waiter, .. } => {
                    visit.call(service)?;
                    visit.call(waiter)?;
                }
                Phase::Answered(_) | Phase::Finished => {}
            }
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        drop(self.phase.replace(py, Phase::Finished));
    }
}
