//! A bytes object that is received into: what a large message costs beyond a system call is then no copy of it.
//!
//! Its size has to be guessed before the message is there, by that of the one before. A small message is better
//! received into the loop's buffer and copied: a copy of a few KiB costs less than to make room and to give it back.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use pyo3::ffi::{self, compat};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::event_loop::READ_SIZE;
use crate::sys::memory::LEARNS;

/// From this many bytes on the copy costs more.
const WORTH_IT: usize = 6 * 1024;

/// malloc takes larger blocks from the kernel, one by one and empty each time, which costs more than any copy; unless it
/// has learned to keep them.
const LARGEST: usize = if LEARNS { READ_SIZE } else { 124 * 1024 };

/// What rarely comes in one piece.
const LARGE: usize = 32 * 1024;

/// How much room to make for a message that will be much like the last one of `size` bytes. None: receive into the
/// loop's buffer.
///
/// More than the size itself: only a read that does not fill its room tells that there is no more. And all that a read
/// may take, if what came last may have been a part: what is left over goes back.
pub fn room_after(size: usize) -> Option<usize> {
    let room = if is_large(size) && LEARNS { READ_SIZE } else { size + size / 8 + 512 };
    (size >= WORTH_IT && room <= LARGEST).then_some(room)
}

pub fn is_large(size: usize) -> bool {
    size >= LARGE
}

/// Copies as much as there is room for, and returns how much that is.
pub fn put(memory: &mut [MaybeUninit<u8>], data: &[u8]) -> usize {
    for (place, byte) in memory.iter_mut().zip(data) {
        place.write(*byte);
    }
    memory.len().min(data.len())
}

/// Bytes in the making, which no Python code can get at.
pub struct Room(NonNull<compat::PyBytesWriter>);

impl Room {
    /// None where there is no memory left.
    pub fn new(py: Python<'_>, size: usize) -> PyResult<Self> {
        // SAFETY: attached; gives a writer of that size, or null with an exception set.
        let writer = unsafe { compat::PyBytesWriter_Create(size as ffi::Py_ssize_t) };
        NonNull::new(writer).map(Room).ok_or_else(|| PyErr::fetch(py))
    }

    pub fn memory(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: the writer is alive, and owns as many bytes at this address as it says; nobody else knows it.
        unsafe {
            let writer = self.0.as_ptr();
            let size = compat::PyBytesWriter_GetSize(writer) as usize;
            std::slice::from_raw_parts_mut(compat::PyBytesWriter_GetData(writer).cast(), size)
        }
    }

    /// The bytes at the front.
    ///
    /// # Safety
    /// So many bytes have been written to the front of `memory`.
    pub unsafe fn finish(self, py: Python<'_>, size: usize) -> PyResult<Bound<'_, PyBytes>> {
        let writer = self.0.as_ptr();
        std::mem::forget(self);
        // SAFETY: attached; the call takes the writer, whatever comes of it, and gives a new reference to an object of
        // bytes that are initialised, as the caller knows, or null with an exception set.
        unsafe {
            let bytes = compat::PyBytesWriter_FinishWithSize(writer, size as ffi::Py_ssize_t);
            Bound::from_owned_ptr_or_err(py, bytes).map(|bytes| bytes.cast_into_unchecked())
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: attached, as whoever made it is, and it is neither kept nor sent anywhere. Not finished, so ours.
        unsafe { compat::PyBytesWriter_Discard(self.0.as_ptr()) };
    }
}
