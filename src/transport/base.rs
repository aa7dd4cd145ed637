//! What every transport is: a socket, a protocol, flow control, and a registration with the poller.
//!
//! A transport remembers what the poller last said. The poller reports edges, so one that stops reading before the
//! socket is drained (it has had its share of this iteration, or the protocol has paused it) keeps `readable` set and
//! schedules itself when it may go on; no system call is needed to pause or to resume. Writes go to the socket at
//! once. Only when it takes no more does the poller get to hear of it.
//!
//! Every call into a protocol may do anything: close the transport, switch its protocol, write to it. So no borrow of
//! the state spans one, and what was known before the call is looked up again after it.

use std::num::NonZero;
use std::os::fd::RawFd;

use pyo3::call::PyCallArgs;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyType, PyWeakrefReference};

use super::flow::{self, FlowControl, Signal};
use super::protocol::{Kind, NativeProtocol, Protocol};
use super::socket::{self, Names, ShortRead, Socket};
use super::{DatagramTransport, StreamTransport};
use crate::event_loop::{EventLoop, Owner};
use crate::py::{Asyncio, AttachedCell, in_context, in_context_or_this, is_fatal};
use crate::reactor::{Direction, Key, Readiness};

pub(super) struct State {
    pub socket: Socket,
    pub protocol: Option<Protocol>,
    pub server: Option<Py<PyAny>>,
    pub names: Option<Names>,
    /// What `get_extra_info` has told, or was given.
    pub extra: Option<Py<PyDict>>,
    /// The registration and what it asks for; none while `sendfile` has the descriptor, and none at the end.
    pub registration: Option<(Key, Direction)>,

    // Reading.
    pub started: bool,
    /// The iteration in which reading started, for as long as it may last.
    pub started_in: Option<NonZero<u64>>,
    pub paused: bool,
    pub readable: bool,
    pub read_closed: bool,
    pub at_eof: bool,
    pub short_read: ShortRead,

    // Writing.
    /// How many bytes wait to be sent.
    pub pending: usize,
    pub flow: FlowControl,

    // The end.
    pub closing: bool,
    /// Counts from the moment that `connection_lost` is scheduled: first that, then the writes that came too late.
    pub conn_lost: u32,
}

impl State {
    pub fn may_read(&self) -> bool {
        self.started && !self.paused && !self.closing && !self.at_eof
    }
}

// No `dict`: on 3.11 the interpreter allocates it, and may collect, while what is ours in the object is not there yet.
/// What stream and datagram transports have in common (asyncio's `Transport`, in the eyes of `isinstance`).
#[pyclass(subclass, frozen, weakref, module = "mioloop._core")]
pub struct Transport {
    /// The class's own name.
    name: &'static str,
    pub(super) event_loop: Py<EventLoop>,
    /// The protocol's callbacks run in it.
    pub(super) context: Py<PyAny>,
    pub(super) fd: RawFd,
    pub(super) state: AttachedCell<State>,
}

/// What a new transport is made of.
pub(super) struct Parts<'py> {
    pub name: &'static str,
    pub event_loop: Bound<'py, EventLoop>,
    pub socket: Socket,
    pub names: Option<Names>,
    pub short_read: ShortRead,
    pub protocol: Protocol,
    pub extra: Option<Py<PyDict>>,
    pub context: Py<PyAny>,
}

impl Transport {
    pub(super) fn new(parts: Parts<'_>) -> PyResult<Self> {
        Ok(Transport {
            name: parts.name,
            fd: parts.socket.fd(parts.event_loop.py())?,
            event_loop: parts.event_loop.unbind(),
            context: parts.context,
            state: AttachedCell::new(State {
                socket: parts.socket,
                protocol: Some(parts.protocol),
                server: None,
                names: parts.names,
                extra: parts.extra,
                registration: None,
                started: false,
                started_in: None,
                paused: false,
                readable: false,
                read_closed: false,
                at_eof: false,
                short_read: parts.short_read,
                pending: 0,
                flow: FlowControl::new(flow::DEFAULT_HIGH),
                closing: false,
                conn_lost: 0,
            }),
        })
    }

    /// Starts a new transport's life. The order is asyncio's: the protocol learns of the connection, then reading
    /// starts, then whoever waits for the transport is told. The descriptor is registered at once, so that nobody else
    /// takes it meanwhile.
    pub(super) fn begin(slf: &Bound<'_, Self>, waiter: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let event_loop = this.event_loop.bind(py);
        let Some((protocol, kind)) = this.protocol_and_kind(py) else { return Ok(()) };
        // What can't be watched is told when reading starts, as in asyncio; until then it may be written to.
        let _told_later = Self::watch(slf, Direction::Read);
        let (connection_made, args) = kind.begin(&protocol, slf)?;
        EventLoop::schedule(event_loop, connection_made, args, &this.context)?;
        event_loop.get().schedule_start(py, slf.clone().unbind());
        if let Some(waiter) = waiter {
            let wake = Asyncio::get(py)?.set_result_unless_cancelled.bind(py).clone();
            let args = (waiter, py.None()).into_pyobject(py)?;
            EventLoop::schedule(event_loop, wake, args, &this.context)?;
        }
        Ok(())
    }

    /// The protocol knows the connection: data may come, or has come already.
    pub fn start_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let registered = {
            let mut state = this.state.borrow_mut(py);
            state.started = true;
            state.started_in = this.event_loop.get().turn(py);
            state.registration.is_some() || state.closing
        };
        if !registered {
            return Self::watch(slf, Direction::Read);
        }
        this.read_on(py);
        Self::settle_if_at_rest(slf)
    }

    /// A transport at rest, paused or at the end of the stream and with all sent, lives as long as the program wants it:
    /// one that is forgotten so is found by the collector, which closes it. To be called when one of these has changed.
    pub(super) fn settle(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        // To make an object can start the collector, and that can run any code: what is true is looked up after it.
        let reference = PyWeakrefReference::new(slf)?.unbind();
        let (key, owner) = {
            let state = this.state.borrow_mut(py);
            let Some((key, _)) = state.registration else { return Ok(()) };
            match !state.started || state.may_read() || state.pending > 0 {
                true => (key, Owner::Transport(slf.clone().unbind())),
                false => (key, Owner::Dormant(reference)),
            }
        };
        this.event_loop.get().change_owner(py, key, owner);
        Ok(())
    }

    /// The same where most transports neither are paused nor at the end: for these it costs a look.
    fn settle_if_at_rest(slf: &Bound<'_, Self>) -> PyResult<()> {
        let may_rest = {
            let state = slf.get().state.borrow_mut(slf.py());
            state.paused || state.at_eof
        };
        if may_rest { Self::settle(slf) } else { Ok(()) }
    }

    /// Asks the poller to tell when the socket takes data again. That stays asked for: an edge costs nothing until it
    /// comes.
    pub(super) fn watch_writable(slf: &Bound<'_, Self>) -> PyResult<()> {
        let registration = slf.get().state.borrow_mut(slf.py()).registration;
        match registration {
            Some((_, Direction::Both | Direction::Write)) => Ok(()),
            Some((_, Direction::Read)) | None => Self::watch(slf, Direction::Both),
        }
    }

    fn watch(slf: &Bound<'_, Self>, direction: Direction) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let registered = this.state.borrow_mut(py).registration;
        let key = match registered {
            Some((key, _)) => {
                this.event_loop.get().modify(py, key, direction)?;
                key
            }
            None => {
                let owner = Owner::Transport(slf.clone().unbind());
                this.event_loop.get().register(py, this.fd, direction, owner)?
            }
        };
        this.state.borrow_mut(py).registration = Some((key, direction));
        Self::settle_if_at_rest(slf)
    }

    /// The source is ready in some way. What this returns as an error leaves the loop, if it is fatal.
    pub fn on_ready(slf: &Bound<'_, Self>, readiness: Readiness) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let just_started = {
            let mut state = this.state.borrow_mut(py);
            state.readable |= readiness.readable;
            state.read_closed |= readiness.read_closed;
            if readiness.urgent {
                // A read ends at the mark, too.
                state.short_read = ShortRead::Open;
            }
            state.started_in.is_some() && this.has_just_started(py, &mut state)
        };
        let (mut read, mut written) = (Ok(()), Ok(()));
        let may_read = readiness.readable && !just_started;
        if readiness.readable && just_started {
            this.read_on(py);
        }
        // Each half has its turn, whatever the other one raises: the poller will not tell again.
        if let Ok(stream) = slf.cast::<StreamTransport>() {
            if may_read {
                read = StreamTransport::read_ready(stream);
            }
            if readiness.writable {
                written = StreamTransport::write_ready(stream);
            }
        } else if let Ok(datagram) = slf.cast::<DatagramTransport>() {
            if may_read {
                read = DatagramTransport::read_ready(datagram);
            }
            if readiness.writable {
                written = DatagramTransport::write_ready(datagram);
            }
        }
        read.and(written)
    }

    /// Whether reading has started in this very iteration. Whoever waited for the transport goes on in the next one, and
    /// before there is data: asyncio does not even look for it earlier, and programs rely on that.
    #[cold]
    fn has_just_started(&self, py: Python<'_>, state: &mut State) -> bool {
        let turn = self.event_loop.get().turn(py);
        state.started_in = state.started_in.filter(|_| state.started_in == turn);
        state.started_in.is_some()
    }

    /// Schedules another read if one is due: the poller will not tell a second time.
    pub(super) fn read_on(&self, py: Python<'_>) {
        let state = self.state.borrow_mut(py);
        if let (true, true, Some((key, _))) = (state.readable, state.may_read(), state.registration) {
            drop(state);
            self.event_loop.get().schedule_source(py, key, Readiness::READABLE);
        }
    }

    pub fn event_loop(&self) -> &EventLoop {
        self.event_loop.get()
    }

    pub fn fd(&self) -> RawFd {
        self.fd
    }

    pub(super) fn is_debug(&self, py: Python<'_>) -> bool {
        self.event_loop.get().is_debug(py)
    }

    pub(super) fn protocol<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.state.borrow_mut(py).protocol.as_ref().map(|protocol| protocol.object.bind(py).clone())
    }

    pub(super) fn protocol_and_kind<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyAny>, Kind)> {
        let state = self.state.borrow_mut(py);
        state.protocol.as_ref().map(|protocol| (protocol.object.bind(py).clone(), protocol.kind))
    }

    /// The protocol, if it is Rust.
    pub(super) fn native_protocol<'py>(
        &self,
        py: Python<'py>,
    ) -> Option<(Bound<'py, PyAny>, &'static dyn NativeProtocol)> {
        match self.protocol_and_kind(py)? {
            (object, Kind::Native(native)) => Some((object, native)),
            _ => None,
        }
    }

    /// Calls a method of the protocol in the transport's context.
    pub(super) fn call_protocol<'py>(
        &self,
        protocol: &Bound<'py, PyAny>,
        method: &Bound<'py, PyString>,
        args: impl PyCallArgs<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        in_context(self.context.bind(protocol.py()), || protocol.call_method1(method, args))
    }

    /// More waits to be sent than before.
    pub(super) fn grown(slf: &Bound<'_, Self>) -> PyResult<()> {
        let signal = {
            let mut state = slf.get().state.borrow_mut(slf.py());
            let pending = state.pending;
            state.flow.grown(pending)
        };
        Self::settle_if_at_rest(slf)?;
        Self::signal(slf, signal)
    }

    /// Less waits to be sent than before.
    pub(super) fn shrunk(slf: &Bound<'_, Self>) -> PyResult<()> {
        let signal = {
            let mut state = slf.get().state.borrow_mut(slf.py());
            let pending = state.pending;
            state.flow.shrunk(pending)
        };
        Self::settle_if_at_rest(slf)?;
        Self::signal(slf, signal)
    }

    /// Tells the protocol to pause or to resume writing. What it raises is reported and changes nothing.
    fn signal(slf: &Bound<'_, Self>, signal: Option<Signal>) -> PyResult<()> {
        let py = slf.py();
        let (Some(signal), Some((protocol, kind))) = (signal, slf.get().protocol_and_kind(py)) else {
            return Ok(());
        };
        let (method, message) = match signal {
            Signal::Pause => (intern!(py, "pause_writing"), "protocol.pause_writing() failed"),
            Signal::Resume => (intern!(py, "resume_writing"), "protocol.resume_writing() failed"),
        };
        let told = match (signal, kind) {
            // It comes from the poller; a protocol that is Rust has a context of its own to enter.
            (Signal::Resume, Kind::Plain | Kind::Buffered) => {
                in_context_or_this(slf.get().context.bind(py), || protocol.call_method0(method))
            }
            // The program is writing, and this is part of it.
            _ => protocol.call_method0(method),
        };
        match told {
            Err(error) if !is_fatal(py, &error) => Self::report(slf, message, error),
            result => result.map(drop),
        }
    }

    /// Hands an error to the loop's exception handler.
    pub(super) fn report(slf: &Bound<'_, Self>, message: &str, error: PyErr) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        let context = PyDict::new(py);
        context.set_item(intern!(py, "message"), message)?;
        context.set_item(intern!(py, "exception"), error)?;
        context.set_item(intern!(py, "transport"), slf)?;
        context.set_item(intern!(py, "protocol"), this.protocol(py))?;
        EventLoop::call_exception_handler(this.event_loop.bind(py), &context)
    }

    pub(super) fn log_debug(slf: &Bound<'_, Self>, message: &str) -> PyResult<()> {
        let py = slf.py();
        if slf.get().is_debug(py) {
            Asyncio::get(py)?.logger.call_method1(py, intern!(py, "debug"), (message, slf))?;
        }
        Ok(())
    }

    /// The transport in words.
    pub(super) fn describe(&self, py: Python<'_>) -> String {
        let state = self.state.borrow_mut(py);
        let closed = state.socket.is_closed();
        let phase = match (closed, state.closing) {
            (true, _) => " closed",
            (false, true) => " closing",
            (false, false) => "",
        };
        let mut text = format!("<{}{phase} fd={}", self.name, self.fd);
        if !closed {
            let polling = |yes| if yes { "polling" } else { "idle" };
            let (read, write) = (polling(state.may_read()), polling(state.pending > 0));
            text.push_str(&format!(" read={read} write=<{write}, bufsize={}>", state.pending));
        }
        text + ">"
    }
}

#[pymethods]
impl Transport {
    /// Information about the connection: `socket`, `sockname`, `peername`, and what a TLS layer adds.
    ///
    /// Returns `default` for a name that is not known. As `asyncio.BaseTransport.get_extra_info`.
    #[pyo3(signature = (name, default=None))]
    fn get_extra_info(
        slf: &Bound<'_, Self>,
        name: &str,
        default: Option<Py<PyAny>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        if name == "socket" {
            Self::flush_protocol(slf)?;
            Self::send_held_back(slf)?;
        }
        Ok(socket::extra_info_item(slf, name)?.map(Bound::unbind).or(default))
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

    /// Whether data is received: not paused, not closing. As `asyncio.ReadTransport.is_reading`.
    fn is_reading(&self, py: Python<'_>) -> bool {
        let state = self.state.borrow_mut(py);
        !state.closing && !state.paused
    }

    /// Receives no more until `resume_reading`; what the peer sends meanwhile waits in the kernel, and then at the
    /// peer. As `asyncio.ReadTransport.pause_reading`: twice is as good as once.
    pub(super) fn pause_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        {
            let mut state = slf.get().state.borrow_mut(slf.py());
            if state.closing || state.paused {
                return Ok(());
            }
            state.paused = true;
        }
        Self::settle(slf)?;
        Self::log_debug(slf, "%r pauses reading")
    }

    /// Goes on receiving. As `asyncio.ReadTransport.resume_reading`.
    pub(super) fn resume_reading(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        {
            let mut state = this.state.borrow_mut(py);
            if state.closing || !state.paused {
                return Ok(());
            }
            state.paused = false;
        }
        Self::settle(slf)?;
        this.read_on(py);
        Self::log_debug(slf, "%r resumes reading")
    }

    /// How many bytes are written and not yet sent. As `asyncio.WriteTransport.get_write_buffer_size`.
    fn get_write_buffer_size(slf: &Bound<'_, Self>) -> PyResult<usize> {
        Self::send_held_back(slf)?;
        Ok(slf.get().state.borrow_mut(slf.py()).pending)
    }

    /// The water marks `(low, high)`, in bytes. As `asyncio.WriteTransport.get_write_buffer_limits`.
    fn get_write_buffer_limits(&self, py: Python<'_>) -> (usize, usize) {
        self.state.borrow_mut(py).flow.limits()
    }

    /// Sets the water marks, in bytes: the protocol pauses when more than `high` are buffered (64 KiB by default) and
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
        slf.get().state.borrow_mut(slf.py()).flow.set_limits(high, low)?;
        Self::grown(slf)
    }

    #[getter]
    fn _protocol_paused(&self, py: Python<'_>) -> bool {
        self.state.borrow_mut(py).flow.is_paused()
    }

    #[getter]
    fn _paused(&self, py: Python<'_>) -> bool {
        self.state.borrow_mut(py).paused
    }

    #[getter]
    fn _closing(&self, py: Python<'_>) -> bool {
        self.state.borrow_mut(py).closing
    }

    #[getter]
    fn _conn_lost(&self, py: Python<'_>) -> u32 {
        self.state.borrow_mut(py).conn_lost
    }

    #[getter]
    fn _loop(&self, py: Python<'_>) -> Py<EventLoop> {
        self.event_loop.clone_ref(py)
    }

    #[getter]
    fn _sock_fd(&self) -> RawFd {
        self.fd
    }

    #[getter]
    fn _sock<'py>(slf: &Bound<'py, Self>) -> PyResult<Option<Bound<'py, PyAny>>> {
        Self::send_held_back(slf)?;
        socket::python_socket(slf)
    }

    #[getter(__class__)]
    fn class(&self, py: Python<'_>) -> PyResult<Py<PyType>> {
        Ok(Asyncio::get(py)?.transport.clone_ref(py))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        self.describe(py)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_loop)?;
        visit.call(&self.context)?;
        if let Ok(state) = self.state.borrow_for_traverse() {
            if let Some(protocol) = &state.protocol {
                visit.call(&protocol.object)?;
            }
            // Not the socket: it refers to nothing, and `Drop` has to find it whole, which it would not be if the
            // collector knew it for garbage too.
            visit.call(&state.server)?;
            visit.call(&state.extra)?;
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        let parts = {
            let mut state = self.state.borrow_mut(py);
            // The socket stays, for `Drop` to find it unclosed, and the server, for it to tell.
            (state.protocol.take(), state.extra.take())
        };
        drop(parts);
    }
}

#[pymethods]
impl EventLoop {
    /// Lends a transport's descriptor to `sendfile`, which watches it in its own way: takes it out of the reactor, or
    /// puts it back in.
    fn _lend_descriptor(&self, transport: &Bound<'_, Transport>, lend: bool) -> PyResult<()> {
        let (py, this) = (transport.py(), transport.get());
        let registration = this.state.borrow_mut(py).registration.take();
        if let Some((key, _)) = registration {
            self.deregister(py, key);
        }
        match lend || this.state.borrow_mut(py).socket.is_closed() {
            true => Ok(()),
            // A registration tells at once what has become ready meanwhile.
            false => Transport::watch(transport, Direction::Both),
        }
    }
}
