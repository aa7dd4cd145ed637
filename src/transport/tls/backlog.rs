//! What was written and is not encrypted yet, and how it is cut into records.
//!
//! A record costs the same whether it is full or not, at both ends. So small pieces are joined, up to a record, and
//! large ones are given to OpenSSL as they are, in whole records as long as another piece follows.

use std::collections::VecDeque;
use std::ops::Range;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::transport::data::Data;

/// The most that fits into one TLS record, in bytes.
pub(super) const RECORD: usize = 16 * 1024;

/// How much is encrypted by one call. OpenSSL's buffer keeps the size that it has grown to, for each connection, and
/// what is in it is copied twice more: as little as this is still in the processor's cache then.
const UNIT: usize = 2 * RECORD;

/// What one call encrypts.
pub(super) struct Unit {
    pub bytes: Py<PyBytes>,
    pub range: Range<usize>,
}

/// Pieces in the order in which they were written.
#[derive(Default)]
pub(super) struct Backlog {
    pieces: VecDeque<Py<PyBytes>>,
    /// How much of the first piece is taken already.
    taken: usize,
    size: usize,
}

impl Backlog {
    pub fn size(&self) -> usize {
        self.size
    }

    /// Adds data. (Borrowed, as to drop a buffer can run Python code.)
    pub fn push(&mut self, py: Python<'_>, data: &Data<'_>) {
        if data.as_slice().is_empty() {
            return;
        }
        self.size += data.as_slice().len();
        self.pieces.push_back(match data {
            Data::Bytes(bytes) => bytes.clone().unbind(),
            data => PyBytes::new(py, data.as_slice()).unbind(),
        });
    }

    fn pop(&mut self) -> Option<Py<PyBytes>> {
        self.taken = 0;
        self.pieces.pop_front()
    }

    /// Takes the next bytes to encrypt off the front. No Python code runs here.
    pub fn take(&mut self, py: Python<'_>) -> Option<Unit> {
        let first = self.pieces.front()?;
        let left = first.as_bytes(py).len() - self.taken;
        let last = self.pieces.len() == 1;
        if !last && left < RECORD {
            let bytes = self.join(py)?;
            return Some(Unit { range: 0..bytes.as_bytes(py).len(), bytes });
        }
        let size = if last { left.min(UNIT) } else { (left - left % RECORD).min(UNIT) };
        self.size -= size;
        let range = self.taken..self.taken + size;
        let bytes = if size == left {
            self.pop()?
        } else {
            self.taken += size;
            first.clone_ref(py)
        };
        Some(Unit { bytes, range })
    }

    /// The next pieces as one record, the last of them perhaps in part.
    fn join(&mut self, py: Python<'_>) -> Option<Py<PyBytes>> {
        let mut joined = Vec::with_capacity(self.size.min(RECORD));
        while let Some(first) = self.pieces.front() {
            let bytes = &first.as_bytes(py)[self.taken..];
            let fits = bytes.len().min(RECORD - joined.len());
            if fits == 0 {
                break;
            }
            joined.extend_from_slice(&bytes[..fits]);
            if fits < bytes.len() {
                self.taken += fits;
            } else {
                self.pop()?;
            }
        }
        self.size -= joined.len();
        Some(PyBytes::new(py, &joined).unbind())
    }
}
