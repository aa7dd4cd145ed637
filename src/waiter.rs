//! What a task waits for: a future reduced to what tasks ask of one.
//!
//! asyncio's own future would be made by a Python call, woken by a callback of ours and would schedule the task's in
//! its turn. This one has the task's wake-up ready as a handle: the event queues that, and the task goes on one
//! iteration earlier. A result it has none; whoever waited looks for himself.

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;

use crate::event_loop::EventLoop;
use crate::handle::Handle;
use crate::py::{Asyncio, AttachedCell};

enum Outcome {
    Pending,
    Ready,
    Cancelled(Option<Py<PyAny>>),
}

struct State {
    /// asyncio's mark of a future that was yielded by `await`, and not by mistake.
    blocking: bool,
    outcome: Outcome,
    callbacks: Vec<Py<Handle>>,
}

/// A future without a result, in the protocol of `asyncio.isfuture`.
#[pyclass(frozen, weakref, module = "mioloop._core")]
pub struct Waiter {
    event_loop: Py<EventLoop>,
    state: AttachedCell<State>,
}

impl Waiter {
    pub fn new<'py>(event_loop: &Bound<'py, EventLoop>) -> PyResult<Bound<'py, Waiter>> {
        let state = State { blocking: true, outcome: Outcome::Pending, callbacks: Vec::new() };
        let waiter = Waiter { event_loop: event_loop.clone().unbind(), state: AttachedCell::new(state) };
        Bound::new(event_loop.py(), waiter)
    }

    /// What it was waiting for has come. Returns what is to be run in the next iteration. Calls nothing in Python.
    pub fn fire(&self, py: Python<'_>) -> Vec<Py<Handle>> {
        let mut state = self.state.borrow_mut(py);
        match state.outcome {
            Outcome::Pending => {
                state.outcome = Outcome::Ready;
                std::mem::take(&mut state.callbacks)
            }
            Outcome::Ready | Outcome::Cancelled(_) => Vec::new(),
        }
    }

    /// The event has come; a wait that was cancelled is one that it has not come for.
    pub fn is_over(&self, py: Python<'_>) -> bool {
        matches!(self.state.borrow_mut(py).outcome, Outcome::Ready)
    }

    fn is_pending(&self, py: Python<'_>) -> bool {
        matches!(self.state.borrow_mut(py).outcome, Outcome::Pending)
    }
}

#[pymethods]
impl Waiter {
    #[getter]
    fn _asyncio_future_blocking(&self, py: Python<'_>) -> bool {
        self.state.borrow_mut(py).blocking
    }

    #[setter(_asyncio_future_blocking)]
    fn set_blocking(&self, py: Python<'_>, blocking: bool) {
        self.state.borrow_mut(py).blocking = blocking;
    }

    fn get_loop(&self, py: Python<'_>) -> Py<EventLoop> {
        self.event_loop.clone_ref(py)
    }

    /// As `asyncio.Future.add_done_callback`.
    #[pyo3(signature = (fn_, /, *, context=None))]
    fn add_done_callback(
        slf: &Bound<'_, Self>,
        fn_: Bound<'_, PyAny>,
        context: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let event_loop = this.event_loop.bind(py);
        let handle = Handle::create(event_loop, &fn_, &[slf.as_any().clone()], context.as_ref())?.unbind();
        {
            let mut state = this.state.borrow_mut(py);
            if let Outcome::Pending = state.outcome {
                state.callbacks.push(handle);
                return Ok(());
            }
        }
        event_loop.get().schedule_handle(py, handle);
        Ok(())
    }

    /// As `asyncio.Future.remove_done_callback`: returns how many there were.
    #[pyo3(signature = (fn_, /))]
    fn remove_done_callback(&self, fn_: &Bound<'_, PyAny>) -> PyResult<usize> {
        let py = fn_.py();
        // The comparison may run Python code, which may fail, or fire this very waiter.
        let callbacks: Vec<_> =
            self.state.borrow_mut(py).callbacks.iter().map(|handle| handle.clone_ref(py)).collect();
        let mut same = Vec::new();
        for handle in callbacks {
            if handle.bind(py).getattr(intern!(py, "_callback"))?.eq(fn_)? {
                same.push(handle);
            }
        }
        let removed: Vec<_> = {
            let mut state = self.state.borrow_mut(py);
            let is_same = |handle: &Py<Handle>| same.iter().any(|other| other.is(handle));
            let (removed, kept) = std::mem::take(&mut state.callbacks).into_iter().partition(is_same);
            state.callbacks = kept;
            removed
        };
        Ok(removed.len())
    }

    /// As `asyncio.Future.cancel`.
    #[pyo3(signature = (msg=None))]
    fn cancel(&self, py: Python<'_>, msg: Option<Py<PyAny>>) -> bool {
        if !self.is_pending(py) {
            return false;
        }
        let callbacks = {
            let mut state = self.state.borrow_mut(py);
            state.outcome = Outcome::Cancelled(msg);
            std::mem::take(&mut state.callbacks)
        };
        for handle in callbacks {
            self.event_loop.get().schedule_handle(py, handle);
        }
        true
    }

    fn cancelled(&self, py: Python<'_>) -> bool {
        matches!(self.state.borrow_mut(py).outcome, Outcome::Cancelled(_))
    }

    fn done(&self, py: Python<'_>) -> bool {
        !self.is_pending(py)
    }

    /// None, or the CancelledError. As `asyncio.Future.result`.
    fn result(&self, py: Python<'_>) -> PyResult<()> {
        let message = match &self.state.borrow_mut(py).outcome {
            Outcome::Ready => return Ok(()),
            Outcome::Pending => None,
            Outcome::Cancelled(message) => Some(message.as_ref().map(|message| message.clone_ref(py))),
        };
        let asyncio = Asyncio::get(py)?;
        Err(match message {
            None => PyErr::from_value(asyncio.invalid_state_error.bind(py).call1(("Result is not set.",))?),
            Some(None) => PyErr::from_value(asyncio.cancelled_error.bind(py).call0()?),
            Some(Some(message)) => PyErr::from_value(asyncio.cancelled_error.bind(py).call1((message,))?),
        })
    }

    fn exception(&self, py: Python<'_>) -> PyResult<()> {
        self.result(py)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        if let Ok(state) = self.state.borrow_for_traverse() {
            for handle in &state.callbacks {
                visit.call(handle)?;
            }
            if let Outcome::Cancelled(message) = &state.outcome {
                visit.call(message)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        let callbacks = std::mem::take(&mut self.state.borrow_mut(py).callbacks);
        drop(callbacks);
    }
}
