//! What to look up: the arguments of a program, as the C library wants them.

use std::ffi::{CString, c_int};
use std::net::{Ipv4Addr, Ipv6Addr};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyInt, PyString, PyTuple};

use crate::sys::SocketAddress;
use crate::sys::names::{self, AddressInfo, Hints, NameError};

/// With these alone the C library asks nobody about an address in digits.
const NUMERIC_FLAGS: c_int =
    libc::AI_PASSIVE | libc::AI_CANONNAME | libc::AI_NUMERICHOST | libc::AI_NUMERICSERV;

// NI_NUMERICHOST and NI_NUMERICSERV, which the libc crate lacks for some platforms.
#[cfg(target_os = "linux")]
const NUMERIC_NAMES: c_int = 1 | 2;
#[cfg(not(target_os = "linux"))]
const NUMERIC_NAMES: c_int = 2 | 8;

pub enum Request {
    Addresses { host: Option<CString>, service: Option<CString>, hints: Hints },
    Names { address: SocketAddress, flags: c_int },
}

pub enum Answer {
    Addresses(Result<Vec<AddressInfo>, NameError>),
    Names(Result<(Vec<u8>, Vec<u8>), NameError>),
}

impl Request {
    /// Looks it up; may block.
    pub fn answer(&self) -> Answer {
        match self {
            Request::Addresses { host, service, hints } => {
                Answer::Addresses(names::address_info(host.as_deref(), service.as_deref(), *hints))
            }
            Request::Names { address, flags } => Answer::Names(names::name_info(address, *flags)),
        }
    }

    /// Whether to answer needs neither the network nor a file.
    pub fn is_numeric(&self) -> bool {
        match self {
            Request::Addresses { host: Some(host), service, hints } => {
                let in_digits = host.to_str().is_ok_and(|host| is_address(host, hints.family));
                let service_in_digits = (service.as_ref())
                    .is_none_or(|service| service.as_bytes().iter().all(u8::is_ascii_digit));
                in_digits && service_in_digits && hints.flags & !NUMERIC_FLAGS == 0
            }
            Request::Addresses { host: None, .. } => false,
            Request::Names { flags, .. } => flags & NUMERIC_NAMES == NUMERIC_NAMES,
        }
    }
}

/// Only the plainest form of an address. The C library knows more of them, and is asked in the usual way.
fn is_address(host: &str, family: c_int) -> bool {
    match family {
        libc::AF_UNSPEC => host.parse::<Ipv4Addr>().is_ok() || host.parse::<Ipv6Addr>().is_ok(),
        libc::AF_INET => host.parse::<Ipv4Addr>().is_ok(),
        libc::AF_INET6 => host.parse::<Ipv6Addr>().is_ok(),
        _ => false,
    }
}

/// An argument that the standard library has to judge itself.
struct Odd;

/// A host and a port as `socket.getaddrinfo` takes them. None: only the standard library knows what to make of them.
pub fn of_host(host: &Bound<'_, PyAny>, port: &Bound<'_, PyAny>, hints: Hints) -> Option<Request> {
    // macOS does not take "0" for a number, which the standard library knows.
    if cfg!(target_os = "macos") && hints.flags & libc::AI_NUMERICSERV != 0 {
        return None;
    }
    let service = service(port).ok()?;
    let host = host_name(host).ok()?;
    Some(Request::Addresses { host, service, hints })
}

fn host_name(host: &Bound<'_, PyAny>) -> Result<Option<CString>, Odd> {
    if host.is_none() {
        return Ok(None);
    }
    if let Ok(bytes) = host.cast_exact::<PyBytes>() {
        return CString::new(bytes.as_bytes()).map(Some).map_err(|_| Odd);
    }
    let text = host.cast_exact::<PyString>().map_err(|_| Odd)?;
    let text = text.to_str().map_err(|_| Odd)?;
    // The IDNA codec leaves ASCII as it is, if the labels have lengths that it accepts.
    let labels_fit = || {
        let mut labels = text.split('.').rev();
        let last_fits = labels.next().is_none_or(|label| label.len() < 64);
        last_fits && labels.all(|label| (1..64).contains(&label.len()))
    };
    if text.is_ascii() && labels_fit() {
        return CString::new(text).map(Some).map_err(|_| Odd);
    }
    // Other names need the codec; what it refuses, the standard library refuses in its own words.
    let encoded = host.call_method1("encode", ("idna",)).map_err(|_| Odd)?;
    let encoded = encoded.cast_exact::<PyBytes>().map_err(|_| Odd)?;
    CString::new(encoded.as_bytes()).map(Some).map_err(|_| Odd)
}

fn service(port: &Bound<'_, PyAny>) -> Result<Option<CString>, Odd> {
    let text = if port.is_none() {
        return Ok(None);
    } else if let Ok(number) = port.cast_exact::<PyInt>() {
        let number: u16 = number.extract().map_err(|_| Odd)?;
        number.to_string().into_bytes()
    } else if let Ok(text) = port.cast_exact::<PyString>() {
        text.to_str().map_err(|_| Odd)?.as_bytes().to_owned()
    } else if let Ok(bytes) = port.cast_exact::<PyBytes>() {
        bytes.as_bytes().to_owned()
    } else {
        return Err(Odd);
    };
    CString::new(text).map(Some).map_err(|_| Odd)
}

/// An address as `socket.getnameinfo` takes it; None as above.
pub fn of_address(address: &Bound<'_, PyTuple>, flags: c_int) -> Option<Request> {
    let host = address.get_item(0).ok()?;
    let host = host.cast_exact::<PyString>().ok()?;
    let host = host.to_str().ok()?;
    let port: u16 = address.get_item(1).ok()?.cast_exact::<PyInt>().ok()?.extract().ok()?;
    let number = |index: usize| match address.get_item(index) {
        Ok(value) => value.cast_exact::<PyInt>().ok()?.extract::<u32>().ok(),
        Err(_) => Some(0),
    };
    let address = match (host.parse::<Ipv4Addr>(), host.parse::<Ipv6Addr>(), address.len()) {
        (Ok(host), _, 2) => SocketAddress::v4(host, port),
        (_, Ok(host), 2..=4) => {
            let (flow_info, scope_id) = (number(2)?, number(3)?);
            // Twenty bits; the standard library refuses more.
            (flow_info <= 0xf_ffff).then(|| SocketAddress::v6(host, port, flow_info, scope_id))?
        }
        _ => return None,
    };
    Some(Request::Names { address, flags })
}
