//! Writing: from the program to the socket, at once where it can be.

use std::io::{self, IoSlice};

use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;

use super::StreamTransport;
use crate::event_loop::EventLoop;
use crate::py::Asyncio;
use crate::reactor::Direction;
use crate::sys;
use crate::transport::data::Data;
use crate::transport::write_buffer::MAX_PIECES;

const WRITE_FAILED: &str = "Fatal write error on socket transport";

/// asyncio's `LOG_THRESHOLD_FOR_CONNLOST_WRITES`: this many writes to a lost connection are overlooked.
const SILENT_LOST_WRITES: u32 = 5;

#[pymethods]
impl StreamTransport {
    /// Sends `data`, any bytes-like object, without blocking: what the kernel does not take now is buffered.
    ///
    /// The object may be changed or reused as soon as this returns. After the connection was lost, data is dropped
    /// (with a warning in the log from the sixth time on). Raises TypeError for what is not bytes-like and
    /// RuntimeError after `write_eof`. As `asyncio.WriteTransport.write`.
    fn write(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let data = Data::new(data)?;
        this.check_may_write(py, "write")?;
        let length = data.as_slice().len();
        if length == 0 || this.is_lost(py)? {
            return Ok(());
        }
        let mut sent = 0;
        if this.state.borrow_mut(py).buffer.is_empty() {
            sent = match sys::send(this.fd, data.as_slice()) {
                Ok(sent) => sent,
                Err(error) if is_transient(&error) => 0,
                Err(error) => return Self::fatal_error(slf, error.into(), WRITE_FAILED),
            };
            if sent == length {
                return Ok(());
            }
            Self::watch_writable(slf)?;
        }
        this.state.borrow_mut(py).buffer.push(data, sent);
        Self::grown(slf)
    }

    /// Sends all the pieces of an iterable, as if they were one. As `asyncio.WriteTransport.writelines`.
    fn writelines(slf: &Bound<'_, Self>, list_of_data: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.check_may_write(py, "writelines")?;
        // All of them are looked at before anything is sent: an error must not leave half a message on the wire.
        let pieces = list_of_data
            .try_iter()?
            .map(|piece| Data::new(&piece?))
            .collect::<PyResult<Vec<_>>>()?;
        if pieces.iter().all(|piece| piece.as_slice().is_empty()) || this.is_lost(py)? {
            return Ok(());
        }
        let was_empty = {
            let mut state = this.state.borrow_mut(py);
            let was_empty = state.buffer.is_empty();
            for piece in pieces {
                state.buffer.push(piece, 0);
            }
            was_empty
        };
        if was_empty {
            if let Err(error) = this.flush(py) {
                this.state.borrow_mut(py).buffer.clear();
                return Self::fatal_error(slf, error.into(), WRITE_FAILED);
            }
            if this.state.borrow_mut(py).buffer.is_empty() {
                return Ok(());
            }
            Self::watch_writable(slf)?;
        }
        Self::grown(slf)
    }

    /// Sends no more after what is buffered; receiving goes on. As `asyncio.WriteTransport.write_eof`.
    fn write_eof(&self, py: Python<'_>) -> PyResult<()> {
        {
            let mut state = self.state.borrow_mut(py);
            if state.closing || state.eof {
                return Ok(());
            }
            state.eof = true;
            if !state.buffer.is_empty() {
                return Ok(());
            }
        }
        Ok(sys::shutdown_write(self.fd)?)
    }

    /// A stream can be closed by half. As `asyncio.WriteTransport.can_write_eof`.
    fn can_write_eof(&self) -> bool {
        true
    }

    /// How many bytes are written and not yet sent. As `asyncio.WriteTransport.get_write_buffer_size`.
    fn get_write_buffer_size(&self, py: Python<'_>) -> usize {
        self.state.borrow_mut(py).buffer.size()
    }

    /// The water marks `(low, high)`, in bytes. As `asyncio.WriteTransport.get_write_buffer_limits`.
    fn get_write_buffer_limits(&self, py: Python<'_>) -> (usize, usize) {
        self.state.borrow_mut(py).flow.limits()
    }

    /// Sets the water marks, in bytes: the protocol pauses when more than `high` are buffered (64 KiB by default) and
    /// resumes when no more than `low` are (a quarter of `high` by default). Raises ValueError unless
    /// high >= low >= 0. As `asyncio.WriteTransport.set_write_buffer_limits`.
    #[pyo3(signature = (high=None, low=None))]
    fn set_write_buffer_limits(slf: &Bound<'_, Self>, high: Option<i64>, low: Option<i64>) -> PyResult<()> {
        slf.get().state.borrow_mut(slf.py()).flow.set_limits(high, low)?;
        Self::grown(slf)
    }

    #[getter]
    fn _protocol_paused(&self, py: Python<'_>) -> bool {
        self.state.borrow_mut(py).flow.is_paused()
    }

    // `loop.sendfile` sends past the transport, when all that was written before is out.

    fn _make_empty_waiter<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        if this.state.borrow_mut(py).empty_waiter.is_some() {
            return Err(PyRuntimeError::new_err("Empty waiter is already set"));
        }
        let waiter = this
            .event_loop
            .bind(py)
            .call_method0(intern!(py, "create_future"))?;
        let empty = {
            let mut state = this.state.borrow_mut(py);
            state.empty_waiter = Some(waiter.clone().unbind());
            state.buffer.is_empty()
        };
        if empty {
            waiter.call_method1(intern!(py, "set_result"), (py.None(),))?;
        }
        Ok(waiter)
    }

    fn _reset_empty_waiter(&self, py: Python<'_>) {
        let waiter = self.state.borrow_mut(py).empty_waiter.take();
        drop(waiter);
    }
}

impl StreamTransport {
    fn check_may_write(&self, py: Python<'_>, method: &str) -> PyResult<()> {
        let state = self.state.borrow_mut(py);
        if state.eof {
            return Err(PyRuntimeError::new_err(format!(
                "Cannot call {method}() after write_eof()"
            )));
        }
        if state.empty_waiter.is_some() {
            return Err(PyRuntimeError::new_err(format!(
                "unable to {method}; sendfile is in progress"
            )));
        }
        Ok(())
    }

    /// Whether it is too late to write. Programs that go on all the same are told in the log.
    fn is_lost(&self, py: Python<'_>) -> PyResult<bool> {
        let writes = {
            let mut state = self.state.borrow_mut(py);
            if state.conn_lost == 0 {
                return Ok(false);
            }
            state.conn_lost += 1;
            state.conn_lost - 1
        };
        if writes >= SILENT_LOST_WRITES {
            let logger = Asyncio::get(py)?.logger.bind(py);
            logger.call_method1(intern!(py, "warning"), ("socket.send() raised exception.",))?;
        }
        Ok(true)
    }

    /// Asks the poller to tell when the socket takes data again. That stays asked for: an edge costs nothing until
    /// it comes.
    fn watch_writable(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let (registration, started) = {
            let state = this.state.borrow_mut(py);
            (state.registration, state.started)
        };
        match registration {
            Some((_, Direction::Both | Direction::Write)) => Ok(()),
            Some((key, Direction::Read)) => {
                this.event_loop.get().modify(py, key, Direction::Both)?;
                this.state.borrow_mut(py).registration = Some((key, Direction::Both));
                Ok(())
            }
            None => Self::register(
                slf,
                if started {
                    Direction::Both
                } else {
                    Direction::Write
                },
            ),
        }
    }

    fn grown(slf: &Bound<'_, Self>) -> PyResult<()> {
        let signal = {
            let mut state = slf.get().state.borrow_mut(slf.py());
            let size = state.buffer.size();
            state.flow.grown(size)
        };
        Self::signal(slf, signal)
    }

    /// Sends until the buffer is empty or the socket full.
    fn flush(&self, py: Python<'_>) -> io::Result<()> {
        let mut state = self.state.borrow_mut(py);
        while !state.buffer.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            let count = state.buffer.slices(py, &mut slices);
            let slices = &slices[..count];
            let offered: usize = slices.iter().map(|slice| slice.len()).sum();
            match sys::send_vectored(self.fd, slices) {
                Ok(sent) => {
                    state.buffer.advance(py, sent);
                    if sent < offered {
                        break;
                    }
                }
                Err(error) if is_transient(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The socket takes data again.
    pub(super) fn write_ready(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        {
            let state = this.state.borrow_mut(py);
            if state.buffer.is_empty() || state.conn_lost > 0 {
                return Ok(());
            }
        }
        if let Err(error) = this.flush(py) {
            this.state.borrow_mut(py).buffer.clear();
            let error = PyErr::from(error);
            let for_waiter = error.clone_ref(py);
            Self::fatal_error(slf, error, WRITE_FAILED)?;
            return this.finish_empty_waiter(py, Some(for_waiter));
        }
        let signal = {
            let mut state = this.state.borrow_mut(py);
            let size = state.buffer.size();
            state.flow.shrunk(size)
        };
        // The protocol may write more.
        Self::signal(slf, signal)?;
        let (empty, closing, eof) = {
            let state = this.state.borrow_mut(py);
            (state.buffer.is_empty(), state.closing, state.eof)
        };
        if !empty {
            return Ok(());
        }
        this.finish_empty_waiter(py, None)?;
        if closing {
            Self::schedule_connection_lost(slf, None)
        } else if eof {
            Ok(sys::shutdown_write(this.fd)?)
        } else {
            Ok(())
        }
    }

    /// Tells a waiting `sendfile` that the buffer is empty, or will never be.
    pub(super) fn finish_empty_waiter(&self, py: Python<'_>, error: Option<PyErr>) -> PyResult<()> {
        let waiter = self
            .state
            .borrow_mut(py)
            .empty_waiter
            .as_ref()
            .map(|waiter| waiter.bind(py).clone());
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

fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

#[pymethods]
impl EventLoop {
    /// Lends a transport's descriptor to `sendfile`, which watches it in its own way: takes it out of the reactor, or
    /// puts it back in.
    fn _lend_descriptor(&self, transport: &Bound<'_, StreamTransport>, lend: bool) -> PyResult<()> {
        let (py, this) = (transport.py(), transport.get());
        let registration = this.state.borrow_mut(py).registration.take();
        if let Some((key, _)) = registration {
            self.deregister(py, key);
        }
        let started = this.state.borrow_mut(py).started;
        match lend || !started || this.state.borrow_mut(py).socket.is_closed() {
            true => Ok(()),
            // A registration tells at once what has become ready meanwhile.
            false => StreamTransport::register(transport, Direction::Both),
        }
    }
}
