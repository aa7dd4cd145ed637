//! Writing: from the program to the transport beneath.
//!
//! What is written in one iteration of the loop waits for its end, or for the end of the callback if it is written from
//! within one of ours, and is then encrypted together: a head and a body are one record, and leave by one system call.
//! As soon as there is enough for full records, nothing waits.

use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::backlog::{RECORD, Unit};
use super::engine::Outcome;
use super::work::Todo;
use super::{Phase, TlsTransport};
use crate::event_loop::EventLoop;
use crate::py::is_fatal;
use crate::transport::flow::Signal;

/// This much does not wait for more.
const ENOUGH: usize = 64 * 1024;

/// As much ciphertext is sent as soon as it is there. More would be sent by fewer system calls, but the kernel copies
/// what has just been written from the processor's nearest cache.
const SEND: usize = 32 * 1024;

impl TlsTransport {
    /// Something was added to the backlog.
    pub(super) fn written(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let held = this.held(py);
        let at_once = {
            let mut state = this.state.borrow_mut(py);
            state.todo |= Todo::WRITE;
            if state.busy || state.phase != Phase::Wrapped {
                return Ok(());
            }
            state.backlog.size() >= ENOUGH || state.writing.is_reached(held)
        };
        let event_loop = this.event_loop.get();
        if at_once || event_loop.turn(py).is_none() || !event_loop.is_running_here(py) {
            return Self::advance(slf, Todo::WRITE);
        }
        Self::queue(slf);
        Ok(())
    }

    /// Encrypts and sends what was written. `all`: even if the transport beneath wants no more for now; it is the end,
    /// and it is the only one then that keeps what was written.
    pub(super) fn write_out(slf: &Bound<'_, Self>, all: bool) -> PyResult<()> {
        match Self::try_write_out(slf, all) {
            Err(error) if !error.is_instance_of::<PyException>(slf.py()) => Err(error),
            Err(error) => Self::fatal_error(slf, error, "Fatal error on SSL protocol"),
            Ok(()) => Self::control_writing(slf),
        }
    }

    fn try_write_out(slf: &Bound<'_, Self>, all: bool) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let mut ciphertext: Vec<Bound<'_, PyBytes>> = Vec::new();
        let mut size = 0;
        let mut in_parts = false;
        let mut left_over = true;
        while all || !this.state.borrow_mut(py).beneath_full {
            let unit = {
                let mut state = this.state.borrow_mut(py);
                state.again.take().or_else(|| state.backlog.take(py))
            };
            let Some(Unit { bytes, range }) = unit else { break };
            match this.engine.write(bytes.bind(py), range.clone())? {
                Outcome::Done(count) if count < range.len() => {
                    let rest = range.start + count..range.end;
                    this.state.borrow_mut(py).again = Some(Unit { bytes, range: rest });
                }
                Outcome::Done(_) => {}
                // In a renegotiation. It wants to be given the same again.
                Outcome::Again => {
                    this.state.borrow_mut(py).again = Some(Unit { bytes, range });
                    break;
                }
            }
            left_over = false;
            let data = this.engine.take_outgoing(py)?;
            size += data.as_bytes().len();
            ciphertext.push(data);
            // A small rest leaves with what is there already.
            if size >= SEND && this.state.borrow_mut(py).backlog.size() >= RECORD {
                size = 0;
                in_parts = true;
                let beneath = this.beneath(py)?;
                beneath.send(py, std::mem::take(&mut ciphertext))?;
                if beneath.is_lost(py) {
                    // To go on would be to write to it again and again, of which the log tells.
                    this.forget_written(py);
                    return Ok(());
                }
            }
        }
        // What OpenSSL has to say on its own: the handshake's last flight, an answer, a close_notify.
        left_over |= this.state.borrow_mut(py).again.is_some();
        if left_over && (all || !this.state.borrow_mut(py).beneath_full) && this.engine.outgoing(py)? > 0 {
            ciphertext.push(this.engine.take_outgoing(py)?);
        }
        if !ciphertext.is_empty() {
            this.beneath(py)?.send(py, ciphertext)?;
        }
        // To the stream the last part is a second write in the iteration, which may wait for its end.
        if in_parts { this.beneath(py)?.send_held_back() } else { Ok(()) }
    }

    /// It can't be sent any more.
    fn forget_written(&self, py: Python<'_>) {
        let forgotten = {
            let mut state = self.state.borrow_mut(py);
            (std::mem::take(&mut state.backlog), state.again.take())
        };
        drop(forgotten);
    }

    /// Sends what OpenSSL has to say on its own.
    pub(super) fn send_outgoing(slf: &Bound<'_, Self>, all: bool) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if (all || !this.state.borrow_mut(py).beneath_full) && this.engine.outgoing(py)? > 0 {
            let data = this.engine.take_outgoing(py)?;
            this.beneath(py)?.send(py, vec![data])?;
        }
        Ok(())
    }

    /// How much was written and has not left the process; what a transport beneath that is not ours holds is its own.
    pub(super) fn held(&self, py: Python<'_>) -> usize {
        let beneath = self.pending_beneath(py);
        let state = self.state.borrow_mut(py);
        beneath + state.backlog.size() + state.again.as_ref().map_or(0, |unit| unit.range.len())
    }

    /// Tells the protocol to pause or to resume writing. What it raises is reported and changes nothing.
    pub(super) fn control_writing(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let held = this.held(py);
        let (signal, protocol) = {
            let mut state = this.state.borrow_mut(py);
            (
                state.writing.changed(held),
                state.protocol.as_ref().map(|protocol| protocol.object.bind(py).clone()),
            )
        };
        let (Some(signal), Some(protocol)) = (signal, protocol) else { return Ok(()) };
        let (method, message) = match signal {
            Signal::Pause => (intern!(py, "pause_writing"), "protocol.pause_writing() failed"),
            Signal::Resume => (intern!(py, "resume_writing"), "protocol.resume_writing() failed"),
        };
        match Self::calling(slf, || protocol.call_method0(method)) {
            Ok(_) => Ok(()),
            Err(error) if is_fatal(py, &error) => Err(error),
            Err(error) => {
                let context = PyDict::new(py);
                context.set_item(intern!(py, "message"), message)?;
                context.set_item(intern!(py, "exception"), error)?;
                context.set_item(intern!(py, "transport"), slf)?;
                context.set_item(intern!(py, "protocol"), protocol)?;
                Self::calling(slf, || EventLoop::call_exception_handler(this.event_loop.bind(py), &context))
            }
        }
    }
}
