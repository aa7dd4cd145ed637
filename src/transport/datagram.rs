//! The datagram transport: UDP and Unix datagrams, connected or not.
//!
//! A wake-up receives datagrams until the socket is drained, up to [`BATCH`] of them: unlike a stream's, a short read
//! says nothing about the next one. Errors that the network reports for single datagrams (a port that nobody listens
//! on) go to the protocol's `error_received` and end nothing.

use std::collections::VecDeque;
use std::mem::MaybeUninit;

use pyo3::exceptions::{PyOSError, PyTypeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyMemoryView, PyTuple, PyType};

use super::address;
use super::base::{Parts, Transport};
use super::peers::Peers;
use super::protocol::Protocol;
use super::socket::{self, ShortRead, Socket};
use crate::event_loop::EventLoop;
use crate::py::{Asyncio, AttachedCell, copy_current_context, in_context_or_this, is_fatal, would_block};
use crate::sys::{self, SocketAddress};

/// How many datagrams a socket may receive before the others have their turn.
const BATCH: usize = 64;

/// What a queued datagram counts for beside its bytes, so that empty ones fill the buffer too (asyncio's figure).
const HEADER_SIZE: usize = 8;

/// A datagram endpoint.
#[pyclass(extends = Transport, frozen, module = "mioloop._core")]
pub struct DatagramTransport {
    /// Where all datagrams go, if the endpoint was made with a remote address.
    remote: Option<Py<PyAny>>,
    /// The socket is connected: the kernel knows where they go.
    connected: bool,
    family: libc::c_int,
    queue: AttachedCell<VecDeque<Datagram>>,
    peers: AttachedCell<Peers>,
}

struct Datagram {
    data: Py<PyBytes>,
    target: Option<Py<PyAny>>,
}

#[pymethods]
impl EventLoop {
    /// The hook by which `BaseEventLoop.create_datagram_endpoint` turns a socket into a transport.
    #[pyo3(signature = (sock, protocol, address=None, waiter=None, extra=None))]
    fn _make_datagram_transport<'py>(
        slf: &Bound<'py, Self>,
        sock: &Bound<'py, PyAny>,
        protocol: &Bound<'py, PyAny>,
        address: Option<Py<PyAny>>,
        waiter: Option<Bound<'py, PyAny>>,
        extra: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, DatagramTransport>> {
        let py = slf.py();
        let extra = socket::extra_info(slf, sock, extra)?;
        let connected = match extra.bind(py).get_item(intern!(py, "peername"))? {
            Some(name) => name.is_truthy()?,
            None => false,
        };
        let datagram = DatagramTransport {
            remote: address,
            connected,
            family: sock.getattr(intern!(py, "family"))?.extract()?,
            queue: AttachedCell::new(VecDeque::new()),
            peers: AttachedCell::new(Peers::default()),
        };
        let transport = Transport::new(Parts {
            name: "DatagramTransport",
            event_loop: slf.clone(),
            names: None,
            short_read: ShortRead::Open,
            protocol: Protocol::new(protocol)?,
            extra: Some(extra),
            context: copy_current_context(py)?,
            socket: Socket::hold(sock)?,
        })?;
        let slf = Bound::new(py, PyClassInitializer::from(transport).add_subclass(datagram))?;
        Transport::begin(slf.as_super(), waiter)?;
        Ok(slf)
    }
}

#[pymethods]
impl DatagramTransport {
    /// Sends one datagram, to `addr` or to where the endpoint is connected; it may be empty. What the kernel does not
    /// take now is queued. Errors of the network go to the protocol's `error_received`.
    ///
    /// Raises TypeError for what is not bytes-like and ValueError for another address than the connected one. As
    /// `asyncio.DatagramTransport.sendto`.
    #[pyo3(signature = (data, addr=None))]
    fn sendto(
        slf: &Bound<'_, Self>,
        data: &Bound<'_, PyAny>,
        addr: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (py, this, base) = (slf.py(), slf.get(), slf.as_super());
        let is_bytes_like = data.is_instance_of::<PyBytes>()
            || data.is_instance_of::<PyByteArray>()
            || data.is_instance_of::<PyMemoryView>();
        if !is_bytes_like {
            let name = data.get_type().name()?;
            let message = format!("data argument must be a bytes-like object, not '{name}'");
            return Err(PyTypeError::new_err(message));
        }
        let target = this.target(py, addr)?;
        let gone = this.remote.is_some() || base.get().state.borrow_mut(py).socket.is_closed();
        if gone && base.get().is_lost(py)? {
            return Ok(());
        }
        // Copied: the program may reuse its buffer at once.
        let data = match data.cast_exact::<PyBytes>() {
            Ok(bytes) => bytes.clone(),
            Err(_) => py.get_type::<PyBytes>().call1((data,))?.cast_into()?,
        };
        if this.queue.borrow_mut(py).is_empty() {
            match this.send(base.get(), &data, target.as_ref()) {
                Ok(()) => return Ok(()),
                Err(error) if would_block(py, &error) => Transport::watch_writable(base)?,
                Err(error) => return Self::send_failed(slf, error),
            }
        }
        base.get().state.borrow_mut(py).pending += data.as_bytes().len() + HEADER_SIZE;
        let datagram = Datagram { data: data.unbind(), target: target.map(Bound::unbind) };
        this.queue.borrow_mut(py).push_back(datagram);
        Transport::grown(base)
    }

    #[getter(__class__)]
    fn class(&self, py: Python<'_>) -> PyResult<Py<PyType>> {
        Ok(Asyncio::get(py)?.datagram_transport.clone_ref(py))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.remote)?;
        if let Ok(peers) = self.peers.borrow_for_traverse() {
            peers.traverse(visit)?;
        }
        if let Ok(queue) = self.queue.borrow_for_traverse() {
            for datagram in queue.iter() {
                visit.call(&datagram.target)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        let parts = (self.queue.replace(py, VecDeque::new()), self.peers.replace(py, Peers::default()));
        drop(parts);
    }
}

impl DatagramTransport {
    /// Drops what was not sent.
    pub(super) fn clear(&self, py: Python<'_>) {
        let queue = self.queue.replace(py, VecDeque::new());
        drop(queue);
    }

    fn target<'py>(
        &self,
        py: Python<'py>,
        addr: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(remote) = &self.remote else { return Ok(addr) };
        let remote = remote.bind(py);
        match addr {
            Some(addr) if !addr.eq(remote)? => {
                Err(PyValueError::new_err(format!("Invalid address: must be None or {}", remote.str()?)))
            }
            _ => Ok(Some(remote.clone())),
        }
    }

    /// Hands one datagram to the kernel.
    fn send(
        &self,
        base: &Transport,
        data: &Bound<'_, PyBytes>,
        target: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let py = data.py();
        let Some(target) = target.filter(|_| !self.connected) else {
            return Ok(sys::send(base.fd, data.as_bytes()).map(drop)?);
        };
        match self.parse_target(py, target)? {
            Some(address) => Ok(sys::send_to(base.fd, data.as_bytes(), &address)?),
            // A name to resolve, or a family that only the socket module knows.
            None => {
                let socket = match &base.state.borrow_mut(py).socket {
                    Socket::Python(socket) => socket.bind(py).clone(),
                    Socket::Own(_) | Socket::Closed => {
                        return Err(sys::Error { errno: libc::EBADF }.into());
                    }
                };
                socket.call_method1(intern!(py, "sendto"), (data, target)).map(drop)
            }
        }
    }

    /// The address as the kernel wants it, if it is a pair of an address in digits and a port.
    fn parse_target(&self, py: Python<'_>, target: &Bound<'_, PyAny>) -> PyResult<Option<SocketAddress>> {
        let Ok(tuple) = target.cast_exact::<PyTuple>() else { return Ok(None) };
        let known = self.peers.borrow_mut(py).target(tuple);
        if known.is_some() {
            return Ok(known);
        }
        let Some(parsed) = address::from_python(self.family, tuple) else { return Ok(None) };
        let old = self.peers.borrow_mut(py).written_to(parsed, tuple);
        drop(old);
        Ok(Some(parsed))
    }

    fn send_failed(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<()> {
        let py = slf.py();
        if is_fatal(py, &error) {
            return Err(error);
        }
        if error.is_instance_of::<PyOSError>(py) {
            return Self::error_received(slf, error);
        }
        Transport::fatal_error(slf.as_super(), error, "Fatal write error on datagram transport")
    }

    /// Tells the protocol of an error of the network. What it raises is for whoever is sending.
    fn error_received(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<()> {
        let py = slf.py();
        let Some(protocol) = slf.as_super().get().protocol(py) else { return Ok(()) };
        protocol.call_method1(intern!(py, "error_received"), (error,)).map(drop)
    }

    /// The same for the poller, where nobody is.
    fn in_protocols_context(slf: &Bound<'_, Self>, tell: impl FnOnce() -> PyResult<()>) -> PyResult<()> {
        let (py, base) = (slf.py(), slf.as_super());
        in_context_or_this(base.get().context.bind(py), || match tell() {
            Err(error) if !is_fatal(py, &error) => {
                Transport::report(base, "Exception in callback protocol.error_received()", error)
            }
            told => told,
        })
    }

    /// Datagrams have come, or an error.
    pub(super) fn read_ready(slf: &Bound<'_, Self>) -> PyResult<()> {
        let result = Self::receive_batch(slf);
        slf.as_super().get().read_on(slf.py());
        result
    }

    fn receive_batch(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, base) = (slf.py(), slf.as_super());
        for _ in 0..BATCH {
            let protocol = match base.get().protocol(py) {
                Some(protocol) if base.get().state.borrow_mut(py).may_read() => protocol,
                _ => return Ok(()),
            };
            match Self::receive(slf)? {
                Received::Datagram(data, sender) => {
                    let received = intern!(py, "datagram_received");
                    match base.get().call_protocol(&protocol, received, (data, sender)) {
                        Err(error) if !is_fatal(py, &error) => {
                            Transport::report(
                                base,
                                "Exception in callback protocol.datagram_received()",
                                error,
                            )?;
                        }
                        result => drop(result?),
                    }
                }
                Received::Error(error) => {
                    Self::in_protocols_context(slf, || Self::error_received(slf, error.into()))?;
                }
                Received::Nothing => {
                    base.get().state.borrow_mut(py).readable = false;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn receive<'py>(slf: &Bound<'py, Self>) -> PyResult<Received<'py>> {
        let (py, this, base) = (slf.py(), slf.get(), slf.as_super().get());
        let received: sys::Result<_> =
            base.event_loop.get().with_read_buffer(py, |buffer: &mut [MaybeUninit<u8>]| {
                let (size, sender) = sys::recv_from(base.fd, buffer)?;
                // SAFETY: the kernel has written `size` bytes to the front of the buffer.
                let data = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), size) };
                Ok((PyBytes::new(py, data), sender))
            });
        match received {
            Ok((data, sender)) => Ok(Received::Datagram(data, this.sender(py, sender)?)),
            Err(error) if error.is_transient() => Ok(Received::Nothing),
            Err(error) => Ok(Received::Error(error)),
        }
    }

    fn sender<'py>(&self, py: Python<'py>, sender: SocketAddress) -> PyResult<Bound<'py, PyAny>> {
        let known = self.peers.borrow_mut(py).sender(py, &sender);
        if let Some((known, old)) = known {
            drop(old);
            return Ok(known.into_any());
        }
        let Some(object) = address::to_python(py, &sender)? else { return Ok(py.None().into_bound(py)) };
        // A Unix socket's is a name, and quickly made.
        if let Ok(tuple) = object.cast_exact::<PyTuple>() {
            let old = self.peers.borrow_mut(py).heard(sender, tuple);
            drop(old);
        }
        Ok(object)
    }

    /// The socket takes datagrams again.
    pub(super) fn write_ready(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this, base) = (slf.py(), slf.get(), slf.as_super());
        if this.queue.borrow_mut(py).is_empty() {
            return Ok(());
        }
        loop {
            let Some(datagram) = this.queue.borrow_mut(py).pop_front() else { break };
            let (data, target) =
                (datagram.data.bind(py), datagram.target.as_ref().map(|target| target.bind(py)));
            match this.send(base.get(), data, target) {
                Err(error) if would_block(py, &error) => {
                    this.queue.borrow_mut(py).push_front(datagram);
                    break;
                }
                sent => {
                    let size = data.as_bytes().len() + HEADER_SIZE;
                    let mut state = base.get().state.borrow_mut(py);
                    state.pending = state.pending.saturating_sub(size);
                    drop(state);
                    if let Err(error) = sent {
                        // One datagram is lost; those behind it have their chance.
                        Self::in_protocols_context(slf, || Self::send_failed(slf, error))?;
                    }
                }
            }
        }
        let told = Transport::shrunk(base);
        if this.queue.borrow_mut(py).is_empty() && base.get().state.borrow_mut(py).closing {
            Transport::schedule_connection_lost(base, None)?;
        }
        told
    }
}

enum Received<'py> {
    Datagram(Bound<'py, PyBytes>, Bound<'py, PyAny>),
    Error(sys::Error),
    Nothing,
}
