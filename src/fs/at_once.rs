//! What the loop's thread does itself, as the kernel has it all in memory: opening a local file to read it, reading a small
//! one, looking at what is there. That takes half to a quarter of the CPU that it takes to have another thread do it.
//!
//! Each function gives None where it can't, whatever the reason: a blocking thread does it then, and finds the error.
//!
//! Who never waits keeps everybody else from their turn. So after [`IN_A_ROW`] of these the next one is refused, whoever
//! asks, and [`_was_others_turn`]: it is to be tried again in the next iteration. (If the others have used up that one's too,
//! it is a thread's: so nobody is refused for ever.)

use std::cell::Cell;
use std::ffi::CString;

use pyo3::prelude::*;

use super::buffered::{Buffered, Need};
use super::file::File;
use super::mailbox::os_error;
use super::outcome::stat_result;
use super::paths::LARGE;
use crate::sys;
use crate::sys::found::{self, Found, Opened};

/// About a millisecond.
const IN_A_ROW: u32 = 64;

thread_local! {
    static DONE: Cell<u32> = const { Cell::new(0) };
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// Has it done, unless it is the others' turn.
fn in_turn<T>(attempt: impl FnOnce() -> PyResult<Option<T>>) -> PyResult<Option<T>> {
    let done = DONE.get();
    let refused = done >= IN_A_ROW;
    let result = if refused { Ok(None) } else { attempt() };
    DONE.set(if matches!(result, Ok(None)) { 0 } else { done + 1 });
    REFUSED.set(refused);
    result
}

/// Whether that is why the last one on this thread came to nothing.
#[pyfunction]
pub fn _was_others_turn() -> bool {
    REFUSED.take()
}

/// Has a file found, and does `work` with it. An error if there surely is no such file.
///
/// Detached: whoever is asked before a file is opened or read (fanotify) may be another thread of this very process.
fn with_found<T: Send>(
    path: &[u8],
    name: &Bound<'_, PyAny>,
    follow: bool,
    work: impl FnOnce(&Found) -> sys::Result<T> + Send,
) -> PyResult<Option<T>> {
    let Ok(path) = CString::new(path) else { return Ok(None) };
    let found = name.py().detach(|| match found::find(&path, follow) {
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
    in_turn(|| Ok(with_found(path, name, true, open)?.map(File::new_nonblocking)))
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
        let Some((mut buffered, fill)) = with_found(path, name, true, read)? else { return Ok(None) };
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
        let metadata = with_found(path, name, follow, |found| found.metadata())?;
        metadata.map(|metadata| stat_result(name.py(), &metadata)).transpose()
    })
}
