//! The bytes that were read ahead: a vector, or a `bytes` object to be.
//!
//! A large read goes straight into the memory of the object that will be its result. Nobody can see the object until
//! then: only here is a reference to it, and the collector knows no bytes.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::slice;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Initialised from the beginning up to its length; `spare` is the rest.
pub enum Memory {
    Vector(Vec<u8>),
    Object(Unfinished),
}

/// A `bytes` object with room for `capacity` bytes, the first `length` of which are there.
pub struct Unfinished {
    object: Py<PyBytes>,
    data: NonNull<u8>,
    length: usize,
    capacity: usize,
}

// SAFETY: `data` points into the object, which nobody else knows of: whoever has the one has the other to himself.
unsafe impl Send for Unfinished {}

unsafe extern "C" {
    fn _PyBytes_Resize(object: *mut *mut ffi::PyObject, size: ffi::Py_ssize_t) -> c_int;
}

impl Memory {
    pub fn new() -> Self {
        Memory::Vector(Vec::new())
    }

    /// Room for `capacity` bytes, which begin with `data`.
    pub fn object(py: Python<'_>, data: &[u8], capacity: usize) -> PyResult<Self> {
        let mut object = Unfinished::new(py, capacity.max(data.len()))?;
        object.append(data);
        Ok(Memory::Object(object))
    }

    pub fn as_slice(&self) -> &[u8] {
        match self {
            Memory::Vector(vector) => vector,
            // SAFETY: the first `length` bytes are initialised, and nobody else writes to them.
            Memory::Object(object) => unsafe { slice::from_raw_parts(object.data.as_ptr(), object.length) },
        }
    }

    pub fn spare(&mut self) -> &mut [MaybeUninit<u8>] {
        match self {
            Memory::Vector(vector) => vector.spare_capacity_mut(),
            Memory::Object(object) => object.spare(),
        }
    }

    /// # Safety
    /// The first `count` bytes of `spare` are initialised.
    pub unsafe fn advance(&mut self, count: usize) {
        match self {
            // SAFETY: the caller's promise.
            Memory::Vector(vector) => unsafe { vector.set_len(vector.len() + count) },
            Memory::Object(object) => object.length += count,
        }
    }

    /// Drops the first `gone` bytes and sees to it that `more` fit behind the rest.
    pub fn make_room(&mut self, gone: usize, more: usize) {
        match self {
            Memory::Vector(vector) => {
                vector.drain(..gone);
                vector.reserve(more);
            }
            Memory::Object(_) => {
                let rest = &self.as_slice()[gone..];
                let mut vector = Vec::with_capacity(rest.len() + more);
                vector.extend_from_slice(rest);
                *self = Memory::Vector(vector);
            }
        }
    }
}

impl Unfinished {
    fn new(py: Python<'_>, capacity: usize) -> PyResult<Self> {
        // More than this no object has, and CPython says so itself.
        let size = ffi::Py_ssize_t::try_from(capacity).unwrap_or(ffi::Py_ssize_t::MAX);
        // SAFETY: attached; without data to copy the contents are not initialised, which `length` keeps account of.
        let object = unsafe {
            Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromStringAndSize(std::ptr::null(), size))?
        };
        let object = object.cast_into::<PyBytes>()?;
        // SAFETY: the object is bytes, so this is its memory, and not null.
        let data = unsafe { NonNull::new_unchecked(ffi::PyBytes_AsString(object.as_ptr()).cast()) };
        Ok(Unfinished { object: object.unbind(), data, length: 0, capacity })
    }

    fn spare(&mut self) -> &mut [MaybeUninit<u8>] {
        let left = self.capacity - self.length;
        // SAFETY: the object has `capacity` bytes from `data` on, which `self` has to itself.
        unsafe { slice::from_raw_parts_mut(self.data.as_ptr().add(self.length).cast(), left) }
    }

    fn append(&mut self, data: &[u8]) {
        for (to, from) in self.spare().iter_mut().zip(data) {
            to.write(*from);
        }
        self.length += data.len();
    }

    /// The finished object, as long as what is in it.
    pub fn finish(self, py: Python<'_>) -> PyResult<Bound<'_, PyBytes>> {
        if self.length == self.capacity && self.capacity > 1 {
            return Ok(self.object.into_bound(py));
        }
        if self.length <= 1 {
            // CPython shares these objects.
            let data = Memory::Object(self);
            return new_bytes(py, data.as_slice());
        }
        let mut object = self.object.into_ptr();
        // SAFETY: the only reference to a bytes object; on failure it is freed and null, with an exception set.
        unsafe {
            _PyBytes_Resize(&mut object, self.length as ffi::Py_ssize_t);
            Ok(Bound::from_owned_ptr_or_err(py, object)?.cast_into::<PyBytes>()?)
        }
    }
}

/// A copy of `data`; MemoryError where there is no room (pyo3's own panics).
pub fn new_bytes<'py>(py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    // SAFETY: attached; pointer and length describe `data`.
    unsafe {
        let object = ffi::PyBytes_FromStringAndSize(data.as_ptr().cast(), data.len() as ffi::Py_ssize_t);
        Ok(Bound::from_owned_ptr_or_err(py, object)?.cast_into::<PyBytes>()?)
    }
}
