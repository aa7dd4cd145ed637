//! Writing: from the program to the socket, at once where it can be.

use std::io::IoSlice;

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;

use super::StreamTransport;
use super::write_buffer::MAX_PIECES;
use crate::py::minor_version;
use crate::sys;
use crate::transport::Transport;
use crate::transport::data::Data;

pub(super) const WRITE_FAILED: &str = "Fatal write error on socket transport";

#[pymethods]
impl StreamTransport {
    /// Sends `data`, any bytes-like object, without blocking: what the kernel does not take now is buffered.
    ///
    /// The object may be changed or reused as soon as this returns. After the connection was lost, data is dropped
    /// (with a warning in the log from the sixth time on). Raises TypeError for what is not bytes-like and
    /// RuntimeError after `write_eof`. As `asyncio.WriteTransport.write`.
    fn write(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::write_data(slf, &Data::new(data)?)
    }

    /// Sends all the pieces of an iterable, as if they were one. As `asyncio.WriteTransport.writelines`.
    fn writelines(slf: &Bound<'_, Self>, list_of_data: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        // Up to 3.11 asyncio joins the pieces and calls `write`, and so do its errors.
        let name = if minor_version(py) >= 12 { "writelines" } else { "write" };
        slf.get().check_may_write(py, name)?;
        // All of them are looked at before anything is sent: an error must not leave half a message on the wire.
        let pieces =
            list_of_data.try_iter()?.map(|piece| Data::new(&piece?)).collect::<PyResult<Vec<_>>>()?;
        if pieces.iter().all(|piece| piece.as_slice().is_empty()) {
            return Ok(());
        }
        Self::write_pieces(slf, &pieces)
    }

    /// Sends no more after what is buffered; receiving goes on. As `asyncio.WriteTransport.write_eof`.
    fn write_eof(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this, base) = (slf.py(), slf.get(), slf.as_super().get());
        Self::send_held_back(slf)?;
        if base.state.borrow_mut(py).closing {
            return Ok(());
        }
        {
            let mut output = this.output.borrow_mut(py);
            let again = std::mem::replace(&mut output.eof, true);
            if again || !output.buffer.is_empty() {
                return Ok(());
            }
        }
        Ok(sys::shutdown_write(base.fd)?)
    }

    /// A stream can be closed by half. As `asyncio.WriteTransport.can_write_eof`.
    fn can_write_eof(&self) -> bool {
        true
    }

    // `loop.sendfile` sends past the transport, when all that was written before is out.

    fn _make_empty_waiter<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        if this.output.borrow_mut(py).empty_waiter.is_some() {
            return Err(PyRuntimeError::new_err("Empty waiter is already set"));
        }
        Self::send_held_back(slf)?;
        let event_loop = slf.as_super().get().event_loop.bind(py);
        let waiter = event_loop.call_method0(intern!(py, "create_future"))?;
        if this.is_empty(py) {
            waiter.call_method1(intern!(py, "set_result"), (py.None(),))?;
        }
        this.output.borrow_mut(py).empty_waiter = Some(waiter.clone().unbind());
        Ok(waiter)
    }

    fn _reset_empty_waiter(&self, py: Python<'_>) {
        let waiter = self.output.borrow_mut(py).empty_waiter.take();
        drop(waiter);
    }
}

impl StreamTransport {
    /// `write`, for Rust.
    pub(in crate::transport) fn write_data(slf: &Bound<'_, Self>, data: &Data<'_>) -> PyResult<()> {
        let (py, this, base) = (slf.py(), slf.get(), slf.as_super());
        this.check_may_write(py, "write")?;
        let length = data.as_slice().len();
        if length == 0 || base.get().is_lost(py)? {
            return Ok(());
        }
        let mut sent = 0;
        if Self::holds_back(slf, length) {
            this.output.borrow_mut(py).buffer.push(data, 0);
            return Self::held_back(slf);
        }
        if this.is_empty(py) {
            sent = match sys::send(base.get().fd, data.as_slice()) {
                Ok(sent) => sent,
                Err(error) if error.is_transient() => 0,
                Err(error) => return Transport::fatal_error(base, error.into(), WRITE_FAILED),
            };
            if sent == length {
                return Ok(());
            }
            Transport::watch_writable(base)?;
        }
        this.output.borrow_mut(py).buffer.push(data, sent);
        Self::note_pending(slf);
        Transport::grown(base)
    }

    /// `writelines`, for Rust.
    pub(in crate::transport) fn write_pieces(slf: &Bound<'_, Self>, pieces: &[Data<'_>]) -> PyResult<()> {
        let (py, this, base) = (slf.py(), slf.get(), slf.as_super());
        this.check_may_write(py, "writelines")?;
        if base.get().is_lost(py)? {
            return Ok(());
        }
        let size = pieces.iter().map(|piece| piece.as_slice().len()).sum();
        let (held_back, was_empty) = (Self::holds_back(slf, size), this.is_empty(py));
        for piece in pieces {
            this.output.borrow_mut(py).buffer.push(piece, 0);
        }
        if held_back {
            return Self::held_back(slf);
        }
        if was_empty {
            if let Err(error) = Self::flush(slf) {
                return Transport::fatal_error(base, error.into(), WRITE_FAILED);
            }
            if this.is_empty(py) {
                return Ok(());
            }
            Transport::watch_writable(base)?;
        }
        Self::note_pending(slf);
        Transport::grown(base)
    }

    pub(super) fn is_empty(&self, py: Python<'_>) -> bool {
        self.output.borrow_mut(py).buffer.is_empty()
    }

    fn check_may_write(&self, py: Python<'_>, method: &str) -> PyResult<()> {
        let output = self.output.borrow_mut(py);
        if output.eof {
            return Err(PyRuntimeError::new_err(format!("Cannot call {method}() after write_eof()")));
        }
        if output.empty_waiter.is_some() {
            return Err(PyRuntimeError::new_err(format!("unable to {method}; sendfile is in progress")));
        }
        Ok(())
    }

    pub(super) fn note_pending(slf: &Bound<'_, Self>) {
        let size = slf.get().output.borrow_mut(slf.py()).buffer.size();
        slf.as_super().get().state.borrow_mut(slf.py()).pending = size;
    }

    /// Sends until the buffer is empty or the socket full.
    pub(super) fn flush(slf: &Bound<'_, Self>) -> sys::Result<()> {
        let (py, fd) = (slf.py(), slf.as_super().get().fd);
        let mut output = slf.get().output.borrow_mut(py);
        while !output.buffer.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            let count = output.buffer.slices(py, &mut slices);
            let slices = &slices[..count];
            let offered: usize = slices.iter().map(|slice| slice.len()).sum();
            let sent = match slices {
                [slice] => sys::send(fd, slice),
                slices => sys::send_vectored(fd, slices),
            };
            match sent {
                Ok(sent) => {
                    output.buffer.advance(py, sent);
                    if sent < offered {
                        break;
                    }
                }
                Err(error) if error.is_transient() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The socket takes data again.
    pub fn write_ready(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this, base) = (slf.py(), slf.get(), slf.as_super());
        if this.is_empty(py) || base.get().state.borrow_mut(py).conn_lost > 0 {
            return Ok(());
        }
        if let Err(error) = Self::flush(slf) {
            let error = PyErr::from(error);
            let for_waiter = error.clone_ref(py);
            Transport::fatal_error_in_context(base, error, WRITE_FAILED)?;
            return this.finish_empty_waiter(py, Some(for_waiter));
        }
        Self::note_pending(slf);
        // The protocol may write more. What it raises does not keep the connection from ending.
        let told = Transport::shrunk(base).and_then(|()| Self::tell_sent(slf));
        // What it has written is perhaps held back, and nothing else would end a transport that is closing.
        let closing = base.get().state.borrow_mut(py).closing;
        let told = told.and(if closing { Self::send_held_back(slf) } else { Ok(()) });
        let finished = if this.is_empty(py) { Self::finish_writing(slf) } else { Ok(()) };
        told.and(finished)
    }

    /// A protocol that is Rust may hold more itself, and count this.
    fn tell_sent(slf: &Bound<'_, Self>) -> PyResult<()> {
        let native = slf.as_super().get().native_protocol(slf.py());
        native.map_or(Ok(()), |(object, native)| native.sent(&object))
    }

    /// All is sent: what waited for it may go on.
    fn finish_writing(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this, base) = (slf.py(), slf.get(), slf.as_super());
        this.finish_empty_waiter(py, None)?;
        if base.get().state.borrow_mut(py).closing {
            Transport::schedule_connection_lost(base, None)
        } else if this.output.borrow_mut(py).eof {
            Ok(sys::shutdown_write(base.get().fd)?)
        } else {
            Ok(())
        }
    }

    /// Tells a waiting `sendfile` that the buffer is empty, or will never be.
    pub fn finish_empty_waiter(&self, py: Python<'_>, error: Option<PyErr>) -> PyResult<()> {
        let waiter = self.output.borrow_mut(py).empty_waiter.as_ref().map(|waiter| waiter.bind(py).clone());
        match waiter {
            Some(waiter) if !waiter.call_method0(intern!(py, "done"))?.is_truthy()? => match error {
                Some(error) => waiter.call_method1(intern!(py, "set_exception"), (error,)),
                None => waiter.call_method1(intern!(py, "set_result"), (py.None(),)),
            }
            .map(drop),
            _ => Ok(()),
        }
    }
}
