//! One look-up, awaited.

use std::ffi::c_int;

use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::convert;
use super::digits::{self, Known};
use super::request::{self, Answer, Request};
use super::service::NameService;
use crate::event_loop::EventLoop;
use crate::py::{
    AttachedCell, Awaitable, Blank, Pool, Recycled, Step, attached, audit, coroutine_methods, in_destructor,
    install_slots, recycle, warn_never_awaited,
};
use crate::sys::names::Hints;
use crate::waiter::Waiter;

/// What the program asked for, as it said it.
enum Question {
    Host { host: Py<PyAny>, port: Py<PyAny>, hints: Hints },
    Address(Py<PyAny>),
}

enum Phase {
    Created(Py<EventLoop>, Question, Request),
    /// Digits, to which the C library's answer is known.
    Known {
        host: Py<PyAny>,
        port: Py<PyAny>,
        known: Known,
    },
    /// A thread looks it up; the number names it there.
    Waiting {
        number: u64,
        service: Py<NameService>,
        waiter: Py<Waiter>,
    },
    Answered(Answer),
    Finished,
}

impl Phase {
    /// The look-up is dropped. As a coroutine, it says so if it has not begun.
    fn end(self, py: Python<'_>) {
        // asyncio's names.
        let unbegun = match &self {
            Phase::Created(_, Question::Address(_), _) => "BaseEventLoop.getnameinfo",
            Phase::Created(..) | Phase::Known { .. } => "BaseEventLoop.getaddrinfo",
            Phase::Waiting { .. } | Phase::Answered(_) | Phase::Finished => return,
        };
        drop(self);
        in_destructor(py, || warn_never_awaited(py, unbegun));
    }
}

/// An awaitable look-up of names or addresses. It has a coroutine's methods, so that it can be a task.
#[pyclass(frozen, weakref, module = "mioloop._core")]
pub struct Lookup {
    phase: AttachedCell<Phase>,
}

impl Recycled for Lookup {
    fn blank() -> PyClassInitializer<Self> {
        Lookup { phase: AttachedCell::new(Phase::Finished) }.into()
    }

    fn empty(dead: &Bound<'_, Self>) {
        let phase = dead.get().phase.replace(dead.py(), Phase::Finished);
        if matches!(phase, Phase::Finished) {
            return;
        }
        // SAFETY: the interpreter destroys objects attached. (pyo3 would put it off to drop a `Py` outside of its own
        // calls.)
        unsafe { attached(|py| phase.end(py)) };
    }

    fn pool() -> &'static Pool {
        static POOL: Pool = Pool::new();
        &POOL
    }
}

impl Lookup {
    /// None: the standard library has to do it.
    pub fn of_host<'py>(
        event_loop: &Bound<'py, EventLoop>,
        host: &Bound<'py, PyAny>,
        port: &Bound<'py, PyAny>,
        hints: Hints,
    ) -> PyResult<Option<Bound<'py, Lookup>>> {
        let (kept_host, kept_port) = (|| host.clone().unbind(), || port.clone().unbind());
        if let Some(known) = digits::known(host, port, hints) {
            let phase = Phase::Known { host: kept_host(), port: kept_port(), known };
            return Self::new(host.py(), phase).map(Some);
        }
        let Some(request) = request::of_host(host, port, hints) else { return Ok(None) };
        let question = Question::Host { host: kept_host(), port: kept_port(), hints };
        let phase = Phase::Created(event_loop.clone().unbind(), question, request);
        Self::new(host.py(), phase).map(Some)
    }

    /// None: the standard library has to do it.
    pub fn of_address<'py>(
        event_loop: &Bound<'py, EventLoop>,
        address: &Bound<'py, PyTuple>,
        flags: c_int,
    ) -> PyResult<Option<Bound<'py, Lookup>>> {
        let Some(request) = request::of_address(address, flags) else { return Ok(None) };
        let question = Question::Address(address.clone().into_any().unbind());
        let phase = Phase::Created(event_loop.clone().unbind(), question, request);
        Self::new(address.py(), phase).map(Some)
    }

    fn new(py: Python<'_>, phase: Phase) -> PyResult<Bound<'_, Lookup>> {
        let blank = Blank::<Lookup>::new(py)?;
        drop(blank.get().get().phase.replace(py, phase));
        Ok(blank.publish())
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

    fn begin<'py>(
        slf: &Bound<'py, Self>,
        event_loop: &Bound<'py, EventLoop>,
        question: Question,
        request: Request,
    ) -> PyResult<Step<'py>> {
        let py = slf.py();
        match &question {
            Question::Host { host, port, hints } => audit::getaddrinfo(host.bind(py), port.bind(py), *hints)?,
            Question::Address(address) => audit::getnameinfo(address.bind(py))?,
        }
        if request.is_numeric() {
            let answer = request.answer();
            if let (Question::Host { host, port, hints }, Answer::Addresses(Ok(found))) = (&question, &answer)
            {
                digits::learn(host.bind(py), port.bind(py), *hints, found)?;
            }
            return convert::to_python(py, answer).map(Step::Done);
        }
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
            Phase::Created(event_loop, question, request) => {
                Self::begin(slf, event_loop.bind(py), question, request)
            }
            Phase::Known { host, port, known } => {
                let (host, port) = (host.into_bound(py), port.into_bound(py));
                audit::getaddrinfo(&host, &port, known.hints())?;
                known.answer(host, port).map(Step::Done)
            }
            Phase::Answered(answer) => convert::to_python(py, answer).map(Step::Done),
            Phase::Waiting { number, service, waiter } => {
                // Woken by mistake.
                drop(waiter);
                let waiter = Waiter::new(service.get().event_loop(py))?;
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

/// Makes the class ready for use.
pub fn prepare_class(py: Python<'_>) -> PyResult<()> {
    install_slots::<Lookup>(py)?;
    recycle::<Lookup>(py);
    Ok(())
}

#[pymethods]
impl Lookup {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(phase) = self.phase.borrow_for_traverse() {
            match &*phase {
                Phase::Created(event_loop, question, _) => {
                    visit.call(event_loop)?;
                    match question {
                        Question::Host { host, port, .. } => {
                            visit.call(host)?;
                            visit.call(port)?;
                        }
                        Question::Address(address) => visit.call(address)?,
                    }
                }
                Phase::Known { host, port, .. } => {
                    visit.call(host)?;
                    visit.call(port)?;
                }
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
        self.phase.replace(py, Phase::Finished).end(py);
    }
}
