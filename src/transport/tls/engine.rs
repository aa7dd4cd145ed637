//! Encryption by the interpreter's own `ssl`: an `SSLObject` between two memory BIOs, made by the user's context.
//!
//! An `SSLObject` is a Python class that passes each call on to a C object. Where it is that very class, we call the
//! C object, without the Python frame; a class of the user's is called by its public methods.
//!
//! OpenSSL may call back into Python (the SNI callback, a message callback), and other threads run while it works. So
//! no borrow spans a call here, and the caller sees to it that there is one call at a time.

use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;
use std::ops::Range;

use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyMemoryView, PySlice, PyTuple, PyType};

pub(super) struct Engine {
    pub context: Py<PyAny>,
    /// The `SSLObject`, for `get_extra_info`.
    pub object: Py<PyAny>,
    /// What is called.
    calls: Py<PyAny>,
    /// It is the C object.
    direct: bool,
    incoming: Py<PyAny>,
    outgoing: Py<PyAny>,
}

/// What a call has come to.
pub(super) enum Outcome<T> {
    Done(T),
    /// It wants more from the peer first.
    Again,
}

impl<T> Outcome<T> {
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Outcome::Done(done) => Outcome::Done(change(done)),
            Outcome::Again => Outcome::Again,
        }
    }
}

struct Ssl {
    memory_bio: Py<PyAny>,
    ssl_object: Py<PyType>,
    /// The C object's class, which nobody can derive from.
    c_object: Py<PyType>,
    /// The exceptions that ask for patience.
    again: Py<PyTuple>,
}

impl Ssl {
    fn get(py: Python<'_>) -> PyResult<&'static Ssl> {
        static SSL: PyOnceLock<Ssl> = PyOnceLock::new();
        SSL.get_or_try_init(py, || {
            let (ssl, c_module) = (py.import("ssl")?, py.import("_ssl")?);
            let again =
                PyTuple::new(py, [ssl.getattr("SSLWantReadError")?, ssl.getattr("SSLSyscallError")?])?;
            Ok(Ssl {
                memory_bio: c_module.getattr("MemoryBIO")?.unbind(),
                ssl_object: ssl.getattr("SSLObject")?.cast_into::<PyType>()?.unbind(),
                c_object: c_module.getattr("_SSLSocket")?.cast_into::<PyType>()?.unbind(),
                again: again.unbind(),
            })
        })
    }
}

impl Engine {
    pub fn new(
        context: &Bound<'_, PyAny>,
        server_side: bool,
        server_hostname: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let py = context.py();
        let ssl = Ssl::get(py)?;
        let (incoming, outgoing) = (ssl.memory_bio.bind(py).call0()?, ssl.memory_bio.bind(py).call0()?);
        let options = PyDict::new(py);
        options.set_item(intern!(py, "server_side"), server_side)?;
        options.set_item(intern!(py, "server_hostname"), server_hostname)?;
        let object = context.call_method(intern!(py, "wrap_bio"), (&incoming, &outgoing), Some(&options))?;
        // A context of the user's may have made either of the two.
        let inner = match object.get_type().is(ssl.ssl_object.bind(py)) {
            true => Some(object.getattr(intern!(py, "_sslobj"))?),
            false => None,
        };
        let inner = inner.filter(|inner| inner.get_type().is(ssl.c_object.bind(py)));
        let direct = inner.is_some();
        let calls = inner.unwrap_or_else(|| object.clone());
        Ok(Engine {
            context: context.clone().unbind(),
            object: object.unbind(),
            calls: calls.unbind(),
            direct,
            incoming: incoming.unbind(),
            outgoing: outgoing.unbind(),
        })
    }

    /// Whether the object is of a class of the user's.
    pub fn is_custom(&self) -> bool {
        !self.direct
    }

    pub fn handshake(&self, py: Python<'_>) -> PyResult<Outcome<()>> {
        outcome(py, self.calls.bind(py).call_method0(intern!(py, "do_handshake")).map(drop))
    }

    /// Decrypts at most `limit` bytes, which are of one record. None at all: the peer has sent its close_notify.
    pub fn read<'py>(&self, py: Python<'py>, limit: usize) -> PyResult<Outcome<Bound<'py, PyBytes>>> {
        let read = self.calls.bind(py).call_method1(intern!(py, "read"), (limit,));
        outcome(py, read.and_then(|data| Ok(data.cast_into::<PyBytes>()?)))
    }

    /// `read` into a buffer of the user's, of which it fills the front.
    pub fn read_into(&self, buffer: &Bound<'_, PyAny>, limit: usize) -> PyResult<Outcome<usize>> {
        let py = buffer.py();
        let read = self.calls.bind(py).call_method1(intern!(py, "read"), (limit, buffer));
        outcome(py, read.and_then(|count| count.extract()))
    }

    /// `read` into the front of memory that may not be initialised. Returns how many bytes are. Not for a class of the
    /// user's, which could do anything with it.
    pub fn read_into_memory(
        &self,
        py: Python<'_>,
        memory: &mut [MaybeUninit<u8>],
    ) -> PyResult<Outcome<usize>> {
        assert!(self.direct, "a class of the user's is asked for bytes");
        let (address, size) = (memory.as_mut_ptr().cast(), memory.len());
        // SAFETY: the memory is borrowed for as long as this function lasts, and what is called is the C object, as asserted.
        unsafe { with_view(py, address, size, ffi::PyBUF_WRITE, |view| self.read_into(view, size)) }
    }

    /// Encrypts a part of `bytes`. Returns how much of it; what wants to be done again has to be done again with the same
    /// data.
    pub fn write(&self, bytes: &Bound<'_, PyBytes>, range: Range<usize>) -> PyResult<Outcome<usize>> {
        let py = bytes.py();
        let write = |data: &Bound<'_, PyAny>| {
            let written = self.calls.bind(py).call_method1(intern!(py, "write"), (data,));
            outcome(py, written.and_then(|count| count.extract()))
        };
        if !self.direct && range.len() < bytes.as_bytes().len() {
            // A class of the user's may keep it.
            let slice = PySlice::new(py, range.start as isize, range.end as isize, 1);
            return write(&PyMemoryView::from(bytes)?.get_item(slice)?);
        }
        // SAFETY: a view goes to the C object; whoever else is called has been given a slice above, or all.
        unsafe { with_part(bytes, range, write) }
    }

    /// Sends our close_notify and waits for the peer's.
    pub fn shutdown(&self, py: Python<'_>) -> PyResult<Outcome<()>> {
        let method = if self.direct { intern!(py, "shutdown") } else { intern!(py, "unwrap") };
        outcome(py, self.calls.bind(py).call_method0(method).map(drop))
    }

    /// Takes in a part of what the peer has sent.
    pub fn feed(&self, bytes: &Bound<'_, PyBytes>, range: Range<usize>) -> PyResult<()> {
        let (py, incoming) = (bytes.py(), self.incoming.bind(bytes.py()));
        let feed = |data: &Bound<'_, PyAny>| incoming.call_method1(intern!(py, "write"), (data,)).map(drop);
        // SAFETY: what is called is C, a `MemoryBIO` of our making, whose class nobody can replace.
        unsafe { with_part(bytes, range, feed) }
    }

    /// How much of it OpenSSL has not looked at yet.
    pub fn incoming(&self, py: Python<'_>) -> PyResult<usize> {
        self.incoming.bind(py).getattr(intern!(py, "pending"))?.extract()
    }

    /// What is to be sent to the peer.
    pub fn take_outgoing<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let data = self.outgoing.bind(py).call_method0(intern!(py, "read"))?;
        Ok(data.cast_into::<PyBytes>()?)
    }

    /// How much of it there is.
    pub fn outgoing(&self, py: Python<'_>) -> PyResult<usize> {
        self.outgoing.bind(py).getattr(intern!(py, "pending"))?.extract()
    }

    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let parts = [&self.context, &self.object, &self.calls, &self.incoming, &self.outgoing];
        parts.into_iter().try_for_each(|part| visit.call(part))
    }
}

/// Gives `call` a part of `bytes`; them, if it is all.
///
/// # Safety
/// As for `with_view`, of what `call` does.
unsafe fn with_part<'py, R>(
    bytes: &Bound<'py, PyBytes>,
    range: Range<usize>,
    call: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<R>,
) -> PyResult<R> {
    if range.len() == bytes.as_bytes().len() {
        return call(bytes);
    }
    let part = &bytes.as_bytes()[range];
    // SAFETY: `bytes`, which nobody changes, are borrowed for as long as this function lasts; the view can't be written
    // to; the rest is the caller's promise.
    unsafe { with_view(bytes.py(), part.as_ptr().cast_mut().cast(), part.len(), ffi::PyBUF_READ, call) }
}

/// Gives `call` a memoryview of `size` bytes at `address`: cheaper than a slice of another view, and of memory that no
/// object owns.
///
/// # Safety
/// The memory stays where it is until this returns, and may be used as `access` says. `call` passes the view to nobody
/// but a C object, which takes it as a buffer and gives that back.
unsafe fn with_view<'py, R>(
    py: Python<'py>,
    address: *mut c_char,
    size: usize,
    access: c_int,
    call: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<R>,
) -> PyResult<R> {
    // SAFETY: attached, and the caller vouches for the memory. Nobody else sees the view: neither a callback of OpenSSL
    // nor another thread finds it among the collector's objects. It is there again before it is let go of, as its type
    // expects.
    unsafe {
        let view = ffi::PyMemoryView_FromMemory(address, size as ffi::Py_ssize_t, access);
        let view = Bound::from_owned_ptr_or_err(py, view)?;
        ffi::PyObject_GC_UnTrack(view.as_ptr().cast());
        let result = call(&view);
        ffi::PyObject_GC_Track(view.as_ptr().cast());
        result
    }
}

fn outcome<T>(py: Python<'_>, result: PyResult<T>) -> PyResult<Outcome<T>> {
    match result {
        Ok(done) => Ok(Outcome::Done(done)),
        Err(error) if error.matches(py, Ssl::get(py)?.again.bind(py))? => Ok(Outcome::Again),
        Err(error) => Err(error),
    }
}
