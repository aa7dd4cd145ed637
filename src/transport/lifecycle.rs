//! How a transport ends: closed, aborted, or lost.

use std::ffi::CString;

use pyo3::exceptions::{PyConnectionError, PyOSError, PyResourceWarning};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::base::{State, Transport};
use super::socket::Socket;
use super::{DatagramTransport, StreamTransport};
use crate::event_loop::EventLoop;
use crate::py::{Asyncio, in_context_or_this, minor_version};

/// asyncio's `LOG_THRESHOLD_FOR_CONNLOST_WRITES`: this many writes to a lost connection are overlooked.
const SILENT_LOST_WRITES: u32 = 5;

#[pymethods]
impl Transport {
    /// Whether the transport is closing or closed. As `asyncio.BaseTransport.is_closing`.
    pub fn is_closing(&self, py: Python<'_>) -> bool {
        self.state.borrow_mut(py).closing
    }

    /// Closes the connection when what was written is sent; receives no more. The protocol's `connection_lost(None)`
    /// comes last. As `asyncio.BaseTransport.close`.
    pub(super) fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        // What the program raises meanwhile does not keep the transport open.
        let flushed = Self::flush_protocol(slf);
        flushed.and(Self::close_flushed(slf))
    }

    /// Closes the connection at once, and drops what was not sent. As `asyncio.WriteTransport.abort`.
    fn abort(slf: &Bound<'_, Self>) -> PyResult<()> {
        let flushed = Self::flush_protocol(slf);
        flushed.and(Self::force_close(slf, None))
    }

    // The standard library's TLS protocol ends its transport with these two.

    fn _force_close(slf: &Bound<'_, Self>, exc: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        Self::force_close(slf, exc)
    }

    #[pyo3(signature = (exc, message = "Fatal error on transport"))]
    fn _fatal_error(slf: &Bound<'_, Self>, exc: Bound<'_, PyAny>, message: &str) -> PyResult<()> {
        Self::fatal_error(slf, PyErr::from_value(exc), message)
    }

    /// The last thing that happens to a transport. It closes the socket whatever the protocol does.
    fn _call_connection_lost(slf: &Bound<'_, Self>, exc: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        let py = slf.py();
        let told = match slf.get().protocol(py) {
            Some(protocol) => protocol.call_method1(intern!(py, "connection_lost"), (exc,)).map(drop),
            None => Ok(()),
        };
        let released = Self::release(slf);
        told.and(released)
    }
}

impl Transport {
    fn close_flushed(slf: &Bound<'_, Self>) -> PyResult<()> {
        Self::send_held_back(slf)?;
        {
            let mut state = slf.get().state.borrow_mut(slf.py());
            if state.closing {
                return Ok(());
            }
            state.closing = true;
            if state.pending > 0 {
                return Ok(());
            }
        }
        Self::schedule_connection_lost(slf, None)
    }

    /// Whether something is still to be sent.
    pub fn is_sending(&self, py: Python<'_>) -> bool {
        self.state.borrow_mut(py).pending > 0
    }

    /// An error that ends the connection. What the network does is no news; everything else is reported.
    pub(super) fn fatal_error(slf: &Bound<'_, Self>, error: PyErr, message: &str) -> PyResult<()> {
        let py = slf.py();
        if !error.is_instance_of::<PyOSError>(py) {
            Self::report(slf, message, error.clone_ref(py))?;
        } else if slf.get().is_debug(py) {
            let options = PyDict::new(py);
            options.set_item(intern!(py, "exc_info"), error.clone_ref(py))?;
            let debug = Asyncio::get(py)?.logger.bind(py).getattr(intern!(py, "debug"))?;
            debug.call(("%r: %s", slf, message), Some(&options))?;
        }
        if let Ok(stream) = slf.cast::<StreamTransport>() {
            StreamTransport::try_to_send_held_back(stream);
        }
        Self::force_close(slf, Some(error.into_value(py).into_bound(py).into_any()))
    }

    /// The same of an error that the poller's news have led to: no program's code is running, and the exception handler
    /// finds the connection's own context.
    pub(super) fn fatal_error_in_context(slf: &Bound<'_, Self>, error: PyErr, message: &str) -> PyResult<()> {
        in_context_or_this(slf.get().context.bind(slf.py()), || Self::fatal_error(slf, error, message))
    }

    /// Ends the connection at once; what was not sent is dropped. `exc` is what `connection_lost` is told.
    pub(super) fn force_close(slf: &Bound<'_, Self>, exc: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        let py = slf.py();
        Self::send_held_back(slf)?;
        if let Ok(stream) = slf.cast::<StreamTransport>() {
            stream.get().clear(py);
        } else if let Ok(datagram) = slf.cast::<DatagramTransport>() {
            datagram.get().clear(py);
        }
        {
            let mut state = slf.get().state.borrow_mut(py);
            state.pending = 0;
            state.closing = true;
        }
        Self::schedule_connection_lost(slf, exc)
    }

    /// Once in a transport's life.
    pub(super) fn schedule_connection_lost(
        slf: &Bound<'_, Self>,
        exc: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if this.state.borrow_mut(py).conn_lost > 0 {
            return Ok(());
        }
        let callback = slf.getattr(intern!(py, "_call_connection_lost"))?;
        let args = PyTuple::new(py, [exc])?;
        // Fails if the loop is closed; then the transport stays unclosed, and `Drop` says so.
        EventLoop::schedule(this.event_loop.bind(py), callback, args, &this.context)?;
        this.state.borrow_mut(py).conn_lost = 1;
        Ok(())
    }

    /// Whether it is too late to write. Programs that go on all the same are told in the log.
    pub(super) fn is_lost(&self, py: Python<'_>) -> PyResult<bool> {
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

    fn release(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let registration = this.state.borrow_mut(py).registration.take();
        if let Some((key, _)) = registration {
            this.event_loop.get().forget(py, key);
        }
        let (socket, protocol, server) = {
            let state: &mut State = &mut this.state.borrow_mut(py);
            let socket = std::mem::replace(&mut state.socket, Socket::Closed);
            // However it came to this: from now on the descriptor is another's.
            state.closing = true;
            state.conn_lost = state.conn_lost.max(1);
            (socket, state.protocol.take(), state.server.take())
        };
        let closed = socket.close(py);
        drop(protocol);
        let detached = match &server {
            Some(server) if minor_version(py) >= 13 => {
                server.call_method1(py, intern!(py, "_detach"), (slf,)).map(drop)
            }
            Some(server) => server.call_method0(py, intern!(py, "_detach")).map(drop),
            None => Ok(()),
        };
        let told = match slf.cast::<StreamTransport>() {
            Ok(stream) => {
                let lost = PyConnectionError::new_err("Connection is closed by peer");
                stream.get().finish_empty_waiter(py, Some(lost))
            }
            Err(_) => Ok(()),
        };
        closed.and(detached).and(told)
    }

    /// The server that has accepted a transport which is collected does not wait for it any longer. It is told later, by
    /// when its weak reference to this one is dead, and from whatever thread the collector runs in.
    fn leave_server(&self, py: Python<'_>) -> PyResult<()> {
        let server = self.state.borrow_mut(py).server.take();
        let event_loop = self.event_loop.bind(py);
        match server {
            Some(server) if minor_version(py) >= 13 && event_loop.get().check_open(py).is_ok() => {
                let tell = event_loop.getattr(intern!(py, "_transport_was_collected"))?;
                event_loop.call_method1(intern!(py, "call_soon_threadsafe"), (tell, server)).map(drop)
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Transport {
    /// asyncio's `__del__`: a transport that nobody has closed is closed now, with a warning.
    fn drop(&mut self) {
        Python::attach(|py| {
            if self.state.borrow_mut(py).socket.is_closed() {
                return;
            }
            // The interpreter may be on its way to handle an exception when it drops us; it must find it again.
            let pending = PyErr::take(py);
            let text = format!("unclosed transport {}", self.describe(py));
            let message = CString::new(text).unwrap_or_default();
            let category = py.get_type::<PyResourceWarning>();
            if let Err(error) = PyErr::warn(py, &category, &message, 1) {
                error.write_unraisable(py, None);
            }
            let (socket, registration) = {
                let mut state = self.state.borrow_mut(py);
                (std::mem::replace(&mut state.socket, Socket::Closed), state.registration.take())
            };
            if let Some((key, _)) = registration {
                self.event_loop.get().forget(py, key);
            }
            if let Err(error) = socket.close(py).and(self.leave_server(py)) {
                error.write_unraisable(py, None);
            }
            if let Some(pending) = pending {
                pending.restore(py);
            }
        });
    }
}
