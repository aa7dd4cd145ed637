//! How a connection ends: shut down, aborted, failed, or lost.

use pyo3::exceptions::{PyException, PyOSError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::beneath::BoundBeneath;
use super::engine::Outcome;
use super::work::Todo;
use super::{Beneath, Phase, TlsTransport, Told};
use crate::event_loop::EventLoop;
use crate::py::Asyncio;
use crate::transport::StreamTransport;
use crate::transport::flow::Signal;

/// asyncio's `LOG_THRESHOLD_FOR_CONNLOST_WRITES`: this many writes after the end are overlooked.
const SILENT_LATE_WRITES: u32 = 5;

#[pymethods]
impl TlsTransport {
    /// Whether the transport is closing or closed, or the one beneath is. As `asyncio.BaseTransport.is_closing`.
    pub(in crate::transport) fn is_closing(&self, py: Python<'_>) -> PyResult<bool> {
        let closed = {
            let state = self.state.borrow_mut(py);
            state.closed || state.beneath.is_none()
        };
        match closed {
            // One that has not begun is not closing.
            true => Ok(self.state.borrow_mut(py).closed),
            false => self.beneath(py)?.is_closing(py),
        }
    }

    /// Closes the connection when what was written is sent, with a close_notify; receives no more. The protocol's
    /// `connection_lost` comes last. As `asyncio.BaseTransport.close`.
    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        // What the program raises meanwhile does not keep the transport open.
        let flushed = Self::flush_protocol(slf);
        let (again, flushing) = {
            let mut state = slf.get().state.borrow_mut(slf.py());
            (std::mem::replace(&mut state.closed, true), state.phase == Phase::Flushing)
        };
        // The peer's end alone does not end it while the program is to read the rest; this does.
        if again && !flushing { flushed } else { flushed.and(Self::advance(slf, Todo::CLOSE)) }
    }

    /// Closes the connection at once, without a close_notify, and drops what the kernel has not taken. As
    /// `asyncio.WriteTransport.abort`.
    fn abort(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::_force_close(slf, None)
    }

    /// `abort`, with an exception for `connection_lost`. (asyncio ends a transport by it that has another one over it.)
    fn _force_close(slf: &Bound<'_, Self>, exc: Option<Py<PyAny>>) -> PyResult<()> {
        let flushed = Self::flush_protocol(slf);
        let old = {
            let mut state = slf.get().state.borrow_mut(slf.py());
            state.closed = true;
            std::mem::replace(&mut state.abort_reason, exc)
        };
        drop(old);
        flushed.and(Self::advance(slf, Todo::ABORT))
    }

    /// The shutdown's timer.
    fn _check_shutdown_timeout(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if !matches!(this.phase(py), Phase::Flushing | Phase::Shutdown) {
            return Ok(());
        }
        let error = py.import(intern!(py, "asyncio"))?.getattr(intern!(py, "TimeoutError"))?;
        this.beneath(py)?.force_close(py, Some(error.call1(("SSL shutdown timed out",))?))
    }
}

impl TlsTransport {
    /// The program or the peer wants the connection to end.
    pub(super) fn start_shutdown(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.state.borrow_mut(py).closed = true;
        match this.phase(py) {
            Phase::Unwrapped | Phase::Shutdown => Ok(()),
            Phase::Handshaking => Self::abort_now(slf),
            Phase::Wrapped | Phase::Flushing => Self::finish_flushing(slf),
        }
    }

    /// The transport beneath will bring no more than what it has brought.
    pub(super) fn end_of_stream(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        match this.phase(py) {
            Phase::Handshaking => Self::handshake_cut_off(slf),
            Phase::Wrapped => {
                {
                    let mut state = this.state.borrow_mut(py);
                    state.phase = Phase::Flushing;
                    state.closed = true;
                }
                Self::flush(slf)
            }
            Phase::Flushing | Phase::Shutdown => Self::shut_down(slf),
            Phase::Unwrapped => Ok(()),
        }
    }

    /// Delivers the rest of what the peer has sent, as soon as the program takes it, and then closes.
    pub(super) fn flush(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        Self::read(slf)?;
        let wait = {
            let state = this.state.borrow_mut(py);
            // A renegotiation is no reason to wait for a program that reads no more.
            let held_up = state.paused && state.again.is_none();
            state.phase != Phase::Flushing || held_up || state.todo.has(Todo::READ | Todo::CLOSE)
        };
        if wait { Ok(()) } else { Self::finish_flushing(slf) }
    }

    /// Sends all that was written, whether the transport beneath wants it or not, and shuts down.
    fn finish_flushing(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.state.borrow_mut(py).phase = Phase::Flushing;
        Self::write_out(slf, true)?;
        let (phase, held_up) = {
            let state = this.state.borrow_mut(py);
            (state.phase, state.again.is_some() && !state.eof)
        };
        if phase != Phase::Flushing {
            return Ok(());
        }
        // From here on it is the peer who says how long it takes.
        let resume = this.state.borrow_mut(py).reading.shrunk(0);
        if let Some(Signal::Resume) = resume {
            this.beneath(py)?.resume_reading(py)?;
        }
        if held_up {
            return Self::start_shutdown_timer(slf);
        }
        this.state.borrow_mut(py).phase = Phase::Shutdown;
        if this.read_buffer_size(py)? > 0 {
            Self::discard(slf)?;
        }
        Self::shut_down(slf)
    }

    /// Sends our close_notify, and waits for the peer's.
    pub(super) fn shut_down(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let (finished, eof) = {
            let state = this.state.borrow_mut(py);
            (state.finished, state.eof)
        };
        if finished {
            this.forget_received(py);
            return Ok(());
        }
        if !eof {
            Self::feed(slf)?;
            loop {
                let outcome = this.engine.shutdown(py);
                Self::send_outgoing(slf, true)?;
                match outcome {
                    Ok(Outcome::Done(())) => break,
                    Ok(Outcome::Again) if Self::feed(slf)?.is_some() => {}
                    Ok(Outcome::Again) => return Self::start_shutdown_timer(slf),
                    Err(error) if !error.is_instance_of::<PyException>(py) => return Err(error),
                    Err(error) => return Self::finish(slf, Some(error)),
                }
            }
        }
        this.state.borrow_mut(py).finished = true;
        let told = Self::call_eof_received(slf);
        let finished = Self::finish(slf, None);
        told.and(finished)
    }

    /// The shutdown is over. What is still to be sent is sent, for as long as the shutdown may take.
    fn finish(slf: &Bound<'_, Self>, error: Option<PyErr>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.forget_received(py);
        if let Ok(BoundBeneath::Stream(stream)) = this.beneath(py) {
            StreamTransport::send_held_back(&stream)?;
        }
        let (is_stream, timer) = {
            let mut state = this.state.borrow_mut(py);
            state.finished = true;
            if state.beneath.is_none() {
                return Ok(());
            }
            (matches!(state.beneath, Some(Beneath::Stream(_))), state.shutdown_timer.take())
        };
        let all_sent = is_stream && this.pending_beneath(py) == 0;
        if all_sent {
            Self::cancel_timer(py, timer)?;
            // It is the peer's that goes on sending, for one, although it was told.
            if let Some(error) = error {
                return Self::fatal_error(slf, error, "Fatal error on transport");
            }
        } else {
            this.state.borrow_mut(py).shutdown_timer = timer;
            Self::start_shutdown_timer(slf)?;
        }
        this.beneath(py)?.close(py)
    }

    fn start_shutdown_timer(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if this.state.borrow_mut(py).shutdown_timer.is_some() {
            return Ok(());
        }
        let check = slf.getattr(intern!(py, "_check_shutdown_timeout"))?;
        let timer = this.start_timer(py, &this.shutdown_timeout, check)?;
        this.state.borrow_mut(py).shutdown_timer = Some(timer);
        Ok(())
    }

    /// Before the connection ends at once: without the wait for the iteration's end, what the program has written would
    /// be with the kernel by now.
    pub(super) fn send_waiting(slf: &Bound<'_, Self>) -> PyResult<()> {
        match slf.get().phase(slf.py()) {
            Phase::Wrapped => Self::write_out(slf, false),
            _ => Ok(()),
        }
    }

    pub(super) fn abort_now(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        Self::send_waiting(slf)?;
        let (reason, connected) = {
            let mut state = this.state.borrow_mut(py);
            state.phase = Phase::Unwrapped;
            (state.abort_reason.take(), state.beneath.is_some())
        };
        this.forget_received(py);
        match connected {
            true => this.beneath(py)?.force_close(py, reason.map(|reason| reason.into_bound(py))),
            false => Ok(()),
        }
    }

    /// An error that ends the connection. What the network does is no news; everything else is reported.
    pub(super) fn fatal_error(slf: &Bound<'_, Self>, error: PyErr, message: &str) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let beneath = {
            let mut state = this.state.borrow_mut(py);
            state.closed = true;
            // asyncio tells a protocol that has not seen the handshake's end of nothing but that.
            if state.phase != Phase::Handshaking {
                state.phase = Phase::Unwrapped;
            }
            state.beneath.as_ref().map(|beneath| beneath.object(py))
        };
        this.forget_received(py);
        if beneath.is_some() {
            let value = error.value(py).clone().into_any();
            this.beneath(py)?.force_close(py, Some(value))?;
        }
        if error.is_instance_of::<PyOSError>(py) {
            if this.is_debug(py) {
                let options = PyDict::new(py);
                options.set_item(intern!(py, "exc_info"), error)?;
                let debug = Asyncio::get(py)?.logger.bind(py).getattr(intern!(py, "debug"))?;
                debug.call(("%r: %s", slf, message), Some(&options))?;
            }
            return Ok(());
        }
        let cancelled = py.import(intern!(py, "asyncio"))?.getattr(intern!(py, "CancelledError"))?;
        if error.matches(py, cancelled)? {
            return Ok(());
        }
        let context = PyDict::new(py);
        context.set_item(intern!(py, "message"), message)?;
        context.set_item(intern!(py, "exception"), error)?;
        context.set_item(intern!(py, "transport"), beneath)?;
        context.set_item(intern!(py, "protocol"), slf)?;
        EventLoop::call_exception_handler(this.event_loop.bind(py), &context)
    }

    /// The transport beneath is gone. The last thing that happens.
    pub(super) fn lost(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let in_handshake = this.phase(py) == Phase::Handshaking;
        let (tell, protocol, reason, timers, rest) = {
            let mut state = this.state.borrow_mut(py);
            let tell = !in_handshake && matches!(state.told, Told::Made | Told::Eof);
            if tell {
                state.told = Told::Lost;
            }
            state.closed = true;
            state.finished = true;
            state.phase = Phase::Unwrapped;
            state.todo = Todo::default();
            state.backlog = Default::default();
            let timers = [state.handshake_timer.take(), state.shutdown_timer.take()];
            let rest = (state.beneath.take(), state.context.take(), state.again.take());
            (tell, state.protocol.take(), state.lost_reason.take(), timers, rest)
        };
        this.forget_received(py);
        drop(rest);
        for timer in timers {
            Self::cancel_timer(py, timer)?;
        }
        if let (true, Some(protocol)) = (tell, &protocol) {
            let callback = protocol.object.bind(py).getattr(intern!(py, "connection_lost"))?;
            super::beneath::call_soon(this.event_loop.bind(py), callback, reason.as_ref())?;
        }
        let error = match &reason {
            Some(reason) => Some(reason.bind(py).cast::<pyo3::exceptions::PyBaseException>()?),
            None => None,
        };
        if let (true, Some(error)) = (in_handshake, error) {
            Self::report_accepted(slf, &PyErr::from_value(error.clone().into_any()))?;
        }
        Self::wake_waiter(slf, error)
    }

    /// Whether it is too late to write. Programs that go on all the same are told in the log.
    pub(super) fn is_late(&self, py: Python<'_>) -> PyResult<bool> {
        let writes = {
            let mut state = self.state.borrow_mut(py);
            if !state.closed && state.beneath.is_some() {
                return Ok(false);
            }
            state.late_writes += 1;
            state.late_writes - 1
        };
        if writes >= SILENT_LATE_WRITES {
            let logger = Asyncio::get(py)?.logger.bind(py);
            logger.call_method1(intern!(py, "warning"), ("SSL connection is closed",))?;
        }
        Ok(true)
    }
}
