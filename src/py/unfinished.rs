//! A bytes object in the making: what is received or read goes straight into the memory of the object that it will be.
//!
//! Nobody can see the object until then: only here is a reference to it, and the collector knows no bytes. So the
//! memory may be written to from a thread that is not attached, too.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::slice;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// A `bytes` object with room for `capacity` bytes, the first `length` of which are there.
pub struct UnfinishedBytes {
    object: Py<PyBytes>,
    data: NonNull<u8>,
    length: usize,
    capacity: usize,
}

// SAFETY: `data` points into the object, which nobody else knows of: whoever has the one has the other to himself.
unsafe impl Send for UnfinishedBytes {}

unsafe extern "C" {
    fn _PyBytes_Resize(object: *mut *mut ffi::PyObject, size: ffi::Py_ssize_t) -> c_int;
}

impl UnfinishedBytes {
    /// MemoryError where there is no room.
    pub fn new(py: Python<'_>, capacity: usize) -> PyResult<Self> {
        // More than this no object has, and CPython says so itself.
        let size = ffi::Py_ssize_t::try_from(capacity).unwrap_or(ffi::Py_ssize_t::MAX);
        // SAFETY: attached; without data to copy the contents are not initialised, which `length` keeps account of.
        let object = unsafe {
            Bound::from_owned_ptr_or_err(py, ffi::PyBytes_FromStringAndSize(std::ptr::null(), size))?
        };
        let object = object.cast_into::<PyBytes>()?;
        // SAFETY: the object is bytes, so this is its memory, and not null.
        let data = unsafe { NonNull::new_unchecked(ffi::PyBytes_AsString(object.as_ptr()).cast()) };
        Ok(UnfinishedBytes { object: object.unbind(), data, length: 0, capacity })
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the first `length` bytes are initialised, and nobody else writes to them.
        unsafe { slice::from_raw_parts(self.data.as_ptr(), self.length) }
    }

    /// How much more fits.
    pub fn room(&self) -> usize {
        self.capacity - self.length
    }

    /// The room behind what is there.
    pub fn spare(&mut self) -> &mut [MaybeUninit<u8>] {
        let left = self.room();
        // SAFETY: the object has `capacity` bytes from `data` on, which `self` has to itself.
        unsafe { slice::from_raw_parts_mut(self.data.as_ptr().add(self.length).cast(), left) }
    }

    /// # Safety
    /// The first `count` bytes of `spare` are initialised.
    pub unsafe fn advance(&mut self, count: usize) {
        self.length += count;
    }

    /// Copies data to the front of the room, as much of it as fits.
    pub fn append(&mut self, data: &[u8]) {
        let size = self.room().min(data.len());
        for (place, byte) in self.spare().iter_mut().zip(data) {
            place.write(*byte);
        }
        self.length += size;
    }

    /// The finished object, as long as what is in it.
    pub fn finish(self, py: Python<'_>) -> PyResult<Bound<'_, PyBytes>> {
        if self.length == self.capacity && self.capacity > 1 {
            return Ok(self.object.into_bound(py));
        }
        if self.length <= 1 {
            // CPython shares these objects.
            return new_bytes(py, self.as_slice());
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
