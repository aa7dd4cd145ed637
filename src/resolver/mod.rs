//! `getaddrinfo` and `getnameinfo`: numbers at once, names by threads that need no interpreter.
//!
//! The standard library's results come from the C library. So do ours: the same calls with the same arguments, and only
//! the way around them is shorter. An address in digits needs no network and no file, and is answered before anybody
//! waits, most often from what is known of the C library's answers (see `digits`). A name is looked up by a thread of the
//! loop's own (see `threads`). Whatever this can't be sure to do just as `socket.getaddrinfo` would (odd arguments,
//! debug mode with its log, a program that has put a function of its own in the place of the standard library's, or an
//! executor of its own under the loop) goes the standard library's way.

mod convert;
mod digits;
mod lookup;
mod request;
mod service;
mod threads;

use std::ffi::c_int;

use pyo3::exceptions::{PyAttributeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyFunction, PyModule, PyString, PyTuple, PyType};
use pyo3::{Borrowed, ffi};

use crate::event_loop::EventLoop;
use crate::py::{Arguments, Function, add_method, enter_fast};
use crate::sys::names::Hints;

pub use lookup::Lookup;
pub use service::{NameService, after_fork};

/// What the resolver uses of the standard library, looked up once.
struct Standard {
    base_loop: Py<PyType>,
    base_events: Py<PyModule>,
    socket: Py<PyModule>,
    core: Py<PyModule>,
    gaierror: Py<PyType>,
    address_family: Py<PyAny>,
    socket_kind: Py<PyAny>,
    inet: Py<PyAny>,
    inet6: Py<PyAny>,
    stream: Py<PyAny>,
    datagram: Py<PyAny>,
    raw: Py<PyAny>,
    functions: Functions,
}

/// The functions whose place we take: as long as they are the ones that a program would call. None: when we first
/// looked, somebody had replaced one already.
#[derive(Default)]
struct Functions {
    getaddrinfo: Option<(Py<PyAny>, Py<PyAny>)>,
    getnameinfo: Option<Py<PyAny>>,
}

impl Standard {
    fn get(py: Python<'_>) -> PyResult<&'static Standard> {
        static STANDARD: PyOnceLock<Standard> = PyOnceLock::new();
        STANDARD.get_or_try_init(py, || {
            let socket = py.import("socket")?;
            let core = py.import("_socket")?;
            let base_events = py.import("asyncio.base_events")?;
            let family = socket.getattr("AddressFamily")?;
            let kind = socket.getattr("SocketKind")?;
            let functions = Functions {
                getaddrinfo: match (own_function(&socket, "getaddrinfo")?, built_in(&core, "getaddrinfo")?) {
                    (Some(outer), Some(inner)) => Some((outer, inner)),
                    _ => None,
                },
                getnameinfo: built_in(&socket, "getnameinfo")?,
            };
            Ok(Standard {
                base_loop: base_events.getattr("BaseEventLoop")?.cast_into::<PyType>()?.unbind(),
                gaierror: socket.getattr("gaierror")?.cast_into::<PyType>()?.unbind(),
                inet: family.call1((libc::AF_INET,))?.unbind(),
                inet6: family.call1((libc::AF_INET6,))?.unbind(),
                stream: kind.call1((libc::SOCK_STREAM,))?.unbind(),
                datagram: kind.call1((libc::SOCK_DGRAM,))?.unbind(),
                raw: kind.call1((libc::SOCK_RAW,))?.unbind(),
                address_family: family.unbind(),
                socket_kind: kind.unbind(),
                socket: socket.unbind(),
                core: core.unbind(),
                base_events: base_events.unbind(),
                functions,
            })
        })
    }

    /// An address family or a kind of socket as the standard library's enumeration, or the number if that has none.
    fn constant<'py>(&self, py: Python<'py>, class: &Py<PyAny>, value: c_int) -> PyResult<Bound<'py, PyAny>> {
        match class.bind(py).call1((value,)) {
            Err(error) if error.is_instance_of::<PyValueError>(py) => Ok(value.into_pyobject(py)?.into_any()),
            constant => constant,
        }
    }

    fn family<'py>(&self, py: Python<'py>, value: c_int) -> PyResult<Bound<'py, PyAny>> {
        match value {
            libc::AF_INET => Ok(self.inet.bind(py).clone()),
            libc::AF_INET6 => Ok(self.inet6.bind(py).clone()),
            _ => self.constant(py, &self.address_family, value),
        }
    }

    fn kind<'py>(&self, py: Python<'py>, value: c_int) -> PyResult<Bound<'py, PyAny>> {
        match value {
            libc::SOCK_STREAM => Ok(self.stream.bind(py).clone()),
            libc::SOCK_DGRAM => Ok(self.datagram.bind(py).clone()),
            libc::SOCK_RAW => Ok(self.raw.bind(py).clone()),
            _ => self.constant(py, &self.socket_kind, value),
        }
    }

    fn getaddrinfo_is_original(&self, py: Python<'_>) -> PyResult<bool> {
        let Some((outer, inner)) = &self.functions.getaddrinfo else { return Ok(false) };
        let name = intern!(py, "getaddrinfo");
        let outside = self.socket.bind(py).dict().get_item(name)?.is_some_and(|now| now.is(outer));
        let inside = self.core.bind(py).dict().get_item(name)?.is_some_and(|now| now.is(inner));
        Ok(outside && inside && self.module_is_original(py)?)
    }

    fn getnameinfo_is_original(&self, py: Python<'_>) -> PyResult<bool> {
        let Some(function) = &self.functions.getnameinfo else { return Ok(false) };
        let now = self.socket.bind(py).dict().get_item(intern!(py, "getnameinfo"))?;
        Ok(now.is_some_and(|now| now.is(function)) && self.module_is_original(py)?)
    }

    /// Tests like to replace the module that asyncio sees.
    fn module_is_original(&self, py: Python<'_>) -> PyResult<bool> {
        let module = self.base_events.bind(py).dict().get_item(intern!(py, "socket"))?;
        Ok(module.is_some_and(|module| module.is(&self.socket)))
    }
}

/// A function of the module that was defined in it: one that was put there later has other globals.
fn own_function(module: &Bound<'_, PyModule>, name: &str) -> PyResult<Option<Py<PyAny>>> {
    let function = module.getattr(name)?;
    let own =
        function.is_exact_instance_of::<PyFunction>() && function.getattr("__globals__")?.is(module.dict());
    Ok(own.then(|| function.unbind()))
}

fn built_in(module: &Bound<'_, PyModule>, name: &str) -> PyResult<Option<Py<PyAny>>> {
    let function = module.getattr(name)?;
    let built_in = function.get_type().name()? == "builtin_function_or_method";
    Ok(built_in.then(|| function.unbind()))
}

/// # Safety
/// As `enter_fast`, for an `EventLoop`.
unsafe extern "C" fn getaddrinfo(
    slf: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: as the caller promises.
    unsafe { enter_fast(slf, args, count, names, EventLoop::getaddrinfo) }
}

/// Makes the classes ready for use: the loop's gets a method that is not pyo3's.
pub fn prepare_classes(py: Python<'_>) -> PyResult<()> {
    let doc = c"getaddrinfo($self, host, port, *, family=0, type=0, proto=0, flags=0)\n--\n\n\
Looks a host and a service up. Returns what `socket.getaddrinfo` does.

An address in digits is answered at once. Raises `socket.gaierror`. As `asyncio.loop.getaddrinfo`.";
    // SAFETY: the function is for loops.
    unsafe { add_method(&py.get_type::<EventLoop>(), c"getaddrinfo", Function::Fast(getaddrinfo), doc)? };
    lookup::prepare_class(py)
}

impl EventLoop {
    fn getaddrinfo<'py>(
        slf: &Bound<'py, Self>,
        arguments: Arguments<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let standard = Standard::get(py)?;
        if may_answer(slf)? && standard.getaddrinfo_is_original(py)? {
            if let Some((host, port, hints)) = question(&arguments) {
                if let Some(lookup) = Lookup::of_host(slf, host, port, hints)? {
                    return Ok(lookup.into_any());
                }
            }
        }
        let positional = [slf.as_any()].into_iter().chain(arguments.positional).collect::<Vec<_>>();
        let options = PyDict::new(py);
        for (name, value) in arguments.by_name() {
            options.set_item(name, value)?;
        }
        let general = standard.base_loop.bind(py).getattr(intern!(py, "getaddrinfo"))?;
        general.call(PyTuple::new(py, positional)?, Some(&options))
    }
}

/// The arguments of `getaddrinfo`: host, port, hints. None where the standard library has to say what is wrong.
fn question<'a, 'py>(
    arguments: &Arguments<'a, 'py>,
) -> Option<(&'a Bound<'py, PyAny>, &'a Bound<'py, PyAny>, Hints)> {
    let (mut host, mut port) = match *arguments.positional {
        [] => (None, None),
        [ref host] => (Some(host), None),
        [ref host, ref port] => (Some(host), Some(port)),
        _ => return None,
    };
    let mut hints = Hints::default();
    // The interpreter gives no name twice, but a name that was given by position.
    for (name, value) in arguments.by_name() {
        let hint = match name.cast::<PyString>().ok()?.to_str().ok()? {
            "family" => &mut hints.family,
            "type" => &mut hints.kind,
            "proto" => &mut hints.protocol,
            "flags" => &mut hints.flags,
            "host" if host.is_none() => {
                host = Some(value);
                continue;
            }
            "port" if port.is_none() => {
                port = Some(value);
                continue;
            }
            _ => return None,
        };
        *hint = value.extract().ok()?;
    }
    Some((host?, port?, hints))
}

#[pymethods]
impl EventLoop {
    /// Looks the names of an address up. Returns what `socket.getnameinfo` does.
    ///
    /// Raises `socket.gaierror`. As `asyncio.loop.getnameinfo`.
    #[pyo3(signature = (sockaddr, flags=Number::Zero), text_signature = "($self, sockaddr, flags=0)")]
    fn getnameinfo<'py>(
        slf: &Bound<'py, Self>,
        sockaddr: &Bound<'py, PyAny>,
        flags: Number<'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let standard = Standard::get(py)?;
        if may_answer(slf)? && standard.getnameinfo_is_original(py)? {
            if let (Ok(address), Some(flags)) = (sockaddr.cast_exact::<PyTuple>(), flags.value()) {
                if let Some(lookup) = Lookup::of_address(slf, address, flags)? {
                    return Ok(lookup.into_any());
                }
            }
        }
        let general = standard.base_loop.bind(py).getattr(intern!(py, "getnameinfo"))?;
        match flags {
            Number::Given(flags) => general.call1((slf, sockaddr, flags)),
            Number::Zero => general.call1((slf, sockaddr)),
        }
    }
}

/// An argument that is a number, unless the standard library has to say what is wrong with it.
enum Number<'py> {
    Zero,
    Given(Bound<'py, PyAny>),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Number<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Ok(Number::Given(object.to_owned()))
    }
}

impl Number<'_> {
    fn value(&self) -> Option<c_int> {
        match self {
            Number::Zero => Some(0),
            Number::Given(value) => value.extract().ok(),
        }
    }
}

/// In debug mode asyncio logs look-ups, and who has set an executor of his own wants them there.
fn may_answer(slf: &Bound<'_, EventLoop>) -> PyResult<bool> {
    let (py, this) = (slf.py(), slf.get());
    if this.is_debug(py) || this.check_open(py).is_err() {
        return Ok(false);
    }
    let missing = |error: PyErr| match error.is_instance_of::<PyAttributeError>(py) {
        true => Ok(py.None().into_bound(py)),
        false => Err(error),
    };
    let executor = slf.getattr(intern!(py, "_default_executor")).or_else(missing)?;
    let shut = slf.getattr(intern!(py, "_executor_shutdown_called")).or_else(missing)?;
    let is_ours = executor.is_none() || executor.get_type().module()?.to_str()?.starts_with("mioloop.");
    Ok(is_ours && !shut.is_truthy()?)
}
