//! What the core uses of asyncio and the standard library, looked up once.

use pyo3::exceptions::{PyBlockingIOError, PyInterruptedError, PyKeyboardInterrupt, PySystemExit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

/// Objects of the standard library that the core calls or compares with.
pub struct Asyncio {
    pub handle: Py<PyType>,
    /// `Handle` again where there is none.
    pub thread_safe_handle: Py<PyType>,
    pub timer_handle: Py<PyType>,
    /// The class of every writable transport of asyncio's, by which it knows its own.
    pub transport: Py<PyType>,
    /// The class of its TLS transports; programs go by the name.
    pub tls_transport: Py<PyType>,
    /// Both a `Transport` and a `DatagramTransport`, as programs have come to expect.
    pub datagram_transport: Py<PyType>,
    pub base_event_loop: Py<PyAny>,
    /// The names of `asyncio.tasks` and `asyncio.futures`, where `BaseEventLoop` looks its classes up each time.
    pub tasks: Py<PyDict>,
    pub futures: Py<PyDict>,
    /// The accelerated `Task` and `Future`; `None` where there are none.
    pub fast_task: Py<PyAny>,
    pub fast_future: Py<PyAny>,
    pub buffered_protocol: Py<PyAny>,
    pub transport_socket: Py<PyAny>,
    pub socket: Py<PyType>,
    pub format_callback_source: Py<PyAny>,
    pub extract_stack: Py<PyAny>,
    pub format_handle: Py<PyAny>,
    pub set_result_unless_cancelled: Py<PyAny>,
    pub wrap_future: Py<PyAny>,
    pub convert_future_exception: Py<PyAny>,
    pub check_ssl_socket: Py<PyAny>,
    pub set_nodelay: Py<PyAny>,
    pub cancelled_error: Py<PyAny>,
    pub invalid_state_error: Py<PyAny>,
    pub logger: Py<PyAny>,
}

impl Asyncio {
    pub fn get(py: Python<'_>) -> PyResult<&'static Asyncio> {
        static ASYNCIO: PyOnceLock<Asyncio> = PyOnceLock::new();
        ASYNCIO.get_or_try_init(py, || {
            let attribute = |module: &str, name: &str| py.import(module)?.getattr(name).map(Bound::unbind);
            let class = |module: &str, name: &str| -> PyResult<Py<PyType>> {
                Ok(py.import(module)?.getattr(name)?.cast_into::<PyType>()?.unbind())
            };
            Ok(Asyncio {
                handle: class("asyncio.events", "Handle")?,
                thread_safe_handle: class("asyncio.events", "_ThreadSafeHandle")
                    .or_else(|_| class("asyncio.events", "Handle"))?,
                timer_handle: class("asyncio.events", "TimerHandle")?,
                transport: class("asyncio.transports", "_FlowControlMixin")?,
                tls_transport: class("asyncio.sslproto", "_SSLProtocolTransport")?,
                datagram_transport: both(
                    py,
                    "asyncio.transports",
                    ["_FlowControlMixin", "DatagramTransport"],
                )?,
                base_event_loop: attribute("asyncio.base_events", "BaseEventLoop")?,
                tasks: py.import("asyncio.tasks")?.dict().unbind(),
                futures: py.import("asyncio.futures")?.dict().unbind(),
                fast_task: attribute("_asyncio", "Task").unwrap_or_else(|_| py.None()),
                fast_future: attribute("_asyncio", "Future").unwrap_or_else(|_| py.None()),
                buffered_protocol: attribute("asyncio.protocols", "BufferedProtocol")?,
                transport_socket: attribute("asyncio.trsock", "TransportSocket")?,
                socket: class("socket", "socket")?,
                format_callback_source: attribute("asyncio.format_helpers", "_format_callback_source")?,
                extract_stack: attribute("asyncio.format_helpers", "extract_stack")?,
                format_handle: attribute("asyncio.base_events", "_format_handle")?,
                set_result_unless_cancelled: attribute("asyncio.futures", "_set_result_unless_cancelled")?,
                wrap_future: attribute("asyncio.futures", "wrap_future")?,
                convert_future_exception: attribute("asyncio.futures", "_convert_future_exc")?,
                check_ssl_socket: attribute("asyncio.base_events", "_check_ssl_socket")?,
                set_nodelay: attribute("asyncio.base_events", "_set_nodelay")?,
                cancelled_error: attribute("asyncio.exceptions", "CancelledError")?,
                invalid_state_error: attribute("asyncio.exceptions", "InvalidStateError")?,
                logger: attribute("asyncio.log", "logger")?,
            })
        })
    }
}

/// A class that is all of the named ones.
fn both(py: Python<'_>, module: &str, names: [&str; 2]) -> PyResult<Py<PyType>> {
    let module = py.import(module)?;
    let bases = PyTuple::new(py, [module.getattr(names[0])?, module.getattr(names[1])?])?;
    let body = PyDict::new(py);
    body.set_item("__slots__", PyTuple::empty(py))?;
    let class = py.get_type::<PyType>().call1((names[1], bases, body))?;
    Ok(class.cast_into::<PyType>()?.unbind())
}

/// Whether a system call wants to be made again later. (Asked of the exception itself: on 3.11 pyo3 goes by the type
/// that was raised, which is OSError, and not by the subclass that errno makes of it.)
pub fn would_block(py: Python<'_>, error: &PyErr) -> bool {
    let error = error.value(py);
    error.is_instance_of::<PyBlockingIOError>() || error.is_instance_of::<PyInterruptedError>()
}

/// Whether an exception leaves the loop instead of being handled in it: asyncio lets these two through everywhere.
pub fn is_fatal(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PySystemExit>(py) || error.is_instance_of::<PyKeyboardInterrupt>(py)
}
