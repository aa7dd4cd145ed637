//! What was written and not yet sent.
//!
//! Large immutable objects are kept as they are. Small pieces are gathered: to copy one costs less than to hold the
//! object and to have the kernel fetch it by a slice of its own, and thousands of tiny writes to a socket that is full
//! leave in a few system calls, as from asyncio's one buffer.

use std::collections::VecDeque;
use std::io::IoSlice;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::transport::data::Data;

/// How many pieces go into one system call; well below IOV_MAX everywhere.
pub const MAX_PIECES: usize = 64;

/// A piece of at most so many bytes is put behind the last one, if that is a copy too.
const SMALL: usize = 256;

/// No further than to this size: what is sent is given back piece by piece.
const MOST_GATHERED: usize = 16 * 1024;

/// The room for the first small pieces.
const FIRST_ROOM: usize = 1024;

enum Piece {
    /// An immutable object of the user's: kept, not copied.
    Bytes(Py<PyBytes>),
    Copied(Vec<u8>),
}

/// Pieces in the order in which they were written.
#[derive(Default)]
pub struct WriteBuffer {
    pieces: VecDeque<Piece>,
    /// How much of the first piece is sent already.
    sent: usize,
    size: usize,
}

impl WriteBuffer {
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The number of bytes that are held.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Adds what is left of `data` behind its first `sent` bytes. (Borrowed, because to drop a buffer can run Python
    /// code, which the owner of this one must not be borrowed for.)
    pub fn push(&mut self, data: &Data<'_>, sent: usize) {
        let left = data.as_slice().len() - sent;
        if left == 0 {
            return;
        }
        self.size += left;
        if left <= SMALL && !self.pieces.is_empty() {
            return self.gather(&data.as_slice()[sent..]);
        }
        match data {
            Data::Bytes(bytes) if self.pieces.is_empty() => {
                self.sent = sent;
                self.pieces.push_back(Piece::Bytes(bytes.clone().unbind()));
            }
            Data::Bytes(bytes) if sent == 0 => self.pieces.push_back(Piece::Bytes(bytes.clone().unbind())),
            data => self.pieces.push_back(Piece::Copied(data.as_slice()[sent..].to_vec())),
        }
    }

    fn gather(&mut self, data: &[u8]) {
        match self.pieces.back_mut() {
            Some(Piece::Copied(last)) if last.len() + data.len() <= MOST_GATHERED => {
                last.extend_from_slice(data)
            }
            _ => {
                let mut room = Vec::with_capacity(FIRST_ROOM);
                room.extend_from_slice(data);
                self.pieces.push_back(Piece::Copied(room));
            }
        }
    }

    /// The next bytes to send, as slices for one system call.
    pub fn slices<'a>(&'a self, py: Python<'a>, slices: &mut [IoSlice<'a>; MAX_PIECES]) -> usize {
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            let bytes = match piece {
                Piece::Bytes(bytes) => bytes.as_bytes(py),
                Piece::Copied(bytes) => bytes,
            };
            *slice = IoSlice::new(if count == 0 { &bytes[self.sent..] } else { bytes });
            count += 1;
        }
        count
    }

    /// Takes `sent` bytes off the front.
    pub fn advance(&mut self, py: Python<'_>, mut sent: usize) {
        self.size -= sent;
        while let Some(piece) = self.pieces.front() {
            let length = match piece {
                Piece::Bytes(bytes) => bytes.as_bytes(py).len(),
                Piece::Copied(bytes) => bytes.len(),
            };
            if self.sent + sent < length {
                self.sent += sent;
                return;
            }
            sent -= length - self.sent;
            self.sent = 0;
            self.pieces.pop_front();
        }
    }

    /// Forgets everything. (Dropping bytes runs no Python code.)
    pub fn clear(&mut self) {
        *self = WriteBuffer::default();
    }
}
