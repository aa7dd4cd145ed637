//! The bytes that were read ahead: a vector, or a `bytes` object to be. A large read goes straight into what will be its
//! result.

use std::mem::MaybeUninit;

use pyo3::prelude::*;

use crate::py::UnfinishedBytes;

/// Initialised from the beginning up to its length; `spare` is the rest.
pub enum Memory {
    Vector(Vec<u8>),
    Object(UnfinishedBytes),
}

impl Memory {
    pub fn new() -> Self {
        Memory::Vector(Vec::new())
    }

    /// Room for `capacity` bytes, which begin with `data`.
    pub fn object(py: Python<'_>, data: &[u8], capacity: usize) -> PyResult<Self> {
        let mut object = UnfinishedBytes::new(py, capacity.max(data.len()))?;
        object.append(data);
        Ok(Memory::Object(object))
    }

    pub fn as_slice(&self) -> &[u8] {
        match self {
            Memory::Vector(vector) => vector,
            Memory::Object(object) => object.as_slice(),
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
            // SAFETY: the same.
            Memory::Object(object) => unsafe { object.advance(count) },
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
