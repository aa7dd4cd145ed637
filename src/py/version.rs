//! Which Python runs, asked where asyncio's versions differ. (pyo3 takes the text apart each time, which costs more than
//! the rest of what stands there.)

use std::sync::OnceLock;

use pyo3::prelude::*;

/// 13 of 3.13.
pub fn minor_version(py: Python<'_>) -> u8 {
    static MINOR: OnceLock<u8> = OnceLock::new();
    *MINOR.get_or_init(|| py.version_info().minor)
}
