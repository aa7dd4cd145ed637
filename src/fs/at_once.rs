//! What the loop's thread does itself, as the kernel has it all in memory: opening a local file to read it, reading a small
//! one, looking at what is there. That takes half to a quarter of the CPU that it takes to have another thread do it.
//!
//! Each function gives None where it can't, whatever the reason: a blocking thread does it then, and finds the error.
//!
//! Who never waits keeps everybody else from their turn. So after [`IN_A_ROW`] of these all are refused for the rest of the
//! iteration. Each is done in the next one: the first of the refused begins to count anew, and the others have theirs done
//! whatever the count is, lest of a thousand each be refused again and again.

use std::cell::Cell;
use std::ffi::{CStr, CString};

use pyo3::prelude::*;

use super::buffered::{Buffered, Need};
use super::file::File;
use super::mailbox::os_error;
use super::outcome::stat_result;
use super::paths::LARGE;
use crate::sys;
use crate::sys::found::{Found, Opened, find, find_to_open};

/// About half a millisecond.
const IN_A_ROW: u32 = 64;

#[derive(Clone, Copy)]
struct Turn {
    /// The number of this one.
    number: u64,
    done: u32,
    /// The last one was refused.
    refused: bool,
    /// The next one has waited for its turn.
    has_waited: bool,
}

thread_local! {
    static TURN: Cell<Turn> = const { Cell::new(Turn { number: 1, done: 0, refused: false, has_waited: false }) };
}

/// Has it done, unless it is the others' turn.
fn in_turn<T>(attempt: impl FnOnce() -> PyResult<Option<T>>) -> PyResult<Option<T>> {
    let mut turn = TURN.get();
    turn.refused = turn.done >= IN_A_ROW && !turn.has_waited;
    turn.has_waited = false;
    turn.done = turn.done.saturating_add(1);
    TURN.set(turn);
    if turn.refused { Ok(None) } else { attempt() }
}

/// Whether the last one on this thread was refused: the number of the turn, for `_others_had_turn`, or 0.
#[pyfunction]
pub fn _refusal() -> u64 {
    let turn = TURN.get();
    if turn.refused { turn.number } else { 0 }
}

/// Has the next one done, which was refused in an earlier iteration.
#[pyfunction]
pub fn _others_had_turn(refusal: u64) {
    let mut turn = TURN.get();
    turn.has_waited = true;
    if refusal == turn.number {
        turn.number += 1;
        turn.done = 0;
    }
    TURN.set(turn);
}

/// Does `work` with what is found. An error if there surely is no such file.
///
/// Detached: whoever is asked before a file is opened or read (fanotify) may be another thread of this very process.
fn with_found<T: Send>(
    path: &[u8],
    name: &Bound<'_, PyAny>,
    find: impl for<'a> FnOnce(&'a CStr) -> sys::Result<Found<'a>> + Send,
    work: impl FnOnce(&Found) -> sys::Result<T> + Send,
) -> PyResult<Option<T>> {
    let Ok(path) = CString::new(path) else { return Ok(None) };
    let found = name.py().detach(|| match find(&path) {
        Ok(found) => Ok(work(&found).ok()),
        Err(error) if error.errno == libc::ENOENT => Err(error),
        Err(_) => Ok(None),
    });
    match found {
        Ok(result) => Ok(result),
        Err(error) => Err(os_error(name.py(), error, [Some(name), None])?),
    }
}

fn buffered(opened: Opened, buffering: usize) -> Box<Buffered> {
    let mut buffered = Buffered::new(opened.file, true, buffering);
    buffered.set_fresh(opened.size, opened.times);
    buffered.set_local(Some(opened.local));
    Box::new(buffered)
}

/// Opens a file for reading; as `Mailbox.open`.
#[pyfunction]
pub fn _open_at_once(path: &[u8], name: &Bound<'_, PyAny>, buffering: usize) -> PyResult<Option<File>> {
    let open = |found: &Found| Ok(buffered(found.open()?, buffering));
    in_turn(|| Ok(with_found(path, name, find_to_open, open)?.map(File::new_nonblocking)))
}

/// Reads a whole file; as `Mailbox.read_bytes`. The result is the file, opened, if there is more to be done.
#[pyfunction]
pub fn _read_at_once<'py>(path: &[u8], name: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = name.py();
    let read = |found: &Found| {
        let mut buffered = buffered(found.open()?, LARGE as usize);
        let fill = buffered.try_fill(Need::All);
        Ok((buffered, fill))
    };
    in_turn(|| {
        let Some((mut buffered, fill)) = with_found(path, name, find_to_open, read)? else { return Ok(None) };
        match fill.and_then(|fill| buffered.take(py, Need::All, fill)) {
            // Closed as it is dropped. It had a name just now, so that takes no time.
            Some(bytes) => Ok(Some(bytes?.into_any())),
            None => Ok(Some(Bound::new(py, File::new_nonblocking(buffered))?.into_any())),
        }
    })
}

/// As `Mailbox.stat`.
#[pyfunction]
pub fn _stat_at_once<'py>(
    path: &[u8],
    name: &Bound<'py, PyAny>,
    follow: bool,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    in_turn(|| {
        let metadata = with_found(path, name, |path| find(path, follow), |found| found.metadata())?;
        metadata.map(|metadata| stat_result(name.py(), &metadata)).transpose()
    })
}
