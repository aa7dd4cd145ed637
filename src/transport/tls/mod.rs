//! The TLS transport: what a program sees of a connection, and the protocol of the transport beneath.
//!
//! It is one object with two faces. [`program`] is the face of a transport, which the program calls; [`beneath`] that
//! of a protocol, which the transport beneath calls: a [`StreamTransport`] (in Rust, without a Python frame) or any
//! other that `start_tls` is given, another TLS transport for one. The states are those of asyncio's `sslproto`.
//!
//! ```text
//!   Unwrapped -> Handshaking -> Wrapped -> Flushing -> Shutdown -> Unwrapped
//! ```
//!
//! Nothing that a face is asked for is done within that call, if we are inside another: it is noted in [`Todo`], and
//! [`work`] does one thing after the other. So a `write`, `close` or `abort` from within a callback, of the program's
//! or of OpenSSL's, or from another thread while OpenSSL works, is safe at any depth, and no peer can make us recurse.
//! A fork within a callback of the program's, or the end of the transport beneath, can't wait for the callback's end:
//! what the program has ordered by then is done first ([`TlsTransport::send_put_off`]), as OpenSSL is idle there.
//!
//! What a program writes in one iteration of the loop is encrypted at its end, all of it together ([`write`]).

mod backlog;
mod beneath;
mod close;
mod engine;
mod framing;
mod handshake;
mod program;
mod read;
mod work;
mod write;

use std::collections::VecDeque;
use std::ffi::CString;

use pyo3::exceptions::{PyResourceWarning, PyRuntimeError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::StreamTransport;
use super::flow::FlowControl;
use super::protocol::Protocol;
use crate::event_loop::EventLoop;
use crate::py::AttachedCell;
use backlog::{Backlog, Unit};
use engine::Engine;
use framing::Framing;
use work::Todo;

pub(super) use beneath::NATIVE;

/// asyncio's defaults for the high-water marks, in bytes.
const READ_HIGH_WATER: usize = 256 * 1024;
const WRITE_HIGH_WATER: usize = 512 * 1024;

/// asyncio's `SSLProtocolState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Unwrapped,
    Handshaking,
    Wrapped,
    /// The connection is to end; what the peer has sent is still to be read.
    Flushing,
    Shutdown,
}

impl State {
    /// The program has closed the transport, and receives no more. (The peer's end closes it too, but what came before
    /// that is still received.)
    fn is_deaf(&self) -> bool {
        self.closed && self.phase == Phase::Wrapped
    }
}

/// What the program's protocol was told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Made,
    Eof,
    Lost,
}

/// The transport beneath.
enum Beneath {
    Stream(Py<StreamTransport>),
    Other(Py<PyAny>),
}

struct State {
    phase: Phase,
    told: Told,
    protocol: Option<Protocol>,
    beneath: Option<Beneath>,
    /// The program's callbacks run in it: that of the stream beneath.
    context: Option<Py<PyAny>>,
    /// Told of the handshake's end.
    waiter: Option<Py<PyAny>>,
    /// What `get_extra_info` has told.
    extra: Option<Py<PyDict>>,
    handshake_timer: Option<Py<PyAny>>,
    shutdown_timer: Option<Py<PyAny>>,
    /// The handshake was completed, whatever has happened since.
    secure: bool,
    /// When the handshake began; in debug mode only.
    began: Option<f64>,

    todo: Todo,
    /// What `abort` and `connection_lost` were given.
    abort_reason: Option<Py<PyAny>>,
    lost_reason: Option<Py<PyAny>>,
    /// Somebody is in `work`.
    busy: bool,
    /// The thread that is, while it calls the program: OpenSSL is idle then, and nothing encrypted is under way.
    in_program: Option<u64>,
    /// The loop will come back at the end of this iteration.
    queued: bool,

    // Reading.
    /// What the peer has sent and OpenSSL has not been given.
    received: VecDeque<Py<PyBytes>>,
    /// Of the first of these it has been given so much.
    received_from: usize,
    received_size: usize,
    /// Of what OpenSSL was given of it.
    framing: Framing,
    paused: bool,
    /// `resume_reading` was called; what waits here is delivered when the iteration ends, and not before.
    resumed: bool,
    /// When the transport beneath pauses and resumes.
    reading: FlowControl,
    /// The transport beneath has come to its end.
    eof: bool,

    // Writing.
    backlog: Backlog,
    /// What OpenSSL wants to be given again.
    again: Option<Unit>,
    /// The transport beneath wants no more for now.
    beneath_full: bool,
    /// When the program's protocol pauses and resumes.
    writing: FlowControl,

    // The end.
    /// The program can't write any more.
    closed: bool,
    /// The shutdown is complete; what the peer goes on sending is nobody's.
    finished: bool,
    late_writes: u32,
}

/// A connection through TLS. By name it is what asyncio has: programs look for "SSL" in the name of the class.
#[pyclass(frozen, weakref, name = "_SSLProtocolTransport", module = "mioloop._core")]
pub struct TlsTransport {
    event_loop: Py<EventLoop>,
    engine: Engine,
    /// In seconds, as the program gave them.
    handshake_timeout: Py<PyAny>,
    shutdown_timeout: Py<PyAny>,
    /// The connection was accepted by a listener: nobody waits for it.
    accepted: bool,
    state: AttachedCell<State>,
}

/// How a connection is to be made secure; the arguments of asyncio's `SSLProtocol`.
pub(super) struct Settings<'a, 'py> {
    pub event_loop: &'a Bound<'py, EventLoop>,
    pub context: &'a Bound<'py, PyAny>,
    pub server_side: bool,
    pub server_hostname: Option<Bound<'py, PyAny>>,
    pub handshake_timeout: Option<Bound<'py, PyAny>>,
    pub shutdown_timeout: Option<Bound<'py, PyAny>>,
}

impl TlsTransport {
    fn new(
        settings: Settings<'_, '_>,
        protocol: &Bound<'_, PyAny>,
        waiter: Option<Py<PyAny>>,
        told: Told,
        accepted: bool,
    ) -> PyResult<Self> {
        let py = protocol.py();
        let name = settings.server_hostname.filter(|_| !settings.server_side);
        let name = match name {
            Some(name) if name.is_truthy()? => Some(name),
            _ => None,
        };
        let handshake_timeout =
            timeout("ssl_handshake_timeout", "SSL_HANDSHAKE_TIMEOUT", settings.handshake_timeout, py)?;
        let shutdown_timeout =
            timeout("ssl_shutdown_timeout", "SSL_SHUTDOWN_TIMEOUT", settings.shutdown_timeout, py)?;
        Ok(TlsTransport {
            event_loop: settings.event_loop.clone().unbind(),
            engine: Engine::new(settings.context, settings.server_side, name)?,
            handshake_timeout,
            shutdown_timeout,
            accepted,
            state: AttachedCell::new(State {
                phase: Phase::Unwrapped,
                told,
                protocol: Some(Protocol::new(protocol)?),
                beneath: None,
                context: None,
                waiter,
                extra: None,
                handshake_timer: None,
                shutdown_timer: None,
                secure: false,
                began: None,
                todo: Todo::default(),
                abort_reason: None,
                lost_reason: None,
                busy: false,
                in_program: None,
                queued: false,
                received: VecDeque::new(),
                received_from: 0,
                framing: Framing::default(),
                received_size: 0,
                paused: false,
                resumed: false,
                reading: FlowControl::new(READ_HIGH_WATER),
                eof: false,
                backlog: Backlog::default(),
                again: None,
                beneath_full: false,
                writing: FlowControl::new(WRITE_HIGH_WATER),
                closed: false,
                finished: false,
                late_writes: 0,
            }),
        })
    }

    /// For a connection that a listener has accepted.
    pub(super) fn accepted<'py>(
        settings: Settings<'_, 'py>,
        protocol: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, Self>> {
        Bound::new(protocol.py(), Self::new(settings, protocol, None, Told::Nothing, true)?)
    }

    fn is_debug(&self, py: Python<'_>) -> bool {
        self.event_loop.get().is_debug(py)
    }

    fn phase(&self, py: Python<'_>) -> Phase {
        self.state.borrow_mut(py).phase
    }

    fn protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.state.borrow_mut(py).protocol.as_ref().map(|protocol| protocol.object.bind(py).clone())
    }
}

/// A timeout in seconds, or asyncio's default for it.
fn timeout(
    name: &str,
    default: &str,
    given: Option<Bound<'_, PyAny>>,
    py: Python<'_>,
) -> PyResult<Py<PyAny>> {
    match given {
        None => Ok(py.import(intern!(py, "asyncio.constants"))?.getattr(default)?.unbind()),
        Some(given) if given.le(0)? => {
            Err(PyValueError::new_err(format!("{name} should be a positive number, got {given}")))
        }
        Some(given) => Ok(given.unbind()),
    }
}

#[pymethods]
impl TlsTransport {
    /// TLS over a transport: set it as its protocol, and it begins when `connection_made` is called.
    ///
    /// `waiter`, a future or None, is told when the handshake is over; `call_connection_made` is false for a protocol
    /// that knows the connection already. Timeouts are in seconds, None is asyncio's default. Raises ValueError for a
    /// timeout that is not positive, and what `SSLContext.wrap_bio` raises. As asyncio's own `SSLProtocol`.
    #[new]
    #[pyo3(signature = (event_loop, protocol, sslcontext, waiter, server_side=false, server_hostname=None,
        call_connection_made=true, ssl_handshake_timeout=None, ssl_shutdown_timeout=None))]
    #[allow(clippy::too_many_arguments)]
    fn py_new<'py>(
        event_loop: &Bound<'py, EventLoop>,
        protocol: &Bound<'py, PyAny>,
        sslcontext: Option<Bound<'py, PyAny>>,
        waiter: Option<Py<PyAny>>,
        server_side: bool,
        server_hostname: Option<Bound<'py, PyAny>>,
        call_connection_made: bool,
        ssl_handshake_timeout: Option<Bound<'py, PyAny>>,
        ssl_shutdown_timeout: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        let py = protocol.py();
        event_loop.get().check_open(py)?;
        let context = match sslcontext {
            Some(context) if context.is_truthy()? => context,
            _ => {
                let module = py.import(intern!(py, "asyncio.sslproto"))?;
                let make = module.getattr(intern!(py, "_create_transport_context"))?;
                make.call1((server_side, &server_hostname))?
            }
        };
        let settings = Settings {
            event_loop,
            context: &context,
            server_side,
            server_hostname,
            handshake_timeout: ssl_handshake_timeout,
            shutdown_timeout: ssl_shutdown_timeout,
        };
        let told = if call_connection_made { Told::Nothing } else { Told::Made };
        Self::new(settings, protocol, waiter, told, false)
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (phase, closed, beneath) = {
            let state = self.state.borrow_mut(py);
            (state.phase, state.closed, state.beneath.as_ref().map(|beneath| beneath.object(py)))
        };
        let phase = match (phase, closed) {
            (Phase::Unwrapped, false) => "",
            (Phase::Unwrapped, true) => " closed",
            (Phase::Handshaking, _) => " handshaking",
            (Phase::Wrapped, false) => " wrapped",
            (Phase::Wrapped | Phase::Flushing | Phase::Shutdown, _) => " closing",
        };
        Ok(match beneath {
            Some(beneath) => format!("<_SSLProtocolTransport{phase} over {}>", beneath.repr()?),
            None => format!("<_SSLProtocolTransport{phase}>"),
        })
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        self.engine.traverse(&visit)?;
        visit.call(&self.handshake_timeout)?;
        visit.call(&self.shutdown_timeout)?;
        if let Ok(state) = self.state.borrow_for_traverse() {
            if let Some(protocol) = &state.protocol {
                visit.call(&protocol.object)?;
            }
            match &state.beneath {
                Some(Beneath::Stream(stream)) => visit.call(stream)?,
                Some(Beneath::Other(other)) => visit.call(other)?,
                None => {}
            }
            if let Some(unit) = &state.again {
                visit.call(&unit.bytes)?;
            }
            let objects = [&state.context, &state.waiter, &state.handshake_timer, &state.shutdown_timer];
            objects.into_iter().try_for_each(|object| visit.call(object))?;
            visit.call(&state.abort_reason)?;
            visit.call(&state.lost_reason)?;
            visit.call(&state.extra)?;
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        let parts = {
            let mut state = self.state.borrow_mut(py);
            let timers = (state.handshake_timer.take(), state.shutdown_timer.take());
            let ends =
                (state.protocol.take(), state.beneath.take(), state.context.take(), state.waiter.take());
            let reasons = (state.abort_reason.take(), state.lost_reason.take());
            (timers, ends, reasons, state.extra.take(), state.again.take())
        };
        drop(parts);
    }
}

impl Drop for TlsTransport {
    /// asyncio's `__del__`: a transport that nobody has closed is told of. (One that has never begun has nothing to
    /// close.)
    fn drop(&mut self) {
        Python::attach(|py| {
            {
                let state = self.state.borrow_mut(py);
                if state.closed || state.phase == Phase::Unwrapped {
                    return;
                }
            }
            // The interpreter may be on its way to handle an exception when it drops us; it must find it again.
            let pending = PyErr::take(py);
            let text = self.__repr__(py).unwrap_or_else(|_| "<_SSLProtocolTransport>".to_owned());
            let message = CString::new(format!("unclosed transport {text}")).unwrap_or_default();
            let category = py.get_type::<PyResourceWarning>();
            if let Err(error) = PyErr::warn(py, &category, &message, 1) {
                error.write_unraisable(py, None);
            }
            if let Some(pending) = pending {
                pending.restore(py);
            }
        });
    }
}

/// The transport beneath is gone, or was never there.
fn not_connected() -> PyErr {
    PyRuntimeError::new_err("the TLS transport has no connection")
}
