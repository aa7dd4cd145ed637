//! What a blocking thread has to say, and what it is in Python.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use pyo3::IntoPyObjectExt;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::buffered::Buffered;
use super::file::File;
use crate::py::new_bytes;
use crate::sys;

pub enum Outcome {
    /// A turn has come: None in Python, and nothing more than that the caller should try again.
    Turn,
    Done,
    Number(u64),
    /// How many bytes were written, and what was: it comes home, as only the loop's thread may let go of what is Python's.
    /// (pyo3 would take a lock elsewhere, which a fork may find taken.)
    Written(sys::Result<u64>, PyBackedBytes),
    Bytes(Vec<u8>),
    Status(Box<Metadata>),
    Names(Vec<Vec<u8>>),
    Entries(Vec<Entry>),
    File(Box<Buffered>),
}

/// What a folder says of a file in it, without a look at the file.
pub struct Entry {
    pub name: Vec<u8>,
    pub inode: u64,
    /// The file type bits of a mode; 0 where the file system does not tell.
    pub kind: u32,
}

impl Outcome {
    /// For the loop's thread: the job's result without what it had borrowed.
    pub fn give_back(self) -> sys::Result<Outcome> {
        match self {
            Outcome::Written(written, _borrowed) => written.map(Outcome::Number),
            other => Ok(other),
        }
    }

    pub fn into_python(self, py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        match self {
            Outcome::Turn => Ok(py.None().into_bound(py)),
            Outcome::Done => true.into_bound_py_any(py),
            Outcome::Number(number) => number.into_bound_py_any(py),
            Outcome::Written(written, _borrowed) => written?.into_bound_py_any(py),
            Outcome::Bytes(bytes) => Ok(new_bytes(py, &bytes)?.into_any()),
            Outcome::Status(metadata) => stat_result(py, &metadata),
            Outcome::Names(names) => {
                let names = names.iter().map(|name| new_bytes(py, name)).collect::<PyResult<Vec<_>>>()?;
                Ok(PyList::new(py, names)?.into_any())
            }
            Outcome::Entries(entries) => {
                let list = PyList::empty(py);
                for entry in entries {
                    list.append((new_bytes(py, &entry.name)?, entry.inode, entry.kind))?;
                }
                Ok(list.into_any())
            }
            Outcome::File(buffered) => Ok(Bound::new(py, File::new(buffered))?.into_any()),
        }
    }
}

/// An `os.stat_result`, the same as `os.stat` gives.
pub fn stat_result<'py>(py: Python<'py>, metadata: &Metadata) -> PyResult<Bound<'py, PyAny>> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let class = CLASS.import(py, "os", "stat_result")?;
    let times = [
        (metadata.atime(), metadata.atime_nsec()),
        (metadata.mtime(), metadata.mtime_nsec()),
        (metadata.ctime(), metadata.ctime_nsec()),
    ];
    let fields = PyTuple::new(
        py,
        [
            metadata.mode().into_bound_py_any(py)?,
            metadata.ino().into_bound_py_any(py)?,
            metadata.dev().into_bound_py_any(py)?,
            metadata.nlink().into_bound_py_any(py)?,
            metadata.uid().into_bound_py_any(py)?,
            metadata.gid().into_bound_py_any(py)?,
            metadata.size().into_bound_py_any(py)?,
            times[0].0.into_bound_py_any(py)?,
            times[1].0.into_bound_py_any(py)?,
            times[2].0.into_bound_py_any(py)?,
        ],
    )?;
    let more = PyDict::new(py);
    let names = [
        (intern!(py, "st_atime"), intern!(py, "st_atime_ns")),
        (intern!(py, "st_mtime"), intern!(py, "st_mtime_ns")),
        (intern!(py, "st_ctime"), intern!(py, "st_ctime_ns")),
    ];
    for ((name, name_ns), (seconds, nanoseconds)) in names.into_iter().zip(times) {
        // The same arithmetic as CPython's.
        more.set_item(name, seconds as f64 + 1e-9 * nanoseconds as f64)?;
        more.set_item(name_ns, i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds))?;
    }
    more.set_item(intern!(py, "st_blksize"), metadata.blksize())?;
    more.set_item(intern!(py, "st_blocks"), metadata.blocks())?;
    more.set_item(intern!(py, "st_rdev"), metadata.rdev())?;
    class.call1((fields, more))
}
