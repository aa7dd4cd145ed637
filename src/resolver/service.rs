//! A loop's look-ups: which are under way, and how their answers come back.

use std::collections::HashMap;

use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use super::lookup::Lookup;
use super::request::Request;
use super::threads::Threads;
use crate::event_loop::EventLoop;
use crate::py::AttachedCell;

/// Made with a loop's first name, and let go of with the loop.
#[pyclass(frozen, module = "mioloop._core")]
pub struct NameService {
    event_loop: Py<EventLoop>,
    /// None in a child process, whose parent has them.
    threads: AttachedCell<Option<Threads>>,
    lookups: AttachedCell<Lookups>,
}

#[derive(Default)]
struct Lookups {
    next: u64,
    under_way: HashMap<u64, Py<Lookup>>,
}

impl NameService {
    /// The loop's.
    pub fn of<'py>(event_loop: &Bound<'py, EventLoop>) -> PyResult<Bound<'py, NameService>> {
        let py = event_loop.py();
        if let Some(service) = event_loop.get().name_service(py) {
            return Ok(service);
        }
        let service = NameService {
            event_loop: event_loop.clone().unbind(),
            threads: AttachedCell::new(Some(Threads::new(event_loop.get().ringer(py)))),
            lookups: AttachedCell::new(Lookups::default()),
        };
        let service = Bound::new(py, service)?;
        event_loop.get().set_name_service(py, Some(service.clone()));
        Ok(service)
    }

    pub fn event_loop<'py>(&self, py: Python<'py>) -> &Bound<'py, EventLoop> {
        self.event_loop.bind(py)
    }

    pub fn submit(slf: &Bound<'_, Self>, lookup: &Bound<'_, Lookup>, request: Request) -> PyResult<u64> {
        let (py, this) = (slf.py(), slf.get());
        let number = {
            let mut lookups = this.lookups.borrow_mut(py);
            lookups.next += 1;
            let number = lookups.next;
            lookups.under_way.insert(number, lookup.clone().unbind());
            number
        };
        let submitted = match this.threads.borrow_mut(py).as_ref() {
            Some(threads) => threads.submit(number, request),
            None => Ok(()),
        };
        match submitted {
            Ok(()) => Ok(number),
            Err(_) => {
                this.forget(py, number);
                // In the standard library's words.
                Err(PyRuntimeError::new_err("can't start new thread"))
            }
        }
    }

    pub fn forget(&self, py: Python<'_>, number: u64) {
        let lookup = self.lookups.borrow_mut(py).under_way.remove(&number);
        if let Some(threads) = self.threads.borrow_mut(py).as_ref() {
            threads.forget(number);
        }
        drop(lookup);
    }

    /// How many answers are to come.
    pub fn awaits(&self, py: Python<'_>) -> usize {
        self.lookups.borrow_mut(py).under_way.len()
    }

    /// Hands the answers that have come to those who wait for them.
    pub fn collect(&self, py: Python<'_>) {
        let answers = match self.threads.borrow_mut(py).as_ref() {
            Some(threads) => threads.take(),
            None => Vec::new(),
        };
        let event_loop = self.event_loop.bind(py).get();
        for (number, answer) in answers {
            // One that was given up is not there any more.
            let lookup = self.lookups.borrow_mut(py).under_way.remove(&number);
            let waiter = lookup.and_then(|lookup| lookup.get().answered(py, answer));
            for handle in waiter.into_iter().flat_map(|waiter| waiter.get().fire(py)) {
                event_loop.schedule_handle(py, handle);
            }
        }
    }
}

#[pymethods]
impl NameService {
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        if let Ok(lookups) = self.lookups.borrow_for_traverse() {
            for lookup in lookups.under_way.values() {
                visit.call(lookup)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        let lookups = std::mem::take(&mut self.lookups.borrow_mut(py).under_way);
        drop(lookups);
    }
}

/// In a child process, just forked: its look-ups, if it makes any, are its own.
pub fn after_fork(event_loop: &Bound<'_, EventLoop>) {
    let py = event_loop.py();
    let Some(service) = event_loop.get().name_service(py) else { return };
    event_loop.get().set_name_service(py, None);
    let threads = service.get().threads.replace(py, None);
    if let Some(threads) = threads {
        threads.leave_to_parent();
    }
}
