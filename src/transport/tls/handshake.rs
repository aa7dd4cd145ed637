//! The handshake.

use pyo3::exceptions::{PyBaseException, PyConnectionAbortedError, PyConnectionResetError, PyException};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::engine::Outcome;
use super::work::Todo;
use super::{Phase, TlsTransport, Told};
use crate::event_loop::EventLoop;
use crate::py::{Asyncio, is_fatal};
use crate::sys;
use crate::transport::streams;

#[pymethods]
impl TlsTransport {
    /// The handshake's timer.
    fn _check_handshake_timeout(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if this.phase(py) != Phase::Handshaking {
            return Ok(());
        }
        let seconds = this.handshake_timeout.bind(py);
        let message =
            format!("SSL handshake is taking longer than {seconds} seconds: aborting the connection");
        Self::fatal_error(slf, PyConnectionAbortedError::new_err(message), "Fatal error on transport")
    }
}

impl TlsTransport {
    pub(super) fn start_handshake(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let began = match this.is_debug(py) {
            true => {
                let logger = Asyncio::get(py)?.logger.bind(py);
                logger.call_method1(intern!(py, "debug"), ("%r starts SSL handshake", slf))?;
                Some(sys::monotonic())
            }
            false => None,
        };
        let closed = {
            let mut state = this.state.borrow_mut(py);
            state.began = began;
            if !state.closed {
                state.phase = Phase::Handshaking;
            }
            state.closed
        };
        // Whoever made it has given it up before it began.
        if closed {
            return this.beneath(py)?.force_close(py, None);
        }
        let check = slf.getattr(intern!(py, "_check_handshake_timeout"))?;
        let timer = this.start_timer(py, &this.handshake_timeout, check)?;
        this.state.borrow_mut(py).handshake_timer = Some(timer);
        Self::handshake(slf)
    }

    pub(super) fn start_timer(
        &self,
        py: Python<'_>,
        seconds: &Py<PyAny>,
        callback: Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let event_loop = self.event_loop.bind(py);
        Ok(event_loop.call_method1(intern!(py, "call_later"), (seconds, callback))?.unbind())
    }

    pub(super) fn cancel_timer(py: Python<'_>, timer: Option<Py<PyAny>>) -> PyResult<()> {
        match timer {
            Some(timer) => timer.call_method0(py, intern!(py, "cancel")).map(drop),
            None => Ok(()),
        }
    }

    /// One step of it, or several, with what has been received.
    pub(super) fn handshake(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        Self::feed(slf)?;
        loop {
            match this.engine.handshake(py) {
                Ok(Outcome::Again) if Self::feed(slf)?.is_some() => {}
                Ok(Outcome::Again) => return Self::send_outgoing(slf, false),
                Ok(Outcome::Done(())) => return Self::handshake_done(slf),
                Err(error) if !error.is_instance_of::<PyException>(py) => return Err(error),
                Err(error) => return Self::handshake_failed(slf, error),
            }
        }
    }

    fn handshake_done(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if this.engine.is_custom() {
            // A class of the user's may check the peer in it.
            match this.engine.object.bind(py).call_method0(intern!(py, "getpeercert")) {
                Err(error) if !error.is_instance_of::<PyException>(py) => return Err(error),
                Err(error) => return Self::handshake_failed(slf, error),
                Ok(_) => {}
            }
        }
        let (timer, began) = {
            let mut state = this.state.borrow_mut(py);
            state.phase = Phase::Wrapped;
            state.secure = true;
            (state.handshake_timer.take(), state.began)
        };
        Self::cancel_timer(py, timer)?;
        if let Some(began) = began {
            let milliseconds = (sys::monotonic() - began) * 1e3;
            let logger = Asyncio::get(py)?.logger.bind(py);
            let message = "%r: SSL handshake took %.1f ms";
            logger.call_method1(intern!(py, "debug"), (message, slf, milliseconds))?;
        }
        let first = {
            let mut state = this.state.borrow_mut(py);
            let first = state.told == Told::Nothing;
            if first {
                state.told = Told::Made;
            }
            first
        };
        let told = match (first, this.protocol(py)) {
            (true, Some(protocol)) => {
                Self::calling(slf, || match streams::begins(&protocol, this.is_debug(py)) {
                    Some(connection_made) => connection_made.call1(py, (&protocol, slf)).map(drop),
                    None => protocol.call_method1(intern!(py, "connection_made"), (slf,)).map(drop),
                })
            }
            _ => Ok(()),
        };
        // What ends the loop for now does not end the connection; any other exception does.
        if told.as_ref().is_err_and(|error| !is_fatal(py, error)) {
            Self::send_waiting(slf)?;
            return told;
        }
        // The last flight and what the protocol has written leave together. (`WRITE` sends both.)
        this.state.borrow_mut(py).todo |= Todo::WRITE | Todo::READ;
        told.and(Self::wake_waiter(slf, None))
    }

    pub(super) fn handshake_failed(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let timer = {
            let mut state = this.state.borrow_mut(py);
            state.phase = Phase::Unwrapped;
            state.handshake_timer.take()
        };
        Self::cancel_timer(py, timer)?;
        let certificate = py.import(intern!(py, "ssl"))?.getattr(intern!(py, "CertificateError"))?;
        let message = match error.matches(py, certificate)? {
            true => "SSL handshake failed on verifying the certificate",
            false => "SSL handshake failed",
        };
        let value = error.value(py).clone();
        Self::report_accepted(slf, &error)?;
        Self::fatal_error(slf, error, message)?;
        Self::wake_waiter(slf, Some(&value))
    }

    /// asyncio's error of an end within the handshake.
    pub(super) fn handshake_cut_off(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::handshake_failed(slf, PyConnectionResetError::new_err(()))
    }

    pub(super) fn wake_waiter(
        slf: &Bound<'_, Self>,
        error: Option<&Bound<'_, PyBaseException>>,
    ) -> PyResult<()> {
        let py = slf.py();
        let waiter = slf.get().state.borrow_mut(py).waiter.take();
        let Some(waiter) = waiter.map(|waiter| waiter.into_bound(py)) else { return Ok(()) };
        if waiter.call_method0(intern!(py, "done"))?.is_truthy()? {
            return Ok(());
        }
        match error {
            Some(error) => waiter.call_method1(intern!(py, "set_exception"), (error,)),
            None => waiter.call_method1(intern!(py, "set_result"), (py.None(),)),
        }
        .map(drop)
    }

    /// Nobody waits for an accepted connection; asyncio tells of those that fail in debug mode.
    pub(super) fn report_accepted(slf: &Bound<'_, Self>, error: &PyErr) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if !this.accepted || !this.is_debug(py) {
            return Ok(());
        }
        let context = PyDict::new(py);
        context.set_item(intern!(py, "message"), "Error on transport creation for incoming connection")?;
        context.set_item(intern!(py, "exception"), error.value(py))?;
        context.set_item(intern!(py, "protocol"), this.protocol(py))?;
        context.set_item(intern!(py, "transport"), slf)?;
        EventLoop::call_exception_handler(this.event_loop.bind(py), &context)
    }
}
