//! A file with what was read ahead of its reader, or written and is not yet with the kernel. Blocking, single-minded, and
//! without Python: whoever holds it, the loop's thread or a blocking one, has it to himself.
//!
//! The methods come in two kinds. Those that make system calls that may take long run on a blocking thread: [`fill`],
//! [`write`], [`flush`], [`truncate`], [`close`]. The others the loop calls itself: they answer from the buffer, or make no
//! call but such as do not wait: lseek(2) with a position that the kernel knows, a read of what is in the page cache.
//!
//! A read is two steps: `fill` gets the bytes into the buffer, `take` takes them out. A reader that is cancelled between
//! has taken nothing. Unread bytes and pending ones never come together: before the one begins the other ends, as the
//! kernel's position would serve both.
//!
//! [`fill`]: Buffered::fill
//! [`write`]: Buffered::write
//! [`flush`]: Buffered::flush
//! [`truncate`]: Buffered::truncate
//! [`close`]: Buffered::close

use std::fs::File;
use std::mem::{self, ManuallyDrop};
use std::os::unix::fs::MetadataExt;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::memory::Memory;
use crate::py::new_bytes;
use crate::sys::files;
use crate::sys::found::Times;
use crate::sys::local::Local;
use crate::sys::{Error, Result};

/// From this size on a read goes into its result at once; below it the copy is cheaper.
const DIRECT: usize = 64 * 1024;

/// How much memory a large read may ask for beyond what the file is known to have.
const UNKNOWN: usize = 1024 * 1024;

/// The smallest page that there is; larger ones are multiples of it.
const PAGE: u64 = 4096;

/// What a reader asks for.
#[derive(Clone, Copy)]
pub enum Need {
    /// So many bytes, fewer only at the end.
    Exactly(usize),
    /// Everything up to the end.
    All,
    /// At least one byte and at most so many, with one system call at most.
    Some(usize),
    /// A line, cut off after so many bytes.
    Line(usize),
    /// Whatever there is to look at; nothing is taken.
    Look,
}

pub struct Buffered {
    file: ManuallyDrop<File>,
    /// Whether the descriptor is closed with the file.
    owned: bool,
    /// What was read; the part from `start` on is unread.
    memory: Memory,
    start: usize,
    /// Written, but not to the kernel yet.
    pending: Vec<u8>,
    /// How much is read ahead and how much may be pending; 0: neither.
    capacity: usize,
    /// The number of the last `fill`, and whether it came to the end of the file.
    fill: u64,
    at_end: bool,
    size_hint: u64,
    /// Of a regular file that is only read: closing it takes no time as long as it has a name, and what is in the page
    /// cache can be read without waiting.
    local: Option<Local>,
    /// Whether the loop may fill the buffer itself: once after the opening and after each job, so that who reads on and on
    /// lets others have their turn.
    may_try: bool,
    /// The size and the times when the file was opened, as long as its position is the beginning for certain.
    fresh: Option<(u64, Times)>,
}

impl Buffered {
    pub fn new(file: File, owned: bool, capacity: usize) -> Self {
        Buffered {
            file: ManuallyDrop::new(file),
            owned,
            memory: Memory::new(),
            start: 0,
            pending: Vec::new(),
            capacity,
            fill: 0,
            at_end: false,
            size_hint: 0,
            local: None,
            may_try: false,
            fresh: None,
        }
    }

    /// How long the file seems to be.
    pub fn set_size_hint(&mut self, size: u64) {
        self.size_hint = size;
    }

    /// Says that the file is a regular one, which is only read, and that it has just been opened.
    pub fn set_local(&mut self, local: Option<Local>) {
        self.local = local;
        self.may_try = local.is_some();
    }

    /// Says what the file was like as it was opened, just now.
    pub fn set_fresh(&mut self, size: u64, times: Times) {
        self.size_hint = size;
        self.fresh = Some((size, times));
    }

    /// Others may move the position from now on.
    pub fn share(&mut self) {
        self.fresh = None;
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    fn unread(&self) -> &[u8] {
        &self.memory.as_slice()[self.start..]
    }

    fn forget_unread(&mut self) {
        self.memory = Memory::new();
        self.start = 0;
        self.at_end = false;
    }

    /// The position of whoever uses the file.
    pub fn tell(&self) -> Result<u64> {
        let position = files::seek(&self.file, 0, libc::SEEK_CUR)?;
        Ok((position + self.pending.len() as u64).saturating_sub(self.unread().len() as u64))
    }

    // Reading.

    /// How many unread bytes answer the need, if they do; `from`: where a line's end has not been looked for yet.
    fn answer(&self, need: Need, from: usize) -> Option<usize> {
        let unread = self.unread();
        match need {
            Need::Exactly(size) => (unread.len() >= size).then_some(size),
            Need::All => None,
            Need::Some(size) => (size == 0 || !unread.is_empty()).then(|| unread.len().min(size)),
            Need::Line(limit) => {
                let end = unread.iter().skip(from).position(|&byte| byte == b'\n').map(|at| from + at + 1);
                match end {
                    Some(end) => Some(end.min(limit)),
                    None => (unread.len() >= limit).then_some(limit),
                }
            }
            Need::Look => (!unread.is_empty()).then_some(unread.len()),
        }
    }

    /// Takes what is needed out of the buffer, if it is there. `fill`: the number of the fill that was made for it; what
    /// that found at the end of the file is an answer, too.
    pub fn take<'py>(
        &mut self,
        py: Python<'py>,
        need: Need,
        fill: u64,
    ) -> Option<PyResult<Bound<'py, PyBytes>>> {
        if !self.pending.is_empty() {
            return None;
        }
        let at_end = self.at_end && self.fill == fill;
        let size = match self.answer(need, 0) {
            Some(size) => size,
            None if at_end => self.unread().len(),
            None => return None,
        };
        if let Need::Look = need {
            return Some(new_bytes(py, self.unread()));
        }
        let everything = self.start == 0 && size == self.memory.as_slice().len();
        if let (Memory::Object(_), true) = (&self.memory, everything) {
            let memory = mem::replace(&mut self.memory, Memory::new());
            return match memory {
                Memory::Object(object) => Some(object.finish(py)),
                Memory::Vector(_) => None,
            };
        }
        let result = new_bytes(py, &self.unread()[..size]);
        if result.is_ok() {
            self.start += size;
        }
        Some(result)
    }

    /// Before a large `fill`: sets up the object that is to be its result.
    pub fn prepare(&mut self, py: Python<'_>, need: Need) -> PyResult<()> {
        let known = match self.size_hint {
            hint if hint < DIRECT as u64 => 0,
            hint => hint.saturating_sub(self.tell().unwrap_or(hint)),
        };
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let size = match need {
            Need::Exactly(size) | Need::Some(size) => size.min(known.max(UNKNOWN)),
            // One more, so that the end shows itself.
            Need::All => known.saturating_add(1),
            Need::Line(_) | Need::Look => 0,
        };
        if size >= DIRECT && self.pending.is_empty() {
            let memory = Memory::object(py, self.unread(), size)?;
            drop(mem::replace(&mut self.memory, memory));
            self.start = 0;
        }
        Ok(())
    }

    /// Whether `try_fill` is worth it.
    pub fn may_try(&self) -> bool {
        self.may_try && self.capacity > 0
    }

    /// `fill` without waiting, from the page cache; None: it is for `fill` to do.
    pub fn try_fill(&mut self, need: Need) -> Option<u64> {
        if !mem::take(&mut self.may_try) || self.capacity == 0 {
            return None;
        }
        let local = self.local?;
        let (end, times, position) = match self.fresh.take() {
            Some((size, times)) => (size, times, 0),
            None => {
                // Whatever the error, the job comes across it too, or knows no such thing.
                let metadata = self.file.metadata().ok()?;
                let position = files::seek(&self.file, 0, libc::SEEK_CUR).ok()?;
                (metadata.len(), Times::from(&metadata), position)
            }
        };
        let left = usize::try_from(end.saturating_sub(position)).unwrap_or(usize::MAX);
        let size = match need {
            Need::Exactly(size) | Need::Some(size) => size.min(left),
            Need::All => left,
            Need::Line(_) | Need::Look => 0,
        };
        if size.max(self.unread().len()) >= DIRECT {
            return None;
        }
        // A byte more than there should be, so that the end shows itself; little, also where the buffer is large, as the
        // loop waits.
        let most = left.saturating_add(1).min(self.capacity.min(DIRECT));
        self.make_room(most);
        let spare = self.memory.spare();
        let length = spare.len().min(most);
        let count = local.read_cached(&self.file, &times, &mut spare[..length]).ok()?;
        // SAFETY: the call has filled so many.
        unsafe { self.memory.advance(count) };
        self.fill += 1;
        // The file may have grown meanwhile, by what is not in memory. But a read that ends within a page ends with the file.
        let ends_within = 0 < count && count < length && end % PAGE > 0;
        self.at_end = count == left && (ends_within || self.is_all_read());
        (self.at_end || self.answer(need, 0).is_some()).then_some(self.fill)
    }

    fn is_all_read(&self) -> bool {
        let size = self.file.metadata().map(|metadata| metadata.len());
        let position = files::seek(&self.file, 0, libc::SEEK_CUR);
        matches!((position, size), (Ok(position), Ok(size)) if position >= size)
    }

    /// Reads until the need can be answered or the file ends. Gives the number to `take` it with.
    pub fn fill(&mut self, need: Need) -> Result<u64> {
        self.write_pending()?;
        self.fill += 1;
        self.at_end = false;
        self.may_try = self.local.is_some();
        self.fresh = None;
        let mut scanned = 0;
        while self.answer(need, scanned).is_none() {
            scanned = self.unread().len();
            let missing = match need {
                Need::Exactly(size) => size - scanned,
                Need::Some(size) => size,
                Need::All | Need::Line(_) | Need::Look => 1,
            };
            // Without a buffer not a byte is read that nobody has asked for.
            let most = match (self.capacity, need) {
                (0, Need::All) => usize::MAX,
                (0, _) => missing,
                _ => usize::MAX,
            };
            if self.memory.spare().is_empty() || matches!(self.memory, Memory::Vector(_)) {
                self.make_room(missing.max(self.capacity).min(self.most_at_once(need)));
            }
            let spare = self.memory.spare();
            let length = spare.len().min(most);
            let count = files::read(&self.file, &mut spare[..length])?;
            // SAFETY: the call has filled so many.
            unsafe { self.memory.advance(count) };
            if count == 0 {
                self.at_end = true;
                break;
            }
        }
        Ok(self.fill)
    }

    /// A need of a terabyte is not memory of a terabyte.
    fn most_at_once(&self, need: Need) -> usize {
        match need {
            // Twice as much each time, so that the copies are few.
            Need::All | Need::Line(_) => self.unread().len().max(DIRECT),
            _ => UNKNOWN.max(self.capacity),
        }
    }

    fn make_room(&mut self, more: usize) {
        if self.unread().is_empty() && self.memory.as_slice().len() > UNKNOWN {
            self.memory = Memory::new();
            self.start = 0;
        }
        self.memory.make_room(self.start, more);
        self.start = 0;
    }

    // Writing.

    /// Ends the reading: the kernel's position becomes the user's.
    fn rewind(&mut self) -> Result<()> {
        if !self.unread().is_empty() {
            files::seek(&self.file, -(self.unread().len() as i64), libc::SEEK_CUR)?;
        }
        self.forget_unread();
        Ok(())
    }

    /// Keeps the data for later, if there is room; false: it is for `write`.
    pub fn try_write(&mut self, data: &[u8]) -> Result<bool> {
        if self.pending.len() + data.len() > self.capacity || self.capacity == 0 {
            return Ok(false);
        }
        self.rewind()?;
        self.pending.extend_from_slice(data);
        Ok(true)
    }

    /// Writes; gives how much of the data, which without a buffer may be less than all. After an error nothing of it
    /// will be written that has not been.
    pub fn write(&mut self, data: &[u8]) -> Result<usize> {
        self.write_pending()?;
        if self.capacity == 0 {
            // What has no position has nothing to rewind, and its two directions are none of each other's business.
            if !self.unread().is_empty() {
                self.rewind()?;
            }
            return files::write(&self.file, data);
        }
        self.rewind()?;
        if data.len() < self.capacity {
            self.pending.extend_from_slice(data);
            return Ok(data.len());
        }
        let mut written = 0;
        while written < data.len() {
            written += files::write(&self.file, &data[written..])?;
        }
        Ok(written)
    }

    /// What an error leaves unwritten stays pending.
    fn write_pending(&mut self) -> Result<()> {
        let mut written = 0;
        let result = loop {
            match self.pending.get(written..) {
                None | Some([]) => break Ok(()),
                Some(rest) => match files::write(&self.file, rest) {
                    Ok(count) => written += count,
                    Err(error) => break Err(error),
                },
            }
        };
        self.pending.drain(..written);
        result
    }

    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Gives the kernel all that is pending. Afterwards its position is the user's.
    pub fn flush(&mut self) -> Result<()> {
        self.write_pending()?;
        self.give_back();
        Ok(())
    }

    /// Gives unread bytes back to the kernel; what can't be read again stays.
    pub fn give_back(&mut self) {
        let _ = self.rewind();
    }

    /// The size may be the current position.
    pub fn truncate(&mut self, size: Option<u64>) -> Result<u64> {
        self.write_pending()?;
        self.rewind()?;
        let size = match size {
            Some(size) => size,
            None => self.tell()?,
        };
        self.file.set_len(size)?;
        Ok(size)
    }

    // Moving.

    /// Moves where that takes no time: nothing is pending, and the target does not hang on the file's size.
    pub fn try_seek(&mut self, offset: i64, whence: i32) -> Option<Result<u64>> {
        let quick = self.pending.is_empty() && matches!(whence, libc::SEEK_SET | libc::SEEK_CUR);
        quick.then(|| self.seek(offset, whence))
    }

    pub fn seek(&mut self, offset: i64, whence: i32) -> Result<u64> {
        self.fresh = None;
        self.write_pending()?;
        let kernel = files::seek(&self.file, 0, libc::SEEK_CUR)?;
        let here = kernel.saturating_sub(self.unread().len() as u64) as i64;
        let target = match whence {
            libc::SEEK_SET => Some(offset),
            libc::SEEK_CUR => here.checked_add(offset),
            _ => None,
        };
        // Within what was read already?
        if let Some(back) = target.and_then(|target| usize::try_from(kernel as i64 - target).ok()) {
            if back <= self.memory.as_slice().len() && self.capacity > 0 {
                self.start = self.memory.as_slice().len() - back;
                self.at_end = false;
                return Ok(kernel - back as u64);
            }
        }
        let position = match (whence, target) {
            (libc::SEEK_SET | libc::SEEK_CUR, None) => return Err(Error { errno: libc::EOVERFLOW }),
            (_, Some(target)) => files::seek(&self.file, target, libc::SEEK_SET)?,
            (_, None) => files::seek(&self.file, offset, whence)?,
        };
        self.forget_unread();
        Ok(position)
    }

    // Ending.

    /// Whether the loop may close the file itself: there is nothing to write, and nothing to remove from the disk, as
    /// there is when the file has been deleted and this is its last user.
    pub fn is_quick_to_close(&self) -> bool {
        let has_name = || self.file.metadata().is_ok_and(|metadata| metadata.nlink() > 0);
        self.local.is_some() && self.pending.is_empty() && has_name()
    }

    /// Closes the file even if that or the last write fails.
    pub fn close(mut self) -> Result<()> {
        let written = self.write_pending();
        self.pending.clear();
        if !mem::replace(&mut self.owned, false) {
            return written;
        }
        // SAFETY: taken once: `owned` is false from now on, so `drop` leaves the file alone.
        let closed = files::close(unsafe { ManuallyDrop::take(&mut self.file) });
        written.and(closed)
    }
}

impl Drop for Buffered {
    /// A file that nobody closed: what was written shall not be lost. Nobody is there to be told of an error.
    fn drop(&mut self) {
        let _ = self.write_pending();
        if self.owned {
            // SAFETY: dropped once, here: `close` has not taken it, or `owned` would be false.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
    }
}
