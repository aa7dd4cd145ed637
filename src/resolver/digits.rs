//! An address in digits, answered from what the C library has answered to another one.
//!
//! To digits getaddrinfo(3) answers with the address itself, once for each kind of socket that the hints allow. Which
//! kinds these are, and in what order, is up to the C library, and the address has no part in it. So it is asked once
//! for each set of hints, and the pattern of its answer kept; later addresses are put into that. An answer that is
//! anything but the address in a pattern is not kept, nor is an error.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList, PyString, PyTuple};

use super::Standard;
use crate::py::AttachedCell;
use crate::sys::names::{AddressInfo, Hints};
use crate::sys::{SocketAddress, ipv6_text};

/// With these alone the answer is the address and nothing else.
const PLAIN_FLAGS: c_int = libc::AI_PASSIVE | libc::AI_NUMERICHOST | libc::AI_NUMERICSERV;

/// So many patterns are kept; a program needs a handful.
const MOST: usize = 32;

/// The oldest is at the front.
static PATTERNS: AttachedCell<VecDeque<Arc<Pattern>>> = AttachedCell::new(VecDeque::new());

/// All that an answer depends on, but for the address and the port.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    hints: Hints,
    is_ipv6: bool,
    has_port: bool,
}

/// What the C library answers to a set of hints.
struct Pattern {
    key: Key,
    /// Family, kind and protocol of each entry, as the `socket` module has them.
    entries: Vec<(Py<PyAny>, Py<PyAny>, Py<PyAny>)>,
}

/// An address, and the pattern of the answer to it.
pub struct Known {
    pattern: Arc<Pattern>,
    address: IpAddr,
}

/// A host in digits, in the only form that the C library writes an IPv4 address in, with a port that is a number or
/// none.
struct Digits<'a, 'py> {
    port: Option<&'a Bound<'py, PyInt>>,
    address: IpAddr,
}

impl<'a, 'py> Digits<'a, 'py> {
    fn of(host: &'a Bound<'py, PyAny>, port: &'a Bound<'py, PyAny>, hints: Hints) -> Option<Self> {
        // Elsewhere the answer may depend on the network: macOS makes IPv6 addresses of IPv4 ones where it has to.
        if !cfg!(target_os = "linux") || hints.flags & !PLAIN_FLAGS != 0 {
            return None;
        }
        let host = host.cast_exact::<PyString>().ok()?;
        let port = match port.is_none() {
            true => None,
            false => Some(port.cast_exact::<PyInt>().ok()?),
        };
        let text = host.to_str().ok()?;
        // Rust reads nothing but digits and dots, without leading zeros: what it reads it would write again.
        let address = match text.parse::<Ipv4Addr>() {
            Ok(address) => IpAddr::V4(address),
            Err(_) => IpAddr::V6(text.parse::<Ipv6Addr>().ok()?),
        };
        Some(Digits { port, address })
    }

    fn key(&self, hints: Hints) -> Key {
        Key { hints, is_ipv6: self.address.is_ipv6(), has_port: self.port.is_some() }
    }
}

/// What the answer will be; None as long as only the C library knows that, and where it has to be asked each time.
pub fn known(host: &Bound<'_, PyAny>, port: &Bound<'_, PyAny>, hints: Hints) -> Option<Known> {
    let digits = Digits::of(host, port, hints)?;
    let _fits: Option<u16> = match digits.port {
        Some(port) => Some(port.extract().ok()?),
        None => None,
    };
    let key = digits.key(hints);
    let patterns = PATTERNS.borrow_mut(host.py());
    let pattern = patterns.iter().find(|pattern| pattern.key == key)?;
    Some(Known { pattern: Arc::clone(pattern), address: digits.address })
}

/// Learns from an answer of the C library.
pub fn learn(
    host: &Bound<'_, PyAny>,
    port: &Bound<'_, PyAny>,
    hints: Hints,
    answer: &[AddressInfo],
) -> PyResult<()> {
    let py = host.py();
    let Some(digits) = Digits::of(host, port, hints) else { return Ok(()) };
    let number: u16 = digits.port.map_or(Ok(0), |port| port.extract())?;
    let expected = match digits.address {
        IpAddr::V4(address) => SocketAddress::v4(address, number),
        IpAddr::V6(address) => SocketAddress::v6(address, number, 0, 0),
    };
    let is_expected = |info: &AddressInfo| info.address == expected && info.canonical_name.is_none();
    if answer.is_empty() || !answer.iter().all(is_expected) {
        return Ok(());
    }
    let standard = Standard::get(py)?;
    let entry = |info: &AddressInfo| {
        let (family, kind) = (standard.family(py, info.family)?, standard.kind(py, info.kind)?);
        PyResult::Ok((family.unbind(), kind.unbind(), info.protocol.into_pyobject(py)?.into_any().unbind()))
    };
    let entries = answer.iter().map(entry).collect::<PyResult<_>>()?;
    let key = digits.key(hints);
    let forgotten = {
        let mut patterns = PATTERNS.borrow_mut(py);
        if patterns.iter().all(|pattern| pattern.key != key) {
            patterns.push_back(Arc::new(Pattern { key, entries }));
        }
        if patterns.len() > MOST { patterns.pop_front() } else { None }
    };
    drop(forgotten);
    Ok(())
}

impl Known {
    pub fn hints(&self) -> Hints {
        self.pattern.key.hints
    }

    /// The answer, given the host and the port that it is to.
    pub fn answer<'py>(
        &self,
        host: Bound<'py, PyAny>,
        port: Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = host.py();
        let port = if port.is_none() { 0u16.into_pyobject(py)?.into_any() } else { port };
        let address = match self.address {
            // The text of the answer is that of the question.
            IpAddr::V4(_) => PyTuple::new(py, [host, port])?,
            IpAddr::V6(address) => (ipv6_text(address), port, 0, 0).into_pyobject(py)?,
        };
        let list = PyList::empty(py);
        for (family, kind, protocol) in &self.pattern.entries {
            list.append((family, kind, protocol, intern!(py, ""), &address).into_pyobject(py)?)?;
        }
        Ok(list.into_any())
    }
}
