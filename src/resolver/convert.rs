//! Answers as the `socket` module gives them.

use pyo3::exceptions::PyUnicodeDecodeError;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString, PyTuple};

use super::Standard;
use super::request::Answer;
use crate::sys;
use crate::sys::names::{AddressInfo, NameError, describe};
use crate::transport::address_to_python;

pub fn to_python(py: Python<'_>, answer: Answer) -> PyResult<Bound<'_, PyAny>> {
    let standard = Standard::get(py)?;
    match answer {
        Answer::Addresses(Ok(found)) => {
            let list = PyList::empty(py);
            for info in &found {
                list.append(entry(py, standard, info)?)?;
            }
            Ok(list.into_any())
        }
        Answer::Names(Ok((host, service))) => {
            Ok(PyTuple::new(py, [text(py, &host)?, text(py, &service)?])?.into_any())
        }
        Answer::Addresses(Err(error)) | Answer::Names(Err(error)) => Err(failure(py, standard, error)?),
    }
}

fn entry<'py>(py: Python<'py>, standard: &Standard, info: &AddressInfo) -> PyResult<Bound<'py, PyAny>> {
    let Some(address) = address_to_python(py, &info.address)? else {
        // No C library answers with another family than the internet's.
        return Err(sys::Error { errno: libc::EAFNOSUPPORT }.into());
    };
    let name = text(py, info.canonical_name.as_deref().unwrap_or_default())?;
    let family = standard.family(py, info.family)?;
    let kind = standard.kind(py, info.kind)?;
    Ok((family, kind, info.protocol, name, address).into_pyobject(py)?.into_any())
}

fn text<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(PyString::new(py, text)),
        Err(error) => Err(PyErr::from_value(PyUnicodeDecodeError::new_utf8(py, bytes, error)?.into_any())),
    }
}

fn failure(py: Python<'_>, standard: &Standard, error: NameError) -> PyResult<PyErr> {
    Ok(match error {
        NameError::System(error) => error.into(),
        NameError::Resolver(code) => {
            PyErr::from_value(standard.gaierror.bind(py).call1((code, describe(code)))?)
        }
    })
}
