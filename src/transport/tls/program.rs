//! Towards the program: the methods of a transport.

use pyo3::exceptions::{PyNotImplementedError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyType};

use super::TlsTransport;
use super::work::Todo;
use crate::event_loop::EventLoop;
use crate::py::Asyncio;
use crate::transport::protocol::Protocol;
use crate::transport::{Data, flow};

#[pymethods]
impl TlsTransport {
    #[classattr]
    fn _start_tls_compatible() -> bool {
        true
    }

    #[classattr]
    fn _sendfile_compatible(py: Python<'_>) -> PyResult<Py<PyAny>> {
        let modes = py.import("asyncio.constants")?.getattr("_SendfileMode")?;
        Ok(modes.getattr("FALLBACK")?.unbind())
    }

    /// Information about the connection: `sslcontext`, `ssl_object`, `peercert`, `cipher`, `compression` (the last four
    /// when the handshake is over), and what the transport beneath knows.
    ///
    /// Returns `default` for a name that is not known. As `asyncio.BaseTransport.get_extra_info`.
    #[pyo3(signature = (name, default=None))]
    fn get_extra_info<'py>(
        slf: &Bound<'py, Self>,
        name: &str,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let (py, this) = (slf.py(), slf.get());
        if name == "socket" {
            Self::flush_protocol(slf)?;
        }
        let object = this.engine.object.bind(py);
        // What is asked for is told from then on, as it was: the peer's certificate is decoded at most once.
        let secure = this.state.borrow_mut(py).secure;
        let made = match name {
            "sslcontext" => return Ok(Some(this.engine.context.bind(py).clone())),
            "ssl_object" if secure => return Ok(Some(object.clone())),
            "peercert" | "cipher" | "compression" if secure => {
                let extra = this.state.borrow_mut(py).extra.as_ref().map(|extra| extra.bind(py).clone());
                let extra = match extra {
                    Some(extra) => extra,
                    None => {
                        let extra = PyDict::new(py);
                        let old = this.state.borrow_mut(py).extra.replace(extra.clone().unbind());
                        drop(old);
                        extra
                    }
                };
                if let Some(known) = extra.get_item(name)? {
                    return Ok(Some(known));
                }
                let method = if name == "peercert" { "getpeercert" } else { name };
                let made = object.call_method0(method)?;
                extra.set_item(name, &made)?;
                Some(made)
            }
            _ => None,
        };
        if made.is_some() {
            return Ok(made);
        }
        let beneath = this.state.borrow_mut(py).beneath.as_ref().map(|beneath| beneath.object(py));
        match beneath {
            Some(beneath) => beneath.call_method1(intern!(py, "get_extra_info"), (name, default)).map(Some),
            None => Ok(default),
        }
    }

    /// The protocol. As `asyncio.BaseTransport.get_protocol`.
    fn get_protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.protocol(py)
    }

    /// Lets another protocol have the connection from now on. As `asyncio.BaseTransport.set_protocol`.
    fn set_protocol(&self, protocol: &Bound<'_, PyAny>) -> PyResult<()> {
        let new = Protocol::new(protocol)?;
        let old = self.state.borrow_mut(protocol.py()).protocol.replace(new);
        drop(old);
        Ok(())
    }

    /// Whether data is received. As `asyncio.ReadTransport.is_reading`.
    fn is_reading(&self, py: Python<'_>) -> bool {
        !self.state.borrow_mut(py).paused
    }

    /// Receives no more until `resume_reading`. What the peer sends meanwhile waits here, up to the limit of
    /// `set_read_buffer_limits`, and then in the kernel and at the peer. As `asyncio.ReadTransport.pause_reading`.
    fn pause_reading(&self, py: Python<'_>) {
        self.state.borrow_mut(py).paused = true;
    }

    /// Goes on receiving, from the end of this iteration on. As `asyncio.ReadTransport.resume_reading`.
    fn resume_reading(slf: &Bound<'_, Self>) {
        let later = {
            let mut state = slf.get().state.borrow_mut(slf.py());
            let resumed = std::mem::replace(&mut state.paused, false);
            // Whoever is at work delivers it when the program's callback has returned. Otherwise it is not noted among
            // the things to do: the next `write` may do those, and must not call the program back from within.
            match (resumed, state.busy) {
                (true, true) => state.todo |= Todo::READ,
                (true, false) => state.resumed = true,
                (false, _) => {}
            }
            state.resumed
        };
        if later {
            Self::queue(slf);
        }
    }

    /// Sets the water marks, in bytes: the transport beneath pauses when at least `high` were received and not
    /// delivered (256 KiB by default), and resumes when no more than `low` are (a quarter of `high` by default).
    /// Raises ValueError unless high >= low >= 0. As asyncio's TLS transport.
    #[pyo3(signature = (high=None, low=None))]
    fn set_read_buffer_limits(
        slf: &Bound<'_, Self>,
        high: Option<Bound<'_, PyAny>>,
        low: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let high = high.as_ref().map(flow::limit).transpose()?;
        let low = low.as_ref().map(flow::limit).transpose()?;
        slf.get().state.borrow_mut(slf.py()).reading.set_limits(high, low)?;
        Self::control_reading(slf)
    }

    /// The water marks `(low, high)` of reading, in bytes.
    fn get_read_buffer_limits(&self, py: Python<'_>) -> (usize, usize) {
        self.state.borrow_mut(py).reading.limits()
    }

    /// How many bytes were received and not decrypted.
    fn get_read_buffer_size(&self, py: Python<'_>) -> PyResult<usize> {
        self.read_buffer_size(py)
    }

    /// Sets the water marks, in bytes: the protocol pauses when at least `high` are held (512 KiB by default) and
    /// resumes when no more than `low` are (a quarter of `high` by default). Raises ValueError unless
    /// high >= low >= 0. As `asyncio.WriteTransport.set_write_buffer_limits`.
    #[pyo3(signature = (high=None, low=None))]
    fn set_write_buffer_limits(
        slf: &Bound<'_, Self>,
        high: Option<Bound<'_, PyAny>>,
        low: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let high = high.as_ref().map(flow::limit).transpose()?;
        let low = low.as_ref().map(flow::limit).transpose()?;
        slf.get().state.borrow_mut(slf.py()).writing.set_limits(high, low)?;
        Self::advance(slf, Todo::SENT)
    }

    /// The water marks `(low, high)` of writing, in bytes. As `asyncio.WriteTransport.get_write_buffer_limits`.
    fn get_write_buffer_limits(&self, py: Python<'_>) -> (usize, usize) {
        self.state.borrow_mut(py).writing.limits()
    }

    /// How many bytes were written and have not left the process: what is not encrypted yet, and what is and waits
    /// for the kernel. As `asyncio.WriteTransport.get_write_buffer_size`.
    fn get_write_buffer_size(&self, py: Python<'_>) -> PyResult<usize> {
        if let Ok(beneath) = self.beneath(py) {
            beneath.send_held_back()?;
        }
        Ok(self.held(py) + self.engine.outgoing(py)?)
    }

    /// Sends `data`, any bytes-like object, without blocking.
    ///
    /// The object may be changed or reused as soon as this returns. What is written in one iteration of the loop is
    /// encrypted and sent together at its end. After the end of the connection, data is dropped (with a warning in the
    /// log from the sixth time on). Raises TypeError for what is not bytes-like. As `asyncio.WriteTransport.write`.
    pub(in crate::transport) fn write(slf: &Bound<'_, Self>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let data = Data::new(data).map_err(|error| match error.is_instance_of::<PyTypeError>(py) {
            true => match data.get_type().name() {
                Ok(name) => {
                    PyTypeError::new_err(format!("data: expecting a bytes-like instance, got {name}"))
                }
                Err(error) => error,
            },
            false => error,
        })?;
        if data.as_slice().is_empty() || this.is_late(py)? {
            return Ok(());
        }
        this.state.borrow_mut(py).backlog.push(py, &data);
        Self::written(slf)
    }

    /// Sends all the pieces of an iterable, as if they were one. As `asyncio.WriteTransport.writelines`.
    fn writelines(slf: &Bound<'_, Self>, list_of_data: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        // All of them are looked at before anything is sent: an error must not leave half a message on the wire.
        let pieces =
            list_of_data.try_iter()?.map(|piece| Data::new(&piece?)).collect::<PyResult<Vec<_>>>()?;
        if pieces.iter().all(|piece| piece.as_slice().is_empty()) || this.is_late(py)? {
            return Ok(());
        }
        for piece in &pieces {
            this.state.borrow_mut(py).backlog.push(py, piece);
        }
        Self::written(slf)
    }

    /// TLS knows no half of a connection: raises NotImplementedError. As asyncio's TLS transport.
    fn write_eof(&self) -> PyResult<()> {
        Err(PyNotImplementedError::new_err(()))
    }

    /// False. As `asyncio.WriteTransport.can_write_eof`.
    fn can_write_eof(&self) -> bool {
        false
    }

    // What asyncio's own parts, tests and programs read of its TLS transport and of the protocol behind that.

    #[getter]
    fn _protocol_paused(&self, py: Python<'_>) -> bool {
        self.state.borrow_mut(py).writing.is_paused()
    }

    #[getter]
    fn _loop(&self, py: Python<'_>) -> Py<EventLoop> {
        self.event_loop.clone_ref(py)
    }

    #[getter]
    fn _ssl_protocol<'py>(slf: &Bound<'py, Self>) -> Bound<'py, Self> {
        slf.clone()
    }

    #[getter]
    fn _app_transport<'py>(slf: &Bound<'py, Self>) -> Bound<'py, Self> {
        slf.clone()
    }

    #[getter]
    fn _transport<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.state.borrow_mut(py).beneath.as_ref().map(|beneath| beneath.object(py))
    }

    #[getter]
    fn _app_reading_paused(&self, py: Python<'_>) -> bool {
        self.state.borrow_mut(py).paused
    }

    /// Adds data that nothing sends until something else is sent: what a renegotiation would do.
    #[pyo3(name = "_test__append_write_backlog")]
    fn append_write_backlog(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = data.py();
        let data = Data::new(data)?;
        self.state.borrow_mut(py).backlog.push(py, &data);
        Ok(())
    }

    #[getter(__class__)]
    fn class(&self, py: Python<'_>) -> PyResult<Py<PyType>> {
        Ok(Asyncio::get(py)?.tls_transport.clone_ref(py))
    }
}
