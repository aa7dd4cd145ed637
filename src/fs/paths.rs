//! What is done with paths: one job each.
//!
//! The methods take a future, which gets the result, the path as the kernel knows it, and the path as the caller gave
//! it, for the error.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, DirEntryExt, FileTypeExt};
use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use super::buffered::Buffered;
use super::mailbox::Mailbox;
use super::outcome::{Entry, Outcome};
use crate::runtime::Writing;
use crate::sys;
use crate::sys::found;
use crate::sys::local::Local;

/// A file of at least this size is not read through memory of our own.
pub const LARGE: u64 = 128 * 1024;

fn path(bytes: &[u8]) -> PathBuf {
    std::ffi::OsStr::from_bytes(bytes).into()
}

/// `open(2)` refuses to write to a folder, but reads it; a Python file does neither.
fn open(options: &OpenOptions, path: &PathBuf) -> sys::Result<(File, Metadata)> {
    let file = options.open(path)?;
    let metadata = file.metadata()?;
    match metadata.is_dir() {
        true => Err(sys::Error { errno: libc::EISDIR }),
        false => Ok((file, metadata)),
    }
}

/// What `open` is to do, as in the mode string.
fn options(mode: &str) -> PyResult<OpenOptions> {
    let mut options = OpenOptions::new();
    let update = mode.contains('+');
    match mode.chars().next() {
        Some('r') => options.read(true).write(update),
        Some('w') => options.write(true).create(true).truncate(true).read(update),
        Some('a') => options.append(true).create(true).read(update),
        Some('x') => options.write(true).create_new(true).read(update),
        _ => return Err(PyValueError::new_err(format!("invalid mode: '{mode}'"))),
    };
    Ok(options)
}

fn stat(path: &PathBuf, follow: bool) -> sys::Result<Metadata> {
    let metadata = if follow { fs::metadata(path)? } else { fs::symlink_metadata(path)? };
    if let Ok(path) = CString::new(path.as_os_str().as_bytes()) {
        found::learn(&path, follow);
    }
    Ok(metadata)
}

fn entry(entry: &fs::DirEntry) -> Entry {
    let kind = match entry.file_type() {
        Ok(kind) if kind.is_symlink() => libc::S_IFLNK,
        Ok(kind) if kind.is_dir() => libc::S_IFDIR,
        Ok(kind) if kind.is_file() => libc::S_IFREG,
        Ok(kind) if kind.is_fifo() => libc::S_IFIFO,
        Ok(kind) if kind.is_socket() => libc::S_IFSOCK,
        Ok(kind) if kind.is_block_device() => libc::S_IFBLK,
        Ok(kind) if kind.is_char_device() => libc::S_IFCHR,
        _ => 0,
    };
    Entry { name: entry.file_name().into_vec(), inode: entry.ino(), kind }
}

#[pymethods]
impl Mailbox {
    /// Opens a file; the result is a `File`. `buffering`: the buffer's size in bytes, 0 for none.
    fn open(
        &self,
        py: Python<'_>,
        future: Py<PyAny>,
        path: &[u8],
        name: Py<PyAny>,
        mode: &str,
        buffering: usize,
    ) -> PyResult<()> {
        let (path, options) = (self::path(path), options(mode)?);
        let (at_end, read_only) = (mode.starts_with('a'), mode == "r");
        self.submit(py, future, [Some(name), None], None, move || {
            let (file, metadata) = open(&options, &path)?;
            if at_end {
                // As Python does; what has no position is not appended to.
                let _ = sys::files::seek(&file, 0, libc::SEEK_END);
            }
            let mut buffered = Buffered::new(file, true, buffering);
            buffered.set_size_hint(metadata.len());
            if read_only && metadata.is_file() {
                buffered.set_local(Local::of(buffered.file()));
            }
            Ok(Outcome::File(Box::new(buffered)))
        })
    }

    /// Reads a whole file; the result is its bytes, or the file, opened, if it is large.
    fn read_bytes(&self, py: Python<'_>, future: Py<PyAny>, path: &[u8], name: Py<PyAny>) -> PyResult<()> {
        let path = self::path(path);
        self.submit(py, future, [Some(name), None], None, move || {
            let (mut file, metadata) = open(OpenOptions::new().read(true), &path)?;
            let local = metadata.is_file().then(|| Local::of(&file)).flatten();
            if metadata.len() >= LARGE {
                let mut buffered = Buffered::new(file, true, LARGE as usize);
                buffered.set_size_hint(metadata.len());
                buffered.set_local(local);
                return Ok(Outcome::File(Box::new(buffered)));
            }
            // One byte more than there should be, so that the end shows itself.
            let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
            file.read_to_end(&mut bytes)?;
            Ok(Outcome::Bytes(bytes))
        })
    }

    /// Writes a whole file, which is created or emptied first; the result is how many bytes it has.
    fn write_bytes(
        &self,
        py: Python<'_>,
        future: Py<PyAny>,
        path: &[u8],
        name: Py<PyAny>,
        data: PyBackedBytes,
    ) -> PyResult<()> {
        let path = self::path(path);
        self.submit(py, future, [Some(name), None], Some(Writing::begin()), move || {
            let write = || -> sys::Result<u64> {
                let (mut file, _) = open(OpenOptions::new().write(true).create(true).truncate(true), &path)?;
                file.write_all(&data)?;
                sys::files::close(file)?;
                Ok(data.len() as u64)
            };
            Ok(Outcome::Written(write(), data))
        })
    }

    /// The result is an `os.stat_result`; `follow`: of what a symbolic link points to.
    fn stat(
        &self,
        py: Python<'_>,
        future: Py<PyAny>,
        path: &[u8],
        name: Py<PyAny>,
        follow: bool,
    ) -> PyResult<()> {
        let path = self::path(path);
        self.submit(py, future, [Some(name), None], None, move || {
            Ok(Outcome::Status(Box::new(stat(&path, follow)?)))
        })
    }

    /// The result is the list of the names in a folder, as bytes.
    fn listdir(&self, py: Python<'_>, future: Py<PyAny>, path: &[u8], name: Py<PyAny>) -> PyResult<()> {
        let path = self::path(path);
        self.submit(py, future, [Some(name), None], None, move || {
            let mut names = Vec::new();
            for entry in fs::read_dir(path)? {
                names.push(entry?.file_name().into_vec());
            }
            Ok(Outcome::Names(names))
        })
    }

    /// The result is a list of (name in bytes, inode number, file type bits or 0).
    fn scandir(&self, py: Python<'_>, future: Py<PyAny>, path: &[u8], name: Py<PyAny>) -> PyResult<()> {
        let path = self::path(path);
        self.submit(py, future, [Some(name), None], None, move || {
            let mut entries = Vec::new();
            for item in fs::read_dir(path)? {
                entries.push(entry(&item?));
            }
            Ok(Outcome::Entries(entries))
        })
    }

    fn mkdir(
        &self,
        py: Python<'_>,
        future: Py<PyAny>,
        path: &[u8],
        name: Py<PyAny>,
        mode: u32,
    ) -> PyResult<()> {
        let path = self::path(path);
        self.submit(py, future, [Some(name), None], Some(Writing::begin()), move || {
            DirBuilder::new().mode(mode).create(path)?;
            Ok(Outcome::Done)
        })
    }

    fn rmdir(&self, py: Python<'_>, future: Py<PyAny>, path: &[u8], name: Py<PyAny>) -> PyResult<()> {
        let path = self::path(path);
        self.submit(py, future, [Some(name), None], Some(Writing::begin()), move || {
            fs::remove_dir(path)?;
            Ok(Outcome::Done)
        })
    }

    fn unlink(&self, py: Python<'_>, future: Py<PyAny>, path: &[u8], name: Py<PyAny>) -> PyResult<()> {
        let path = self::path(path);
        self.submit(py, future, [Some(name), None], Some(Writing::begin()), move || {
            fs::remove_file(path)?;
            Ok(Outcome::Done)
        })
    }

    fn rename(
        &self,
        py: Python<'_>,
        future: Py<PyAny>,
        paths: (PyBackedBytes, PyBackedBytes),
        names: (Py<PyAny>, Py<PyAny>),
    ) -> PyResult<()> {
        let (from, to) = (self::path(&paths.0), self::path(&paths.1));
        self.submit(py, future, [Some(names.0), Some(names.1)], Some(Writing::begin()), move || {
            fs::rename(from, to)?;
            Ok(Outcome::Done)
        })
    }
}
